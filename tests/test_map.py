"""trex2_mini/README.md, the map: its files are there, and their lengths are what it says."""

import re

import pytest

from trex2_mini.paths import REPOSITORY

PACKAGE = REPOSITORY / "trex2_mini"
MAP = (PACKAGE / "README.md").read_text(encoding="utf-8")


def test_the_lengths_of_the_papers_files():
    """To 10 %: where a file has grown or shrunk by more, write its length anew."""
    listed = re.findall(r"^\| \d+ \| \[`([^`]+)`\]\(\1\) \|.*\| (\d+) \|$", MAP, re.M)
    assert len(listed) >= 12
    lengths = {name: len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) for name, _ in listed}
    assert {name: int(said) for name, said in listed} == pytest.approx(lengths, rel=0.1)


@pytest.mark.parametrize("page", [PACKAGE / "README.md", REPOSITORY / "README.md"], ids=["map", "README"])
def test_the_files_that_a_page_names_are_there(page):
    names = set(re.findall(r"`((?:\w+/)*\w+\.(?:py|js))`", page.read_text(encoding="utf-8")))
    assert not [n for n in names if not (PACKAGE / n).is_file() and not (REPOSITORY / n).is_file()]
    assert names or page.parent == REPOSITORY


def test_every_room_is_on_the_map():
    rooms = [
        p for p in PACKAGE.iterdir() if (p / "__init__.py").is_file() or (p.suffix == ".py" and "__" not in p.name)
    ]
    assert not [room.name for room in rooms if f"`{room.name}" not in MAP]
