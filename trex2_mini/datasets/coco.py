"""Sets in the genuine COCO format, and reading pictures whatever they are.

A set is one annotation file and a folder of pictures. `open_dataset` knows the sets by name: the generated emoji sets
(made on first use), COCO 2017 in its official layout, or any folder that holds annotations.json and images/.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from trex2_mini.datasets.check import cleaned
from trex2_mini.paths import read_json


@dataclass
class Sample:
    """A picture and its objects."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    boxes: np.ndarray  # float32 [N, 4], xyxy pixels, right and bottom exclusive
    labels: np.ndarray  # int64 [N], index into the set's `names`
    image_id: int
    areas: np.ndarray | None = None  # float32 [N], pixels of each object (its visible part), where known
    vocabulary: np.ndarray | None = None  # int64, sorted: the labels that were looked for in the picture; None: all


def load_image(source: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """Read a picture as uint8 [H, W, 3], RGB.

    EXIF rotation is applied, transparency is laid over white, 16-bit values are scaled to 8 bit.

    Args:
        source: a path, a PIL picture, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, uint16, bool, or
            floats in 0..1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as a picture.
    """
    if isinstance(source, np.ndarray):
        return _over_white(_eight_bit(source))
    if not isinstance(source, (str, Path, Image.Image)):
        raise ValueError(f"expected a path, a PIL picture or a numpy array [H, W, 3], got {type(source).__name__}")
    name = "the PIL picture"
    try:
        if isinstance(source, Image.Image):
            array = _pixels(source)
        else:
            name = path = Path(os.path.expanduser(source))  # ~nobody stays as it is
            if not path.is_file():
                reason = "is a folder, not a picture" if path.is_dir() else "does not exist"
                raise FileNotFoundError(f"the picture {path} {reason}; check the path (relative to {Path.cwd()})")
            with Image.open(path) as picture:
                array = _pixels(picture)
    except FileNotFoundError:
        raise
    except Exception as error:  # of a broken file Pillow raises many kinds
        raise ValueError(
            f"{name} is not a readable picture (corrupt, cut short or of an unknown format): {error}"
        ) from error
    return _over_white(_eight_bit(array))


def _pixels(picture: Image.Image) -> np.ndarray:
    """A PIL picture, upright, as [H, W] uint16 or float, or [H, W, 3 | 4] uint8."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit greyscale; Pillow may hand it out as 32-bit
        return np.clip(np.asarray(picture), 0, 65535).astype(np.uint16)
    if picture.mode == "F":
        return np.asarray(picture)
    if picture.mode == "La":
        picture = picture.convert("LA")
    transparent = picture.has_transparency_data or picture.mode == "RGBa"
    return np.array(picture.convert("RGBA" if transparent else "RGB"))


def _eight_bit(array: np.ndarray) -> np.ndarray:
    """An array picture of any supported kind as uint8 [H, W, C]."""
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"expected an array [H, W], [H, W, 3] or [H, W, 4], got shape {array.shape}; "
            "move channels last with np.moveaxis(array, 0, -1) if they come first, and pass one picture at a time"
        )
    if array.size == 0:
        raise ValueError(f"the picture is empty: shape {array.shape}")
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return np.round(array / 257.0).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError("the picture holds NaN or infinite values")
        low, high = float(array.min()), float(array.max())
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(
                f"a float picture must lie in 0..1, this one lies in {low:g}..{high:g}; divide by 255 or cast to uint8"
            )
        return np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    raise ValueError(
        f"expected uint8, uint16, bool or float in 0..1, got {array.dtype}; cast it with array.astype(np.uint8)"
    )


def _over_white(array: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 1 | 3 | 4] as RGB, transparency over white."""
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    if array.shape[2] == 3:
        return np.ascontiguousarray(array)
    alpha = array[..., 3:].astype(np.float32) / 255
    return np.round(array[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


class CocoDataset:
    """A set in COCO format. Labels are places in `names`, which follow the categories' ids upwards.

    Args:
        annotations: the JSON file.
        images: the folder that the pictures' `file_name` is relative to.
        content: the annotations, if they do not come from the file (which then only gives the set its name).

    Raises:
        ValueError: the file is no COCO annotation file, or names a category or picture that it does not list. What is only
            doubtful is put into `problems` and warned of; check.py has the table.
        FileNotFoundError: the file or the folder does not exist.
    """

    def __init__(self, annotations: Path | str, images: Path | str, content: dict | None = None) -> None:
        self.path, self.images = Path(annotations), Path(images)
        if content is None:
            if not self.path.is_file():
                raise FileNotFoundError(f"the annotation file {self.path} does not exist")
            content = read_json(self.path)
        if not self.images.is_dir():
            raise FileNotFoundError(f"the picture folder {self.images} does not exist")
        self.coco, self.problems = cleaned(content, self.path)
        if self.problems:
            more = f" and {len(self.problems) - 3} more" if len(self.problems) > 3 else ""
            warnings.warn(
                f"{self.path}: {'; '.join(self.problems[:3])}{more} (python -m trex2_mini data check)", stacklevel=2
            )
        self.categories: list[dict] = sorted(self.coco["categories"], key=lambda category: category["id"])
        self.category_ids: list[int] = [category["id"] for category in self.categories]
        self.names: list[str] = self._prompts([category["name"] for category in self.categories])
        self._label = {category_id: label for label, category_id in enumerate(self.category_ids)}
        self._annotations = self.annotations_by_image()

    def _prompts(self, names: list[str]) -> list[str]:
        """The names, but for those that prompts.json beside the annotation file gives a better phrase: {"name": "phrase"}."""
        path = self.path.parent / "prompts.json"
        if not path.is_file():
            return names
        phrases = read_json(path)
        bad = not isinstance(phrases, dict) or not all(isinstance(p, str) and p.strip() for p in phrases.values())
        unknown = [] if bad else sorted(set(phrases) - set(names))
        if bad or unknown:
            raise ValueError(f"{path}: expected {{category name: phrase}}; not names of this set: {unknown[:5]}")
        return [phrases.get(name, name) for name in names]

    def annotations_by_image(self) -> dict[int, list[dict]]:
        """{image id: its annotations}, every image of the set."""
        grouped: dict[int, list[dict]] = {image["id"]: [] for image in self.coco["images"]}
        for annotation in self.coco["annotations"]:
            grouped[annotation["image_id"]].append(annotation)
        return grouped

    def __len__(self) -> int:
        return len(self.coco["images"])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Picture `index` and its objects: boxes cut at the border, without crowds and boxes of no width or height."""
        entry = self.coco["images"][index]
        try:
            image = load_image(self.images / entry["file_name"])
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"picture {entry['id']} of {self.path}: {error}") from error
        height, width = image.shape[:2]
        kept = [annotation for annotation in self._annotations[entry["id"]] if not annotation.get("iscrowd", 0)]
        boxes = np.array([annotation["bbox"] for annotation in kept], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
        good = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        labels = np.array([self._label[annotation["category_id"]] for annotation in kept], dtype=np.int64)
        sides = (annotation["bbox"][2] * annotation["bbox"][3] for annotation in kept)
        areas = np.array([annotation.get("area", side) for annotation, side in zip(kept, sides)], dtype=np.float32)
        return Sample(image, boxes[good], labels[good], entry["id"], areas[good], self._vocabulary(entry, labels))

    def _vocabulary(self, image: dict, labels: np.ndarray) -> np.ndarray | None:
        """On a federated set (LVIS): the labels that were looked for everywhere in the picture, or found absent from it."""
        if "neg_category_ids" not in image:
            return None
        absent = [self._label[c] for c in image["neg_category_ids"] if c in self._label]
        partly = [self._label[c] for c in image.get("not_exhaustive_category_ids", []) if c in self._label]
        return np.setdiff1d(np.union1d(labels, absent), partly).astype(np.int64)


def open_dataset(name: str) -> CocoDataset:
    """Open a set by its name; formats.py knows them all.

    Args:
        name: "emoji-val" or another set of the embedded family, or "coins" (made on first use); "photo-wild-aquarium/val" or another of
            `PHOTO_WILD`; "coco-val2017", "coco-train2017",
            "lvis-val", "lvis-minival", "lvis-train" (official files under <data root>); or a folder: annotations.json and
            images/, a Roboflow export (_annotations.coco.json), or Pascal VOC (one XML a picture).

    Raises:
        FileNotFoundError: there is no such set; the message says where it was looked for.
    """
    from trex2_mini.datasets.formats import open_set

    return open_set(name)
