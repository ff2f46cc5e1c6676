"""The pictures of the embedded family: what each kind of set draws. formats.py writes down what is on them."""

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from trex2_mini.datasets.emoji.worlds import WorldGenerator, world_catalogue
from trex2_mini.datasets.sample import Sample
from trex2_mini.datasets.scenes.catalogue import EmojiCategory, icon_pyramid, load_catalogue
from trex2_mini.datasets.scenes.generator import SceneConfig, SceneGenerator, turned
from trex2_mini.datasets.scenes.painting import tight_box

FRAMES = 20  # of a clip


@dataclass
class Picture:
    """A picture of a set: its objects, what its entry in "images" says besides, and what each of its
    annotations does."""

    sample: Sample
    file_name: str
    info: dict = field(default_factory=dict)
    extras: list[dict] = field(default_factory=list)  # one an object, or none


def catalogue_of(kind: str, world: str = "") -> list[EmojiCategory]:
    """The categories of a set of this kind, in the order of its labels."""
    if kind == "wild":
        return list(world_catalogue(world))
    if kind == "coco":
        return [dataclasses.replace(c, name=c.coco, synonyms=()) for c in load_catalogue() if c.coco]
    return load_catalogue()


# drawing


def draw(kind: str, world: str, seed: int, index: int, held: list[int]) -> list[Picture]:
    """Picture number `index` of a set, holding the categories `held`; of clips, all frames."""
    if kind == "clips":
        return clip(seed, index, held)
    if kind == "wild":
        generator: SceneGenerator = WorldGenerator(world, seed)
    elif kind in ("count", "count-lvis"):
        return [Picture(_many(kind, seed, index, held), f"{index:05d}.jpg")]
    else:
        generator = SceneGenerator(seed=seed, include_novel=True, catalogue=catalogue_of(kind))
    return [Picture(generator.scene(index, categories=held), f"{index:05d}.jpg")]


class _Many(SceneGenerator):
    """Scenes of given numbers of objects, not of drawn ones."""

    def _labels(self, rng: np.random.Generator, categories: list[int]) -> list[int]:
        return list(categories)


def _many(kind: str, seed: int, index: int, held: list[int]) -> Sample:
    """A picture to count in. count: 20 to 300 of one category; count-lvis: 12 to 60 of the first, 2 to 8 of each other
    one.

    The more there are, the smaller they are: were all of them square, together they would cover 45 % of the picture.
    """
    rng = np.random.default_rng([seed, index, 1])
    height, width = (384, int(rng.choice([384, 448, 512]))) if kind == "count" else (288, 384)
    most = int(np.exp(rng.uniform(np.log(24), np.log(300)))) if kind == "count" else int(rng.integers(12, 61))
    labels = [held[0]] * most
    for label in held[1:]:
        labels += [label] * int(rng.integers(2, 9))
    side = min(np.sqrt(0.45 * height * width / len(labels)), 90.0)
    config = SceneConfig(
        side=(0.75 * side, 1.25 * side), side_beta=(1.0, 1.0), min_visible=0.6, truncate=0.05, shadow=0.2
    )
    generator = _Many(config, seed, include_novel=True)
    return generator.scene(index, (height, width), [labels[i] for i in rng.permutation(len(labels))])


def clip(seed: int, index: int, held: list[int]) -> list[Picture]:
    """A clip: objects that move, turn, grow and pass before one another over a ground that stands still.

    An object keeps its track_id (1, 2, ...) through the clip and is annotated where at least a fifth of it
    (`visibility`) and 5 px each way are seen; while it is hidden or outside its track pauses.
    """
    rng = np.random.default_rng([seed, index])
    generator = SceneGenerator(seed=seed, include_novel=True)
    height, width = 192, 256
    labels = generator.planned(index, held)
    canvas = generator._background(rng, height, width)
    ground, keys = canvas.pixels, [load_catalogue()[label].codepoint for label in labels]
    count = len(labels)
    centre = rng.uniform((0, 0), (width, height), (count, 2))
    goal = rng.uniform((0, 0), (width, height), (count, 2))
    side, growth = rng.uniform(24, 80, count), rng.uniform(0.8, 1.25, count)
    angle, turn = np.deg2rad(rng.uniform(-25, 25, count)), np.deg2rad(rng.uniform(-90, 90, count))
    flip, bow = rng.choice([-1.0, 1.0], count), rng.uniform(-30, 30, (count, 2))
    pictures = []
    for frame in range(FRAMES):
        time = frame / (FRAMES - 1)
        pixels, owner = ground.copy(), np.full((height, width), -1)
        whole = []
        for i in range(count):
            patch = turned(icon_pyramid(keys[i]), side[i] * growth[i] ** time, angle[i] + turn[i] * time, flip[i])
            x, y = centre[i] + (goal[i] - centre[i]) * time + bow[i] * np.sin(np.pi * time)
            left, top = round(x - patch.shape[1] / 2), round(y - patch.shape[0] / 2)
            whole.append(np.count_nonzero(patch[..., 3] > 127.5))
            rows, columns = np.arange(top, top + patch.shape[0]), np.arange(left, left + patch.shape[1])
            patch = patch[(rows >= 0) & (rows < height)][:, (columns >= 0) & (columns < width)]
            place = slice(max(top, 0), max(top, 0) + patch.shape[0]), slice(max(left, 0), max(left, 0) + patch.shape[1])
            pixels[place] = pixels[place] * (1 - patch[..., 3:] / 255) + patch[..., :3]
            owner[place][patch[..., 3] > 127.5] = i
        boxes, seen = [tight_box(owner == i) for i in range(count)], [int(np.sum(owner == i)) for i in range(count)]
        kept = [
            i
            for i, box in enumerate(boxes)
            if box and min(box[2] - box[0], box[3] - box[1]) >= 5 and seen[i] >= 0.2 * whole[i]
        ]
        sample = Sample(
            np.clip(pixels + 0.5, 0, 255).astype(np.uint8),
            np.array([boxes[i] for i in kept], np.float32).reshape(-1, 4),
            np.array([labels[i] for i in kept], np.int64),
            index * FRAMES + frame,
            np.array([seen[i] for i in kept], np.float32),
        )
        extras = [{"track_id": i + 1, "visibility": round(seen[i] / whole[i], 3)} for i in kept]
        info = {"video_id": index + 1, "frame_index": frame}
        pictures.append(Picture(sample, f"{index:03d}_{frame:03d}.jpg", info, extras))
    return pictures
