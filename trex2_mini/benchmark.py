"""`python -m trex2_mini benchmark`: how fast, as ratios against a named reference that is measured in the same run.

What is compared runs in turn (one round of everything, then the next round), after a warm-up; a figure is the median of its rounds. The
references are `transformers`' Deformable DETR and Grounding DINO (random weights: speed does not depend on them), plain pycocotools, or this
package without the step in question. Peak memory is that of a fresh process, above what it held before the call (Linux only).
"""

from __future__ import annotations

import contextlib
import copy
import io
import multiprocessing
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .config import preset
from .evaluation.metrics import coco_ap
from .evaluation.provenance import describe_code
from .layers import deformable_attention
from .layers.deformable_attention import Shapes, deformable_sum, levelwise_grid_sample
from .layers.gather_sum import weighted_gather
from .model.trex2 import TRex2
from .model.visual_prompt import RegionPrompts

PAPER_TABLE_7 = {  # seconds on an RTX 3090, batch 1
    "swin_t": {"backbone": 0.0318, "encoder": 0.024, "visual prompts": 0.012, "text prompts": 0.0103, "decoder": 0.018},
    "swin_l": {
        "backbone": 0.122,
        "encoder": 0.0929,
        "visual prompts": 0.0261,
        "text prompts": 0.0116,
        "decoder": 0.024,
    },
}
ATTENTION_CASES = {  # batch, queries, heads, dimensions a head, levels
    "encoder layer, 800x1066, D=256": (1, None, 8, 32, [(100, 134), (50, 67), (25, 34), (13, 17)]),
    "900 queries, 800x1066, D=256": (1, 900, 8, 32, [(100, 134), (50, 67), (25, 34), (13, 17)]),
    "nano training, 8 x 192x224, D=128": (8, None, 4, 32, [(24, 28), (12, 14), (6, 7)]),
}
POINTS = 4
NAMES = [f"thing {i}" for i in range(1203)]  # as many as LVIS has


def run(name: str, quick: bool = False, repeats: int | None = None) -> dict:
    """One of BENCHMARKS. quick: small sizes, for a look at what it prints. repeats: rounds, default 5 (quick: 2).

    Returns {"benchmark", "quick", "rounds", "machine", "threads", "versions", "commit", "seconds", "rows"}; a row is {"what", "ours",
    "value", "reference", "reference_value", "unit", "ratio", "goal"}: ratio > 1 says that ours is better (faster, smaller) by that factor.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}")
    repeats = repeats or (2 if quick else 5)
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    start = time.perf_counter()
    torch.manual_seed(0)
    rows = list(tqdm(BENCHMARKS[name](quick, repeats), desc=f"benchmark {name}", unit="row", leave=False))
    return {
        "benchmark": name,
        "quick": quick,
        "rounds": repeats,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        **describe_code(),
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
    }


def as_table(result: dict) -> str:
    """A result of `run` as aligned text."""
    cells = [("what", "ours", "", "reference", "", "ratio", "goal")]
    for row in result["rows"]:
        goal = f">= {row['goal']:g}" if row["goal"] else ""
        ours, other = _number(row["value"], row["unit"]), _number(row["reference_value"], row["unit"])
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}x"
        cells.append((row["what"], row["ours"], ours, row["reference"], other, ratio, goal))
    widths = [max(len(line[i]) for line in cells) for i in range(7)]
    right = {2, 4, 5}
    lines = [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
        for line in cells
    ]
    head = (
        f"benchmark {result['benchmark']}{' (quick)' if result['quick'] else ''}: median of {result['rounds']} rounds"
    )
    return "\n".join([f"{head}, {result['threads']} threads, {result['seconds']:.0f} s in all", *lines])


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{1000 * value:,.1f} ms" if unit == "s" and value < 1 else f"{value:,.2f} {unit}"


def _row(
    what: str,
    ours: str,
    value: float,
    reference: str = "",
    other: float | None = None,
    unit: str = "s",
    goal: float | None = None,
) -> dict:
    better = None if other is None else value / other if unit.endswith("/s") else other / value
    return {
        "what": what, "ours": ours, "value": value, "reference": reference, "reference_value": other,
        "unit": unit, "ratio": better, "goal": goal,
    }  # fmt: skip


def interleaved(forms: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each form: one warm-up each, then `repeats` rounds in which each runs once."""
    for form in forms.values():
        form()
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in times.items()}


