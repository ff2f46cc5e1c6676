"""Backgrounds of the emoji scenes: noise, gradients, stripes and checks, tinted materials, pieces of photographs.

The materials and photographs come in scikit-image's wheel (no network). Only pieces that show no object of the
catalogue are used, so that no background carries an unlabelled cat or cup; scikit-image's `coins` is left out, for the
notebooks.
"""

from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

MATERIALS = ("brick.png", "grass.png", "gravel.png")
# file, piece as (left, top, right, bottom) in 0..1 of the photograph
PHOTOGRAPHS = (
    ("astronaut.png", (0.00, 0.42, 0.55, 1.00)),  # the suit
    ("camera.png", (0.68, 0.00, 1.00, 0.62)),  # skyline and lawn
    ("chelsea.png", (0.20, 0.00, 0.66, 0.26)),  # fur
    ("coffee.png", (0.00, 0.00, 0.27, 0.38)),  # the wooden table
    ("coffee.png", (0.81, 0.30, 1.00, 1.00)),
    ("hubble_deep_field.jpg", (0.00, 0.00, 1.00, 1.00)),
    ("ihc.png", (0.00, 0.00, 1.00, 1.00)),
    ("retina.jpg", (0.10, 0.10, 0.90, 0.90)),
    ("rocket.jpg", (0.00, 0.00, 0.46, 1.00)),  # evening sky and towers
    ("rocket.jpg", (0.52, 0.00, 1.00, 1.00)),
)
KINDS = ("noise", "gradient", "pattern", "material", "photograph")


@cache
def photo(name: str, piece: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> Image.Image:
    """A file of scikit-image's data folder, decoded, cut to `piece` and brought under 512 px."""
    with (files("skimage") / "data" / name).open("rb") as file:
        picture = Image.open(file)
        picture = picture.convert("L" if picture.mode in ("L", "1") else "RGB")
    width, height = picture.size
    picture = picture.crop(
        (int(piece[0] * width), int(piece[1] * height), int(piece[2] * width), int(piece[3] * height))
    )
    picture.thumbnail((512, 512))
    return picture


def _upsample(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic upsampling of a small grid [h, w, 3] in 0..255 to float32 [height, width, 3]."""
    picture = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


def _palette(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Random colours [*shape, 3] in 0..255 about a common one: from nearly plain to garish, from grey to vivid."""
    colours = rng.uniform(0, 255, (*shape, 3))
    common = rng.uniform(30, 225, 3)
    colours = common + rng.uniform(0.15, 0.9) * (colours - common)
    grey = colours.mean(axis=-1, keepdims=True)
    return grey + rng.uniform(0.1, 1.0) * (colours - grey)


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Three octaves of coloured noise, each finer one weaker."""
    canvas = _upsample(_palette(rng, (3, 4)), height, width)
    for cells, strength in ((8, rng.uniform(0.1, 0.5)), (24, rng.uniform(0.0, 0.4)), (72, rng.uniform(0.0, 0.3))):
        canvas += np.float32(strength) * (_upsample(_palette(rng, (cells, cells)), height, width) - np.float32(127.5))
    return canvas


def _pattern(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Stripes or checks of two colours at any angle, edges hard or soft."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 48)
    y, x = np.mgrid[:height, :width].astype(np.float32) * np.float32(2 * np.pi / period)
    wave = np.sin(np.cos(angle) * x + np.sin(angle) * y)
    if rng.random() < 0.5:
        wave = wave * np.sin(np.cos(angle) * y - np.sin(angle) * x)
    mix = np.clip(wave * rng.choice([0.7, 8.0]) + 0.5, 0, 1)[..., None]
    return _blend(rng, mix)


def _blend(rng: np.random.Generator, mix: np.ndarray) -> np.ndarray:
    """Two random colours, mixed by `mix` [H, W, 1] in 0..1; their contrast varies."""
    first = rng.uniform(0, 255, 3)
    second = first + (rng.uniform(0, 255, 3) - first) * rng.uniform(0.3, 1.0)
    return first.astype(np.float32) + (second - first).astype(np.float32) * mix.astype(np.float32)


def crop(rng: np.random.Generator, picture: Image.Image, height: int, width: int) -> np.ndarray:
    """A random piece of a picture, scaled to the canvas and flipped at random: float32 [H, W, C]."""
    whole_width, whole_height = picture.size
    scale = min(whole_width / width, whole_height / height) * rng.uniform(0.4, 1.0)
    left, top = rng.uniform(0, whole_width - scale * width), rng.uniform(0, whole_height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    piece = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.3:
        piece = piece.filter(ImageFilter.BoxBlur(float(rng.uniform(1, 4))))
    array = np.asarray(piece, dtype=np.float32)
    array = array[..., None] if array.ndim == 2 else array
    return array[:, :: -1 if rng.random() < 0.5 else 1][:: -1 if rng.random() < 0.3 else 1]


def _photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A piece of a photograph; half of them recoloured."""
    canvas = crop(rng, photo(*PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))]), height, width)
    if canvas.shape[2] == 1:
        return _blend(rng, canvas / 255)
    if rng.random() < 0.5:
        canvas = canvas[..., rng.permutation(3)] * rng.uniform(0.6, 1.3, 3).astype(np.float32) + rng.uniform(-20, 60)
    return canvas


def background(rng: np.random.Generator, height: int, width: int, weights: tuple[float, ...]) -> np.ndarray:
    """Draw one background.

    Args:
        weights: chance of each of `KINDS`, in that order, summing to 1.

    Returns:
        float32 [height, width, 3], RGB, about 0..255 (not clipped).
    """
    kind = KINDS[min(int(np.searchsorted(np.cumsum(weights), rng.random(), side="right")), len(KINDS) - 1)]
    if kind == "noise":
        return _noise(rng, height, width)
    if kind == "gradient":
        return _upsample(_palette(rng, (2, 2)), height, width)
    if kind == "pattern":
        return _pattern(rng, height, width)
    if kind == "material":
        return _blend(rng, crop(rng, photo(MATERIALS[rng.integers(len(MATERIALS))]), height, width) / 255)
    return _photograph(rng, height, width)


def add_clutter(rng: np.random.Generator, canvas: np.ndarray, most: int) -> np.ndarray:
    """Draw 3 to `most` geometric shapes (ellipses, rectangles, triangles, lines) that are no objects."""
    height, width = canvas.shape[:2]
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(3, most + 1)):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        outline = (
            (0, 0, 0) if rng.random() < 0.4 else None
        )  # OpenMoji's own style, so that an outline alone tells nothing
        x, y, side, ratio = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(6, 60), rng.uniform(0.3, 1.0)
        box = (x, y, x + side, y + side * ratio)
        match rng.integers(4):
            case 0:
                draw.ellipse(box, fill=colour, outline=outline)
            case 1:
                draw.rectangle(box, fill=colour, outline=outline)
            case 2:
                draw.polygon([(x, y), (x + side, y + side * (ratio - 0.5)), (x + side / 3, y + side)], colour, outline)
            case _:
                draw.line((x, y, x + side, y + side * (ratio - 0.6) * 2), fill=colour, width=int(rng.integers(1, 5)))
    return np.asarray(picture, dtype=np.float32)
