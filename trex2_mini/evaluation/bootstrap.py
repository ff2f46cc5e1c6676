"""How much an AP owes to the images that happen to be in the set: intervals by resampling the images with replacement.

The detections are matched with the ground truth once, by pycocotools. A resample then only counts each image so many
times as it was drawn: AP is accumulated again with these weights, which is exactly the AP of the set in which the
images are repeated (and for weights of one, the AP itself). Images that belong together (the frames of a clip) are
drawn together.
"""

from collections.abc import Sequence

import numpy as np
from pycocotools.cocoeval import Params

from trex2_mini.evaluation.lvis import PER_IMAGE, match_looked_for
from trex2_mini.evaluation.metrics import Matches, among, match
from trex2_mini.evaluation.packed import Packed
from trex2_mini.evaluation.trial import Answers

INTERVAL = (0.025, 0.975)  # quantiles: 95 %
LARGEST = 2e7  # numbers held at a time: so many resamples are done at once as fit


class Matched:
    """Answers, matched with their ground truth: AP for any number of times that each image counts."""

    def __init__(self, answers: Answers):
        self.image_ids, federated = list(answers.image_ids), answers.federated
        images, found = set(self.image_ids), Packed.of(answers.detections)
        truth = among(answers.truth["annotations"], images, set(answers.category_ids))
        with_truth = {a["category_id"] for a in truth if federated or not a.get("iscrowd", 0)}
        if not with_truth:
            raise ValueError("nothing to find: the chosen images hold no object of the chosen categories")
        truth = [a for a in truth if a["category_id"] in with_truth]
        if federated:
            best = found.best("image_id", PER_IMAGE).among(images, with_truth)
            matched = match_looked_for(answers.truth, truth, best, images)
        else:
            matched = match(truth, found.among(images, with_truth), images, 100)
        self.recalls = Params("bbox").recThrs
        self.categories = [self._columns(matched[category, 0]) for category in sorted(with_truth)]

    def ap(self, weights: np.ndarray) -> np.ndarray:
        """weights [R, images], how many times each image counts -> AP in percent [R]; NaN where nothing is
        to be found."""
        total, number = np.zeros(len(weights)), np.zeros(len(weights))
        for owner, right, wrong, objects in self.categories:
            step = max(1, int(LARGEST // max(right.size, 1)))
            for start in range(0, len(weights), step):
                part = slice(start, start + step)
                some = weights[part] @ objects  # objects to find, [R]
                own = self._precision(weights[part][:, owner], right, wrong, some)
                total[part] += np.where(some > 0, own, 0)
                number[part] += some > 0
        return np.where(number > 0, 100 * total / np.maximum(number, 1), np.nan)

    def _precision(self, here: np.ndarray, right: np.ndarray, wrong: np.ndarray, some: np.ndarray) -> np.ndarray:
        """A category's mean precision [R] over IoU thresholds and COCO's 101 recalls; `here` [R, n]: how often each
        detection counts."""
        useful = right.any(0)  # only where a hit is added can precision be the best from there on
        hits = np.cumsum(here[:, None] * right, -1)[..., useful]  # (R, 10, useful detections)
        misses = np.cumsum(here[:, None] * wrong, -1)[..., useful]
        precision = hits / np.maximum(hits + misses, np.spacing(1))
        precision = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
        recall = hits / np.maximum(some, 1)[:, None, None]
        reached = np.searchsorted(self.recalls, recall, side="right")  # how many of the recalls are reached
        return (precision * np.diff(reached, axis=-1, prepend=0)).sum(-1).mean(-1) / len(self.recalls)

    def _columns(self, own: Matches) -> tuple[np.ndarray, ...]:
        """A category's detections, best first: the place of the image of each [n], whether it is right and wrong
        [10, n]; and objects an image [images]."""
        ids = np.array(self.image_ids, dtype=np.int64)
        sorter, order = np.argsort(ids), np.argsort(-own.scores, kind="mergesort")
        owner, holder = (sorter[np.searchsorted(ids, some, sorter=sorter)] for some in (own.images, own.objects))
        return owner[order], own.right[:, order], own.wrong[:, order], np.bincount(holder, minlength=len(ids)) * 1.0


def resampled(answers: Answers, resamples: int, seed: int) -> np.ndarray:
    """How many times each image counts, [resamples, images]: as many images (or groups of them) as there are, drawn
    with replacement."""
    if resamples < 1:
        raise ValueError(f"expected resamples >= 1, got {resamples}")
    groups = answers.groups or {}
    keys = [("group", groups[i]) if i in groups else ("image", i) for i in answers.image_ids]
    known = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    drawn = np.random.default_rng(seed).multinomial(len(known), np.full(len(known), 1 / len(known)), size=resamples)
    return drawn[:, [known[key] for key in keys]].astype(float)


def bootstrap(answers: Answers, resamples: int = 1000, seed: int = 0) -> dict:
    """A 95 % interval of AP over images: {"AP", "low", "high", "resamples"}, in percent. Raises ValueError for a number
    under 1."""
    matched = Matched(answers)
    spread = matched.ap(resampled(answers, resamples, seed))
    low, high = np.nanquantile(spread, INTERVAL)
    plain = matched.ap(np.ones((1, len(answers.image_ids))))[0]
    return {"AP": float(plain), "low": float(low), "high": float(high), "resamples": resamples}


def bootstrap_difference(
    first: Answers | Sequence[Answers], second: Answers | Sequence[Answers], resamples: int = 1000, seed: int = 0
) -> dict:
    """The same for AP(first) - AP(second), both on the same resampled images: far tighter than two intervals side by
    side.

    Either may be a list of draws (answers of several seeds), whose mean AP is then compared.

    Returns {"difference", "low", "high", "above_zero", "resamples"}; above_zero is the share of resamples in which it
    is positive. Raises ValueError where the images are not the same.
    """
    groups = [[own] if isinstance(own, Answers) else list(own) for own in (first, second)]
    images = groups[0][0].image_ids
    if any(answers.image_ids != images for group in groups for answers in group):
        raise ValueError("expected answers on the same images in the same order; give both the same data and limit")
    weights = np.concatenate([np.ones((1, len(images))), resampled(groups[0][0], resamples, seed)])
    one, two = (np.mean([Matched(answers).ap(weights) for answers in group], axis=0) for group in groups)
    plain, spread = (one - two)[0], (one - two)[1:]
    low, high = np.nanquantile(spread, INTERVAL)
    above = float((spread[~np.isnan(spread)] > 0).mean())
    interval = {"difference": float(plain), "low": float(low), "high": float(high)}
    return interval | {"above_zero": above, "resamples": resamples}
