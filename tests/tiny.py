"""What the tests share: a model that builds in no time, pictures of coloured squares, weights without zeros."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from trex2_mini.config import Config, ModelConfig, TextTowerConfig, TrainConfig
from trex2_mini.datasets.sample import Sample
from trex2_mini.model.trex2 import TRex2

TINY_MODEL = ModelConfig(
    backbone="test_efficientnet",
    backbone_pretrained=False,
    frozen_stages=0,
    dim=32,
    heads=4,
    points=2,
    ffn_dim=64,
    encoder_layers=1,
    decoder_layers=2,
    num_queries=20,
    prompt_blocks=2,
    prompt_ffn_dim=64,
    text=TextTowerConfig(width=32, heads=2, layers=1, context_length=8),
    short_side=64,
    long_side=128,
)
TINY = Config(
    "tiny",
    TINY_MODEL,
    TrainConfig(steps=25, batch_size=2, warmup_steps=5, visual_per_text=1, text_negatives=2, denoising_queries=8),
)
NAMES = ["red square", "green square", "blue square", "yellow square"]
COLOURS = np.array([[230, 20, 20], [20, 200, 20], [20, 20, 230], [230, 230, 20]], dtype=np.uint8)


def seeded_model(config: ModelConfig = TINY_MODEL, seed: int = 0) -> TRex2:
    """A model in eval mode; what starts at zero (box heads, sampling offsets) is random too: all of it matters."""
    torch.manual_seed(seed)
    model = TRex2(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.05)
    return model


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Models built inside compute in float64, the casts to float32 in pictures and losses included.

    For comparisons of the same sum in another order: in float32 a deep model turns a rounding into the other side of a
    ReLU.
    """
    before, single = torch.get_default_dtype(), torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.Tensor.float = single


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth random colours, [3, height, width] in 0..1."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def squares(index: int, size: tuple[int, int] = (64, 64), objects: int = 2) -> Sample:
    """Coloured squares on grey, drawn from `index`; the label is the colour."""
    rng = np.random.default_rng(index)
    image = np.full((*size, 3), 128, dtype=np.uint8)
    labels = rng.permutation(len(NAMES))[:objects]
    boxes = np.zeros((objects, 4), dtype=np.float32)
    for place, label in enumerate(labels):
        side = int(rng.integers(14, 24))
        x, y = int(rng.integers(0, size[1] - side)), int(rng.integers(0, size[0] - side))
        image[y : y + side, x : x + side] = COLOURS[label]
        boxes[place] = x, y, x + side, y + side
    return Sample(image, boxes, labels.astype(np.int64), index)


GATHER_SHAPES = [(6, 5), (3, 4), (1, 2)]


def gather_example(
    batch=2, queries=7, heads=3, dim=4, points=2, low=-0.3, high=1.3, dtype=torch.float32, shapes=GATHER_SHAPES
):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, dim, generator=generator, dtype=dtype)
    locations = low + (high - low) * torch.rand(
        batch, queries, heads, len(shapes), points, 2, generator=generator, dtype=dtype
    )
    weights = torch.rand(batch, queries, heads, len(shapes), points, generator=generator, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (value, locations, weights)]


def value_and_gradients(function, value, locations, weights, shapes=GATHER_SHAPES):
    output = function(value, shapes, locations, weights)
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return output, *torch.autograd.grad(output, (value, locations, weights), target)
