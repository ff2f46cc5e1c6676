"""What one prompt box finds without a trained detector: the same protocol (Visual-I, Visual-I others), two older ideas.

`template`: normalised cross-correlation of the prompt's pixels with the image, in a few sizes. `features`: the cosine
similarity of the prompt's mean feature with that of every window, in the frozen ImageNet features of `nano`'s backbone.
Both answer windows of the prompt's shape, which helps them where instances are alike, and thinned out by non-maximum
suppression. A detector that does not beat them on the instances that were *not* prompted has learned little that
carries over.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from skimage.color import rgb2gray
from skimage.feature import match_template
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, nms
from tqdm import tqdm

from trex2_mini.config import preset
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.evaluation.interactive import Prompts
from trex2_mini.evaluation.packed import Packed
from trex2_mini.images import to_image
from trex2_mini.model.image_encoder import IMAGENET_MEAN, IMAGENET_STD, build_backbone

BASELINES = ("template", "features")
SCALES = (0.7, 1.0, 1.4)  # sizes of the answers, as multiples of the prompt's
NMS_IOU, MOST = 0.2, 100  # windows a prompt; windows inside others are as similar, so few may overlap
LONG_SIDE = 320  # pixels; as `nano` sees its images
STRIDE = 4  # pixels between windows of `features`

Near = Callable[[Tensor, float], tuple[Tensor, Tensor]]  # (box xyxy, scale) -> windows [n, 4] xyxy, similarities [n]


def baseline_detections(
    kind: str, dataset: CocoDataset, drawn: Prompts, image_ids: list[int], progress: bool = True
) -> Packed:
    """Answers of a baseline (one of BASELINES) to the prompts of `draw_prompts` on the images of `image_ids`, as COCO
    results.

    Scores are similarities in -1..1. Raises ValueError for another name.
    """
    if kind not in BASELINES:
        raise ValueError(f"unknown baseline {kind!r}; expected one of {', '.join(BASELINES)}")
    look = (
        _template if kind == "template" else _features(build_backbone(preset("nano").model, pretrained=True)[0].eval())
    )
    index_of = {image["id"]: index for index, image in enumerate(dataset.coco["images"])}
    prompts: dict[int, list[dict]] = defaultdict(list)
    for annotation in drawn.values():
        prompts[annotation["image_id"]].append(annotation)
    results = Packed()
    for image_id in tqdm(image_ids, desc=kind, unit="image", disable=not progress):
        if not prompts[image_id] or (sample := dataset.read(index_of[image_id])) is None:
            continue
        array = sample.image
        height, width = array.shape[:2]
        shrink = min(1.0, LONG_SIDE / max(height, width))
        small = F.interpolate(to_image(array)[None], scale_factor=shrink, mode="bilinear", antialias=True)[0]
        near = look(small)
        for annotation in prompts[image_id]:
            box = torch.tensor(annotation["bbox"]) * shrink
            box = clip_boxes_to_image(torch.cat([box[:2], box[:2] + box[2:]])[None], small.shape[1:])[0]
            rows = []
            for found, score in _best(near, box):
                x1, y1, x2, y2 = (found / shrink).tolist()
                row = {"image_id": image_id, "category_id": annotation["category_id"], "score": float(score)}
                rows.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
            results.extend(rows)
    return results


def _best(near: Near, box: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The best windows (xyxy, score) for a prompt box, of all sizes."""
    pairs = [near(box, scale) for scale in SCALES]
    boxes, scores = torch.cat([b for b, _ in pairs]), torch.cat([s for _, s in pairs])
    scores, order = scores.topk(min(len(scores), 30 * MOST))
    kept = nms(boxes[order], scores, NMS_IOU)[:MOST]
    return zip(boxes[order][kept], scores[kept])


def _template(image: Tensor) -> Near:
    """image [3, h, w] in 0..1; similarity is normalised cross-correlation."""
    grey = rgb2gray(image.permute(1, 2, 0).numpy())

    def near(box: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        x1, y1, x2, y2 = _whole(box, *grey.shape)
        patch = torch.from_numpy(np.ascontiguousarray(grey[y1:y2, x1:x2]))[None, None].float()
        size = [max(2, min(round(side * scale), most)) for side, most in zip(patch.shape[2:], grey.shape)]
        scaled = F.interpolate(patch, size, mode="bilinear", antialias=True)[0, 0].numpy()
        if scaled.std() < 1e-4:  # a plain surface correlates with nothing
            return torch.zeros(0, 4), torch.zeros(0)
        return _windows(torch.from_numpy(match_template(grey, scaled)).float(), size, 1)

    return near


def _features(backbone: nn.Module) -> Callable[[Tensor], Near]:
    """The same by a frozen backbone: for images [3, h, w] in 0..1; similarity is the cosine of mean features."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    @torch.inference_mode()
    def look(image: Tensor) -> Near:
        height, width = (-(-side // 32) * 32 for side in image.shape[1:])
        maps = backbone(F.pad((image - mean) / std, (0, width - image.shape[2], 0, height - image.shape[1]))[None])
        cells = (height // STRIDE, width // STRIDE)
        joined = torch.cat([F.normalize(F.interpolate(m, cells, mode="bilinear"), dim=1) for m in maps[:2]], 1)
        joined = joined[..., : -(-image.shape[1] // STRIDE), : -(-image.shape[2] // STRIDE)]  # without the padding
        joined = joined - joined.mean((2, 3), keepdim=True)  # what all of the image has in common says nothing
        # of all above and left: any window's mean in four look-ups
        sums = F.pad(joined.double().cumsum(2).cumsum(3), (1, 0, 1, 0))

        def near(box: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            x1, y1, x2, y2 = _whole(box / STRIDE, *joined.shape[2:])
            vector = joined[:, :, y1:y2, x1:x2].mean((2, 3))
            sides = ((box[3] - box[1]) * scale / STRIDE, (box[2] - box[0]) * scale / STRIDE)
            size = [max(1, min(round(float(side)), most)) for side, most in zip(sides, joined.shape[2:])]
            pooled = _window_means(sums, *size)
            boxes, scores = _windows(F.cosine_similarity(pooled, vector[..., None, None])[0], size, STRIDE)
            centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (box[2:] - box[:2]) * scale / 2
            return clip_boxes_to_image(torch.cat([centre - half, centre + half], 1), image.shape[1:]), scores

        return near

    return look


def _window_means(sums: Tensor, height: int, width: int) -> Tensor:
    """Means of all windows of height x width cells, [1, C, H + 1 - height, W + 1 - width], from sums [1, C, H + 1, W +
    1]."""
    right = sums[..., width:] - sums[..., :-width]
    return ((right[..., height:, :] - right[..., :-height, :]) / (height * width)).float()


def _whole(box: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """A box in whole cells, at least one, inside the map."""
    x1, y1 = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    return x1, y1, max(x1 + 1, min(round(float(box[2])), width)), max(y1 + 1, min(round(float(box[3])), height))


def _windows(scores: Tensor, size: list[int], stride: int) -> tuple[Tensor, Tensor]:
    """scores [rows, columns] of windows of `size` (height, width) cells -> boxes [n, 4] xyxy in pixels, scores [n]."""
    rows, columns = scores.shape
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    corners = torch.stack([x, y, x + size[1], y + size[0]], -1).reshape(-1, 4) * float(stride)
    return corners, scores.flatten()
