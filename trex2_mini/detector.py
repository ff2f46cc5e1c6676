"""Detector: the user's object. Encode an image once, prompt it as often as wanted (spec section 4).

Four workflows, one method: `detect(text=...)`, `detect(boxes=..., points=...)` on the image itself (interactive),
`detect(prompts=...)` with embeddings of other images (generic), and any mixture: a name that is given both as text and
visually is prompted with (T + V) / 2.

Negative prompts say what is *not* meant, by T-Rex-Omni's rule (arXiv 2511.08997, training-free): a query's score is
sigmoid(S_P - beta max_i S_Ni), S the similarities of eq. 8 without our bias. Ours: a negative that a query is unlike
(S_N < 0) changes nothing, so that drawing one never raises a score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from trex2_mini.boxes import check_boxes, check_points, normalized_to_xyxy, xyxy_to_normalized
from trex2_mini.checkpoint import load_model
from trex2_mini.config import Config
from trex2_mini.images import load_image, to_image
from trex2_mini.layers.deformable_attention import compile_attention
from trex2_mini.model.image_encoder import ImageFeatures
from trex2_mini.model.text_prompt import check_names
from trex2_mini.model.trex2 import TRex2
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.processes import usable_device
from trex2_mini.prompt_bank import PromptBank

DEFAULT_NAME = "object"  # the category of boxes or points that come without a name


@dataclass
class EncodedImage:
    """An image's features (a batch of one) and its own size in pixels."""

    features: ImageFeatures
    height: int
    width: int


