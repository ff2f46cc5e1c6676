"""Libraries of objects cut out of photographs, for scenes that are composed on the fly.

A library is a folder of pictures with transparency: CATEGORY/N.webp, or SOURCE/CATEGORY/N.webp. Equal categories of
several sources are one category. groups.json beside them may say which narrow name belongs to which broad one:
{"pug": "dog"}.

One in four pictures of every category with five or more is held back for `cutouts-val`. So are all pictures of the
names in `novel_names`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image

from trex2_mini.paths import CUTOUTS_NOVEL, read_json

ENOUGH, HELD_BACK = 5, 4  # of a category with ENOUGH pictures, one in HELD_BACK is held back


@cache
def novel_names() -> frozenset[str]:
    """The 60 names that no training may see; they are in no training set and in no emoji catalogue either."""
    return frozenset(read_json(CUTOUTS_NOVEL))


@lru_cache(maxsize=4096)
def cutout_pyramid(path: str) -> tuple[Image.Image, ...]:
    """A cut-out at full, half and quarter size, premultiplied alpha."""
    with Image.open(path) as picture:
        whole = picture.convert("RGBA").convert("RGBa")
    return whole, whole.reduce(2), whole.reduce(4)


@dataclass(frozen=True)
class Library:
    """The objects of a folder.

    names: all categories, broad ones too. files: each category's own pictures. broader: {narrow name: broad name}, both
    in `names`.
    """

    names: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    broader: dict[str, str]

    @classmethod
    def open(cls, folder: str | Path) -> Library:
        """Read a library's folder; its pictures are opened when they are needed.

        Raises FileNotFoundError: there is no such folder. ValueError: it holds no picture, or groups.json is not a
        table of narrow and broad names.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(
                f"the library of cut-outs {folder} does not exist; expected a folder with CATEGORY/N.webp"
            )
        files: dict[str, list[str]] = {}
        for path in sorted([*folder.glob("*/*.webp"), *folder.glob("*/*/*.webp")]):
            files.setdefault(path.parent.name, []).append(str(path))
        if not files:
            raise ValueError(
                f"{folder} holds no cut-outs: expected CATEGORY/N.webp or SOURCE/CATEGORY/N.webp, with transparency"
            )
        groups = read_json(folder / "groups.json") if (folder / "groups.json").is_file() else {}
        if not isinstance(groups, dict) or not all(
            isinstance(broad, str) and broad not in groups for broad in groups.values()
        ):
            raise ValueError(
                f"{folder / 'groups.json'}: expected {{narrow name: broad name}}, where no broad name is "
                "itself a narrow one"
            )
        broader = {narrow: broad for narrow, broad in groups.items() if narrow in files}
        names = sorted({*files, *broader.values()})
        return cls(tuple(names), tuple(tuple(files.get(name, ())) for name in names), broader)

    def part(self, held_out: bool) -> Library:
        """The same names with the pictures that training may use, or with those that it must not."""
        kept, novel = [], novel_names()
        for name, files in zip(self.names, self.files, strict=True):
            enough = len(files) >= ENOUGH
            held = [name in novel or (enough and i % HELD_BACK == HELD_BACK - 1) for i in range(len(files))]
            kept.append(tuple(file for file, out in zip(files, held, strict=True) if out == held_out))
        return dataclasses.replace(self, files=tuple(kept))
