"""Annotation files as they are met in the wild: what is refused, what is left out, what is mended, and how it is said.

| what is wrong | what happens |
|---|---|
| no JSON, cut short; images, annotations or categories missing; an entry without a needed field | ValueError |
| two images or two categories with one id; an id that is no whole number; a category without a name | ValueError |
| an annotation of an image or a category that is not listed; a bbox that is not four numbers | ValueError |
| a bbox with NaN or infinite numbers | left out, reported |
| a bbox without area, or wholly outside its image | no target and no prompt; it stays in the truth, as in COCO's own |
| a bbox that reaches out of its image | cut at the border |
| iscrowd | no target and no prompt; evaluation ignores what falls on it |
| two annotations with one id | both stay (ids of annotations are numbered anew where they matter), reported |
| ids written as text ("7"), names with spaces around | read as meant, reported |
| ids and sizes such as 7.0; sizes, boxes, areas written as text | read as meant |
| no file_name but a coco_url (LVIS) | the picture is looked for by the URL's end (pictures.py) |
| no bbox but polygons | the polygons' box |
| no area, no iscrowd, or null | the box's area, 0 |
| one file listed twice; boxes that look like shares of the picture or like corners | reported, with what to do |
| a recorded size that is not the picture's | the picture's counts; `data check` reports it, and what EXIF turns |
| bboxes of less than a pixel, or most reaching out of their pictures | `data check` reports how many |
| a picture that is missing or cannot be read | `data check` reports it; reading it raises an error that names it |
| two categories with one name | both stay, reported: a text prompt cannot tell them apart |
| a set without annotations | opens; training and evaluation refuse it |
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trex2_mini.datasets.pictures import name_parts

FIELDS = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}


def cleaned(coco: Any, path: Path) -> tuple[dict, list[str]]:
    """A parsed annotation file after the table above, and what was found wrong with it, by name. Raises ValueError."""
    coco = _completed(coco)
    check_entries(coco, path, FIELDS)
    problems: list[str] = []
    for place, image in enumerate(coco["images"]):
        file = image["file_name"]
        if not isinstance(file, str) or not file.strip() or "\0" in file:
            raise ValueError(f"{path}: images[{place}] has the file_name {file!r}; expected the name of a picture")
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(key, [])
            if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
                raise ValueError(f"{path}: images[{place}] has {key} {ids!r:.80}; expected a list of category ids")
    images = [_sized(entry) | {"id": _whole(entry["id"], "image", path, problems)} for entry in coco["images"]]
    twice = _repeated("/".join(name_parts(image["file_name"])) for image in images)
    problems += [f"two images are the file {name!r}: it counts twice; list it once" for name in twice]
    categories = [
        entry | {"id": _whole(entry["id"], "category", path, problems), "name": _name(entry, path, problems)}
        for entry in coco["categories"]
    ]
    for what, entries in (("images", images), ("categories", categories)):
        twice = _repeated(entry["id"] for entry in entries)
        if twice:
            raise ValueError(f"{path}: two {what} with the id {twice[0]}; give each its own")
    problems += [f"two categories are named {name!r}" for name in _repeated(c["name"] for c in categories)]
    known = {"image_id": {image["id"] for image in images}, "category_id": {c["id"] for c in categories}}
    annotations = []
    for place, entry in enumerate(coco["annotations"]):
        entry = dict(entry)
        for key, ids in known.items():
            entry[key] = _whole(entry[key], key.removesuffix("_id"), path, problems)
            if entry[key] not in ids:
                raise ValueError(f"{path}: an annotation has {key} {entry[key]!r}, which is not listed")
        entry["bbox"] = [_number(v) for v in entry["bbox"]] if isinstance(entry["bbox"], (list, tuple)) else None
        if entry["bbox"] is None or len(entry["bbox"]) != 4 or None in entry["bbox"]:
            raise ValueError(f"{path}: bbox must be [x, y, width, height], got {coco['annotations'][place]['bbox']!r}")
        for key in ("area", "iscrowd", "id"):
            if entry.get(key, 0) is None:
                del entry[key]
        for key in {"area", "iscrowd"} & entry.keys():
            if (number := _number(entry[key])) is None:
                raise ValueError(f"{path}: annotations[{place}] has {key} {entry[key]!r:.80}; expected a number")
            entry[key] = number
        if not isinstance(entry.get("id", 0), str):
            entry |= {"id": _whole(entry["id"], f"annotations[{place}]'s", path, problems)} if "id" in entry else {}
        if not all(map(math.isfinite, entry["bbox"])):
            problems.append(f"annotations[{place}] of image {entry['image_id']}: bbox {entry['bbox']} is left out")
            continue
        annotations.append(entry)
    repeated = _repeated(entry["id"] for entry in annotations if "id" in entry)
    problems += [f"two annotations have the id {i}" for i in repeated]
    sizes = {image["id"]: (image.get("width"), image.get("height")) for image in images}
    problems += doubtful_boxes((entry["bbox"], *sizes[entry["image_id"]]) for entry in annotations)
    return coco | {"images": images, "categories": categories, "annotations": annotations}, problems


def doubtful_boxes(boxes: Iterable[tuple[Sequence[float], float | None, float | None]]) -> list[str]:
    """What a set's (bbox [x, y, width, height], picture's width, its height) look like, if not like COCO's."""
    known = [(*box, width, height) for box, width, height in boxes if width and height]
    x, y, w, h, width, height = np.array(known, dtype=float).reshape(-1, 6).T
    if not known or min(w.min(), h.min()) <= 0:
        return []
    if max(x.max(), y.max(), w.max(), h.max()) <= 1 < min(width.min(), height.min()) / 4:
        return [
            f"all {len(known)} boxes lie in 0..1 and look like shares of the picture; COCO's are pixels: "
            "multiply x and width by the picture's width, y and height by its height"
        ]
    out = (x + w > width + 2) | (y + h > height + 2)
    if out.any() and ((w > x) & (h > y) & (w <= width) & (h <= height)).all():
        return [
            f"all {len(known)} boxes look like corners [x1, y1, x2, y2]; COCO's are [x, y, width, height], as which "
            f"{out.sum()} leave their picture: subtract x1 from x2 and y1 from y2"
        ]
    return []


