"""The detection loss: sigmoid focal on the dot-product labels, L1 and GIoU on the boxes; on every decoder layer, on the
encoder's selection, and on the denoising queries (paper, section 3; weights 1, 5, 2). Sums are divided by the number of
objects in the batch."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from trex2_mini.config import TrainConfig
from trex2_mini.losses.matcher import match
from trex2_mini.model.box_decoder import DecoderOutput
from trex2_mini.model.denoising import DenoisingQueries


@dataclass
class Targets:
    """labels: per image [n] columns of the prompts; boxes: per image [n, 4] cxcywh in 0..1. count: per image [n], False
    where finding an object is neither rewarded nor punished; None: all count."""

    labels: list[Tensor]
    boxes: list[Tensor]
    count: list[Tensor] | None = None


def detection_losses(
    output: DecoderOutput,
    targets: Targets,
    config: TrainConfig,
    prompt_mask: Tensor | None = None,
    denoising: DenoisingQueries | None = None,
) -> dict[str, Tensor]:
    """The weighted losses by name: class, l1, giou (last layer), the same with `_aux` (sum of the others) and `_dn`
    (denoising).

    prompt_mask [B, C]: False for prompts that say nothing about an image; their logits carry no loss.
    """
    objects = max(1, sum(len(b) for b in targets.boxes))
    losses: dict[str, Tensor] = {}

    def add(suffix: str, layer: DecoderOutput, at: tuple, label: Tensor, box: Tensor, times: int = 1, absent=None):
        """One layer's losses divided by `times`; query at[1] of image at[0] is responsible for (label, box)."""
        truth = torch.zeros_like(layer.logits)
        truth[at[0], at[1], label] = 1.0
        logits = layer.logits if prompt_mask is None else layer.logits.masked_fill(~prompt_mask[:, None], 0.0)
        focal = sigmoid_focal_loss(logits.float(), truth.float(), config.focal_alpha, config.focal_gamma)
        if prompt_mask is not None:
            focal = focal * prompt_mask[:, None]
        if absent is not None:
            focal = focal * ~absent[..., None]
        predicted = layer.boxes[at].float()
        l1 = (predicted - box).abs().sum()
        corners = (box_convert(own, "cxcywh", "xyxy") for own in (predicted, box))
        giou = generalized_box_iou_loss(*corners, reduction="sum")
        weighted = (config.loss_class * focal.sum(), config.loss_l1 * l1, config.loss_giou * giou)
        for name, value in zip(("class", "l1", "giou"), weighted):
            losses[name + suffix] = losses.get(name + suffix, 0.0) + value / (objects * times)

    costs = (config.cost_class, config.cost_l1, config.cost_giou, config.focal_alpha, config.focal_gamma)
    for index, layer in enumerate([output, *output.auxiliary]):
        pairs = match(layer.logits, layer.boxes, targets.labels, targets.boxes, *costs)
        image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(pairs)])
        query = torch.cat([query for query, _ in pairs])
        label = torch.cat([labels[t] for labels, (_, t) in zip(targets.labels, pairs, strict=True)])
        box = torch.cat([boxes[t] for boxes, (_, t) in zip(targets.boxes, pairs, strict=True)])
        absent = None
        if targets.count is not None:  # a query that answers for an object that does not count carries no loss
            counts = torch.cat([own[t] for own, (_, t) in zip(targets.count, pairs, strict=True)])
            absent = torch.zeros(layer.logits.shape[:2], dtype=torch.bool, device=layer.logits.device)
            absent[image[~counts], query[~counts]] = True
            image, query, label, box = (values[counts] for values in (image, query, label, box))
        add("_aux" if index else "", layer, (image, query), label, box, absent=absent)
    if denoising is not None:
        image, item = denoising.real.nonzero(as_tuple=True)
        query = denoising.positives()[:, item].flatten()  # (groups * objects)
        image = image.repeat(denoising.groups)
        label = torch.cat(targets.labels).repeat(denoising.groups)
        box = torch.cat(targets.boxes).repeat(denoising.groups, 1)
        absent = ~denoising.real.repeat(1, 2 * denoising.groups)  # (B, M): padded queries carry no loss
        for layer in output.denoising:
            add("_dn", layer, (image, query), label, box, denoising.groups, absent)
    return losses