@dataclass
class Detections:
    """boxes [N, 4] float32 xyxy in pixels of the original image; scores [N] in 0..1, highest first; labels [N] indices
    into `names`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.boxes)

    def filter(self, threshold: float) -> Detections:
        """Those with a score of at least `threshold`; the model does not run again."""
        keep = self.scores >= threshold
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.names)


class Detector:
    """A TRex2 with its image sizes and its devices looked after. All methods run without gradients."""

    def __init__(self, model: TRex2, config: Config, device: str | torch.device | None = None):
        self.device = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.config = model.to(self.device).eval(), config

    @classmethod
    def load(cls, source: str | Path = "nano-emoji", device: str | None = None) -> Detector:
        """source: a folder with model.safetensors and config.json, or the name of a checkpoint that comes with the
        repository.
        """
        model, config, _ = load_model(source)
        return cls(model, config, device)

    def compile(self) -> Detector:
        """The same detector with its attention fused by torch.compile; see `compile_attention` for what that needs and
        costs.
        """
        compile_attention(self.model)
        return self

    @torch.inference_mode()
    def encode(self, image: Any) -> EncodedImage:
        """image: path, PIL image or array [H, W], [H, W, 3] or [H, W, 4] (uint8, uint16, or float in 0..1). Raises
        ValueError.
        """
        array = load_image(image)
        height, width = array.shape[:2]
        return EncodedImage(self.model.encode_images([self._prepare(array)]), height, width)

    def encode_batch(self, images: Sequence[np.ndarray]) -> ImageFeatures:
        """uint8 images [H, W, 3] of any sizes as one batch of features."""
        with torch.inference_mode():
            return self.model.encode_images([self._prepare(image) for image in images])

    def _prepare(self, array: np.ndarray) -> Tensor:
        """To [3, h, w] in 0..1, scaled as the model was trained: short side first, unless the long side would become
        too long.
        """
        image = to_image(array).to(self.device)
        height, width = array.shape[:2]
        scale = min(self.config.model.short_side / min(height, width), self.config.model.long_side / max(height, width))
        if abs(scale - 1) < 1e-6:
            return image
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)

    @torch.inference_mode()
    def detect(
        self,
        image: Any,
        text: str | Sequence[str] | None = None,
        boxes: Mapping[str, Any] | Sequence | None = None,
        points: Mapping[str, Any] | Sequence | None = None,
        prompts: PromptBank | None = None,
        score_threshold: float = 0.3,
        max_detections: int = 300,
        negative_text: str | Sequence[str] | None = None,
        negative_boxes: Mapping[str, Any] | Sequence | None = None,
        negative_points: Mapping[str, Any] | Sequence | None = None,
        beta: float = 0.3,
    ) -> Detections:
        """Find everything the prompts ask for.

        image   an EncodedImage, or anything `encode` takes
        text    "cat, dog" or ["cat", "dog"]
        boxes   {"coin": [[x1, y1, x2, y2], ...]} in pixels, or one such list for a single category ("object")
        points  {"coin": [[x, y], ...]} in pixels, or one such list
        prompts a PromptBank from `embed`
        negative_boxes, negative_points   what is not meant, on this image: {"coin": [...]} for one of the prompted
        names, or a list for all of them
        negative_text  names of what is not meant, for all prompted names
        beta    how much a negative takes from a score, at least 0 (T-Rex-Omni: 0.3)
        Raises ValueError when no prompt is given or one cannot be used.
        """
        if not isinstance(score_threshold, Real) or not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold must be a number in 0..1, got {score_threshold!r}")
        if not isinstance(max_detections, Integral) or max_detections < 0:
            raise ValueError(f"max_detections must be a whole number of at least 0, got {max_detections!r}")
        if not isinstance(beta, Real) or not 0 <= beta < math.inf:
            raise ValueError(f"beta must be a number of at least 0, got {beta!r}")
        encoded = self._encoded(image)
        visual: dict[str, list[Tensor]] = {}
        regions = self._regions(encoded, boxes, points)
        if regions:
            vectors = self.model.encode_visual(
                encoded.features, RegionPrompts.from_lists([list(regions.values())], self.device)
            )[0]
            for name, vector in zip(regions, vectors, strict=True):
                visual.setdefault(name, []).append(vector)
        if prompts is not None:
            if not isinstance(prompts, PromptBank):
                raise ValueError(f"prompts: expected a PromptBank, as `embed` gives, got {type(prompts).__name__}")
            if prompts.embeddings.ndim != 2 or prompts.embeddings.shape != (len(prompts.names), self.config.model.dim):
                raise ValueError(
                    f"expected a prompt bank of shape [{len(prompts.names)}, {self.config.model.dim}], got"
                    f" {tuple(prompts.embeddings.shape)}; embed the examples again with this model"
                )
            for name, vector in zip(prompts.names, prompts.embeddings.to(self.device), strict=True):
                visual.setdefault(name, []).append(vector)
        vectors = {name: torch.stack(own).mean(0) for name, own in visual.items()}
        if text is not None:
            names = list(dict.fromkeys(check_names(text)))
            for name, vector in zip(names, self.model.encode_text(names), strict=True):
                vectors[name] = (vector + vectors[name]) / 2 if name in visual else vector
        if not vectors:
            raise ValueError("no prompt: give text=..., boxes=..., points=... or prompts=...")
        negatives = self._negatives(encoded, list(vectors), negative_text, negative_boxes, negative_points)
        asked = torch.stack([*vectors.values(), *(vector for vector, _ in negatives)])
        output = self.model.decode(encoded.features, asked)
        logits = output.logits[..., : len(vectors)].clone()
        unlike = (output.logits[..., len(vectors) :] - self.model.box_decoder.logit_bias).clamp(
            min=0
        )  # (1, Q, negatives)
        for index, name in enumerate(vectors):
            own = [i for i, (_, against) in enumerate(negatives) if against in (None, name)]
            if own:
                logits[..., index] -= beta * unlike[..., own].amax(-1)
        return top_detections(
            logits,
            output.boxes,
            [(encoded.height, encoded.width)],
            list(vectors),
            max_detections,
            self.config.model.nms_iou,
        )[0].filter(score_threshold)

    def _negatives(
        self, encoded: EncodedImage, names: list[str], text: Any, boxes: Any, points: Any
    ) -> list[tuple[Tensor, str | None]]:
        """(vector [D], the prompted name it speaks against, None for all), one for each negative box,
        point and word.
        """
        found: list[tuple[Tensor, str | None]] = []
        if text is not None:
            found += [(vector, None) for vector in self.model.encode_text(check_names(text))]
        alone, against = [], []
        for given, regions in (
            (boxes, self._regions(encoded, boxes, None)),
            (points, self._regions(encoded, None, points)),
        ):
            named = isinstance(given, Mapping)
            for name, (own_boxes, own_points) in regions.items():
                if named and name not in names:
                    raise ValueError(
                        f"a negative prompt for {name!r}, which is not asked for; the prompted names are {names}"
                    )
                single = [(box[None], own_points) for box in own_boxes] or [(own_boxes, p[None]) for p in own_points]
                alone += single
                against += [name if named else None] * len(single)
        if alone:
            vectors = self.model.encode_visual(encoded.features, RegionPrompts.from_lists([alone], self.device))[0]
            found += list(zip(vectors, against, strict=True))
        return found

    @torch.inference_mode()
    def embed(self, examples: Mapping[str, Sequence[tuple[Any, Any]]]) -> PromptBank:
        """Generic visual prompts: {"coin": [(image, boxes), ...], ...} -> one averaged embedding a name.

        boxes: [[x1, y1, x2, y2], ...] in pixels of their image, all showing that category; together they make one
        vector an image.
        """
        if not isinstance(examples, Mapping) or not examples:
            raise ValueError(f"no examples: expected {{'name': [(image, boxes), ...]}}, got {examples!r:.80}")
        rows = []
        for name, pairs in examples.items():
            if (
                not isinstance(pairs, Sequence)
                or not pairs
                or not all(isinstance(p, (tuple, list)) and len(p) == 2 for p in pairs)
            ):
                raise ValueError(
                    f"no examples for {name!r}: expected [(image, boxes), ...], at least one, got {pairs!r:.80}"
                )
            vectors = []
            for image, boxes in pairs:
                encoded = self._encoded(image)
                regions = self._regions(encoded, {name: boxes}, None)
                vectors.append(
                    self.model.encode_visual(
                        encoded.features, RegionPrompts.from_lists([list(regions.values())], self.device)
                    )[0, 0]
                )
            rows.append(torch.stack(vectors).mean(0))
        return PromptBank(list(examples), torch.stack(rows).cpu())

    @torch.inference_mode()
    def classify(self, image: Any, boxes: Sequence, names: str | Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Region classification: the best of `names` for each box [x1, y1, x2, y2], and probabilities [K, len(names)]
        that sum to 1.
        """
        encoded = self._encoded(image)
        names = check_names(names)
        checked = self._boxes(encoded, boxes, "boxes")
        regions = [(box[None], torch.zeros(0, 2)) for box in checked]
        visual = self.model.encode_visual(encoded.features, RegionPrompts.from_lists([regions], self.device))[0]
        probabilities = (
            (visual @ self.model.encode_text(names).T / math.sqrt(self.config.model.dim)).softmax(-1).cpu().numpy()
        )
        return [names[i] for i in probabilities.argmax(1)], probabilities

    def _encoded(self, image: Any) -> EncodedImage:
        return image if isinstance(image, EncodedImage) else self.encode(image)

    def _boxes(self, encoded: EncodedImage, boxes: Any, what: str) -> Tensor:
        """Checked boxes as [k, 4] cxcywh in 0..1."""
        checked = torch.from_numpy(check_boxes(boxes, encoded.height, encoded.width, what))
        return xyxy_to_normalized(checked, encoded.height, encoded.width)

    def _regions(self, encoded: EncodedImage, boxes: Any, points: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """name -> (boxes [k, 4] cxcywh, points [m, 2]), both in 0..1."""
        by_name_boxes = {} if boxes is None else boxes if isinstance(boxes, Mapping) else {DEFAULT_NAME: boxes}
        by_name_points = {} if points is None else points if isinstance(points, Mapping) else {DEFAULT_NAME: points}
        regions = {}
        for name in dict.fromkeys([*by_name_boxes, *by_name_points]):
            own_boxes, own_points = torch.zeros(0, 4), torch.zeros(0, 2)
            if name in by_name_boxes:
                own_boxes = self._boxes(encoded, by_name_boxes[name], f"boxes[{name!r}]")
            if name in by_name_points:
                checked = check_points(by_name_points[name], encoded.height, encoded.width, f"points[{name!r}]")
                own_points = torch.from_numpy(checked) / torch.tensor([encoded.width, encoded.height])
            regions[name] = (own_boxes, own_points)
        return regions


def top_detections(
    logits: Tensor,
    boxes: Tensor,
    sizes: Sequence[tuple[int, int]],
    names: list[str],
    max_detections: int,
    nms_iou: float = 1.0,
) -> list[Detections]:
    """logits [B, Q, C], boxes [B, Q, 4] cxcywh in 0..1, sizes [(height, width)] -> per image its best (query, prompt)
    pairs, as DINO does.

    Of a prompt's boxes that overlap by more than `nms_iou` the best stays (1: all stay). `nano` needs it: three decoder
    layers leave duplicates.
    """
    scores = logits.sigmoid()
    best, index = scores.flatten(1).topk(min(max(max_detections, 300), scores[0].numel()), dim=1)
    results = []
    for score, at, box, (height, width) in zip(best, index, boxes, sizes, strict=True):
        pixels, label = normalized_to_xyxy(box[at // logits.shape[2]], height, width), at % logits.shape[2]
        keep = batched_nms(pixels, score, label, nms_iou)[:max_detections]  # by falling score
        pixels, score, label = pixels[keep], score[keep], label[keep]
        results.append(Detections(pixels.cpu().numpy(), score.cpu().numpy(), label.cpu().numpy(), names))
    return results
