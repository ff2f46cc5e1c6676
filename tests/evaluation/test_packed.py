"""Detections in little memory, and what an evaluation holds at a time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image
from tiny import TINY, seeded_model

from trex2_mini.benchmark.evaluation import synthetic_detections
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.detector import Detector
from trex2_mini.evaluation import metrics
from trex2_mini.evaluation.metrics import coco_ap
from trex2_mini.evaluation.packed import KIND, Packed
from trex2_mini.evaluation.together import pieces
from trex2_mini.evaluation.trial import Trial


def row(image: int, category: int, score: float) -> dict:
    return {"image_id": image, "category_id": category, "bbox": [1.5, 2.0, 3.0, score], "score": score}


ROWS = [row(7, 1, 0.5), row(3, 2, 0.1), row(7, 1, 0.9), row(7, 2, 0.9), row(3, 1, 0.2)]


def test_what_is_packed_comes_out_unchanged():
    packed = Packed(ROWS[:2])
    packed.extend(ROWS[2:])
    assert list(packed) == ROWS and len(packed) == 5 and packed[1] == ROWS[1] and packed[1:3] == ROWS[1:3]
    assert packed.table.nbytes == 56 * len(ROWS) == np.dtype(KIND).itemsize * len(ROWS)
    assert Packed.of(packed) is packed and list(Packed()) == [] == list(Packed([]))


def test_choices_keep_the_order():
    packed = Packed(ROWS)
    assert list(packed.among({7}, {1, 2})) == [ROWS[0], ROWS[2], ROWS[3]]
    assert list(packed.of_pairs({(7, 1), (3, 1)})) == [ROWS[0], ROWS[2], ROWS[4]]
    assert {pair: rows.tolist() for pair, rows in packed.by_pair()} == {
        (3, 1): [4], (3, 2): [1], (7, 1): [0, 2], (7, 2): [3]
    }  # fmt: skip
    assert list(packed.pieces([[3, 5], [7]])) == [[ROWS[1], ROWS[4]], [ROWS[0], ROWS[2], ROWS[3]]]
    nothing = Packed()
    assert [list(nothing.among({7}, {1})), list(nothing.of_pairs({(7, 1)})), *nothing.pieces([[7]])] == [[], [], []]


def test_best_of_each_keeps_the_earlier_of_equals():
    assert list(Packed(ROWS).best("image_id", 2)) == [ROWS[4], ROWS[1], ROWS[2], ROWS[3]]
    assert list(Packed(ROWS).best("image_id", 1)) == [ROWS[4], ROWS[2]]
    assert list(Packed(ROWS).best("category_id", 1)) == [ROWS[2], ROWS[3]]


def test_ap_of_more_images_takes_little_more_memory(monkeypatch):
    """300 detections an image are 17 KB packed; matched as dictionaries all at once they take 400."""
    monkeypatch.setattr(metrics, "PIECE", 5)
    peaks = []
    for images in (10, 40):
        truth, detections = synthetic_detections(images)
        packed = Packed(detections)
        tracemalloc.start()
        coco_ap(truth, packed)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 30 < 80_000


@pytest.mark.parametrize("shape", [(270, 360), (400, 200)])
def test_features_keep_to_their_budget(shape, tmp_path):
    """Whatever the pictures' own size: features are counted at their largest, and pixels are not kept."""
    detector, count = Detector(seeded_model(), TINY), 12
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    images = [{"id": n, "file_name": f"{n}.jpg", "width": shape[1], "height": shape[0]} for n in range(count)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "red"}]}
    dataset = CocoDataset(tmp_path / "annotations.json", tmp_path, content)
    trial, budget = Trial(detector, dataset, count, batch_size=2, progress=False), 2**17
    own = list(pieces(trial, budget / 2**30))
    assert 1 < len(own) < count / 2 and [n for piece in own for n in piece.image_ids] == list(range(count))
    for piece in own:
        for _ in range(2):
            held = 0
            for samples, features in piece.batches():
                held += sum(t.nbytes for t in (features.tokens, features.padding, features.centres, features.valid))
                held += sum(s.image.nbytes for s in samples if any(s.image.strides))
        assert budget / 8 < held <= budget
