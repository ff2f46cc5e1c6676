"""How good pseudo-labels are, where the truth is known: precision, recall, yield."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import numpy as np
from pycocotools import mask as coco_mask


def pseudo_label_quality(
    made: dict, truth: dict, names: bool = True, iou: float = 0.5, image_ids: Collection[int] | None = None
) -> dict:
    """Precision and recall of boxes.

    Args:
        made, truth: COCO dictionaries with the same image ids; made may lack images (they are then without boxes).
            Where annotations have a "score", the better ones choose first.
        names: a box is right only if its category has the same name as the object; else any object will do. An object
        is found at most once.
        iou: least overlap.
        image_ids: judge these images only; default all of the truth.

    Returns:
        precision, recall (in 0..1; None where there is nothing to divide by), right, boxes, objects, images.

    Raises ValueError for images of `made` that the truth does not have.
    """
    known = {image["id"] for image in truth["images"]}
    strangers = {image["id"] for image in made["images"]} - known
    if strangers:
        raise ValueError(f"images {sorted(strangers)[:5]} are not in the truth; expected pseudo-labels of the same set")
    chosen = known if image_ids is None else set(image_ids)
    boxes, objects = (_by_image(coco, chosen) for coco in (made, truth))
    right = sum(_hits(boxes[image], objects[image], names, iou) for image in boxes)
    total, to_find = (sum(map(len, own.values())) for own in (boxes, objects))
    return {
        "precision": right / total if total else None,
        "recall": right / to_find if to_find else None,
        "right": right,
        "boxes": total,
        "objects": to_find,
        "images": len(boxes),
    }


def _by_image(coco: dict, chosen: set[int]) -> dict[int, list[tuple[str, list[float], float]]]:
    """image id -> [(name, bbox, score)], best first."""
    name_of = {category["id"]: category["name"] for category in coco["categories"]}
    found = defaultdict(list)
    for a in coco["annotations"]:
        if a["image_id"] in chosen:
            found[a["image_id"]].append((name_of[a["category_id"]], a["bbox"], a.get("score", 0.0)))
    return defaultdict(list, {image: sorted(own, key=lambda entry: -entry[2]) for image, own in found.items()})


def _hits(boxes: list[tuple], objects: list[tuple], names: bool, iou: float) -> int:
    """How many of the boxes find an object of their own."""
    if not boxes or not objects:
        return 0
    overlap = coco_mask.iou(
        np.array([b for _, b, _ in boxes], float), np.array([o for _, o, _ in objects], float), [0] * len(objects)
    )
    if names:
        overlap *= np.array([[box == thing for thing, _, _ in objects] for box, _, _ in boxes])
    hits = 0
    for row in range(len(boxes)):
        best = int(overlap[row].argmax())
        if overlap[row, best] >= iou:
            overlap[:, best] = 0
            hits += 1
    return hits
