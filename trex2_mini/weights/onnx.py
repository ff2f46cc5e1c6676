"""The model as ONNX programs, for a browser, a phone or any runtime: the interactive split of the paper, encode once
and prompt often.

    encoder.onnx   image [1, 3, H, W], RGB in 0..1          -> tokens [1, N, D]
    prompt.onnx    tokens; coords, is_point, mask           -> visual prompts V [1, C, D]   (coords as in
    `RegionPrompts`)
    decoder.onnx   tokens, prompts [1, C, D]                -> logits [1, Q, C], boxes [1, Q, 4] cxcywh in 0..1
    export.json    the sizes, the names of inputs and outputs, and what the detector does around them (scaling, NMS)

Prompt and decoder are two programs, so that text embeddings (kept as a table in export.json) and mixtures can be
decoded too. H and W are fixed by the export and nothing is padded; the numbers of categories C and of prompts K are
free.
"""

import json
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from trex2_mini.detector import Detector
from trex2_mini.layers.deformable_attention import DeformableAttention, levelwise_grid_sample
from trex2_mini.model.image_encoder import ImageFeatures
from trex2_mini.model.trex2 import TRex2
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.names import unique_names
from trex2_mini.paths import write_text

OPSET = 20  # the first in which GridSample has the name of today


class _Program(nn.Module):
    """A part of the model for one image size: what depends on the size alone is constant."""

    def __init__(self, model: TRex2, features: ImageFeatures):
        super().__init__()
        self.model, self.shapes, self.sizes = model, features.shapes, features.sizes
        for name in ("padding", "centres", "valid"):
            self.register_buffer(name, getattr(features, name).clone(), persistent=False)

    def features(self, tokens: Tensor) -> ImageFeatures:
        features = ImageFeatures(tokens, self.shapes, self.padding, self.centres, self.valid, self.sizes)
        features.__dict__["fewest"] = self.padding.shape[1]  # nothing is padded
        return features


class Encode(_Program):
    def forward(self, image: Tensor) -> Tensor:
        return self.model.encode_images([image[0]]).tokens


class Prompt(_Program):
    def forward(self, tokens: Tensor, coords: Tensor, is_point: Tensor, mask: Tensor) -> Tensor:
        return self.model.encode_visual(self.features(tokens), RegionPrompts(coords, is_point, mask))


class Decode(_Program):
    def forward(self, tokens: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model.decode(self.features(tokens), prompts)
        return output.logits, output.boxes


def export_onnx(
    detector: Detector, folder: str | Path, height: int, width: int, names: str | Sequence[str] = ()
) -> Path:
    """Write encoder.onnx, prompt.onnx, decoder.onnx and export.json into `folder`; takes about a minute for `nano`.

    Args:
        height, width: of the images that the encoder will take, multiples of the coarsest stride (32 px for `nano`).
        names: their text embeddings T are kept in export.json, so that no text tower is needed there.

    Raises:
        ValueError: the size does not fit, or onnx and onnxscript are not installed.
    """
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        raise ValueError("export needs two packages more: pip install 'trex2-mini[export]'")
    config = detector.config.model
    stride = max(config.strides)
    if min(height, width) < stride or height % stride or width % stride:
        raise ValueError(f"expected a height and a width that are multiples of {stride} px, got {height} x {width}")
    names = unique_names(names) if names else []
    folder, model = Path(folder), detector.model.cpu().eval()
    folder.mkdir(parents=True, exist_ok=True)
    attentions = [module for module in model.modules() if isinstance(module, DeformableAttention)]
    before = [attention.compiled for attention in attentions]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # a fused kernel that ONNX has no name for
        for attention in attentions:
            attention.compiled = levelwise_grid_sample  # ONNX's GridSample
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about its own deprecations
            features = model.encode_images([torch.zeros(3, height, width)])
            tokens, dim = features.tokens.clone(), config.dim
            categories, prompts = torch.export.Dim("categories", min=1), torch.export.Dim("prompts", min=1)
            coords = torch.rand(1, 3, 2, 4)
            kinds = torch.zeros(1, 3, 2, dtype=torch.bool)
            free = {1: categories, 2: prompts}
            programs = {
                "encoder": (Encode(model, features), (torch.zeros(1, 3, height, width),), ["image"], ["tokens"],
                    (None,)),
                "prompt": (
                    Prompt(model, features), (tokens, coords, kinds, ~kinds), ["tokens", "coords", "is_point", "mask"],
                    ["visual"], (None, free, free, free),
                ),
                "decoder": (
                    Decode(model, features), (tokens, torch.randn(1, 3, dim)), ["tokens", "prompts"],
                    ["logits", "boxes"],
                    (None, {1: categories}),
                ),
            }  # fmt: skip
            for name, (program, inputs, given, result, shapes) in programs.items():
                draft = folder / f"{name}.onnx.part"
                torch.onnx.export(
                    program.eval(), inputs, str(draft), input_names=given, output_names=result, opset_version=OPSET,
                    dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False,
                )  # fmt: skip
                draft.replace(folder / f"{name}.onnx")
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for attention, form in zip(attentions, before):
            attention.compiled = form
    with torch.inference_mode():
        embeddings = model.encode_text(names).tolist() if names else []
    described = {
        "height": height,
        "width": width,
        "dim": dim,
        "queries": config.num_queries,
        "nms_iou": config.nms_iou,
        "image": "float32, RGB, 0..1",
        "text": dict(zip(names, embeddings)),
        "weights": detector.weights,
    }
    write_text(folder / "export.json", json.dumps(described))
    return folder
