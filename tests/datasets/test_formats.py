"""Folders in the formats they come in, sound and broken as real ones are."""

from __future__ import annotations

import copy
import json
import math
import warnings

import numpy as np
import pytest
from PIL import Image

from trex2_mini.cli import main
from trex2_mini.datasets.counting import CountingDataset
from trex2_mini.datasets.formats import lvis_dataset, prompt_name
from trex2_mini.datasets.registry import open_dataset
from trex2_mini.datasets.statistics import check_pictures, statistics
from trex2_mini.images import UnreadablePicture
from trex2_mini.paths import REPOSITORY

SHARED = REPOSITORY.parent / "shared"

SOUND = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 30}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "café ☕"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [20, 5, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0},
    ],
}  # fmt: skip


def write(folder, content, text=None):
    (folder / "images").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), "grey").save(folder / "images" / name)
    (folder / "annotations.json").write_text(json.dumps(content) if text is None else text, encoding="utf-8")
    return folder


def change(*path, **values):
    """Set values of the entry at `path`, or with remove=key take one away."""

    def apply(content):
        entry = content
        for key in path:
            entry = entry[key]
        if "remove" in values:
            del entry[values["remove"]]
        else:
            entry.update(values)

    return apply


def box(*numbers):
    return change("annotations", 0, bbox=list(numbers))


REFUSED = {
    "no images": (change(remove="images"), "lacks 'images'"),
    "no annotations": (change(remove="annotations"), "lacks 'annotations'"),
    "no categories": (change(remove="categories"), "lacks 'categories'"),
    "images is a dictionary": (change(images={"1": {}}), "'images' is no list"),
    "an image that is a string": (lambda c: c["images"].__setitem__(0, "a.png"), r"images\[0\] lacks"),
    "an image without id": (change("images", 0, remove="id"), r"images\[0\] lacks 'id'"),
    "an image without file_name": (change("images", 0, remove="file_name"), "lacks 'file_name'"),
    "two images of one id": (change("images", 1, id=1), "two images with the id 1"),
    "an image id that is no number": (change("images", 0, id="first"), "whole number as image id"),
    "an image id that is a fraction": (change("images", 0, id=1.5), "whole number as image id"),
    "an image id that is null": (change("images", 0, id=None), "whole number as image id"),
    "two categories of one id": (change("categories", 1, id=1), "two categories with the id 1"),
    "a category without name": (change("categories", 0, remove="name"), "lacks 'name'"),
    "a category with an empty name": (change("categories", 0, name="  "), "has no name"),
    "a category whose name is null": (change("categories", 0, name=None), "has no name"),
    "a category whose name is a number": (change("categories", 0, name=7), "has no name"),
    "an unlisted category": (change("annotations", 0, category_id=9), "category_id 9"),
    "an unlisted image": (change("annotations", 0, image_id=9), "image_id 9"),
    "an annotation without bbox": (change("annotations", 0, remove="bbox"), "lacks 'bbox'"),
    "a bbox of three numbers": (box(1, 2, 3), "bbox must be"),
    "a bbox of words": (box("one", "2", "3", "4"), "bbox must be"),
    "a bbox that is null": (change("annotations", 0, bbox=None), "bbox must be"),
    "a bbox with null": (box(1, None, 3, 4), "bbox must be"),
}  # fmt: skip
REPORTED = {  # what is wrong -> (change, part of the report, boxes left on picture 1)
    "a bbox with NaN": (box(math.nan, 1, 5, 5), "is left out", 1),
    "a bbox with infinity": (box(1, 1, math.inf, 5), "is left out", 1),
    "two annotations of one id": (change("annotations", 1, id=1), "two annotations have the id 1", 2),
    "image ids as text": (lambda c: [change("images", 0, id="1")(c), change("annotations", 0, image_id="1")(c)],
        "ids are written as text", 2),
    "category ids as text": (change("categories", 0, id="1"), "category ids are written as text", 2),
    "spaces around a name": (change("categories", 0, name=" cat "), "spaces around it", 2),
    "two categories of one name": (change("categories", 1, name="cat"), "two categories are named 'cat'", 2),
    "a box of no width": (box(5, 5, 0, 9), "a box of no size", 1),
    "a box of negative height": (box(5, 5, 9, -3), "a box of no size", 1),
    "a box outside the picture": (box(50, 5, 9, 9), "a box outside the picture", 1),
    "boxes in shares": (lambda c: [a.update(bbox=[0.1, 0.1, 0.5, 0.3]) for a in c["annotations"]], "multiply x", 2),
    "boxes as corners": (
        lambda c: [a.update(bbox=b) for a, b in zip(c["annotations"], ([5, 5, 38, 28], [20, 5, 39, 29], [1, 2, 9, 9]))],
        "subtract x1 from x2", 2,
    ),
    "one file twice": (change("images", 1, file_name="a.png"), "two images are the file 'a.png'", 2),
    "a wrong recorded size": (change("images", 0, width=80), "recorded as 80 x 30, is 40 x 30", 2),
}  # fmt: skip
MENDED = {  # nothing to report -> (change, boxes of picture 1)
    "nothing wrong": (lambda c: None, 2),
    "a box that reaches out": (box(35, 25, 50, 50), 2),
    "a crowd": (change("annotations", 0, iscrowd=1), 1),
    "no area": (change("annotations", 0, remove="area"), 2),
    "no iscrowd": (change("annotations", 0, remove="iscrowd"), 2),
    "an id such as 1.0": (change("images", 0, id=1.0), 2),
    "ids of others such as 1.0": (change("annotations", 0, image_id=1.0, category_id=1.0), 2),
    "an area that is null": (change("annotations", 0, area=None, iscrowd=None), 2),
    "sizes as text": (change("images", 0, width="40", height=30.0), 2),
    "polygons alone": (lambda c: c["annotations"][0].update(bbox=None, segmentation=[[5, 5, 15, 5, 15, 15]]), 2),
    "another case": (change("images", 0, file_name="A.PNG"), 2),
    "backslashes": (change("images", 0, file_name="images\\a.png"), 2),
    "a folder too many": (change("images", 0, file_name="images/a.png"), 2),
    "another machine": (change("images", 0, file_name="C:\\Users\\me\\set\\images\\a.png"), 2),
    "a URL": (change("images", 0, file_name="https://host.org/x/a.png?token=1"), 2),
    "a coco_url alone": (lambda c: c["images"][0].update(file_name=None, coco_url="http://images.org/val/a.png"), 2),
    "Label Studio's path": (change("images", 0, file_name="/data/local-files/?d=set%2Fimages%2Fa.png"), 2),
    "no annotation id": (change("annotations", 0, remove="id"), 2),
    "no recorded size": (change("images", 0, remove="width"), 2),
    "a mask as run lengths": (change("annotations", 0, segmentation={"counts": "abc", "size": [30, 40]}), 2),
    "no annotations at all": (change(annotations=[]), 0),
    "a category nobody has": (lambda c: c["categories"].append({"id": 7, "name": "unicorn"}), 2),
}  # fmt: skip


