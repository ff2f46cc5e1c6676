"""Names: one reading of them at every entry point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import TINY, seeded_model, squares

from trex2_mini.detector import Detector
from trex2_mini.interactive.canvas import PromptCanvas
from trex2_mini.names import check_names, split_names, unique_names
from trex2_mini.prompt_bank import PromptBank

BOX, OTHER = [[5, 5, 30, 30]], [[20, 20, 50, 60]]


@pytest.fixture(scope="module")
def detector():
    return Detector(seeded_model(), TINY, "cpu")


@pytest.mark.parametrize(
    "text, names",
    [
        ("cat, dog", ["cat", "dog"]),
        ("donut . lime .", ["donut", "lime"]),
        ("a cat. a remote control.", ["a cat", "a remote control"]),
        ("甜甜圈，柠檬、猫；狗", ["甜甜圈", "柠檬", "猫", "狗"]),
        ("a;b\nc\r\nd", ["a", "b", "c", "d"]),
        ("cat,,dog , ", ["cat", "dog"]),
        ('"salt, pepper", 12" ruler', ["salt, pepper", '12" ruler']),
        ("St. Bernard, no.2 pencil", ["St. Bernard", "no.2 pencil"]),
        ("  traffic \t light ", ["traffic light"]),
        (["salt, pepper", " cat"], ["salt, pepper", "cat"]),
        ("Cat, cat, dog,  CAT", ["Cat", "dog"]),
        ("cafe\u0301, CAFÉ", ["café"]),
    ],
)
def test_what_is_read(text, names):
    assert unique_names(text) == names


def test_as_many_as_were_given():
    assert check_names(["cat", "Cat "]) == ["cat", "Cat"] and split_names(" , . ;") == []


def same(one, other):
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.labels, other.labels)


def test_spellings_of_one_name_are_one_category(detector):
    """Words, boxes, points and banks meet under the first spelling; negatives find it too."""
    image = detector.encode(squares(0).image)
    bank = detector.embed({"coin": [(image, OTHER)]})
    plain = {"boxes": {"coin": BOX + OTHER}, "points": {"coin": [[9, 9]]}, "negative_boxes": {"coin": BOX}}
    odd = {"boxes": {"Coin": BOX, " coin ": OTHER}, "points": {"COIN": [[9, 9]]}, "negative_boxes": {"coin  ": BOX}}
    one = detector.detect(image, "coin", prompts=bank, score_threshold=0, **plain)
    bank = PromptBank(["cOIN"], bank.embeddings)
    two = detector.detect(image, " COIN;coin", prompts=bank, score_threshold=0, **odd)
    assert one.names == ["coin"] and two.names == ["Coin"]
    same(one, two)


@pytest.mark.parametrize("given", [{1: BOX}, {"": BOX}, {None: BOX}, {b"cat": BOX}], ids=str)
def test_names_that_are_no_text(detector, given):
    with pytest.raises(ValueError, match="non-empty name"):
        detector.detect(squares(0).image, boxes=given)
    with pytest.raises(ValueError, match="non-empty name"):
        detector.embed({name: [(squares(0).image, boxes)] for name, boxes in given.items()})
    with pytest.raises(ValueError, match="non-empty name"):
        PromptBank(list(given), torch.zeros(1, 32))


def test_banks_merge_spellings(detector):
    bank = PromptBank(["Key", "coin", "key "], torch.tensor([[1.0, 3], [5, 5], [3, 5]]))
    assert bank.names == ["Key", "coin"] and bank.embeddings.tolist() == [[2, 4], [5, 5]]
    names, probabilities = detector.classify(squares(0).image, BOX, "coin, COIN, key")
    assert probabilities.shape == (1, 2) and names[0] in ("coin", "key")


def test_the_canvas_reads_them_alike():
    canvas = PromptCanvas(squares(0).image, [" traffic  light", "Coin"])
    assert canvas.names() == ["traffic light", "Coin"]
    canvas.prompts = [{"xyxy": BOX[0], "category": "coin "}]
    assert canvas.boxes() == {"Coin": BOX}
    with pytest.raises(ValueError, match="each name once"):
        canvas.categories = ["coin", "Coin"]
    with pytest.raises(ValueError, match="expected a name"):
        canvas.categories = [{"name": 7}]
