"""House style of the notebooks, read from the files alone: nothing is executed here (`make test` runs
them by nbmake).
"""

import ast
import copy
import re
import statistics
from functools import cache
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from trex2_mini.paths import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((REPOSITORY / "notebooks" / "solutions").glob("*.ipynb"))
LARGEST = 1_000_000  # bytes of a file
LONGEST_CELL, MEDIAN_CELL = 40, 10  # lines of a code cell
COPIED_LINES = 5  # so many telling lines in a row that also stand in the package are a copy
ABSOLUTE = re.compile(
    r"""["'](/\w+/|/(home|root|tmp|work|data|content)\b|~/|[A-Za-z]:[\\/])"""
)  # a string that begins like an absolute path
LOCAL = re.compile(r"/(home|root|tmp|work|Users|content|private)/[\w.]")  # a path of the machine that ran it


def telling(code: str) -> list[str]:
    """The lines that say something: stripped, without blanks, comments, docstring marks, imports and lone brackets."""
    lines = [re.sub(r"\s+#.*$", "", line).strip() for line in code.splitlines()]
    dull = ("#", "import ", "from ", '"""', "@", "else", "try", "return out", "return self")
    return [line for line in lines if len(line) > 6 and not line.startswith(dull)]


@cache
def package_runs() -> dict[tuple[str, ...], str]:
    """Every run of COPIED_LINES telling lines of the package, and the file it stands in."""
    runs = {}
    for path in sorted((REPOSITORY / "trex2_mini").rglob("*.py")):
        lines = telling(path.read_text(encoding="utf-8"))
        for start in range(len(lines) - COPIED_LINES + 1):
            runs[tuple(lines[start : start + COPIED_LINES])] = path.name
    return runs


def without_magics(source: str) -> str:
    return "\n".join("pass" if line.startswith("%") else line for line in source.splitlines())


