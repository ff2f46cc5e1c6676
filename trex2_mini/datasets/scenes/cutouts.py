"""Scenes of objects cut out of photographs: real appearance, exact boxes, and another object of the category each time.

A scene uses one level of each group of names. Either all dogs are called dogs, whatever their breed. Or the pug is
called a pug, and nothing is called a dog. The names of the other level are unknown in that scene, not absent.
"""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.sample import Sample
from trex2_mini.datasets.scenes.backgrounds import add_clutter
from trex2_mini.datasets.scenes.generator import SIZES, SceneConfig, SceneGenerator
from trex2_mini.datasets.scenes.library import Library, cutout_pyramid
from trex2_mini.datasets.scenes.painting import Canvas
from trex2_mini.images import load_image


@dataclass(frozen=True)
class Backgrounds:
    """Photographs whose pieces lie behind the objects.

    boxes: each photograph's annotated objects, float32 [n, 4], xyxy pixels. names: theirs, in small letters.
    """

    paths: tuple[str, ...]
    boxes: tuple[np.ndarray, ...]
    names: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, datasets: Sequence[CocoDataset]) -> Backgrounds:
        paths, boxes, names = [], [], []
        for dataset in datasets:
            called = dict(zip(dataset.category_ids, dataset.names, strict=True))
            annotations = dataset.annotations_by_image()
            for image in dataset.coco["images"]:
                own = annotations[image["id"]]
                corners = np.array([a["bbox"] for a in own], np.float32).reshape(-1, 4)
                corners[:, 2:] += corners[:, :2]
                paths.append(str(dataset.images / image["file_name"]))
                boxes.append(corners)
                names.append(tuple(called[a["category_id"]].lower() for a in own))
        return cls(tuple(paths), tuple(boxes), tuple(names))

    def piece(self, rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, set[str]]:
        """A piece of a photograph, scaled to (height, width). Of eight pieces it is the one that shows least of any
        object.

        A piece is a quarter to three quarters as wide as would fit. Returns the pixels, float32 [height, width, 3] in
        0..255, and the names of the annotated objects that it shows a part of.
        """
        which = int(rng.integers(len(self.paths)))
        picture, scale = photograph(self.paths[which])
        boxes = self.boxes[which] * np.float32(scale)
        fit = min(picture.width / width, picture.height / height)
        best, least, shown = (0.0, 0.0, 1.0, 1.0), np.inf, np.zeros(len(boxes), bool)
        for _ in range(8):
            zoom = fit * np.exp(rng.uniform(np.log(0.25), np.log(0.75)))
            x, y = rng.uniform(0, picture.width - zoom * width), rng.uniform(0, picture.height - zoom * height)
            window = np.array([x, y, x + zoom * width, y + zoom * height], np.float32)
            sides = np.clip(np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2]), 0, None)
            share = sides.prod(1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1)
            if (most := share.max(initial=0.0)) < least:
                best, least, shown = (x, y, x + zoom * width, y + zoom * height), most, share > 0
        piece = picture.resize((width, height), Image.Resampling.BILINEAR, box=best)
        if rng.random() < 0.5:
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.2:
            piece = piece.filter(ImageFilter.BoxBlur(float(rng.uniform(1, 4))))
        seen = {name for name, some in zip(self.names[which], shown, strict=True) if some}
        return np.asarray(piece, np.float32), seen


@lru_cache(maxsize=256)
def photograph(path: str) -> tuple[Image.Image, float]:
    """A photograph in memory, brought under 640 px, and its scale: 1, or less for a large one."""
    picture = Image.fromarray(load_image(path))
    width = picture.width
    picture.thumbnail((640, 640))
    return picture, picture.width / width


