"""A checkpoint that loads in no time, and a set to run commands on."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini.checkpoint import save_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(folder, seeded_model(), TINY)
    return folder


@pytest.fixture(scope="session")
def squares_set(tmp_path_factory):
    """Four pictures of squares as a folder in COCO format."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "images").mkdir()
    coco = {"images": [], "annotations": [], "categories": [{"id": i + 1, "name": n} for i, n in enumerate(NAMES)]}
    for index in range(4):
        sample = squares(index)
        Image.fromarray(sample.image).save(folder / "images" / f"{index}.png")
        coco["images"].append({"id": index + 1, "file_name": f"{index}.png", "width": 64, "height": 64})
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist()):
            number = len(coco["annotations"]) + 1
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            coco["annotations"].append({"id": number, "image_id": index + 1, "category_id": label + 1, **box})
    (folder / "annotations.json").write_text(json.dumps(coco))
    return folder