def spoiled(apply):
    content = copy.deepcopy(SOUND)
    apply(content)
    return content


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named(tmp_path, case, capsys):
    apply, words = REFUSED[case]
    folder = write(tmp_path, spoiled(apply))
    with pytest.raises(ValueError, match=words):
        open_dataset(str(folder))
    assert main(["data", "check", str(folder)]) == 1 and "annotations.json" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", json.dumps(SOUND)[:-40], "[1, 2]", "null", "\x00\x01"])
def test_a_file_that_is_no_annotation_file(tmp_path, text):
    with pytest.raises(ValueError, match=r"JSON|COCO format"):
        open_dataset(str(write(tmp_path, SOUND, text)))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", REPORTED)
def test_what_is_doubtful_is_reported(tmp_path, case, capsys):
    apply, words, boxes = REPORTED[case]
    folder = write(tmp_path, spoiled(apply))
    dataset = open_dataset(str(folder))
    assert len(dataset[0].labels) == boxes
    problems = dataset.problems + check_pictures(dataset, progress=False)
    assert sum(words in problem for problem in problems) == 1, problems
    assert main(["data", "check", str(folder)]) == 0 and words in capsys.readouterr().out


@pytest.mark.parametrize("case", MENDED)
def test_what_is_mended_says_nothing(tmp_path, case):
    apply, boxes = MENDED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = open_dataset(str(write(tmp_path, spoiled(apply))))
    sample = dataset[0]
    assert len(sample.labels) == boxes and np.isfinite(sample.areas).all() and "café ☕" in dataset.names
    assert check_pictures(dataset, progress=False) == []


