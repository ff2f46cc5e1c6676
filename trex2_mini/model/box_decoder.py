"""Box decoder: prompts select anchors among the encoder's tokens, decoder layers refine them, labels are dot products
(eq. 6 to 8).

DINO's decoder with Grounding DINO's query selection, as the paper says. Choices where it is silent:
- Labels are V . Q^T / sqrt(D) + b with one learned b (started at -4): the scale keeps the focal loss in range, b is its
prior.
- Content queries are learned and do not depend on the image, anchors do (DINO's "mixed query selection").
- "Look forward twice" (DINO): a layer's box gets gradients through the anchor that the layer before it left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trex2_mini.boxes import inverse_sigmoid
from trex2_mini.layers.deformable_attention import DeformableAttention, Shapes
from trex2_mini.layers.mlp import MLP, FeedForward
from trex2_mini.layers.position import sine_embedding
from trex2_mini.model.denoising import DenoisingQueries
from trex2_mini.model.image_encoder import ImageFeatures

ABSENT = -1e4  # the logit of a query that stands for nothing: no score, no gradient, and a finite matching cost


@dataclass
class DecoderOutput:
    """logits [B, Q, C] (before the sigmoid; absent prompts are -inf) and boxes [B, Q, 4] (cxcywh in 0..1 of each
    image). queries [B, Q, D]: what is compared with the prompts (eq. 8), of the last layer.

    With `auxiliary`, also one such output for each earlier layer and, last, for the encoder's selection, and `tokens`
    [B, N, C], the logits of
    all the encoder's tokens; with denoising queries, `denoising` holds their outputs, one a layer.
    """

    logits: Tensor
    boxes: Tensor
    auxiliary: list[DecoderOutput] = field(default_factory=list)
    denoising: list[DecoderOutput] = field(default_factory=list)
    tokens: Tensor | None = None
    queries: Tensor | None = None


class DecoderLayer(nn.Module):
    """Self-attention among the queries, deformable cross-attention to the image, feed-forward; post-norm (Deformable
    DETR)."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, ffn_dim: int):
        super().__init__()
        self.self_attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(dim, heads, levels, points)
        self.cross_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        reference: Tensor,
        tokens: Tensor,
        shapes: Shapes,
        padding: Tensor | None,
        blocked: Tensor | None = None,
        surplus: Tensor | None = None,
        value: Tensor | None = None,
    ) -> Tensor:
        """queries, position [B, Q, D]; reference [B, Q, 4] in 0..1 of the padded map.

        blocked [Q, Q] True where attention is forbidden; surplus [B, Q] True for queries that nobody may attend to.
        value: the cross-attention's values of the tokens, where they are known already.
        """
        placed = queries + position
        mixed, _ = self.self_attention(
            placed, placed, queries, attn_mask=blocked, key_padding_mask=surplus, need_weights=False
        )
        queries = self.self_norm(queries + mixed)
        seen = self.cross_attention(queries + position, reference, tokens, shapes, padding, value=value)
        return self.ffn(self.cross_norm(queries + seen))


