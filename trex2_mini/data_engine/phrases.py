"""Captions to noun phrases, and the dictionary of frequent phrases that negatives are drawn from (paper, sections 3.3
and 3.4).

The paper takes spaCy's noun chunks. With spaCy and an English pipeline installed, so do we; otherwise a rule that needs
no statistics: a phrase is what stands between words that cannot be part of one (prepositions, verbs of captions,
punctuation). Either way phrases are lower case, without determiners, numbers and pronouns, and what only speaks of the
picture ("a photo", "the left") is left out. The rule keeps "statue of liberty" together, which spaCy's chunks part; it
takes a verb that it does not know for a noun ("dog chases").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

Parser = Callable[[str], list[str]]  # a caption -> its phrases

TOKEN = re.compile(r"[^\W_]+(?:['’-]+[^\W_]+)*|[^\w\s]")
DETERMINERS = frozenset(
    "a an the this that these those some any no each every another other others all both several many much few more"
    " most less than one two three four five six seven eight nine ten dozen dozens hundreds lots my your his her its"
    " our their various multiple different very only".split()
)
PRONOUNS = frozenset("i you he she it we they there here who which what something someone".split())
BREAKS = PRONOUNS | frozenset(
    "and or but nor so as while with without in inside on onto upon at by beside besides next near over under"
    " underneath beneath above below behind before after between among around along across against through toward"
    " towards from to into out off up down for about like is are was were be been being am has have had do does can"
    " could will would may might must should not see sees seen show shows showing shown stand stands standing sit sits"
    " sitting lie lies lying hold holds holding wear wears wearing ride rides riding look looks looking walk walks"
    " walking run runs running eat eats eating play plays playing hang hangs hanging fly flies flying make makes made"
    " filled covered surrounded parked placed featuring features containing contains".split()
)
ABOUT_THE_PICTURE = frozenset(
    "picture pictures photo photos photograph image images drawing drawings painting illustration view scene left right"
    " top bottom middle center centre front back side background foreground corner edge lot couple pair group bunch"
    " number kind type set piece close-up closeup".split()
)


def noun_phrases(caption: str, parser: Parser | None = None) -> list[str]:
    """The things a caption names, in its order, each once: "Two dogs on a red sofa." -> ["dogs", "red sofa"].

    parser: of `find_parser`; None: the rule.
    """
    return list(dict.fromkeys((parser or rule_phrases)(caption)))


def rule_phrases(caption: str) -> list[str]:
    """Noun phrases by the rule of this file's head."""
    found: list[list[str]] = [[]]
    words = TOKEN.findall(caption.lower())
    for word, after in zip(words, [*words[1:], "."]):
        if (
            word == "of"
            and found[-1]
            and found[-1][-1] not in ABOUT_THE_PICTURE
            and after.isalpha()
            and not _opens(after)
        ):
            found[-1].append(word)
        elif word == "of" or word in BREAKS or not word[0].isalnum():
            found.append([])
        else:
            if _opens(word) and found[-1]:
                found.append([])
            found[-1].append(word)
    return [phrase for words in found if (phrase := _tidy(words))]


def _opens(word: str) -> bool:
    return word in DETERMINERS or word.isdigit()


def _tidy(words: list[str]) -> str:
    """A phrase from its words; "" where nothing is left that names an object."""
    while words and (_opens(words[0]) or words[0] in PRONOUNS):
        words = words[1:]
    return "" if not words or words[-1] in ABOUT_THE_PICTURE else " ".join(words)


def find_parser(name: str = "auto") -> tuple[str, Parser | None]:
    """(its name, what `noun_phrases` takes).

    name: "rules"; an installed spaCy pipeline, such as "en_core_web_sm"; or "auto": the first English pipeline that is
    installed, else the rule. Raises ValueError for a pipeline that is not there.
    """
    if name == "rules":
        return "rules", None
    try:
        import spacy
    except ImportError:
        if name == "auto":
            return "rules", None
        raise ValueError(
            f"the parser {name!r} needs spaCy, which is not installed: pip install 'trex2-mini[captions]' and the"
            " pipeline, or take 'rules'"
        ) from None
    installed = sorted(spacy.util.get_installed_models())
    if name == "auto":
        name = next((model for model in installed if model.startswith("en_")), "rules")
        if name == "rules":
            return "rules", None
    if name not in installed:
        raise ValueError(
            f"no spaCy pipeline {name!r}; installed: {installed}; python -m spacy download {name}, or take 'rules'"
        )
    pipeline = spacy.load(name)

    def parse(caption: str) -> list[str]:
        chunks = (chunk.text.lower().split() for chunk in pipeline(caption).noun_chunks)
        bare = ([word for raw in words if (word := raw.strip(",.;:!?()\"'"))] for words in chunks)
        return [phrase for words in bare if (phrase := _tidy(words))]

    return f"{name} {pipeline.meta['version']}", parse


def frequent_phrases(phrases: Iterable[Iterable[str]], more_than: int) -> dict[str, int]:
    """The global dictionary: {phrase: in how many captions it is}, of those in more than `more_than` (the paper: 100),
    most frequent first."""
    if more_than < 0:
        raise ValueError(f"more_than must be at least 0, got {more_than}")
    counts = Counter(phrase for own in phrases for phrase in set(own))
    return {phrase: n for phrase, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n > more_than}
