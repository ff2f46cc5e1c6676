"""Painting objects back to front while knowing which pixels of each stay visible.

An id map names the object that owns each pixel (alpha > 0.5). So a box is the tight box of the object's *visible*
pixels, and an object is only painted where it leaves enough of every earlier one.
"""

import numpy as np
from PIL import Image, ImageFilter


def tight_box(mask: np.ndarray, left: int = 0, top: int = 0) -> tuple[int, int, int, int] | None:
    """Tight xyxy box, right and bottom exclusive, of a mask whose corner lies at (left, top); None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


class Canvas:
    """A scene being painted.

    Args:
        pixels: float32 [H, W, 3], 0..255, the background; painted on in place.
        min_visible: share of an object's pixels that must stay visible, counting those cut off by the border as hidden.
        min_box: least width and height of a visible box, in pixels.
    """

    def __init__(self, pixels: np.ndarray, min_visible: float, min_box: int) -> None:
        self.pixels, self.min_visible, self.min_box = pixels, min_visible, min_box
        self.owner = np.full(pixels.shape[:2], -1, dtype=np.int16)  # index of the visible object, -1: background
        self.boxes: list[tuple[int, int, int, int]] = []  # of the visible pixels, xyxy
        self.areas: list[int] = []  # pixels of each object, hidden ones too
        self.visible: list[int] = []  # pixels of each object that are seen

    def _too_small(self, box: tuple[int, int, int, int] | None) -> bool:
        return box is None or min(box[2] - box[0], box[3] - box[1]) < self.min_box

    def place(self, patch: np.ndarray, x: int, y: int, shadow: float = 0.0, overlap: bool = True) -> bool:
        """Paint a patch with its corner at (x, y), unless that would hide too much of it or of an earlier object.

        Args:
            patch: float32 [h, w, 4], colours premultiplied with alpha, 0..255.
            shadow: darkness 0..1 of a soft shadow beside it; 0: none.
            overlap: whether it may cover earlier objects at all (up to 2 % of it always may).

        Returns:
            Whether it was painted; if not, nothing has changed.
        """
        height, width = self.owner.shape
        whole = int(np.count_nonzero(patch[..., 3] > 127.5))
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + patch.shape[1], width), min(y + patch.shape[0], height)
        if x1 <= x0 or y1 <= y0:
            return False
        patch = patch[y0 - y : y1 - y, x0 - x : x1 - x]
        mask = patch[..., 3] > 127.5
        inside, box = int(np.count_nonzero(mask)), tight_box(mask, x0, y0)
        if inside < self.min_visible * whole or self._too_small(box):
            return False
        region = self.owner[y0:y1, x0:x1]
        covered = region[mask]
        losses = np.bincount(covered[covered >= 0], minlength=len(self.boxes)).tolist()
        if not overlap and sum(losses) > 0.02 * inside:
            return False
        hit = [i for i, loss in enumerate(losses) if loss]
        if any(self.visible[i] - losses[i] < self.min_visible * self.areas[i] for i in hit):
            return False
        before = region.copy()
        region[mask] = len(self.boxes)
        shrunk = {i: self._box_of(i) for i in hit}
        if any(self._too_small(rest) for rest in shrunk.values()):
            region[:] = before
            return False
        if shadow:
            self._shade(patch[..., 3], x0, y0, shadow)
        pixels = self.pixels[y0:y1, x0:x1]
        pixels *= 1 - patch[..., 3:] / 255
        pixels += patch[..., :3]
        for i, rest in shrunk.items():
            self.boxes[i] = rest
            self.visible[i] -= losses[i]
        self.boxes.append(box)
        self.areas.append(whole)
        self.visible.append(inside)
        return True

    def _box_of(self, i: int) -> tuple[int, int, int, int] | None:
        """Box of what is left of object i, searched within its present box."""
        x1, y1, x2, y2 = self.boxes[i]
        return tight_box(self.owner[y1:y2, x1:x2] == i, x1, y1)

    def _shade(self, alpha: np.ndarray, x0: int, y0: int, darkness: float) -> None:
        """Darken the pixels under a blurred copy of an object's alpha (0..255), shifted down and to the right."""
        reach = max(2, round(0.05 * max(alpha.shape)))
        padded = np.zeros((alpha.shape[0] + 2 * reach, alpha.shape[1] + 2 * reach), dtype=np.uint8)
        padded[reach:-reach, reach:-reach] = alpha
        soft = np.asarray(Image.fromarray(padded).filter(ImageFilter.BoxBlur(reach)), dtype=np.float32)
        dark = 1 - soft[..., None] * np.float32(darkness / 255)
        # the padded copy begins `reach` before the patch: laid down at the patch's corner it is shifted by that
        height, width = self.owner.shape
        dark = dark[: height - y0, : width - x0]
        self.pixels[y0 : y0 + dark.shape[0], x0 : x0 + dark.shape[1]] *= dark
