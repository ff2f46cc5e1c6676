"""Contrastive denoising (DINO, section 3.3), for prompts instead of classes.

Extra queries start from ground-truth boxes with noise. Positives (small noise) must find their box and prompt again,
negatives (larger noise) must say "nothing". DINO embeds a class index; here a query's content is a linear map of its
prompt embedding, so it works for any prompt. Label noise replaces the prompt with another one of the same image's
prompts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trex2_mini.boxes import inverse_sigmoid


@dataclass
class DenoisingQueries:
    """content [B, M, D], anchors [B, M, 4]; `groups` groups one after the other, each: the positives of `width`
    objects, then their negatives.

    `real` [B, width] tells which of the padded objects exist.
    """

    content: Tensor
    anchors: Tensor
    groups: int
    real: Tensor

    def attention_mask(self, total: int) -> Tensor:
        """[total, total], True where attention is forbidden: groups see only themselves, the ordinary queries never see
        a group."""
        count = self.anchors.shape[1]
        owner = torch.full((total,), -1, device=self.anchors.device)
        owner[:count] = torch.arange(count, device=owner.device) // (count // self.groups)
        return (owner[None] != owner[:, None]) & (owner[None] != -1)

    def positives(self) -> Tensor:
        """[groups, width]: the index of each object's positive query."""
        width = self.real.shape[1]
        return torch.arange(self.groups, device=self.real.device)[:, None] * 2 * width + torch.arange(
            width, device=self.real.device
        )


class Denoising(nn.Module):
    """Makes DenoisingQueries from targets."""

    def __init__(self, dim: int):
        super().__init__()
        self.content = nn.Linear(dim, dim)

    def forward(
        self,
        boxes: list[Tensor],
        labels: list[Tensor],
        prompts: Tensor,
        prompt_mask: Tensor | None,
        budget: int,
        box_noise: float,
        label_noise: float,
        generator: torch.Generator,
    ) -> DenoisingQueries | None:
        """boxes: each [n, 4] cxcywh in 0..1; labels: each [n] columns of prompts [B, C, D]. None where there is no
        object or no budget."""
        width = max((len(b) for b in boxes), default=0)
        if not width or budget < 2:
            return None
        groups = max(1, budget // (2 * width))
        batch, categories, _ = prompts.shape
        device = prompts.device
        real = torch.zeros(batch, width, dtype=torch.bool, device=device)
        box = torch.full((batch, width, 4), 0.5, device=device)
        label = torch.zeros(batch, width, dtype=torch.long, device=device)
        for i, (b, target) in enumerate(zip(boxes, labels, strict=True)):
            real[i, : len(b)], box[i, : len(b)], label[i, : len(b)] = True, b, target
        box, label = box.repeat(1, 2 * groups, 1), label.repeat(1, 2 * groups)  # (B, M, 4), (B, M)
        shape = label.shape

        usable = torch.ones(batch, categories) if prompt_mask is None else prompt_mask.float().cpu()
        usable[~usable.any(1)] = 1.0  # no prompt counts: the picture holds no object, what is drawn is padding
        other = torch.multinomial(usable, shape[1], replacement=True, generator=generator).to(device)
        swap = torch.rand(shape, generator=generator).to(device) < label_noise
        label = torch.where(swap, other, label)

        # Corners move by up to half the side (positives) or by half to a whole side (negatives), times box_noise.
        amount = torch.rand(*shape, 4, generator=generator).to(device)
        sign = torch.randint(0, 2, (*shape, 4), generator=generator).to(device) * 2 - 1
        negative = (torch.arange(shape[1], device=device) // width % 2).bool()
        shift = sign * (amount + negative[None, :, None]) * box_noise * box[..., 2:].repeat(1, 1, 2) / 2
        centre, half = box[..., :2], box[..., 2:] / 2
        low = (centre - half + shift[..., :2]).clamp(0, 1)
        high = (centre + half + shift[..., 2:]).clamp(0, 1)
        low, high = torch.minimum(low, high), torch.maximum(low, high)
        anchors = torch.cat([(low + high) / 2, high - low], -1)
        anchors = inverse_sigmoid(anchors, 1e-3).sigmoid()

        chosen = prompts.gather(1, label[..., None].expand(-1, -1, prompts.shape[-1]))
        return DenoisingQueries(self.content(chosen), anchors, groups, real)
