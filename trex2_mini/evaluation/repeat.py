"""Several draws of one protocol.

Visual-G and Visual-I depend on which examples are drawn; one draw is one number out of many.
"""

from trex2_mini.evaluation.protocols import evaluate
from trex2_mini.evaluation.together import averaged
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
    measured = [{key: value for key, value in result.items() if key not in NO_MEASURE} for result in results]
    means = averaged(measured)
    return {
        **{key: value for key, value in first.items() if key != "per_category"},
        "seconds": round(sum(result["seconds"] for result in results), 1),
        "by_seed": {key: [result[key] for result in results] for key in means["std"]},
        **means,
    }
