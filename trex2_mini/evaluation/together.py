"""All protocols on the same images of a set, with several draws: what a table of the paper compares.

`evaluate` measures one protocol at a time, from pictures to AP. Here every image, and every example of all draws, is
encoded once, which is most of the work; the numbers are those of `evaluate`. Images are taken in pieces, so that their
features fit a budget. All protocols are given the same categories: those that have an example in the reference set.

    text, visual-g, mixed, visual-i, visual-i-others   as in protocols.py
    points, points-others                              visual-i by centre points instead of boxes
    ...-others                                         only where some category has a second object on a picture
    echo, echo-others                                  the prompted box itself is the answer; no detector
    template, features (and -others)                   the baselines of baselines.py, if asked for
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.registry import reference_of
from trex2_mini.datasets.sample import Sample
from trex2_mini.detector import Detector
from trex2_mini.evaluation.bank import visual_banks
from trex2_mini.evaluation.baselines import baseline_detections
from trex2_mini.evaluation.interactive import draw_prompts, echo_detections, only_others
from trex2_mini.evaluation.packed import Packed
from trex2_mini.evaluation.protocols import mixed, text, visual_generic, visual_interactive
from trex2_mini.evaluation.provenance import describe_code, describe_dataset
from trex2_mini.evaluation.region import region_ranks, region_scores
from trex2_mini.evaluation.trial import Answers, Trial, open_detector, opened
from trex2_mini.model.image_encoder import ImageFeatures
from trex2_mini.processes import process
from trex2_mini.prompt_bank import PromptBank


@dataclass(frozen=True)
class HeldTrial(Trial):
    """A trial that encodes its images once, however often it is gone through."""

    held: list[tuple[list[Sample], ImageFeatures]] = field(default_factory=list)

    def batches(self) -> Iterator[tuple[list[Sample], ImageFeatures]]:
        if not self.held:
            self.held.extend((_without_pixels(samples), features) for samples, features in super().batches())
        for samples, features in self.held:
            yield samples, features
            features.kept.clear()


def _without_pixels(samples: list[Sample]) -> list[Sample]:
    """The samples with pictures of their size that take no memory: once encoded, only the size is asked for."""
    return [replace(own, image=np.broadcast_to(np.uint8(0), own.image.shape)) for own in samples]


def pieces(trial: Trial, memory: float) -> Iterator[HeldTrial]:
    """A trial in pieces whose features take about `memory` GiB each, in whole rounds of batches: the answers are those
    of the whole trial."""
    model, batch = trial.detector.config.model, trial.batch_size * process()[1]
    tokens = sum((model.short_side // s + 1) * (model.long_side // s + 1) for s in model.strides)
    an_image = 4 * tokens * model.dim + 12 * tokens  # bytes, at most: of the largest picture
    size = batch * max(1, int(memory * 2**30 / an_image / trial.batch_size))
    for first in range(trial.first, trial.images, size):
        last = min(first + size, trial.images)
        yield HeldTrial(trial.detector, trial.dataset, last, trial.batch_size, trial.progress, first)


@dataclass
class Together:
    """What a detector answered on a set: {protocol: one Answers a draw} (text: one), the ranks of region
    classification, and where all comes from.

    regions: {"region" or "region-visual": rows of `region_ranks`, a list a draw}; banks: visual-g's, one a draw.
    """

    dataset: CocoDataset
    answers: dict[str, list[Answers]]
    regions: dict[str, list[list[dict]]]
    banks: list[PromptBank]
    about: dict

    def measured(self) -> dict[str, dict]:
        """{protocol: {measure: mean over the draws}, with std {measure: standard deviation of a draw} where there are
        several, and per_category}."""
        found = {name: [own.measure() for own in draws] for name, draws in self.answers.items()}
        found |= {
            name: [region_scores(rows, self.dataset.names) for rows in draws] for name, draws in self.regions.items()
        }
        return {name: averaged(draws) for name, draws in found.items()}


def averaged(draws: Sequence[dict]) -> dict:
    """The measures of several draws as one: means, and std (n - 1 in its denominator) where there are at least two."""
    keys = [key for key, value in draws[0].items() if isinstance(value, float)]
    known = {key: [own[key] for own in draws if own[key] is not None] for key in keys}
    names = sorted(set().union(*(own["per_category"] for own in draws)))
    each = {n: float(np.mean([own["per_category"][n] for own in draws if n in own["per_category"]])) for n in names}
    result: dict = {key: float(np.mean(values)) for key, values in known.items()}
    if len(draws) > 1:
        result["std"] = {key: float(np.std(values, ddof=1)) for key, values in known.items() if len(values) > 1}
    return result | {"draws": len(draws), "per_category": each}


@torch.inference_mode()
def together(
    checkpoint: str | Path | Detector,
    data: str | Path | CocoDataset,
    reference: str | Path | CocoDataset | None = None,
    *,
    examples: int = 16,
    draws: int = 3,
    limit: int | None = None,
    seed: int = 0,
    baselines: Sequence[str] = (),
    batch_size: int = 8,
    memory: float = 2.0,
    progress: bool = True,
) -> Together:
    """Every protocol on the first `limit` images, with the seeds seed, ..., seed + draws - 1. Arguments as in
    `evaluate`.

    memory: GiB that the images' features may take at a time (in each process), however many images there are.

    Raises ValueError for a number under 1, and where no category has an example.
    """
    for what, number in {"examples": examples, "draws": draws, "limit": limit}.items():
        if number is not None and number < 1:
            raise ValueError(f"{what} must be at least 1, got {number}")
    if not memory > 0:
        raise ValueError(f"memory must be above 0 GiB, got {memory}")
    reference = reference_of(data) if reference is None else reference
    detector, weights = open_detector(checkpoint)
    dataset, references = opened(data), opened(reference)
    seeds = range(seed, seed + draws)
    banks = visual_banks(detector, references, dataset.names, [(examples, s) for s in seeds], batch_size, progress)
    labels = [label for label, name in enumerate(dataset.names) if name in banks[0].names]
    ids = [dataset.category_ids[label] for label in labels]
    trial = Trial(detector, dataset, len(dataset.coco["images"][:limit]), batch_size, progress)
    words = detector.encode_text([dataset.names[label] for label in labels])
    prompts = [draw_prompts(dataset.coco, s, set(ids), set(trial.image_ids)) for s in seeds]
    rows: dict[str, list[Packed] | list[list[dict]]] = {}
    for piece in pieces(trial, memory):
        here = set(piece.image_ids)
        drawn = [{pair: own for pair, own in each.items() if pair[0] in here} for each in prompts]
        found = {
            "text": [text(piece, labels)],
            "visual-g": [visual_generic(piece, labels, bank) for bank in banks],
            "mixed": [mixed(piece, labels, bank) for bank in banks],
            "visual-i": [visual_interactive(piece, own) for own in drawn],
            "points": [visual_interactive(piece, own, points=True) for own in drawn],
            "region": [region_ranks(piece, labels, words)],
            "region-visual": [region_ranks(piece, labels, bank.embeddings) for bank in banks],
        }
        for kind, several in found.items():
            empty = list if kind.startswith("region") else Packed
            for whole, own in zip(rows.setdefault(kind, [empty() for _ in several]), several):
                whole.extend(own)

    def given(detections: Sequence[dict], truth: dict = dataset.coco) -> Answers:
        return Answers(truth, Packed.of(detections), ids, trial.image_ids)

    answers = {kind: [given(own) for own in rows[kind]] for kind in ("text", "visual-g", "mixed")}
    readable = set(trial.image_ids)
    prompts = [{pair: own for pair, own in each.items() if pair[0] in readable} for each in prompts]
    for draw, own in enumerate(prompts):
        kinds = {kind: rows[kind][draw] for kind in ("visual-i", "points")} | {"echo": echo_detections(own)}
        kinds |= {kind: baseline_detections(kind, dataset, own, trial.image_ids, progress) for kind in baselines}
        for kind, detections in kinds.items():
            truth, others, _ = only_others(dataset.coco, detections, own)
            answers.setdefault(kind, []).append(given(detections))
            if any(o["image_id"] in readable and o["category_id"] in set(ids) for o in truth["annotations"]):
                answers.setdefault(f"{kind}-others", []).append(given(others, truth))
    regions = {kind: rows[kind] for kind in ("region", "region-visual")}
    about = {
        "data": str(data) if isinstance(data, (str, Path)) else dataset.path.parent.name,
        "images": trial.images, "prompts": len(labels), "examples": examples, "draws": draws, "seed": seed,
        "without_examples": [name for name in dataset.names if name not in banks[0].names],
        "dataset": describe_dataset(dataset), "reference": describe_dataset(references), **weights, **describe_code(),
    }  # fmt: skip
    return Together(dataset, answers, regions, banks, about)
