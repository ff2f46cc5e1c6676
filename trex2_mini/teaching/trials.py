"""Readers' code beside the package's: each trial gives cases as (what, the reader's result, the package's).

The notebooks' exercises name a trial and show nothing of it, so that the answer does not stand below the question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trex2_mini.evaluation import tiles
from trex2_mini.evaluation.metrics import coco_ap
from trex2_mini.layers.deformable_attention import levelwise_grid_sample
from trex2_mini.losses.alignment import alignment_loss
from trex2_mini.losses.matcher import match
from trex2_mini.model.denoising import Denoising, DenoisingQueries
from trex2_mini.model.image_encoder import IMAGENET_MEAN, IMAGENET_STD, ImageEncoder, ImageFeatures
from trex2_mini.model.text_prompt import TextPromptEncoder
from trex2_mini.model.trex2 import TRex2
from trex2_mini.model.visual_prompt import PromptBlock
from trex2_mini.reproduction import ablations

Case = tuple[str, Any, Any]


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _boxes(*shape: int, generator: torch.Generator) -> Tensor:
    """Boxes cxcywh inside 0..1."""
    return torch.rand(*shape, 4, generator=generator) * 0.5 + 0.2


def matching(own: Callable) -> Iterator[Case]:
    """02: own(logits, boxes, labels, truth) -> per image (queries, objects)."""
    cases = {"two images": (3, 5), "more objects than queries": (14, 2), "an image without objects": (0, 4)}
    for seed, (what, counts) in enumerate(cases.items()):
        generator = _random(seed)
        logits, boxes = torch.randn(2, 9, 6, generator=generator), _boxes(2, 9, generator=generator)
        labels = [torch.randint(6, (n,), generator=generator) for n in counts]
        truth = [_boxes(n, generator=generator) for n in counts]
        both = own(logits, boxes, labels, truth), match(logits, boxes, labels, truth, 2, 5, 2)
        own_pairs, pairs = ([q[t.argsort()] for q, t in images] for images in both)  # the query of each object
        yield what, own_pairs, pairs


def deformable_sum(own: Callable) -> Iterator[Case]:
    """03: own(value, shapes, locations, weights) -> [B, Q, H * d]."""
    for what, shapes, reach in (("one level", [(3, 4)], 1.0), ("three levels, some points outside",
                                                               [(9, 12), (5, 6), (3, 2)], 1.4)):  # fmt: skip
        generator, levels = _random(len(shapes)), len(shapes)
        value = torch.randn(2, sum(h * w for h, w in shapes), 4, 8, generator=generator)
        where = torch.rand(2, 7, 4, levels, 3, 2, generator=generator) * reach - (reach - 1) / 2
        weights = torch.rand(2, 7, 4, levels, 3, generator=generator)
        yield what, own(value, shapes, where, weights), levelwise_grid_sample(value, shapes, where, weights)


@torch.no_grad()
def image_encoder(own: nn.Module, encoder: ImageEncoder) -> Iterator[Case]:
    """04: own(maps of the backbone) -> tokens [B, N, D], for images without padding."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    for height, width in ((64, 64), (96, 160)):
        images = torch.rand(2, 3, height, width, generator=_random(width))
        maps = encoder.backbone((images - mean) / std)
        yield f"{height} x {width}", own(maps), encoder(list(images)).tokens


@torch.no_grad()
def prompt_block(own: nn.Module, block: PromptBlock, features: ImageFeatures) -> Iterator[Case]:
    """05: own(queries [C, K + 1, D], reference [C, K + 1, 4], absent [C, K + 1], features)."""
    dim = features.tokens.shape[-1]
    for what, counts in (("no prompt absent", (3, 3)), ("categories of 1, 4 and 2 boxes", (1, 4, 2))):
        generator, places = _random(len(counts)), max(counts) + 1
        queries = torch.randn(len(counts), places, dim, generator=generator)
        reference = _boxes(len(counts), places, generator=generator)
        absent = torch.arange(places) >= torch.tensor(counts)[:, None]
        absent[:, -1] = False  # the class token
        boxes = torch.zeros_like(absent)
        expected = block(queries[None], reference[None], boxes[None], absent[None], features)[0]
        found = own(queries, reference, absent, features)
        yield what, found[~absent], expected[~absent]


@torch.no_grad()
def text_encoder(own: nn.Module, encoder: TextPromptEncoder, phrases: Sequence[str]) -> Iterator[Case]:
    """06: own(tokens [C, context]) -> T [C, D]."""
    yield "a phrase", own(encoder.tokenizer(list(phrases[:1]))), encoder(phrases[:1])
    yield "phrases of several lengths", own(encoder.tokenizer(list(phrases))), encoder(phrases)


@torch.no_grad()
def box_decoder(own: nn.Module, model: TRex2, features: ImageFeatures, prompts: Tensor) -> Iterator[Case]:
    """07: own(features, prompts [C, D]) -> logits [Q, C], boxes [Q, 4]."""
    for count in (1, len(prompts)):
        expected = model.decode(features, prompts[:count])
        yield f"prompts: {count}", own(features, prompts[:count]), (expected.logits[0], expected.boxes[0])


