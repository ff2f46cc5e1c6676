"""Configurations: frozen dataclasses, checked by pydantic, and three presets.

`swin_t` and `swin_l` carry the paper's numbers (section 3 and appendix of arXiv 2403.14610; DINO's defaults where the
paper refers to it). `nano` is the same model made small enough to train on two CPU cores. A configuration is saved as
JSON beside every checkpoint. Unknown keys, other types and numbers out of a field's range are refused with a
ValueError, a line a fault; `dataclasses.replace` makes a changed copy, checked in the same way.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from trex2_mini.paths import read_text


def _faults(error: ValidationError, where: str) -> str:
    """A line a fault: the field, what was expected, what came."""
    lines = []
    for fault in error.errors(include_url=False):
        *parents, name = (where, *map(str, fault["loc"]))
        owner, field = ".".join(parents), ".".join([*parents, name])
        if fault["type"] == "unexpected_keyword_argument":
            known = [own.name for own in dataclasses.fields(_KINDS.get(parents[-1], Config))]
            lines.append(f"{owner}: unknown key {name!r}; known: {known}")
        elif fault["type"] == "missing":
            lines.append(f"{owner}: missing key {name!r}")
        elif fault["type"] == "value_error":  # of several fields together: the text says which, and what came
            lines.append(f"{field}: {fault['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"{field}: {fault['msg'].replace('Input should be', 'expected')}, got {fault['input']!r:.80}")
    return "\n".join(lines)


def _settings(kind: type) -> type:
    """A frozen dataclass whose fields pydantic checks, strictly: no text for a number, no truth for an integer."""
    kind = dataclass(kind, frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
    checked = kind.__init__

    @functools.wraps(checked)
    def __init__(self, *args, **values) -> None:
        try:
            checked(self, *args, **values)
        except ValidationError as error:
            raise ValueError(_faults(error, kind.__name__)) from None

    kind.__init__ = __init__
    return kind


def _whole(low: int, high: int) -> type:
    """Integers from `low` to `high`, both included. The upper ends keep a foreign file from filling the memory."""
    return Annotated[int, Field(ge=low, le=high)]


Number = Annotated[float, Field(ge=0)]  # finite
Share = Annotated[float, Field(ge=0, le=1)]
Layers = _whole(1, 48)
Width = _whole(1, 16384)
Count = _whole(0, 10**9)
Strides = Annotated[tuple[_whole(1, 1024), ...], Field(min_length=1, max_length=8)]


@_settings
class TextTowerConfig:
    """The CLIP text transformer (open_clip). `pretrained` names open_clip weights; None: the tower is trained with the
    model."""

    pretrained: str | None = None
    width: _whole(1, 4096) = 128
    heads: _whole(1, 64) = 4
    layers: Layers = 3
    context_length: _whole(3, 512) = 16  # tokens, start and end tokens included
    vocab_size: _whole(49408, 200_000) = 49408  # at least that of CLIP's tokenizer

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width={self.width}, heads={self.heads}")


@_settings
class ModelConfig:
    """Everything that decides the shapes of `TRex2`."""

    backbone: str = "tf_efficientnet_lite0"  # a timm model that has features_only
    backbone_pretrained: bool = True  # start from ImageNet weights
    # of a pre-trained convolutional backbone, not trained; nor are its stem and batch norms. 0: all is trained
    frozen_stages: _whole(0, 16) = 2
    # one feature level each; those beyond the backbone's come from 3x3 stride-2 convolutions
    strides: Strides = (8, 16, 32)
    backbone_levels: _whole(1, 8) = 3
    dim: _whole(4, 2048) = 128  # D
    heads: _whole(1, 64) = 4
    points: _whole(1, 64) = 4  # sampling points a head and level
    ffn_dim: Width = 256
    encoder_layers: Layers = 3
    decoder_layers: Layers = 3
    num_queries: _whole(1, 20_000) = 100
    prompt_blocks: Layers = 3  # visual prompt encoder (spec section 9: three blocks)
    prompt_ffn_dim: Width = 256
    position_temperature: Annotated[float, Field(ge=1e-3, le=1e9)] = 20.0
    text: TextTowerConfig = dataclasses.field(default_factory=TextTowerConfig)
    short_side: _whole(1, 8192) = 192  # px; the detector scales an image's short side to this ...
    # boxes of one prompt that overlap more are duplicates; 1: none are (the paper's decoder needs no such step)
    nms_iou: Share = 0.7
    long_side: Width = 320  # px; ... unless its long side would exceed this

    def __post_init__(self) -> None:
        if self.dim % 4 or self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of 4 and of heads, got dim={self.dim}, heads={self.heads}")
        if self.backbone_levels > len(self.strides):
            raise ValueError(
                f"expected a stride for each of backbone_levels={self.backbone_levels} at least, got {self.strides}"
            )


@_settings
class TrainConfig:
    """The recipe of `nano`. The presets `swin_*` have the paper's learning rates and loss weights (section 3)."""

    steps: _whole(1, 10**9) = 5000
    batch_size: _whole(1, 65536) = 8  # pictures a step, of all processes and parts together
    # that a batch is used in, one after another or each by a process of its own (`training.batch_parts`)
    parts: _whole(1, 65536) = 1
    # the encoder layers' activations in the backward pass: less memory, more time, equal gradients
    recompute: bool = False
    lr: Number = 5e-4
    lr_backbone: Number = 3e-4
    lr_text: Number = 5e-4
    weight_decay: Number = 1e-4
    warmup_steps: Count = 200
    # the last part of the steps, over which the learning rate falls linearly to 2 % of itself
    decay_fraction: Share = 0.25
    clip_norm: Number = 1.0
    # what is used in the end is an average of the weights, of which each step keeps this share; 0: the last weights
    ema: Annotated[float, Field(ge=0, le=0.999999)] = 0.0
    # px; each step's pictures have one of these short sides, drawn evenly (one may stand here twice); 0: the model's
    short_sides: Annotated[tuple[_whole(0, 8192), ...], Field(min_length=1, max_length=8)] = (0,)
    # visual iterations for one text iteration; 0: both in every iteration, on one encoding of the images
    visual_per_text: Count = 0
    text_first_steps: Count = 0  # text iterations only, at the start (spec section 9)
    # share of the pictures that are drawn for a category drawn evenly; the others follow the data's long tail
    balance: Share = 0.5
    # chance that an image is asked for a category by another image's visual prompt (the paper: 0, spec section 9)
    cross_image: Share = 0.5
    # chance that the objects which an image's own visual prompt was made of do not count in its loss
    others_only: Share = 0.0
    text_negatives: _whole(0, 10**6) = 100  # names sampled from the categories that are in no image of the batch
    # a batch element, in whole groups (positives and negatives together, at least one group); 0: no denoising
    denoising_queries: _whole(0, 10_000) = 40
    box_noise: Number = 0.4
    label_noise: Share = 0.25
    point_probability: Share = 0.5  # a category's prompts become centre points with this probability
    cost_class: Number = 2.0
    cost_l1: Number = 5.0
    cost_giou: Number = 2.0
    loss_class: Number = 2.0
    loss_l1: Number = 5.0
    loss_giou: Number = 2.0
    loss_align: Number = 3.0
    # recognition at every token of the encoder, in training only (not the paper's; losses/recognition.py)
    loss_token: Number = 2.0
    focal_alpha: Share = 0.25
    focal_gamma: Number = 2.0
    amp: bool = False  # bfloat16 autocast
    seed: _whole(0, 2**63 - 1) = 0


