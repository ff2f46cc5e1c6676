"""Visual-G's prompts (spec section 4, generic visual workflow), drawn from a reference set and averaged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

from ..datasets.coco import CocoDataset, Sample
from ..datasets.prompts import normalized_boxes
from ..detector import Detector, PromptBank
from ..model.image_encoder import ImageFeatures
from ..model.visual_prompt import RegionPrompts

NO_POINTS = torch.zeros(0, 2)


def encode_in_batches(
    detector: Detector, dataset: CocoDataset, indices: Sequence[int], batch_size: int, title: str | None
) -> Iterator[tuple[list[Sample], ImageFeatures]]:
    """The samples at `indices` and their features, a batch at a time; a bar called `title` shows how far it is."""
    with tqdm(total=len(indices), desc=title, unit="image", disable=title is None) as bar:
        for start in range(0, len(indices), batch_size):
            samples = [dataset[i] for i in indices[start : start + batch_size]]
            yield samples, detector.encode_batch([sample.image for sample in samples])
            bar.update(len(samples))


def visual_bank(
    detector: Detector,
    reference: CocoDataset,
    names: Sequence[str],
    examples: int = 16,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = True,
) -> PromptBank:
    """A name's V is the mean over `examples` reference images that hold it, each prompted with all its boxes of it.

    Where fewer images hold it all are taken (spec section 9); a name without any is left out of the bank. Each
    image is encoded once. A draw depends on the seed and the category's place in the reference set, not on what else is
    asked for. Raises ValueError where no name has an example.
    """
    label_of = {name: label for label, name in enumerate(reference.names)}
    holders: dict[int, set[int]] = defaultdict(set)  # category id -> image ids
    for annotation in reference.coco["annotations"]:
        if not annotation.get("iscrowd", 0) and min(annotation["bbox"][2:]) > 0:
            holders[annotation["category_id"]].add(annotation["image_id"])
    wanted: dict[int, list[int]] = defaultdict(list)  # image id -> labels that it is an example of
    for label in sorted({label_of[name] for name in names if name in label_of}):
        images = sorted(holders[reference.category_ids[label]])
        for place in np.random.default_rng([seed, label]).permutation(len(images))[:examples]:
            wanted[images[place]].append(label)

    sums, counts = torch.zeros(len(reference.names), detector.config.model.dim), torch.zeros(len(reference.names), 1)
    indices = [index for index, image in enumerate(reference.coco["images"]) if image["id"] in wanted]
    title = "embedding examples" if progress else None
    for samples, features in encode_in_batches(detector, reference, indices, batch_size, title):
        shown = [[label for label in wanted[sample.image_id] if label in sample.labels] for sample in samples]
        if not any(shown):
            continue
        boxes = [normalized_boxes(sample) for sample in samples]
        regions = [
            [(own[torch.from_numpy(sample.labels == label)], NO_POINTS) for label in labels]
            for sample, own, labels in zip(samples, boxes, shown)
        ]
        with torch.inference_mode():
            prompts = RegionPrompts.from_lists(regions, detector.device)
            vectors = detector.model.encode_visual(features, prompts).float().cpu()  # (B, C, D)
        for labels, own in zip(shown, vectors):
            sums[labels] += own[: len(labels)]
            counts[labels] += 1
    found = [name for name in names if name in label_of and counts[label_of[name]] > 0]
    if not found:
        raise ValueError(f"{reference.path} has no example of any of {list(names)[:5]} ...; name another reference set")
    rows = [label_of[name] for name in found]
    return PromptBank(found, sums[rows] / counts[rows])
