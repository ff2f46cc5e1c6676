"""The benchmark command: that it measures what it says and prints it. No test looks at a speed."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
import time

import pytest
import torch
from tiny import TINY, picture, seeded_model, value_and_gradients
from tiny import gather_example as example

from trex2_mini import benchmark, config
from trex2_mini.benchmark import attention, evaluation, measure, model, onnx, training
from trex2_mini.benchmark.measure import interleaved, peak_memory, replaced, row, timed
from trex2_mini.cli import main
from trex2_mini.detector import Detector
from trex2_mini.evaluation.metrics import coco_ap
from trex2_mini.layers import deformable_attention
from trex2_mini.layers.deformable_attention import compiled_sum, has_compiler, levelwise_grid_sample

REFERENCES = {
    "attention": {"transformers"},
    "model": {"full pass", "1 prompt", "192x192", "batch 1"},
    "training": {"transformers' attention", "bfloat16 (amp)", "channels first"},
    "evaluation": {"a pass a prompt", "plain pycocotools: all 12 numbers"},
    "onnx": {"PyTorch"},
    "soak": {"after warm-up"},
    "interaction": {"encode and answer", "limit", "a further box"},
}


@pytest.fixture
def tiny_preset(monkeypatch):
    """`nano` with the text tower, layers and recipe of the test model: what a benchmark does is the same, only sooner
    done.
    """
    real = config.preset("nano")
    small = dataclasses.replace(
        real.model, encoder_layers=1, decoder_layers=2, num_queries=20, prompt_blocks=1, text=TINY.model.text
    )
    tiny = dataclasses.replace(real, model=small)
    for module in (model, training):
        monkeypatch.setattr(module, "preset", lambda name: tiny)
    monkeypatch.setattr(onnx, "load", lambda: Detector(seeded_model(), TINY, "cpu"))
    monkeypatch.setattr(onnx, "THRESHOLD", 0.0)  # random weights are sure of nothing


@pytest.mark.parametrize("name", REFERENCES)
def test_quick_run_gives_figures_beside_their_references(name, tiny_preset, tmp_path, capsys):
    assert main(["benchmark", name, "--quick", "--repeats", "1", "--json", str(tmp_path / "out" / "speed.json")]) == 0
    result = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert result["benchmark"] == name and result["quick"] and result["rounds"] == 1 and result["versions"]["torch"]
    compared = [line for line in result["rows"] if line["ratio"] is not None]
    assert {line["reference"] for line in compared} >= REFERENCES[name]
    for line in result["rows"]:
        assert line["value"] > 0 and math.isfinite(line["value"]), line
    for line in compared:
        gain = line["value"] / line["reference_value"]
        assert line["ratio"] == pytest.approx(gain if "/s" in line["unit"] else 1 / gain)
    if name == "onnx":
        same = result["rows"][0]
        assert same["value"] >= 0.95 * same["reference_value"] > 10
    if name == "training":  # the parts add up to the step
        parts = {line["what"].removeprefix("by part: "): line for line in result["rows"] if "by part" in line["what"]}
        assert {"backbone", "decoder", "matching", "losses", "backward", "optimizer"} <= set(parts)
        total = sum(line["value"] for line in parts.values())
        assert total == pytest.approx(parts["backbone"]["reference_value"])
    table = capsys.readouterr().out
    assert all(line["what"] in table for line in result["rows"])


@pytest.mark.parametrize("form", [f for f in attention.FORMS if f != "grid_sample by level"])
def test_every_form_gives_one_sum(form):
    """transformers' function, which the benchmark compares with, and ours: the same values and gradients."""
    tensors = example()
    for got, expected in zip(
        value_and_gradients(attention.FORMS[form], *tensors), value_and_gradients(levelwise_grid_sample, *tensors)
    ):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler; none was found")
def test_the_compiled_detector_finds_the_same():
    """Two image sizes, points and boxes, through a whole detector; one compilation for as many queries as tokens, one
    for the others.
    """
    from torch._dynamo.utils import counters

    plain, compiled = Detector(seeded_model(), TINY), Detector(seeded_model(), TINY).compile()
    counters.clear()
    for size in ((64, 80), (96, 64)):
        image = (picture(*size) * 255).byte().permute(1, 2, 0).numpy()
        for prompts in ({"text": "red square"}, {"boxes": [[5, 5, 30, 30]], "points": {"object": [[40, 40]]}}):
            expected, got = (d.detect(image, **prompts, score_threshold=0) for d in (plain, compiled))
            assert len(expected) and got.names == expected.names
            torch.testing.assert_close(got.scores, expected.scores, atol=1e-5, rtol=1e-4)
    assert not counters["graph_break"] and 1 <= counters["stats"]["unique_graphs"] <= 3