def alignment(own: Callable) -> Iterator[Case]:
    """08: own(visual [K, D], category [K], text [K, D], negatives [N, D]): text holds one row for each prompt."""
    for what, category in (("no category twice", [4, 2, 7]), ("two bananas", [5, 1, 5, 5, 0]), ("no prompts", [])):
        generator, count = _random(len(category)), len(category)
        names, negatives, visual = (torch.randn(n, 16, generator=generator) for n in (8, 6, count))
        visual.requires_grad_()
        kind = torch.tensor(category, dtype=torch.long)
        distinct, column = kind.unique(return_inverse=True)
        expected = alignment_loss(visual, torch.cat([names[distinct], negatives]), column)
        found = own(visual, kind, names[kind], negatives)
        yield what, found, expected
        slopes = [torch.autograd.grad(loss, visual, retain_graph=True)[0] for loss in (found, expected)]
        yield f"{what}, the gradient", *slopes


def denoising(own: Callable) -> Iterator[Case]:
    """09: own(boxes [n, 4], groups, noise, amount [M, 4], sign [M, 4], total) -> anchors [M, 4], forbidden."""
    for count, groups, noise in ((1, 1, 0.4), (3, 2, 0.4), (5, 4, 0.6)):
        boxes, made = _boxes(count, generator=_random(count)), 2 * groups * count
        generators = _random(groups), _random(groups)
        package: DenoisingQueries = Denoising(8)(
            [boxes], [torch.zeros(count, dtype=torch.long)], torch.zeros(1, 1, 8), None, made, noise, 0.0, generators[0]
        )
        torch.multinomial(torch.ones(1, 1), made, replacement=True, generator=generators[1])  # as the package draws
        torch.rand(1, made, generator=generators[1])
        amount = torch.rand(1, made, 4, generator=generators[1])[0]
        sign = torch.randint(0, 2, (1, made, 4), generator=generators[1])[0] * 2 - 1
        expected = package.anchors[0], package.attention_mask(made + 6)
        anchors, forbidden = own(boxes, groups, noise, amount, sign, made + 6)
        # the package keeps anchors a little away from 0 and 1, where a logit has no end
        yield f"{count} objects, {groups} groups", (anchors.clamp(1e-3, 1 - 1e-3), forbidden), expected


def average_precision(own: Callable) -> Iterator[Case]:
    """13: own(scores [n], right bool [n], objects) -> AP of one category at one IoU threshold, in percent; beside
    pycocotools."""
    chance = np.random.default_rng(0)
    cases = {
        "the answers of section 1": ([0.9, 0.8, 0.7, 0.6], [True, False, True, False], 3),
        "scores in no order": ([0.2, 0.9, 0.5, 0.7], [True, False, True, True], 4),
        "no answer": ([], [], 2),
        "everything found, nothing wrong": ([0.3, 0.4], [True, True], 2),
        "forty answers": (chance.permutation(40) / 40, chance.random(40) < 0.6, 35),
    }
    for what, (scores, right, objects) in cases.items():
        scores, right = np.asarray(scores, float), np.asarray(right, bool)
        places = np.where(right, np.cumsum(right) - 1, objects + np.arange(len(right)))  # beyond the objects: wrong
        boxes = [[30 * place, 0, 20, 20] for place in range(objects + len(right))]
        one = {"image_id": 1, "category_id": 1}
        truth: dict = {"images": [{"id": 1, "width": 9999, "height": 30}], "categories": [{"id": 1, "name": "square"}]}
        truth["annotations"] = [
            one | {"id": n + 1, "bbox": boxes[n], "area": 400, "iscrowd": 0} for n in range(objects)
        ]
        found = [one | {"bbox": boxes[place], "score": float(score)} for place, score in zip(places, scores)]
        yield what, float(own(scores, right, objects)), coco_ap(truth, found)["AP50"]


def tiles_along(own: Callable) -> Iterator[Case]:
    """14: own(length, tile, overlap) -> a row (start, end, left, right) for each tile, in px."""
    cases = {"two tiles": (100, 60, 12), "many": (512, 96, 24), "the picture is smaller than a tile": (80, 96, 24)}
    for what, (length, tile, overlap) in cases.items():
        grid = tiles._grid((1, length), (1, tile), overlap)
        rows = [(x1, x2, left, right) for (x1, _, x2, _), (left, _, right, _) in grid]
        yield what, np.array(own(length, tile, overlap), float), np.array(rows, float)


def noise_of_runs(own: Callable) -> Iterator[Case]:
    """15: own(runs, measure) -> (standard deviation of a run, degrees of freedom)."""
    for seed, (what, missing) in enumerate({"every variant under every seed": 0, "some runs are missing": 3}.items()):
        rng = np.random.default_rng(seed)
        runs = [{"variant": v, "seed": s, "AP": {"text": rng.normal(20, 3)}} for v in "abcd" for s in range(3)]
        runs = [runs[i] for i in rng.permutation(12)[missing:]]
        yield what, tuple(map(float, own(runs, "text"))), tuple(map(float, ablations.noise(runs, "text")))
