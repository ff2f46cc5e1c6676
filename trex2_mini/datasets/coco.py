"""Sets in the genuine COCO format: one annotation file and a folder of pictures. registry.py opens them by name."""

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from trex2_mini.datasets.check import cleaned
from trex2_mini.datasets.holdings import Holdings
from trex2_mini.datasets.pictures import Pictures
from trex2_mini.datasets.sample import Sample
from trex2_mini.images import LeftOut, UnreadablePicture, load_image
from trex2_mini.paths import read_json


class CocoDataset:
    """A set in COCO format. Labels are places in `names`, which follow the categories' ids upwards.

    Args:
        annotations: the JSON file.
        images: the folder that the pictures' `file_name` is relative to, or of which it names the last part
            (pictures.py).
        content: the annotations, if they do not come from the file (which then only gives the set its name).
        problems: what a reader of another format found wrong already.

    Raises:
        ValueError: the file is no COCO annotation file, or names a category or picture that it does not list. What is
            only doubtful is put into `problems` and warned of; check.py has the table.
        FileNotFoundError: the file or the folder does not exist.

    left_out: the pictures that `read` could not read, {image id: why}; `left_out.most` is how many may be.
    """

    def __init__(
        self, annotations: Path | str, images: Path | str, content: dict | None = None, problems: Sequence[str] = ()
    ) -> None:
        self.path, self.images = Path(annotations), Path(images)
        if content is None:
            if not self.path.is_file():
                raise FileNotFoundError(f"the annotation file {self.path} does not exist")
            content = read_json(self.path)
        if not self.images.is_dir():
            raise FileNotFoundError(f"the picture folder {self.images} does not exist")
        self.coco, found = cleaned(content, self.path)
        self.problems = [*problems, *found]
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
        self.left_out = LeftOut(len(self))
        self.pictures = Pictures(self.images, [image["file_name"] for image in self.coco["images"]])

    def _prompts(self, names: list[str]) -> list[str]:
        """The names, but for those that prompts.json beside the annotation file gives a better phrase: {"name":
        "phrase"}."""
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

    @cached_property
    def holdings(self) -> Holdings:
        """Which pictures hold which label; crowds do not count."""
        index_of = {image["id"]: index for index, image in enumerate(self.coco["images"])}
        pairs = [
            (self._label[a["category_id"]], index_of[a["image_id"]])
            for a in self.coco["annotations"]
            if not a.get("iscrowd", 0)
        ]
        labels, pictures = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return Holdings.of(labels, pictures, len(self.names))

    def __len__(self) -> int:
        return len(self.coco["images"])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def read(self, index: int) -> Sample | None:
        """Picture `index`; None, counted and warned of, where it cannot be read. Raises ValueError at one too many."""
        return self.left_out.read(self.coco["images"][index]["id"], self.__getitem__, index)

    def __getitem__(self, index: int) -> Sample:
        """Picture `index` and its objects: boxes cut at the border, without crowds and boxes of no width or height.

        Raises UnreadablePicture; see `read`.
        """
        entry = self.coco["images"][index]
        try:
            image = load_image(self.pictures.find(entry["file_name"]))
        except UnreadablePicture as error:
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
        """On a federated set (LVIS): the labels that were looked for everywhere in the picture, or found absent from
        it."""
        if "neg_category_ids" not in image:
            return None
        absent = [self._label[c] for c in image["neg_category_ids"] if c in self._label]
        partly = [self._label[c] for c in image.get("not_exhaustive_category_ids", []) if c in self._label]
        return np.setdiff1d(np.union1d(labels, absent), partly).astype(np.int64)