def test_nothing_outside_the_folder_is_read(tmp_path):
    """A file name that leads out of the set, or to two pictures of it, is no picture, however near one lies."""
    inside = tmp_path / "set"
    inside.mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    for name in ("../../secret.png", "../secret.png", str(tmp_path / "secret.png")):
        dataset = open_dataset(str(write(inside, spoiled(change("images", 0, file_name=name)))))
        with pytest.raises(UnreadablePicture, match=r"does not exist in .*holds none of"):
            dataset[0]
    names = {"images": [{"id": i, "file_name": f"/x/{part}/a.png"} for i, part in enumerate(("one", "two"), 1)]}
    dataset = open_dataset(str(write(inside, SOUND | names)))
    with pytest.raises(UnreadablePicture, match=r"a\.png would fit two pictures"):
        dataset[0]


def test_missing_and_broken_pictures_are_reported(tmp_path):
    dataset = open_dataset(str(write(tmp_path, SOUND)))
    (tmp_path / "images" / "a.png").unlink()
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    problems = check_pictures(dataset, progress=False)
    assert len(problems) == 2 and "does not exist" in problems[0] and "unreadable" in problems[1]


def test_statistics_count_what_is_there(tmp_path):
    content = spoiled(change("annotations", 2, iscrowd=1))
    found = statistics(open_dataset(str(write(tmp_path, content))))
    assert (found["images"], found["boxes"], found["categories"], found["empty_images"]) == (2, 2, 2, 0)
    assert found["per_category"] == {"café ☕": {"images": 1, "boxes": 1}, "cat": {"images": 1, "boxes": 1}}
    assert found["sides"] == [10, 10] and found["objects_an_image"] == [2, 1]
    assert main(["data", "check", str(tmp_path), "--out", str(tmp_path / "statistics.png")]) == 0
    assert Image.open(tmp_path / "statistics.png").width > 500


def test_prompts_of_ones_own(tmp_path):
    write(tmp_path, SOUND)
    (tmp_path / "prompts.json").write_text('{"cat": "a sleeping cat"}')
    assert open_dataset(str(tmp_path)).names == ["a sleeping cat", "café ☕"]
    for text in ('{"dog": "x"}', '{"cat": ""}', "[1]", "{"):
        (tmp_path / "prompts.json").write_text(text)
        with pytest.raises(ValueError, match=r"prompts\.json"):
            open_dataset(str(tmp_path))