def test_training_never_waits_for_a_compiler(monkeypatch):
    """With gradients the plain sum runs, whatever `compile_attention` has set."""
    called = []
    monkeypatch.setattr(deformable_attention, "compiled_sum", lambda: lambda *_: called.append(1))
    ours = deformable_attention.compile_attention(seeded_model())
    assert ours.encode_images([picture(64, 64)]).tokens.requires_grad and not called


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(deformable_attention, "has_compiler", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    compiled_sum.cache_clear()
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler"):
        compiled_sum()


def test_interleaved_runs_in_rounds():
    order = []
    took = interleaved({"a": lambda: order.append("a"), "b": lambda: (order.append("b"), time.sleep(0.002))}, 3)
    assert order == ["a", "b"] * 4  # one warm-up, three rounds
    assert took["b"] >= 0.002 and took["a"] > 0


def test_ratio_above_one_is_always_better():
    assert row("", "", 2.0, "", 6.0)["ratio"] == 3.0  # seconds: less is better
    assert row("", "", 6.0, "", 2.0, "images/s")["ratio"] == 3.0
    assert row("", "", 2.0)["ratio"] is None and row("", "", 2.0, "", 6.0, compare=False)["ratio"] is None


def test_timed_function_is_put_back():
    spent = {}
    own = math.sqrt
    with replaced(math, "sqrt", timed(math.sqrt, "root", spent)):
        assert math.sqrt(4.0) == 2.0 and math.sqrt is not own
    assert math.sqrt is own and spent["root"] > 0


def _allocate(gibibytes: float):
    return lambda: torch.zeros(int(gibibytes * 2**28)).add_(1)


def test_peak_memory_is_what_a_call_needs_above_before():
    peak = peak_memory(_allocate, 0.25)
    if peak is None:
        pytest.skip("peak memory is measured on Linux only")
    assert 0.24 < peak.above < 0.35 and peak.whole > peak.above


def test_the_reference_of_the_ap_benchmark_agrees_with_ours():
    truth, detections = evaluation.synthetic_detections(6, categories=5)
    before = json.dumps(detections)
    assert evaluation.plain_ap(truth, detections) == pytest.approx(coco_ap(truth, detections)["AP"])
    assert 1 < coco_ap(truth, detections)["AP"] < 99 and json.dumps(detections) == before


def test_a_model_made_in_inference_mode_encodes_text():
    with torch.inference_mode():
        ours = seeded_model()
        assert torch.equal(ours.encode_text(["red"]), ours.encode_text(["red"]))


def test_a_missing_reference_is_named(monkeypatch):
    def without(name, *rest):
        if name.startswith("transformers"):
            raise ImportError("no such package")
        return builtins.__import__(name, *rest)

    monkeypatch.setattr(measure.importlib, "import_module", without)
    for name in ("attention", "training"):
        with pytest.raises(ValueError, match="pip install"):
            benchmark.run(name, quick=True)
    with pytest.raises(ValueError, match="pip install"):
        benchmark.run("model", presets=["swin_t"])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="unknown benchmark 'speed'"):
        benchmark.run("speed")
    with pytest.raises(ValueError, match="at least 1"):
        benchmark.run("attention", quick=True, repeats=-1)
    with pytest.raises(ValueError, match="unknown preset 'swin_x'"):
        benchmark.run("model", presets=["swin_x"])
    with pytest.raises(ValueError, match="belong to the benchmark 'model'"):
        benchmark.run("attention", presets=["nano"])


def test_ap_of_many_images_alone(capsys, tmp_path):
    file = tmp_path / "speed.json"
    assert main(["benchmark", "evaluation", "--images", "3", "--json", str(file)]) == 0
    (line,) = json.loads(file.read_text())["rows"]
    assert line["what"].startswith("COCO AP, 3 images x 300") and line["ratio"] > 0
    for wrong in (["evaluation", "--images", "0"], ["model", "--images", "3"]):
        assert main(["benchmark", *wrong]) == 1
        assert "belong to the benchmark 'evaluation'" in capsys.readouterr().err
