"""Prose quotes no number that no cell shows.

A decimal number or a percentage in a Markdown cell must occur, to its own rounding, in the code or the output of an
earlier cell or of the code cell that follows (which the text introduces). Where the cell speaks of the paper, a number
of its tables will do. What comes from elsewhere stands in FACTS, with its source. Formulas, code and links are not
looked at, nor are the solutions, which are worked arithmetic.
"""

import json
import re
from functools import cache

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from trex2_mini.paths import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
CONVENTIONS = "0.5 0.55 0.95 95"  # IoU thresholds of COCO, the level of intervals
FACTS = {  # notebook: numbers of elsewhere in its prose, and where they are from
    "06": "0.05 0.4",  # weights/text_distillation.py: what was tried, and its threshold for words
    "13": "0.82",  # 18/22, which the text gives beside it
    "15": "9.6",  # a difference of two numbers of the paper
    "16": "0.8 18.7",  # the paper's text; a difference of two of its numbers
    "18": "1.8",  # 16 bytes for each of 115 million parameters
}
NOT_PROSE = re.compile(  # code, formulas, links, licences, arXiv's numbers, sections
    r"```.*?```|^    .*?$|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|\]\([^)]*\)|CC BY(-SA)? \d\.\d|arXiv [\d.]+|section [\d.]+",
    re.DOTALL | re.MULTILINE,
)
QUOTED = re.compile(r"(?<![\w.,])(?:\d[\d,]*\.\d+|\d[\d,]*(?= ?%))(?: ?%)?")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def numbers(text: str) -> set[float]:
    return {float(found.replace(",", "")) for found in NUMBER.findall(text)}


@cache
def of_the_paper() -> set[float]:
    return numbers((REPOSITORY / "trex2_mini" / "reproduction" / "paper.json").read_text(encoding="utf-8"))


def shown_by(cell: nbformat.NotebookNode) -> set[float]:
    """The numbers of a code cell and of its outputs' texts."""
    texts = [cell.source]
    for output in cell.outputs:
        texts.append(output.get("text", ""))
        texts += [json.dumps(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return set().union(*map(numbers, texts))


def is_shown(quoted: str, shown: set[float]) -> bool:
    text = quoted.rstrip(" %").replace(",", "")
    digits = len(text.partition(".")[2])
    candidates = shown | {100 * value for value in shown} if "%" in quoted else shown
    return any(abs(value - float(text)) <= 0.5000001 * 10**-digits for value in candidates)


def unsupported(notebook: nbformat.NotebookNode, facts: str = "") -> list[str]:
    """Each quoted number that neither a cell shows nor `facts` holds, with the words around it."""
    found, shown = [], numbers(f"{CONVENTIONS} {facts}")
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            shown |= shown_by(cell)
            continue
        following = next((other for other in notebook.cells[place:] if other.cell_type == "code"), None)
        known = shown | (shown_by(following) if following else set())
        text = NOT_PROSE.sub("", cell.source)
        if "paper" in text.lower():
            known = known | of_the_paper()
        for match in QUOTED.finditer(text):
            if not is_shown(match.group(), known):
                found.append(
                    f"cell {place}: {match.group()} in ...{text[max(0, match.start() - 50) : match.end() + 20]!r}"
                )
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_prose_quotes_what_a_cell_shows(path):
    notebook = nbformat.read(path, as_version=4)
    problems = unsupported(notebook, FACTS.get(path.name[:2], ""))
    assert not problems, (
        "let code print it, in an f-string of Markdown say; or, if it is from elsewhere, add it to FACTS"
    )


@pytest.mark.parametrize("notebook", FACTS)
def test_no_fact_is_idle(notebook):
    [path] = (path for path in NOTEBOOKS if path.name.startswith(notebook))
    needed = " ".join(unsupported(nbformat.read(path, as_version=4)))
    assert all(fact in needed for fact in FACTS[notebook].split())


def story(prose: str) -> nbformat.NotebookNode:
    code = new_code_cell("ap = measure()\nap", outputs=[new_output("execute_result", {"text/plain": "0.4236"})])
    return new_notebook(cells=[code, new_markdown_cell(prose), new_code_cell("limit = 0.35")])


@pytest.mark.parametrize(
    "prose",
    ["It gives 0.42, and 42.4 %.", "At 0.35 we look next.", "The card says 5.7.", "$x = 0.77$ and `f(0.77)` are free."],
)
def test_what_is_shown_may_be_quoted(prose):
    assert not unsupported(story(prose), "5.7")


@pytest.mark.parametrize("prose", ["It gives 0.43.", "It gives 43 %.", "It gives 0.4237.", "The card says 5.7."])
def test_what_is_not_shown_is_found(prose):
    assert unsupported(story(prose))
