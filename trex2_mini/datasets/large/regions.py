"""Sets of boxes without names, for visual prompts: HierText and SA-1B."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trex2_mini.datasets.large.rows import Row, inside, json_lines, named, take
from trex2_mini.paths import read_json

LEVELS = ("paragraph", "line", "word")


@named
def hiertext(annotations: Path, level: str = "word") -> Iterator[Row]:
    """HierText: train.jsonl(.gz), which is one JSON or one a line; pictures are IMAGE_ID.jpg.

    level: the boxes of words, lines or paragraphs (around their polygons). What cannot be read is not judged.
    """
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {', '.join(LEVELS)}, got {level!r}")
    for document in json_lines(annotations):
        entries = document["annotations"] if isinstance(document, dict) and "annotations" in document else [document]
        for entry in entries:
            image, width, height, paragraphs = take(
                entry, ("image_id", "image_width", "image_height", "paragraphs"), str(annotations)
            )
            found = _texts(paragraphs, LEVELS.index(level), f"{annotations}, {image}")
            boxes = [_around(vertices, f"{annotations}, {image}") for vertices, _ in found]
            crowd = [not legible for _, legible in found]
            yield Row(inside(f"{image}.jpg", annotations), width, height, boxes, [level] * len(boxes), crowd, [level])


def _texts(entries: list[dict], levels: int, where: str) -> list[tuple[list, bool]]:
    """(vertices, legible) of the texts that many levels down; of an illegible one without parts, itself."""
    found = []
    for entry in entries:
        (vertices,) = take(entry, ("vertices",), where)
        parts = entry.get("lines") or entry.get("words") or []
        if levels and parts:
            found += _texts(parts, levels - 1, where)
        else:
            found.append((vertices, bool(entry.get("legible", True)) and not levels))
    return found


def _around(vertices: list, where: str) -> list[float]:
    points = np.asarray(vertices, dtype=float)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{where}: expected vertices [[x, y], ...], got {vertices!r:.80}")
    return [*points.min(0).tolist(), *np.ptp(points, axis=0).tolist()]


@named
def sa_1b(folder: Path, name: str = "object", least_iou: float = 0.0) -> Iterator[Row]:
    """SA-1B: a folder with a JSON beside each picture (sa_1.json, sa_1.jpg), searched with its subfolders.

    All boxes are called `name`: the visual engine (trex2 engine visual) gives them names. least_iou: of the model's own
    estimate of its masks.
    """
    paths = sorted(folder.rglob("sa_*.json"))
    if not paths:
        raise ValueError(f"{folder} holds no sa_*.json; unpack SA-1B's archives there")
    for path in paths:
        image, entries = take(read_json(path), ("image", "annotations"), str(path))
        file, width, height = take(image, ("file_name", "width", "height"), str(path))
        kept = [entry for entry in entries if entry.get("predicted_iou", 1.0) >= least_iou]
        boxes = [take(entry, ("bbox",), str(path))[0] for entry in kept]
        place = (path.parent.relative_to(folder) / inside(file, path)).as_posix()
        yield Row(place, width, height, boxes, [name] * len(boxes), [False] * len(boxes), [name])
