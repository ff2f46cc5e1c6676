"""Batches of emoji scenes, made on the fly as a function of (seed, step)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from trex2_mini.datasets.sample import Sample
from trex2_mini.datasets.scenes.catalogue import EmojiCategory, load_catalogue
from trex2_mini.datasets.scenes.generator import SIZES, SceneGenerator


class EmojiBatches:
    """Fresh emoji scenes without end; one picture size a batch, so that nothing is padded. Every second scene holds the
    categories of
    the one before it, so that visual prompts can be trained across images. balance: see `open_batches`. catalogue,
    sizes (height, width):
    a smaller world than all emoji in scenes of the usual sizes (reproduction/ablations.py). short_side: scenes are
    enlarged by short_side / 192, as
    the detector enlarges the embedded sets' pictures for a model of that short side."""

    def __init__(
        self,
        batch_size: int,
        seed: int = 0,
        balance: float = 0.0,
        catalogue: Sequence[EmojiCategory] | None = None,
        sizes: Sequence[tuple[int, int]] = SIZES,
        short_side: int = 192,
    ):
        self.batch_size, self.sizes, self.scale = batch_size, sizes, short_side / 192
        catalogue = load_catalogue() if catalogue is None else catalogue
        self.generator = SceneGenerator(seed=10_000 + seed, catalogue=catalogue)
        self.names = self.generator.names
        self.trainable = [index for index, category in enumerate(catalogue) if not category.novel]
        self.generator.weights = (1 - balance) * self.generator.weights
        self.generator.weights[self.trainable] += balance / len(self.trainable)

    def __call__(self, step: int) -> list[Sample]:
        size = self.sizes[np.random.default_rng([self.generator.seed, step]).integers(len(self.sizes))]
        batch: list[Sample] = []
        for i in range(self.batch_size):
            shared = np.unique(batch[-1].labels) if i % 2 and len(batch[-1].labels) else None
            batch.append(self.generator.scene(step * self.batch_size + i, size, shared))
        return batch if self.scale == 1 else [enlarged(sample, self.scale) for sample in batch]


def enlarged(sample: Sample, scale: float) -> Sample:
    height, width = sample.image.shape[:2]
    picture, boxes = v2.Resize([round(height * scale), round(width * scale)], antialias=True)(*to_tensors(sample))
    return dataclasses.replace(sample, image=to_array(picture), boxes=boxes.numpy())


def to_tensors(sample: Sample) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]:
    """Picture [3, H, W] and boxes, for torchvision's transforms, which move both."""
    picture = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1))
    return picture, tv_tensors.BoundingBoxes(
        torch.from_numpy(sample.boxes), format="XYXY", canvas_size=sample.image.shape[:2]
    )


def to_array(picture: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
