"""One bad picture stops nothing: wherever many pictures are read it is left out, counted and named; too many stop the
run with one line.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini.annotations import detect_folder
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.statistics import check_pictures
from trex2_mini.detector import Detector
from trex2_mini.evaluation.protocols import evaluate
from trex2_mini.images import LeftOut, MissingPicture, UnreadablePicture, load_image
from trex2_mini.interactive.session import Session
from trex2_mini.training.batches import DatasetBatches
from trex2_mini.training.trainer import Trainer


@pytest.fixture(scope="module")
def detector():
    return Detector(seeded_model(), TINY, "cpu")


@pytest.fixture
def folder(tmp_path):
    """Six JPEGs of coloured squares; number 2 is cut short: its header is sound, its pixels are not there."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i in range(6):
        sample = squares(i, (64, 64))
        path = tmp_path / "images" / f"{i}.jpg"
        Image.fromarray(np.kron(sample.image, np.ones((4, 4, 1), np.uint8))).save(path)
        if i == 2:
            path.write_bytes(path.read_bytes()[:1200])
        images.append({"id": i + 1, "file_name": path.name, "width": 256, "height": 256})
        for (x1, y1, x2, y2), label in zip((4 * sample.boxes).tolist(), sample.labels.tolist()):
            own = {"id": len(annotations) + 1, "image_id": i + 1, "category_id": label % 2 + 1, "iscrowd": 0}
            annotations.append(own | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    categories = [{"id": i, "name": name, "supercategory": "square"} for i, name in enumerate(NAMES[:2], 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path


def opened(folder) -> CocoDataset:
    return CocoDataset(folder / "annotations.json", folder / "images")


def test_check_finds_it_where_pixels_are_decoded(folder):
    assert check_pictures(opened(folder), progress=False) == []
    (problem,) = check_pictures(opened(folder), progress=False, decode=True)
    assert "picture 3" in problem and "2.jpg" in problem


@pytest.mark.parametrize("protocol", ["text", "visual-i-others", "visual-i-negatives", "region"])
def test_evaluation_leaves_it_out(folder, detector, protocol):
    """The numbers are those of the set without the picture."""
    options = {"reference": opened(folder), "examples": 2, "progress": False}
    with pytest.warns(UserWarning, match=r"left out: picture 3 .*2\.jpg"):
        found = evaluate(detector, opened(folder), protocol, **options)
    assert list(found["unreadable"]) == ["3"]
    without = opened(folder)
    without.coco["images"] = [image for image in without.coco["images"] if image["id"] != 3]
    without.coco["annotations"] = [a for a in without.coco["annotations"] if a["image_id"] != 3]
    expected = evaluate(detector, CocoDataset(without.path, without.images, without.coco), protocol, **options)
    key = "top1" if protocol == "region" else "AP"
    assert found[key] == expected[key] and found["per_category"] == expected["per_category"]


def test_training_draws_another_picture(folder):
    with pytest.warns(UserWarning, match=r"left out: .*2\.jpg") as said:
        drawn = [s.image_id for step in range(8) for s in DatasetBatches(opened(folder), 4, short_side=64)(step)]
    assert 3 not in drawn and set(drawn) == {1, 2, 4, 5, 6} and len(said) >= 1
    first, again = (DatasetBatches(opened(folder), 4, short_side=64)(1) for _ in range(2))
    assert [s.image_id for s in first] == [s.image_id for s in again]


def break_all(folder):
    for path in (folder / "images").iterdir():
        path.write_bytes(b"no picture")


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_stop_training_with_one_line(folder, tmp_path, workers):
    break_all(folder)
    batches = DatasetBatches(opened(folder), 2, short_side=64)
    with pytest.raises(ValueError, match="4 of 6 pictures cannot be read") as caught:
        Trainer(tmp_path / "run", TINY, batches, NAMES).train(progress=False, workers=workers)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:left out")
def test_too_many_stop_the_others(folder, detector, tmp_path):
    break_all(folder)
    with pytest.raises(ValueError, match="4 of 6 pictures"):
        evaluate(detector, opened(folder), "text", progress=False)
    with pytest.raises(ValueError, match="4 of 6 pictures"):
        detect_folder(detector, folder / "images", tmp_path / "o.json", "cat", progress=False)
    with pytest.raises(ValueError, match="3 of 6 pictures"):
        detect_folder(detector, folder / "images", tmp_path / "p.json", "cat", progress=False, most_unreadable=2)
    with pytest.raises(ValueError, match="4 of 6 pictures"):
        Session(detector, folder / "images")


def test_folders_and_the_studio(folder, detector, tmp_path):
    (folder / "images" / "2.jpg").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"left out: .*2\.jpg"):
        counts = detect_folder(detector, folder / "images", tmp_path / "found.json", "cat", progress=False)
    assert counts["unreadable"] == 1 and counts["pictures"] == 6
    with pytest.warns(UserWarning, match=r"left out: .*2\.jpg"):
        session = Session(detector, folder / "images")
    assert list(session.sources) == ["0.jpg", "1.jpg", "3.jpg", "4.jpg", "5.jpg"]
    with pytest.raises(UnreadablePicture, match=r"2\.jpg"):
        Session(detector, folder / "images" / "2.jpg")


def test_how_many_may_be_left_out():
    assert [LeftOut(n).most for n in (0, 1, 3, 40, 300, 10_000)] == [0, 0, 1, 20, 20, 500]
    with pytest.raises(MissingPicture, match="does not exist"):
        LeftOut(1).read("a", load_image, "a.png")
