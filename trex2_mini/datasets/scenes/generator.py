"""Scenes composed of OpenMoji artwork: the embedded benchmark's pictures, made on the fly.

A scene is a pure function of (seed, index): every choice comes from `np.random.default_rng([seed, index])`. This
module draws what a scene holds and how each object looks; painting.py paints it and knows what stays visible.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from trex2_mini.datasets.sample import Sample
from trex2_mini.datasets.scenes.backgrounds import KINDS, add_clutter, background
from trex2_mini.datasets.scenes.catalogue import EmojiCategory, icon_pyramid, load_catalogue
from trex2_mini.datasets.scenes.painting import Canvas, tight_box

GREY = np.full((3, 3), 1 / 3)  # projects a colour onto the grey axis
CROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)  # turns it a right angle about that axis
SIZES = ((192, 192), (192, 224), (224, 192), (192, 256), (256, 192))  # (height, width) in pixels


@dataclass(frozen=True)
class SceneConfig:
    """Knobs of a scene. Lengths are pixels, angles degrees, chances 0..1."""

    categories: tuple[int, int] = (2, 5)  # least and most categories a scene
    objects: tuple[int, int] = (3, 12)  # least and most objects a scene (a scene too full to hold them keeps fewer)
    repeat: float = 0.9  # chance that one to three categories of the scene come 2 to 5 times
    look_alikes: float = 0.3  # chance that the scene's categories share one super-category
    tail_offset: float = 20.0  # a trained category of rank r is drawn with weight (r + tail_offset) ** -tail_exponent
    tail_exponent: float = 0.7  # 0: every category alike
    novel_share: float = 0.2  # chance that a drawn category is novel, in a generator that includes them

    side: tuple[float, float] = (12.0, 96.0)  # long side of an object before rotation, log-distributed between the two
    side_beta: tuple[float, float] = (2.6, 1.6)  # the Beta distribution of its place on the log scale
    tilt: float = 25.0  # most objects turn by up to this
    any_angle: float = 0.15  # chance of any angle instead
    flip: float = 0.5  # chance of a mirror image
    stretch: float = 0.15  # width / height is changed by up to this share
    truncate: float = 0.15  # chance that an object may reach out of the picture, by at most a quarter of each side
    min_visible: float = 0.5  # share of an object's pixels (alpha > 0.5) that stays visible, whatever covers or cuts it
    min_box: int = 5  # least width and height of a visible box

    colour: float = 0.15  # strength of each object's brightness, contrast and saturation jitter
    hue: float = 12.0  # hue turns by up to this
    shadow: float = 0.4  # chance of a soft shadow under an object (no part of its box)
    # chance of each kind: noise, gradient, pattern, material, photograph
    backgrounds: tuple[float, ...] = (0.2, 0.12, 0.13, 0.2, 0.35)
    clutter: float = 0.35  # chance of geometric shapes behind the objects
    light: float = 0.5  # chance of a change of light over the whole scene: gamma 0.7..1.4 and a gradient of +-25 %
    noise: float = 0.3  # chance of sensor noise of up to 8 grey levels
    blur: float = 0.15  # chance of a blur of radius up to 0.8 px

    def __post_init__(self) -> None:
        if len(self.backgrounds) != len(KINDS) or abs(sum(self.backgrounds) - 1) > 1e-6:
            raise ValueError(f"backgrounds must be {len(KINDS)} chances {KINDS} that sum to 1, got {self.backgrounds}")
        if not 1 <= self.categories[0] <= self.categories[1] or not 1 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f"categories and objects are (least, most), got {self.categories} and {self.objects}")


def turned(
    pyramid: Sequence[Image.Image], side: float, angle: float, flip: float = 1.0, stretch: float = 1.0
) -> np.ndarray:
    """An object's picture turned, scaled and flipped in one resampling.

    Args:
        pyramid: the picture at full, half and quarter size, premultiplied alpha ("RGBa"); see `icon_pyramid`.
        side: its long side before it is turned, px.
        angle: radians. flip: 1, or -1 for its mirror image. stretch: its width grows by this factor, its height
            shrinks.

    Returns:
        float32 [h, w, 4], premultiplied alpha, 0..255.
    """
    scale = side / max(pyramid[0].size)
    level = 0 if scale > 0.5 else 1 if scale > 0.25 else 2
    icon = pyramid[level]
    scale = side / max(icon.size)
    wide, tall = flip * scale * stretch, scale / stretch
    cosine, sine = np.cos(angle), np.sin(angle)
    half = icon.width / 2, icon.height / 2
    width = int(2 * (abs(cosine * wide) * half[0] + abs(sine * tall) * half[1])) + 3
    height = int(2 * (abs(sine * wide) * half[0] + abs(cosine * tall) * half[1])) + 3
    # PIL wants the way back, from the patch's pixels to the icon's
    a, b, d, e = cosine / wide, sine / wide, -sine / tall, cosine / tall
    matrix = (a, b, half[0] - (a * width + b * height) / 2, d, e, half[1] - (d * width + e * height) / 2)
    turned = icon.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(turned, dtype=np.float32)


class SceneGenerator:
    """Draws scenes; label index = place in the catalogue.

    Args:
        config: the knobs.
        seed: with the scene's index the only source of chance.
        include_novel: also draw the categories kept out of training, with `config.novel_share`.
        catalogue: the categories, if not all emoji. With a catalogue of novel ones only, name a scene's categories.
    """

    touching = 0.35  # chance that an object may cover earlier ones from the first try on (later tries always may)
    copies = (1, 5)  # a repeated category comes this many times more: least, most + 1

    def __init__(
        self,
        config: SceneConfig = SceneConfig(),
        seed: int = 0,
        include_novel: bool = False,
        catalogue: Sequence[EmojiCategory] | None = None,
    ) -> None:
        self.config, self.seed, self.include_novel = config, seed, include_novel
        catalogue = load_catalogue() if catalogue is None else catalogue
        self.names = [category.name for category in catalogue]
        self._codepoints = [category.codepoint for category in catalogue]
        self._groups = np.array([category.supercategory for category in catalogue])
        novel = np.array([category.novel for category in catalogue])
        ranks = np.zeros(len(catalogue))
        ranks[~novel] = np.random.default_rng(0).permutation(int((~novel).sum()))  # the same ranks under every seed
        weights = np.where(novel, 0.0, (ranks + config.tail_offset) ** -config.tail_exponent)
        weights /= max(weights.sum(), 1e-12)
        if include_novel and novel.any():
            weights = weights * (1 - config.novel_share) + novel * config.novel_share / novel.sum()
        self.weights = weights  # float64 [categories], chance of each at a draw

    def scene(self, index: int, size: tuple[int, int] | None = None, categories: Sequence[int] | None = None) -> Sample:
        """Scene number `index`.

        Args:
            index: >= 0.
            size: (height, width) in pixels; chosen from `SIZES` if not given.
            categories: labels that the scene shall hold, instead of drawn ones.

        Returns:
            The picture and its objects in painting order; boxes are xyxy pixels, right and bottom exclusive.
        """
        rng = np.random.default_rng([self.seed, index])
        drawn_size = SIZES[rng.integers(len(SIZES))]
        height, width = size or drawn_size
        labels = self._labels(rng, categories)
        canvas = self._background(rng, height, width)
        keys = self._keys(rng, labels)
        kept = [label for label, key in zip(labels, keys, strict=True) if self._add(rng, canvas, key)]
        return Sample(
            image=self._finish(rng, canvas.pixels),
            boxes=np.array(canvas.boxes, dtype=np.float32).reshape(-1, 4),
            labels=np.array(kept, dtype=np.int64),
            image_id=index,
            areas=np.array(canvas.visible, dtype=np.float32),
        )

    def planned(self, index: int, categories: Sequence[int] | None = None) -> list[int]:
        """Labels of the objects that scene `index` sets out to hold; a few may find no place when it is painted."""
        rng = np.random.default_rng([self.seed, index])
        rng.integers(len(SIZES))
        return self._labels(rng, categories)

    def _keys(self, rng: np.random.Generator, labels: Sequence[int]) -> list[str]:
        """Which picture shows each object; `_pyramid` makes it."""
        return [self._codepoints[label] for label in labels]

    def _pyramid(self, key: str) -> Sequence[Image.Image]:
        return icon_pyramid(key)

    def _labels(self, rng: np.random.Generator, categories: Sequence[int] | None) -> list[int]:
        """The labels of the scene's objects in painting order."""
        config = self.config
        if categories is None:
            count = int(rng.integers(config.categories[0], config.categories[1] + 1))
            drawn = [self._draw(rng, self.weights)]
            weights = self.weights
            if rng.random() < config.look_alikes:
                weights = np.where(self._groups == self._groups[drawn[0]], weights, 0.0)
                weights = weights / weights.sum()
            for _ in range(4 * count):
                if len(drawn) == count:
                    break
                label = self._draw(rng, weights)
                if label not in drawn:
                    drawn.append(label)
        else:
            drawn = list(categories)
        extra: list[int] = []
        if rng.random() < config.repeat or len(drawn) < config.objects[0]:
            for label in drawn[: rng.integers(1, 4)]:
                extra += [label] * int(rng.integers(*self.copies))
            extra += [drawn[0]] * (config.objects[0] - len(drawn) - len(extra))
        room = max(config.objects[1] - len(drawn), 0)
        # one object of every category comes before the repetitions: a full scene loses no category for them
        return drawn + [extra[i] for i in rng.permutation(len(extra))][:room]

    @staticmethod
    def _draw(rng: np.random.Generator, weights: np.ndarray) -> int:
        return min(int(np.searchsorted(np.cumsum(weights), rng.random(), side="right")), len(weights) - 1)

    def _background(self, rng: np.random.Generator, height: int, width: int) -> Canvas:
        pixels = background(rng, height, width, self.config.backgrounds)
        if rng.random() < self.config.clutter:
            pixels = add_clutter(rng, pixels, most=14)
        return Canvas(np.clip(pixels, 0, 255), self.config.min_visible, self.config.min_box)

    def _add(self, rng: np.random.Generator, canvas: Canvas, key: str) -> bool:
        """Paint one object; False if no place was found for it. A crowded scene makes it smaller."""
        config = self.config
        low, high = config.side
        side = low * (high / low) ** rng.beta(*config.side_beta)
        touching = rng.random() < self.touching
        outside = 0.25 if rng.random() < config.truncate else 0.0
        for attempt in range(4):
            patch = self._patch(rng, key, side)
            ink = tight_box(patch[..., 3] > 127.5)
            if ink is None or min(ink[2] - ink[0], ink[3] - ink[1]) < config.min_box:
                side *= 1.4  # too thin at this size
                continue
            patch = self._recolour(rng, patch[ink[1] : ink[3], ink[0] : ink[2]])
            shadow = float(rng.uniform(0.25, 0.6)) if rng.random() < config.shadow else 0.0
            for trial in range(6):
                x, y = self._position(rng, canvas, patch, outside)
                if canvas.place(patch, x, y, shadow, touching or attempt + trial >= 5):
                    return True
            side = max(side * 0.75, low)
        return False

    @staticmethod
    def _position(rng: np.random.Generator, canvas: Canvas, patch: np.ndarray, outside: float) -> tuple[int, int]:
        """A random corner (x, y) that leaves at most the share `outside` of each side out of the picture."""
        corner = []
        for length, room in zip(patch.shape[1::-1], canvas.owner.shape[::-1]):
            corner.append(int(np.floor(rng.uniform(-outside * length, room - (1 - outside) * length + 1))))
        return corner[0], corner[1]

    def _patch(self, rng: np.random.Generator, key: str, side: float) -> np.ndarray:
        """The object's picture turned, scaled and flipped in one resampling: float32 [h, w, 4], premultiplied alpha,
        0..255."""
        config = self.config
        angle = np.deg2rad(
            rng.uniform(-180, 180) if rng.random() < config.any_angle else rng.uniform(-config.tilt, config.tilt)
        )
        flip = -1.0 if rng.random() < config.flip else 1.0
        stretch = np.exp(rng.uniform(-config.stretch, config.stretch) / 2)
        return turned(self._pyramid(key), side, angle, flip, stretch)

    def _recolour(self, rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
        """Brightness, contrast, saturation and hue as one affine map of the (premultiplied) colours."""
        strength, turn = self.config.colour, np.deg2rad(rng.uniform(-self.config.hue, self.config.hue))
        contrast, saturation = 1 + rng.uniform(-strength, strength, 2)
        lift = 127.5 * rng.uniform(-strength, strength) + 127.5 * (1 - contrast)
        # turn and stretch the colours about the grey axis (Rodrigues' formula)
        matrix = np.eye(4, dtype=np.float32)  # rows: red, green, blue, alpha of the icon; columns: of the result
        matrix[:3, :3] = contrast * (GREY + saturation * (np.cos(turn) * (np.eye(3) - GREY) + np.sin(turn) * CROSS)).T
        matrix[3, :3] = lift / 255
        result = patch @ matrix
        np.maximum(result, 0, out=result)
        return np.minimum(result, patch[..., 3:], out=result)

    def _finish(self, rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
        """Light, noise and blur over the whole scene; uint8 [H, W, 3]."""
        config, (height, width) = self.config, pixels.shape[:2]
        if rng.random() < config.light:
            across, down = rng.uniform(-0.25, 0.25, 2)
            gain = 1 + across * np.linspace(-1, 1, width) + down * np.linspace(-1, 1, height)[:, None]
            pixels = pixels * gain[..., None].astype(np.float32)
            curve = 255 * (np.arange(256) / 255) ** np.exp(rng.uniform(np.log(0.7), np.log(1.4)))
            pixels = np.take(curve.astype(np.float32), np.clip(pixels, 0, 255).astype(np.uint8))
        if rng.random() < config.noise:
            grain = rng.standard_normal((height, width, 1), dtype=np.float32)
            pixels = pixels + np.float32(rng.uniform(1, 8)) * grain
        image = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
        if rng.random() < config.blur:
            blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.8))))
            image = np.array(blurred)
        return image
