"""Readers of the paper's data, each on a small file in the official format; and the index that they fill."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from trex2_mini.cli import main
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.large.detection import crowdhuman, objects365, open_images
from trex2_mini.datasets.large.grounding import gold_g
from trex2_mini.datasets.large.index import ParquetDataset, write_index
from trex2_mini.datasets.large.regions import hiertext, sa_1b
from trex2_mini.datasets.large.rows import Row, as_coco, inside
from trex2_mini.datasets.large.shards import web_shards
from trex2_mini.datasets.registry import open_training_set
from trex2_mini.training.batches import DatasetBatches

pytest.importorskip("pyarrow")


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_objects365(tmp_path):
    box = {"id": 7, "image_id": 420917, "category_id": 5, "isfake": 0, "isreflected": 0, "area": 6.0}
    content = {
        "images": [
            {"id": 420917, "file_name": "images/v1/patch8/objects365_v1_00420917.jpg", "width": 40, "height": 30,
                "license": 5, "url": ""},
            {"id": 2, "file_name": "images/v2/patch16/objects365_v2_00908726.jpg", "width": 8, "height": 8},
        ],
        "annotations": [box | {"bbox": [1.5, 2, 3, 2], "iscrowd": 0}, box | {"bbox": [4, 4, 9, 9], "iscrowd": 1}],
        "categories": [{"id": 5, "name": "Barrel/bucket"}],
    }  # fmt: skip
    path = put(tmp_path / "zhiyuan_objv2_train.json", content)
    first, second = objects365(path)
    assert first.file == "patch8/objects365_v1_00420917.jpg" and (first.width, first.height) == (40, 30)
    assert first.boxes[0] == [1.5, 2, 3, 2] and first.names == ("Barrel/bucket",) * 2 and first.crowd == (False, True)
    assert second == Row("patch16/objects365_v2_00908726.jpg", 8, 8) and second.looked_for is None
    content["images"][0]["file_name"] = "../../etc/passwd"
    with pytest.raises(ValueError, match="within the set's folder"):
        list(objects365(put(path, content)))


HEAD = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"


@pytest.fixture
def open_files(tmp_path):
    boxes = put(
        tmp_path / "boxes.csv",
        f"{HEAD}\n000002b66c9c498e,xclick,/m/boy,1,0.25,0.75,0.5,1,0,0,0,0,0\n"
        "000002b66c9c498e,xclick,/m/car,1,0,0.5,0,0.5,0,0,1,0,0\n000002b97e5471a0,xclick,/m/car,1,0,1,0,1,1,0,0,0,0\n",
    )
    called = [f"/m/{name},{name.title()}\n" for name in "person boy girl car animal dog wheel".split()]
    classes = put(tmp_path / "c.csv", "LabelName,DisplayName\n" + "".join(called))
    labels = put(
        tmp_path / "labels.csv",
        "ImageID,Source,LabelName,Confidence\n000002b66c9c498e,verification,/m/animal,0\n"
        "000002b66c9c498e,verification,/m/girl,1\n000002b97e5471a0,crowdsource-verification,/m/boy,0\n",
    )
    tree = {"LabelName": "/m/0bl9f", "Subcategory": [
        {"LabelName": "/m/person", "Subcategory": [{"LabelName": "/m/boy"}, {"LabelName": "/m/girl"}]},
        {"LabelName": "/m/animal", "Subcategory": [{"LabelName": "/m/dog"}]},
        {"LabelName": "/m/car", "Part": [{"LabelName": "/m/wheel"}]}]}  # fmt: skip
    return boxes, classes, labels, put(tmp_path / "h.json", tree)


def test_open_images_knows_what_is_verified_and_what_is_broader(open_files):
    first, second = open_images(*open_files)
    assert first.file == "000002b66c9c498e.jpg" and (first.width, first.height) == (1, 1)
    assert first.boxes == [[0.25, 0.5, 0.5, 0.5], [0, 0, 0.5, 0.5]] and first.names == ["Boy", "Car"]
    assert first.crowd == [False, True]  # a group
    assert first.looked_for == ["Animal", "Boy", "Car", "Dog"]  # no animal, so no dog; a girl may be there unboxed
    assert first.ambiguous == ["Person"]  # a boy is one; a wheel is a part, no kind of car
    assert second.looked_for == ["Boy", "Car"] and second.ambiguous == []
    lines = open_files[0].read_text().splitlines()
    put(open_files[0], "\n".join([lines[0], lines[1], lines[3], lines[2]]))
    with pytest.raises(ValueError, match="sort the file by ImageID"):
        list(open_images(*open_files))


def test_gold_g_calls_boxes_by_the_captions_parts(tmp_path):
    caption = "Two young guys with shaggy hair look at their hands ."
    image = {"file_name": "1000092795.jpg", "height": 500, "width": 333, "id": 0, "caption": caption,
        "dataset_name": "flickr", "tokens_negative": [[0, len(caption)]], "sentence_id": 0,
        "original_img_id": 1000092795, "tokens_positive_eval": [[[0, 14]]]}  # fmt: skip
    entry = {"area": 1.0, "iscrowd": 0, "image_id": 0, "category_id": 1, "id": 0, "bbox": [1, 2, 3, 4]}
    entries = [entry | {"tokens_positive": [[0, 14]]}, entry | {"tokens_positive": [[4, 9], [20, 31]]}]
    path = put(tmp_path / "f.json", {"images": [image], "annotations": entries, "categories": []})
    (row,) = gold_g(path)
    assert row.names == ["two young guys", "young shaggy hair"] and row.caption == caption and row.looked_for is None
    entries[0]["tokens_positive"] = [[0, 999]]
    with pytest.raises(ValueError, match="outside the caption"):
        list(gold_g(put(path, {"images": [image], "annotations": entries})))


def test_crowdhuman(tmp_path):
    person = {"tag": "person", "fbox": [-5, 10, 30, 90], "hbox": [3, 10, 8, 9], "vbox": [0, 12, 20, 60],
        "extra": {"box_id": 0, "occ": 1}, "head_attr": {"ignore": 1, "occ": 0, "unsure": 0}}  # fmt: skip
    mask = {"tag": "mask", "fbox": [50, 0, 9, 9], "hbox": [50, 0, 9, 9], "vbox": [50, 0, 9, 9], "head_attr": {}}
    mask |= {"extra": {"box_id": 1, "ignore": 1}}
    path = put(tmp_path / "a.odgt", json.dumps({"ID": "273271,c9db000d5146c15", "gtboxes": [person, mask]}) + "\n")
    (row,) = crowdhuman(path)
    assert row.file == "273271,c9db000d5146c15.jpg" and row.boxes == [[0, 12, 20, 60], [50, 0, 9, 9]]
    assert row.crowd == [False, True] and row.looked_for == ["person"]
    assert next(crowdhuman(path, "hbox")).crowd == [True, True] and next(crowdhuman(path, "fbox")).boxes[0][0] == -5
    with pytest.raises(ValueError, match="line 2, is not JSON"):
        list(crowdhuman(put(path, path.read_text() + "{")))


def test_hiertext_at_each_level(tmp_path):
    def polygon(x, y, w, h):
        return {"vertices": [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]}

    words = [
        polygon(0, 0, 5, 4) | {"text": "no", "legible": True},
        polygon(6, 0, 4, 4) | {"text": "", "legible": False},
    ]
    line = polygon(0, 0, 10, 4) | {"text": "no", "legible": True, "words": words}
    unread = polygon(20, 20, 9, 9) | {"legible": False, "lines": []}
    paragraphs = [polygon(0, 0, 10, 4) | {"legible": True, "lines": [line]}, unread]
    entry = {"image_id": "0006289e4f292bcd", "image_width": 64, "image_height": 48, "paragraphs": paragraphs}
    whole = tmp_path / "train.jsonl.gz"
    whole.write_bytes(gzip.compress(json.dumps({"info": {}, "annotations": [entry]}).encode()))
    (row,) = hiertext(whole)
    assert row.boxes == [[0, 0, 5, 4], [6, 0, 4, 4], [20, 20, 9, 9]] and row.crowd == [False, True, True]
    (row,) = hiertext(put(tmp_path / "lines.jsonl", json.dumps(entry)), "line")
    assert row.boxes == [[0, 0, 10, 4], [20, 20, 9, 9]] and row.crowd == [False, True] and row.names == ["line"] * 2


def test_sa_1b_and_the_rows_as_coco(tmp_path):
    image = {"image_id": 1, "width": 40, "height": 30, "file_name": "sa_1.jpg"}
    entry = {"segmentation": {"size": [30, 40], "counts": "x"}, "area": 5, "predicted_iou": 0.95,
        "point_coords": [[1, 1]], "stability_score": 0.96, "crop_box": [0, 0, 9, 9],
        "id": 1, "bbox": [1, 2, 5, 6]}  # fmt: skip
    put(tmp_path / "sa_000000" / "sa_1.json", {"image": image, "annotations": [entry, entry | {"predicted_iou": 0.5}]})
    (row,) = sa_1b(tmp_path, least_iou=0.9)
    assert row.file == "sa_000000/sa_1.jpg" and row.boxes == [[1, 2, 5, 6]] and row.names == ["object"]
    path = put(tmp_path / "annotations.json", as_coco(sa_1b(tmp_path)))
    assert len(CocoDataset(path, tmp_path).coco["annotations"]) == 2
    with pytest.raises(ValueError, match="known size"):
        as_coco([Row("a.jpg")])


def png(colour, size=(8, 6)):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_shards_are_read_in_place(tmp_path):
    about = {"caption": "A red door.", "width": 8, "height": 6, "status": "success", "key": "000000000"}
    files = {"000000000.png": png("red"), "000000000.txt": b"A red door.", "000000000.json": json.dumps(about).encode()}
    files |= {
        "000000001.json": b'{"status": "failed_to_download"}',
        "000000002.png": png("blue"),
        "000000002.cls": b"1",
    }
    tar(tmp_path / "00000.tar", files)
    rows = list(web_shards(tmp_path, ["cat", "blue whale"]))
    assert [row.caption for row in rows] == ["A red door.", "blue whale"] and rows[0].width == 8
    index = ParquetDataset(write_index(rows, tmp_path / "i" / "index.parquet"), tmp_path)
    assert index.caption(1) == "blue whale" and index.picture(1)[0, 0].tolist() == [0, 0, 255]
    assert index[0].image[0, 0].tolist() == [255, 0, 0] and index[0].boxes.shape == (0, 4)
    with pytest.raises(ValueError, match="give the list of names"):
        list(web_shards(tmp_path))


def test_the_index_says_what_the_coco_file_says(tmp_path):
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "images").mkdir()
    for number in range(12):
        Image.new("RGB", (40, 30), (20 * number, 9, 9)).save(tmp_path / "images" / f"é{number}.png")
        boxes = (rng.random((number % 4, 4)) * 30).tolist()
        names = [f"name {rng.integers(3)}" for _ in boxes]
        crowd = [bool(rng.random() < 0.3) for _ in boxes]
        rows.append(Row(f"é{number}.png", 40, 30, boxes, names, crowd, ["name 2", *names] if number % 2 else None))
    write_index(rows, tmp_path / "index.parquet", group=5)
    coco = CocoDataset(put(tmp_path / "annotations.json", as_coco(rows)), tmp_path / "images")
    with pytest.raises(FileNotFoundError, match=r"no set 'crowdhuman'.*index.parquet, which `trex2 data index` writes"):
        open_training_set("crowdhuman")
    index = open_training_set(str(tmp_path))
    assert isinstance(index, ParquetDataset) and len(index) == 12 and set(index.names) == set(coco.names)
    assert index.file_names()[3] == "é3.png"
    for one, other, row in zip(index, coco, rows):
        assert np.array_equal(one.image, other.image) and np.allclose(one.boxes, other.boxes, atol=1e-5)
        assert [index.names[c] for c in one.labels] == [coco.names[c] for c in other.labels]
        known = None if one.vocabulary is None else {index.names[c] for c in one.vocabulary}
        assert known == (None if row.looked_for is None else set(row.looked_for))
    for label, name in enumerate(index.names):
        held = index.holdings.holding(label), coco.holdings.holding(coco.names.index(name))
        assert held[0].tolist() == held[1].tolist()
    again = pickle.loads(pickle.dumps(index))  # as a DataLoader's worker gets it
    assert np.array_equal(again[7].boxes, index[7].boxes)
    batch = DatasetBatches(index, 4)(0)
    assert sum(len(sample.labels) for sample in batch) > 0


def test_boxes_follow_the_size_that_the_picture_has(tmp_path):
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    rows = [Row("a.png", w, h, [box], ["x"], [False]) for w, h, box in
        ((1, 1, [0.25, 0.5, 0.5, 0.5]), (40, 30, [10, 15, 20, 15]), (0, 0, [20, 30, 40, 30]))]  # fmt: skip
    index = ParquetDataset(write_index(rows, tmp_path / "index.parquet"), tmp_path)
    assert [sample.boxes.tolist() for sample in index] == [[[20, 30, 60, 60]]] * 3


def test_what_is_no_index_or_leads_elsewhere_is_refused(tmp_path):
    put(tmp_path / "index.parquet", "no parquet")
    with pytest.raises(ValueError, match="no index"):
        ParquetDataset(tmp_path / "index.parquet", tmp_path)
    with pytest.raises(FileNotFoundError):
        ParquetDataset(tmp_path / "other.parquet", tmp_path)
    path = write_index([Row("/etc/passwd")], tmp_path / "index.parquet")
    with pytest.raises(ValueError, match="within the set's folder"):
        ParquetDataset(path, tmp_path)[0]
    for bad in ("../a.jpg", "C:\\a.jpg", "a/../../b.jpg", "", "\0"):
        with pytest.raises(ValueError, match="within the set's folder"):
            inside(bad, path)
    with pytest.raises(ValueError, match="four finite numbers"):
        write_index([Row("a.jpg", 1, 1, [[0, 0, np.nan, 1]], ["x"], [False])], path)
    assert path.is_file() and not list(tmp_path.glob("*.part"))


def test_rare_phrases_are_no_negatives(tmp_path):
    rows = [Row(f"{i}.jpg", 9, 9, [[0, 0, 1, 1]], ["dog" if i else "this odd dog"], [False]) for i in range(4)]
    index = ParquetDataset(write_index(rows, tmp_path / "index.parquet", more_than=2), tmp_path)
    assert {c["name"]: c["negative"] for c in index.categories} == {"this odd dog": False, "dog": True}


def test_the_command_writes_an_index(tmp_path, capsys, open_files):
    boxes, classes, labels, tree = map(str, open_files)
    options = ["--classes", classes, "--labels", labels, "--hierarchy", tree, "--out", str(tmp_path / "oi")]
    assert main(["data", "index", "open-images", boxes, *options]) == 0, capsys.readouterr().err
    assert open_training_set(str(tmp_path / "oi")).annotated(0).file == "000002b66c9c498e.jpg"
    assert main(["data", "index", "open-images", boxes, "--out", str(tmp_path / "no")]) == 1
