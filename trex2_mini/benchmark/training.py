"""A training step of `nano`, the Trainer's own, against the same step with transformers' attention, or bfloat16; its
time by part."""

import contextlib
import copy
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from trex2_mini.benchmark.attention import transformers_attention
from trex2_mini.benchmark.measure import interleaved, replaced, row, timed, transformers
from trex2_mini.config import preset
from trex2_mini.datasets.scenes.batches import EmojiBatches
from trex2_mini.layers import deformable_attention
from trex2_mini.losses import criterion
from trex2_mini.training import iteration
from trex2_mini.training.trainer import Trainer


def rows(quick: bool, repeats: int) -> Iterator[dict]:
    transformers()
    config = preset("nano")
    source = EmojiBatches(2 if quick else config.train.batch_size)
    samples = source(0)
    count = len(samples)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(folder, config, source, source.names, source.trainable, pretrained=False)

    def step(**recipe: Any) -> Callable[[], Any]:
        own = dataclasses.replace(config, train=dataclasses.replace(config.train, **recipe))

        def update() -> None:
            with replaced(trainer, "config", own):
                trainer._update({0: samples})

        return update

    def with_attention(form: Callable) -> Callable[[], None]:
        def update() -> None:
            with replaced(deformable_attention, "deformable_sum", form):
                trainer._update({0: samples})

        return update

    forms = {
        "ours": step(),
        "transformers' attention": with_attention(transformers_attention),
        "bfloat16 (amp)": step(amp=True),
    }
    yield {
        "note": "torch.compile: dynamo cannot trace the backward of the attention's sum, so training runs without it"
    }
    took = interleaved(forms, repeats)
    what = f"nano, batch {count}, {samples[0].image.shape[0]}x{samples[0].image.shape[1]}, step"
    for name in list(forms)[1:]:
        goal = 2.0 if name == "transformers' attention" else None
        yield row(what, "ours, float32", count / took["ours"], name, count / took[name], "images/s", goal)

    numbers = itertools.count()
    data = interleaved({"data": lambda: source(next(numbers))}, repeats)["data"]
    yield row("making a batch (in a worker beside it)", "data", count / data, "step", count / took["ours"], "images/s")
    took = interleaved(_layouts(trainer.model.image_encoder.backbone, count), repeats)
    seconds = took["channels last"], "channels first", took["channels first"]
    yield row("backbone alone, forward + backward", "channels last", *seconds)
    yield from _by_part(trainer, samples, repeats)


def _by_part(trainer: Trainer, samples: list, repeats: int) -> Iterator[dict]:
    """Seconds of one step by part: each part's own function is timed while it is called."""
    model, spent = trainer.model, {}
    parts = {
        "backbone": (model.image_encoder.backbone, "forward"),
        "image encoder": (model.image_encoder, "forward"),
        "visual prompts": (model.visual_prompt_encoder, "forward"),
        "text prompts": (model.text_prompt_encoder, "forward"),
        "denoising queries": (model.denoising, "forward"),
        "decoder": (model.box_decoder, "forward"),
        "matching": (criterion, "match"),
        "losses": (iteration, "detection_losses"),
        "backward": (torch.Tensor, "backward"),
        "optimizer": (trainer.optimizer, "step"),
        "whole step": (trainer, "_update"),
    }
    with contextlib.ExitStack() as stack:
        for name, (owner, attribute) in parts.items():
            stack.enter_context(replaced(owner, attribute, timed(getattr(owner, attribute), name, spent)))
        for _ in range(repeats):
            trainer._update({0: samples})
    spent["image encoder"] -= spent["backbone"]
    spent["losses"] -= spent["matching"]
    whole = spent.pop("whole step")
    spent["the rest"] = whole - sum(spent.values())
    for name, seconds in spent.items():
        share = f"{seconds / whole:.0%} of the step"
        yield row(f"by part: {name}", "nano", seconds / repeats, share, whole / repeats, compare=False)


def _layouts(backbone: nn.Module, count: int) -> dict[str, Callable[[], None]]:
    """Forward and backward of the backbone in two memory layouts."""

    def call(memory_format: torch.memory_format) -> Callable[[], None]:
        own = copy.deepcopy(backbone).to(memory_format=memory_format)
        images = torch.rand(count, 3, 192, 224).contiguous(memory_format=memory_format)
        return lambda: sum(level.sum() for level in own(images)).backward()

    return {"channels last": call(torch.channels_last), "channels first": call(torch.contiguous_format)}
