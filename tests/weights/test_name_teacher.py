"""The image classifier that teaches the text tower names which no box was labelled with."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from trex2_mini import Detector
from trex2_mini.weights.name_teacher import (
    GRID,
    SURE,
    Shown,
    class_names,
    class_vectors,
    classifier,
    crops,
    look,
    pictures_of,
    teach_names,
)

CAT = np.array([[120, 10, 400, 290]], np.float32)  # on skimage's photograph of a cat


def number_of(name: str) -> int:
    return next(i for i, own in enumerate(class_names()) if name in own)


def test_the_classifier_knows_a_cat():
    """Weights, order of the classes and scaling of the pixels: a tabby or an Egyptian cat, whichever crop it sees."""
    with torch.inference_mode():
        thought = classifier()(crops(Shown(data.chelsea(), CAT))).softmax(-1)[0]
    cats = [number_of(name) for name in ("tabby", "tiger cat", "egyptian cat")]
    assert thought[cats].sum() > 0.8
    assert len(class_names()) == 1000 and not any("crane" in own for own in class_names())  # two classes have it


def test_what_counts_for_a_class():
    """The mean of V by probability, where the teacher is sure; nothing of what it only guesses."""
    vectors = torch.eye(4)
    thoughts = torch.zeros(4, 1000)
    thoughts[0, 7], thoughts[1, 7], thoughts[2, 7], thoughts[3, 9] = 0.9, 0.6, SURE - 0.01, SURE - 0.01
    found = class_vectors(vectors, thoughts, 2.0)
    assert list(found) == [7]
    torch.testing.assert_close(found[7], 2 * torch.nn.functional.normalize(torch.tensor([0.9, 0.6, 0, 0]), dim=0))


def test_pictures_of_folders_cut_outs_and_sets(tmp_path):
    (tmp_path / "named" / "tabby").mkdir(parents=True)
    Image.fromarray(data.chelsea()).save(tmp_path / "named" / "tabby" / "1.jpg")
    (shown,) = pictures_of(str(tmp_path / "named"))
    assert shown.name == "tabby" and shown.boxes.tolist() == [[0, 0, 451, 300]]
    for i in range(GRID * GRID + 1):
        (tmp_path / "cuts" / f"thing {i}").mkdir(parents=True)
        cut = Image.new("RGBA", (40 + i, 30), (200, 0, 0, 255))
        cut.save(tmp_path / "cuts" / f"thing {i}" / "0.webp")
    sheets = list(pictures_of(str(tmp_path / "cuts")))
    assert [len(sheet.boxes) for sheet in sheets] == [GRID * GRID, 1]
    x1, y1, x2, y2 = sheets[0].boxes[1].astype(int)
    assert (x2 - x1, y2 - y1) == (41, 30) and sheets[0].image[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2, 1].max() < 20
    assert all(shown.name is None for shown in pictures_of("photo-wild-ships/val"))
    with pytest.raises(FileNotFoundError, match="no set"):
        pictures_of(str(tmp_path / "nothing"))


def test_a_name_is_taught_from_a_picture(tmp_path):
    """T of a class's names comes near the V of what the teacher or the folder named so; T of the known names stays."""
    detector = Detector.load("nano-photo", "cpu")
    shown = [Shown(data.chelsea(), CAT, "tabby"), Shown(data.chelsea(), CAT)]
    vectors, thoughts = look(detector, shown)
    assert thoughts[0].max() == 1 and int(thoughts[0].argmax()) == number_of("tabby") and thoughts[1].max() > SURE
    known = list(detector.vocabulary.names[:50])
    assert "tabby" not in detector.vocabulary.names
    before = detector.encode_text(["tabby", *known])
    result = teach_names("nano-photo", tmp_path, shown, steps=12)
    taught = Detector.load(tmp_path, "cpu")
    after = taught.encode_text(["tabby", *known])
    near = [float(torch.cosine_similarity(vectors[0], t[0], dim=0)) for t in (before, after)]
    assert near[1] > near[0] + 0.05
    assert torch.cosine_similarity(before[1:], after[1:]).mean() > 0.8
    assert result["regions"] == 2 and result["classes"] == 2
    assert json.loads((tmp_path / "name_teacher.json").read_text()) == result
    assert "tabby" in taught.vocabulary.names
