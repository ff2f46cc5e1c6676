"""Sets as other tools write them: every format gives the same picture, boxes and names; conversion there and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from trex2_mini.annotations import convert
from trex2_mini.cli import main
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.registry import open_dataset
from trex2_mini.datasets.statistics import check_pictures

BOXES = {"cat": [10, 20, 50, 60], "dog": [100, 10, 180, 90]}  # on a.jpg, 200 x 100; b.jpg is empty
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}, {"id": 2, "file_name": "b.jpg"}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": i, "image_id": 1, "category_id": i, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, (x1, y1, x2, y2) in enumerate(BOXES.values(), 1)
    ],
}


def put(root, **contents):
    """Files by their paths: pictures by None, JSON by trees, text by strings."""
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", (200, 100), "grey").save(path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return root


def pictures(folder=""):
    return {f"{folder}a.jpg": None, f"{folder}b.jpg": None}


def shares(x1, y1, x2, y2):
    return f"{(x1 + x2) / 400} {(y1 + y2) / 200} {(x2 - x1) / 200} {(y2 - y1) / 100}"


def voc(file="a.jpg"):
    objects = "".join(
        f"<object><name>{n}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for n, (x1, y1, x2, y2) in BOXES.items()
    )
    return f"<annotation><filename>{file}</filename>{objects}</annotation>"


SIZE = {"original_width": 200, "original_height": 100}


def percent(x1, y1, x2, y2):
    return {"x": x1 / 2, "y": y1, "width": (x2 - x1) / 2, "height": y2 - y1, "rotation": 0}


def task(image, boxes=BOXES):
    results = [
        SIZE | {"type": "rectanglelabels", "value": percent(*box) | {"rectanglelabels": [name]}}
        for name, box in boxes.items()
    ]  # fmt: skip
    return {"id": 1, "data": {"image": image}, "annotations": [{"was_cancelled": True}, {"result": results}]}


def polygon(x1, y1, x2, y2):
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


LABELME = {
    "version": "5", "imagePath": "..\\photos\\a.jpg", "imageHeight": 100, "imageWidth": 200,
    "shapes": [
        {"label": "cat", "shape_type": "rectangle", "points": [BOXES["cat"][:2], BOXES["cat"][2:]]},
        {"label": "dog", "shape_type": "polygon", "points": polygon(*BOXES["dog"])},
    ],
}  # fmt: skip
YOLO = {"a.txt": "".join(f"{i} {shares(*box)}\n" for i, box in enumerate(BOXES.values()))}
YOLO_POLYGONS = "\n".join(
    f"{i} " + " ".join(f"{x / 200} {y / 100}" for x, y in polygon(*box)) for i, box in enumerate(BOXES.values())
)
URLS = COCO | {
    "images": [
        {"id": i, "coco_url": f"http://images.cocodataset.org/val2017/{n}.jpg"} for i, n in ((1, "a"), (2, "b"))
    ],
    "categories": [{"id": 1, "name": "cat", "synset": "cat.n.01"}, {"id": 2, "name": "dog", "synset": "dog.n.01"}],
}
EMPTY = "<annotation/>"
NAMES = "names: [cat, dog]"
NUMBERED = "names: {0: cat, 1: dog}"
UPLOAD, LOCAL = "/data/upload/1/0a1b2c3d-a.jpg", "/data/local-files/?d=x%5Cb.jpg"
SETS = {  # what lies where; what is opened
    "COCO, pictures beside": ({"annotations.json": COCO, **pictures()}, ""),
    "COCO, a file of another name": ({"result.json": COCO, **pictures("images/")}, ""),
    "COCO, the file's path": ({"x/train.json": COCO, "x/val.json": COCO, **pictures("x/")}, "x/train.json"),
    "COCO's own layout": ({"annotations/instances_val2017.json": COCO, **pictures("val2017/")}, ""),
    "CVAT": ({"annotations/instances_default.json": COCO, **pictures("images/")}, ""),
    "CVAT, parts": ({"annotations/instances_train.json": COCO, **pictures("images/train/")}, ""),
    "FiftyOne, COCO": ({"labels.json": COCO, **pictures("data/")}, ""),
    "FiftyOne, its own": (
        {
            "labels.json": {
                "classes": ["cat", "dog"],
                "labels": {
                    "a": [
                        {"label": i, "bounding_box": [x1 / 200, y1 / 100, (x2 - x1) / 200, (y2 - y1) / 100]}
                        for i, (x1, y1, x2, y2) in enumerate(BOXES.values())
                    ],
                    "b": None,
                },
            },
            **pictures("data/"),
        }, "",
    ),
    "LVIS, coco_url only": ({"lvis.json": URLS, **pictures("val2017/")}, ""),
    "LVIS, coco_url only, one folder": ({"lvis.json": URLS, **pictures("images/")}, ""),
    "VOC": ({"Annotations/a.xml": voc(), "Annotations/b.xml": EMPTY, **pictures("JPEGImages/")}, ""),
    "VOC, Kaggle": ({"annotations/a.xml": voc("x.png"), "annotations/b.xml": EMPTY, **pictures("images/")}, ""),
    "YOLO": ({"labels/a.txt": YOLO["a.txt"], "data.yaml": NAMES, **pictures("images/")}, ""),
    "YOLO, polygons": ({"labels/a.txt": YOLO_POLYGONS, "data.yaml": NUMBERED, **pictures("images/")}, ""),
    "YOLO, Roboflow": ({"train/labels/a.txt": YOLO["a.txt"], "data.yaml": NAMES, **pictures("train/images/")}, "train"),
    "YOLO, parts": ({"labels/val/a.txt": YOLO["a.txt"], "data.yaml": NAMES, **pictures("images/val/")}, "images/val"),
    "YOLO, side by side": ({**YOLO, "classes.txt": "cat\ndog\n", **pictures()}, ""),
    "Label Studio": ({"export.json": [task(UPLOAD), task(LOCAL, {})], **pictures("images/")}, ""),
    "Label Studio, JSON-MIN": (
        {
            "export.json": [
                {
                    "image": "s3://bucket/a.jpg",
                    "label": [SIZE | percent(*box) | {"rectanglelabels": [n]} for n, box in BOXES.items()],
                },
                {"image": "b.jpg"},
            ],
            **pictures(),
        }, "",
    ),
    "labelme": ({"a.json": LABELME, "b.json": LABELME | {"imagePath": "b.jpg", "shapes": []}, **pictures()}, ""),
    "labelme, one file": ({"a.json": LABELME, **pictures()}, "a.json"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", SETS)
def test_every_format_gives_the_same(tmp_path, case):
    files, opened = SETS[case]
    dataset = open_dataset(str(put(tmp_path, **files) / opened))
    assert dataset.names == ["cat", "dog"] and len(dataset) == (1 if case == "labelme, one file" else 2)
    np.testing.assert_allclose(dataset[0].boxes, list(BOXES.values()), atol=1e-3)
    assert dataset[0].labels.tolist() == [0, 1] and all(len(s.boxes) == 0 for s in list(dataset)[1:])
    assert check_pictures(dataset, progress=False) == []


def test_a_turned_rectangle_of_label_studio(tmp_path):
    """90 degrees clockwise around its upper left corner; 200 x 100 px, so that shares of x and y differ."""
    value = {"x": 50, "y": 10, "width": 20, "height": 10, "rotation": 90, "rectanglelabels": ["cat"]}
    tasks = [
        {"data": {"image": "a.jpg"}, "annotations": [{"result": [{"value": value}, {"value": {"choices": ["x"]}}]}]}
    ]
    with pytest.warns(UserWarning, match="1 results are neither"):
        dataset = open_dataset(str(put(tmp_path, **{"a.jpg": None, "t.json": tasks})))
    np.testing.assert_allclose(dataset[0].boxes, [[90, 10, 100, 50]], atol=1e-4)


@pytest.mark.parametrize("files, opened, words", [
    ({"labels/a.txt": "0 10 20 30 40", "data.yaml": "names: [cat]", **pictures("images/")}, "", "expected shares"),
    ({"labels/a.txt": "0 0.5 0.5", "data.yaml": "names: [cat]", **pictures("images/")}, "", "line 1: expected a class"),
    ({"labels/a.txt": "3 0.5 0.5 0.1 0.1", "data.yaml": "names: [cat]", **pictures("images/")}, "", "class 3"),
    ({"labels/a.txt": "", **pictures("images/")}, "", "no names of the classes"),
    ({"labels/train/a.txt": "", **pictures("images/train/")}, "", "open one of .*train"),
    ({"data.yaml": "names: [", "labels/a.txt": "", **pictures("images/")}, "", "not YAML"),
    ({"a.json": COCO, "b.json": COCO, **pictures()}, "", "several annotation files"),
    ({"a.json": [{"data": {"text": "hello"}}]}, "", "name of a picture"),
    ({"a.json": {"shapes": 3, "imagePath": "a.jpg"}}, "", "no file of labelme's"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, files, opened, words):
    with pytest.raises(ValueError, match=words):
        open_dataset(str(put(tmp_path, **files) / opened))


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_there_and_back(tmp_path, to, capsys):
    content = COCO | {"images": [{"id": 1, "file_name": "sub/a.jpg"}, {"id": 2, "file_name": "b.jpg"}]}
    content["annotations"] = [
        *COCO["annotations"],
        {"id": 9, "image_id": 2, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 1},
    ]
    put(tmp_path, **{"set/annotations.json": content, "set/images/sub/a.jpg": None, "set/images/b.jpg": None})
    assert main(["data", "convert", str(tmp_path / "set"), str(tmp_path / "out"), "--to", to]) == 0
    assert "pictures: 2" in capsys.readouterr().out
    back = open_dataset(str(tmp_path / "out"))
    first = next(sample for sample in back if len(sample.boxes))
    np.testing.assert_allclose(first.boxes, list(BOXES.values()), atol=0.01)
    assert back.names == ["cat", "dog"] and sorted(i["file_name"] for i in back.coco["images"]) == [
        "b.jpg",
        "sub_a.jpg",
    ]
    assert sum(a.get("iscrowd", 0) for a in back.coco["annotations"]) == (to == "coco")


def test_supervision_reads_what_we_convert(tmp_path):
    supervision = pytest.importorskip("supervision")
    put(tmp_path, **{"set/annotations.json": COCO, **pictures("set/")})
    path, counts = convert(open_dataset(str(tmp_path / "set")), tmp_path / "out", "yolo")
    assert counts == {"pictures": 2, "boxes": 2, "crowds_left_out": 0, "unreadable": 0}
    read = supervision.DetectionDataset.from_yolo(str(tmp_path / "out/images"), str(tmp_path / "out/labels"), str(path))
    found = next(d for _, _, d in read if len(d))
    assert read.classes == ["cat", "dog"] and np.abs(found.xyxy - list(BOXES.values())).max() < 1


def test_conversion_leaves_out_what_cannot_be_read(tmp_path):
    put(tmp_path, **{"annotations.json": COCO, "a.jpg": None, "b.jpg": "no picture"})
    with pytest.warns(UserWarning, match=r"left out: .*b\.jpg"):
        _, counts = convert(CocoDataset(tmp_path / "annotations.json", tmp_path), tmp_path / "out")
    assert (counts["pictures"], counts["unreadable"]) == (1, 1)
    assert len(open_dataset(str(tmp_path / "out"))) == 1
