"""What a training iteration asks for: names with negatives (text), or boxes and points of the image itself (visual).
Spec section 3."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trex2_mini.datasets.sample import Sample, normalized_boxes


def sample_names(
    samples: Sequence[Sample], trainable: Sequence[int], negatives: int, rng: np.random.Generator
) -> list[int]:
    """Text iteration: the batch's categories, then `negatives` others drawn from `trainable`; all as category indices.

    Only categories are drawn that were looked for in at least one of the pictures.
    """
    present = sorted({int(label) for sample in samples for label in sample.labels})
    others = np.setdiff1d(np.asarray(trainable), present)
    if all(sample.vocabulary is not None for sample in samples):
        others = np.intersect1d(others, np.concatenate([sample.vocabulary for sample in samples]))
    drawn = rng.choice(others, size=min(negatives, len(others)), replace=False)
    return present + [int(category) for category in drawn]


def sample_regions(
    sample: Sample, point_probability: float, rng: np.random.Generator
) -> tuple[list[tuple[Tensor, Tensor]], list[int], np.ndarray]:
    """Visual iteration, "current image prompt, current image detect": per category of the image between one and all of
    its boxes, turned into their centre points with `point_probability`. Returns ([(boxes [k, 4], points [m, 2])],
    [category]), one a category, and which of the objects [n] are prompts."""
    boxes = normalized_boxes(sample)
    regions, categories, prompted = [], [], np.zeros(len(boxes), bool)
    for category in np.unique(sample.labels):
        own = np.flatnonzero(sample.labels == category)
        chosen = rng.permutation(own)[: rng.integers(1, len(own) + 1)]
        as_points = rng.random() < point_probability
        picked = boxes[torch.from_numpy(chosen)]
        prompted[chosen] = True
        regions.append((picked[:0], picked[:, :2]) if as_points else (picked, picked[:0, :2]))
        categories.append(int(category))
    return regions, categories, prompted