def peak_memory(function: Callable[..., Any], *arguments: Any) -> float | None:
    """GiB that function(*arguments), which must return a callable, needs at its peak: a fresh process builds the callable, then calls it."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, function, arguments).result()


def _peak(function: Callable[..., Any], arguments: tuple) -> float:
    call = function(*arguments)
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    call()
    return (_kilobytes("VmHWM") - before) / 2**20


def _kilobytes(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def has_compiler() -> bool:
    """torch.compile needs a C++ compiler on a CPU."""
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))


# ---------------------------------------------------------------------------------------------------------------- attention


def transformers_attention(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The reference: `transformers`' pure PyTorch function; arguments as in `levelwise_grid_sample`."""
    theirs = _transformers().models.deformable_detr.modeling_deformable_detr.MultiScaleDeformableAttention()
    starts = torch.tensor([0, *(h * w for h, w in shapes)]).cumsum(0)[:-1]
    return theirs(value, torch.tensor(shapes), shapes, starts, locations, weights, 64)


def _transformers() -> Any:
    try:
        import transformers
        import transformers.models.deformable_detr.modeling_deformable_detr
    except ImportError as error:
        raise ValueError(f"the reference is the package transformers: pip install transformers ({error})") from None
    return transformers


FORMS = {
    "transformers": transformers_attention,
    "grid_sample by level": levelwise_grid_sample,
    "weighted gather": weighted_gather,
}


def _attention_call(case: str, form: str, backward: bool, shrink: int) -> Callable[[], Any]:
    """The attention sum of a case in a form, forward or forward + backward; shrink divides the maps' sides."""
    batch, queries, heads, dim, shapes = ATTENTION_CASES[case]
    shapes = [(max(1, h // shrink), max(1, w // shrink)) for h, w in shapes]
    tokens = sum(h * w for h, w in shapes)
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, tokens, heads, dim, generator=generator)
    locations = torch.rand(batch, queries or tokens, heads, len(shapes), POINTS, 2, generator=generator)
    weights = torch.rand(batch, queries or tokens, heads, len(shapes), POINTS, generator=generator)
    function = torch.compile(weighted_gather, dynamic=False) if form == "compiled" else FORMS[form]
    if not backward:

        def forward() -> Tensor:
            with torch.inference_mode():
                return function(value, shapes, locations, weights)

        return forward
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(value, shapes, locations, weights).sum(), leaves)

    return both


def attention(quick: bool, repeats: int) -> Iterator[dict]:
    """Multi-scale deformable attention alone: every form against transformers' function."""
    shrink = 4 if quick else 1
    for case in ATTENTION_CASES:
        for backward in (False, True):
            forms = [*FORMS, *(["compiled"] if has_compiler() and not backward and not quick else [])]
            took = interleaved({form: _attention_call(case, form, backward, shrink) for form in forms}, repeats)
            what = f"{case}, {'forward + backward' if backward else 'forward'}"
            for form in forms[1:]:
                goal = 5.0 if form == "compiled" else 2.5 if form == "weighted gather" else None
                wanted = goal if "800x1066" in case and not ("900" in case and backward) else None
                yield _row(what, form, took[form], "transformers", took["transformers"], goal=wanted)
            if quick:  # a fresh process a figure takes seconds
                continue
            ours, theirs = (
                peak_memory(_attention_call, case, form, backward, shrink)
                for form in ("weighted gather", "transformers")
            )
            if ours and theirs:
                yield _row(f"{what}, peak memory", "weighted gather", ours, "transformers", theirs, "GiB", goal=2.0)


# -------------------------------------------------------------------------------------------------------------------- model


def _build(name: str) -> TRex2:
    torch.manual_seed(0)
    return TRex2(preset(name).model, pretrained=False).eval()


def _box_prompts(categories: int, batch: int = 1) -> RegionPrompts:
    boxes = torch.rand(categories, 1, 4, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.2
    return RegionPrompts.from_lists([[(box, torch.zeros(0, 2)) for box in boxes]] * batch)


@torch.inference_mode()
def stages(model: TRex2, height: int, width: int, repeats: int, names: int = 80) -> dict[str, float]:
    """Table 7: seconds for the parts of one pass (batch 1): one box prompt, `names` new names, and the decoder on one prompt."""
    image, prompts = torch.rand(3, height, width), _box_prompts(1)
    features = model.encode_images([image])
    vector = model.encode_visual(features, prompts)
    encoder = model.image_encoder
    took = interleaved(
        {
            "backbone": lambda: encoder._backbone_maps([image], [(height, width)]),
            "image": lambda: model.encode_images([image]),
            "visual prompts": lambda: model.encode_visual(features, prompts),
            "text prompts": lambda: model.text_prompt_encoder._encode(NAMES[:names]),
            "decoder": lambda: model.decode(features, vector),
        },
        repeats,
    )
    backbone, image_encoder = took.pop("backbone"), took.pop("image")
    return {"backbone": backbone, "encoder": image_encoder - backbone, **took}


def _forward_call(name: str, height: int, width: int, categories: int) -> Callable[[], Any]:
    model, image = _build(name), torch.rand(3, height, width)

    def forward() -> Any:
        with torch.inference_mode():
            return model.decode(model.encode_images([image]), model.encode_text(NAMES[:categories]))

    return forward


def _peers(height: int, width: int) -> dict[str, Callable[[], Any]]:
    """Full passes of other people's models, random weights. Grounding DINO's text is 'cat. dog.' in BERT's token ids."""
    transformers, pixels = _transformers(), torch.rand(1, 3, height, width)
    dino = transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig()).eval()
    detr = transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(disable_custom_kernels=True, use_pretrained_backbone=False)
    ).eval()
    tokens = torch.tensor([[101, 4937, 1012, 3899, 1012, 102]])
    return {
        "Grounding DINO tiny": lambda: dino(pixel_values=pixels, input_ids=tokens),
        "Deformable DETR R50": lambda: detr(pixel_values=pixels),
    }


