"""Where the pictures of an annotation file lie on this machine, by one rule.

A `file_name` is first taken as it stands, relative to the set's folder. Tools also write backslashes, URLs, Label
Studio's /data/local-files/?d=..., and paths of the machine where somebody drew boxes. Of these, what lies before the
folder is left away: of "C:\\sets\\cats\\images\\a.jpg" the set's folder is searched for sets/cats/images/a.jpg,
cats/images/a.jpg, images/a.jpg and a.jpg, in this order, upper and lower case alike. A shorter path that would fit
two names of the set is no answer. Nothing outside the folder is ever read.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from trex2_mini.images import MissingPicture


class Pictures:
    """The pictures of a set: its folder, and all names that its annotations use."""

    def __init__(self, folder: Path, names: Iterable[str]):
        self.folder, self._names = folder, names
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> Path:
        """The file that `name` means. Raises MissingPicture, which says where it was looked for."""
        plain = Path(name)
        if not plain.is_absolute() and ".." not in plain.parts and os.path.isfile(self.folder / plain):
            return self.folder / plain
        parts = name_parts(name)
        tails = [parts[start:] for start in range(len(parts))]
        if parts and (uploaded := re.fullmatch(r"[0-9a-f]{8}-(.+)", parts[-1])):  # Label Studio's mark of an upload
            tails.append((uploaded[1],))
        for tail in tails:
            if self._tails[_folded(tail)] > 1:
                reason = f"{'/'.join(tail)} would fit two pictures of the set"
                break
            if (found := self._here(tail)) is not None:
                return found
        else:
            reason = f"it holds none of {', '.join('/'.join(tail)[-60:] for tail in tails[:4])}"
        raise MissingPicture(f"the picture {name!r:.200} does not exist in {self.folder}: {reason}")

    def __contains__(self, name: str) -> bool:
        try:
            return bool(self.find(name))
        except MissingPicture:
            return False

    @cached_property
    def _tails(self) -> Counter[tuple[str, ...]]:
        """How many of the names end so."""
        whole = {_folded(name_parts(name)) for name in self._names}
        return Counter(parts[start:] for parts in whole for start in range(len(parts)))

    def _here(self, parts: tuple[str, ...]) -> Path | None:
        """A file under the folder; where no name fits exactly, the one that fits but for its case."""
        place = self.folder
        for part in parts:
            if not os.path.lexists(place / part):
                own = self._listing(place).get(part.casefold(), [])
                if len(own) != 1:
                    return None
                part = own[0]
            place = place / part
        return place if os.path.isfile(place) else None

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        """{name in lower case: names} of a folder."""
        if folder not in self._listed:
            own = self._listed[folder] = {}
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                own.setdefault(name.casefold(), []).append(name)
        return self._listed[folder]


def _folded(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.casefold() for part in parts)


def name_parts(name: str) -> tuple[str, ...]:
    """Folders and file of a name of any system or a URL, without drive, host and what lies before a "..".

    "C:\\sets\\a.jpg" -> ("sets", "a.jpg"), "https://host/x/a%20b.jpg?v=1" -> ("x", "a b.jpg"),
    "/data/local-files/?d=x/a.jpg" -> ("x", "a.jpg").
    """
    if "://" in name or "?d=" in name:
        try:
            url = urlsplit(name)
        except ValueError:  # no URL after all
            return ()
        name = parse_qs(url.query).get("d", [unquote(url.path)])[0]
    parts = [part for part in re.split(r"[\\/]+", re.sub(r"^[A-Za-z]:(?=[\\/])", "", name)) if part not in ("", ".")]
    inside = len(parts) - parts[::-1].index("..") if ".." in parts else 0
    return tuple(parts[inside:])
