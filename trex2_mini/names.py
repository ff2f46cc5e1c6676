"""Names of categories as people type them. Every entry point reads them here, so that all take and show the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# comma, semicolon, their full-width, ideographic and Arabic forms, a new line, a dot between spaces or at the end
_END = r"(?:[,;，；、،\r\n]|(?<!\S)\.(?=\s|$)|$)"
_PART = re.compile(rf'\s*(?:"([^"]*)"\s*(?={_END})|(.*?)){_END}', re.DOTALL)


def name_key(name: str) -> str:
    """What two spellings of one name share: case and spaces do not count."""
    return tidy(name).casefold()


def tidy(name: str) -> str:
    """The name as it is shown: no spaces around it, one between words, accents in one piece (NFC)."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def check_names(names: str | Iterable[str]) -> list[str]:
    """One or several names, tidied; as many as were given, also where two are the same.

    Args:
        names: a list; or text in which commas, semicolons, new lines or " . " separate names ("cat, dog",
            "donut . lime ."). A name that holds a separator stands in a list, or in double quotes.

    Raises:
        ValueError: no name, an empty one in a list, or something that is no text.
    """
    try:
        found = split_names(names) if isinstance(names, str) else list(names)
    except TypeError:  # nothing to go through
        found = []
    if not found or not all(isinstance(name, str) and name.strip() for name in found):
        raise ValueError(f"expected at least one non-empty name, such as ['cat', 'dog'] or 'cat, dog', got {names!r}")
    return [tidy(name) for name in found]


def unique_names(names: str | Iterable[str]) -> list[str]:
    """`check_names`, each name once, as it was first spelled."""
    found: dict[str, str] = {}
    for name in check_names(names):
        found.setdefault(name_key(name), name)
    return list(found.values())


def split_names(text: str) -> list[str]:
    """The names in a text, none where there is none."""
    if text.rstrip().endswith("."):  # "a cat. a dog." too
        text = re.sub(r"\.(?=\s|$)", " . ", text)
    parts = (quoted or plain for quoted, plain in _PART.findall(text))
    return [part for part in parts if part.strip()]
