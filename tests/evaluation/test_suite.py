"""Suites: every set with its own examples, then mean and median."""

from __future__ import annotations

import numpy as np
import pytest

from trex2_mini.evaluation import suite
from trex2_mini.evaluation.suite import as_table, measure_suite, present


def test_a_suite_is_the_mean_and_median_of_its_sets(monkeypatch):
    two = {f"photo-wild-{name}/val": f"photo-wild-{name}/examples" for name in ("ships", "thermal-cheetah")}
    monkeypatch.setattr(suite, "suites", lambda: {"photo-wild": two})
    result = measure_suite("nano-photo", "photo-wild", examples=1, draws=1, limit=2, baselines=(), progress=False)
    assert list(result["sets"]) == list(two)
    for protocol in ("text", "visual-g", "mixed", "visual-i", "points", "echo", "visual-i-others", "points-others"):
        own = result["AP"][protocol]
        aps = [result["sets"][data][protocol]["AP"] for data in two]
        assert own["mean"] == pytest.approx(np.mean(aps)) and own["median"] == pytest.approx(np.median(aps))
    assert result["AP"]["echo"]["mean"] > 0 and "template-others" not in result["AP"]
    assert [about["reference"]["name"] for about in result["about"].values()] == ["examples"] * 2
    table = as_table(result)
    assert list(table.columns) == ["AP", "ships", "thermal-cheetah", "mean", "median"] and len(table) == len(
        result["AP"]
    )


def test_an_unknown_suite_is_refused():
    with pytest.raises(ValueError, match="unknown suite 'wild'; expected one of emoji-wild, photo-wild"):
        measure_suite("nano-photo", "wild")


def test_sets_that_are_not_here_are_told_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("TREX2_DATA", str(tmp_path))
    ships = "photo-wild-ships/val"
    here, absent = present([ships, "coco-val2017", "lvis-val"], {"lvis-val": ships})
    assert list(here) == [ships] and here[ships][1].path.parent.name == "examples"
    assert list(absent) == ["coco-val2017", "lvis-val"] and "instances_val2017.json" in absent["coco-val2017"]
    with pytest.raises(FileNotFoundError, match="no set of odinw35 lies under"):
        measure_suite("nano-photo", "odinw35")
