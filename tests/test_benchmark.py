"""The benchmark command: that it measures what it says and prints it. No test looks at a speed."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch
from test_gather_sum import example, value_and_gradients
from tiny import TINY, picture, seeded_model

from trex2_mini import benchmark
from trex2_mini.__main__ import main
from trex2_mini.detector import Detector
from trex2_mini.layers.deformable_attention import levelwise_grid_sample


@pytest.mark.parametrize("name", ["attention", "model", "training", "evaluation"])
def test_quick_run_gives_figures_beside_their_references(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "NAMES", benchmark.NAMES[:90])
    assert main(["benchmark", name, "--quick", "--repeats", "1", "--json", str(tmp_path / "out" / "speed.json")]) == 0
    result = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert result["benchmark"] == name and result["quick"] and result["rounds"] == 1 and result["versions"]["torch"]
    assert len(result["rows"]) >= 2
    for row in result["rows"]:
        assert row["value"] > 0 and math.isfinite(row["value"]), row
        if row["reference_value"] is None:
            assert row["ratio"] is None
        else:
            faster = (
                row["value"] / row["reference_value"] if "/s" in row["unit"] else row["reference_value"] / row["value"]
            )
            assert row["ratio"] == pytest.approx(faster)
    table = capsys.readouterr().out
    assert all(row["what"] in table for row in result["rows"])


@pytest.mark.parametrize("form", [f for f in benchmark.FORMS if f != "grid_sample by level"])
def test_every_form_gives_one_sum(form):
    """transformers' function, which the benchmark compares with, and ours: the same values and gradients."""
    tensors = example()
    for got, expected in zip(
        value_and_gradients(benchmark.FORMS[form], *tensors), value_and_gradients(levelwise_grid_sample, *tensors)
    ):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not benchmark.has_compiler(), reason="torch.compile needs a C++ compiler; none was found")
def test_the_compiled_detector_finds_the_same():
    """Both attention references, points and boxes, through a whole detector."""
    image = (picture(64, 80) * 255).byte().permute(1, 2, 0).numpy()
    plain, compiled = Detector(seeded_model(), TINY), Detector(seeded_model(), TINY).compile()
    for prompts in ({"text": "red square"}, {"boxes": [[5, 5, 30, 30]], "points": {"object": [[40, 40]]}}):
        expected, got = (d.detect(image, **prompts, score_threshold=0) for d in (plain, compiled))
        assert len(expected) and got.names == expected.names
        torch.testing.assert_close(got.scores, expected.scores, atol=1e-5, rtol=1e-4)


def test_interleaved_runs_in_rounds():
    order = []
    took = benchmark.interleaved(
        {"a": lambda: order.append("a"), "b": lambda: (order.append("b"), time.sleep(0.002))}, 3
    )
    assert order == ["a", "b"] * 4  # one warm-up, three rounds
    assert took["b"] > took["a"] > 0


def _allocate(gigabytes: float):
    return lambda: torch.zeros(int(gigabytes * 2**28)).add_(1)


def test_peak_memory_is_what_a_call_needs_above_before():
    peak = benchmark.peak_memory(_allocate, 0.25)
    if peak is None:
        pytest.skip("peak memory is measured on Linux only")
    assert 0.24 < peak < 0.35


def test_a_model_made_in_inference_mode_encodes_text():
    with torch.inference_mode():
        model = seeded_model()
        assert torch.equal(model.encode_text(["red"]), model.encode_text(["red"]))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="unknown benchmark 'speed'"):
        benchmark.run("speed")
    with pytest.raises(ValueError, match="at least 1"):
        benchmark.run("attention", quick=True, repeats=-1)
