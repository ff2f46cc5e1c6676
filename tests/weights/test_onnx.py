"""The ONNX programs, run by onnxruntime, give the model's own numbers, for any number of categories and prompts."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny import TINY, TINY_MODEL, picture, seeded_model

from trex2_mini import Detector
from trex2_mini.checkpoint import save_model
from trex2_mini.cli import main
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.weights import onnx as export
from trex2_mini.weights.onnx import export_onnx

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def detector():
    model = dataclasses.replace(TINY_MODEL, num_queries=12)
    return Detector(seeded_model(model), dataclasses.replace(TINY, model=model))


@pytest.fixture(scope="module")
def programs(detector, tmp_path_factory):
    folder = export_onnx(detector, tmp_path_factory.mktemp("onnx"), 64, 96, ["cat", "dog"])
    assert sorted(path.name for path in folder.iterdir()) == [
        "decoder.onnx",
        "encoder.onnx",
        "export.json",
        "prompt.onnx",
    ]
    assert all(module.compiled is None for module in detector.model.modules() if hasattr(module, "compiled"))
    sessions = {
        name: ort.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in ("encoder", "prompt", "decoder")
    }
    return sessions, json.loads((folder / "export.json").read_text())


@pytest.mark.parametrize(("categories", "prompts"), [(1, 1), (5, 3)])
def test_onnx_equals_the_model(detector, programs, categories, prompts):
    sessions, _ = programs
    image = picture(64, 96, seed=categories)
    coords = 0.2 + 0.5 * torch.rand(1, categories, prompts, 4, generator=torch.Generator().manual_seed(1))
    is_point = torch.arange(categories * prompts).view(1, categories, prompts) % 2 == 1
    coords[is_point] *= torch.tensor([1.0, 1, 0, 0])
    mask = torch.ones_like(is_point)
    mask[:, :, 1:] = is_point[:, :, 1:]
    with torch.inference_mode():
        features = detector.model.encode_images([image])
        visual = detector.model.encode_visual(features, RegionPrompts(coords, is_point, mask))
        expected = detector.model.decode(features, visual)
    tokens = sessions["encoder"].run(None, {"image": image[None].numpy()})[0]
    given = {"tokens": tokens, "coords": coords.numpy(), "is_point": is_point.numpy(), "mask": mask.numpy()}
    vectors = sessions["prompt"].run(None, given)[0]
    logits, boxes = sessions["decoder"].run(None, {"tokens": tokens, "prompts": vectors})
    for ours, theirs in (
        (tokens, features.tokens),
        (vectors, visual),
        (logits, expected.logits),
        (boxes, expected.boxes),
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4, rtol=1e-4)


def test_text_goes_along_as_a_table(detector, programs):
    sessions, described = programs
    assert (described["height"], described["width"], described["queries"]) == (64, 96, 12)
    image = picture(64, 96)
    with torch.inference_mode():
        features = detector.model.encode_images([image])
        expected = detector.model.decode(features, detector.model.encode_text(["cat", "dog"]))
    tokens = sessions["encoder"].run(None, {"image": image[None].numpy()})[0]
    prompts = np.array([list(described["text"].values())], np.float32)
    logits, _ = sessions["decoder"].run(None, {"tokens": tokens, "prompts": prompts})
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4, rtol=1e-4)


def test_refusals(detector, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="multiples of 32 px, got 64 x 90"):
        export_onnx(detector, tmp_path / "out", 64, 90)
    save_model(tmp_path / "tiny", detector.model, detector.config)
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    arguments = ["export", "--checkpoint", str(tmp_path / "tiny"), "--out", str(tmp_path / "out"), "--size", "64", "64"]
    assert main(arguments) == 1 and "trex2-mini[export]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
