"""Recognition at every token: a help in training that the paper does not have (`loss_token`, 0 in the `swin_*`
presets).

Of the encoder's tokens only the few that become queries learn what they show, and one query learns from each object.
Here every token whose centre lies in an object's box is asked which of the prompts it shows. That is the idea of
Co-DETR (arXiv 2211.12860): more teachers for the encoder, no cost in use. A small model that trains for hours rather
than days needs it: its backbone knew its objects much better than its encoder did.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_area, box_convert

from trex2_mini.losses.criterion import Targets


def token_recognition_loss(logits: Tensor, centres: Tensor, targets: Targets) -> Tensor:
    """Cross-entropy over the prompts of the tokens that lie in a box, each object with the same weight.

    logits  [B, N, C] of the encoder's tokens; -inf where a prompt does not count on an image
    centres [B, N, 2] (x, y) of the tokens in 0..1 of their image
    targets boxes cxcywh in 0..1 and their columns; where boxes overlap, a token belongs to the smallest

    Returns a scalar; 0 where no token lies in any box.
    """
    total, objects = logits.new_zeros(()), torch.zeros((), dtype=torch.long, device=logits.device)
    for own, place, label, box in zip(logits, centres, targets.labels, targets.boxes, strict=True):
        if not len(box):
            continue
        corners = box_convert(box, "cxcywh", "xyxy")
        inside = ((place[:, None] >= corners[:, :2]) & (place[:, None] < corners[:, 2:])).all(-1)  # (N, n)
        area = torch.where(inside, box_area(corners), torch.inf)
        nearest = area.argmin(1)
        token = inside.any(1).nonzero()[:, 0]
        owner = nearest[token]
        count = torch.zeros_like(label).index_add(0, owner, torch.ones_like(owner))  # tokens of each object
        each = F.cross_entropy(own[token].float(), label[owner], reduction="none")
        total = total + (each / count[owner]).sum()
        objects = objects + (count > 0).sum()
    return total / objects.clamp(min=1)