def style_problems(notebook: nbformat.NotebookNode, solutions: bool = False) -> list[str]:
    """What in a notebook is against the house style; empty if nothing is."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tags = [cell.metadata.get("tags", []) for cell in code]
    problems = []
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        problems.append("its kernel is not python3")
    if not notebook.cells or not notebook.cells[0].source.startswith("# "):
        problems.append("its first cell is not a title")

    tagged = [index for index, own in enumerate(tags) if "parameters" in own]
    if (tagged != [0]) if not solutions else (tagged not in ([], [0])):
        problems.append(f"expected the tag `parameters` on the first code cell only, found it on {tagged}")
    for index in tagged:
        for statement in ast.parse(code[index].source).body:
            computed = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.comprehension)
            if not isinstance(statement, ast.Assign) or any(
                isinstance(node, computed) for node in ast.walk(statement.value)
            ):
                problems.append(f"parameters must be literals, got: {ast.unparse(statement)}")

    lengths = [len(cell.source.splitlines()) for cell in code]
    if max(lengths) > LONGEST_CELL:
        problems.append(
            f"a code cell of {max(lengths)} lines; at most {LONGEST_CELL}: part it, or move it to the package"
        )
    if statistics.median(lengths) > MEDIAN_CELL:
        problems.append(f"half of the code cells have more than {MEDIAN_CELL} lines")

    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        problems.append(f"not run from top to bottom in a fresh kernel: execution counts {counts}")
    for number, (cell, own) in enumerate(zip(code, tags), 1):
        if re.search(r"^\s*[!%]+\s*(pip|conda|uv)\b|^\s*!", cell.source, re.MULTILINE):
            problems.append(f"code cell {number} runs a shell command or installs something")
        if found := ABSOLUTE.search(cell.source):
            problems.append(f"code cell {number} holds an absolute path at {found.group()}")
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in own:
                problems.append(f"code cell {number} ended in {output.ename}")
            shown = output.get("text", "") or output.get("data", {}).get("text/plain", "")
            if found := LOCAL.search(shown):
                problems.append(f"the output of code cell {number} shows a path of one machine: {found.group()}...")

    lines = telling("\n".join(without_magics(cell.source) for cell in code))
    for start in range(len(lines) - COPIED_LINES + 1):
        if source := package_runs().get(tuple(lines[start : start + COPIED_LINES])):
            problems.append(f"copied from {source}: {lines[start]!r} and the lines after it; import it instead")
            break
    return problems


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=relative)
def test_house_style(path):
    notebook = nbformat.read(path, as_version=4)
    assert not style_problems(notebook, solutions=path in SOLUTIONS)


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=relative)
def test_valid_and_small(path):
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))
    size = path.stat().st_size
    assert size < LARGEST, f"{size:,} bytes: fewer or smaller pictures (jpeg, figure.dpi), or shorter outputs"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_exercises_have_solutions(path):
    code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    exercises = sum(bool(re.search(r"^check\(", source, re.MULTILINE)) for source in code)
    solutions = path.parent / "solutions" / f"{path.stem}_solutions.ipynb"
    assert exercises >= 2, "a notebook ends with two to four exercises whose answers are checked by check()"
    assert solutions in SOLUTIONS, f"no {relative(solutions)}"


@pytest.mark.parametrize("path", SOLUTIONS, ids=relative)
def test_solutions_are_right(path):
    for cell in nbformat.read(path, as_version=4).cells:
        said = "".join(output.get("text", "") for output in cell.get("outputs", []))
        assert "not yet" not in said and "not answered" not in said, f"{cell.source}\n{said}"


@pytest.mark.parametrize("path", SOLUTIONS, ids=relative)
def test_solutions_belong_to_a_notebook(path):
    assert REPOSITORY / "notebooks" / f"{path.stem.removesuffix('_solutions')}.ipynb" in NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_the_index_lists_every_notebook(path):
    index = (path.parent / "README.md").read_text(encoding="utf-8")
    assert f"\n| {path.stem[:2]} | " in index, "notebooks/README.md has no row for it"


def test_there_are_notebooks():
    assert REPOSITORY / "notebooks" / "00_quickstart.ipynb" in NOTEBOOKS


def good_notebook() -> nbformat.NotebookNode:
    cells = [
        new_markdown_cell("# A title"),
        new_code_cell("seed = 0\nsteps = [1, -2]"),
        new_code_cell("print(seed / 2)"),
    ]
    notebook = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    cells[1].metadata["tags"] = ["parameters"]
    cells[1].execution_count, cells[2].execution_count = 1, 2
    return notebook


def matcher_lines() -> str:
    return "\n".join((REPOSITORY / "trex2_mini" / "losses" / "matcher.py").read_text().splitlines()[30:50])


MISTAKES = {
    "its kernel": lambda n: n.metadata.kernelspec.update(name="my-env"),
    "not a title": lambda n: n.cells.pop(0),
    "on the first code cell only": lambda n: n.cells[2].metadata.update(tags=["parameters"]),
    "must be literals": lambda n: n.cells[1].update(source="seed = int(0)"),
    "parameters must be literals, got: import": lambda n: n.cells[1].update(source="import os"),
    "a code cell of": lambda n: n.cells[2].update(source="\n".join(f"a{i} = {i}" for i in range(50))),
    "half of the code cells": lambda n: [c.update(source="seed = 0\n" * 20) for c in n.cells[1:]],
    "not run from top to bottom": lambda n: n.cells[2].update(execution_count=3),
    "installs something": lambda n: n.cells[2].update(source="!pip install torch"),
    "or installs": lambda n: n.cells[2].update(source="%pip install torch"),
    "absolute path": lambda n: n.cells[2].update(source="open('/data/coco/a.jpg')"),
    "ended in ValueError": lambda n: n.cells[2].outputs.append(new_output("error", ename="ValueError", evalue="")),
    "a path of one machine": lambda n: n.cells[2].outputs.append(new_output("stream", text="/home/me/data")),
    "copied from matcher.py": lambda n: n.cells[2].update(source=matcher_lines()),
}


@pytest.mark.parametrize("expected", MISTAKES)
def test_the_style_test_finds(expected):
    notebook = good_notebook()
    assert not style_problems(notebook), "the notebook before the mistake is in order"
    broken = copy.deepcopy(notebook)
    MISTAKES[expected](broken)
    assert any(expected in problem for problem in style_problems(broken)), style_problems(broken)


def test_an_intended_error_may_be_shown():
    notebook = good_notebook()
    notebook.cells[2].outputs = [new_output("error", ename="ValueError", evalue="")]
    notebook.cells[2].metadata["tags"] = ["raises-exception"]
    assert not style_problems(notebook)


def test_solutions_need_no_parameters():
    notebook = good_notebook()
    notebook.cells[1].metadata["tags"] = []
    assert not style_problems(notebook, solutions=True)
    assert style_problems(notebook)