class CutoutGenerator(SceneGenerator):
    """Draws scenes of cut-outs; label index = place in `library.names`.

    A scene's `vocabulary` holds the names of its level that the library has pictures of. Names of the other level that
    fit its objects are `ambiguous`.

    Args:
        library: the objects (a `part` of them).
        backgrounds: photographs whose pieces lie behind; None: drawn backgrounds only.
        seed: with the scene's index the only source of chance.
        broad: the chance that a scene uses a group's broad name.
        drawn: the chance of a drawn background where there are photographs.
    """

    def __init__(
        self,
        library: Library,
        backgrounds: Backgrounds | None = None,
        seed: int = 0,
        broad: float = 0.5,
        drawn: float = 0.2,
    ) -> None:
        self.library, self.backgrounds, self.seed, self.broad, self.drawn = library, backgrounds, seed, broad, drawn
        self.names = list(library.names)
        place = {name: label for label, name in enumerate(self.names)}
        self._broad_of = np.array([place[library.broader[n]] if n in library.broader else -1 for n in self.names])
        self._groups = np.where(self._broad_of >= 0, self._broad_of, np.arange(len(self.names)))
        self._broad = np.unique(self._broad_of[self._broad_of >= 0])
        self._own = [list(files) for files in library.files]
        self._all = [list(files) for files in library.files]  # a broad name's: its narrow ones' too
        for label, broad_label in enumerate(self._broad_of):
            if broad_label >= 0:
                self._all[broad_label] += self._own[label]
        self.drawable = [label for label, files in enumerate(self._all) if files]
        self.config = SceneConfig(
            colour=0.2, hue=6.0, noise=0.35, blur=0.3, any_angle=0.1, shadow=0.5, min_visible=0.45, clutter=0.1
        )
        self.level = np.zeros(len(self.names), bool)  # of one scene: the names it may use
        self.behind: set[str] = set()  # of one scene: names of what its background shows some of

    def scene(self, index: int, size: tuple[int, int] | None = None, categories: Sequence[int] | None = None) -> Sample:
        """See `SceneGenerator.scene`. Where `categories` are given, each group is used at their level."""
        rng = np.random.default_rng([self.seed, index, 1])
        one = copy.copy(self)  # what draws this scene alone
        drawn_size = SIZES[rng.integers(len(SIZES))]
        height, width = size = size or drawn_size
        one.level = self._level(rng, categories)
        one.weights = self._weights(one.level)
        one.behind = set()
        largest = min(height, width) * np.exp(rng.uniform(np.log(0.22), np.log(0.7)))
        if rng.random() < 0.15:  # a crowd of one or two categories
            most = int(rng.integers(10, 31))
            largest = min(largest, 1.3 * np.sqrt(height * width / most))
            knobs: dict = {"categories": (1, 2), "objects": (10, most), "repeat": 1.0}
            one.copies = (8, most)
        else:
            knobs = {"categories": (1, 5), "objects": (2, 14), "repeat": 0.9}
            one.copies = (1, 6)
        largest = max(largest, 24.0)
        knobs |= {"side": (max(16.0, largest / 6), largest), "side_beta": (1.6, 1.4)}
        one.config = dataclasses.replace(self.config, **knobs)
        sample = super(CutoutGenerator, one).scene(index, size, categories)
        known = np.array([bool(files) for files in self._all]) & one.level
        known[[label for label, name in enumerate(self.names) if name.lower() in one.behind]] = False
        known[sample.labels] = True
        other = ~one.level & np.isin(self._groups, self._groups[sample.labels])
        return dataclasses.replace(sample, vocabulary=np.flatnonzero(known), ambiguous=np.flatnonzero(other))

    def _level(self, rng: np.random.Generator, categories: Sequence[int] | None) -> np.ndarray:
        """The names that a scene uses: of each group the broad one or the narrow ones."""
        level = np.ones(len(self.names), bool)
        for broad in self._broad:
            use = rng.random() < self.broad
            if categories is not None:
                given = [int(c) for c in categories if self._groups[c] == broad]
                use = broad in given if given else use
            level[(self._broad_of == broad) if use else [broad]] = False
        return level

    def _weights(self, level: np.ndarray) -> np.ndarray:
        """The chance of each name at a draw. Names with few pictures and narrow names of a large group get less."""
        count = np.array([len(files) for files in self._all])
        weights = level * np.minimum(1.0, count / 8) ** 0.5
        narrow = self._broad_of >= 0
        size = np.bincount(self._groups[narrow], minlength=len(self.names))
        weights[narrow] *= np.maximum(1, size[self._groups[narrow]]) ** -0.5
        weights[self._broad] *= 2
        return weights / weights.sum()

    def _keys(self, rng: np.random.Generator, labels: Sequence[int]) -> list[str]:
        """Each object's picture, from a shuffled deck of its name's pictures: none comes twice before all came once."""
        decks: dict[int, list[str]] = {}
        keys = []
        for label in labels:
            if not decks.get(label):
                files = self._all[label]
                decks[label] = [files[i] for i in rng.permutation(len(files))]
            keys.append(decks[label].pop())
        return keys

    def _pyramid(self, key: str) -> Sequence[Image.Image]:
        return cutout_pyramid(key)

    def _background(self, rng: np.random.Generator, height: int, width: int) -> Canvas:
        if self.backgrounds is None or rng.random() < self.drawn:
            return super()._background(rng, height, width)
        pixels, self.behind = self.backgrounds.piece(rng, height, width)
        if rng.random() < self.config.clutter:
            pixels = add_clutter(rng, pixels, most=8)
        return Canvas(np.array(pixels), self.config.min_visible, self.config.min_box)

    def _recolour(self, rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
        """As for the drawn ones; a quarter of the objects are out of focus."""
        patch = super()._recolour(rng, patch)
        if rng.random() < 0.25:
            soft = ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.2)))
            patch = np.array(Image.fromarray(patch.astype(np.uint8)).filter(soft), np.float32)
        return patch

    def _finish(self, rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
        """Light, noise and blur over the whole scene, and a camera's compression on half of them."""
        image = super()._finish(rng, pixels)
        if rng.random() < 0.5:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(40, 95)))
            image = np.array(Image.open(file))
        return image
