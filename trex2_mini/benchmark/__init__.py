"""`python -m trex2_mini benchmark`: how fast, as ratios against a named reference that is measured in the same run.

What is compared runs in turn (one round of everything, then the next round) after a warm-up; a figure is the median of
its rounds. The references are `transformers`' Deformable DETR and Grounding DINO (random weights: speed does not depend
on them), plain pycocotools, this package without the step in question, or a limit. `measure.py` says how time and
memory are taken.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version

import pandas as pd
import torch
from tqdm import tqdm

from trex2_mini.benchmark import attention, evaluation, index, interaction, model, onnx, soak, training
from trex2_mini.benchmark.measure import processor
from trex2_mini.benchmark.model import PAPER_TABLE_7
from trex2_mini.evaluation.provenance import describe_code

__all__ = ["BENCHMARKS", "PAPER_TABLE_7", "as_table", "run"]
BENCHMARKS: dict[str, Callable[..., Iterator[dict]]] = {
    module.__name__.rpartition(".")[2]: module.rows
    for module in (attention, model, training, evaluation, interaction, onnx, soak, index)
}


def run(
    name: str,
    quick: bool = False,
    repeats: int | None = None,
    presets: Sequence[str] | None = None,
    images: int | None = None,
) -> dict:
    """One of BENCHMARKS.

    quick: small sizes, for a look at what it prints. repeats: rounds, default 5 (quick: 2). presets: those that "model"
    measures, default all three (quick: nano). images: of "evaluation", measure AP alone, of so many images, once.

    Returns {"benchmark", "quick", "rounds", "processor", "threads", "versions", "commit", "seconds", "rows", "notes"}.
    A row is {"what", "ours", "value", "reference", "reference_value", "unit", "ratio", "goal"}: a ratio > 1 says that
    ours is better (faster, smaller) by that factor; None where there is no reference of the same run. The notes say
    what was left out. Raises ValueError for an unknown name or preset, and where the package of a reference is missing.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}")
    if presets and name != "model":
        raise ValueError(f"presets belong to the benchmark 'model', not to {name!r}")
    if images is not None and (name != "evaluation" or images < 1):
        raise ValueError(f"images, at least 1, belong to the benchmark 'evaluation', got {images} for {name!r}")
    repeats = 1 if images else (2 if quick else 5) if repeats is None else repeats
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    start = time.perf_counter()
    torch.manual_seed(0)
    lines = BENCHMARKS[name](
        quick, repeats, **({"presets": presets} if presets else {"images": images} if images else {})
    )
    lines = list(tqdm(lines, desc=f"benchmark {name}", unit="row", leave=False, disable=None))
    code = describe_code()
    if importlib.util.find_spec("transformers"):
        code["versions"]["transformers"] = version("transformers")
    return {
        "benchmark": name,
        "quick": quick,
        "rounds": repeats,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        **code,
        "seconds": round(time.perf_counter() - start, 1),
        "rows": [line for line in lines if "note" not in line],
        "notes": [line["note"] for line in lines if "note" in line],
    }


def as_table(result: dict) -> str:
    """A result of `run` as aligned text."""
    columns = ["what", "ours", "value", "reference", "reference_value", "ratio", "goal"]
    table = pd.DataFrame(result["rows"], columns=[*columns, "unit"])
    for column in ("value", "reference_value"):
        table[column] = [_number(value, unit) for value, unit in zip(table[column], table["unit"])]
    table["ratio"] = ["" if pd.isna(ratio) else f"{ratio:.2f}x" for ratio in table["ratio"]]
    table["goal"] = [f">= {goal:g}" if goal else "" for goal in table["goal"].fillna(0)]
    sides = ("left", "left", "right", "left", "right", "right", "left")
    lines = table[columns].to_markdown(
        index=False, tablefmt="plain", headers=["what", "ours", "", "reference", "", "ratio", "goal"], colalign=sides,
        disable_numparse=True,
    )  # fmt: skip
    rounds = f"median of {result['rounds']} rounds" if result["rounds"] > 1 else "one round"
    head = f"benchmark {result['benchmark']}{' (quick)' if result['quick'] else ''}: {rounds}"
    head += f", {result['threads']} threads, {result['processor']}, {result['seconds']:.0f} s in all"
    return "\n".join([head, lines, *(f"note: {note}" for note in result["notes"])])


def _number(value: float | None, unit: str) -> str:
    if pd.isna(value):
        return ""
    return f"{1000 * value:,.1f} ms" if unit == "s" and value < 1 else f"{value:,.2f} {unit}"
