"""The whole model: its parts (the paper's Table 7), peers, the price of a further prompt, growth, memory. Batch 1
unless said otherwise."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from trex2_mini.benchmark.measure import interleaved, peak_memory, row, transformers
from trex2_mini.config import preset
from trex2_mini.layers.deformable_attention import compile_attention, has_compiler
from trex2_mini.model.trex2 import TRex2
from trex2_mini.model.visual_prompt import RegionPrompts

PAPER_TABLE_7 = {  # seconds on an RTX 3090, batch 1
    "swin_t": {"backbone": 0.0318, "encoder": 0.024, "visual prompts": 0.012, "text prompts": 0.0103, "decoder": 0.018},
    "swin_l": {"backbone": 0.122, "encoder": 0.0929, "visual prompts": 0.0261, "text prompts": 0.0116,
        "decoder": 0.024},
}  # fmt: skip
NAMES = [f"thing {i}" for i in range(1203)]  # as many as LVIS has
SIZES = {"nano": (192, 256), "swin_t": (800, 1066), "swin_l": (800, 1066)}  # pixels
COUNTS = (1, 80, 300, len(NAMES))  # prompts


@torch.inference_mode()
def rows(quick: bool, repeats: int, presets: Sequence[str] | None = None) -> Iterator[dict]:
    presets = presets or (["nano"] if quick else list(SIZES))
    for name in presets:
        preset(name)  # refuses an unknown one before anything is measured
    if "swin_t" in presets:
        transformers()
    for name in presets:
        ours = build(name)
        yield from _table_7(ours, name, repeats if name != "swin_l" else min(repeats, 2))
        if name == "swin_t":
            yield from _against(ours, name, _detr_peers(*SIZES[name]), {"Grounding DINO tiny": 2.5}, min(repeats, 3))
        if name == "nano":
            yield from _growth(ours, repeats, COUNTS[:2] if quick else COUNTS)
            yolo = _yolo(*SIZES[name])
            if yolo:
                yield from _against(ours, name, yolo, {}, repeats)
            else:
                yield {"note": "YOLO11n: left out, the package ultralytics is not installed"}
    if "swin_t" in presets and not quick:
        yield from _memory("swin_t", 800, 1333)


def build(name: str) -> TRex2:
    """A preset with random weights."""
    torch.manual_seed(0)
    return TRex2(preset(name).model, pretrained=False).eval()


def box_prompts(categories: int, batch: int = 1) -> RegionPrompts:
    """So many categories an image, one box each."""
    boxes = torch.rand(categories, 1, 4, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.2
    return RegionPrompts.from_lists([[(box, torch.zeros(0, 2)) for box in boxes]] * batch)


def stages(ours: TRex2, height: int, width: int, repeats: int, names: int = 80) -> dict[str, float]:
    """Table 7: seconds for the parts of one pass: one box prompt, `names` new names, and the decoder on one prompt.

    The backbone's share includes the projections to D, the encoder's is what the whole image encoder takes beyond it.
    """
    image, prompts = torch.rand(3, height, width), box_prompts(1)
    features = ours.encode_images([image])
    vector = ours.encode_visual(features, prompts)
    took = interleaved(
        {
            "backbone": lambda: ours.image_encoder._backbone_maps([image], [(height, width)]),
            "image": lambda: ours.encode_images([image]),
            "visual prompts": lambda: ours.encode_visual(features, prompts),
            "text prompts": lambda: ours.text_prompt_encoder._encode(NAMES[:names]),
            "decoder": lambda: ours.decode(features, vector),
        },
        repeats,
    )
    backbone, encoder = took.pop("backbone"), took.pop("image")
    return {"backbone": backbone, "encoder": max(encoder - backbone, 1e-9), **took}


def _table_7(ours: TRex2, name: str, repeats: int) -> Iterator[dict]:
    height, width = SIZES[name]
    took = stages(ours, height, width, repeats)
    paper = PAPER_TABLE_7.get(name, {})
    source = "paper, RTX 3090" if paper else ""
    for part, seconds in took.items():
        yield row(f"{name} {height}x{width}, {part}", name, seconds, source, paper.get(part), compare=False)
    full, further = sum(took.values()), took["visual prompts"] + took["decoder"]
    yield row(f"{name}, a further prompt", "prompt and decode", further, "full pass", full, goal=8.0)
    again = ["visual prompts", "decoder"]
    for title, seconds, parts in (("FPS", full, list(took)), ("interactive FPS", further, again)):
        printed = 1 / sum(paper[part] for part in parts) if paper else None
        yield row(f"{name}, {title}", name, 1 / seconds, source, printed, "images/s", compare=False)


def _against(
    ours: TRex2, name: str, peers: dict[str, Callable[[], Any]], goals: dict[str, float], repeats: int
) -> Iterator[dict]:
    """A full pass asked by two names, against full passes of other people's models on an image of the same size."""
    image = torch.rand(3, *SIZES[name])

    def full_pass(model: TRex2) -> Callable[[], Any]:
        return lambda: model.decode(model.encode_images([image]), model.text_prompt_encoder._encode(["cat", "dog"]))

    forms = {name: full_pass(ours)}
    if has_compiler() and name == "swin_t":
        forms[f"{name}, compiled attention"] = full_pass(compile_attention(build(name)))
    took = interleaved({**forms, **peers}, repeats)
    for peer in peers:
        for form in forms:
            what = f"{name} {SIZES[name][0]}x{SIZES[name][1]}, full pass"
            yield row(what, form, took[form], peer, took[peer], goal=goals.get(peer))


