"""Start a TRex2 from open detectors' weights, given as a state dict: transformers' Deformable DETR and Grounding DINO,
newocean-group/T-Rex2.

    python -m trex2_mini warm-start --from IDEA-Research/grounding-dino-tiny --preset swin_t --out runs/warm
    report = warm_start(model, open_detector("IDEA-Research/grounding-dino-tiny"))
    print(report)                      # what was taken, what was not, and why

Swin and other ImageNet backbones come through timm and CLIP's text tower through open_clip already when `TRex2(config)`
is built. What these detectors have and T-Rex2 has not (it is prompted late) stays behind: fusion with text, their text
encoders, class heads. Grounding DINO's Swin normalises each stage's output and timm's does not, so its first three
projections meet other numbers than they were trained on; its position embedding counts cells from their far corner,
ours from their centre. Both must be learned anew. timm rolls a map before it pads it to whole windows, transformers
after: with sides that are no multiples of 7 x 32 pixels the borders of Swin's maps differ.

newocean-group/T-Rex2 (visual prompts only; its src/ was read, model.py at 6b6afcd and the rest at e825edc, its weights
were not seen). Backbone, encoder, decoder and box heads have our form and are taken; so are the prompt encoder's
blocks. It is a start, not a conversion that detects: a prompt's place is a perceptron of its box, added anew in each
block, instead of eq. 1 to 3; a category's vector is the mean of its prompts' outputs instead of a class token's (eq.
5); labels are scaled cosines with a perceptron of that vector, another one after each layer, instead of eq. 8; Swin's
outputs are normalised; the decoder has no last norm. For its Swin-T: a config.json of `swin_t` with ffn_dim 1024 and
position_temperature 100. Its file is a pickle, which nothing here reads. Where you trust it, in an environment of your
own:

    state = torch.load("checkpoint.pth", map_location="cpu", weights_only=True)["model"] safetensors.torch.save_file({k:
    v.contiguous() for k, v in state.items()}, "newocean.safetensors") python -m trex2_mini warm-start --from
    newocean.safetensors --config config.json --out runs/warm
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from trex2_mini.checkpoint import read_tensors, save_model
from trex2_mini.config import Config
from trex2_mini.model.trex2 import TRex2

_ATTENTION = r"(sampling_offsets|attention_weights|value_proj|output_proj)\.(weight|bias)$"
_PARAMETER = r"(weight|bias)$"
_SWIN = r"model\.backbone\.conv_encoder\.model\.(?:swin\.)?"
_BLOCK = _SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_ENCODER = r"model\.encoder\.layers\.(\d+)\.(?:deformable_layer\.)?"
_DECODER = r"model\.decoder\.layers\.(\d+)\."
_BACKBONE = "image_encoder.backbone.body."
_OCEAN_SWIN = r"image_encoder\.backbone\.0\."
_OCEAN_ENCODER = r"image_encoder\.encoder\.layers\.(\d+)\."
# one class there, two here
_OCEAN_LAYER = r"(box_decoder|visual_prompt_encoder)\.(?:decoder|visual_encoder)\.layers\.(\d+)\."
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
    (_DECODER + r"self_attn\.(?:(q|k|v)_proj|(q)uery|(k)ey|(v)alue)\." + _PARAMETER,
        r"box_decoder.layers.\1.self_attention.in_proj_\6#\2\3\4\5"),
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
    # newocean-group/T-Rex2
    (_OCEAN_SWIN + r"(patch_embed\.(?:proj|norm)\.(?:weight|bias))$", _BACKBONE + r"\1"),
    (_OCEAN_SWIN + r"layers\.(\d+)\.(blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(?:weight|bias))$",
        _BACKBONE + r"layers_\1.\2"),
    (_OCEAN_SWIN + r"layers\.(\d+)\.(blocks\.\d+\.attn\.relative_position_bias_table)$", _BACKBONE + r"layers_\1.\2"),
    (_OCEAN_SWIN + r"layers\.(\d+)\.downsample\.(norm\.weight|norm\.bias|reduction\.weight)$", r"DOWN \1 \2"),
    (r"image_encoder\.input_proj\.(\d+)\.([01])\." + _PARAMETER, r"image_encoder.projections.\1.\2.\3"),
    (r"image_encoder\.level_embed$", "image_encoder.level_embedding"),
    (_OCEAN_ENCODER + r"self_attn\." + _ATTENTION, r"image_encoder.layers.\1.attention.\2.\3"),
    (_OCEAN_ENCODER + r"norm1\." + _PARAMETER, r"image_encoder.layers.\1.norm.\2"),
    (_OCEAN_ENCODER + r"linear([12])\." + _PARAMETER, r"image_encoder.layers.\1.ffn.linear\2.\3"),
    (_OCEAN_ENCODER + r"norm2\." + _PARAMETER, r"image_encoder.layers.\1.ffn.norm.\2"),
    (_OCEAN_LAYER + r"self_attn\.(in_proj_weight|in_proj_bias|out_proj\.weight|out_proj\.bias)$",
        r"\1.LAYERS.\2.self_attention.\3"),
    (_OCEAN_LAYER + r"cross_attn\." + _ATTENTION, r"\1.LAYERS.\2.cross_attention.\3.\4"),
    (_OCEAN_LAYER + r"norm1\." + _PARAMETER, r"\1.LAYERS.\2.cross_norm.\3"),
    (_OCEAN_LAYER + r"norm2\." + _PARAMETER, r"\1.LAYERS.\2.self_norm.\3"),
    (_OCEAN_LAYER + r"linear([12])\." + _PARAMETER, r"\1.LAYERS.\2.ffn.linear\3.\4"),
    (_OCEAN_LAYER + r"norm3\." + _PARAMETER, r"\1.LAYERS.\2.ffn.norm.\3"),
    (r"box_decoder\.decoder\.ref_point_head\.layers\.(\d)\." + _PARAMETER, r"box_decoder.anchor_position.LINEAR\1.\2"),
    (r"box_decoder\.dec_bbox_head\.(\d+)\.layers\.(\d)\." + _PARAMETER, r"box_decoder.box_heads.\1.LINEAR\2.\3"),
    (r"box_decoder\.enc_bbox_head\.layers\.(\d)\." + _PARAMETER, r"box_decoder.token_box.LINEAR\1.\2"),
    (r"box_decoder\.enc_output\." + _PARAMETER, r"box_decoder.token_projection.\1"),
    (r"box_decoder\.enc_output_norm\." + _PARAMETER, r"box_decoder.token_norm.\1"),
    (r"box_decoder\.tgt_embed\.weight$", "box_decoder.content.weight"),
]  # fmt: skip


@dataclass
class WarmStart:
    """taken: our tensors that were set; new: ours that stay as they were; left: their tensors that were not used, with
    the reason."""

    taken: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """A table: our parts with the tensors taken and those as they were, then their tensors that were left, by
        reason."""
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
    (
        r"visual_prompt_encoder\.",
        "prompts' places, and their mean: eq. 1 to 3 and the class token (eq. 5) are other functions",
    ),
    (r"contrastive_head", "labels as scaled cosines with a perceptron of the prompt, not eq. 8"),
    (r"ca_visual", "attention to prompts, which is not used there either"),
    (r"denoising|class_embed|dec_score_head", "a class head: T-Rex2's labels are dot products with prompts (eq. 8)"),
    (r"hidden_states_norms|backbone\.0\.norm", "norms of Swin's outputs: timm's Swin has none"),
    (r"relative_position_index", "a table of indices, computed anew"),
    (r"backbone", "a backbone that is not the Swin of this model"),
    (r"reference_points|pos_trans|query_position", "queries of another kind than ours, chosen by position"),
]


def _reason(name: str) -> str:
    return next((why for pattern, why in _REASONS if re.search(pattern, name)), "T-Rex2 has no such part")


def open_detector(source: str) -> dict[str, Tensor]:
    """The state dict of a Deformable DETR or Grounding DINO: a folder of transformers' (config.json, *.safetensors), or
    owner/name on the Hub; or of any file *.safetensors.

    Read by transformers itself (it knows the older names of parameters), safetensors only. HF_HUB_OFFLINE=1 asks no
    network. Raises ValueError: transformers is missing, no such weights or no safetensors here, or another kind of
    model.
    """
    if source.endswith(".safetensors"):
        return read_tensors(Path(source))[0]
    if source.endswith((".pth", ".pt", ".bin", ".ckpt")):
        raise ValueError(
            f"{source}: expected safetensors; a torch archive is a pickle, which can run code, and is not read here."
            " Where you trust it, the head of trex2_mini/weights/warm_start.py has the two lines that write it as"
            " safetensors"
        )
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
            f"the weights {source!r} could not be read ({type(error).__name__}: {str(error).splitlines()[0]}). Expected"
            " a folder with config.json and *.safetensors, or owner/name on the Hugging Face Hub; on a machine with a"
            f" network: hf download {source} --include '*.json' '*.safetensors'"
        ) from error
    if kind not in kinds:
        raise ValueError(f"expected one of {sorted(kinds)}, but {source!r} is a {kind!r}")
    random = set(found["missing_keys"])  # not in the file: drawn at random by transformers
    return {name: value for name, value in model.state_dict().items() if name not in random}


def warm_start_folder(source: str, config: Config, out: str | Path, pretrained: bool = True) -> WarmStart:
    """Build config's model, fill it from `open_detector(source)`, write it as a checkpoint into `out` (refused if one
    is there).

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
            ours = ours.replace("LAYERS", "layers" if ours.startswith("box_decoder") else "blocks")
            return re.sub(r"LINEAR(\d)", lambda m: str(2 * int(m[1])), ours)  # ReLUs stand between the linear layers
    return None


def warm_start(model: TRex2, tensors: dict[str, Tensor]) -> WarmStart:
    """Copy into `model` what fits of a state dict (Deformable DETR or Grounding DINO of transformers, or
    newocean-group's TRex2); in place.

    A tensor of another shape or layer is left and reported. Raises ValueError when not one encoder tensor fits: nothing
    is changed then.
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
            "expected the state dict of transformers' DeformableDetrForObjectDetection or"
            " GroundingDinoForObjectDetection, or newocean-group's TRex2, with this model's dim and heads; not one"
            f" encoder tensor of {len(tensors)} fits (first names: {list(tensors)[:3]})"
        )
    model.load_state_dict(found, strict=False)
    report.taken, report.new = sorted(found), sorted(set(own) - set(found))
    return report


def _take(ours: str, names: list[str], value: Tensor, own: dict, found: dict, report: WarmStart) -> None:
    if value.shape == own[ours].shape:
        found[ours] = value.to(own[ours].dtype)
    else:
        report.left |= dict.fromkeys(names, "another shape than this model's")
