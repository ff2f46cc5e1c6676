"""What the protocols share: a detector on the first images of a set, its answers as COCO results, and which weights
gave them.

Under torchrun the processes take turns at the batches and then have all answers in the same order, so that N processes
give exactly the numbers of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trex2_mini.boxes import xyxy_to_normalized
from trex2_mini.checkpoint import file_hash, load_model, state_hash
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.registry import open_dataset, reference_of
from trex2_mini.datasets.sample import Sample
from trex2_mini.detections import Detections
from trex2_mini.detector import Detector, top_detections
from trex2_mini.evaluation.bank import encode_in_batches
from trex2_mini.evaluation.lvis import lvis_ap
from trex2_mini.evaluation.metrics import coco_ap
from trex2_mini.evaluation.packed import Packed
from trex2_mini.model.box_decoder import DecoderOutput
from trex2_mini.model.image_encoder import ImageFeatures
from trex2_mini.processes import process

CATEGORY_SETS = ("all", "trained", "novel")
MAX_DETECTIONS = 300  # an image
EXAMPLES = {"counting": 3, "video": 1, "visual-i-negatives": 3}  # N, unless asked otherwise; 16 of the others


@dataclass(frozen=True)
class Options:
    """What a protocol may be asked besides the set; each is also a keyword of `evaluate` and `answers`.

    reference: where visual-g, mixed and region-visual draw their examples (default `reference_of(data)`); categories
        are looked up there by name.
    examples: N, reference images a category (default 16); counting: boxes shown (1 to 3, default 3); video: frames
        prompted (1); visual-i-negatives: negatives a prompt (1 to 3, default 3).
    points: the visual-i protocols prompt with centre points instead of boxes.
    synonyms: text asks by each category's first synonym instead of its name; those without one are left out.
    baselines: of `baselines.BASELINES`, measured beside the detector by the visual-i protocols.
    split: of counting only: the split of the set.
    threshold: the score from which a detection is counted (counting), or is an answer or a false alarm
        (visual-i-negatives).
    tiles: of counting only: the side of a tile in sides of an exemplar, 0: no tiles (tiles.py).
    limit: only the first so many images; video: clips.
    resamples: of the images, for a 95 % interval of AP by bootstrap (AP_low, AP_high); 0: none.
    seed: of every draw.
    """

    reference: str | Path | CocoDataset | None = None
    examples: int | None = None
    points: bool = False
    synonyms: bool = False
    baselines: Sequence[str] = ()
    split: str = "test"
    threshold: float = 0.3
    tiles: float = 0.0
    limit: int | None = None
    resamples: int = 0
    seed: int = 0
    batch_size: int = 8
    progress: bool = True

    def of(self, protocol: str, data: str | Path | CocoDataset) -> Options:
        """With the defaults of a protocol on a set. Raises ValueError: a number under 1, another protocol's option."""
        for option, protocols in {
            "synonyms": ("text",), "baselines": ("visual-i", "visual-i-others"), "tiles": ("counting",)
        }.items():  # fmt: skip
            if getattr(self, option) and protocol not in protocols:
                owners = " and ".join(map(repr, protocols))
                raise ValueError(f"{option} are for the protocol {owners}, not for {protocol!r}")
        if self.resamples and protocol in ("region", "region-visual", "counting"):
            raise ValueError(
                f"resamples are for protocols that give an AP of all their detections, not for {protocol!r}"
            )
        examples = EXAMPLES.get(protocol, 16) if self.examples is None else self.examples
        for what, number in {"examples": examples, "limit": self.limit, "batch_size": self.batch_size}.items():
            if number is not None and number < 1:
                raise ValueError(f"{what} must be at least 1, got {number}")
        reference = reference_of(data) if self.reference is None else self.reference
        return replace(self, examples=examples, reference=reference)


@dataclass
class Answers:
    """What a detector answered under a protocol, ready to be measured, once (`measure`) or many times (`bootstrap`).

    truth: a COCO dictionary. detections: as COCO results. category_ids, image_ids: those that count. details: what the
    protocol says besides. groups: {image id: what it belongs to} where images are not independent (frames of a clip).
    """

    truth: dict
    detections: Sequence[dict]
    category_ids: list[int]
    image_ids: list[int]
    details: dict = field(default_factory=dict)
    groups: dict[int, int] | None = None

    @property
    def federated(self) -> bool:
        """LVIS's rules hold where every image says what was looked for on it."""
        return all("neg_category_ids" in image for image in self.truth["images"])

    def measure(self, detections: Sequence[dict] | None = None, image_ids: Sequence[int] | None = None) -> dict:
        """What `coco_ap` or `lvis_ap` gives, of other detections or fewer images if asked."""
        own = self.detections if detections is None else detections
        ids = self.image_ids if image_ids is None else image_ids
        return (lvis_ap if self.federated else coco_ap)(self.truth, own, self.category_ids, ids)


