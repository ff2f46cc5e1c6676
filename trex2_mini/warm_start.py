"""Start a TRex2 from open detectors' weights: transformers' Deformable DETR (two-stage or not) and Grounding DINO, given as a state dict.

    report = warm_start(model, GroundingDinoForObjectDetection.from_pretrained("IDEA-Research/grounding-dino-tiny").state_dict())
    print(report)                      # what was taken, what was not, and why

Swin and other ImageNet backbones come through timm and CLIP's text tower through open_clip already when `TRex2(config)` is built.
What these detectors have and T-Rex2 has not (it is prompted late) stays behind: fusion with text, their text encoders, class heads.
Grounding DINO's Swin normalises each stage's output and timm's does not, so its first three projections meet other numbers than they were
trained on; its position embedding counts cells from their far corner, ours from their centre. Both must be learned anew.

newocean-group/T-Rex2 (visual prompts only) is not converted. Its encoder and decoder layers have our form, but: its Swin normalises each stage's
output; a prompt's place is a perceptron of its box, added anew in each block, instead of eq. 1 to 3; a category's vector is the mean of its
prompts' outputs instead of a class token's (eq. 5); its decoder has no last norm; each layer's label head is its own. So its prompt encoder and
labels have no place here. (Read in its src/, versions 6b6afcd of model.py and e825edc of the rest; its weights were not seen.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .model.trex2 import TRex2

_ATTENTION = r"(sampling_offsets|attention_weights|value_proj|output_proj)\.(weight|bias)$"
_PARAMETER = r"(weight|bias)$"
_SWIN = r"model\.backbone\.conv_encoder\.model\.(?:swin\.)?"
_BLOCK = _SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_ENCODER = r"model\.encoder\.layers\.(\d+)\.(?:deformable_layer\.)?"
_DECODER = r"model\.decoder\.layers\.(\d+)\."
_BACKBONE = "image_encoder.backbone.body."
_RULES = [  # their name -> ours; the first that fits counts
    (_SWIN + r"embeddings\.patch_embeddings\.projection\." + _PARAMETER, _BACKBONE + r"patch_embed.proj.\1"),
    (_SWIN + r"embeddings\.norm\." + _PARAMETER, _BACKBONE + r"patch_embed.norm.\1"),
    (_BLOCK + r"layernorm_before\." + _PARAMETER, _BACKBONE + r"layers_\1.blocks.\2.norm1.\3"),
    (_BLOCK + r"layernorm_after\." + _PARAMETER, _BACKBONE + r"layers_\1.blocks.\2.norm2.\3"),
    (_BLOCK + r"mlp\.(fc1|fc2)\." + _PARAMETER, _BACKBONE + r"layers_\1.blocks.\2.mlp.\3.\4"),
    (_BLOCK + r"attention\.([qkv])_proj\." + _PARAMETER, _BACKBONE + r"layers_\1.blocks.\2.attn.qkv.\4#\3"),
    (_BLOCK + r"attention\.o_proj\." + _PARAMETER, _BACKBONE + r"layers_\1.blocks.\2.attn.proj.\3"),
    (_BLOCK + r".*(relative_position_bias_table)$", _BACKBONE + r"layers_\1.blocks.\2.attn.\3"),
    (_SWIN + r"encoder\.layers\.(\d+)\.downsample\.(norm\.weight|norm\.bias|reduction\.weight)$", r"DOWN \1 \2"),
    (r"model\.input_proj(?:_vision)?\.(\d+)\.([01])\." + _PARAMETER, r"image_encoder.projections.\1.\2.\3"),
    (r"model\.level_embed$", "image_encoder.level_embedding"),
    (_ENCODER + r"self_attn\." + _ATTENTION, r"image_encoder.layers.\1.attention.\2.\3"),
    (_ENCODER + r"self_attn_layer_norm\." + _PARAMETER, r"image_encoder.layers.\1.norm.\2"),
    (_ENCODER + r"(?:mlp\.)?fc([12])\." + _PARAMETER, r"image_encoder.layers.\1.ffn.linear\2.\3"),
    (_ENCODER + r"final_layer_norm\." + _PARAMETER, r"image_encoder.layers.\1.ffn.norm.\2"),
    (_DECODER + r"self_attn\.(?:(q|k|v)_proj|(q)uery|(k)ey|(v)alue)\." + _PARAMETER, r"box_decoder.layers.\1.self_attention.in_proj_\6#\2\3\4\5"),
    (_DECODER + r"self_attn\.(?:o_proj|out_proj)\." + _PARAMETER, r"box_decoder.layers.\1.self_attention.out_proj.\2"),
    (_DECODER + r"self_attn_layer_norm\." + _PARAMETER, r"box_decoder.layers.\1.self_norm.\2"),
    (_DECODER + r"encoder_attn\." + _ATTENTION, r"box_decoder.layers.\1.cross_attention.\2.\3"),
    (_DECODER + r"encoder_attn_layer_norm\." + _PARAMETER, r"box_decoder.layers.\1.cross_norm.\2"),
    (_DECODER + r"(?:mlp\.)?fc([12])\." + _PARAMETER, r"box_decoder.layers.\1.ffn.linear\2.\3"),
    (_DECODER + r"final_layer_norm\." + _PARAMETER, r"box_decoder.layers.\1.ffn.norm.\2"),
    (r"model\.decoder\.layer_norm\." + _PARAMETER, r"box_decoder.norm.\1"),
    (r"model\.decoder\.reference_points_head\.layers\.(\d)\." + _PARAMETER, r"box_decoder.anchor_position.LINEAR\1.\2"),
    (r"(?:model\.decoder\.)?bbox_embed\.(\d+)\.layers\.(\d)\." + _PARAMETER, r"box_decoder.box_heads.\1.LINEAR\2.\3"),
    (r"model\.encoder_output_bbox_embed\.layers\.(\d)\." + _PARAMETER, r"box_decoder.token_box.LINEAR\1.\2"),
    (r"model\.enc_output\." + _PARAMETER, r"box_decoder.token_projection.\1"),
    (r"model\.enc_output_norm\." + _PARAMETER, r"box_decoder.token_norm.\1"),
    (r"model\.query_position_embeddings\.weight$", "box_decoder.content.weight"),
]  # fmt: skip


@dataclass
class WarmStart:
    """taken: our tensors that were set; new: ours that stay as they were; left: their tensors that were not used, with the reason."""

    taken: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            reasons.setdefault(reason, []).append(name)
        lines = [
            f"taken: {len(self.taken)} tensors",
            f"as they were: {len(self.new)} tensors of ours ({_parts(self.new)})",
        ]
        lines += [f"not taken: {len(names)} tensors, {reason} (first: {names[0]})" for reason, names in reasons.items()]
        return "\n".join(lines)


def _parts(names: list[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names})) or "none"


def _translate(name: str) -> str | None:
    for pattern, ours in _RULES:
        match = re.match(pattern, name)
        if match:
            ours = match.expand(ours)
            if ours.startswith("DOWN "):  # transformers: at the end of a stage; timm: at the start of the next
                _, stage, rest = ours.split()
                return f"{_BACKBONE}layers_{int(stage) + 1}.downsample.{rest}"
            return re.sub(r"LINEAR(\d)", lambda m: str(2 * int(m[1])), ours)  # ReLUs stand between the linear layers
    return None


def warm_start(model: TRex2, tensors: dict[str, Tensor]) -> WarmStart:
    """Copy into `model` what fits of a transformers state dict (Deformable DETR or Grounding DINO); in place.

    A tensor of another shape or layer is left and reported. Raises ValueError when not one encoder tensor fits: nothing is changed then.
    """
    own, report = model.state_dict(), WarmStart()
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, tuple[str, Tensor]]] = {}
    for name, value in tensors.items():
        ours, _, part = (_translate(name) or "").partition("#")
        if not ours:
            report.left[name] = "T-Rex2 has no such part"
        elif ours not in own:
            report.left[name] = "this model has no such layer"
        elif part:
            parts.setdefault(ours, {})[part] = (name, value)
        else:
            if "anchor_position.0.weight" in ours and value.shape == own[ours].shape:
                y, x, rest = value.split([value.shape[1] // 4, value.shape[1] // 4, value.shape[1] // 2], 1)
                value = torch.cat([x, y, rest], 1)  # they embed (y, x, w, h), we (x, y, w, h)
            _take(ours, [name], value, own, found, report)
    for ours, three in parts.items():
        names = [name for name, _ in three.values()]
        if set(three) != set("qkv"):
            report.left |= dict.fromkeys(names, "query, key and value are not all there")
            continue
        _take(ours, names, torch.cat([three[p][1] for p in "qkv"]), own, found, report)
    if not any(name.startswith("image_encoder.layers.") for name in found):
        raise ValueError(
            "expected the state dict of transformers' DeformableDetrForObjectDetection or GroundingDinoForObjectDetection with this model's "
            f"dim and heads; not one encoder tensor of {len(tensors)} fits (first names: {list(tensors)[:3]})"
        )
    model.load_state_dict(found, strict=False)
    report.taken, report.new = sorted(found), sorted(set(own) - set(found))
    return report


def _take(ours: str, names: list[str], value: Tensor, own: dict, found: dict, report: WarmStart) -> None:
    if value.shape == own[ours].shape:
        found[ours] = value.to(own[ours].dtype)
    else:
        report.left |= dict.fromkeys(names, "another shape than this model's")
