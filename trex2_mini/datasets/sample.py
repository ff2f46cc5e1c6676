"""A picture with its objects: what every set yields and every training iteration takes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trex2_mini.boxes import xyxy_to_normalized


@dataclass
class Sample:
    """A picture and its objects."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    boxes: np.ndarray  # float32 [N, 4], xyxy pixels, right and bottom exclusive
    labels: np.ndarray  # int64 [N], index into the set's `names`
    image_id: int
    areas: np.ndarray | None = None  # float32 [N], pixels of each object (its visible part), where known
    vocabulary: np.ndarray | None = None  # int64, sorted: the labels that were looked for in the picture; None: all
    ambiguous: np.ndarray | None = None  # int64: other names of its objects, broader or narrower; no wrong answers
    prompts: tuple[str, ...] = ("text", "visual")  # which kinds the picture may be used for


def normalized_boxes(sample: Sample) -> Tensor:
    """A sample's boxes as [n, 4] cxcywh in 0..1."""
    return xyxy_to_normalized(torch.from_numpy(sample.boxes), *sample.image.shape[:2])
