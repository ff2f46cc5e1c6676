"""Start a TRex2 from open detectors' weights: transformers' Deformable DETR (two-stage or not) and Grounding DINO, given as a state dict.

    python -m trex2_mini warm-start --from IDEA-Research/grounding-dino-tiny --preset swin_t --out runs/warm
    report = warm_start(model, open_detector("IDEA-Research/grounding-dino-tiny"))
    print(report)                      # what was taken, what was not, and why

Swin and other ImageNet backbones come through timm and CLIP's text tower through open_clip already when `TRex2(config)` is built.
What these detectors have and T-Rex2 has not (it is prompted late) stays behind: fusion with text, their text encoders, class heads.
Grounding DINO's Swin normalises each stage's output and timm's does not, so its first three projections meet other numbers than they were
trained on; its position embedding counts cells from their far corner, ours from their centre. Both must be learned anew. timm rolls a map
before it pads it to whole windows, transformers after: with sides that are no multiples of 7 x 32 pixels the borders of Swin's maps differ.

newocean-group/T-Rex2 (visual prompts only) is not converted. Its encoder and decoder layers have our form, but: its Swin normalises each stage's
output; a prompt's place is a perceptron of its box, added anew in each block, instead of eq. 1 to 3; a category's vector is the mean of its
prompts' outputs instead of a class token's (eq. 5); its decoder has no last norm; each layer's label head is its own. So its prompt encoder and
labels have no place here. (Read in its src/, versions 6b6afcd of model.py and e825edc of the rest; its weights were not seen.)
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import save_model
from .config import Config
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
        """A table: our parts with the tensors taken and those as they were, then their tensors that were left, by reason."""
        taken, new = Counter(map(_part, self.taken)), Counter(map(_part, self.new))
        lines = [f"{'our part':36s} {'taken':>6s} {'as they were':>13s}"]
        lines += [f"{part:36s} {taken[part]:6d} {new[part]:13d}" for part in sorted(taken | new)]
        lines += [f"{'all':36s} {len(self.taken):6d} {len(self.new):13d}"]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"not taken: {len(names)} tensors, {reason} (first: {names[0]})" for reason, names in reasons.items()]
        return "\n".join(lines)


def _part(name: str) -> str:
    return ".".join(name.split(".")[:2])


_REASONS = [  # why a tensor of theirs has no place; the first pattern found in its name counts
    (r"fusion_layer|text_enhancer|encoder_attn_text", "fusion of image and text: T-Rex2 is prompted late"),
    (r"text_backbone|text_projection", "BERT's text encoder: T-Rex2's is CLIP's"),
    (r"class_embed", "a class head: T-Rex2's labels are dot products with prompts (eq. 8)"),
    (r"hidden_states_norms", "norms of Swin's outputs: timm's Swin has none"),
    (r"relative_position_index", "a table of indices, computed anew"),
    (r"backbone", "a backbone that is not the Swin of this model"),
    (r"reference_points|pos_trans|query_position", "queries of another kind than ours, chosen by position"),
]


def _reason(name: str) -> str:
    return next((why for pattern, why in _REASONS if re.search(pattern, name)), "T-Rex2 has no such part")


def open_detector(source: str) -> dict[str, Tensor]:
    """The state dict of a Deformable DETR or Grounding DINO: a folder of transformers' (config.json, *.safetensors), or owner/name on the Hub.

    Read by transformers itself (it knows the older names of parameters), safetensors only. HF_HUB_OFFLINE=1 asks no network.
    Raises ValueError: transformers is missing, no such weights or no safetensors here, or another kind of model.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f'warm starts need transformers ({error}): pip install "transformers>=5,<6"') from None
    kinds = {
        "deformable_detr": transformers.DeformableDetrForObjectDetection,
        "grounding-dino": transformers.GroundingDinoForObjectDetection,
    }
    try:
        kind = transformers.AutoConfig.from_pretrained(source).model_type
        if kind in kinds:
            model, found = kinds[kind].from_pretrained(source, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # transformers and the Hub's client raise many kinds
        raise ValueError(
            f"the weights {source!r} could not be read ({type(error).__name__}: {str(error).splitlines()[0]}). Expected a folder with config.json "
            "and *.safetensors, or owner/name on the Hugging Face Hub; on a machine with a network: "
            f"hf download {source} --include '*.json' '*.safetensors'"
        ) from error
    if kind not in kinds:
        raise ValueError(f"expected one of {sorted(kinds)}, but {source!r} is a {kind!r}")
    random = set(found["missing_keys"])  # not in the file: drawn at random by transformers
    return {name: value for name, value in model.state_dict().items() if name not in random}


def warm_start_folder(source: str, config: Config, out: str | Path, pretrained: bool = True) -> WarmStart:
    """Build config's model, fill it from `open_detector(source)`, write it as a checkpoint into `out` (refused if one is there).

    pretrained: timm's ImageNet and open_clip's CLIP weights first (they need a network or a cache). Raises ValueError.
    """
    out = Path(out)
    if (out / "model.safetensors").exists():
        raise ValueError(f"{out} holds a checkpoint already: name another folder")
    tensors = open_detector(source)
    model = TRex2(config.model, pretrained=pretrained)
    report = warm_start(model, tensors)
    save_model(out, model, config, half=False)
    return report


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
            report.left[name] = _reason(name)
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