def test_roboflow_export(tmp_path):
    """Its category 0 is the project's name, not a category; unless it is used."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 0, "file_name": "a.png"}],
        "categories": [{"id": 0, "name": "pieces", "supercategory": "none"},
            {"id": 1, "name": "rook", "supercategory": "pieces"}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]}],
    }  # fmt: skip
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))
    assert open_dataset(str(tmp_path)).names == ["rook"] and open_dataset(str(tmp_path))[0].labels.tolist() == [0]
    content["annotations"][0]["category_id"] = 0
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))
    assert open_dataset(str(tmp_path)).names == ["pieces", "rook"]


VOC = """<annotation><filename>{file}</filename>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object>
</annotation>"""


@pytest.mark.parametrize("layout", ["official", "side by side"])
def test_pascal_voc(tmp_path, layout):
    pictures, notes = (
        (tmp_path / "JPEGImages", tmp_path / "Annotations") if layout == "official" else (tmp_path, tmp_path)
    )
    for folder in (pictures, notes):
        folder.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(pictures / "x.jpg")
    (notes / "x.xml").write_text(VOC.format(file="x.jpg"))
    dataset = open_dataset(str(tmp_path))
    assert dataset.names == ["cat", "dog"]
    np.testing.assert_array_equal(
        dataset[0].boxes, [[0, 0, 10, 20]]
    )  # pixels count from 1, the last one belongs to the box
    assert dataset[0].labels.tolist() == [1]  # the difficult one is no target


@pytest.mark.parametrize(
    "declared, encoding", [("gb2312", "gbk"), ("utf-8", "gbk"), ("utf-16", "utf-16"), ("latin-1", "latin-1")]
)
@pytest.mark.filterwarnings("ignore:.*GB18030")
def test_the_encoding_that_an_xml_file_declares(tmp_path, declared, encoding):
    name = "café" if encoding == "latin-1" else "猫咪"
    Image.new("RGB", (40, 30)).save(tmp_path / "x.tif")
    text = f'<?xml version="1.0" encoding="{declared}"?>' + VOC.format(file="C:\\set\\x.jpg").replace("cat", name)
    (tmp_path / "x.xml").write_bytes(text.replace(">1</diff", ">true</diff").encode(encoding))
    dataset = open_dataset(str(tmp_path))
    assert dataset.names == sorted(["dog", name]) and len(dataset[0].boxes) == 1 and not dataset.problems


def test_voc_in_shares_and_turned_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "x.jpg", exif=exif)
    (tmp_path / "x.xml").write_text(VOC.format(file="x.jpg"))
    assert check_pictures(open_dataset(str(tmp_path)), progress=False) == []
    shares = VOC.format(file="x.jpg")
    for pixels, share in ((">10<", ">0.4<"), (">20<", ">0.9<"), (">5<", ">0.2<"), ("n>1<", "n>0.1<")):
        shares = shares.replace(pixels, share)
    (tmp_path / "x.xml").write_text(shares)
    with pytest.warns(UserWarning, match="look like shares"):
        assert len(open_dataset(str(tmp_path)).problems) == 1
    (tmp_path / "x.jpg").unlink()
    (tmp_path / "x.xml").write_text(VOC.format(file="x.jpg"))
    assert "'x.jpg' does not exist" in check_pictures(open_dataset(str(tmp_path)), progress=False)[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.filterwarnings("ignore:.*GB18030")
def test_json_in_other_encodings(tmp_path, encoding):
    write(tmp_path, SOUND)
    content = json.dumps(spoiled(change("categories", 0, name="猫咪")), ensure_ascii=False).replace("café ☕", "狗")
    (tmp_path / "annotations.json").write_bytes(content.encode(encoding))
    (tmp_path / "prompts.json").write_bytes('{"猫咪": "一只猫"}'.encode(encoding))
    assert open_dataset(str(tmp_path)).names == ["一只猫", "狗"]


@pytest.mark.parametrize("text, words", [
    ("<annotation>", "not XML"),
    ('<!DOCTYPE x [<!ENTITY a "b">]><annotation/>', "document type"),
    ("<annotation><filename>x.jpg</filename><object><name>dog</name></object></annotation>", "no bndbox"),
    ("<annotation><filename>x.jpg</filename><object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>",
     "has no name"),
])  # fmt: skip
def test_broken_voc_is_named(tmp_path, text, words):
    Image.new("RGB", (40, 30)).save(tmp_path / "x.jpg")
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(ValueError, match=words):
        open_dataset(str(tmp_path))


def test_a_folder_of_sets_names_them(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="train, valid are sets"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize(
    "name, phrase", [("bat_(animal)", "bat (animal)"), ("aerosol_can", "aerosol can"), ("cat", "cat"), ("a__b ", "a b")]
)
def test_lvis_names_become_phrases(name, phrase):
    assert prompt_name(name) == phrase


def test_fsc147(tmp_path):
    (tmp_path / "images_384_VarV2").mkdir()
    Image.new("RGB", (60, 50)).save(tmp_path / "images_384_VarV2" / "2.jpg")
    corners = [[[1, 2], [1, 12], [11, 12], [11, 2]]] * 3
    notes = {"2.jpg": {"points": [[5, 6], [20, 30], [40, 41]], "box_examples_coordinates": corners, "H": 50, "W": 60}}
    (tmp_path / "annotation_FSC147_384.json").write_text(json.dumps(notes))
    (tmp_path / "Train_Test_Val_FSC_147.json").write_text(json.dumps({"train": [], "val": [], "test": ["2.jpg"]}))
    (tmp_path / "ImageClasses_FSC147.txt").write_text("2.jpg\tsea shells\n3.jpg\thot air balloons\n")
    (sample,) = CountingDataset(tmp_path)
    assert (sample.count, sample.name, sample.image.shape) == (3, "sea shells", (50, 60, 3))
    np.testing.assert_array_equal(sample.exemplars, [[1, 2, 11, 12]] * 3)
    np.testing.assert_array_equal(sample.points, notes["2.jpg"]["points"])
    assert len(CountingDataset(tmp_path, "train")) == 0
    with pytest.raises(ValueError, match="unknown split"):
        CountingDataset(tmp_path, "testing")
    (tmp_path / "Train_Test_Val_FSC_147.json").write_text(json.dumps({"test": ["9.jpg"]}))
    with pytest.raises(ValueError, match=r"knows no picture '9\.jpg'"):
        CountingDataset(tmp_path)


def test_fscd_lvis(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 50)).save(tmp_path / "images" / "7.jpg")
    boxes = [{"id": i, "image_id": 7, "category_id": 4, "bbox": [i, 1, 5, 6]} for i in range(4)]
    instances = {
        "images": [{"id": 7, "file_name": "7.jpg"}],
        "annotations": boxes,
        "categories": [{"id": 4, "name": "bead"}],
    }
    counting = {"images": instances["images"], "annotations": [{"id": 1, "image_id": 7, "boxes": [[0, 1, 5, 6]] * 3}]}
    (tmp_path / "instances_test.json").write_text(json.dumps(instances))
    (tmp_path / "count_test.json").write_text(json.dumps(counting))
    (sample,) = CountingDataset(tmp_path)
    assert (sample.count, sample.name) == (4, "bead") and sample.points is None
    np.testing.assert_array_equal(sample.exemplars, [[0, 1, 5, 7]] * 3)
    np.testing.assert_array_equal(sample.boxes[3], [3, 1, 8, 7])
    (tmp_path / "count_test.json").write_text(json.dumps(counting | {"annotations": []}))
    with pytest.raises(ValueError, match="no exemplar boxes of picture 7"):
        CountingDataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="FSC147"):
        CountingDataset(tmp_path, "val")


@pytest.mark.skipif(
    not (SHARED / "lvis").is_dir(), reason="the LVIS excerpt beside the repository (../shared/lvis) is absent"
)
def test_real_lvis_annotations():
    path = SHARED / "lvis" / "lvis_val_100.json"
    content = json.loads(path.read_text())
    dataset = lvis_dataset(content, path, SHARED / "coco", minival=True)
    assert len(dataset) == 100 and "bat (animal)" in dataset.names and len(dataset.names) == 1230
    here = [i for i, image in enumerate(dataset.coco["images"]) if image["id"] in (223747, 346638, 359937)]
    assert len(here) == 3
    for index in here:
        sample, entry = dataset[index], dataset.coco["images"][index]
        partly = {dataset.category_ids.index(c) for c in entry["not_exhaustive_category_ids"]}
        assert set(sample.labels.tolist()) - partly <= set(sample.vocabulary.tolist())
        assert len(sample.vocabulary) >= len(entry["neg_category_ids"]) - len(partly)


@pytest.mark.skipif(not (SHARED / "roboflow").is_dir(), reason="the Roboflow sets beside the repository are absent")
@pytest.mark.parametrize("name", ["roboflow/chess/valid", "photos/chess", "photos/eggs"])
def test_real_exports(name):
    dataset = open_dataset(str(SHARED / name))
    assert "pieces" not in dataset.names and len(dataset[0].labels) and dataset[0].image.ndim == 3


def test_coins(tmp_path, monkeypatch):
    """The photograph that comes with scikit-image: 24 coins, each box around one; made once."""
    monkeypatch.setenv("TREX2_DATA", str(tmp_path))
    sample = open_dataset("coins")[0]
    assert sample.image.shape == (303, 384, 3) and len(sample.boxes) == 24
    sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
    assert sides.min() > 30 and sides.max() < 75
    grey = sample.image[:, :, 0].astype(float)
    for x1, y1, x2, y2 in sample.boxes.astype(int):
        assert grey[y1:y2, x1:x2].mean() > 80  # the ground is darker
    written = (tmp_path / "coins" / "annotations.json").stat().st_mtime_ns
    assert len(open_dataset("coins")) == 1 and (tmp_path / "coins" / "annotations.json").stat().st_mtime_ns == written
