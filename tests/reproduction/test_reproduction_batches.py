"""Batches of notebooks: grids, failures that do not end the others, runs that are not repeated, one table; the paper's
numbers as data.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import yaml

from trex2_mini.cli import main
from trex2_mini.paths import REPOSITORY
from trex2_mini.reproduction.batches import (
    COLUMNS,
    NOTEBOOKS,
    PARAMETERS,
    SCALES,
    _executor,
    measures,
    parameters_of,
    read_grid,
    read_scale,
    reproduce,
    write_table,
)
from trex2_mini.reproduction.paper import paper_number, paper_table

PAPER = REPOSITORY.parent / "shared" / "paper" / "tables.json"
WORK = """import json, pathlib
assert factor < 3, "a factor of three is too much"
folder = pathlib.Path(output_dir)
(folder / "count.txt").write_text(str(len(list(folder.iterdir()))))
result = {"AP": 10.0 * factor, "parts": {"small": factor}, "versions": {"x": 1}, "seed": 5}
(folder / "metrics.json").write_text(json.dumps(result))"""


@pytest.fixture
def notebooks(tmp_path):
    """A folder with one notebook that fails where factor is 3."""
    cells = [
        nbformat.v4.new_code_cell('factor = 1\nother = ""\none = 0\noutput_dir = ""', metadata={"tags": ["parameters"]})
    ]
    notebook = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(WORK)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "13_times.ipynb")
    return tmp_path


def grid(folder, text):
    (folder / "grid.yml").write_text(text)
    return folder / "grid.yml"


def test_lists_become_a_grid(notebooks):
    path = grid(
        notebooks, "- notebook: 13_times\n  minutes: 2\n  parameters: {factor: [1, 2, 3], other: [a, b], one: 7}"
    )
    runs = read_grid(path, notebooks)
    assert [(r.parameters["factor"], r.parameters["other"]) for r in runs] == [(f, o) for f in (1, 2, 3) for o in "ab"]
    assert all(r.parameters["one"] == 7 and r.minutes == 2 for r in runs) and len({r.name() for r in runs}) == 6


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [1", "YAML"),
        ("{}", "list of runs"),
        ("- notebook: 99_none", "no notebook '99_none'"),
        ("- notebook: 13_times\n  parameter: {a: 1}", "expected notebook: NAME"),
        ("- notebook: 13_times\n  parameters: {factor: []}", "empty list"),
        ("- notebook: 13_times\n  parameters: {factors: 1}", "has no parameter factors; it has factor, one, other"),
        ("- notebook: 13_times\n  parameters: {output_dir: x}", "output_dir"),
        ("- notebook: 13_times\n  minutes: -1", "minutes"),
        ("- !!python/object/apply:os.system ['touch x']", "YAML"),
    ],
)
def test_bad_grids(notebooks, text, message):
    with pytest.raises(ValueError, match=message):
        read_grid(grid(notebooks, text), notebooks)


def test_missing_grid(notebooks):
    with pytest.raises(ValueError, match="expected a YAML file"):
        read_grid(notebooks / "none.yml", notebooks)


def test_failures_and_what_is_done(notebooks, tmp_path, capsys):
    """One of three fails, the others go on; the second call repeats the failed one alone, and the table holds all."""
    runs = read_grid(grid(notebooks, "- notebook: 13_times\n  parameters: {factor: [3, 1, 2]}"), notebooks)
    out = tmp_path / "out"
    table = reproduce(runs, out)
    assert "3 runs, 0 of them done; about 3 minutes" in capsys.readouterr().out
    assert (table["status"] == "done").tolist() == [False, True, True, True, True]
    assert "too much" in table["status"][0] and set(table["measure"][1:]) == {"AP", "parts/small"}
    assert table[table["measure"] == "AP"]["value"].tolist() == [10.0, 20.0]
    written = pd.read_csv(out / "table.csv", keep_default_na=False)
    assert written["parameters"].tolist()[::2] == ["factor=3", "factor=1", "factor=2"]
    assert re.search(r"\| 13_times +\| factor=2 +\| done", (out / "table.md").read_text())
    assert "<table" in (out / "table.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/status.json")}
    assert reproduce(runs, out)[1:].equals(table[1:])
    assert "3 runs, 2 of them done; about 1 minutes" in capsys.readouterr().out
    assert sum(path.stat().st_mtime_ns != before[path] for path in before) == 1


def test_two_workers_give_the_same_table(notebooks, tmp_path):
    runs = read_grid(grid(notebooks, "- notebook: 13_times\n  parameters: {factor: [1, 2]}"), notebooks)
    one, two = (reproduce(runs, tmp_path / str(n), workers=n) for n in (1, 2))
    assert one.drop(columns="seconds").equals(two.drop(columns="seconds"))


def test_jobs_of_submitit_give_the_same_table(notebooks, tmp_path):
    pytest.importorskip("submitit")
    runs = read_grid(grid(notebooks, "- notebook: 13_times\n  parameters: {factor: [1, 3]}"), notebooks)  # 3 fails
    jobs = {"submitit": "local", "parameters": {"timeout_min": "10", "slurm_partition": "gpu"}}
    one, two = reproduce(runs, tmp_path / "one"), reproduce(runs, tmp_path / "two", **jobs)
    assert one.drop(columns="seconds").equals(two.drop(columns="seconds")) and len(set(two["status"])) == 2


def test_refusals(notebooks, tmp_path):
    runs = read_grid(grid(notebooks, "- notebook: 13_times"), notebooks)
    with pytest.raises(ValueError, match="at least one run"):
        reproduce([], tmp_path / "out")
    with pytest.raises(ValueError, match="unknown executor"):
        reproduce(runs, tmp_path / "out", submitit="cloud")


def test_parameters_of_jobs_are_submitits_own(tmp_path):
    pytest.importorskip("submitit")
    with _executor(tmp_path, 1, "local", 5, {"gpus_per_node": "1", "slurm_partition": "gpu"}) as jobs:
        assert jobs._executor.parameters["gpus_per_node"] == 1 and jobs._executor.parameters["timeout_min"] == 30
    with pytest.raises(ValueError, match="submitit does not take"):
        _executor(tmp_path, 1, "local", 5, {"partitoin": "gpu"})
    with pytest.raises(ValueError, match="need an executor"):
        _executor(tmp_path, 1, None, 5, {"gpus_per_node": "1"})


def test_names_in_the_table_are_not_markup(tmp_path):
    state = {"notebook": "13_<b>", "parameters": {"a": "x|y"}, "status": "failed: <script>", "seconds": 1.0}
    table = write_table({tmp_path / "none": state}, tmp_path)
    assert (
        tuple(table.columns) == COLUMNS and len(table) == 1 and "<script>" not in (tmp_path / "table.html").read_text()
    )
    assert "x/y" in (tmp_path / "table.md").read_text()


def test_command(tmp_path, capsys):
    assert main(["reproduce", "--scale", str(tmp_path / "none.yml")]) == 1
    assert "expected a YAML file" in capsys.readouterr().err


@pytest.fixture
def scales(notebooks):
    """The folder with scale files: `tiny` is for any notebook, its `steps` for none of these."""
    (notebooks / "tiny.yml").write_text("factor: 2\none: 5\nsteps: 40")
    (notebooks / "grid.yml").write_text(
        "tiny: [{notebook: 13_times, parameters: {other: [a, b]}}]\nbig: [{notebook: 13_times}]"
    )
    return notebooks


def test_a_notebook_is_given_the_parameters_that_it_has(scales):
    runs = read_scale("tiny", scales, scales)
    assert [run.parameters for run in runs] == [{"factor": 2, "one": 5, "other": other} for other in "ab"]
    (scales / "grid.yml").write_text("tiny: [{notebook: 13_times, parameters: {factor: 1}}]")
    assert read_scale("tiny", scales, scales)[0].parameters == {"factor": 1, "one": 5}


def test_bad_scales(scales):
    with pytest.raises(ValueError, match="found none for 'huge'"):
        read_scale("huge", scales, scales)
    with pytest.raises(ValueError, match=r"big\.yml: expected a YAML file"):
        read_scale("big", scales, scales)
    (scales / "big.yml").write_text("[1, 2]")
    with pytest.raises(ValueError, match="a value for each parameter"):
        read_scale("big", scales, scales)
    (scales / "big.yml").write_text("factor: [1, 2]")  # a list of a scale is one value
    assert [run.parameters for run in read_scale("big", scales, scales)] == [{"factor": [1, 2]}]


def test_papermill_by_hand_gives_the_numbers_of_reproduce(scales, tmp_path):
    """The scale's file as it is, with a parameter that the notebook lacks: same measures."""
    (scales / "grid.yml").write_text("tiny: [{notebook: 13_times}]")
    table = reproduce(read_scale("tiny", scales, scales), tmp_path / "out")
    notebook, by_hand = scales / "13_times.ipynb", tmp_path / "by_hand"
    by_hand.mkdir()
    command = [sys.executable, "-m", "papermill", str(notebook), str(by_hand / "out.ipynb"), "-p", "output_dir"]
    subprocess.run([*command, str(by_hand), "-f", str(scales / "tiny.yml")], check=True, capture_output=True)
    metrics = measures(json.loads((by_hand / "metrics.json").read_text()))
    assert metrics == dict(zip(table["measure"], table["value"])) == {"AP": 20.0, "parts/small": 2}


