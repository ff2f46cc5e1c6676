"""The numbers on the pages are those of the files that the commands wrote, and the files are of the shipped weights."""

import json

import pages
import pytest

from trex2_mini.checkpoint import file_hash, load_model, shipped, state_hash
from trex2_mini.paths import REPOSITORY
from trex2_mini.reproduction.scorecard import LINES


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_row_is_that_of_its_file(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8").splitlines()
    rows = pages.lines(page)
    assert rows
    for first, row in rows.items():
        assert [line for line in text if line.startswith(f"| {first} |")] == [row], "run python data/makers/pages.py"


@pytest.mark.parametrize("checkpoint", shipped())
def test_measured_on_the_shipped_weights(checkpoint):
    folder = REPOSITORY / "data" / "checkpoints" / checkpoint
    measured = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert {own["checkpoint_hash"] for own in measured} == {file_hash(folder / "model.safetensors")}
    assert [own["line"] for own in measured] == [line.key for line in LINES[checkpoint]]  # all of them


def test_photo_wild_is_of_the_shipped_weights():
    found = json.loads((REPOSITORY / "data" / "results" / "photo_wild.json").read_text(encoding="utf-8"))
    own = file_hash(REPOSITORY / "data" / "checkpoints" / "nano-photo" / "model.safetensors")
    assert {about["checkpoint_hash"] for about in found["about"].values()} == {own}


def test_the_laptop_scale_is_of_the_shipped_weights():
    found = json.loads((REPOSITORY / "data" / "results" / "laptop.json").read_text(encoding="utf-8"))
    assert found["checkpoint_hash"] == state_hash(load_model("nano-emoji")[0])  # notebooks hash a loaded model
