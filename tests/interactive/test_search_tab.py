"""The studio's search in a folder."""

from __future__ import annotations

import numpy as np
import pytest
from colours import COLOURS, ColourIndex, Colours, paint
from PIL import Image

from trex2_mini.interactive import search_tab
from trex2_mini.interactive.studio import PromptStudio


@pytest.fixture
def studio(tmp_path, monkeypatch):
    monkeypatch.setattr(search_tab, "PhotoIndex", ColourIndex)
    for name in ("red", "green"):
        paint(tmp_path / "photos" / f"{name}<b>.png", name)
    image = np.zeros((40, 40, 3), np.uint8)
    image[5:20, 5:20] = COLOURS["green"]
    Image.fromarray(image).save(tmp_path / "here.png")
    studio = PromptStudio(Colours(), tmp_path / "here.png")
    studio.finder.folder.value = str(tmp_path / "photos")
    return studio


def test_words_and_boxes_of_the_studio_find_pictures_in_a_folder(studio):
    with pytest.raises(ValueError, match="nothing is asked for"):
        studio.finder.find()
    studio.canvas.prompts = [{"xyxy": [5, 5, 20, 20]}]
    assert [hit.path.name for hit in studio.finder.find()] == ["green<b>.png", "red<b>.png"]
    studio.workflow.value = "text"
    studio.text.value = "red"
    assert studio.finder.find()[0].path.name == "red<b>.png"
    assert "red&lt;b&gt;.png" in studio.finder.found.value
    assert studio.finder.take() == studio.current == "red<b>.png"
    assert "2 of 2 pictures" not in studio.message.value  # the canvas asks anew


def test_mistakes_are_shown_under_the_canvas(studio):
    studio.finder.folder.value = "no folder"
    studio.workflow.value = "text"
    studio.text.value = "red"
    button = next(
        w for row in studio.finder.children[0].children for w in row.children if "trex-studio-search" in w._dom_classes
    )
    button.click()
    assert "expected a folder" in studio.message.value
