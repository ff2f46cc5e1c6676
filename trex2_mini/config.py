"""Configurations: frozen dataclasses and three presets.

`swin_t` and `swin_l` carry the paper's numbers (section 3 and appendix of arXiv 2403.14610; DINO's defaults where the
paper refers to it). `nano` is the same model made small enough to train on two CPU cores. A configuration is saved as
JSON beside every checkpoint; unknown keys are refused when it is read back.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TextTowerConfig:
    """The CLIP text transformer (open_clip). `pretrained` names open_clip weights; None: the tower is trained with the
    model.
    """

    pretrained: str | None = None
    width: int = 128
    heads: int = 4
    layers: int = 3
    context_length: int = 16  # tokens, start and end tokens included
    vocab_size: int = 49408

    def __post_init__(self) -> None:
        _check(self)
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width={self.width}, heads={self.heads}")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shapes of `TRex2`."""

    backbone: str = "tf_efficientnet_lite0"  # a timm model that has features_only
    backbone_pretrained: bool = True  # start from ImageNet weights
    # of a pre-trained convolutional backbone, not trained; nor are its stem and batch norms. 0: all is trained
    frozen_stages: int = 2
    strides: tuple[int, ...] = (
        8,
        16,
        32,
    )  # one feature level each; those beyond the backbone's come from 3x3 stride-2 convolutions
    backbone_levels: int = 3
    dim: int = 128  # D
    heads: int = 4
    points: int = 4  # sampling points a head and level
    ffn_dim: int = 256
    encoder_layers: int = 3
    decoder_layers: int = 3
    num_queries: int = 100
    prompt_blocks: int = 3  # visual prompt encoder (spec section 9: three blocks)
    prompt_ffn_dim: int = 256
    position_temperature: float = 20.0
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    short_side: int = 192  # px; the detector scales an image's short side to this ...
    # boxes of one prompt that overlap more are duplicates; 1: none are (the paper's decoder needs no such step)
    nms_iou: float = 0.7
    long_side: int = 320  # px; ... unless its long side would exceed this

    def __post_init__(self) -> None:
        _check(self)
        if self.dim % 4 or self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of 4 and of heads, got dim={self.dim}, heads={self.heads}")
        if self.backbone_levels > len(self.strides):
            raise ValueError(
                f"expected a stride for each of backbone_levels={self.backbone_levels} at least, got {self.strides}"
            )


