"""A real photograph that is on every machine: scikit-image's `data.coins()`, 24 ancient coins from Pompeii (Brooklyn
Museum, no known copyright restrictions), with boxes found by edges and a watershed. One picture and one category: a
demonstration, hardly a benchmark."""

import json
from pathlib import Path

import numpy as np
import scipy.ndimage
import skimage.data
from filelock import FileLock
from PIL import Image
from skimage.filters import sobel
from skimage.measure import label, regionprops
from skimage.segmentation import watershed

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.paths import write_text

# surely background below, surely a coin above (grey levels); pixels of a coin
BACKGROUND, METAL, SMALLEST = 30, 150, 300


def coins(folder: Path) -> CocoDataset:
    """The set in COCO format, written to `folder` (annotations.json, images/coins.png) at the first call."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # another process may be writing it
        _write_once(folder)
    return CocoDataset(folder / "annotations.json", folder / "images")


def _write_once(folder: Path) -> None:
    if not (folder / "annotations.json").is_file():
        picture = skimage.data.coins()  # uint8 [303, 384]
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).convert("RGB").save(folder / "images" / "coins.png")
        height, width = picture.shape
        boxes = [[x, y, right - x, bottom - y] for y, x, bottom, right in coin_regions(picture)]
        content = {
            "images": [{"id": 1, "file_name": "coins.png", "width": width, "height": height}],
            "categories": [{"id": 1, "name": "coin"}],
            "annotations": [
                {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                for i, box in enumerate(boxes, 1)
            ],
        }
        write_text(folder / "annotations.json", json.dumps(content))


def coin_regions(picture: np.ndarray) -> list[tuple[int, int, int, int]]:
    """The coins of uint8 [H, W] as (top, left, bottom, right) pixels, right and bottom exclusive."""
    seeds = np.where(picture < BACKGROUND, 1, np.where(picture > METAL, 2, 0))
    solid = scipy.ndimage.binary_fill_holes(watershed(sobel(picture), seeds) == 2)
    return [tuple(map(int, region.bbox)) for region in regionprops(label(solid)) if region.area >= SMALLEST]
