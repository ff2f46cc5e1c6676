"""Copy-paste (Ghiasi et al., CVPR 2021, simplified): an object cut out by its mask is set into a picture, several
times.

T-Rex2 does not use it; here it teaches, on sets too small for it, what a visual prompt asks for: other objects that
look the same. Sets without masks (boxes alone) are left as they are.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from trex2_mini.datasets.sample import Sample

MOST, LARGEST, COVERED = (
    4,
    0.4,
    0.6,
)  # copies; share of the picture's shorter side; share of an object's box that may be hidden


def cut_out(image: np.ndarray, annotation: dict) -> Image.Image | None:
    """The object of a COCO annotation as RGBA, cut at its box; None where it has no polygons or is under 12 pixels wide
    or high.

    image: uint8 [H, W, 3]. Raises ValueError: the polygons are none.
    """
    polygons = annotation.get("segmentation")
    if not isinstance(polygons, list) or not polygons or annotation.get("iscrowd", 0):
        return None
    try:
        mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *image.shape[:2]))).astype(bool)
    except Exception as error:  # pycocotools raises bare exceptions
        raise ValueError(
            f"annotation {annotation.get('id')}: its segmentation is no list of polygons: {error}"
        ) from error
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if min(len(rows), len(columns)) < 12:
        return None
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Image.fromarray(np.dstack([image, np.where(mask, 255, 0).astype(np.uint8)])[window])


def paste(sample: Sample, objects: list[tuple[Image.Image, int]], rng: np.random.Generator) -> Sample:
    """`sample` with one to `MOST` copies of one of `objects` ([(RGBA, label)]), mirrored and scaled by 0.6 to 1.5, at
    random places.

    Objects whose box is hidden by more than `COVERED` are no longer objects of the picture. A copy is at most `LARGEST`
    of its shorter side.
    """
    cut, label = objects[rng.integers(len(objects))]
    picture = Image.fromarray(sample.image)
    boxes, labels = [*sample.boxes], [*sample.labels]
    for _ in range(rng.integers(1, MOST + 1)):
        scale = min(rng.uniform(0.6, 1.5), LARGEST * min(picture.size) / max(cut.size))
        copy = cut.resize([max(1, round(side * scale)) for side in cut.size], Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            copy = copy.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x, y = (int(rng.integers(outer - inner + 1)) for outer, inner in zip(picture.size, copy.size))
        picture.paste(copy, (x, y), copy)
        solid = np.zeros((picture.height, picture.width), bool)
        solid[y : y + copy.height, x : x + copy.width] = np.asarray(copy)[:, :, 3] > 127
        seen = [_hidden(solid, box) <= COVERED for box in boxes]
        boxes = [box for box, stays in zip(boxes, seen) if stays] + [(x, y, x + copy.width, y + copy.height)]
        labels = [old for old, stays in zip(labels, seen) if stays] + [label]
    return dataclasses.replace(
        sample,
        image=np.array(picture),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        areas=None,
    )


def _hidden(solid: np.ndarray, box: np.ndarray) -> float:
    """The share of a box (xyxy pixels) that lies under the copy `solid` [H, W]."""
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    inside = solid[y1:y2, x1:x2]
    return float(inside.mean()) if inside.size else 0.0