class BoxDecoder(nn.Module):
    """ImageFeatures and prompts -> DecoderOutput."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, ffn_dim: int, layers: int, num_queries: int):
        super().__init__()
        self.dim, self.num_queries = dim, num_queries
        self.token_projection = nn.Linear(dim, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.token_box = MLP(dim, dim, 4, 3)
        self.content = nn.Embedding(num_queries, dim)
        self.anchor_position = MLP(2 * dim, dim, dim, 2)
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, levels, points, ffn_dim) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.box_heads = nn.ModuleList(MLP(dim, dim, 4, 3) for _ in range(layers))
        self.logit_bias = nn.Parameter(torch.tensor(-4.0))
        for head in [self.token_box, *self.box_heads]:  # start with the anchors as they are
            nn.init.zeros_(head[-1].weight)
            nn.init.zeros_(head[-1].bias)

    def logits(self, queries: Tensor, prompts: Tensor, prompt_mask: Tensor | None) -> Tensor:
        """eq. 8: queries [B, Q, D], prompts [B, C, D] -> [B, Q, C]."""
        logits = queries @ prompts.transpose(1, 2) / math.sqrt(self.dim) + self.logit_bias
        return logits if prompt_mask is None else logits.masked_fill(~prompt_mask[:, None], -math.inf)

    def forward(
        self,
        features: ImageFeatures,
        prompts: Tensor,
        prompt_mask: Tensor | None = None,
        denoising: DenoisingQueries | None = None,
        auxiliary: bool = False,
    ) -> DecoderOutput:
        """prompts [B, C, D] (V, T or a mixture); prompt_mask [B, C] False where a prompt is padding or must not count
        on that image."""
        selected, surplus, tokens = self._select(features, prompts, prompt_mask)
        queries = self.content.weight[: selected.boxes.shape[1]].expand(len(prompts), -1, -1)
        anchors = selected.boxes.detach()
        blocked = None
        if denoising is not None:  # denoising queries come first
            queries = torch.cat([denoising.content, queries], 1)
            anchors = torch.cat([denoising.anchors, anchors], 1)
            blocked = denoising.attention_mask(anchors.shape[1])
            if surplus is not None:
                surplus = torch.cat([torch.zeros_like(denoising.anchors[..., 0], dtype=torch.bool), surplus], 1)
        extra = 0 if denoising is None else denoising.anchors.shape[1]

        valid = features.valid.repeat(1, 2)[:, None]  # (B, 1, 4)
        padding = features.hidden
        before = anchors  # the anchor with its gradient
        outputs: list[DecoderOutput] = []
        noisy: list[DecoderOutput] = []
        last = len(self.layers) - 1
        for index, (layer, head) in enumerate(zip(self.layers, self.box_heads, strict=True)):
            position = self.anchor_position(sine_embedding(anchors, self.dim // 2))
            value = features.values(layer.cross_attention)
            queries = layer(
                queries, position, anchors * valid, features.tokens, features.shapes, padding, blocked, surplus, value
            )
            normed = self.norm(queries)
            offset = head(normed)  # eq. 6
            boxes = (offset + inverse_sigmoid(before)).sigmoid()  # eq. 7
            before = (offset + inverse_sigmoid(anchors)).sigmoid()
            anchors = before.detach()
            if auxiliary or index == last:
                logits = self.logits(normed, prompts, prompt_mask)
                if surplus is not None:
                    logits = logits.masked_fill(surplus[..., None], ABSENT)
                outputs.append(DecoderOutput(logits[:, extra:], boxes[:, extra:]))
                noisy.append(DecoderOutput(logits[:, :extra], boxes[:, :extra]))
        final = outputs[-1]
        final.queries = normed[:, extra:]
        if auxiliary:
            final.auxiliary, final.tokens = [*outputs[:-1], selected], tokens
            final.denoising = noisy if extra else []
        return final

    def _normed(self, features: ImageFeatures) -> Tensor:
        """The tokens as queries to be, [B, N, D]."""
        return self.token_norm(self.token_projection(features.tokens.masked_fill(features.padding[..., None], 0.0)))

    def _select(
        self, features: ImageFeatures, prompts: Tensor, prompt_mask: Tensor | None
    ) -> tuple[DecoderOutput, Tensor | None, Tensor]:
        """The tokens most similar to any prompt, as (logits, boxes); their boxes are the decoder's first anchors.

        Also surplus [B, Q]: True where an image of the batch has fewer tokens than queries (None where none has); and
        the logits [B, N, C] of all.
        """
        tokens = features.once(self.token_norm, lambda: self._normed(features))
        logits = self.logits(tokens, prompts, prompt_mask)  # (B, N, C)
        best = logits.detach().amax(-1).masked_fill(features.padding, -math.inf)
        chosen = best.topk(min(self.num_queries, best.shape[1]), dim=1).indices[..., None]  # (B, Q, 1)
        level = torch.cat(
            [torch.full((h * w, 1), float(2**i), device=best.device) for i, (h, w) in enumerate(features.shapes)]
        )
        side = (0.05 * level).expand(len(prompts), -1, 2)  # as Deformable DETR: 5 % of the image on the finest level
        proposals = torch.cat([features.centres, side], -1).gather(1, chosen.expand(-1, -1, 4))
        offsets = self.token_box(tokens.gather(1, chosen.expand(-1, -1, self.dim)))
        boxes = (offsets + inverse_sigmoid(proposals)).sigmoid()
        chosen_logits = logits.gather(1, chosen.expand(-1, -1, logits.shape[-1]))
        if features.fewest >= chosen.shape[1]:  # padding is chosen last
            return DecoderOutput(chosen_logits, boxes), None, logits
        surplus = features.padding.gather(1, chosen[..., 0])
        return DecoderOutput(chosen_logits.masked_fill(surplus[..., None], ABSENT), boxes), surplus, logits
