"""The batch of a training step, as a function of (seed, step) alone: runs can stop and go on, workers can make batches ahead."""

from __future__ import annotations

import numpy as np

from .catalogue import load_catalogue
from .coco import Sample
from .scenes import SIZES, SceneGenerator


class EmojiBatches:
    """Fresh emoji scenes without end; one picture size a batch, so that nothing is padded."""

    def __init__(self, batch_size: int, seed: int = 0):
        self.batch_size = batch_size
        self.generator = SceneGenerator(seed=10_000 + seed)
        self.names = self.generator.names
        self.trainable = [index for index, category in enumerate(load_catalogue()) if not category.novel]

    def __call__(self, step: int) -> list[Sample]:
        size = SIZES[np.random.default_rng([self.generator.seed, step]).integers(len(SIZES))]
        return [self.generator.scene(step * self.batch_size + i, size) for i in range(self.batch_size)]
