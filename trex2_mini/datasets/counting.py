"""Counting sets in the formats they are published in: FSC147 (points, three exemplar boxes a picture) and FSCD-LVIS
(boxes).

A counting model is shown a picture and three boxes of what to count. FSC147's points mark every instance; FSCD-LVIS has
boxes instead.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trex2_mini.datasets.check import FIELDS, check_entries
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.pictures import Pictures
from trex2_mini.images import LeftOut, load_image
from trex2_mini.paths import read_json, read_text

SPLITS = ("train", "val", "test")
EXEMPLARS = 3


@dataclass
class CountingSample:
    """A picture, what to count on it, and how many there are."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    exemplars: np.ndarray  # float32 [3, 4] (or fewer, where the set has fewer), xyxy pixels
    count: int
    name: str  # of what is counted
    file_name: str
    points: np.ndarray | None = None  # float32 [count, 2], (x, y) pixels: FSC147
    boxes: np.ndarray | None = None  # float32 [count, 4], xyxy pixels: FSCD-LVIS, emoji-count


class CountingDataset:
    """A split of a counting set in a folder.

    FSC147: annotation_FSC147_384.json, Train_Test_Val_FSC_147.json, ImageClasses_FSC147.txt and images_384_VarV2/;
    boxes where a COCO file annotations.json lies beside them (emoji-count). FSCD-LVIS: instances_<split>.json (COCO
    format), count_<split>.json (three exemplar boxes a picture) and images/. Where the count file names a picture's
    category_id (emoji-count-lvis, whose instances are in annotations.json), only boxes of that category count.

    Raises:
        FileNotFoundError: a file of the format is not there.
        ValueError: an unknown split, or a file that is not what it should be.
    """

    def __init__(self, folder: str | Path, split: str = "test"):
        self.folder = Path(folder).expanduser()
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        points = self.folder / "annotation_FSC147_384.json"
        self._entries = _fsc147(self.folder, split) if points.is_file() else _fscd_lvis(self.folder, split)
        self.left_out = LeftOut(len(self))
        self.annotations = points if points.is_file() else self.folder / f"count_{split}.json"

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[CountingSample]:
        return (self[index] for index in range(len(self)))

    def read(self, index: int) -> CountingSample | None:
        """Like `CocoDataset.read`: None where the picture cannot be read."""
        return self.left_out.read(self._entries[index][1]["file_name"], self.__getitem__, index)

    def __getitem__(self, index: int) -> CountingSample:
        folder, entry = self._entries[index]
        return CountingSample(load_image(Pictures(folder, ()).find(entry["file_name"])), **entry)


def _read(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected FSC147 (annotation_FSC147_384.json, ...) or FSCD-LVIS"
            " (instances_<split>.json, ...)"
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object {{...}}, got {type(content).__name__}")
    return content


def _fsc147(folder: Path, split: str) -> list[tuple[Path, dict]]:
    annotations = _read(folder / "annotation_FSC147_384.json")
    files = _read(folder / "Train_Test_Val_FSC_147.json").get(split)
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ValueError(f"{folder / 'Train_Test_Val_FSC_147.json'} has no split {split!r}, a list of file names")
    images = folder / "images_384_VarV2"
    images = images if images.is_dir() else folder / "images"  # emoji-count
    boxes_of = _boxes_beside(folder / "annotations.json")
    classes = {}
    for line in read_text(folder / "ImageClasses_FSC147.txt").splitlines():
        file, _, name = line.partition("\t")
        classes[file.strip()] = name.strip()
    entries = []
    for file in files:
        if file not in annotations:
            raise ValueError(
                f"{folder / 'annotation_FSC147_384.json'} knows no picture {file!r} of the split {split!r}"
            )
        entry = annotations[file] if isinstance(annotations[file], dict) else {}
        where = f"{folder / 'annotation_FSC147_384.json'}, {file}"
        corners = _numbers(entry.get("box_examples_coordinates"), (4, 2), f"{where}: box_examples_coordinates")
        points = _numbers(entry.get("points"), (2,), f"{where}: points")
        exemplars = np.concatenate([corners.min(1), corners.max(1)], 1)[:EXEMPLARS]
        entry = {"exemplars": exemplars, "count": len(points), "name": classes.get(file, "object"), "points": points}
        entries.append((images, entry | {"file_name": file, "boxes": boxes_of.get(file)}))
    return entries


def _boxes_beside(path: Path) -> dict[str, np.ndarray]:
    """file name -> boxes [n, 4] float32 xyxy of a COCO file; empty where there is none."""
    if not path.is_file():
        return {}
    coco, boxes_of = _read(path), {}
    check_entries(coco, path, {"images": FIELDS["images"], "annotations": ("image_id", "bbox")})
    names = {str(image["id"]): str(image["file_name"]) for image in coco["images"]}
    for annotation in coco["annotations"]:
        boxes_of.setdefault(str(annotation["image_id"]), []).append(annotation["bbox"])
    return {file: _xyxy(boxes_of.get(number, []), path) for number, file in names.items()}


def _fscd_lvis(folder: Path, split: str) -> list[tuple[Path, dict]]:
    file = f"instances_{split}.json"
    if not (folder / file).is_file() and (folder / "annotations.json").is_file():
        file = "annotations.json"
    instances = CocoDataset(folder / file, folder, _read(folder / file)).coco
    count_file = folder / f"count_{split}.json"
    counting = _read(count_file)
    check_entries(counting, count_file, {"images": (), "annotations": ("image_id", "boxes")})
    names = {c["id"]: c["name"] for c in instances["categories"]}
    exemplars_of = {a["image_id"]: a["boxes"] for a in counting["annotations"] if isinstance(a["image_id"], int)}
    asked = {
        i: a["category_id"]
        for a in counting["annotations"]
        if "category_id" in a and isinstance(i := a["image_id"], int)
    }
    boxes_of: dict[int, list] = {}
    category_of: dict[int, int] = {}
    for annotation in instances["annotations"]:
        if annotation["category_id"] != asked.get(annotation["image_id"], annotation["category_id"]):
            continue
        category_of[annotation["image_id"]] = annotation["category_id"]
        boxes_of.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    entries = []
    for image in instances["images"]:
        if image["id"] not in exemplars_of:
            raise ValueError(f"{count_file} has no exemplar boxes of picture {image['id']}")
        boxes = _xyxy(boxes_of.get(image["id"], []), folder / file)
        exemplars = _xyxy(exemplars_of[image["id"]], count_file)
        name = names.get(category_of.get(image["id"], -1), "object")
        entry = {"exemplars": exemplars[:EXEMPLARS], "count": len(boxes), "name": name, "boxes": boxes}
        entries.append((folder / "images", entry | {"file_name": image["file_name"]}))
    return entries


def _numbers(values: object, shape: tuple[int, ...], where: str | Path) -> np.ndarray:
    """float32 [n, *shape] of nested lists. Raises ValueError naming `where`."""
    try:
        array = np.array(values, np.float32)
        return array.reshape(-1, *shape) if array.size == 0 else array.reshape(len(array), *shape)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: expected a list of {list(shape)} numbers each, got {values!r:.80}") from None


def _xyxy(boxes: list, path: Path) -> np.ndarray:
    """[x, y, width, height] to xyxy."""
    array = _numbers(boxes, (4,), path).copy()
    array[:, 2:] += array[:, :2]
    return array