@torch.inference_mode()
def model(quick: bool, repeats: int) -> Iterator[dict]:
    """The whole model: parts (table 7), peers, the price of a further prompt, growth, memory."""
    for name in ("nano",) if quick else ("nano", "swin_t", "swin_l"):
        ours, size = _build(name), (192, 256) if name == "nano" else (800, 1066)
        took = stages(ours, *size, repeats if name != "swin_l" else min(repeats, 2))
        paper = PAPER_TABLE_7.get(name, {})
        for part, seconds in took.items():
            yield _row(
                f"{name} {size[0]}x{size[1]}, {part}",
                "CPU",
                seconds,
                "paper, RTX 3090" if paper else "",
                paper.get(part),
            )
        full, further = sum(took.values()), took["visual prompts"] + took["decoder"]
        yield _row(f"{name}, a further prompt", "prompt + decode", further, "full pass", full, goal=8.0)
        yield _row(f"{name}, FPS", "CPU", 1 / full, "paper" if paper else "", _fps(paper, list(paper)), "images/s")
        interactive = _fps(paper, ["visual prompts", "decoder"])
        yield _row(f"{name}, interactive FPS", "CPU", 1 / further, "paper" if paper else "", interactive, "images/s")
        if name == "swin_t":
            yield from _against_peers(ours, size, repeats)
    yield from _growth(_build("nano"), repeats, (1, 80, 300, 1203))
    if not quick:
        swin = peak_memory(_forward_call, "swin_t", 800, 1333, 80)
        if swin:
            yield _row(
                "swin_t 800x1333, 80 names, peak memory above the weights", "swin_t", swin, "limit", 3.0, "GiB", 1.0
            )
            many = peak_memory(_forward_call, "swin_t", 800, 1333, 1203)
            yield _row("the same with 1,203 names", "1,203 names", many, "80 names", swin, "GiB")


def _fps(paper: dict[str, float], parts: list[str]) -> float | None:
    return 1 / sum(paper[part] for part in parts) if paper else None


def _against_peers(ours: TRex2, size: tuple[int, int], repeats: int) -> Iterator[dict]:
    image = torch.rand(3, *size)

    def pass_by_names() -> Any:
        return ours.decode(ours.encode_images([image]), ours.text_prompt_encoder._encode(["cat", "dog"]))

    took = interleaved({"ours": pass_by_names, **_peers(*size)}, min(repeats, 3))
    for peer, goal in (("Grounding DINO tiny", 2.5), ("Deformable DETR R50", None)):
        yield _row(f"swin_t {size[0]}x{size[1]}, full pass", "swin_t", took["ours"], peer, took[peer], goal=goal)


