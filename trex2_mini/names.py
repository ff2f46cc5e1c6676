"""Names of categories as people type them. Every entry point reads them here, so that all take and show the same."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trex2_mini.paths import read_json, write_text

# comma, semicolon, their full-width, ideographic and Arabic forms, an ideographic full stop, a bar, a new line,
# a dot between spaces or at the end
_END = r"(?:[,;，；、،。|\r\n]|(?<!\S)\.(?=\s|$)|$)"
_WORD = re.compile(r"[^\W_]+")
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
        names: a list; or text in which commas, semicolons, bars, new lines or " . " separate names ("cat, dog",
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


@dataclass(frozen=True)
class Vocabulary:
    """What a text tower was taught: whole names, and the words in them and in what else it has read (vocabulary.json
    beside a checkpoint's weights). A tower of CLIP's has none: it has read nearly everything."""

    names: tuple[str, ...]
    words: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str], others: Iterable[str] = ()) -> Vocabulary:
        """names: what can be asked for, and is suggested; others: phrases whose words are known too."""
        names = tuple(unique_names(names))
        return cls(names, frozenset(word for phrase in (*names, *others) for word in _words(phrase)))

    def __or__(self, other: Vocabulary) -> Vocabulary:
        return Vocabulary(tuple(unique_names([*self.names, *other.names])), self.words | other.words)

    def unknown(self, name: str) -> list[str]:
        """The words of a name that are not known, in any of their English numbers; of Latin ones those of up to two
        letters count as known."""
        return [
            word for word in _words(name) if not (self.words & _numbers(word) or (len(word) < 3 and word.isascii()))
        ]

    @cached_property
    def _keys(self) -> dict[str, str]:
        return {name_key(known): known for known in self.names}

    def as_taught(self, name: str) -> str:
        """The name in the number that was taught: "pills" -> "pill" where that is a known name, else word by word, "two
        cats" -> "two cat" where "cats" is no known word: its token was never taught, and reads as something else.
        """
        if (key := name_key(name)) in self._keys:
            return name
        *before, last = key.split(" ")
        numbers = {" ".join([*before, own]) for own in _numbers(last)} & self._keys.keys()
        if len(numbers) == 1:
            return self._keys[numbers.pop()]

        def taught(match: re.Match) -> str:
            forms = {match[0]} if match[0] in self.words else self.words & _numbers(match[0])
            return max(forms, key=lambda form: (len(form), form)) if forms else match[0]

        return _WORD.sub(taught, key)

    def nearest(self, name: str) -> list[str]:
        """Up to three known names that are spelled alike."""
        keys = self._keys
        return [keys[key] for key in difflib.get_close_matches(name_key(name), list(keys), n=3, cutoff=0.6)]

    def advice(self, name: str) -> str | None:
        """What to say of a name that is not known; None where it is."""
        if not (unknown := self.unknown(name)):
            return None
        near = self.nearest(name)
        said = f"the nearest known names are {near}" if near else f"it knows names such as {list(self.names[:3])}"
        never = "" if unknown == _words(name) else f" (it was never taught {', '.join(map(repr, unknown))})"
        return (
            f"{name!r} is not known to this checkpoint{never}; {said}. Ask by one of those, by an "
            "example, or by an alias"
        )

    @classmethod
    def load(cls, folder: str | Path) -> Vocabulary | None:
        """That of a checkpoint's folder, None where it has none. Raises ValueError for a file of another form."""
        path = Path(folder) / "vocabulary.json"
        if not path.is_file():
            return None
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("words"), str):
            raise ValueError(f'{path}: expected {{"names": [...], "words": "one two ..."}}')
        return cls(tuple(check_names(content.get("names", []))), frozenset(content["words"].split()))

    def save(self, folder: str | Path) -> None:
        content = {"names": list(self.names), "words": " ".join(sorted(self.words))}
        write_text(Path(folder) / "vocabulary.json", json.dumps(content, ensure_ascii=False, indent=0) + "\n")


def read_aliases(source: str | Path | Mapping[str, str | list[str]]) -> dict[str, list[str]]:
    """{name_key: phrases that stand for it}, from {"name": "phrase" or ["phrase", ...]}, or a JSON file of that form.

    Raises ValueError for another form, FileNotFoundError where there is no such file.
    """
    given = read_json(Path(source).expanduser()) if isinstance(source, (str, Path)) else source
    if not isinstance(given, Mapping):
        raise ValueError(f'{source}: expected {{"name": "phrase"}}, or {{"name": ["phrase", ...]}}, got {given!r:.80}')
    phrases = {name: [own] if isinstance(own, str) else own for name, own in given.items()}
    return (
        {name_key(name): check_names(own) for name, own in zip(check_names(phrases), phrases.values())} if given else {}
    )


def _words(phrase: str) -> list[str]:
    return _WORD.findall(name_key(phrase))


def _numbers(word: str) -> set[str]:
    """A word and what it may be the plural or singular of."""
    shorter = {word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)}
    return {word, f"{word}s", f"{word}es", *shorter}
