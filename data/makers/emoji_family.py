"""What the embedded family must be, written anew: data/emoji_manifest.json, data/emoji_family.jpg, and the table of
data/README.md on the terminal.

    python data/makers/emoji_family.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.emoji.family import SHEET, make_family, table
from trex2_mini.datasets.emoji.pictures import FRAMES
from trex2_mini.datasets.emoji.sets import EMOJI_SETS, VERSION, make_emoji_set
from trex2_mini.paths import EMOJI_MANIFEST

COLOURS = ((230, 30, 30), (20, 110, 230), (20, 160, 60), (230, 130, 0), (160, 40, 190))


def open_made(name: str, root: Path | str | None = None) -> CocoDataset:
    """A set of the family, made if it is not there."""
    folder = make_emoji_set(name, root)
    return CocoDataset(folder / "annotations.json", folder / "images")


def statistics(dataset: CocoDataset) -> dict:
    """What a set holds: images, annotations, categories (listed), novel among them, boxes an image, median box side in
    px.
    """
    boxes = np.array([annotation["bbox"] for annotation in dataset.coco["annotations"]], dtype=float).reshape(-1, 4)
    return {
        "images": len(dataset),
        "annotations": len(boxes),
        "categories": len(dataset.names),
        "novel": sum(category.get("novel", False) for category in dataset.categories),
        "boxes_an_image": round(len(boxes) / len(dataset), 1),
        "median_side": round(float(np.median(np.sqrt(boxes[:, 2] * boxes[:, 3]))), 1),
    }


def contact_sheet(name: str, count: int = 3, height: int = 150, root: Path | str | None = None) -> Image.Image:
    """The first pictures of a set in one row with their annotated boxes, a colour for each category.

    Of clips, frames of the first one. What is not annotated (lvis, sa) has no box.
    """
    dataset, step = open_made(name, root), FRAMES // count if name == "emoji-clips" else 1
    cells = []
    for index in range(0, count * step, step):
        sample = dataset[index]
        scale = height / sample.image.shape[0]
        cell = Image.fromarray(sample.image).resize(
            (round(scale * sample.image.shape[1]), height), Image.Resampling.LANCZOS
        )
        draw = ImageDraw.Draw(cell)
        for box, label in zip((sample.boxes * scale).tolist(), sample.labels.tolist()):
            draw.rectangle([box[0], box[1], box[2] - 1, box[3] - 1], outline=COLOURS[label % len(COLOURS)])
        cells.append(cell)
    sheet = Image.new("RGB", (sum(cell.width + 2 for cell in cells), height + 14), "white")
    ImageDraw.Draw(sheet).text((2, 1), name, fill="black")
    left = 0
    for cell in cells:
        sheet.paste(cell, (left, 14))
        left += cell.width + 2
    return sheet


def family_sheet(columns: int = 3, height: int = 110, root: Path | str | None = None) -> Image.Image:
    """The contact sheets of all sets (of the wild ones, val) on one picture."""
    rows = [contact_sheet(name, 3, height, root) for name in EMOJI_SETS if not name.endswith("/train")]
    width = max(row.width for row in rows)
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * (width + 8), lines * (height + 18)), "white")
    for place, row in enumerate(rows):
        sheet.paste(row, (place % columns * (width + 8), place // columns * (height + 18)))
    return sheet


def publish() -> None:
    """Make all sets and record what they must be (data/emoji_manifest.json, committed), draw the sheet, print the
    table.
    """
    expected = {}
    for name, folder in zip(EMOJI_SETS, make_family()):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        hashes = {key: manifest[key] for key in ("annotations_sha256", "other_files_sha256") if manifest.get(key)}
        first = 30 if name in ("emoji-val", "emoji-reference") else 1 if name == "emoji-clips" else 3
        with tempfile.TemporaryDirectory() as sample:
            start = json.loads(
                (make_emoji_set(name, sample, scenes=first) / "manifest.json").read_text(encoding="utf-8")
            )
        hashes[f"first_{first}_sha256"] = start["annotations_sha256"]
        expected[name] = statistics(open_made(name)) | hashes
    EMOJI_MANIFEST.write_text(json.dumps({"version": VERSION, "sets": expected}, indent=2) + "\n", encoding="utf-8")
    family_sheet().save(SHEET, quality=75)
    print(table(expected))


if __name__ == "__main__":
    publish()
