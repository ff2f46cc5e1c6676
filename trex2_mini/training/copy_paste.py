"""Copy-paste (Ghiasi et al., CVPR 2021, simplified): an object cut out by its mask is set into a picture, several
times.

T-Rex2 does not use it; here it teaches, on sets too small for it, what a visual prompt asks for: other objects that
look the same. Sets without masks (boxes alone) are left as they are.
"""

import dataclasses

import numpy as np
from PIL import Image

from trex2_mini.datasets.sample import Sample

# copies; share of the picture's shorter side; share of an object's box that may be hidden
MOST, LARGEST, COVERED = 4, 0.4, 0.6


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
    placed = {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "labels": np.array(labels, np.int64)}
    return dataclasses.replace(sample, image=np.array(picture), areas=None, **placed)


def _hidden(solid: np.ndarray, box: np.ndarray) -> float:
    """The share of a box (xyxy pixels) that lies under the copy `solid` [H, W]."""
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    inside = solid[y1:y2, x1:x2]
    return float(inside.mean()) if inside.size else 0.0
