"""Hungarian matching of queries with ground truth (DETR): class 2, L1 5, GIoU 2 in the paper."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    target_labels: list[Tensor],
    target_boxes: list[Tensor],
    cost_class: float,
    cost_l1: float,
    cost_giou: float,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> list[tuple[Tensor, Tensor]]:
    """Per image (query [m], target [m]) with m = min(Q, n), the assignment of least cost.

    logits [B, Q, C], boxes [B, Q, 4] cxcywh; target_labels: per image [n] columns of C; target_boxes: per image [n, 4].
    The class cost is the focal one of Deformable DETR. Raises FloatingPointError for costs that are not finite.
    """
    pairs = []
    for image_logits, image_boxes, labels, truth in zip(logits, boxes, target_labels, target_boxes, strict=True):
        if not len(labels):
            empty = torch.zeros(0, dtype=torch.long, device=logits.device)
            pairs.append((empty, empty))
            continue
        score = image_logits[:, labels].float()  # (Q, n)
        probability = score.sigmoid()
        positive = alpha * (1 - probability) ** gamma * -torch.nn.functional.logsigmoid(score)
        negative = (1 - alpha) * probability**gamma * -torch.nn.functional.logsigmoid(-score)
        distance = torch.cdist(image_boxes.float(), truth.float(), p=1)
        overlap = generalized_box_iou(
            box_convert(image_boxes.float(), "cxcywh", "xyxy"), box_convert(truth.float(), "cxcywh", "xyxy")
        )
        cost = (cost_class * (positive - negative) + cost_l1 * distance - cost_giou * overlap).cpu()
        if not torch.isfinite(cost).all():
            raise FloatingPointError(
                "the matching cost is not finite: the model's logits or boxes hold NaN; lower the learning rate"
            )
        rows, columns = linear_sum_assignment(cost.numpy())
        pairs.append((torch.as_tensor(rows, device=logits.device), torch.as_tensor(columns, device=logits.device)))
    return pairs
