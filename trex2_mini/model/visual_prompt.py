"""Visual prompt encoder: boxes and points on an image become one vector V per category (paper eq. 1 to 5).

All categories of all images are encoded at once, padded to the largest number of prompts K. Choices where the paper is
silent:
- A category may mix boxes and points: each prompt goes through its own type's weights (eq. 1, 2, 3), the class token
  through the box weights if the category has a box, else through the point weights.
- Post-norm residual blocks, in the order the authors gave (spec section 9): deformable cross-attention, self-attention,
feed-forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trex2_mini.layers.deformable_attention import DeformableAttention
from trex2_mini.layers.mlp import FeedForward
from trex2_mini.layers.position import sine_embedding
from trex2_mini.model.image_encoder import ImageFeatures


@dataclass
class RegionPrompts:
    """Visual prompts of B images, C categories each, K prompts each; padded.

    coords    [B, C, K, 4] cxcywh in 0..1 of the image; a point has w = h = 0
    is_point  [B, C, K] bool
    mask      [B, C, K] bool, True where there is a prompt
    """

    coords: Tensor
    is_point: Tensor
    mask: Tensor

    @classmethod
    def from_lists(
        cls, regions: Sequence[Sequence[tuple[Tensor, Tensor]]], device: torch.device | str = "cpu"
    ) -> RegionPrompts:
        """regions[image][category] = (boxes [k, 4] cxcywh in 0..1, points [m, 2] in 0..1); either may be empty."""
        batch, categories = len(regions), max((len(r) for r in regions), default=0)
        longest = max((len(b) + len(p) for r in regions for b, p in r), default=0)
        coords = torch.zeros(batch, categories, longest, 4)
        is_point, mask = torch.zeros(2, batch, categories, longest, dtype=torch.bool)
        for i, image in enumerate(regions):
            for j, (boxes, points) in enumerate(image):
                k, total = len(boxes), len(boxes) + len(points)
                coords[i, j, :k] = boxes.reshape(-1, 4)
                coords[i, j, k:total, :2] = points.reshape(-1, 2)
                is_point[i, j, k:total] = True
                mask[i, j, :total] = True
        return cls(coords.to(device), is_point.to(device), mask.to(device))


class PromptBlock(nn.Module):
    """One of the three blocks: eq. 4 (deformable cross-attention at the prompts), then eq. 5 (self-attention,
    feed-forward)."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, ffn_dim: int):
        super().__init__()
        self.cross_attention = DeformableAttention(dim, heads, levels, points)
        self.cross_norm = nn.LayerNorm(dim)
        self.self_attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.self_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)

    def forward(
        self, queries: Tensor, reference: Tensor, is_point: Tensor, absent: Tensor, features: ImageFeatures
    ) -> Tensor:
        """queries [B, C, K+1, D], reference [B, C, K+1, 4] in 0..1 of the padded map, is_point and absent [B, C, K+1]
        -> [B, C, K+1, D]."""
        batch, categories, count, dim = queries.shape
        flat = queries.flatten(1, 2)  # (B, C*(K+1), D)
        seen = self.cross_attention(
            flat, reference.flatten(1, 2), features.tokens, features.shapes, features.hidden, is_point.flatten(1, 2),
            features.values(self.cross_attention),
        )  # fmt: skip
        queries = self.cross_norm(flat + seen).view(batch * categories, count, dim)
        mixed, _ = self.self_attention(
            queries, queries, queries, key_padding_mask=absent.flatten(0, 1), need_weights=False
        )
        return self.ffn(self.self_norm(queries + mixed)).view(batch, categories, count, dim)


class VisualPromptEncoder(nn.Module):
    """RegionPrompts on ImageFeatures -> V [B, C, D]."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, blocks: int, ffn_dim: int):
        super().__init__()
        self.dim = dim
        self.box_position = nn.Linear(4 * dim, dim)  # eq. 1
        self.point_position = nn.Linear(2 * dim, dim)  # eq. 2
        self.content = nn.Parameter(torch.randn(dim))  # C
        self.class_token = nn.Parameter(torch.randn(dim))  # C'
        self.box_query = nn.Linear(2 * dim, dim)  # eq. 3
        self.point_query = nn.Linear(2 * dim, dim)
        self.blocks = nn.ModuleList(PromptBlock(dim, heads, levels, points, ffn_dim) for _ in range(blocks))

    def forward(self, features: ImageFeatures, prompts: RegionPrompts) -> Tensor:
        """-> [B, C, D]. A category without any prompt (padding) gives a vector of its class token alone; callers mask
        it."""
        batch, categories, _, _ = prompts.coords.shape
        whole = prompts.coords.new_tensor([0.5, 0.5, 1.0, 1.0]).expand(batch, categories, 1, 4)
        coords = torch.cat([prompts.coords, whole], 2)  # the class token comes last
        only_points = ~(prompts.mask & ~prompts.is_point).any(-1, keepdim=True)
        is_point = torch.cat([prompts.is_point, only_points], 2)  # (B, C, K+1)
        absent = torch.cat([~prompts.mask, torch.zeros_like(only_points)], 2)

        position = torch.where(
            is_point[..., None],
            self.point_position(sine_embedding(coords[..., :2], self.dim)),
            self.box_position(sine_embedding(coords, self.dim)),
        )  # B or P, (B, C, K+1, D)
        content = torch.cat(
            [self.content.expand(*prompts.mask.shape, -1), self.class_token.expand(batch, categories, 1, -1)], 2
        )
        joined = torch.cat([content, position], -1)  # (B, C, K+1, 2D)
        queries = torch.where(is_point[..., None], self.point_query(joined), self.box_query(joined))

        reference = coords * features.valid.repeat(1, 2)[:, None, None]
        for block in self.blocks:
            queries = block(queries, reference, is_point, absent, features)
        return queries[:, :, -1]  # eq. 5: the class token's output is V
