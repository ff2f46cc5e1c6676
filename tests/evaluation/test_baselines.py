"""The baselines of Visual-I: what they must find, that they follow a prompt's size, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.evaluation.baselines import BASELINES, baseline_detections
from trex2_mini.evaluation.interactive import draw_prompts
from trex2_mini.evaluation.protocols import evaluate

FIRST, SECOND = [16.0, 24.0, 32.0, 24.0], [80.0, 88.0, 32.0, 24.0]  # xywh; the same thing twice


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """One patch of noise at two places of a picture of smooth noise."""
    folder, rng = tmp_path_factory.mktemp("twice"), np.random.default_rng(0)
    picture = np.asarray(Image.fromarray(rng.integers(90, 160, (8, 10, 3), dtype=np.uint8)).resize((160, 128)))
    picture, patch = picture.copy(), rng.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    for x, y, w, h in (FIRST, SECOND):
        picture[int(y) : int(y + h), int(x) : int(x + w)] = patch
    (folder / "images").mkdir()
    Image.fromarray(picture).save(folder / "images" / "1.png")
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 768.0, "iscrowd": 0}
        for i, box in enumerate((FIRST, SECOND), 1)
    ]
    coco = {
        "images": [{"id": 1, "file_name": "1.png", "width": 160, "height": 128}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "patch"}],
    }
    (folder / "annotations.json").write_text(json.dumps(coco))
    return CocoDataset(folder / "annotations.json", folder / "images")


@pytest.mark.parametrize("kind", BASELINES)
def test_both_instances_come_first(twice, kind):
    drawn = draw_prompts(twice.coco, seed=0)
    found = sorted(baseline_detections(kind, twice, drawn, [1], progress=False), key=lambda d: -d["score"])
    boxes = np.array([d["bbox"] for d in found[:6]])
    if kind == "template":
        np.testing.assert_allclose(sorted(boxes[:2].tolist()), [FIRST, SECOND], atol=1.0)
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    for x, y, w, h in (FIRST, SECOND):  # a mean of features tells where better than how large
        assert np.abs(centres - [x + w / 2, y + h / 2]).max(1).min() <= 6
    assert found[0]["score"] == pytest.approx(1.0, abs=0.05) and all(d["score"] <= 1.0001 for d in found)
    assert len(found) <= 100 and {d["image_id"] for d in found} == {1}


def test_a_plain_prompt_finds_nothing_by_its_pixels(twice, tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((128, 160, 3), 90, np.uint8)).save(tmp_path / "images" / "1.png")
    plain = CocoDataset(twice.path, tmp_path / "images")
    assert not len(baseline_detections("template", plain, draw_prompts(plain.coco, seed=0), [1], progress=False))


def test_unknown_baselines_and_protocols_without_any_are_refused(twice):
    with pytest.raises(ValueError, match="unknown baseline 'magic'; expected one of template, features"):
        baseline_detections("magic", twice, {}, [1])
    with pytest.raises(ValueError, match=r"baselines are for .*visual-i"):
        evaluate("nano-emoji", twice, "text", baselines=["template"])
