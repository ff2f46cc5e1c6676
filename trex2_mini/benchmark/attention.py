"""Multi-scale deformable attention alone: every form of the sum against transformers' function."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from trex2_mini.benchmark.measure import interleaved, peak_memory, row, transformers
from trex2_mini.layers.deformable_attention import Shapes, compiled_sum, has_compiler, levelwise_grid_sample
from trex2_mini.layers.gather_sum import weighted_gather

PAPER_SIZE = [(100, 134), (50, 67), (25, 34), (13, 17)]  # 800x1066
CASES = {  # batch, queries (None: every token), heads, dimensions a head, levels, those goals that are set
    "encoder layer, 800x1066, D=256": (1, None, 8, 32, PAPER_SIZE, ("forward", "forward + backward")),
    "900 queries, 800x1066, D=256": (1, 900, 8, 32, PAPER_SIZE, ("forward",)),
    "nano training, 8 x 192x224, D=128": (8, None, 4, 32, [(24, 28), (12, 14), (6, 7)], ()),
}
POINTS = 4
QUICK = 5  # quick: the maps' sides divided by this
GOALS = {"weighted gather": 2.5, "compiled": 5.0}


def transformers_attention(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The reference: `transformers`' pure PyTorch function; arguments as in `levelwise_grid_sample`."""
    theirs = transformers(".models.deformable_detr.modeling_deformable_detr").MultiScaleDeformableAttention()
    starts = torch.tensor([0, *(h * w for h, w in shapes)]).cumsum(0)[:-1]
    return theirs(value, torch.tensor(shapes), shapes, starts, locations, weights, 64)


FORMS: dict[str, Callable[..., Tensor]] = {
    "transformers": transformers_attention,
    "grid_sample by level": levelwise_grid_sample,
    "weighted gather": weighted_gather,
}


def rows(quick: bool, repeats: int) -> Iterator[dict]:
    transformers()
    shrink = QUICK if quick else 1
    compiled = ["compiled"] if has_compiler() and not quick else []
    if not compiled:
        yield {"note": f"compiled: {'left out in quick runs' if quick else 'needs a C++ compiler, none was found'}"}
    for case, (*_, goals) in CASES.items():
        for way in ("forward", "forward + backward"):
            what = f"{case}{f', sides / {QUICK}' if quick else ''}, {way}"
            forms = [*FORMS, *(compiled if way == "forward" else [])]
            took = interleaved({form: attention_call(case, form, way, shrink) for form in forms}, repeats)
            for form in forms[1:]:
                goal = GOALS.get(form) if way in goals else None
                yield row(what, form, took[form], "transformers", took["transformers"], goal=goal)
            if quick:  # a fresh process a figure takes seconds
                continue
            pair = ("weighted gather", "transformers")
            ours, theirs = (peak_memory(attention_call, case, form, way, shrink) for form in pair)
            if ours and theirs:
                goal = 2.0 if goals else None
                yield row(f"{what}, peak memory", pair[0], ours.above, pair[1], theirs.above, "GiB", goal)


def attention_call(case: str, form: str, way: str, shrink: int) -> Callable[[], Any]:
    """The attention sum of a case in a form, forward or forward + backward; shrink divides the maps' sides."""
    batch, queries, heads, dim, shapes, _ = CASES[case]
    shapes = [(max(1, h // shrink), max(1, w // shrink)) for h, w in shapes]
    tokens = sum(h * w for h, w in shapes)
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, tokens, heads, dim, generator=generator)
    locations = torch.rand(batch, queries or tokens, heads, len(shapes), POINTS, 2, generator=generator)
    weights = torch.rand(batch, queries or tokens, heads, len(shapes), POINTS, generator=generator)
    function = compiled_sum() if form == "compiled" else FORMS[form]
    if way == "forward":

        def forward() -> Tensor:
            with torch.inference_mode():
                return function(value, shapes, locations, weights)

        return forward
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(value, shapes, locations, weights).sum(), leaves)

    return both
