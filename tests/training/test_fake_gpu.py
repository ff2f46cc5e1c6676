"""The model, its losses and the detector on a GPU that is not there: FakeTensorMode runs every operation on shapes and
devices alone, and one that mixes a tensor of the CPU with one of the GPU raises.

What waits for values has none there: the number of unpadded tokens, matching, duplicates. Those are given.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import NAMES, TINY, TINY_MODEL, squares
from torch._subclasses import FakeTensorMode

from trex2_mini.losses import criterion
from trex2_mini.model.image_encoder import ImageFeatures
from trex2_mini.model.trex2 import TRex2
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.training.iteration import text_prompts

GPU = torch.device("cuda")


@pytest.fixture
def fake(monkeypatch):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    monkeypatch.setattr(ImageFeatures, "fewest", property(lambda self: self.padding.shape[1]))
    return mode


def on_gpu(mode: FakeTensorMode) -> TRex2:
    """A model whose parameters and buffers are fake ones of a GPU. (`Module.to` cannot turn real ones into them.)"""
    model = TRex2(TINY_MODEL).train()
    with mode:
        for module in model.modules():
            for kept in (module._parameters, module._buffers):
                for name, value in kept.items():
                    if value is not None:
                        there = torch.empty(value.shape, dtype=value.dtype, device=GPU)
                        trained = kept is module._parameters
                        kept[name] = torch.nn.Parameter(there, value.requires_grad) if trained else there
    return model


def test_a_tensor_left_on_the_cpu_is_found(fake):
    """The test itself: what it looks for raises."""
    with fake, pytest.raises(RuntimeError, match="device"):
        torch.ones(3, device=GPU) + torch.ones(3)


def test_model_on_a_gpu(fake):
    model = on_gpu(fake)
    with fake:
        features = model.encode_images([torch.rand(3, 64, 64, device=GPU) for _ in range(2)])
        assert features.device.type == "cuda" and features.tokens.device.type == "cuda"
        regions = [[(torch.rand(2, 4), torch.zeros(0, 2)), (torch.zeros(0, 4), torch.rand(1, 2))]] * 2
        visual = model.encode_visual(features, RegionPrompts.from_lists(regions, GPU))
        words = model.encode_text(NAMES)
        assert visual.device.type == words.device.type == "cuda"
        for prompts in (visual, words.expand(2, -1, -1)):
            output = model.decode(features, prompts, auxiliary=True)
            assert output.logits.device.type == output.boxes.device.type == "cuda"
        (output.logits.sum() + output.boxes.sum() + visual.sum()).backward()
        assert {p.grad.device.type for p in model.parameters() if p.grad is not None} == {"cuda"}


def test_losses_on_a_gpu(fake, monkeypatch):
    """The matcher waits for values: every image's first objects get its first queries."""

    def matched(logits, boxes, targets, *_, **__):
        return [(torch.arange(len(own), device=GPU),) * 2 for own in targets.labels]

    monkeypatch.setattr(criterion, "match", matched)
    samples = [squares(i) for i in range(2)]
    model = on_gpu(fake)
    with fake:
        features = model.encode_images([torch.rand(3, 64, 64, device=GPU) for _ in samples])
        asked = text_prompts(model, samples, NAMES, range(4))
        assert {t.device.type for t in (*asked.targets.labels, *asked.targets.boxes)} == {"cuda"}
        output = model.decode(features, asked.prompts, asked.mask, auxiliary=True)
        train = dataclasses.replace(TINY.train, denoising_queries=0)
        losses = criterion.detection_losses(output, asked.targets, train, asked.mask, None)
        assert losses and {value.device.type for value in losses.values()} == {"cuda"}
        torch.stack(list(losses.values())).sum().backward()
