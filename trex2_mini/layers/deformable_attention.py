"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, eq. 3), in pure PyTorch.

Every query looks at `heads x levels x points` positions near its reference and adds up the values found there,
bilinearly interpolated, with learned weights. Two forms compute the same sum: `levelwise_grid_sample`, the one to read,
used on GPUs, and `weighted_gather` (gather_sum.py), about three times as fast on a CPU; `deformable_sum` chooses.
`compile_attention` fuses either.
"""

import functools
import math
import shutil
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trex2_mini.layers.gather_sum import gather_padded, pad_levels, weighted_gather

Shapes = list[tuple[int, int]]
Model = TypeVar("Model", bound=nn.Module)


def levelwise_grid_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """value [B, N, H, d], shapes [(h, w)] with sum h*w = N, locations [B, Q, H, L, P, 2] (x, y) in 0..1, weights [B, Q,
    H, L, P] -> [B, Q, H*d].

    Outside the map the value is zero. Sums level by level, so that no [.., L*P] product is stored.
    """
    batch, _, heads, dim = value.shape
    queries, _points = locations.shape[1], locations.shape[4]
    value = value.permute(0, 2, 3, 1).reshape(batch * heads, dim, -1)  # (BH, d, N)
    grids = (locations * 2 - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)  # (BH, L, Q, P, 2)
    weights = weights.permute(0, 2, 3, 1, 4).flatten(0, 1)  # (BH, L, Q, P)
    output = value.new_zeros(batch * heads, dim, queries)
    start = 0
    for level, (height, width) in enumerate(shapes):
        level_map = value[:, :, start : start + height * width].reshape(batch * heads, dim, height, width)
        sampled = F.grid_sample(
            level_map, grids[:, level], mode="bilinear", padding_mode="zeros", align_corners=False
        )  # (BH, d, Q, P)
        output = output + (sampled * weights[:, level, None]).sum(-1)
        start += height * width
    return output.view(batch, heads * dim, queries).transpose(1, 2)


def deformable_sum(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The faster of the two forms on the device at hand; arguments as in `levelwise_grid_sample`."""
    form = weighted_gather if value.device.type == "cpu" else levelwise_grid_sample
    return form(value, shapes, locations, weights)


def has_compiler() -> bool:
    """torch.compile needs a C++ compiler on a CPU."""
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))


@functools.cache
def compiled_sum() -> Callable[..., Tensor]:
    """The sum under torch.compile, which fuses the index arithmetic: for inference. It is compiled (20 s) for as many
    queries as tokens, and again for any number of queries; both serve every image size.

    On a CPU this needs a C++ compiler at run time; ValueError where there is none.
    """
    if not torch.cuda.is_available() and not has_compiler():
        raise ValueError(
            "torch.compile needs a C++ compiler (g++ or clang++), and none was found: install one, or do not ask for it"
        )
    on_cpu, on_gpu = torch.compile(gather_padded, dynamic=True), torch.compile(levelwise_grid_sample, dynamic=True)

    def form(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        if value.device.type == "cpu":  # copying into the padded maps is faster as it is
            return on_cpu(pad_levels(value, shapes), shapes, locations, weights)
        return on_gpu(value, shapes, locations, weights)

    return form


def compile_attention(model: Model) -> Model:
    """The same model; without gradients, every deformable attention in it computes `compiled_sum`. See there for what
    that needs."""
    for module in model.modules():
        if isinstance(module, DeformableAttention):
            module.compiled = compiled_sum()
    return model


class DeformableAttention(nn.Module):
    """query [B, Q, D], reference, value source [B, N, D] -> [B, Q, D]; no residual, no norm."""

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim}, heads={heads}")
        self.heads, self.levels, self.points = heads, levels, points
        self.compiled: Callable[..., Tensor] | None = None  # see compile_attention
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._reset()

    def _reset(self) -> None:
        """Each head starts looking in its own direction, point k at distance k + 1 (Deformable DETR)."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.points + 1).view(1, 1, -1, 1)
        grid = direction.view(self.heads, 1, 1, 2) * distance.expand(self.heads, self.levels, -1, 1)
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.data = grid.reshape(-1)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def values(self, source: Tensor, padding: Tensor | None) -> Tensor:
        """What the queries gather: source [B, N, D] projected, zero where padding [B, N] is True, by heads [B, N, H, D
        / H]."""
        value = self.value_proj(source)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        return value.unflatten(-1, (self.heads, -1))

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        source: Tensor,
        shapes: Shapes,
        padding: Tensor | None,
        is_point: Tensor | None = None,
        value: Tensor | None = None,
    ) -> Tensor:
        """
        query     [B, Q, D], position already added
        reference [B, Q, 2] points or [B, Q, 4] boxes (cxcywh), in 0..1 of the padded map
        source    [B, N, D] the levels' tokens, one after the other
        shapes    [(h, w)] of the levels
        padding   [B, N] True where a token is padding: its value is zero
        is_point  [B, Q] True where a 4-number reference is a point: its offsets are in cells of each level, as for [B,
                  Q, 2]
        value     what `values(source, padding)` gave, where it is known already
        """
        batch, queries, _ = query.shape
        value = self.values(source, padding) if value is None else value
        offsets = self.sampling_offsets(query).view(batch, queries, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(batch, queries, self.heads, -1).softmax(-1)
        weights = weights.view(batch, queries, self.heads, self.levels, self.points)
        cell = 1 / reference.new_tensor([(w, h) for h, w in shapes])  # (L, 2)
        if reference.shape[-1] == 2:
            unit = cell.expand(batch, queries, -1, -1)
        else:
            unit = (reference[..., None, 2:] * (0.5 / self.points)).expand(-1, -1, self.levels, -1)  # (B, Q, L, 2)
            if is_point is not None:
                unit = torch.where(is_point[..., None, None], cell, unit)
        locations = reference[:, :, None, None, None, :2] + offsets * unit[:, :, None, :, None]
        form = deformable_sum if self.compiled is None or torch.is_grad_enabled() else self.compiled
        return self.output_proj(form(value, shapes, locations, weights))
