"""Visual-G's prompts (spec section 4, generic visual workflow), drawn from a reference set and averaged."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.sample import Sample, normalized_boxes
from trex2_mini.detector import Detector
from trex2_mini.model.image_encoder import ImageFeatures
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.prompt_bank import PromptBank

NO_POINTS = torch.zeros(0, 2)


def encode_in_batches(
    detector: Detector, dataset: CocoDataset, indices: Sequence[int], batch_size: int, title: str | None
) -> Iterator[tuple[list[Sample], ImageFeatures]]:
    """The samples at `indices` and their features, a batch at a time; a bar called `title` shows how far it is.

    Pictures that cannot be read are left out (`CocoDataset.read`).
    """
    with tqdm(total=len(indices), desc=title, unit="image", disable=title is None) as bar:
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            samples = [sample for i in chosen if (sample := dataset.read(i)) is not None]
            if samples:
                yield samples, detector.encode_batch([sample.image for sample in samples])
            bar.update(len(chosen))


def draw_examples(reference: CocoDataset, names: Sequence[str], examples: int, seed: int) -> dict[int, list[int]]:
    """{image id: labels that it is an example of}: for each of `names` that the reference set has, `examples` images
    that hold it.

    Where fewer images hold it all are taken (spec section 9). A draw depends on the seed and the category's place in
    the reference set, not on
    what else is asked for, and the draw of fewer examples is the beginning of the draw of more.
    """
    label_of = {name: label for label, name in enumerate(reference.names)}
    holders: dict[int, set[int]] = defaultdict(set)  # category id -> image ids
    for annotation in reference.coco["annotations"]:
        if not annotation.get("iscrowd", 0) and min(annotation["bbox"][2:]) > 0:
            holders[annotation["category_id"]].add(annotation["image_id"])
    drawn: dict[int, list[int]] = defaultdict(list)
    for label in sorted({label_of[name] for name in names if name in label_of}):
        images = sorted(holders[reference.category_ids[label]])
        for place in np.random.default_rng([seed, label]).permutation(len(images))[:examples]:
            drawn[images[place]].append(label)
    return drawn


def visual_bank(
    detector: Detector,
    reference: CocoDataset,
    names: Sequence[str],
    examples: int = 16,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = True,
) -> PromptBank:
    """A name's V is the mean over `examples` reference images that hold it, each prompted with all its boxes of it
    (`draw_examples`).

    A name without any example is left out of the bank. Raises ValueError where no name has one.
    """
    return visual_banks(detector, reference, names, [(examples, seed)], batch_size, progress)[0]


def visual_banks(
    detector: Detector,
    reference: CocoDataset,
    names: Sequence[str],
    draws: Sequence[tuple[int, int]],
    batch_size: int = 8,
    progress: bool = True,
) -> list[PromptBank]:
    """The `visual_bank` of each (examples, seed) of `draws`; an image that several of them draw is encoded once."""
    label_of = {name: label for label, name in enumerate(reference.names)}
    drawn = [draw_examples(reference, names, examples, seed) for examples, seed in draws]
    sums = torch.zeros(len(draws), len(reference.names), detector.config.model.dim)
    counts = torch.zeros(len(draws), len(reference.names), 1)
    wanted = {image: sorted(set().union(*(own.get(image, ()) for own in drawn))) for image in set().union(*drawn)}
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
        for sample, labels, own in zip(samples, shown, vectors):
            for draw, images in enumerate(drawn):
                mine = [place for place, label in enumerate(labels) if label in images.get(sample.image_id, ())]
                rows = [labels[place] for place in mine]
                sums[draw, rows] += own[mine]
                counts[draw, rows] += 1
    banks = []
    for total, count in zip(sums, counts):
        found = [name for name in names if name in label_of and count[label_of[name]] > 0]
        if not found:
            raise ValueError(
                f"{reference.path} has no example of any of {list(names)[:5]} ...; name another reference set"
            )
        rows = [label_of[name] for name in found]
        banks.append(PromptBank(found, total[rows] / count[rows], detector.weights))
    return banks
