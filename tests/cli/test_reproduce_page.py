"""notebooks/REPRODUCE.md: its commands are taken by the command line, and what they name is there."""

from __future__ import annotations

import re
import shlex

import click
import pytest
import yaml
from nbformat import read

from trex2_mini.cli import trex2
from trex2_mini.cli.train import _changed
from trex2_mini.config import preset
from trex2_mini.paths import REPOSITORY

PAGE = (REPOSITORY / "notebooks" / "REPRODUCE.md").read_text(encoding="utf-8")
CODE = re.sub(r"\\\n", "", "\n".join(re.findall(r"^    (?! )(.+)$", re.sub(r"\\\n +", "", PAGE), re.MULTILINE)))
FOR = dict(re.findall(r'^export (\w+)="?(.*?)"?$', CODE, re.MULTILINE))
LINES = [
    *(line for line in CODE.splitlines() if not line.startswith("export")),
    *(own for own in re.findall(r"`([^`]+)`", PAGE) if " " in own),
]


def commands() -> list[str]:
    """All of trex2's, with $TRAIN and the like written out and one turn of each loop."""
    found = []
    for line in LINES:
        line = re.sub(r"\$(TRAIN|EVAL)\b", lambda m: FOR[m[1]], line)
        line = line.replace("torchrun --nproc-per-node 8 -m trex2_mini", "trex2").replace("$set", "coco-val2017")
        line = line.replace("$protocol", "text").replace("$n", "16").replace("${set}", "set")
        found += re.findall(r"trex2 (?:train|evaluate|suite|data|engine|benchmark|reproduce) [^;#]+", line)
    return sorted({own.strip() for own in found})


def test_they_are_found():
    assert len(commands()) > 35 and sum("--mixture" in own for own in commands()) >= 6


@pytest.mark.parametrize("line", commands())
def test_the_command_line_takes_them(line):
    words, command, context = shlex.split(line)[1:], trex2, None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context)
        name, command, words = command.resolve_command(context, words)
    given = command.make_context(name, words, parent=context).params
    mixture = given.get("mixture")
    assert mixture is None or "COPY" in str(mixture) or (REPOSITORY / mixture).is_file()
    for pair in given.get("changes", ()):
        _changed(preset(given["preset"]).train, (pair,))


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("papermill ")])
def test_papermill_is_given_parameters_that_the_notebook_has(line):
    words = shlex.split(line)
    notebook = read(REPOSITORY / words[1], as_version=4)
    known = next(cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    scale = yaml.safe_load((REPOSITORY / words[words.index("-f") + 1]).read_text(encoding="utf-8"))
    given = {*(words[place + 1] for place, word in enumerate(words) if word == "-p")}
    assert {"sets", "reference", "device", "checkpoint", "limit"} <= set(re.findall(r"^(\w+) = ", known, re.MULTILINE))
    assert given <= {"checkpoint"} | scale.keys()
