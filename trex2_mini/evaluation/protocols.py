"""The paper's zero-shot protocols (spec section 5) and one of ours.

    text              the names of all categories of the set are the prompts, on every image
    visual-g          one prompt a category, averaged over N reference images (`visual_bank`), on every image
    mixed             (T + V) / 2 of those two
    visual-i          for each category present in an image, one of its boxes there (or its centre) is the prompt
    visual-i-others   the same answers, but only the *other* instances are to be found (ours; interactive.py)

Visual-I tells which categories are present and counts the prompted instance as found, so the AP of a mere echo of the
prompts stands beside it. A category set (all, trained, novel) restricts prompts and ground truth alike. An image gives
its 300 best (query, prompt) pairs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..boxes import xyxy_to_normalized
from ..checkpoint import file_hash, load_model
from ..datasets.coco import CocoDataset, Sample, open_dataset
from ..detector import Detector, PromptBank, top_detections
from ..model.box_decoder import DecoderOutput
from ..model.image_encoder import ImageFeatures
from ..model.visual_prompt import RegionPrompts
from .bank import NO_POINTS, encode_in_batches, visual_bank
from .baselines import baseline_detections
from .interactive import Prompts, draw_prompts, echo_detections, only_others
from .lvis import lvis_ap
from .metrics import coco_ap
from .provenance import describe_code, describe_dataset, state_hash

PROTOCOLS = ("text", "visual-i", "visual-i-others", "visual-g", "mixed")
CATEGORY_SETS = ("all", "trained", "novel")
MAX_DETECTIONS = 300  # an image
NO_BOXES = torch.zeros(0, 4)


def evaluate(
    checkpoint: str | Path | Detector,
    data: str | Path | CocoDataset,
    protocol: str,
    categories: str = "all",
    *,
    reference: str | Path | CocoDataset = "emoji-reference",
    examples: int = 16,
    points: bool = False,
    synonyms: bool = False,
    baselines: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = True,
) -> dict:
    """Measure a detector by one protocol.

    Args:
        checkpoint: a shipped name, a folder, or a Detector.
        data: a name or folder for `open_dataset`, or a CocoDataset.
        protocol: one of PROTOCOLS.
        categories: one of CATEGORY_SETS; trained and novel go by the categories' own flag "novel".
        reference: where visual-g and mixed draw their examples; categories are looked up there by name.
        examples: N, reference images a category.
        points: the visual-i protocols prompt with centre points instead of boxes.
        synonyms: text asks by each category's first synonym instead of its name; those without one are left out.
        baselines: of `baselines.BASELINES`, measured beside the detector by the visual-i protocols.
        limit: only the first so many images.
        seed: of every draw.

    Returns:
        AP, AP50, AP75 in percent by COCO's rules, or on a set with federated annotation by LVIS's, with AP_r, AP_c, AP_f and fixed_AP.
        Where they come from: protocol, data, category_set, images, categories (those with ground truth), prompts (names;
        for visual-i, prompts drawn), seed, checkpoint, checkpoint_hash, dataset, versions, commit, seconds; last
        per_category {name: AP}.
        visual-g, mixed: examples, reference, without_examples (names left out, also of the ground truth).
        visual-i, visual-i-others: echo, the AP, under the same protocol, of answering the prompted box itself; the APs of `baselines`.
        visual-i-others: also pairs_with_others and AP_pairs_with_others, see `only_others`.

    Raises:
        ValueError: unknown protocol or categories, no flag "novel", nothing to find, no example, number under 1.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    for what, number in {"examples": examples, "limit": limit, "batch_size": batch_size}.items():
        if number is not None and number < 1:
            raise ValueError(f"{what} must be at least 1, got {number}")
    start = time.perf_counter()
    dataset = _open(data)
    labels = choose_labels(dataset, categories)
    if synonyms and protocol != "text":
        raise ValueError(f"synonyms are for the protocol 'text', not for {protocol!r}")
    phrases = first_synonyms(dataset) if synonyms else dict(enumerate(dataset.names))
    labels = [label for label in labels if label in phrases]
    if baselines and not protocol.startswith("visual-i"):
        raise ValueError(f"baselines are for the protocols visual-i and visual-i-others, not for {protocol!r}")
    detector, weights = _detector(checkpoint)
    image_ids = [image["id"] for image in dataset.coco["images"][:limit]]
    trial = Trial(detector, dataset, len(image_ids), batch_size, progress)
    truth, details = dataset.coco, {}
    federated = all("neg_category_ids" in image for image in truth["images"])
    measure = lvis_ap if federated else coco_ap
    if protocol == "text":
        detections = text(trial, labels, [phrases[label] for label in labels])
        details |= {"prompts": len(labels), "synonyms": synonyms}
    elif protocol in ("visual-g", "mixed"):
        references = _open(reference)
        names = [dataset.names[label] for label in labels]
        bank = visual_bank(detector, references, names, examples, seed, batch_size, progress)
        labels = [label for label in labels if dataset.names[label] in bank.names]
        detections = (visual_generic if protocol == "visual-g" else mixed)(trial, labels, bank)
        missing = [name for name in names if name not in bank.names]
        details |= {"prompts": len(labels), "examples": examples, "without_examples": missing}
        details["reference"] = describe_dataset(references)
    else:
        drawn = draw_prompts(truth, seed, {dataset.category_ids[label] for label in labels}, set(image_ids))
        detections = visual_interactive(trial, drawn, points)
        answers = {"echo": echo_detections(drawn)}
        answers |= {kind: baseline_detections(kind, dataset, drawn, image_ids, progress) for kind in baselines}
        details |= {"prompts": len(drawn), "prompted_with": "points" if points else "boxes"}
    chosen = [dataset.category_ids[label] for label in labels], image_ids
    if protocol == "visual-i-others":
        answers = {kind: only_others(truth, answer, drawn)[1] for kind, answer in answers.items()}
        truth, detections, pairs = only_others(truth, detections, drawn)
        there = [d for d in detections if (d["image_id"], d["category_id"]) in pairs]
        details |= {"pairs_with_others": len(pairs), "AP_pairs_with_others": measure(truth, there, *chosen)["AP"]}
    if protocol in ("visual-i", "visual-i-others"):
        details |= {kind: measure(truth, answer, *chosen)["AP"] for kind, answer in answers.items()}
    scores = measure(truth, detections, *chosen)
    if federated:
        details["fixed_AP"] = lvis_ap(truth, detections, *chosen, fixed=True)["AP"]
    per_category = scores.pop("per_category")
    return {
        "protocol": protocol,
        "data": str(data if isinstance(data, (str, Path)) else dataset.path.parent),
        "category_set": categories,
        **scores,
        **details,
        "images": len(image_ids),
        "categories": len(per_category),
        "seed": seed,
        **weights,
        "dataset": describe_dataset(dataset),
        **describe_code(),
        "seconds": round(time.perf_counter() - start, 1),
        "per_category": per_category,
    }


