"""Sets in COCO format, sound and broken."""

import json

import numpy as np
import pytest
from PIL import Image

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.registry import open_dataset
from trex2_mini.paths import REPOSITORY, data_root

SHARED = REPOSITORY.parent / "shared" / "coco"


@pytest.fixture
def folder(tmp_path):
    """Two pictures; the first has a sound, a crowd, an overhanging and two degenerate boxes. Category ids have gaps."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), "grey").save(tmp_path / "images" / name)
    boxes = [([5, 6, 10, 12], 9, 0), ([0, 0, 40, 30], 9, 1), ([30, 20, 50, 50], 4, 0), ([5, 5, 0, 9], 4, 0)]
    boxes.append(([45, 5, 9, 9], 4, 0))  # wholly outside
    content = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog", "novel": True}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": category, "bbox": box, "iscrowd": crowd, "area": 50 + i}
            for i, (box, category, crowd) in enumerate(boxes)
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path


def rewrite(folder, change):
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return CocoDataset(path, folder / "images")


def test_samples(folder):
    dataset = open_dataset(str(folder))
    assert dataset.names == ["dog", "cat"] and dataset.category_ids == [4, 9] and dataset.categories[0]["novel"]
    assert len(dataset) == 2 and [sample.image_id for sample in dataset] == [7, 3]
    sample = dataset[0]
    np.testing.assert_array_equal(sample.boxes, np.array([[5, 6, 15, 18], [30, 20, 40, 30]], np.float32))
    assert sample.labels.tolist() == [1, 0] and sample.areas.tolist() == [50, 52]
    assert sample.image.shape == (30, 40, 3) and sample.boxes.dtype == np.float32 and sample.labels.dtype == np.int64


def test_a_picture_without_objects(folder):
    sample = open_dataset(str(folder))[1]
    assert sample.boxes.shape == (0, 4) and sample.labels.shape == (0,)


def test_area_and_crowd_may_be_left_out(folder):
    def change(content):
        for annotation in content["annotations"]:
            del annotation["area"], annotation["iscrowd"]

    assert rewrite(folder, change)[0].areas.tolist() == [120, 1200, 2500]


def test_a_missing_or_broken_picture_is_named_on_access(folder):
    dataset = open_dataset(str(folder))
    (folder / "images" / "a.png").write_bytes(b"broken")
    (folder / "images" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"picture 7 .*a\.png"):
        dataset[0]
    with pytest.raises(FileNotFoundError, match=r"picture 3 .*b\.png"):
        dataset[1]
    with pytest.raises(IndexError):
        dataset[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("categories"), "lacks 'categories'"),
        (lambda content: content["images"][1].pop("file_name"), r"images\[1\] lacks 'file_name'"),
        (lambda content: content["annotations"][0].pop("bbox"), r"annotations\[0\] lacks 'bbox'"),
        (lambda content: content["annotations"][0].update(category_id=5), "category_id 5"),
        (lambda content: content["annotations"][0].update(image_id=99), "image_id 99"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2]), r"bbox must be"),
    ],
)
def test_broken_annotations_are_named(folder, change, words):
    with pytest.raises(ValueError, match=words):
        rewrite(folder, change)


def test_no_json_and_no_file(folder):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CocoDataset(folder / "nowhere.json", folder / "images")
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        CocoDataset(folder / "annotations.json", folder / "elsewhere")
    for content in ("{", "[1, 2]"):
        (folder / "annotations.json").write_text(content)
        with pytest.raises(ValueError, match=r"JSON|COCO format"):
            open_dataset(str(folder))


def test_unknown_sets_are_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("TREX2_DATA", str(tmp_path))
    assert data_root() == tmp_path
    with pytest.raises(FileNotFoundError, match=r"expected a folder with .* such as emoji-val"):
        open_dataset("emoji-vall")
    with pytest.raises(FileNotFoundError, match="coco-val2017 needs"):
        open_dataset("coco-val2017")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the COCO excerpt beside the repository (../shared/coco) is absent")
def test_official_coco_layout(tmp_path, monkeypatch):
    (tmp_path / "coco").symlink_to(SHARED)
    monkeypatch.setenv("TREX2_DATA", str(tmp_path))
    dataset = open_dataset("coco-val2017")
    assert len(dataset) == 70 and "person" in dataset.names
    for index in range(0, 70, 10):
        sample = dataset[index]
        height, width = sample.image.shape[:2]
        assert (sample.boxes[:, 2] <= width).all() and (sample.boxes[:, 3] <= height).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
