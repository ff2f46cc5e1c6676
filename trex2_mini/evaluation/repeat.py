"""Several draws of one protocol.

Visual-G and Visual-I depend on which examples are drawn; one draw is one number out of many.
"""

from __future__ import annotations

import numpy as np

from trex2_mini.evaluation.protocols import evaluate
from trex2_mini.evaluation.trial import open_detector

NO_MEASURE = ("seconds", "threshold", "tiles")


def repeated(draws: int, checkpoint, data, protocol: str, categories: str = "all", *, seed: int = 0, **options) -> dict:
    """`evaluate` with the seeds seed, seed + 1, ..., the model loaded once.

    Returns what `evaluate` does, every measure being the mean over the draws; and besides draws, std {measure: standard
    deviation of a draw, n - 1 in its denominator} and by_seed {measure: one number a draw}. Of one draw, just what
    `evaluate` returns. Raises ValueError for draws under 1, else as `evaluate`.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    detector, weights = open_detector(checkpoint)
    results = [evaluate(detector, data, protocol, categories, seed=seed + k, **options) for k in range(draws)]
    first = results[0] | weights
    if draws == 1:
        return first
    measures = [key for key, value in first.items() if isinstance(value, float) and key not in NO_MEASURE]
    by_seed = {key: [result[key] for result in results] for key in measures}
    names = set().union(*(result["per_category"] for result in results))
    own = {n: [r["per_category"][n] for r in results if n in r["per_category"]] for n in sorted(names)}
    per_category = {name: float(np.mean(values)) for name, values in own.items()}
    known = {key: [value for value in values if value is not None] for key, values in by_seed.items()}
    return {
        **{key: value for key, value in first.items() if key != "per_category"},
        **{key: float(np.mean(values)) for key, values in known.items()},
        "seconds": round(sum(result["seconds"] for result in results), 1),
        "draws": draws,
        "std": {key: float(np.std(values, ddof=1)) for key, values in known.items()},
        "by_seed": by_seed,
        "per_category": per_category,
    }
