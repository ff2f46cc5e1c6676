"""The model, its losses and the detector on a GPU that is not there: FakeTensorMode runs every operation on shapes and
devices alone, and one that mixes a tensor of the CPU with one of the GPU raises.

What waits for values has none there: the number of unpadded tokens, the matching and GIoU are given. For the backward
pass autograd asks CUDA's driver for a GPU, so gradients are taken on a made-up device, which knows no driver.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from tiny import NAMES, TINY, TINY_MODEL, squares
from torch._subclasses import FakeTensorMode
from torchvision.ops import generalized_box_iou

from trex2_mini import detector
from trex2_mini.detections import Detections
from trex2_mini.detector import Detector
from trex2_mini.losses import criterion
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


def test_the_detector_on_a_gpu(fake, monkeypatch):
    """What users call, up to the choice of the best boxes, which asks for values."""
    seen, nothing = [], Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int), ["red"])
    monkeypatch.setattr(detector, "usable_device", torch.device)  # there is no GPU to be found
    monkeypatch.setattr(detector, "top_detections", lambda *given: seen.append(given) or [nothing])
    monkeypatch.setattr(Detector, "weights", "0" * 16)
    monkeypatch.setattr(TRex2, "to", lambda model, device: model)  # it is there already, and fake ones cannot be moved
    # in inference mode a fake tensor asks for the driver
    for name in ("encode", "embed", "ask", "detect"):
        monkeypatch.setattr(Detector, name, torch.no_grad()(getattr(Detector, name).__wrapped__))
    model, picture, box = on_gpu(fake), squares(0).image, [[4, 4, 20, 20]]
    with fake:
        own = Detector(model, TINY, "cuda")
        encoded = own.encode(picture)
        bank = own.embed({"red": [(picture, box), (encoded, box, [[9, 9]])]})
        asked = own.ask(encoded, text=["blue"], boxes={"red": box}, prompts=bank)
        own.detect(
            encoded, ["blue"], {"red": box}, {"green": [[9, 9]]}, asked, 0, negative_text=["x"], negative_boxes=box
        )
        own.detect([picture, encoded], prompts=bank, score_threshold=0)
    assert bank.embeddings.device.type == "cpu" and asked.embeddings.device.type == "cuda" and len(seen) == 3
    assert {t.device.type for t in (encoded.features.tokens, *seen[0][:2])} == {"cuda"}
    assert seen[0][0].shape[-1] == 3  # blue, red, green


def training_step() -> int:
    """Losses and gradients of a whole iteration, in a process of its own: the device is registered for good."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    def matched(logits, boxes, labels, *_):
        return [(torch.arange(len(own), device=logits.device),) * 2 for own in labels]

    def giou(one, other, reduction):  # torchvision's own chooses boxes by their values
        return (1 - generalized_box_iou(one, other)).diagonal().sum()

    def everything(mask, as_tuple=False):  # all objects that denoising pads to are there, all tokens are in a box
        place = torch.arange(mask.numel(), device=mask.device)
        return (place // mask.shape[1], place % mask.shape[1]) if as_tuple else place[:, None]

    _setup_privateuseone_for_python_backend("fakegpu")
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) makes its values on the CPU first
    criterion.match, criterion.generalized_box_iou_loss, torch.Tensor.nonzero = matched, giou, everything
    ImageFeatures.fewest = property(lambda self: self.padding.shape[1])
    mode, samples = FakeTensorMode(allow_non_fake_inputs=True), [squares(i) for i in range(2)]
    model = on_gpu(mode, torch.device("fakegpu"))
    samples[1].prompts = ("visual",)  # one picture without a text prompt: the alignment chooses vectors
    train = dataclasses.replace(TINY.train, loss_align=1.0, loss_token=1.0, visual_per_text=0)
    with mode:
        losses = iteration_losses(model, samples, NAMES, range(4), train, step=10**6)
        sum(losses.values()).backward()
    assert {"text/class_dn", "visual/giou_aux", "visual/l1", "text/token", "visual/token", "align"} <= losses.keys()
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
