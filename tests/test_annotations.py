"""Exports read back by programs that are not ours (pycocotools, supervision), and whole folders: resumed, refused,
unreadable pictures.
"""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from pycocotools.coco import COCO
from tiny import TINY, seeded_model

from trex2_mini import Detections, Detector, PromptBank
from trex2_mini.annotations import detect_folder, export, pictures_in
from trex2_mini.checkpoint import save_model
from trex2_mini.cli import main
from trex2_mini.datasets.registry import open_dataset

NAMES = ["red square", 'a "quoted" name', "grün"]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, size in enumerate([(64, 48), (50, 80), (64, 64)]):
        noise = np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{'abc'[index]}.png")
    return folder


@pytest.fixture
def found():
    boxes = np.array([[3, 4, 23, 34], [10.4, 5.6, 41.5, 44], [0, 0, 5, 5]], np.float32)
    return {
        "a.png": (48, 64, Detections(boxes, np.array([0.9, 0.5, 0.4], np.float32), np.array([1, 0, 2]), NAMES)),
        "b.png": (80, 50, Detections(boxes[:1], np.array([0.7], np.float32), np.array([0]), ["grün"])),
        "c.png": (64, 64, Detections(boxes[:0], np.zeros(0, np.float32), np.zeros(0, int), NAMES)),
    }


def truth(found) -> dict[str, list[tuple[str, tuple]]]:
    return {
        file: sorted((d.names[label], tuple(round(float(v), 1) for v in box)) for box, label in zip(d.boxes, d.labels))
        for file, (_, _, d) in found.items()
    }


def test_coco_is_read_by_pycocotools_and_by_us(found, pictures, tmp_path):
    path = export(tmp_path / "set", found, "coco", pictures)
    coco = COCO(str(path))
    read = {}
    for image in coco.imgs.values():
        own = coco.imgToAnns[image["id"]]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in own)]
        read[image["file_name"]] = sorted(
            (coco.cats[a["category_id"]]["name"], tuple(round(v, 1) for v in box)) for a, box in zip(own, boxes)
        )
    assert read == truth(found)
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.names == NAMES and len(dataset) == 3 and len(dataset[0].boxes) == 3 and not dataset.problems


@pytest.mark.parametrize("format", ["yolo", "voc"])
def test_yolo_and_voc_are_read_by_supervision(found, pictures, tmp_path, format):
    supervision = pytest.importorskip("supervision")
    path = export(tmp_path / "set", found, format, pictures)
    if format == "yolo":
        read = supervision.DetectionDataset.from_yolo(
            str(tmp_path / "set" / "images"), str(tmp_path / "set" / "labels"), str(path)
        )
    else:
        read = supervision.DetectionDataset.from_pascal_voc(str(tmp_path / "set" / "JPEGImages"), str(path))
    total = 0
    for file, _, own in read:
        expected = found[file.rsplit("/", 1)[-1]][2]
        total += len(own)
        names = [read.classes[i] for i in own.class_id]
        for name, box in zip(names, own.xyxy):
            near = [np.abs(b - box).max() for b, i in zip(expected.boxes, expected.labels) if expected.names[i] == name]
            assert min(near) <= (0.01 if format == "yolo" else 1.5)  # VOC: whole pixels, counted from 1
    assert total == 4 and set(read.classes) == set(NAMES)


def test_voc_is_read_by_us(found, pictures, tmp_path):
    export(tmp_path / "set", found, "voc", pictures)
    dataset = open_dataset(str(tmp_path / "set"))
    assert sorted(dataset.names) == sorted(NAMES) and sum(len(sample.boxes) for sample in dataset) == 4
    np.testing.assert_allclose(dataset[1].boxes, [[3, 4, 23, 34]])


def test_export_refuses(found, tmp_path):
    with pytest.raises(ValueError, match="unknown format 'csv'; expected one of coco, yolo, voc"):
        export(tmp_path, found, "csv")
    with pytest.raises(ValueError, match=r"plain file names, got '\.\./a.png'"):
        export(tmp_path, {"../a.png": found["a.png"]}, "yolo")
    with pytest.raises(ValueError, match="rename the pictures"):
        export(tmp_path, {"a.png": found["a.png"], "a.jpg": found["a.png"]}, "yolo")
    assert not list(tmp_path.iterdir())


# ---- whole folders


