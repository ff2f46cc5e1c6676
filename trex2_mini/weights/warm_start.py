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

    state = torch.load("checkpoint.pth", map_location="cpu", weights_only=True)["model"]
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, "newocean.safetensors")

    python -m trex2_mini warm-start --from newocean.safetensors --config config.json --out runs/warm
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from torch import Tensor

from trex2_mini.checkpoint import read_tensors, save_model
from trex2_mini.config import Config
from trex2_mini.model.trex2 import TRex2

_DATA = yaml.safe_load(Path(__file__).with_suffix(".yml").read_text(encoding="utf-8"))
_PARTS: dict[str, str] = {}
for _name, _pattern in _DATA["parts"].items():
    _PARTS[_name] = _pattern.format(**_PARTS)
_RULES = {theirs.format(**_PARTS): ours.format(**_PARTS) for theirs, ours in _DATA["rules"].items()}


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


def _reason(name: str) -> str:
    return next((why for pattern, why in _DATA["left"].items() if re.search(pattern, name)), "T-Rex2 has no such part")


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
    for pattern, ours in _RULES.items():
        match = re.match(pattern, name)
        if match:
            ours = match.expand(ours)
            if ours.startswith("DOWN "):  # transformers: at the end of a stage; timm: at the start of the next
                _, stage, rest = ours.split()
                return f"{_PARTS['backbone']}layers_{int(stage) + 1}.downsample.{rest}"
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
