"""Counting in tiles: small and many objects are looked at from nearer by (ours; the paper counts on the whole picture).

A model has a fixed number of queries, and was trained on scenes of a few objects of a certain size; a picture of 300
small ones is neither. A tile is `sides` exemplar sides wide and high, so it holds a few dozen objects at most, of about
that size, whatever the picture is. The prompt is the mean of the exemplars' V, each embedded in a tile of the same size
round it. Every point of the picture belongs to one tile, and that one answers for the objects whose centre lies there;
tiles overlap, so that it sees them whole.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torchvision.ops import batched_nms

from trex2_mini.boxes import check_boxes, check_points
from trex2_mini.detector import Detections, Detector, top_detections
from trex2_mini.prompt_bank import PromptBank, together

OVERLAP = 1.5  # of neighbouring tiles, in sides of the longest exemplar
# IoU above which two boxes are one object; on emoji-count's val split better than the detector's own 0.7
DUPLICATE = 0.5
BATCH = 16  # tiles encoded together


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles along one side of a picture begin: evenly spread, the last ends with the picture, neighbours
    share `overlap` px or more."""
    if tile >= length:
        return [0]
    number = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (number - 1)) for i in range(number)]


def tile_grid(image: np.ndarray, exemplars: np.ndarray, sides: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """The tiles of `image` [H, W, 3] and what each answers for, both (x1, y1, x2, y2) in pixels; `exemplars` [K, 4]
    xyxy.

    The answering parts meet midway in the overlaps and cover the picture once; the outermost reach to infinity.
    """
    extents = (exemplars[:, 2:] - exemplars[:, :2]).clip(1)
    wanted = round(sides * float(np.sqrt(extents.prod(1)).mean()))
    return _grid(image.shape[:2], (wanted, wanted), min(round(OVERLAP * float(extents.max())), wanted // 2))


def _grid(size: tuple[int, int], wanted: tuple[int, int], overlap: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`tile_grid` of a picture (height, width) and tiles of (height, width), which is less in a smaller picture."""
    spans = []
    for length, side in zip(size, wanted):
        tile = min(side, length)
        starts = tile_starts(length, tile, overlap)
        borders = [-math.inf, *((a + tile + b) / 2 for a, b in itertools.pairwise(starts)), math.inf]
        spans.append([(start, start + tile, *own) for start, own in zip(starts, itertools.pairwise(borders))])
    return [
        (np.array([x1, y1, x2, y2]), np.array([left, top, right, bottom]))
        for y1, y2, top, bottom in spans[0]
        for x1, x2, left, right in spans[1]
    ]


def _around(image: np.ndarray, box: np.ndarray, extent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of a picture, `extent` (width, height) in size, around a box [4] xyxy; and its corner (x, y)."""
    x, y = ((box[:2] + box[2:] - extent) / 2).round().clip(0, image.shape[1::-1] - extent).astype(int)
    return image[y : y + extent[1], x : x + extent[0]], np.array([x, y])


def detect_in_parts(
    detector: Detector,
    image: np.ndarray,
    parts: int,
    boxes: Mapping[str, Sequence] | None = None,
    points: Mapping[str, Sequence] | None = None,
    prompts: PromptBank | None = None,
    max_detections: int = 300,
    class_agnostic_nms: bool = False,
    **options: Any,
) -> Detections:
    """`Detector.detect` on parts x parts overlapping parts of uint8 [H, W, 3], for many or small objects.

    Neighbours share a fifth of a part, and boxes that overlap by more than DUPLICATE are one object. Boxes and points
    are embedded in a part around them, together with `prompts`; negative boxes and points cannot be given. `queries`
    of the result are those of the part that used most. Raises ValueError.
    """
    if parts < 1 or parts > min(image.shape[:2]) // 8:
        raise ValueError(f"expected 1 to {min(image.shape[:2]) // 8} parts a side of this picture, got {parts}")
    height, width = image.shape[:2]
    if boxes:
        boxes = {name: check_boxes(own, height, width, f"boxes[{name!r}]") for name, own in boxes.items()}
    if points:
        points = {name: check_points(own, height, width, f"points[{name!r}]") for name, own in points.items()}
    tile = tuple(math.ceil(length / (1 + 0.8 * (parts - 1))) for length in (height, width))
    grid = _grid((height, width), tile, min(tile) // 5)
    extent = grid[0][0][2:] - grid[0][0][:2]
    shown: dict[str, list] = {}
    for kind, given in (("boxes", boxes), ("points", points)):
        for name, own in (given or {}).items():
            for place in np.asarray(own):
                view, corner = _around(image, np.resize(place, 4), extent)
                box = [(place - np.tile(corner, 2)).clip(0, [*extent, *extent])] if kind == "boxes" else None
                shown.setdefault(name, []).append((view, box, None if box else [place - corner]))
    if shown:
        prompts = together([detector.embed(shown), *([prompts] if prompts else [])])
    found = []
    options |= {"prompts": prompts, "max_detections": max_detections, "class_agnostic_nms": class_agnostic_nms}
    for (x1, y1, x2, y2), own in grid:
        found.append(_answered(detector.detect(image[y1:y2, x1:x2], **options), x1, y1, own))
    whole = _joined(found, class_agnostic_nms)[:max_detections]
    return replace(whole, queries=max((own.queries for own in found if own.queries), default=None))


@torch.inference_mode()
def detect_in_tiles(
    detector: Detector, image: np.ndarray, exemplars: np.ndarray, name: str, sides: float
) -> Detections:
    """All answers (score 0 and up, highest first) to the exemplars [K, 4] xyxy on uint8 [H, W, 3], tile by tile.

    Raises ValueError where `sides` is not above 1: a tile must hold an exemplar.
    """
    if not (math.isfinite(sides) and sides > 1):
        raise ValueError(f"tiles must be more than 1 exemplar side wide, got {sides}")
    grid = tile_grid(image, exemplars, sides)
    extent = grid[0][0][2:] - grid[0][0][:2]
    shown = []
    for box in exemplars:
        view, corner = _around(image, box, extent)
        shown.append((view, [(box - np.tile(corner, 2)).clip(0, [*extent, *extent]).tolist()]))
    prompts = detector.embed({name: shown}).embeddings.to(detector.device)

    answers = []
    for start in range(0, len(grid), BATCH):
        part = grid[start : start + BATCH]
        features = detector.encode_batch([image[y1:y2, x1:x2] for (x1, y1, x2, y2), _ in part])
        output = detector.model.decode(features, prompts)
        sizes, most = [(extent[1], extent[0])] * len(part), detector.config.model.num_queries
        for ((x1, y1, _, _), own), found in zip(part, top_detections(output.logits, output.boxes, sizes, [name], most)):
            answers.append(_answered(found, x1, y1, own))
    return _joined(answers)


def _answered(found: Detections, x: int, y: int, own: np.ndarray) -> Detections:
    """What was found in the part at (x, y), in pixels of the picture; of centres that lie in `own` alone."""
    boxes = found.boxes + np.array([x, y, x, y], np.float32)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return replace(found, boxes=boxes)[((centres >= own[:2]) & (centres < own[2:])).all(1)]


def _joined(parts: Sequence[Detections], class_agnostic: bool = False) -> Detections:
    """The detections of parts without those that show an object again, by falling score."""
    boxes, scores, labels = (np.concatenate([getattr(p, k) for p in parts]) for k in ("boxes", "scores", "labels"))
    groups = np.zeros_like(labels) if class_agnostic else labels
    keep = batched_nms(*map(torch.from_numpy, (boxes, scores, groups)), DUPLICATE).numpy()
    return Detections(boxes[keep], scores[keep], labels[keep], parts[0].names)
