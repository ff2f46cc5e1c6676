"""ODinW's and Roboflow 100's folders, of which one set each is there."""

import json

import pytest
from PIL import Image

from trex2_mini.datasets.odinw import odinw_sets
from trex2_mini.datasets.registry import open_dataset, suites
from trex2_mini.evaluation.suite import as_table, measure_suite, missing


def put(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path.parent / "a.jpg")
    categories = [{"id": k, "name": name, "supercategory": "x"} for k, name in enumerate(names)]
    annotations = [{"id": 1, "image_id": 1, "category_id": len(names) - 1, "bbox": [1, 2, 3, 4]}]
    images = [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def test_the_sets_that_are_there_make_the_suite(tmp_path, monkeypatch):
    monkeypatch.setenv("TREX2_DATA", str(tmp_path))
    assert len(odinw_sets()) == 35 and suites()["odinw35"] == {}
    with pytest.raises(FileNotFoundError, match="no set of odinw35"):
        measure_suite("nano-emoji", "odinw35")
    mushrooms = tmp_path / "odinw35/NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco"
    boggle = tmp_path / "odinw35/boggleBoards/416x416AutoOrient/export"
    for split, short in (("valid", "val"), ("train", "train")):
        put(mushrooms / split / "annotations_without_background.json", ["CoW", "chanterelle"])
        put(boggle / f"{short}_annotations_without_background.json", ["  ", "a"])
        put(
            tmp_path / "rf100" / "coins-1apki" / split.replace("valid", "test") / "_annotations.coco.json",
            ["x", "coin"],
        )
    assert set(suites()["odinw35"]) == {"odinw35/NorthAmericaMushrooms/val", "odinw35/boggleBoards/val"}
    assert suites()["rf100"] == {"rf100/coins-1apki/test": "rf100/coins-1apki/train"}
    assert open_dataset("odinw35/NorthAmericaMushrooms/val").names == ["flat mushroom", "yellow mushroom"]
    assert (
        open_dataset("odinw35/boggleBoards/train").names == ["a"] and len(open_dataset("rf100/coins-1apki/test")) == 1
    )
    for name in ("odinw35/other/val", "rf100/../train", "rf100/none/test"):
        with pytest.raises(FileNotFoundError):
            open_dataset(name)
    aps = {"rf100/coins-1apki/test": 10.0, "mean": 10.0, "median": 10.0}
    result = {"suite": "rf100", "AP": {"text": aps}, "sets": {"rf100/coins-1apki/test": {}}}
    assert list(as_table(result)) == ["AP", "coins-1apki", "mean", "median"] and missing(result) == 99
