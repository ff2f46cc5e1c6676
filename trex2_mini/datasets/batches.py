"""The batch of a training step, as a function of (seed, step) alone: runs can stop and go on, workers can make batches ahead."""

from __future__ import annotations

import numpy as np

from .catalogue import load_catalogue
from .coco import Sample
from .scenes import SIZES, SceneGenerator


class EmojiBatches:
    """Fresh emoji scenes without end; one picture size a batch, so that nothing is padded. Every second scene holds the categories of
    the one before it, so that visual prompts can be trained across images."""

    def __init__(self, batch_size: int, seed: int = 0):
        self.batch_size = batch_size
        self.generator = SceneGenerator(seed=10_000 + seed)
        self.names = self.generator.names
        self.trainable = [index for index, category in enumerate(load_catalogue()) if not category.novel]

    def __call__(self, step: int) -> list[Sample]:
        size = SIZES[np.random.default_rng([self.generator.seed, step]).integers(len(SIZES))]
        batch: list[Sample] = []
        for i in range(self.batch_size):
            shared = np.unique(batch[-1].labels) if i % 2 and len(batch[-1].labels) else None
            batch.append(self.generator.scene(step * self.batch_size + i, size, shared))
        return batch
