"""Boxes and points in fractions of the picture, or of less than a pixel, are refused wherever they are given."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import TINY, seeded_model, squares

from trex2_mini.boxes import check_boxes, check_points
from trex2_mini.detections import Detections
from trex2_mini.detector import Detector
from trex2_mini.interactive.canvas import PromptCanvas, as_proposals

GOOD = [[5, 5, 30, 30]]


@pytest.fixture(scope="module")
def detector():
    return Detector(seeded_model(), TINY, "cpu")


@pytest.mark.parametrize(
    "boxes, message",
    [
        (
            [[0.1, 0.2, 0.5, 0.6]],
            r"fractions of the image.*multiply x by 64 and y by 64.*\[6\.4, 12\.8, 32\.0, 38\.4\]",
        ),
        ([[0, 0, 1, 1]], "fractions"),
        ([[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]], "fractions"),
        ([[10, 10, 10.5, 30]], "0.5 px wide and 20 px high"),
        ([[5, 5, 30, 30], [10, 10, 30, 10.2]], r"boxes.*\[1\].*0.2.* px high"),
        ([[-30, 5, 0.4, 30]], "0.4 px wide"),
    ],
    ids=str,
)
def test_boxes_are_refused_everywhere(detector, boxes, message):
    image = detector.encode(squares(0).image)
    asks = [
        lambda: detector.detect(image, boxes=boxes),
        lambda: detector.detect(image, boxes={"coin": boxes}),
        lambda: detector.detect(image, text="coin", negative_boxes=boxes),
        lambda: detector.embed({"coin": [(image, boxes)]}),
        lambda: detector.classify(image, boxes, "coin, key"),
    ]
    for ask in asks:
        with pytest.raises(ValueError, match=message):
            ask()
    canvas = PromptCanvas(squares(0).image)
    with pytest.raises(ValueError, match=r"fractions|px"):
        canvas.prompts = [{"xyxy": box} for box in boxes]


def test_points_in_fractions(detector):
    image = detector.encode(squares(0).image)
    for ask in ({"points": [[0.5, 0.25]]}, {"text": "coin", "negative_points": [[0.5, 0.25]]}):
        with pytest.raises(ValueError, match=r"points.*fractions.*\[32\.0, 16\.0\]"):
            detector.detect(image, **ask)


def test_what_is_in_pixels_stays():
    """The picture's first pixel, boxes that mix small and large numbers, pictures of one pixel."""
    assert check_points([[0, 0], [1, 1]], 64, 64).tolist() == [[0, 0], [1, 1]]
    assert check_points([[0.5, 0.5], [40, 3]], 64, 64).shape == (2, 2)
    assert check_boxes([[0, 0, 1, 1], *GOOD], 64, 64).tolist() == [[0, 0, 1, 1], *GOOD]
    assert check_boxes([[0, 0, 1, 1]], 1, 1).tolist() == [[0, 0, 1, 1]]


def test_what_a_detector_finds_can_always_be_shown():
    boxes = np.array([[0, 0, 0.5, 20], [0, 0, 1, 1], [2, 3, 3, 9]], np.float32)
    found = as_proposals(Detections(boxes, np.full(3, 0.5), np.zeros(3, int), ["coin"]))
    assert [row["box"] for row in found] == [[2, 3, 3, 9]]
    canvas = PromptCanvas(squares(0).image)
    canvas.detections = found
    assert len(canvas.detections) == 1
