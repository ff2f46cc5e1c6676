"""Batches of scenes, emoji or cut-outs, made on the fly as a function of (seed, step)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from trex2_mini.datasets.sample import Sample
from trex2_mini.datasets.scenes.catalogue import EmojiCategory, load_catalogue
from trex2_mini.datasets.scenes.cutouts import Backgrounds, CutoutGenerator
from trex2_mini.datasets.scenes.generator import SIZES, SceneGenerator
from trex2_mini.datasets.scenes.library import Library


class EmojiBatches:
    """Fresh emoji scenes without end; all pictures of a batch have one size. Every second scene holds the categories
    of the one before it, so that visual prompts can be trained across images. balance: see `open_batches`. catalogue,
    sizes (height, width): a smaller world than all emoji in scenes of the usual sizes (reproduction/ablations.py).
    short_side: scenes are enlarged by short_side / 192, as the detector enlarges the embedded sets' pictures for a
    model of that short side."""

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
        batch = _paired(self.generator, step * self.batch_size, self.batch_size, size)
        large = round(size[0] * self.scale), round(size[1] * self.scale)
        return batch if self.scale == 1 else [_enlarged(sample, *large) for sample in batch]

    def pictures(self, index: int, count: int, size: tuple[int, int]) -> list[Sample]:
        """`count` scenes of one (height, width) in pixels: numbers index * batch_size and on."""
        scale = 192 / min(size)
        small = round(size[0] * scale), round(size[1] * scale)
        batch = _paired(self.generator, index * self.batch_size, count, small)
        return [_enlarged(sample, *size) for sample in batch]


class CutoutBatches:
    """Scenes of cut-outs without end, paired as emoji scenes are.

    Args:
        library: the objects; training sees its `part` that is not held out.
        backgrounds: photographs behind the objects; None: drawn ones.
        short_side: pixels of the shorter side of a batch.
    """

    def __init__(
        self,
        library: Library,
        batch_size: int,
        backgrounds: Backgrounds | None = None,
        seed: int = 0,
        short_side: int = 192,
    ):
        self.batch_size, self.short_side = batch_size, short_side
        self.generator = CutoutGenerator(library.part(held_out=False), backgrounds, seed=20_000 + seed)
        self.names, self.trainable = self.generator.names, self.generator.drawable

    def __call__(self, step: int) -> list[Sample]:
        size = drawn_size(self.short_side, np.random.default_rng([self.generator.seed, step]))
        return self.pictures(step, self.batch_size, size)

    def pictures(self, index: int, count: int, size: tuple[int, int]) -> list[Sample]:
        """`count` scenes of one (height, width) in pixels: numbers index * batch_size and on."""
        return _paired(self.generator, index * self.batch_size, count, size)


def _paired(generator: SceneGenerator, first: int, count: int, size: tuple[int, int]) -> list[Sample]:
    """`count` scenes, number `first` and on; every second one holds the categories of the one before it."""
    batch: list[Sample] = []
    for i in range(count):
        shared = np.unique(batch[-1].labels) if i % 2 and len(batch[-1].labels) else None
        batch.append(generator.scene(first + i, size, shared))
    return batch


def drawn_size(short_side: int, rng: np.random.Generator) -> tuple[int, int]:
    """(height, width) of a batch's pictures, multiples of 32: one of the scenes' sizes times short_side / 192."""
    height, width = SIZES[rng.integers(len(SIZES))]
    return round(height * short_side / 192 / 32) * 32, round(width * short_side / 192 / 32) * 32


def _enlarged(sample: Sample, height: int, width: int) -> Sample:
    picture, boxes = v2.Resize([height, width], antialias=True)(*to_tensors(sample))
    return dataclasses.replace(sample, image=to_array(picture), boxes=boxes.numpy())


def to_tensors(sample: Sample) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]:
    """Picture [3, H, W] and boxes, for torchvision's transforms, which move both."""
    picture = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1))
    return picture, tv_tensors.BoundingBoxes(
        torch.from_numpy(sample.boxes), format="XYXY", canvas_size=sample.image.shape[:2]
    )


def to_array(picture: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