def choose_labels(dataset: CocoDataset, categories: str) -> list[int]:
    """The labels of a category set. Raises ValueError where it is unknown or not marked in the data."""
    if categories not in CATEGORY_SETS:
        raise ValueError(f"unknown category set {categories!r}; expected one of {', '.join(CATEGORY_SETS)}")
    if categories == "all":
        return list(range(len(dataset.names)))
    if not all("novel" in category for category in dataset.categories):
        raise ValueError(f'{dataset.path}: categories without the flag "novel", so no {categories!r}; use "all"')
    return [i for i, category in enumerate(dataset.categories) if bool(category["novel"]) == (categories == "novel")]


@dataclass(frozen=True)
class Trial:
    """What every protocol is given: a detector, and the first `images` images of a set."""

    detector: Detector
    dataset: CocoDataset
    images: int
    batch_size: int = 8
    progress: bool = True

    def batches(self) -> Iterator[tuple[list[Sample], ImageFeatures]]:
        title = "detecting" if self.progress else None
        return encode_in_batches(self.detector, self.dataset, range(self.images), self.batch_size, title)


def first_synonyms(dataset: CocoDataset) -> dict[int, str]:
    """label -> the first of the category's synonyms that is not its name (LVIS lists the name too, and writes _ for a space)."""
    found = {}
    for label, category in enumerate(dataset.categories):
        others = [s.replace("_", " ") for s in category.get("synonyms", []) if s != category["name"]]
        if others:
            found[label] = others[0]
    if not found:
        raise ValueError(f"{dataset.path}: no category has synonyms")
    return found


