"""What the worlds of emoji-wild look like: grounds, inks and looks.

    a ground (generator, height, width) -> float32 [H, W, 3]              lies under the objects
    an ink   (generator, patch [h, w, 4]) -> patch, premultiplied alpha   is an object's colour, and what is added to it
    a look   (generator, picture [H, W, 3]) -> picture                    changes the whole picture, never where things
    are

Values are float32 in 0..255; grounds and looks may overshoot, the scene clips.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from trex2_mini.datasets.scenes.backgrounds import background, crop, photo

GREYS = np.array([0.299, 0.587, 0.114], dtype=np.float32)
HEAT = np.array([(5, 0, 20), (70, 0, 120), (190, 20, 90), (250, 110, 10), (255, 210, 60), (255, 255, 240)], np.float32)
NEVER_WHOLE = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg")


# grounds


def _noisy(rng: np.random.Generator, colour: Sequence[float], height: int, width: int, grain: float) -> np.ndarray:
    return np.float32(colour) + np.float32(grain) * rng.standard_normal((height, width, 1), dtype=np.float32)


def _drawn(ground: np.ndarray) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    return picture, ImageDraw.Draw(picture)


def _array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float32)


def paper(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Off-white paper, half of it ruled."""
    picture, draw = _drawn(_noisy(rng, rng.uniform(225, 252) - np.array([0, 3, 12]), height, width, 3))
    if rng.random() < 0.5:
        for y in range(int(rng.integers(6, 14)), height, int(rng.integers(12, 22))):
            draw.line((0, y, width, y), fill=(170, 190, 220))
    return _array(picture)