@pytest.fixture(scope="module")
def detector():
    return Detector(seeded_model(), TINY)


def test_a_folder_goes_on_after_a_kill(detector, pictures, tmp_path, monkeypatch):
    (pictures / "broken.jpg").write_bytes(b"not a picture")
    (pictures / "notes.txt").write_text("not a picture either")
    whole, out = tmp_path / "whole.json", tmp_path / "out.json"
    options = {"text": "cat, dog", "score_threshold": 0.01, "progress": False}
    counts = detect_folder(detector, pictures, whole, **options)
    assert (counts["pictures"], counts["resumed"], counts["unreadable"]) == (4, 0, 1) and counts["detections"] > 3

    class Killed(Exception):
        pass

    def loading(path):
        if path.name == "c.png":
            raise Killed
        return load(path)

    load = detector.encode
    with monkeypatch.context() as patched:
        patched.setattr(detector, "encode", loading)
        with pytest.raises(Killed):
            detect_folder(detector, pictures, out, **options)
    assert not out.exists()
    partial = tmp_path / "out.json.part"
    partial.write_text(partial.read_text() + '{"file": "c.png", "si')  # killed within a line
    with pytest.raises(ValueError, match="begun with other prompts"):
        detect_folder(detector, pictures, out, **options | {"text": "cow"})
    assert detect_folder(detector, pictures, out, **options)["resumed"] == 3
    assert json.loads(out.read_text()) == json.loads(whole.read_text()) and not partial.exists()
    COCO(str(out))


def test_the_command(detector, pictures, tmp_path, capsys):
    save_model(tmp_path / "tiny", detector.model, TINY)
    bank = detector.embed({"noise": [(pictures / "a.png", [[0, 0, 20, 20]])]})
    bank.save(tmp_path / "bank.safetensors")
    base = ["detect", str(pictures), "--checkpoint", str(tmp_path / "tiny"), "--threshold", "0"]
    ours = ["--bank", str(tmp_path / "bank.safetensors"), "--json", str(tmp_path / "out.json")]
    assert main([*base, *ours]) == 0 and "pictures: 3" in capsys.readouterr().out
    assert [c["name"] for c in json.loads((tmp_path / "out.json").read_text())["categories"]] == ["noise"]
    assert isinstance(PromptBank.load(tmp_path / "bank.safetensors"), PromptBank)


def test_pycocotools_shows_our_export(found, pictures, tmp_path, capsys):
    """showAnns, loadRes and info() ask for segmentation, info and licenses."""
    coco = COCO(str(export(tmp_path / "set", found, "coco", pictures)))
    figure, axes = plt.subplots()
    plt.sca(axes)
    own = coco.loadAnns(coco.getAnnIds())
    coco.showAnns(own, draw_bbox=True)
    assert sum(len(c.get_paths()) for c in axes.collections) >= len(own) > 0
    coco.info()
    assert len(coco.loadRes(own).anns) == len(own) and "trex2_mini" in capsys.readouterr().out
    plt.close(figure)


def test_what_a_folder_holds_besides_is_named(tmp_path):
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "c.heic").write_bytes(b"")
    with pytest.warns(UserWarning) as said:
        found = [path.name for path in pictures_in(tmp_path)]
    words = " ".join(str(warning.message) for warning in said)
    assert "in its folders sub are left out" in words
    assert found == ["a.png", "c.heic"] or (found == ["a.png"] and "pillow-heif: c.heic" in words)
    (tmp_path / "a.png").unlink()
    (tmp_path / "c.heic").unlink()
    with pytest.raises(ValueError, match="its folders sub hold"):
        pictures_in(tmp_path)


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        pictures_in(tmp_path)


def test_one_run_a_result(tmp_path):
    """A second run on the same result is refused before it does anything; afterwards the first goes on."""
    Image.fromarray(np.full((40, 50, 3), 99, np.uint8)).save(tmp_path / "a.png")
    detector, out = Detector(seeded_model(), TINY, "cpu"), tmp_path / "found.json"
    with FileLock(tmp_path / "found.json.lock"), pytest.raises(ValueError, match="another process writes"):
        detect_folder(detector, tmp_path, out, "cat", progress=False)
    assert not out.exists()
    assert detect_folder(detector, tmp_path, out, "cat; cat", progress=False)["pictures"] == 1 and out.exists()
