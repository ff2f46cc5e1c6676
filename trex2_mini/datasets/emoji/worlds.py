"""The worlds of emoji-wild: small sets that look like nothing in training, as ODinW's 35 sets do beside COCO.

A world is data: its own category names, where its artwork comes from, changed knobs, and up to three functions of
styles.py that draw the ground, ink each object and change the look of the picture. The rest is the scene generator's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

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


FLAT = {"clutter": 0.0, "shadow": 0.0, "light": 0.0, "noise": 0.0, "blur": 0.0}
UPRIGHT = {"tilt": 0.0, "any_angle": 0.0, "stretch": 0.0, "truncate": 0.0}

WORLDS = {
    "lineart": World(
        "dark lines on paper, from another emoji font",
        "cat, elephant, house, bicycle, umbrella, tree, camel, guitar, teapot, castle, car, owl, key, tropical fish",
        "noto", FLAT | {"min_visible": 0.95}, touching=0.0, ground=styles.paper,
        ink=styles.one_colour((0, 0, 0), (60, 60, 90)),
    ),
    "pictograms": World(
        "white pictograms on the plates of signs",
        "bus, airplane=plane, restaurant=utensils, ladies=person-dress, bicycle, ambulance=truck-medical, "
        "swimming=person-swimming, wheelchair, telephone=phone, baby, skiing=person-skiing, recycling=recycle, taxi, "
        "toilet, suitcase",
        "awesome", {"side": (12.0, 48.0), "tilt": 8.0, "any_angle": 0.0, "flip": 0.0}, ink=styles.plate,
    ),
    "interface": World(
        "flat icons on the screens of apps",
        "camera, bell, key, printer, cloud, calendar, wifi, shopping cart=cart, thumbs up=thumb-up, envelope=email, "
        "magnifying glass=magnify, gear=cog, padlock=lock, battery, microphone",
        "material", FLAT | UPRIGHT | {"side": (11.0, 40.0), "flip": 0.0},
        touching=0.0, ground=styles.screen, ink=styles.one_colour((60,) * 3, (200,) * 3),
    ),
    "blackboard": World(
        "thin chalk drawings",
        "cat=cat-light, dog=dog-light, fish=fish-light, flower=flower-light, tree=tree-light, bird=bird-light, "
        "rocket=rocket-light, "
        "house=house-light, sun=sun-light, cloud=cloud-light, paper plane=paper-plane-light, train=train-light, "
        "car=car-light, star=star-light",
        "phosphor", FLAT | {"noise": 0.5, "side": (20.0, 72.0), "min_visible": 0.95},
        touching=0.0, ground=styles.board, ink=styles.one_colour((190, 190, 170), (255, 255, 255)),
    ),
    "documents": World(
        "small icons among the words and tables of printed pages",
        "scissors=scissors-fill, pencil=pencil-fill, t-shirt=t-shirt-fill, suitcase=suitcase-fill, "
        "microscope=microscope-fill, "
        "stethoscope=stethoscope-fill, globe=globe-fill, newspaper=newspaper-fill, calculator=calculator-fill, "
        "bar chart=bar-chart-2-fill, "
        "pie chart=pie-chart-fill, scales=scales-fill, bank=bank-fill, umbrella=umbrella-fill",
        "remix", FLAT | UPRIGHT | {"side": (12.0, 44.0), "noise": 0.3}, touching=0.0, ground=styles.page,
        ink=styles.one_colour((0,) * 3, (120,) * 3),
    ),
    "night": World(
        "streets and gardens in the dark",
        "car, taxi, bus, motorcycle, traffic light, cat, owl, bat, fox, police car, house, bicycle, raccoon, suitcase",
        look=styles.night,
    ),
    "aerial": World(
        "tiny, dense, turned any way",
        "car, bus, truck=delivery truck, tractor, plane=airplane, sailboat, tent, house, tree, ship=cruise ship, "
        "cow, parasol=beach umbrella",
        knobs={"side": (9.0, 20.0), "any_angle": 1.0, "objects": (30, 80), "repeat": 1.0, "min_box": 4, "shadow": 0.2,
            "clutter": 0.0},
        size=(256, 256), touching=0.0, copies=(6, 24), ground=styles.fields,
    ),
    "underwater": World(
        "tinted, hazy and soft",
        "shark, dolphin, octopus, jellyfish, turtle, crab, lobster, tropical fish, pufferfish, killer whale=orca, "
        "goggles=diving mask, "
        "anchor, shrimp, chest=treasure chest", look=styles.water,
    ),
    "pixelart": World(
        "every pixel three wide, few colours",
        "mushroom=red mushroom, cherries, strawberry, duck, frog, snail, cactus, star, apple, grapes, rabbit, pig, "
        "cloud",
        knobs=UPRIGHT | {"side": (12.0, 34.0), "shadow": 0.0, "noise": 0.0, "blur": 0.0}, size=(72, 88), zoom=3,
        look=styles.posterize,
    ),
    "thermal": World(
        "false colours by temperature",
        "human=person, dog, cat, horse, cow, deer, fox, car, truck=delivery truck, bird, lion, elephant, camel, "
        "hippopotamus",
        knobs=FLAT, ground=styles.cold, ink=styles.warm, look=styles.thermal,
    ),
    "games": World(
        "upright figures in a platform game",
        "bomb, key, crown, ghost, skull, shield, gem=gemstone, cup=trophy, coin, invader=space invader, "
        "chest=treasure chest, "
        "wand=magic wand, bow=bow and arrow, wizard",
        knobs=FLAT | UPRIGHT | {"side": (16.0, 44.0), "colour": 0.0, "hue": 0.0}, touching=0.0, ground=styles.tiles,
    ),
    "stickers": World(
        "cartoons with a white border on whole photographs",
        "pizza, doughnut=donut, hamburger, wine glass, croissant, banana, watermelon, burrito, ice cream cone, "
        "pretzel, cupcake, avocado",
        knobs={"clutter": 0.0, "side": (20.0, 96.0)}, ground=styles.photograph, ink=styles.sticker,
    ),
    "crowded": World(
        "kitchen things that cover one another, down to a fifth of each",
        "spoon, teapot, bottle, cup, bowl, kitchen knife, wine glass, baby bottle, vase, plate=plate with cutlery, "
        "candle, basket, "
        "alarm clock, light bulb",
        knobs={"objects": (12, 18), "side": (36.0, 110.0), "min_visible": 0.2, "repeat": 1.0, "truncate": 0.0},
        touching=1.0, copies=(4, 8), heaped=True,
    ),
    "grey": World(
        "sports in old black-and-white photographs",
        "soccer ball, baseball, basketball, volleyball, tennis ball, boxing glove, trophy, medal, badminton racket, "
        "table tennis bat=table tennis paddle, curling stone, boomerang, bowling pins, skateboard", look=styles.grey,
    ),
    "silhouettes": World(
        "black shapes before an evening sky",
        "giraffe, elephant, camel, kangaroo, eagle, palm tree, horse, deer, sailboat, airplane, bicycle, pine tree, "
        "hippopotamus, penguin",
        knobs={"clutter": 0.0, "shadow": 0.0, "min_visible": 0.8}, touching=0.0, ground=styles.dusk,
        ink=styles.one_colour((0, 0, 0), (35, 20, 35)),
    ),
}  # fmt: skip


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