@pytest.mark.parametrize("scale", SCALES)
def test_shipped_scales(scale):
    """A scale's parameters are not mistyped: each is one of some notebook's."""
    assert read_scale(scale)
    known = set().union(*map(parameters_of, NOTEBOOKS.glob("*.ipynb")))
    assert set(yaml.safe_load((PARAMETERS / f"{scale}.yml").read_text())) <= known


def test_paper_numbers():
    columns, rows = paper_table(1)
    assert (
        len(columns) == len(rows[0])
        and paper_number(1, "coco_val_ap", method="T-Rex2", prompt="text", backbone="Swin-T") == 45.8
    )
    with pytest.raises(ValueError, match="tables 1 to 10"):
        paper_table(11)
    with pytest.raises(ValueError, match="expected one row"):
        paper_number(1, "coco_val_ap", method="T-Rex2")
    with pytest.raises(ValueError, match="no column"):
        paper_number(1, "coco_ap", method="T-Rex2")


@pytest.mark.skipif(not PAPER.is_file(), reason=f"the source of the numbers, {PAPER}, is not here")
def test_paper_numbers_are_those_of_the_source():
    source = json.loads(PAPER.read_text(encoding="utf-8"))
    tables = [name for name in source if name.startswith("table")]
    assert len(tables) == 10
    for name in tables:
        columns, rows = paper_table(int(name.split("_")[0].removeprefix("table")))
        assert columns == source[name]["columns"] and rows == [list(row) for row in source[name]["rows"]]
