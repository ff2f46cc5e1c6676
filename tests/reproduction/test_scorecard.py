"""The scorecard: goals beside numbers, nothing measured twice, nothing left out in silence."""

from __future__ import annotations

import json

import pytest

from trex2_mini.checkpoint import shipped
from trex2_mini.evaluation.tables import as_markdown
from trex2_mini.reproduction.scorecard import LINES, Line, as_table, judged, scorecard


def test_every_shipped_checkpoint_has_lines():
    assert set(LINES) == set(shipped())
    for lines in LINES.values():
        assert len({line.key for line in lines}) == len(lines)


def test_verdicts():
    line = Line("a", "mixed", goal=50, above=("text", "template"))
    before = [{"line": "a text all", "AP": 60.0}, {"line": "b text all", "AP": 99.0}]
    assert judged(line, [*before, {"AP": 61.0, "template": 10.0}]) == {"value": 61.0, "goal": 60.0, "verdict": "met"}
    assert judged(line, [*before, {"AP": 61.0, "template": 62.0}])["verdict"] == "missed"
    assert judged(line, [*before, {"AP": 59.0}])["verdict"] == "missed"
    assert judged(Line("a", "text"), [{"AP": 3.0}]) == {"value": 3.0, "goal": None, "verdict": ""}
    counting = Line("a", "counting", goal=8)
    assert judged(Line("a", "counting"), [{"MAE": 7.0, "mean_count": 100.0}])["verdict"] == ""
    assert judged(counting, [{"MAE": 7.0, "mean_count": 100.0}])["verdict"] == "met"
    assert judged(counting, [{"MAE": 9.0, "mean_count": 100.0}]) == {"value": 9.0, "goal": 8, "verdict": "missed"}


def test_one_command(tmp_path, monkeypatch, capsys):
    """Two lines measured, one set that is not there; the second call measures nothing; other weights would be measured
    anew.
    """
    lines = [Line("coins", "visual-i-others", goal=101), Line("coins", "text"), Line("sets/none", "text", goal=1)]
    monkeypatch.setitem(LINES, "nano-photo", lines)
    monkeypatch.setenv("TREX2_DATA", str(tmp_path / "data"))
    file = tmp_path / "metrics.json"
    first = scorecard("nano-photo", draws=2, file=file)
    assert [r.get("verdict") for r in first] == ["missed", "", None] and "missing" in first[2]
    assert len(first[0]["by_seed"]["AP"]) == 2 and "by_seed" not in first[1]
    assert capsys.readouterr().out.count("...") == 3
    assert [r["line"] for r in json.loads(file.read_text())] == [line.key for line in lines[:2]]
    again = scorecard("nano-photo", draws=2, file=file)
    assert again == first and capsys.readouterr().out.count("...") == 1
    table = as_table(first)
    assert table["verdict"].tolist() == ["missed", "", "not here"] and table["goal"].tolist()[0] == 101
    text = as_markdown(table, ".1f")
    assert "| coins text all " in text and "101.0 | missed " in text and "nan" not in text


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no goals for 'swin_t'"):
        scorecard("swin_t")
    monkeypatch.setitem(LINES, "nano-photo", [])
    (tmp_path / "x.json").write_text("7")
    with pytest.raises(ValueError, match="no list of results"):
        scorecard("nano-photo", file=tmp_path / "x.json")
