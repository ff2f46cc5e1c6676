"""Counting by prompts (spec section 5; the paper's table 3): a picture and up to three boxes of what to count.

The boxes make one visual prompt, the detections of at least `threshold` are counted. MAE and RMSE compare the counts
with the truth. AP asks for the boxes too, where the set has them: COCO's AP of a single category, "what was asked for",
with as many detections an image as the model has queries, or more in tiles. The paper names no threshold; ours is
`detect`'s 0.3, and `best_threshold` chooses one on other pictures (a val split). In tiles (tiles.py) the picture is
looked at part by part, from nearer by.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from trex2_mini.datasets.counting import EXEMPLARS, CountingDataset, CountingSample
from trex2_mini.datasets.emoji.sets import EMOJI_SETS, make_emoji_set
from trex2_mini.detector import Detections, Detector
from trex2_mini.evaluation.metrics import coco_ap
from trex2_mini.evaluation.tiles import detect_in_tiles
from trex2_mini.evaluation.trial import Options

NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
THRESHOLDS = (0.02, 0.04, 0.06, 0.08, *(round(0.05 * step, 2) for step in range(2, 20)))


def open_counting(data: str | Path | CountingDataset, split: str = "test") -> CountingDataset:
    """emoji-count (its test split: novel categories; val: trained ones), emoji-count-lvis, or a folder of FSC147 or
    FSCD-LVIS."""
    if isinstance(data, CountingDataset):
        return data
    return CountingDataset(make_emoji_set(str(data)) if str(data) in EMOJI_SETS else Path(data), split)


def counting(detector: Detector, dataset: CountingDataset, options: Options) -> dict:
    """Count on the first `limit` pictures, by `examples` boxes each.

    Returns:
        MAE, RMSE, bias (mean of count minus truth), in objects a picture; AP, AP50, AP75 (None without boxes);
        MAE_constant, of always answering the median of these very counts; MAE_by_threshold, to see what the choice of
        one is worth; mean_count, exemplars, threshold, tiles, images, prompts, categories; per_category {name: MAE}.

    Raises ValueError for a threshold outside 0..1, or a number of exemplars that is not 1 to 3, or tiles of 1 side or
    less (0 is none).
    """
    threshold, exemplars, tiles = options.threshold, options.examples, options.tiles
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in 0..1, got {threshold}")
    samples, found = [], []
    for index in tqdm(range(len(dataset))[: options.limit], "counting", disable=not options.progress):
        if (sample := dataset.read(index)) is None:
            continue
        found.append(count_one(detector, sample, exemplars, tiles))
        samples.append(replace(sample, image=NO_PIXELS))  # FSC147's pictures would take most of a gigabyte
    if not samples:
        raise ValueError(f"nothing to count: {dataset.folder} has no picture in this split")
    counts = [sample.count for sample in samples]
    by_name: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        by_name.setdefault(sample.name, []).append(place)
    answers = counted(found, threshold)
    errors = np.abs(answers - counts)
    return {
        **count_errors(answers, counts),
        **_ap(samples, found),
        "MAE_constant": count_errors([float(np.median(counts))] * len(counts), counts)["MAE"],
        "MAE_by_threshold": {str(t): count_errors(counted(found, t), counts)["MAE"] for t in THRESHOLDS},
        "mean_count": float(np.mean(counts)),
        "exemplars": exemplars,
        "threshold": threshold,
        "tiles": tiles,
        "images": len(samples),
        "prompts": len(samples),
        "categories": len(by_name),
        "per_category": {name: float(errors[own].mean()) for name, own in sorted(by_name.items())},
    }


def count_one(detector: Detector, sample: CountingSample, exemplars: int = EXEMPLARS, tiles: float = 0.0) -> Detections:
    """All answers (score 0 and up) to a prompt made of the sample's first `exemplars` boxes together; tiles: see
    `counting`."""
    if not 1 <= exemplars <= EXEMPLARS:
        raise ValueError(f"expected 1 to {EXEMPLARS} exemplars, got {exemplars}")
    if tiles:
        return detect_in_tiles(detector, sample.image, sample.exemplars[:exemplars], sample.name, tiles)
    most = detector.config.model.num_queries
    shown = {sample.name: sample.exemplars[:exemplars]}
    return detector.detect(sample.image, boxes=shown, score_threshold=0.0, max_detections=most)


def counted(found: Sequence[Detections], threshold: float) -> np.ndarray:
    """How many detections of each picture have a score of at least `threshold`; int [images]."""
    return np.array([int((own.scores >= threshold).sum()) for own in found])


def count_errors(answers: Sequence[float], counts: Sequence[int]) -> dict:
    """MAE, RMSE and bias (positive: too many counted), in objects a picture."""
    difference = np.asarray(answers, dtype=float) - np.asarray(counts, dtype=float)
    mae, rmse = np.abs(difference).mean(), np.sqrt((difference**2).mean())
    return {"MAE": float(mae), "RMSE": float(rmse), "bias": float(difference.mean())}


def best_threshold(found: Sequence[Detections], counts: Sequence[int]) -> float:
    """The one of THRESHOLDS with the smallest MAE; to be used on other pictures than those it was chosen on."""
    return min(THRESHOLDS, key=lambda threshold: count_errors(counted(found, threshold), counts)["MAE"])


def _ap(samples: list[CountingSample], found: list[Detections]) -> dict:
    """AP over all pictures of the one category "what was asked for"."""
    if any(sample.boxes is None for sample in samples):
        return {"AP": None, "AP50": None, "AP75": None}
    truth = {"images": [{"id": i} for i in range(len(samples))], "categories": [{"id": 1, "name": "object"}]}
    truth["annotations"] = [
        {"image_id": i, "category_id": 1, "bbox": _xywh(box)}
        for i, sample in enumerate(samples)
        for box in sample.boxes
    ]
    detections = [
        {"image_id": i, "category_id": 1, "bbox": _xywh(box), "score": float(score)}
        for i, own in enumerate(found)
        for box, score in zip(own.boxes, own.scores)
    ]
    scores = coco_ap(truth, detections, max_detections=max((len(own) for own in found), default=1) or 1)
    return {key: scores[key] for key in ("AP", "AP50", "AP75")}


def _xywh(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1, y2 - y1]
