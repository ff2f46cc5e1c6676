"""The model, its losses and the detector on a GPU that is not there: FakeTensorMode runs every operation on shapes and
devices alone, and one that mixes a tensor of the CPU with one of the GPU raises.

What waits for values has none there: the number of unpadded tokens, the matching and GIoU are given. For the backward
pass autograd asks CUDA's driver for a GPU, so gradients are taken on a made-up device, which knows no driver.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from tiny import NAMES, TINY, TINY_MODEL, squares
from torch._subclasses import FakeTensorMode
from torchvision.ops import generalized_box_iou

from trex2_mini.losses import criterion
from trex2_mini.losses.alignment import alignment_loss
from trex2_mini.model.image_encoder import ImageFeatures
from trex2_mini.model.trex2 import TRex2
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.training.iteration import iteration_losses

GPU = torch.device("cuda")


@pytest.fixture
def fake(monkeypatch):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    monkeypatch.setattr(ImageFeatures, "fewest", property(lambda self: self.padding.shape[1]))
    return mode


def on_gpu(mode: FakeTensorMode, device: torch.device = GPU) -> TRex2:
    """A model whose parameters and buffers are fake ones of a GPU. (`Module.to` cannot turn real ones into them.)"""
    model = TRex2(TINY_MODEL).train()
    with mode:
        for module in model.modules():
            for kept in (module._parameters, module._buffers):
                for name, value in kept.items():
                    if value is not None:
                        there = torch.empty(value.shape, dtype=value.dtype, device=device)
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


def training_step() -> int:
    """Losses and gradients of a whole iteration, in a process of its own: the device is registered for good."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    def matched(logits, boxes, labels, *_):
        return [(torch.arange(len(own), device=logits.device),) * 2 for own in labels]

    def giou(one, other, reduction):  # torchvision's own chooses boxes by their values
        return (1 - generalized_box_iou(one, other)).diagonal().sum()

    def everything(mask, as_tuple):  # which of the objects that denoising pads to are there: all
        place = torch.arange(mask.numel(), device=mask.device)
        return place // mask.shape[1], place % mask.shape[1]

    _setup_privateuseone_for_python_backend("fakegpu")
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) makes its values on the CPU first
    criterion.match, criterion.generalized_box_iou_loss, torch.Tensor.nonzero = matched, giou, everything
    ImageFeatures.fewest = property(lambda self: self.padding.shape[1])
    mode, samples = FakeTensorMode(allow_non_fake_inputs=True), [squares(i) for i in range(2)]
    model = on_gpu(mode, torch.device("fakegpu"))
    # the alignment of an iteration asks which names are there: it is called below. Recognition counts tokens in boxes.
    train = dataclasses.replace(TINY.train, loss_align=0.0, loss_token=0.0, visual_per_text=0)
    with mode:
        losses = iteration_losses(model, samples, NAMES, range(4), train, step=10**6)
        vectors, words = model.encode_text(NAMES[:2]), model.encode_text(NAMES)
        place = torch.arange(2, device="fakegpu")
        losses["align"] = alignment_loss(vectors, words, place, torch.ones(2, 4, dtype=torch.bool, device="fakegpu"))
        sum(losses.values()).backward()
    assert {"text/class_dn", "visual/giou_aux", "visual/l1"} <= losses.keys()
    assert {value.device.type for value in losses.values()} == {"fakegpu"}
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(own is not None and own.device.type == "fakegpu" for own in gradients)
    return len(gradients)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_training_step_with_its_gradients():
    registration = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot make up a device whose gradients can be taken (2.10 can)")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(training_step).result() > 50
