"""Pictures of images, prompts and detections, with matplotlib."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from trex2_mini.images import load_image, load_reduced

PALETTE = plt.get_cmap("tab10").colors
SIDE = 750  # pixels of the shorter side of a figure of its own
PLAIN = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, some symbols


class Found(Protocol):
    """What of Detections is drawn."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]


@cache
def fonts_for(characters: frozenset[str]) -> list[str]:
    """Font families that together have glyphs for these characters, DejaVu Sans first; a warning says for which none
    of this machine's fonts has any."""
    families, missing = [], {character for character in characters if character.isprintable() and character != " "}
    for entry in _fonts(missing):
        if not missing:
            break
        try:
            font = font_manager.get_font(entry.fname)
        except RuntimeError:  # FreeType cannot scale it, as with coloured bitmaps
            continue
        if has := {character for character in missing if font.get_char_index(ord(character))}:
            families.append(entry.name)
            missing -= has
    if missing:
        warnings.warn(
            f"no font of this machine has {''.join(sorted(missing))[:20]!r}: they are drawn as empty boxes; install "
            "one that has (fonts-noto-cjk for Chinese, Japanese and Korean)",
            stacklevel=3,
        )
    return families or [PLAIN]


def _fonts(missing: set[str]) -> Iterator[font_manager.FontEntry]:
    """matplotlib's, DejaVu Sans first; while any is `missing`, those that were installed since its list was made."""
    manager = font_manager.fontManager
    # "Last Resort" has an empty box for every character
    known = [entry for entry in manager.ttflist if "Last Resort" not in entry.name]
    yield from sorted(known, key=lambda entry: (entry.name != PLAIN, entry.style != "normal"))
    files = {entry.fname for entry in manager.ttflist}
    for path in font_manager.findSystemFonts() if missing else ():
        if path not in files:
            before = len(manager.ttflist)
            with suppress(RuntimeError, OSError):  # no font that FreeType can read
                manager.addfont(path)
            yield from manager.ttflist[before:]


def plain_text(*texts: str) -> dict[str, Any]:
    """Options of matplotlib's text that draw these as they are: fonts that have their glyphs, `$` being no formula."""
    return {"family": fonts_for(frozenset("".join(texts))), "parse_math": False}


def show_detections(
    image: Any,
    detections: Found,
    ax: Axes | None = None,
    title: str = "",
    boxes: Mapping | Sequence | None = None,
    points: Mapping | Sequence | None = None,
    size: float = 6,
) -> Axes:
    """Draw `detections` over `image` (anything `load_image` takes); `boxes` and `points` are the visual prompts, drawn
    dashed and as stars. size: of the labels, in points; the title is half as large again."""
    array, (height, width) = load_reduced(image, SIDE if ax is None else None)
    if ax is None:
        _, ax = plt.subplots(figsize=(5 * width / height, 5))
    ax.imshow(array, extent=(-0.5, width - 0.5, height - 0.5, -0.5))  # whatever is left of it, in the whole's pixels
    ax.axis("off")
    ax.set_title(title, fontsize=1.5 * size, **plain_text(title))
    _draw(ax, detections, size)
    for x1, y1, x2, y2 in _all(boxes, 4):
        ax.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=2.5, linestyle="--")
        )
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="black", linewidth=1, linestyle="--"))
    for x, y in _all(points, 2):
        ax.plot(x, y, "*", color="white", markeredgecolor="black", markersize=12)
    return ax


def _draw(ax: Axes, detections: Found, size: float = 6) -> None:
    text, (bottom, top) = plain_text(*detections.names, "0123456789."), sorted(ax.get_ylim())[::-1]
    for (x1, y1, x2, y2), score, label in zip(detections.boxes, detections.scores, detections.labels, strict=True):
        colour = PALETTE[label % len(PALETTE)]
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.5))
        ax.text(
            x1,
            y1,
            f"{detections.names[label]} {score:.2f}",
            fontsize=size,
            color="white",
            va="top" if y1 - top < 0.04 * (bottom - top) else "bottom",  # no room above: inside of the box
            bbox={"facecolor": colour, "pad": 0.5, "linewidth": 0},
            **text,
        )


def save_detections(image: Any, detections: Found, path: str | Path) -> None:
    """Write the picture with its detections to `path` (its ending decides the format): as large as it is, small ones
    enlarged to a shorter side of 750 px."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if str(path).lower().endswith((".pdf", ".svg")):
        array = load_image(image)
        figure, axes = _full_size(array, detections)
        axes.imshow(array)
        with plt.rc_context({"savefig.bbox": None}):  # "tight", as notebooks set it, would change the picture's size
            figure.savefig(path)
        plt.close(figure)
    else:
        Image.fromarray(drawn(image, detections)).save(path, quality=90)


def drawn(image: Any, detections: Found) -> np.ndarray:
    """The picture of `save_detections` as uint8 [H, W, 3]."""
    array = load_image(image)
    figure, _ = _full_size(array, detections)
    figure.patch.set_alpha(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # fonts_for has said it
        figure.canvas.draw()  # boxes and names alone: matplotlib would take a hundred bytes a pixel for the picture
    over = np.asarray(figure.canvas.buffer_rgba())
    plt.close(figure)
    if array.shape[:2] != over.shape[:2]:
        array = np.asarray(Image.fromarray(array).resize(over.shape[1::-1], Image.Resampling.BICUBIC))
    pixels = np.array(array)
    for row in np.flatnonzero(over[..., 3].any(1)):
        alpha = over[row, :, 3:].astype(np.float32) / 255
        pixels[row] = np.round(over[row, :, :3] * alpha + pixels[row] * (1 - alpha))
    return pixels


def _full_size(array: np.ndarray, detections: Found) -> tuple[plt.Figure, Axes]:
    """What was found, on a figure without margins of 5 inches on its shorter side, in which a pixel of a large picture
    is a pixel.
    """
    height, width = array.shape[:2]
    short = min(height, width)
    figure = plt.figure(figsize=(5 * width / short + 1e-6, 5 * height / short + 1e-6), dpi=max(150, short / 5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    _draw(axes, detections)
    return figure, axes


def _all(prompts: Mapping | Sequence | None, columns: int) -> np.ndarray:
    """All prompts of all categories as one array [K, columns]."""
    groups = [] if prompts is None else list(prompts.values()) if isinstance(prompts, Mapping) else [prompts]
    return (
        np.concatenate([np.asarray(g, dtype=float).reshape(-1, columns) for g in groups])
        if groups
        else np.zeros((0, columns))
    )


def save_statistics(found: dict, path: str | Path) -> None:
    """A picture of what `datasets.check.statistics` found: the long tail, the objects' sizes, the objects an image."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
    boxes = [counts["boxes"] for counts in found["per_category"].values()]
    axes[0].plot(range(1, len(boxes) + 1), boxes)
    axes[0].set(title="the long tail", xlabel="category, most frequent first", ylabel="boxes", yscale="symlog")
    axes[1].hist(found["sides"], bins=40)
    axes[1].set(title="sizes", xlabel="square root of a box's area, px", ylabel="boxes")
    axes[2].hist(found["objects_an_image"], bins=range(max(found["objects_an_image"], default=0) + 2))
    axes[2].set(title="objects an image", xlabel="objects", ylabel="images")
    figure.savefig(path)
    plt.close(figure)