def _growth(ours: TRex2, repeats: int, counts: tuple[int, ...]) -> Iterator[dict]:
    """nano's seconds against prompts, image size and batch."""
    features = ours.encode_images([torch.rand(3, 192, 256)])
    prompts = {count: ours.encode_text(NAMES[:count]) for count in counts}
    took = interleaved({str(c): lambda p=p: ours.decode(features, p) for c, p in prompts.items()}, repeats)
    for count in counts:
        yield _row(f"nano, decoder, {count:,} prompts", f"{count:,} prompts", took[str(count)], "1 prompt", took["1"])
    images = {side: torch.rand(3, side, side) for side in (192, 256, 384)}
    took = interleaved({str(s): lambda x=x: ours.encode_images([x]) for s, x in images.items()}, repeats)
    for side in images:
        yield _row(f"nano, encode {side}x{side}", f"{side} px", took[str(side)], "192 px", took["192"])
    batches = {size: [torch.rand(3, 192, 256)] * size for size in (1, 4, 8)}
    took = interleaved({str(n): lambda b=b: ours.encode_images(b) for n, b in batches.items()}, repeats)
    for size in batches:
        yield _row(
            f"nano, encode, batch {size}", "images/s", size / took[str(size)], "batch 1", 1 / took["1"], "images/s"
        )


# ----------------------------------------------------------------------------------------------------------------- training


def training(quick: bool, repeats: int) -> Iterator[dict]:
    """A training step of nano, against the same step with transformers' attention, bfloat16 and torch.compile; its time by part."""
    from .datasets.batches import EmojiBatches
    from .training import iteration_losses, make_optimizer

    recipe = preset("nano").train
    source = EmojiBatches(2 if quick else recipe.batch_size)
    start = time.perf_counter()
    samples = source(0)
    data = time.perf_counter() - start
    model = TRex2(preset("nano").model, pretrained=False).train()
    optimizer = make_optimizer(model, recipe)
    spent: dict[str, float] = {}

    def step(amp: bool = False) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp), _clock(spent, "forward"):
            losses = iteration_losses(model, samples, source.names, source.trainable, recipe, 0)
            total = torch.stack([v.float() for v in losses.values()]).sum()
        with _clock(spent, "backward"):
            optimizer.zero_grad()
            total.backward()
        with _clock(spent, "optimizer"):
            optimizer.step()

    def with_sum(form: Callable) -> Callable[[], None]:
        def other() -> None:
            with swapped_sum(form):
                step()

        return other

    forms = {"ours": step, "transformers' attention": with_sum(transformers_attention), "bfloat16": lambda: step(True)}
    if has_compiler() and not quick:
        forms["compiled attention"] = with_sum(torch.compile(deformable_sum, dynamic=False))
    took = interleaved(forms, repeats)
    count = len(samples)
    for name in list(forms)[1:]:
        goal = 2.0 if name == "transformers' attention" else None
        yield _row(
            f"nano, batch {count}, images a second",
            "ours",
            count / took["ours"],
            name,
            count / took[name],
            "images/s",
            goal,
        )
    yield _row(
        "making the data, in a worker beside it", "images/s", count / data, "training", count / took["ours"], "images/s"
    )

    took = interleaved(_layouts(model.image_encoder.backbone, count), repeats)
    rows = took["channels last"], "channels first", took["channels first"]
    yield _row("backbone alone, forward + backward", "channels last", *rows)

    parts = {
        "backbone": model.image_encoder.backbone, "image encoder": model.image_encoder, "visual prompts": model.visual_prompt_encoder,
        "text prompts": model.text_prompt_encoder, "decoder": model.box_decoder,
    }  # fmt: skip
    spent.clear()
    hooks = [hook for name, part in parts.items() for hook in _time_module(part, name, spent)]
    for _ in range(repeats):
        step()
    for hook in hooks:
        hook.remove()
    spent["image encoder"] -= spent["backbone"]
    forward = spent.pop("forward")
    inner = sum(seconds for name, seconds in spent.items() if name in parts)
    spent["matching, losses, denoising"] = forward - inner
    whole = sum(spent.values())
    for name, seconds in spent.items():
        yield _row(f"by part: {name}", "one step", seconds / repeats, f"{seconds / whole:.0%} of the step")