def page(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A printed page: lines of grey words, a heading, perhaps a table."""
    picture, draw = _drawn(_noisy(rng, [rng.uniform(238, 254)] * 3, height, width, 2))
    ink, step, margin = int(rng.integers(60, 150)), int(rng.integers(7, 12)), int(rng.integers(8, 20))
    draw.rectangle((margin, margin, margin + width * rng.uniform(0.3, 0.7), margin + 8), fill=(ink - 40,) * 3)
    table = rng.uniform(0.4, 0.7) * height if rng.random() < 0.5 else height
    for y in range(margin + 16, int(table) - margin, step):
        x = float(margin)
        while x < width - margin - 6:
            word = rng.uniform(5, 28)
            draw.rectangle((x, y, min(x + word, width - margin), y + 2), fill=(ink,) * 3)
            x += word + 4
    for k in range(6 if table < height else 0):
        x, y = margin + k * (width - 2 * margin) / 5, table + k * (height - margin - table) / 5
        draw.line((x, table, x, height - margin), fill=(ink,) * 3)
        draw.line((margin, y, width - margin, y), fill=(ink,) * 3)
    return _array(picture)


def screen(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """The screen of an app, light or dark: a bar, cards, lines of text."""
    dark = rng.random() < 0.5
    base = int(rng.integers(20, 45)) if dark else int(rng.integers(225, 250))
    card, line = (base + 18, base + 70) if dark else (255, base - 60)
    picture, draw = _drawn(_noisy(rng, [base] * 3, height, width, 0))
    draw.rectangle((0, 0, width, int(rng.integers(18, 32))), fill=tuple(int(v) for v in rng.integers(30, 200, 3)))
    for _ in range(rng.integers(2, 6)):
        x, y = rng.uniform(4, width * 0.6), rng.uniform(34, height * 0.8)
        right, bottom = x + rng.uniform(50, 140), y + rng.uniform(30, 70)
        draw.rounded_rectangle((x, y, right, bottom), 6, fill=(card,) * 3, outline=(line,) * 3)
        for row in np.arange(y + 8, bottom - 6, 8):
            draw.rectangle((x + 6, row, x + 6 + rng.uniform(15, right - x - 12), row + 2), fill=(line,) * 3)
    return _array(picture)


def board(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A blackboard with wiped traces of chalk."""
    colour = [(38, 66, 52), (45, 48, 52), (30, 52, 70)][rng.integers(3)]
    wiped = background(rng, height, width, (1.0, 0.0, 0.0, 0.0, 0.0)) @ GREYS
    return _noisy(rng, colour, height, width, 4) + wiped[..., None] * np.float32(rng.uniform(0.08, 0.25))


def fields(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Land seen from above: fields, bare ground and water, crossed by roads."""
    picture, draw = _drawn(_noisy(rng, rng.uniform((70, 90, 50), (130, 140, 90)), height, width, 6))
    for _ in range(rng.integers(4, 9)):
        x, y, w, h = rng.uniform(-40, width), rng.uniform(-40, height), rng.uniform(40, 150), rng.uniform(40, 150)
        colour = rng.uniform((60, 80, 40), (190, 170, 110)) if rng.random() < 0.85 else np.array([60, 100, 140])
        draw.polygon(
            [(x, y), (x + w, y + rng.uniform(-20, 20)), (x + w, y + h), (x - 15, y + h)], tuple(colour.astype(int))
        )
    for _ in range(rng.integers(1, 4)):
        ends = (rng.uniform(0, width), -5, rng.uniform(0, width), height + 5)
        ends = ends if rng.random() < 0.5 else (-5, rng.uniform(0, height), width + 5, rng.uniform(0, height))
        draw.line(ends, fill=(int(rng.integers(90, 150)),) * 3, width=int(rng.integers(8, 18)))
    return _noisy(rng, (0, 0, 0), height, width, 5) + _array(picture)


def tiles(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """The world of a platform game: sky, blocks, a status bar."""
    picture, draw = _drawn(_noisy(rng, rng.uniform((60, 90, 140), (150, 200, 255)), height, width, 0))
    side = int(rng.integers(14, 22))
    block, seam = rng.uniform((90, 50, 20), (200, 140, 90)), rng.uniform(0.5, 0.8)
    for x in range(0, width, side):
        stack = int(rng.integers(1, 4)) * side
        for y in range(height - stack, height, side):
            draw.rectangle((x, y, x + side, y + side), tuple(block.astype(int)), tuple((block * seam).astype(int)))
    for _ in range(rng.integers(1, 4)):
        x, y = int(rng.integers(0, width - side)), int(rng.integers(height // 4, height // 2))
        for k in range(rng.integers(2, 5)):
            draw.rectangle((x + k * side, y, x + (k + 1) * side, y + side), (90, 170, 70), (40, 90, 30))
    draw.rectangle((0, 0, width, 9), fill=(15, 15, 25))
    draw.rectangle((3, 3, 3 + width * rng.uniform(0.1, 0.5), 6), fill=(220, 50, 50))
    return _array(picture)


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A large piece of a whole photograph, with what is on it; training has only object-free pieces, often
    recoloured."""
    canvas = crop(rng, photo(NEVER_WHOLE[rng.integers(len(NEVER_WHOLE))]), height, width)
    return np.repeat(canvas, 3, axis=2) if canvas.shape[2] == 1 else canvas


def dusk(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """An evening sky over a dark land."""
    colours = rng.uniform(
        [(40, 20, 80), (180, 60, 60), (240, 160, 60)], [(110, 80, 160), (250, 130, 110), (255, 230, 150)]
    )
    rows = np.linspace(0, 2, height)
    sky = np.stack([np.interp(rows, range(3), colours[:, k]) for k in range(3)], axis=1)[:, None]
    return np.broadcast_to(sky, (height, width, 3)).astype(np.float32) + _noisy(rng, (0, 0, 0), height, width, 3)


def cold(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A cool scene for a thermal camera: dark, of little contrast."""
    ground = background(rng, height, width, (0.5, 0.2, 0.0, 0.3, 0.0)) @ GREYS
    return np.repeat((ground * rng.uniform(0.15, 0.35) + rng.uniform(0, 25))[..., None], 3, axis=2).astype(np.float32)


# inks


def one_colour(low: Sequence[float], high: Sequence[float]) -> Callable[[np.random.Generator, np.ndarray], np.ndarray]:
    """Every object in one flat colour between two."""

    def ink(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
        colour = np.append(rng.uniform(low, high), 255).astype(np.float32)
        return patch[..., 3:] / 255 * colour

    return ink


def plate(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
    """A white pictogram on a coloured plate, as road signs are; the plate is part of the object."""
    height, width = patch.shape[:2]
    side = int(1.45 * max(height, width)) + 2
    colour = [(20, 70, 160), (190, 25, 30), (20, 120, 60), (35, 35, 35), (200, 110, 0)][rng.integers(5)]
    large, draw = _drawn(np.zeros((4 * side, 4 * side, 3)))
    mask = Image.new("L", large.size)
    draw = ImageDraw.Draw(mask)
    draw.rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), side * (2 if rng.random() < 0.5 else 0.5), fill=255)
    result = _array(mask.reduce(4))[..., None] / 255 * np.float32([*colour, 255])
    y, x = (side - height) // 2, (side - width) // 2
    alpha = patch[..., 3:] / 255
    inner = result[y : y + height, x : x + width]
    inner[:] = np.minimum(inner * (1 - alpha) + 245 * alpha, inner[..., 3:])
    return result


def sticker(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
    """The object cut out with a white border; the border is part of it."""
    reach = 2 + max(patch.shape) // 24
    patch = np.pad(patch, ((reach, reach), (reach, reach), (0, 0)))
    alpha = Image.fromarray(patch[..., 3].astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * reach + 1))
    return patch + _array(alpha)[..., None] * (1 - patch[..., 3:] / 255)


def warm(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
    """An object by its temperature: its own grey values, raised; animals and engines are warmer than the ground."""
    heat = np.float32(rng.uniform(110, 190)) * patch[..., 3:] / 255 + 0.3 * (patch[..., :3] @ GREYS)[..., None]
    return np.concatenate([np.repeat(heat, 3, axis=2), patch[..., 3:]], axis=2)


# looks


def _lamps(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """Round lights [H, W, 1], 1 at their centres."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    light = np.zeros((height, width), np.float32)
    for _ in range(count):
        radius = rng.uniform(0.1, 0.3) * width
        light += np.exp(-((x - rng.uniform(0, width)) ** 2 + (y - rng.uniform(0, height)) ** 2) / (2 * radius**2))
    return np.clip(light, 0, 1)[..., None].astype(np.float32)


def night(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Hardly any light but a few lamps', a blue cast, the grain of a camera at its limit."""
    height, width = pixels.shape[:2]
    gain = np.float32(rng.uniform(0.12, 0.25)) * np.float32([0.75, 0.9, 1.3])
    lamps = _lamps(rng, height, width, int(rng.integers(1, 4))) * np.float32([0.5, 0.42, 0.3])
    return pixels * (gain + lamps * np.float32(rng.uniform(0.5, 1.0))) + _noisy(rng, (2, 2, 6), height, width, 5)


def water(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Under water: red is swallowed, contrast and sharpness are lost, light comes from above."""
    height, width = pixels.shape[:2]
    depth = np.linspace(1.0, rng.uniform(0.5, 0.8), height, dtype=np.float32)[:, None, None]
    tint = rng.uniform((0, 60, 80), (20, 110, 140))
    haze = np.float32(rng.uniform(0.35, 0.55))
    mixed = pixels * np.float32([0.45, 0.85, 0.9]) * (1 - haze) + haze * np.float32(tint) * 1.3
    mixed = mixed * depth + 25 * _lamps(rng, height, width, 3) * depth
    soft = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(float(rng.uniform(0.7, 1.4)))
    )
    return _array(soft)


def thermal(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Grey values as temperatures in false colours, as soft as thermal cameras see."""
    soft = Image.fromarray(np.clip(pixels @ GREYS, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.0))
    heat = _array(soft) / 255 * (len(HEAT) - 1)
    return np.stack([np.interp(heat, range(len(HEAT)), HEAT[:, k]) for k in range(3)], axis=2).astype(np.float32)


def grey(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """An old black-and-white photograph: one channel, dark corners, grain."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = 1 - rng.uniform(0.1, 0.4) * (x**2 + y**2) / 2
    tone = (pixels @ GREYS) * vignette + rng.uniform(4, 10) * rng.standard_normal((height, width))
    return np.repeat(tone[..., None], 3, axis=2).astype(np.float32)


def posterize(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """The few colours of an old game: five levels a channel."""
    return np.round(np.clip(pixels, 0, 255) / 63.75) * np.float32(63.75)
