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
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trex2_mini.boxes import check_boxes, check_points, xyxy_to_normalized
from trex2_mini.checkpoint import load_model, state_hash
from trex2_mini.config import Config
from trex2_mini.detections import Detections, top_detections
from trex2_mini.images import load_reduced, to_image
from trex2_mini.layers.deformable_attention import compile_attention
from trex2_mini.model.image_encoder import ImageFeatures
from trex2_mini.model.trex2 import TRex2
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.names import Vocabulary, check_names, name_key, read_aliases, unique_names
from trex2_mini.processes import usable_device
from trex2_mini.prompt_bank import PromptBank

DEFAULT_NAME = "object"  # the category of boxes or points that come without a name


@dataclass
class EncodedImage:
    """An image's features (a batch of one) and its own size in pixels."""

    features: ImageFeatures
    height: int
    width: int


class Detector:
    """A TRex2 with its image sizes and its devices looked after. All methods run without gradients."""

    def __init__(self, model: TRex2, config: Config, device: str | torch.device | None = None):
        self.device = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.config = model.to(self.device).eval(), config
        self.vocabulary: Vocabulary | None = None  # what the text tower was taught, where the checkpoint says it
        self.aliases: dict[str, list[str]] = {}

    @cached_property
    def weights(self) -> str:
        """16 hex digits that tell this model from others; banks, indexes and sessions carry them."""
        return state_hash(self.model)

    @classmethod
    def load(cls, source: str | Path = "nano-photo", device: str | None = None) -> Detector:
        """source: a folder with model.safetensors and config.json, or the name of a checkpoint that comes with the
        repository: nano-photo for photographs, nano-emoji for drawings."""
        model, config, path = load_model(source)
        detector = cls(model, config, device)
        detector.vocabulary = Vocabulary.load(path.parent)
        return detector

    def use_aliases(self, aliases: str | Path | Mapping[str, str | list[str]]) -> Detector:
        """The same detector, in which names stand for phrases that it knows: {"甜甜圈": "donut", "car":
        ["car", "van"]}, or a JSON file of that form. Several phrases count by the mean of their T. Raises ValueError.
        """
        self.aliases = read_aliases(aliases)
        return self

    def compile(self) -> Detector:
        """The same detector with its attention fused by torch.compile; see `compile_attention` for what that needs and
        costs."""
        compile_attention(self.model)
        return self

    @torch.inference_mode()
    def encode(self, image: Any) -> EncodedImage:
        """image: anything `images.load_image` takes (a path, an address, bytes, a PIL picture, an array, a tensor).
        Raises ValueError, and FileNotFoundError where a path leads nowhere."""
        array, (height, width) = load_reduced(image, self.config.model.short_side)
        return EncodedImage(self.model.encode_images([self._prepare(array)]), height, width)

    def encode_batch(self, images: Sequence[Any]) -> ImageFeatures:
        """Pictures of any sizes, each anything `encode` takes, as one batch of features. Raises ValueError."""
        if isinstance(images, (str, Path, bytes)) or not len(images):
            raise ValueError(f"expected a list of at least one picture, got {images!r:.80}")
        with torch.inference_mode():
            short = self.config.model.short_side
            return self.model.encode_images([self._prepare(load_reduced(image, short)[0]) for image in images])

    def _prepare(self, array: np.ndarray) -> Tensor:
        """To [3, h, w] in 0..1, scaled as the model was trained: short side first, unless the long side would become
        too long."""
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
        class_agnostic_nms: bool = False,
        allow_other_model: bool = False,
    ) -> Any:
        """Find everything the prompts ask for: Detections; of a list of pictures, a list of them.

        image   an EncodedImage, or anything `encode` takes; or a list of those, to be asked by text and prompts
        text    ["cat", "dog"], or "cat, dog" (see `names.check_names` for what separates names)
        boxes   {"coin": [[x1, y1, x2, y2], ...]} in pixels, or one such list for a single category ("object")
        points  {"coin": [[x, y], ...]} in pixels, or one such list
        prompts a PromptBank from `embed`
        negative_boxes, negative_points   what is not meant, on this image: {"coin": [...]} for one of the prompted
        names, or a list for all of them
        negative_text  names of what is not meant, for all prompted names
        Names are the same whatever their case and spaces; the first spelling is shown.
        beta    how much a negative takes from a score, at least 0 (T-Rex-Omni: 0.3)
        class_agnostic_nms   of boxes that overlap the best stays, whatever their names; else of those of one name
        allow_other_model   take a bank of a model with other weights, where its vectors mean little
        Raises ValueError when no prompt is given or one cannot be used. Warns of names the text tower was never taught.
        """
        if not isinstance(score_threshold, Real) or not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold must be a number in 0..1, got {score_threshold!r}")
        if not isinstance(max_detections, Integral) or max_detections < 0:
            raise ValueError(f"max_detections must be a whole number of at least 0, got {max_detections!r}")
        if not isinstance(beta, Real) or not 0 <= beta < math.inf:
            raise ValueError(f"beta must be a number of at least 0, got {beta!r}")
        if isinstance(image, (list, tuple)):
            return self._detect_each(image, {k: v for k, v in locals().items() if k not in ("self", "image")})
        encoded = self._encoded(image)
        vectors = self._vectors(encoded, text, boxes, points, prompts, allow_other_model)
        shown = {name_key(name): name for name in vectors}
        negatives = self._negatives(encoded, shown, negative_text, negative_boxes, negative_points)
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
        size, nms_iou = (encoded.height, encoded.width), self.config.model.nms_iou
        (best,) = top_detections(
            logits, output.boxes, [size], list(vectors), max_detections, nms_iou, class_agnostic_nms
        )
        used = int((logits[0].sigmoid().amax(-1) >= score_threshold).sum()) if score_threshold else 0
        return replace(best.filter(score_threshold), queries=(used, logits.shape[1]))

    @torch.inference_mode()
    def ask(
        self,
        image: Any = None,
        text: str | Sequence[str] | None = None,
        boxes: Mapping[str, Any] | Sequence | None = None,
        points: Mapping[str, Any] | Sequence | None = None,
        prompts: PromptBank | None = None,
        allow_other_model: bool = False,
    ) -> PromptBank:
        """All that is given, as one embedding a name: what `detect` asks by, to be asked of other pictures too.

        Arguments are those of `detect`; boxes and points lie on `image`. Raises ValueError.
        """
        vectors = self._vectors(image, text, boxes, points, prompts, allow_other_model)
        return PromptBank(list(vectors), torch.stack(list(vectors.values())), self.weights)

    def _vectors(
        self, image: Any, text: Any, boxes: Any, points: Any, prompts: PromptBank | None, allow_other_model: bool
    ) -> dict[str, Tensor]:
        """{name: V, T or their mean, [D]} of all that is given to `detect`."""
        visual: dict[str, list[Tensor]] = {}
        shown: dict[str, str] = {}  # name_key -> the first spelling
        regions = {}
        if boxes is not None or points is not None:
            if image is None:
                raise ValueError("boxes and points lie on a picture: give image= too")
            encoded = self._encoded(image)
            regions = self._regions(encoded, boxes, points)
        if regions:
            drawn = RegionPrompts.from_lists([list(regions.values())], self.device)
            for name, vector in zip(regions, self.model.encode_visual(encoded.features, drawn)[0], strict=True):
                visual[shown.setdefault(name_key(name), name)] = [vector]
        if prompts is not None:
            if not isinstance(prompts, PromptBank):
                raise ValueError(f"prompts: expected a PromptBank, as `embed` gives, got {type(prompts).__name__}")
            rows = prompts.vectors_for(self.weights, self.config.model.dim, allow_other_model).to(self.device)
            for name, vector in zip(prompts.names, rows, strict=True):
                visual.setdefault(shown.setdefault(name_key(name), name), []).append(vector)
        vectors = {name: torch.stack(own).mean(0) for name, own in visual.items()}
        if text is not None:
            names = unique_names(text)
            for name, vector in zip(names, self._texts(names), strict=True):
                name = shown.setdefault(name_key(name), name)
                vectors[name] = (vector + vectors[name]) / 2 if name in visual else vector
        if not vectors:
            raise ValueError("no prompt: give text, boxes, points or a prompt bank")
        return vectors

    def _detect_each(self, images: Sequence[Any], asked: dict[str, Any]) -> list[Detections]:
        """`detect` on several pictures. Raises ValueError for prompts that lie on one of them."""
        placed = [key for key, own in asked.items() if key.endswith(("boxes", "points")) and own is not None]
        if placed:
            raise ValueError(
                f"{', '.join(placed)} lie on one picture: make a bank of them with embed, then give prompts="
            )
        return [self.detect(image, **asked) for image in images]

    def _negatives(
        self, encoded: EncodedImage, shown: dict[str, str], text: Any, boxes: Any, points: Any
    ) -> list[tuple[Tensor, str | None]]:
        """(vector [D], the prompted name it speaks against, None for all), one for each negative box, point and word.

        shown: {name_key: spelling} of the prompted names.
        """
        found: list[tuple[Tensor, str | None]] = []
        if text is not None:
            found += [(vector, None) for vector in self._texts(unique_names(text))]
        alone, against = [], []
        for given, regions in (
            (boxes, self._regions(encoded, boxes, None)),
            (points, self._regions(encoded, None, points)),
        ):
            named = isinstance(given, Mapping)
            for name, (own_boxes, own_points) in regions.items():
                if named and name_key(name) not in shown:
                    raise ValueError(
                        f"a negative prompt for {name!r}, which is not asked for; the prompted names are "
                        f"{list(shown.values())}"
                    )
                single = [(box[None], own_points) for box in own_boxes] or [(own_boxes, p[None]) for p in own_points]
                alone += single
                against += [shown[name_key(name)] if named else None] * len(single)
        if alone:
            vectors = self.model.encode_visual(encoded.features, RegionPrompts.from_lists([alone], self.device))[0]
            found += list(zip(vectors, against, strict=True))
        return found

    @torch.inference_mode()
    def embed(self, examples: Mapping[str, Sequence[tuple]]) -> PromptBank:
        """Generic visual prompts: {"coin": [(image, boxes), (image, boxes or None, points), ...], ...} -> one averaged
        embedding a name.

        boxes [[x1, y1, x2, y2], ...] and points [[x, y], ...] in pixels of their image, all showing that category;
        together they make one vector an image. Raises ValueError.
        """
        if not isinstance(examples, Mapping) or not examples:
            raise ValueError(f"no examples: expected {{'name': [(image, boxes), ...]}}, got {examples!r:.80}")
        kinds = ("boxes", "points")
        rows = []
        for name, pairs in _by_name(examples).items():
            if (
                not isinstance(pairs, Sequence)
                or not pairs
                or not all(
                    isinstance(p, (tuple, list)) and len(p) in (2, 3) and any(x is not None for x in p[1:])
                    for p in pairs
                )
            ):
                raise ValueError(
                    f"no examples for {name!r}: expected [(image, boxes) or (image, boxes, points), ...], at "
                    f"least one, got {pairs!r:.80}"
                )
            vectors = []
            for image, *places in pairs:
                encoded = self._encoded(image)
                given = {kind: {name: own} for kind, own in zip(kinds, places) if own is not None}
                regions = self._regions(encoded, given.get("boxes"), given.get("points"))
                vectors.append(
                    self.model.encode_visual(
                        encoded.features, RegionPrompts.from_lists([list(regions.values())], self.device)
                    )[0, 0]
                )
            rows.append(torch.stack(vectors).mean(0))
        return PromptBank(list(examples), torch.stack(rows).cpu(), self.weights)

    @torch.inference_mode()
    def classify(self, image: Any, boxes: Sequence, names: str | Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Region classification: the best of the C different `names` for each box [x1, y1, x2, y2], and probabilities
        [K, C] that sum to 1."""
        encoded = self._encoded(image)
        names = unique_names(names)
        checked = self._boxes(encoded, boxes, "boxes")
        regions = [(box[None], torch.zeros(0, 2)) for box in checked]
        visual = self.model.encode_visual(encoded.features, RegionPrompts.from_lists([regions], self.device))[0]
        probabilities = (visual @ self._texts(names).T / math.sqrt(self.config.model.dim)).softmax(-1).cpu().numpy()
        return [names[i] for i in probabilities.argmax(1)], probabilities

    def _texts(self, names: list[str]) -> Tensor:
        """T [C, D] of names or of what they are aliases of; a warning for those that the tower was never taught."""
        phrases = [self.aliases.get(name_key(name), [name]) for name in names]
        for phrase in dict.fromkeys(phrase for own in phrases for phrase in own) if self.vocabulary else ():
            if said := self.vocabulary.advice(phrase):
                warnings.warn(said, stacklevel=5)
        vectors = self.encode_text([phrase for own in phrases for phrase in own])
        return torch.stack([own.mean(0) for own in vectors.split([len(own) for own in phrases])])

    def encode_text(self, names: Sequence[str]) -> Tensor:
        """T [C, D] of names, their words in the number that the tower was taught (see `Vocabulary.as_taught`)."""
        return self.model.encode_text([self.vocabulary.as_taught(name) for name in names] if self.vocabulary else names)

    def _encoded(self, image: Any) -> EncodedImage:
        return image if isinstance(image, EncodedImage) else self.encode(image)

    def _boxes(self, encoded: EncodedImage, boxes: Any, what: str) -> Tensor:
        """Checked boxes as [k, 4] cxcywh in 0..1."""
        checked = torch.from_numpy(check_boxes(boxes, encoded.height, encoded.width, what))
        return xyxy_to_normalized(checked, encoded.height, encoded.width)

    def _regions(self, encoded: EncodedImage, boxes: Any, points: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """name -> (boxes [k, 4] cxcywh, points [m, 2]), both in 0..1."""
        regions: dict[str, tuple[Tensor, Tensor]] = {}
        shown: dict[str, str] = {}
        for what, given in (("boxes", boxes), ("points", points)):
            for name, own in (_by_name(given) if given is not None else {}).items():
                spelled = shown.setdefault(name_key(name), check_names([name])[0])
                places = list(regions.get(spelled, (torch.zeros(0, 4), torch.zeros(0, 2))))
                if what == "boxes":
                    places[0] = torch.cat([places[0], self._boxes(encoded, own, f"boxes[{name!r}]")])
                else:
                    checked = torch.from_numpy(check_points(own, encoded.height, encoded.width, f"points[{name!r}]"))
                    places[1] = torch.cat([places[1], checked / torch.tensor([encoded.width, encoded.height])])
                regions[spelled] = (places[0], places[1])
        return regions


def _by_name(given: Any) -> Mapping[str, Any]:
    """Boxes or points as {name: ...}; without a name they are DEFAULT_NAME's. Raises ValueError for names that
    are no text."""
    given = given if isinstance(given, Mapping) else {DEFAULT_NAME: given}
    if given:
        check_names(list(given))
    return given