def _layouts(backbone: nn.Module, count: int) -> dict[str, Callable[[], None]]:
    """Forward and backward of the backbone in two memory layouts."""

    def call(memory_format: torch.memory_format) -> Callable[[], None]:
        own = copy.deepcopy(backbone).to(memory_format=memory_format)
        images = torch.rand(count, 3, 192, 224).contiguous(memory_format=memory_format)
        return lambda: sum(level.sum() for level in own(images)).backward()

    return {"channels last": call(torch.channels_last), "channels first": call(torch.contiguous_format)}


@contextlib.contextmanager
def swapped_sum(form: Callable) -> Iterator[None]:
    """Every deformable attention uses `form` for its sum."""
    own = deformable_attention.deformable_sum
    deformable_attention.deformable_sum = form
    try:
        yield
    finally:
        deformable_attention.deformable_sum = own


@contextlib.contextmanager
def _clock(spent: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    spent[name] = spent.get(name, 0.0) + time.perf_counter() - start


def _time_module(module: nn.Module, name: str, spent: dict[str, float]) -> list[Any]:
    """Hooks that add a module's forward seconds to spent[name]."""
    began = [0.0]

    def before(*_: Any) -> None:
        began[0] = time.perf_counter()

    def after(*_: Any) -> None:
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - began[0]

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


# --------------------------------------------------------------------------------------------------------------- evaluation


def evaluation(quick: bool, repeats: int) -> Iterator[dict]:
    """Encoding once against a pass a prompt; batches against single images; our AP against plain pycocotools on the same detections."""
    ours = _build("nano")
    images = [torch.rand(3, 192, 256) for _ in range(2 if quick else 8)]
    prompts = _box_prompts(4, len(images))
    single = _box_prompts(1)

    @torch.inference_mode()
    def once() -> None:
        features = ours.encode_images(images)
        ours.decode(features, ours.encode_visual(features, prompts))

    @torch.inference_mode()
    def every_time() -> None:
        for image in images:
            for _ in range(4):
                features = ours.encode_images([image])
                ours.decode(features, ours.encode_visual(features, single))

    took = interleaved({"once": once, "every": every_time}, repeats)
    count = len(images)
    yield _row(
        f"Visual-I, {count} images x 4 prompts", "encode once, batched", count / took["once"], "a pass a prompt", count / took["every"],
        "images/s",
    )  # fmt: skip

    truth, detections = synthetic_detections(40 if quick else 5000)
    took = interleaved(
        {"ours": lambda: coco_ap(truth, detections), "plain": lambda: _plain_ap(truth, detections)},
        1 if not quick else repeats,
    )
    yield _row(
        f"AP of {len(truth['images']):,} images x 300 detections", "coco_ap", took["ours"], "plain pycocotools", took["plain"]
    )  # fmt: skip


def synthetic_detections(images: int, categories: int = 80) -> tuple[dict, list[dict]]:
    """A COCO truth of about 7 objects an image, and 300 detections an image, a few of them near the objects."""
    rng = np.random.default_rng(0)
    annotations, detections = [], []
    for image in range(1, images + 1):
        count = int(rng.integers(1, 14))
        boxes = np.concatenate([rng.uniform(0, 400, (count, 2)), rng.uniform(10, 200, (count, 2))], 1)
        labels = rng.integers(1, categories + 1, count)
        annotations += [
            {"id": len(annotations) + k, "image_id": image, "category_id": int(c), "bbox": b.tolist(), "area": float(b[2] * b[3]), "iscrowd": 0}
            for k, (b, c) in enumerate(zip(boxes, labels), 1)
        ]  # fmt: skip
        chosen = rng.integers(0, count, 300)
        found = boxes[chosen] + rng.normal(0, 12, (300, 4))
        found[:, 2:] = np.maximum(found[:, 2:], 1)
        kinds = np.where(rng.random(300) < 0.3, labels[chosen], rng.integers(1, categories + 1, 300))
        detections += [
            {"image_id": image, "category_id": int(c), "bbox": b.tolist(), "score": float(s)}
            for b, c, s in zip(found, kinds, rng.random(300))
        ]
    truth = {
        "images": [{"id": i} for i in range(1, images + 1)],
        "categories": [{"id": c, "name": str(c)} for c in range(1, categories + 1)],
        "annotations": annotations,
    }
    return truth, detections


def _plain_ap(truth: dict, detections: list[dict]) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        measured = COCOeval(coco, coco.loadRes([dict(d) for d in detections]), "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return 100 * float(measured.stats[0])


BENCHMARKS = {"attention": attention, "model": model, "training": training, "evaluation": evaluation}