@_settings
class Config:
    name: str
    model: ModelConfig
    train: TrainConfig

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "configuration") -> Config:
        """Read what `to_json` wrote. Raises ValueError for anything that is not such a configuration."""
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            raise ValueError(_faults(error, source)) from None

    @classmethod
    def load(cls, path: str | Path) -> Config:
        return cls.from_json(read_text(Path(path)), str(path))


_KINDS = {"model": ModelConfig, "train": TrainConfig, "text": TextTowerConfig}
_KINDS |= {kind.__name__: kind for kind in _KINDS.values()}


def _swin(name: str, backbone: str, batch_size: int, gpus: int) -> Config:
    model = ModelConfig(
        backbone=backbone,
        frozen_stages=0,
        strides=(8, 16, 32, 64),
        dim=256,
        heads=8,
        ffn_dim=2048,
        encoder_layers=6,
        decoder_layers=6,
        num_queries=900,
        prompt_ffn_dim=1024,
        text=TextTowerConfig(pretrained="openai", width=512, heads=8, layers=12, context_length=77),
        nms_iou=1.0,
        short_side=800,
        long_side=1333,
    )
    train = TrainConfig(
        steps=300_000,
        batch_size=batch_size,
        parts=gpus,
        lr=1e-4,
        lr_backbone=1e-5,
        lr_text=1e-5,
        clip_norm=0.1,
        visual_per_text=8,
        balance=0.0,
        cross_image=0.0,
        text_negatives=80,
        loss_class=1.0,
        loss_align=1.0,
        loss_token=0.0,
        denoising_queries=200,
        amp=True,
    )
    return Config(name, model, train)


_PRESETS = {
    "nano": lambda: Config("nano", ModelConfig(), TrainConfig()),
    "swin_t": lambda: _swin("swin_t", "swin_tiny_patch4_window7_224", 128, 16),
    "swin_l": lambda: _swin("swin_l", "swin_large_patch4_window12_384", 64, 32),
}


def preset(name: str) -> Config:
    """`nano`, `swin_t` or `swin_l`."""
    if name not in _PRESETS:
        raise ValueError(f"unknown preset {name!r}; expected one of {sorted(_PRESETS)}")
    return _PRESETS[name]()
