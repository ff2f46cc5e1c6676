"""The worlds of emoji-wild: small sets that look like nothing in training, as ODinW's 35 sets do beside COCO.

A world is data (worlds.yml): its own category names, where its artwork comes from, changed knobs, and up to three
functions of styles.py that draw the ground, ink each object and change the look of the picture. The rest is the scene
generator's.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from trex2_mini.datasets.emoji import styles
from trex2_mini.datasets.sample import Sample
from trex2_mini.datasets.scenes.catalogue import EmojiCategory, load_catalogue
from trex2_mini.datasets.scenes.generator import SceneConfig, SceneGenerator
from trex2_mini.datasets.scenes.painting import Canvas


@dataclass(frozen=True)
class World:
    """`names` are the set's own; "own name=source" where the artwork is called otherwise. Novel is what training has no
    category of."""

    about: str
    names: str
    font: str = ""  # a key of catalogue.FONTS, or "" for OpenMoji
    knobs: dict = field(default_factory=dict)  # changes to SceneConfig
    size: tuple[int, int] | None = None  # (height, width); None: as in training
    zoom: int = 1  # every pixel becomes this many
    touching: float = SceneGenerator.touching
    copies: tuple[int, int] = SceneGenerator.copies
    heaped: bool = False  # objects come to lie on earlier ones
    ground: Callable | None = None
    ink: Callable | None = None
    look: Callable | None = None

    @property
    def config(self) -> SceneConfig:
        return dataclasses.replace(SceneConfig(), **self.knobs)


def _read_worlds() -> dict[str, World]:
    """What worlds.yml says; its lists become tuples."""

    def fixed(value):
        return tuple(map(fixed, value)) if isinstance(value, list) else value

    def style(value) -> Callable:
        if isinstance(value, str):
            return getattr(styles, value)
        ((name, arguments),) = value.items()
        return getattr(styles, name)(*arguments)

    written = yaml.safe_load(Path(__file__).with_name("worlds.yml").read_text(encoding="utf-8"))
    worlds = {}
    for name, own in written.items():
        if name not in ("FLAT", "UPRIGHT"):  # what several share
            drawn = {key: style(own.pop(key)) for key in ("ground", "ink", "look") if key in own}
            knobs = {key: fixed(value) for key, value in own.pop("knobs", {}).items()}
            worlds[name] = World(**{key: fixed(value) for key, value in own.items()}, knobs=knobs, **drawn)
    return worlds


WORLDS = _read_worlds()


@cache
def world_catalogue(name: str) -> tuple[EmojiCategory, ...]:
    """A world's categories in the order of their names' list."""
    world, known = WORLDS[name], {category.name: category for category in load_catalogue()}
    return tuple(_category(*token.strip().split("="), font=world.font, known=known) for token in world.names.split(","))


def _category(name: str, source: str = "", *, font: str, known: dict[str, EmojiCategory]) -> EmojiCategory:
    """A world's category: the emoji's own artwork, or a glyph of the font by its name (of noto, by the emoji's code
    point)."""
    source = source or name
    if font in ("", "noto"):
        emoji = known[source]
        key = f"noto:{emoji.codepoint}" if font else emoji.codepoint
        return dataclasses.replace(emoji, name=name, codepoint=key, synonyms=())
    emoji = known.get(name)
    novel = emoji is None or emoji.novel
    group = "icon" if emoji is None else emoji.supercategory
    return EmojiCategory(f"{font}:{source}", name, (), group, "", "", novel)


class WorldGenerator(SceneGenerator):
    """Draws the scenes of a world; label index = place in `world_catalogue(name)`."""

    def __init__(self, name: str, seed: int) -> None:
        self.world = WORLDS[name]
        self.touching, self.copies = self.world.touching, self.world.copies
        super().__init__(self.world.config, seed, include_novel=True, catalogue=world_catalogue(name))

    def scene(self, index: int, size: tuple[int, int] | None = None, categories: Sequence[int] | None = None) -> Sample:
        """As in `SceneGenerator`; a world of a size of its own keeps it."""
        sample, zoom = super().scene(index, size or self.world.size, categories), self.world.zoom
        if zoom > 1:
            sample.image = sample.image.repeat(zoom, axis=0).repeat(zoom, axis=1)
            sample.boxes, sample.areas = sample.boxes * zoom, sample.areas * zoom**2
        return sample

    def _background(self, rng: np.random.Generator, height: int, width: int) -> Canvas:
        if self.world.ground is None:
            return super()._background(rng, height, width)
        ground = np.clip(self.world.ground(rng, height, width), 0, 255).astype(np.float32)
        return Canvas(ground, self.config.min_visible, self.config.min_box)

    def _position(self, rng: np.random.Generator, canvas: Canvas, patch: np.ndarray, outside: float) -> tuple[int, int]:
        if not self.world.heaped or not canvas.boxes or rng.random() < 0.25:
            return super()._position(rng, canvas, patch, outside)
        below = np.array(canvas.boxes[rng.integers(len(canvas.boxes))]).reshape(2, 2).mean(axis=0)
        corner = below + np.array(patch.shape[1::-1]) * (rng.uniform(-0.4, 0.4, 2) - 0.5)
        return int(corner[0]), int(corner[1])

    def _recolour(self, rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
        if self.world.ink in (None, styles.sticker, styles.warm):
            patch = super()._recolour(rng, patch)
        return patch if self.world.ink is None else self.world.ink(rng, patch).astype(np.float32)

    def _finish(self, rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
        return super()._finish(rng, pixels if self.world.look is None else self.world.look(rng, pixels))
