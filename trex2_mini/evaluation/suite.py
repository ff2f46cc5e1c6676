"""All protocols over a suite of small sets, with mean and median: what the paper does with ODinW's 35 sets.

    python -m trex2_mini suite photo-wild --checkpoint nano-photo

Every set is measured by `together`, with the examples of its own other split. AP depends on the set's domain far
more than on the draws, so the median stands beside the mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.odinw import RF100_SETS
from trex2_mini.datasets.registry import open_dataset, reference_of, suites
from trex2_mini.detector import Detector
from trex2_mini.evaluation.baselines import BASELINES
from trex2_mini.evaluation.together import together
from trex2_mini.evaluation.trial import open_detector
from trex2_mini.paths import data_root

ROWS = (
    *("text", "visual-g", "mixed", "visual-i", "points", "echo"),
    *("visual-i-others", "points-others", "template-others", "features-others"),
)


def present(
    sets: Sequence[str], reference: Mapping[str, str]
) -> tuple[dict[str, tuple[CocoDataset, CocoDataset]], dict[str, str]]:
    """Those of `sets` that are here, {name: (set, where its examples come from)}, and of the others {name: why not}.

    reference: {set: the set of its examples}; of those not named `reference_of`.
    """
    here, absent = {}, {}
    for name in sets:
        try:
            here[name] = open_dataset(name), open_dataset(reference.get(name) or reference_of(name))
        except FileNotFoundError as error:
            absent[name] = str(error)
    return here, absent


def measure_suite(
    checkpoint: str | Path | Detector,
    suite: str,
    *,
    most: int | None = None,
    examples: int = 16,
    draws: int = 3,
    limit: int | None = None,
    seed: int = 0,
    baselines: Sequence[str] = tuple(BASELINES),
    progress: bool = True,
) -> dict:
    """Measure a detector on every set of a suite.

    Args:
        checkpoint, examples, draws, limit (of each set), seed, baselines: as in `together`.
        most: only the first so many of its sets.
        suite: a key of `suites()`: "photo-wild", "emoji-wild", "odinw35" or "rf100" (their sets that are there).

    Returns:
        {"suite", "sets": {set: what `Together.measured` says},
        "AP": {protocol: {set: AP, ..., "mean": AP, "median": AP}} in percent,
        "about": {set: where the numbers come from}}.

    Raises:
        ValueError: there is no such suite. FileNotFoundError: none of its sets is here.
    """
    known = suites()
    if suite not in known:
        raise ValueError(f"unknown suite {suite!r}; expected one of {', '.join(known)}")
    if not known[suite]:
        raise FileNotFoundError(
            f"no set of {suite} lies under {data_root() / suite}; data/README.md says where to get them"
        )
    detector, weights = open_detector(checkpoint)
    options = {"examples": examples, "draws": draws, "limit": limit, "seed": seed, "baselines": baselines}
    options["progress"] = progress
    measured, about = {}, {}
    for data, reference in list(known[suite].items())[:most]:
        run = together(detector, data, reference, **options)
        measured[data], about[data] = run.measured(), run.about | weights
    table = {}
    for protocol in ROWS:
        if all(protocol in own for own in measured.values()):
            aps = {data: own[protocol]["AP"] for data, own in measured.items()}
            values = list(aps.values())
            table[protocol] = aps | {"mean": float(np.mean(values)), "median": float(np.median(values))}
    return {"suite": suite, "sets": measured, "AP": table, "about": about}


def as_table(result: dict) -> pd.DataFrame:
    """A row a protocol, a column a set, then mean and median; AP in percent."""
    table = pd.DataFrame(result["AP"]).T.rename_axis("AP").reset_index()
    return table.rename(columns=lambda name: re.sub(rf"^{result['suite']}[-/]|/(val|test)$", "", name))


def missing(result: dict) -> int:
    """How many of a suite's sets are not here."""
    return max(0, {"odinw35": 35, "rf100": RF100_SETS}.get(result["suite"], 0) - len(result["sets"]))
