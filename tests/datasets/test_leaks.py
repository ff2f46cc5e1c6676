"""Pictures of evaluation among those of training are found, whatever was done to them; other pictures are not."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny import picture

from trex2_mini.cli import main
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.leaks import look_alikes, shared_names, warnings_of


def made(seed, size=(96, 128)):
    return Image.fromarray((255 * picture(*size, seed=seed)).permute(1, 2, 0).numpy().astype(np.uint8))


def write(folder, pictures):
    (folder / "images").mkdir(parents=True)
    images = []
    for number, (name, own) in enumerate(pictures.items(), 1):
        own.save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": own.width, "height": own.height})
    boxes = [{"id": i["id"], "image_id": i["id"], "category_id": 1, "bbox": [1, 1, 9, 9]} for i in images]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return CocoDataset(folder / "annotations.json", folder / "images")


@pytest.fixture
def sets(tmp_path):
    flat = Image.new("RGB", (64, 64), "white")
    test = write(tmp_path / "test", {"000000000139.jpg": made(0), "000000000285.jpg": made(1), "w.png": flat})
    copy = ImageOps.mirror(made(0).resize((200, 150)))
    names = {"copy.png": copy, "000000000285.png": made(9), "other.jpg": made(5), "blank.png": flat}
    return write(tmp_path / "train", names), test


def test_copies_are_found_by_name_and_by_look(sets):
    train, test = sets
    assert shared_names(train, test) == ["000000000285"]
    assert look_alikes(train, test) == [("copy.png", "000000000139.jpg")]  # mirrored, larger, another format
    lines = warnings_of([("mine", train)], [("coco-val2017", test)], look=True)
    assert len(lines) == 2 and "000000000285" in lines[0] and "copy.png and 000000000139.jpg" in lines[1]
    assert warnings_of([("a", test)], [("b", test)], look=False) == ["a is trained on and measured on"]


def test_different_pictures_do_not_look_alike(tmp_path):
    one = write(tmp_path / "a", {f"{n}.jpg": made(n) for n in range(20)})
    other = write(tmp_path / "b", {f"{n}.jpg": made(n) for n in range(100, 120)})
    assert look_alikes(one, other) == []


def test_the_check_command_says_so(sets, capsys):
    train, test = (str(own.path.parent) for own in sets)
    assert main(["data", "check", train, "--against", test]) == 0
    out = capsys.readouterr().out
    assert "holds 1 pictures of" in out and "look like" in out
