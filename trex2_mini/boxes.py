"""Boxes: formats and checks. Inside the model boxes are (cx, cy, w, h) in 0..1 of the image; outside xyxy pixels.

GIoU is torchvision's; `box_convert` too. Here is only what torchvision does not have.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

PIXEL = 0.99  # the smallest side of a box, with room for rounding


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """logit(x), with x kept inside [eps, 1 - eps]; any shape."""
    return torch.logit(x.clamp(eps, 1 - eps))


def xyxy_to_normalized(boxes: Tensor, height: int, width: int) -> Tensor:
    """[..., 4] xyxy pixels -> cxcywh in 0..1 of an image of `height` x `width`."""
    return box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])


def normalized_to_xyxy(boxes: Tensor, height: int, width: int) -> Tensor:
    """[..., 4] cxcywh in 0..1 -> xyxy pixels, clipped to the image."""
    scale = boxes.new_tensor([width, height, width, height])
    return (box_convert(boxes, "cxcywh", "xyxy") * scale).clamp(min=0).minimum(scale)


def check_boxes(boxes, height: int, width: int, what: str = "boxes") -> np.ndarray:
    """A user's boxes as float32 [K, 4] xyxy pixels, clipped to the image.

    Corners may come in any order (a box drawn from right to left). Raises ValueError for a wrong shape, NaN, boxes in
    0..1 instead of pixels, a box that lies outside the image and one of less than a pixel.
    """
    array = _numbers(boxes, 4, what)
    if (array[:, :2] != array[:, 2:]).any():  # else it is boxes of no size
        _not_fractions(array, height, width, what)
    array = np.concatenate([np.minimum(array[:, :2], array[:, 2:]), np.maximum(array[:, :2], array[:, 2:])], axis=1)
    inside = np.clip(array, 0, [width, height, width, height]).astype(np.float32)
    for index, (given, (x1, y1, x2, y2)) in enumerate(zip(array.tolist(), inside)):
        if given[2] <= 0 or given[3] <= 0 or given[0] >= width or given[1] >= height:
            raise ValueError(
                f"{what}[{index}] = {given} lies outside the image ({width} x {height} px); "
                "expected [x1, y1, x2, y2] in pixels of the original image"
            )
        if x2 - x1 < PIXEL or y2 - y1 < PIXEL:
            size = f"is {x2 - x1:.3g} px wide and {y2 - y1:.3g} px high" if x2 > x1 and y2 > y1 else "has no size"
            raise ValueError(
                f"{what}[{index}] = {given} {size} in the image; expected [x1, y1, x2, y2] in pixels, at least one "
                "pixel each way. If it is [x, y, width, height], add x and y to the last two. "
                "To prompt with a position alone, use points."
            )
    return inside


def check_points(points, height: int, width: int, what: str = "points") -> np.ndarray:
    """A user's points as float32 [K, 2] xy pixels. Raises ValueError for a wrong shape, NaN, points in 0..1 instead of
    pixels and points outside the image."""
    array = _numbers(points, 2, what)
    if (array % 1).any():
        _not_fractions(array, height, width, what)
    for index, (x, y) in enumerate(array):
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(
                f"{what}[{index}] = {array[index].tolist()} lies outside the image ({width} x {height} px); "
                "expected [x, y] in pixels of the original image"
            )
    return array.astype(np.float32)


def _not_fractions(array: np.ndarray, height: int, width: int, what: str) -> None:
    """Raises ValueError for numbers that all lie in 0..1, where the image is larger."""
    if (array >= 0).all() and (array <= 1).all() and max(height, width) > 1:
        meant = [round(v, 1) for v in (array[0] * np.resize([width, height], array.shape[1])).tolist()]
        raise ValueError(
            f"{what}: all numbers lie in 0..1, which looks like fractions of the image; expected pixels of the "
            f"original image ({width} x {height} px): multiply x by {width} and y by {height}, "
            f"{array[0].tolist()} becomes {meant}"
        )


def _numbers(values, columns: int, what: str) -> np.ndarray:
    form = "[x1, y1, x2, y2]" if columns == 4 else "[x, y]"
    try:
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what}: expected a list of {form} in pixels, got {values!r}") from None
    if array.ndim == 1 and array.size == columns:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != columns or not len(array):
        raise ValueError(f"{what}: expected at least one {form} in pixels, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: expected finite numbers, got {array.tolist()}")
    return array