@dataclass(frozen=True)
class Trial:
    """What most protocols are given: a detector, and the first `images` images of a set."""

    detector: Detector
    dataset: CocoDataset
    images: int
    batch_size: int = 8
    progress: bool = True
    first: int = 0  # where the images begin; `images` is where they end

    @property
    def image_ids(self) -> list[int]:
        """Those of the images, without what turned out to be unreadable."""
        ids = (image["id"] for image in self.dataset.coco["images"][self.first : self.images])
        return [image_id for image_id in ids if image_id not in self.dataset.left_out]

    def batches(self) -> Iterator[tuple[list[Sample], ImageFeatures]]:
        """The batches of images with their features; of several processes, each has every n-th batch."""
        rank, count = process()
        starts = range(self.first + rank * self.batch_size, self.images, count * self.batch_size)
        indices = [i for start in starts for i in range(start, min(start + self.batch_size, self.images))]
        title = "detecting" if self.progress and rank == 0 else None
        return encode_in_batches(self.detector, self.dataset, indices, self.batch_size, title)

    def together(self, rows: Sequence[dict]) -> Sequence[dict]:
        """The rows of all processes, each with its "image_id", in the order of the images; and what they left out.
        Detections (Packed) stay packed."""
        if process()[1] == 1:
            return rows
        parts: list = [None] * process()[1]
        dist.all_gather_object(parts, (rows, dict(self.dataset.left_out)))
        for _, left_out in parts:
            self.dataset.left_out |= left_out
        place = {image_id: index for index, image_id in enumerate(self.image_ids)}
        if isinstance(rows, Packed):
            for part, _ in parts[1:]:
                parts[0][0].extend(part)
            images = parts[0][0].table["image_id"].tolist()
            return parts[0][0].take(np.argsort([place[image] for image in images], kind="stable"))
        return sorted((row for part, _ in parts for row in part), key=lambda row: place[row["image_id"]])


def choose_labels(dataset: CocoDataset, categories: str) -> list[int]:
    """The labels of a category set. Raises ValueError where it is unknown or not marked in the data."""
    if categories not in CATEGORY_SETS:
        raise ValueError(f"unknown category set {categories!r}; expected one of {', '.join(CATEGORY_SETS)}")
    if categories == "all":
        return list(range(len(dataset.names)))
    if not all("novel" in category for category in dataset.categories):
        raise ValueError(f'{dataset.path}: categories without the flag "novel", so no {categories!r}; use "all"')
    return [i for i, category in enumerate(dataset.categories) if bool(category["novel"]) == (categories == "novel")]


def as_coco(
    detector: Detector, dataset: CocoDataset, samples: list[Sample], output: DecoderOutput, columns: list[list[int]]
) -> list[dict]:
    """Each image's best detections as COCO results. columns: the labels of its prompts; further prompts are padding."""
    nms_iou = detector.config.model.nms_iou
    sizes, results = [sample.image.shape[:2] for sample in samples], []
    best = top_detections(output.logits, output.boxes, sizes, dataset.names, MAX_DETECTIONS, nms_iou)
    for sample, labels, found in zip(samples, columns, best):
        asked = [dataset.category_ids[label] for label in labels]
        results += coco_results(found[found.labels < len(labels)], sample.image_id, asked)
    return results


def coco_results(found: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict]:
    """Detections as COCO results, in full precision. category_ids: of each label."""
    boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1)
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(boxes.tolist(), found.scores.tolist(), found.labels.tolist())
    ]


def normalized(annotations: list[dict], sample: Sample) -> Tensor:
    """The annotations' boxes, cut at the image's border, as [K, 4] cxcywh in 0..1."""
    height, width = sample.image.shape[:2]
    boxes = torch.tensor([annotation["bbox"] for annotation in annotations], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    inside = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    return xyxy_to_normalized(inside, height, width)


def opened(data: str | Path | CocoDataset) -> CocoDataset:
    return open_dataset(str(data)) if isinstance(data, (str, Path)) else data


def open_detector(checkpoint: str | Path | Detector) -> tuple[Detector, dict]:
    """The detector, and which weights it has."""
    if isinstance(checkpoint, (str, Path)):
        model, config, path = load_model(checkpoint)
        return Detector(model, config), {"checkpoint": str(checkpoint), "checkpoint_hash": file_hash(path)}
    return checkpoint, {"checkpoint": "in memory", "checkpoint_hash": state_hash(checkpoint.model)}