@dataclass(frozen=True)
class TrainConfig:
    """The recipe of `nano`. The presets `swin_*` have the paper's learning rates and loss weights (section 3)."""

    steps: int = 5000
    batch_size: int = 8  # pictures a step, of all processes and parts together
    # that a batch is used in, one after another or each by a process of its own (`training.batch_parts`)
    parts: int = 1
    # the encoder layers' activations in the backward pass: less memory, more time, equal gradients
    recompute: bool = False
    lr: float = 5e-4
    lr_backbone: float = 3e-4
    lr_text: float = 5e-4
    weight_decay: float = 1e-4
    warmup_steps: int = 200
    # the last part of the steps, over which the learning rate falls linearly to 2 % of itself
    decay_fraction: float = 0.25
    clip_norm: float = 1.0
    # visual iterations for one text iteration; 0: both in every iteration, on one encoding of the images
    visual_per_text: int = 0
    text_first_steps: int = 0  # text iterations only, at the start (spec section 9)
    # share of the pictures that are drawn for a category drawn evenly; the others follow the data's long tail
    balance: float = 0.5
    # chance that an image is asked for a category by another image's visual prompt (the paper: 0, spec section 9)
    cross_image: float = 0.5
    text_negatives: int = 100  # names sampled from the categories that are in no image of the batch
    # a batch element, in whole groups (positives and negatives together, at least one group); 0: no denoising
    denoising_queries: int = 40
    box_noise: float = 0.4
    label_noise: float = 0.25
    point_probability: float = 0.5  # a category's prompts become centre points with this probability
    cost_class: float = 2.0
    cost_l1: float = 5.0
    cost_giou: float = 2.0
    loss_class: float = 2.0
    loss_l1: float = 5.0
    loss_giou: float = 2.0
    loss_align: float = 3.0
    # recognition at every token of the encoder, in training only (not the paper's; losses/recognition.py)
    loss_token: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    amp: bool = False  # bfloat16 autocast
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Config:
    name: str
    model: ModelConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        _check(self)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "configuration") -> Config:
        """Read what `to_json` wrote. Raises ValueError for anything that is not such a configuration."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source} is not valid JSON ({error}); expected what Config.to_json writes") from None
        return _build(cls, data, source)

    @classmethod
    def load(cls, path: str | Path) -> Config:
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text ({error}); expected what Config.to_json writes") from None


_KINDS = {  # by a field's annotation
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "str | None": (str, type(None)),
    "ModelConfig": (ModelConfig,), "TrainConfig": (TrainConfig,), "TextTowerConfig": (TextTowerConfig,),
}  # fmt: skip
# of numbers, both ends included; others are finite and at least 0. The upper ends keep a foreign file from filling the
# memory
_RANGES = {
    # of CLIP's tokenizer
    "width": (1, 4096), "heads": (1, 64), "layers": (1, 48), "context_length": (3, 512), "vocab_size": (49408, 200_000),
    "frozen_stages": (0, 16), "strides": (1, 1024), "backbone_levels": (1, 8), "dim": (4, 2048), "points": (1, 64), "ffn_dim": (1, 16384),
    "encoder_layers": (1, 48), "decoder_layers": (1, 48), "num_queries": (1, 20_000), "prompt_blocks": (1, 48), "prompt_ffn_dim": (1, 16384),
    "position_temperature": (1e-3, 1e9), "short_side": (1, 8192), "long_side": (1, 16384), "nms_iou": (0, 1),
    "steps": (1, 10**9), "batch_size": (1, 65536), "parts": (1, 65536),
    "decay_fraction": (0, 1), "balance": (0, 1), "cross_image": (0, 1), "point_probability": (0, 1),
    "label_noise": (0, 1), "focal_alpha": (0, 1), "text_negatives": (0, 10**6), "denoising_queries": (0, 10_000), "seed": (0, 2**63 - 1),
}  # fmt: skip


def _check(config: Any) -> None:
    """Types and ranges of a dataclass's fields. Raises ValueError that names the field."""
    for field_ in dataclasses.fields(config):
        name, value = f"{type(config).__name__}.{field_.name}", getattr(config, field_.name)
        if field_.type == "tuple[int, ...]":
            if not isinstance(value, tuple) or not 1 <= len(value) <= 8 or not all(type(v) is int for v in value):
                raise ValueError(f"{name}: expected a list of 1 to 8 integers, got {value!r:.80}")
        elif not isinstance(value, _KINDS[str(field_.type)]) or (isinstance(value, bool) and field_.type != "bool"):
            raise ValueError(f"{name}: expected {field_.type}, got {value!r:.80}")
        low, high = _RANGES.get(field_.name, (0, sys.float_info.max))
        for number in value if isinstance(value, tuple) else [value]:
            if isinstance(number, (int, float)) and not low <= number <= high:
                raise ValueError(f"{name}: expected {low:g} to {high:g}, got {number!r:.80}")


_NESTED = {"model": ModelConfig, "train": TrainConfig, "text": TextTowerConfig}


def _build(kind: type, data: Any, where: str) -> Any:
    """A dataclass from a dictionary, keys and types checked."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object with the fields of {kind.__name__}, got {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ValueError(f"{where}: unknown keys {unknown} for {kind.__name__}; known: {sorted(fields)}")
    values = {}
    for key, value in data.items():
        if key in _NESTED:
            value = _build(_NESTED[key], value, f"{where}.{key}")
        elif isinstance(value, list):
            value = tuple(value)
        values[key] = value
    missing = [
        n
        for n, f in fields.items()
        if n not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: missing keys {missing} for {kind.__name__}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _swin(name: str, backbone: str, batch_size: int, gpus: int) -> Config:
    model = ModelConfig(
        backbone=backbone,
        backbone_pretrained=True,
        frozen_stages=0,
        strides=(8, 16, 32, 64),
        backbone_levels=3,
        dim=256,
        heads=8,
        points=4,
        ffn_dim=2048,
        encoder_layers=6,
        decoder_layers=6,
        num_queries=900,
        prompt_blocks=3,
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
