"""Sets of boxes with names: Objects365 v2, Open Images V7, CrowdHuman."""

import csv
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from trex2_mini.datasets.large.rows import Row, inside, json_lines, named, take
from trex2_mini.paths import read_json


@named
def objects365(annotations: Path) -> Iterator[Row]:
    """Objects365 v2: zhiyuan_objv2_train.json or _val.json, COCO's format.

    Pictures lie in patchN/NAME.jpg of the set's folder, as the archives unpack; the file says images/v1/patchN/NAME.jpg
    of some. The JSON is read whole: plan several times its size in memory.
    """
    images, entries, categories = take(
        read_json(annotations), ("images", "annotations", "categories"), str(annotations)
    )
    names = dict(take(category, ("id", "name"), f"{annotations}, categories") for category in categories)
    own: dict[int, list[tuple]] = {}
    for entry in entries:
        image, category, box = take(entry, ("image_id", "category_id", "bbox"), f"{annotations}, annotations")
        if category not in names:
            raise ValueError(f"{annotations}: an annotation has category_id {category!r}, which is not listed")
        own.setdefault(image, []).append((box, names[category], bool(entry.get("iscrowd"))))
    for image in images:
        number, file, width, height = take(image, ("id", "file_name", "width", "height"), f"{annotations}, images")
        boxes, called, crowd = zip(*own[number]) if number in own else ((), (), ())
        place = "/".join(inside(file, annotations).split("/")[-2:])
        yield Row(place, width, height, boxes, called, crowd)


@named
def open_images(boxes: Path, classes: Path, labels: Path | None = None, hierarchy: Path | None = None) -> Iterator[Row]:
    """Open Images V7: a CSV of boxes in shares of the picture, sorted by picture, as published.

    A picture's vocabulary is what is boxed there and what people verified to be absent (and what is narrower than
    that); all else is unknown. Broader and narrower names of a boxed object are ambiguous.

    Args:
        boxes: oidv6-train-annotations-bbox.csv or the like.
        classes: oidv7-class-descriptions-boxable.csv, rows of /m/ID and name.
        labels: train-annotations-human-imagelabels-boxable.csv; Confidence 0 means verified to be absent.
        hierarchy: bbox_labels_600_hierarchy.json.
    """
    with classes.open(encoding="utf-8", newline="") as file:
        names = {row[0]: row[1] for row in csv.reader(file) if len(row) == 2 and row[0] != "LabelName"}
    above = _ancestors(read_json(hierarchy)) if hierarchy else {}
    below: dict[str, set[str]] = {}
    for child, parents in above.items():
        for parent in parents:
            below.setdefault(parent, set()).add(child)
    absent: dict[str, list[str]] = {}
    if labels:
        for entry in _csv(labels, ("ImageID", "LabelName", "Confidence")):
            if float(entry["Confidence"]) == 0:
                absent.setdefault(entry["ImageID"], []).append(entry["LabelName"])
    columns = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
    done: set[str] = set()
    for image, group in groupby(_csv(boxes, columns), key=lambda entry: entry["ImageID"]):
        if image in done:
            raise ValueError(f"{boxes}: the boxes of {image} are not side by side; sort the file by ImageID")
        done.add(image)
        own = [entry for entry in group if entry["LabelName"] in names]
        held = {entry["LabelName"] for entry in own}
        over = set().union(*(above.get(label, ()) for label in held))
        under = set().union(*(below.get(label, ()) for label in held))
        missing = set(absent.get(image, ()))
        missing |= set().union(*(below.get(label, ()) for label in missing))
        yield Row(
            inside(f"{image}.jpg", boxes), 1, 1, [_corners(entry, boxes) for entry in own],
            [names[entry["LabelName"]] for entry in own], [entry["IsGroupOf"] == "1" for entry in own],
            sorted(names[label] for label in held | (missing - over) if label in names),
            sorted(names[label] for label in (over | under) - held if label in names),
        )  # fmt: skip


def _corners(entry: dict[str, str], path: Path) -> list[float]:
    try:
        x1, x2, y1, y2 = (float(entry[key]) for key in ("XMin", "XMax", "YMin", "YMax"))
    except ValueError:
        raise ValueError(f"{path}: a box of {entry['ImageID']} has no numbers as XMin, XMax, YMin, YMax") from None
    return [x1, y1, x2 - x1, y2 - y1]


def _csv(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = set(columns) - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: expected a header with {', '.join(columns)}; {sorted(missing)} are missing")
        yield from reader


def _ancestors(root: dict) -> dict[str, set[str]]:
    """{label: those above it} of the tree of "LabelName" and "Subcategory"; "Part" is another relation."""
    found: dict[str, set[str]] = {}
    waiting = [(child, frozenset()) for child in root.get("Subcategory", [])]  # the root stands for anything
    while waiting:
        node, over = waiting.pop()
        label = node["LabelName"]
        found.setdefault(label, set()).update(over)  # a label may hang at several places
        waiting += [(child, over | {label}) for child in node.get("Subcategory", [])]
    return found


@named
def crowdhuman(annotations: Path, box: str = "vbox", name: str = "person") -> Iterator[Row]:
    """CrowdHuman: annotation_train.odgt, one JSON a line; pictures are ID.jpg.

    box: "vbox" (what is visible of a person), "fbox" (the whole body, reaching out of the picture) or "hbox" (the
    head). Boxes of crowds, reflections and the like ("mask", or ignore = 1) are not judged.
    """
    if box not in ("vbox", "fbox", "hbox"):
        raise ValueError(f"box: expected vbox, fbox or hbox, got {box!r}")
    for entry in json_lines(annotations):
        picture, people = take(entry, ("ID", "gtboxes"), str(annotations))
        boxes, crowd = [], []
        for person in people:
            tag, whole = take(person, ("tag", "fbox"), f"{annotations}, {picture}")
            attributes = person.get("head_attr" if box == "hbox" else "extra", {})
            boxes.append(person.get(box, whole))
            crowd.append(tag != "person" or attributes.get("ignore", 0) == 1)
        yield Row(inside(f"{picture}.jpg", annotations), 0, 0, boxes, [name] * len(boxes), crowd, [name])