def _completed(coco: Any) -> Any:
    """The file_name of images that have a coco_url alone, the bbox of annotations that have polygons alone."""
    if not isinstance(coco, dict):
        return coco
    lists = {}
    for kind, complete in (("images", _named), ("annotations", _boxed)):
        if isinstance(coco.get(kind), list):
            lists[kind] = [complete(entry) if isinstance(entry, dict) else entry for entry in coco[kind]]
    return coco | lists


def _named(image: dict) -> dict:
    url = image.get("coco_url")
    return image | {"file_name": url} if image.get("file_name") is None and isinstance(url, str) else image


def _boxed(annotation: dict) -> dict:
    if annotation.get("bbox"):
        return annotation
    try:
        points = np.concatenate([np.asarray(p, dtype=float).reshape(-1, 2) for p in annotation["segmentation"]])
        (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    except (KeyError, TypeError, ValueError, OverflowError):  # no polygons: the bbox is missed, and said to be
        return annotation
    return annotation | {"bbox": [x1, y1, x2 - x1, y2 - y1]}


def _sized(image: dict) -> dict:
    """width and height as whole numbers; without them where they are none."""
    image = dict(image)
    for key in ("width", "height"):
        try:
            image[key] = int(float(image[key]))
        except (KeyError, TypeError, ValueError, OverflowError):
            image.pop(key, None)
    return image


def check_entries(coco: Any, path: Path, fields: Mapping[str, tuple[str, ...]]) -> None:
    """{list: fields of each entry} of a parsed file. Raises ValueError for what is missing."""
    _require(coco, tuple(fields), "the file", path)
    for kind, needed in fields.items():
        if not isinstance(coco[kind], list):
            raise ValueError(f"{path} is not in COCO format: {kind!r} is no list")
        for place, entry in enumerate(coco[kind]):
            _require(entry, needed, f"{kind}[{place}]", path)


def _require(entry: object, keys: tuple[str, ...], where: str, path: Path) -> None:
    missing = [key for key in keys if key not in entry] if isinstance(entry, dict) else list(keys)
    if missing:
        raise ValueError(f"{path} is not in COCO format: {where} lacks {', '.join(map(repr, missing))}")


def _whole(value: Any, what: str, path: Path, problems: list[str]) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value):
        text = f"{what} ids are written as text"
        if text not in problems:
            problems.append(text)
        return int(value)
    raise ValueError(f"{path}: expected a whole number as {what} id, got {value!r}")


def _name(category: dict, path: Path, problems: list[str]) -> str:
    name = category["name"]
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{path}: category {category['id']} has no name, got {name!r}; a text prompt needs one")
    if name != name.strip():
        problems.append(f"the name {name!r} has spaces around it")
    return name.strip()


def _number(value: Any) -> int | float | None:
    """A number, or what one that is written as text means; None for anything else."""
    try:
        return value if isinstance(value, (int, float)) else float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _repeated(values: Any) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]
