"""The exercises' answers. They are checked here by number, so that a notebook does not show them below the question."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from IPython.display import Markdown, display
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from trex2_mini.config import TrainConfig, preset
from trex2_mini.evaluation import tiles
from trex2_mini.evaluation.bootstrap import Matched, bootstrap_difference
from trex2_mini.evaluation.counting import best_threshold, count_errors, counted
from trex2_mini.layers import deformable_attention
from trex2_mini.losses.alignment import alignment_loss
from trex2_mini.losses.matcher import match
from trex2_mini.model import image_encoder
from trex2_mini.model.box_decoder import BoxDecoder
from trex2_mini.model.denoising import DenoisingQueries
from trex2_mini.model.text_prompt import TextPromptEncoder
from trex2_mini.model.visual_prompt import PromptBlock
from trex2_mini.reproduction import ablations
from trex2_mini.teaching import trials
from trex2_mini.training.trainer import learning_rate_factor


def near(answer: Any, expected: Any, tolerance: float) -> bool:
    return bool(np.allclose(answer, expected, atol=tolerance, rtol=0))


def cheapest(answer: Sequence[int], cost: np.ndarray) -> bool:
    """Whether `answer` gives each column another row, and the sum is the least."""
    rows, columns = linear_sum_assignment(cost)
    own = cost[list(answer), range(cost.shape[1])].sum()
    return len(set(answer)) == cost.shape[1] and near(own, cost[rows, columns].sum(), 1e-9)


def sign_changes(answer: float, difference: Callable[[float], float]) -> bool:
    return difference(answer - 0.1) * difference(answer + 0.1) < 0


def imbalance(logit: float) -> float:
    """Focal loss of 8 yeses minus that of the other questions of 100 queries about 110 names, all logits equal."""
    yes, no = sigmoid_focal_loss(torch.full((2,), float(logit)), torch.tensor([1.0, 0.0]), 0.25, 2.0).tolist()
    return 8 * yes - (100 * 110 - 8) * no


def agreement(rows: Tensor) -> float:
    """Mean cosine of rows [n, D] with their mean."""
    return torch.cosine_similarity(rows, rows.mean(0), -1).mean().item()


def largest_stranger(matrix: Tensor, names: Sequence[str]) -> tuple[str, str]:
    """Names of the row and the column of the largest cosine off the diagonal."""
    off = matrix[: len(names), : len(names)].clone().fill_diagonal_(-2)
    row, column = divmod(int(off.argmax()), len(names))
    return names[row], names[column]


def flattery(found: Sequence, counts: Sequence[int], chosen: float) -> float:
    """By how much the MAE at the best threshold of these pictures looks better than at the chosen one."""
    chosen_elsewhere, own = (count_errors(counted(found, t), counts)["MAE"]
                             for t in (chosen, best_threshold(found, counts)))  # fmt: skip
    return chosen_elsewhere - own


def strictest(qualities: dict[float, dict]) -> tuple[float, int]:
    """The bar of the greatest precision, and how many right pairs it costs against the lowest bar."""
    best = max(qualities, key=lambda bar: qualities[bar]["precision"])
    return best, qualities[min(qualities)]["right"] - qualities[best]["right"]


# number: (whether it is right, by the answer and what the notebook gives along; a hint)
ANSWERS: dict[str, tuple[Callable[..., bool], str]] = {
    "00.1": (lambda a, found, prompts: found(a) == max(map(found, range(prompts))),
             "another prompt finds more: call `coins_found` with each number"),
    "00.2": (lambda a, together, parts: a is near(together, parts, 1e-3),
             "look at the largest number in the difference of the two embeddings"),
    "00.3": (lambda a, f1, scores: f1(a) >= max(map(f1, scores)) - 1e-9, "a better one exists"),
    "01.1": (lambda a: near(a, [0.3, 0.5, 0.3, 0.2], 1e-4), "the centre is the corner plus half the size"),
    "01.2": (lambda a, owners, frequent: near(a, np.mean([own in frequent for own in owners]), 0.005),
             "count lvis['annotations'] by the frequency of their category"),
    "01.3": (lambda a, images, scenes: abs(a / (100 * scenes / np.median(images)) - 1) < 0.1,
             "counts grow in proportion to the scenes"),
    "02.1": (lambda a: near(a, -0.5, 0.01), "IoU is 0; what is the hull, and how much of it is wasted?"),
    "02.2": (cheapest, "try all 24, or subtract column minima"),
    "02.3": (lambda a: near(a, 0.3 / 1.7, 2e-3), "the intersection is 1 - s, the union 1 + s"),
    "03.1": (lambda a: near(a, (0.55, 0.2), 1e-4), "the unit is half the box over K"),
    "03.2": (lambda a: a == 257 * 384, "one linear layer with 2 M L K outputs, one with M L K"),
    "03.3": (lambda a: a == 17, "N² against N · L · K; the heads cancel"),
    "04.1": (lambda a: a == 28 * 40 + 14 * 20 + 7 * 10, "first round both sides up to multiples of 32"),
    "04.2": (lambda a: near(a, (0.9375, 0.625), 1e-4), "its own pixels over those of the padded map, x first"),
    "04.3": (lambda a: near(a, 0.5, 0.01), "it is cos(2π · distance)"),
    "05.1": (lambda a: near(a, 0.8, 1e-6), "what is the noise, measured in lengths of μ, if the first cosine is 0.5?"),
    "05.2": (lambda a: near(a, 0.2, 1e-3),
             "a point's unit is a cell; a box's unit is half its side over the number of points"),
    "06.1": (lambda a: a == 15, "count the lower triangle with its diagonal"),
    "06.2": (lambda a: near(a, math.e / (math.e + 1), 0.006), "the ratio of the two weights is e"),
    "07.1": (lambda a: near(a, 1 / (1 + math.exp(-1)), 0.006), "the logit of 0.5 is 0"),
    "07.2": (lambda a: near(a / math.sqrt(128), 4, 0.01), "the logit must be 0"),
    "07.3": (lambda a: a is False, "look for T in decoder_by_hand"),
    "08.1": (lambda a: near(a, math.log(100), 1e-3), "every name gets the same share"),
    "08.2": (lambda a: near(a, math.log(1 + 50 * math.exp(-4)), 1e-3),
             "the similarities are 16 / 4 once and 0 fifty times"),
    "08.3": (lambda a, matrix, names: tuple(a) == largest_stranger(matrix, names),
             "take the block of the trained names and hide its diagonal"),
    "09.1": (lambda a: a == 28, "whole groups only; a group is 7 positives and 7 negatives"),
    "09.2": (lambda a: a == 192, "who may not look at a given denoising query? Everybody outside of its group"),
    "09.3": (lambda a: sign_changes(a, imbalance), "their difference changes its sign; halve an interval"),
    "10.1": (lambda a, runs: a == sum(size * (end - start) for size, start, end in runs),
             "for each run its steps times its batch size, then the sum; all is printed above"),
    "10.2": (lambda a: near(a, learning_rate_factor(3500, dataclasses.replace(TrainConfig(), steps=4000)), 1e-6),
             "it falls linearly from 1 at step 3,000; 500 of 1,000 steps are left"),
    "10.3": (lambda a, log, key: a == next(line["step"] for line in log if line[key] <= log[0][key] / 2),
             "walk through `curve`; every line is a dictionary"),
    "10.4": (lambda a, sizes: abs(a / (12e-6 * sum(sizes)) - 1) < 0.05,
             "three numbers of four bytes for each parameter"),
    "11.1": (lambda a: a == 3, "all boxes of one category on one image make one V"),
    "11.2": (lambda a: near(a, math.sqrt(0.5), 0.01), "draw both as sides of a square; the mean lies on its diagonal"),
    "11.3": (lambda a, names, labels, rows: a == names[min(labels, key=lambda own: agreement(rows[own]))],
             "loop over labels; F.cosine_similarity(rows, mean, -1).mean()"),
    "12.1": (lambda a: near(a, 1 / (1 + 2 / 3 * math.exp(0.6)), 0.006), "back to the logit, subtract, forward again"),
    "12.2": (lambda a: tuple(a) == (1, 5), "what changes the question? deciding and filtering do not"),
    "12.3": (lambda a: near(a, 0.1, 1e-9),
             "a larger beta takes more from every query that is like the negative, the right ones too"),
    "13.1": (lambda a: near(a, 100 * (34 + 33 * 2 / 3 + 34 * 3 / 5) / 101, 0.1),
             "right, wrong, right, wrong, right; at each recall the best precision from there on"),
    "13.2": (lambda a: near(a, 100 * 3 / 8, 1),
             "recall ends where the prompted objects end; until there precision is 1"),
    "13.3": (lambda a: near(a, (100 * (51 + 50 * 2 / 3) / 101, 100), 0.3),
             "right, wrong, right, wrong; then right, right, wrong, wrong"),
    "14.1": (lambda a: near(a, np.mean([max(0, n - 900) for n in (200, 800, 1200, 3701)]), 0.01),
             "no more boxes than queries; two of the four pictures can be counted without an error"),
    "14.2": (lambda a: a == len(tiles.tile_starts(512, 96, 24)) * len(tiles.tile_starts(384, 96, 24)),
             "ceil((length - overlap) / (tile - overlap)) along each side"),
    "14.3": (lambda a, found, counts, chosen: near(a, flattery(found, counts, chosen), 0.1),
             "two MAE, one for each threshold"),
    "15.1": (lambda a: near(a, (11 / 12) ** 12, 1e-3), "each of 12 draws must miss it"),
    "15.2": (lambda a, own: near(a, bootstrap_difference(own["visual-i"], own["echo"], 200, seed=0)["low"], 0.01),
             "the answers of both protocols, 200 resamples, seed=0; then its \"low\""),
    "15.3": (lambda a: near(a, 4.303 / math.sqrt(3), 0.01),
             "t times the standard deviation (n - 1), divided by the root of n"),
    "16.1": (lambda a: near(a, (2 / 4, 2 / 3), 1e-2),
             "an object is found once, and a cat where a dog stands is no dog"),
    "16.2": (lambda a, qualities: tuple(a) == strictest(qualities),
             "call judge(0.05, bar) for each bar, and read precision and right"),
    "16.3": (lambda a: near(a, 100 * (1 - np.prod([(400 - i) / 400 for i in range(5)])), 0.01),
             "the birthday problem, with 400 days and 5 guests; in per cent"),
    "17.1": (lambda a, parts: near(a, sum(parts.values()) / (parts["visual prompts"] + parts["decoder"]), 0.05),
             "all five parts over the two that run again"),
    "17.2": (lambda a, *sizes: near(a, 900 * math.prod(sizes) * 4 / 2**20, 0.5), "replace Q in section 2"),
    "17.3": (lambda a: a == 3, "k full passes against one full pass and k - 1 further prompts"),
    "18.1": (lambda a: near(a, 3, 1e-6), "1/2 of 1/1 against 1/2 of 1/3"),
    "18.2": (lambda a: a == 5, "steps 6 to 10 are done, and the state of step 10 has not got its name yet"),
    "18.3": (lambda a: a == int(np.lcm(preset("swin_l").train.parts, 24)),
             "the least common multiple of parts and processes, which 96 must be a multiple of"),
    "18.4": (lambda a, pictures: abs(a / (pictures / 5 / 3600) - 1) < 0.02, "all pictures, by pictures an hour"),
}  # fmt: skip

# number: (trial, what of the package is shown once it is solved, a hint)
CODE: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "02.4": (trials.matching, match, "one cost table for an image, rows are queries; the boxes of L1 are cxcywh"),
    "03.4": (trials.deformable_sum, deformable_attention.levelwise_grid_sample,
             "a corner outside of the map counts zero; its place in the list of tokens is row * width + column"),
    "04.4": (trials.image_encoder, image_encoder.EncoderLayer,
             "tokens are row by row; a reference is (x, y); one level embedding for all tokens of a level"),
    "05.3": (trials.prompt_block, PromptBlock, "absent prompts are hidden as keys, before the softmax"),
    "06.3": (trials.text_encoder, TextPromptEncoder._encode, "the end token has the largest id of its row"),
    "07.4": (trials.box_decoder, BoxDecoder._select, "the anchor is added in logit space; new sines in each layer"),
    "08.4": (trials.alignment, alignment_loss, "torch.unique(category, return_inverse=True) gives each v its column"),
    "09.4": (trials.denoising, DenoisingQueries.attention_mask, "sign * (amount, plus 1 for negatives) * noise * half"),
    "13.4": (trials.average_precision, Matched._precision,
             "sort; precision and recall; best from the right; 101 recalls"),
    "14.4": (trials.tiles_along, tiles._grid,
             "evenly spread starts, rounded; neighbours meet midway between the end of one and the start of the next"),
    "15.4": (trials.noise_of_runs, ablations.noise,
             "a column for each variant and one for each seed, one row a run; np.linalg.lstsq gives the rank too"),
}  # fmt: skip


def check(number: str, answer: Any, *given: Any) -> None:
    """Say whether the answer to an exercise is right.

    Args:
        number: of the notebook and of the exercise in it, as "02.1".
        answer: None, or code that raises NotImplementedError, is not answered yet.
        given: what the notebook made that the right answer depends on.
    """
    if answer is None:
        return print("not answered yet")
    if number in ANSWERS:
        is_right, hint = ANSWERS[number]
        return print("right" if is_right(answer, *given) else f"not yet: {hint}")
    trial, package, hint = CODE[number]
    cases: list[str] = []
    try:
        for what, found, expected in trial(answer, *given):
            cases.append(what)
            assert_close(found, expected, rtol=1e-4, atol=1e-4)
    except NotImplementedError:
        return print("not answered yet")
    except AssertionError as difference:
        return print(f"not yet, on the case {cases[-1]!r}: {hint}\n{difference}")
    print(f"right: equal to the package's on {len(cases)} cases. The package writes it like this:")
    display(Markdown(f"```python\n{inspect.cleandoc(inspect.getsource(package))}\n```"))