def text(trial: Trial, labels: list[int], phrases: list[str] | None = None) -> list[dict]:
    """Text: the names of `labels`, or `phrases`, one for each, are the prompts of every image. Returns detections as COCO results."""
    phrases = [trial.dataset.names[label] for label in labels] if phrases is None else phrases
    with torch.inference_mode():
        prompts = trial.detector.model.encode_text(phrases)
    return _same_prompts(trial, labels, prompts)


def visual_generic(trial: Trial, labels: list[int], bank: PromptBank) -> list[dict]:
    """Visual-G: the bank's embeddings, one for each of `labels`, are the prompts of every image."""
    return _same_prompts(trial, labels, bank.embeddings)


def mixed(trial: Trial, labels: list[int], bank: PromptBank) -> list[dict]:
    """Mixed: (T + V) / 2, one for each of `labels`, are the prompts of every image."""
    with torch.inference_mode():
        texts = trial.detector.model.encode_text(bank.names)
    return _same_prompts(trial, labels, (texts + bank.embeddings.to(texts.device)) / 2)


@torch.inference_mode()
def _same_prompts(trial: Trial, labels: list[int], prompts: Tensor) -> list[dict]:
    """Detections of the same prompts [C, D], one for each of `labels`, on every image."""
    prompts, results = prompts.to(trial.detector.device), []
    for samples, features in trial.batches():
        output = trial.detector.model.decode(features, prompts)
        results += _as_coco(trial, samples, output, [labels] * len(samples))
    return results


@torch.inference_mode()
def visual_interactive(trial: Trial, drawn: Prompts, points: bool = False) -> list[dict]:
    """Visual-I: an image has its own prompts only; a category's detections come from its prompt alone."""
    label_of = {category: label for label, category in enumerate(trial.dataset.category_ids)}
    prompts_of: dict[int, dict[int, dict]] = defaultdict(dict)  # image id -> {label: annotation}
    for (image, category), annotation in drawn.items():
        prompts_of[image][label_of[category]] = annotation
    results = []
    for samples, features in trial.batches():
        own = [prompts_of[sample.image_id] for sample in samples]
        if not any(own):
            continue
        boxes = [_normalized(list(prompts.values()), sample) for prompts, sample in zip(own, samples)]
        regions = [[(NO_BOXES, b[None, :2]) if points else (b[None], NO_POINTS) for b in image] for image in boxes]
        prompts = RegionPrompts.from_lists(regions, trial.detector.device)
        vectors = trial.detector.model.encode_visual(features, prompts)
        output = trial.detector.model.decode(features, vectors, prompts.mask.any(-1))
        results += _as_coco(trial, samples, output, [list(prompts) for prompts in own])
    return results


def _as_coco(trial: Trial, samples: list[Sample], output: DecoderOutput, columns: list[list[int]]) -> list[dict]:
    """Each image's best detections as COCO results. columns: the labels of its prompts; further prompts are padding."""
    dataset, nms_iou = trial.dataset, trial.detector.config.model.nms_iou
    sizes, results = [sample.image.shape[:2] for sample in samples], []
    best = top_detections(output.logits, output.boxes, sizes, dataset.names, MAX_DETECTIONS, nms_iou)
    for sample, labels, found in zip(samples, columns, best):
        boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1)
        for box, score, column in zip(boxes.tolist(), found.scores.tolist(), found.labels.tolist()):
            if column < len(labels):
                category = dataset.category_ids[labels[column]]
                results.append({"image_id": sample.image_id, "category_id": category, "bbox": box, "score": score})
    return results


def _normalized(annotations: list[dict], sample: Sample) -> Tensor:
    """The annotations' boxes, cut at the image's border, as [K, 4] cxcywh in 0..1."""
    height, width = sample.image.shape[:2]
    boxes = torch.tensor([annotation["bbox"] for annotation in annotations], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    inside = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    return xyxy_to_normalized(inside, height, width)


def _open(data: str | Path | CocoDataset) -> CocoDataset:
    return open_dataset(str(data)) if isinstance(data, (str, Path)) else data


def _detector(checkpoint: str | Path | Detector) -> tuple[Detector, dict]:
    """The detector, and which weights it has."""
    if isinstance(checkpoint, (str, Path)):
        model, config, path = load_model(checkpoint)
        return Detector(model, config), {"checkpoint": str(checkpoint), "checkpoint_hash": file_hash(path)}
    return checkpoint, {"checkpoint": "in memory", "checkpoint_hash": state_hash(checkpoint.model)}