def _detr_peers(height: int, width: int) -> dict[str, Callable[[], Any]]:
    """transformers' models from their default configurations. Grounding DINO's text is "cat. dog." in
    BERT's token ids."""
    library, pixels = transformers(), torch.rand(1, 3, height, width)
    dino = library.GroundingDinoForObjectDetection(library.GroundingDinoConfig()).eval()
    detr = library.DeformableDetrForObjectDetection(
        library.DeformableDetrConfig(disable_custom_kernels=True, use_pretrained_backbone=False)
    ).eval()
    tokens = torch.tensor([[101, 4937, 1012, 3899, 1012, 102]])
    return {
        "Grounding DINO tiny": lambda: dino(pixel_values=pixels, input_ids=tokens),
        "Deformable DETR R50": lambda: detr(pixel_values=pixels),
    }


def _yolo(height: int, width: int) -> dict[str, Callable[[], Any]]:
    """ultralytics' YOLO11n from its own description, where the package is installed."""
    if not importlib.util.find_spec("ultralytics"):
        return {}
    network = importlib.import_module("ultralytics").YOLO("yolo11n.yaml").model.eval()
    pixels = torch.rand(1, 3, height, width)
    return {"YOLO11n": lambda: network(pixels)}


def _growth(ours: TRex2, repeats: int, counts: Sequence[int]) -> Iterator[dict]:
    """nano's seconds against the number of prompts, image size and batch."""
    features = ours.encode_images([torch.rand(3, *SIZES["nano"])])
    texts = {count: ours.text_prompt_encoder._encode(NAMES[:count]) for count in counts}
    regions = {count: box_prompts(count) for count in counts}
    for part, call in (
        ("decoder", lambda count: ours.decode(features, texts[count])),
        ("visual prompts", lambda count: ours.encode_visual(features, regions[count])),
        ("text prompts", lambda count: ours.text_prompt_encoder._encode(NAMES[:count])),
    ):
        took = interleaved({str(count): lambda c=count, f=call: f(c) for count in counts}, repeats)
        for count in counts[1:]:
            yield row(f"nano, {part}, 1 to {count:,}", f"{count:,} prompts", took[str(count)], "1 prompt", took["1"])
    images = {side: [torch.rand(3, side, side)] for side in (192, 256, 384)}
    took = interleaved({str(side): lambda x=x: ours.encode_images(x) for side, x in images.items()}, repeats)
    for side in (256, 384):
        yield row(f"nano, encode, {side} px", f"{side}x{side}", took[str(side)], "192x192", took["192"])
    batches = {size: [torch.rand(3, *SIZES["nano"])] * size for size in (1, 4, 8)}
    took = interleaved({str(size): lambda x=x: ours.encode_images(x) for size, x in batches.items()}, repeats)
    for size in (4, 8):
        what = f"nano, encode, batch {size}"
        yield row(what, f"batch {size}", size / took[str(size)], "batch 1", 1 / took["1"], "images/s")


def _memory(name: str, height: int, width: int) -> Iterator[dict]:
    few, many = (peak_memory(_pass_call, name, height, width, count) for count in (80, 1203))
    if few is None or many is None:
        yield {"note": "peak memory: left out, it is measured on Linux only"}
        return
    what = f"{name} {height}x{width}, peak memory of the process"
    yield row(f"{what}, 80 names", name, few.whole, "limit", 3.0, "GiB", 1.0)
    yield row(f"{what}, 1,203 names", "1,203 names", many.whole, "80 names", few.whole, "GiB")


def _pass_call(name: str, height: int, width: int, count: int) -> Callable[[], Any]:
    ours, image = build(name), torch.rand(3, height, width)

    def forward() -> Any:
        with torch.inference_mode():
            return ours.decode(ours.encode_images([image]), ours.encode_text(NAMES[:count]))

    return forward
