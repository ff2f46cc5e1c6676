"""Region classification (spec sections 4 and 5; the paper's table 9): what is in this box?

Every ground-truth box is a visual prompt of its own, and its V is compared, by dot product, with one vector for each
category: T of the name (the paper's protocol, "region") or the V of a bank of examples (ours, "region-visual"). Crowds
are left out.
"""

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from trex2_mini.datasets.sample import normalized_boxes
from trex2_mini.evaluation.bank import NO_POINTS
from trex2_mini.evaluation.trial import Trial
from trex2_mini.model.visual_prompt import RegionPrompts


@torch.inference_mode()
def region_ranks(trial: Trial, labels: list[int], prompts: Tensor) -> list[dict]:
    """For each ground-truth box of one of `labels`: {"image_id", "label", "rank"}.

    prompts [C, D], one for each of `labels`. rank: how many of the other categories are at least as near as the true
    one (0: it is the answer).
    """
    column = {label: place for place, label in enumerate(labels)}
    prompts, rows = prompts.to(trial.detector.device), []
    for samples, features in trial.batches():
        kept = [np.isin(sample.labels, labels) for sample in samples]
        if not any(own.any() for own in kept):
            continue
        boxes = [normalized_boxes(sample)[torch.from_numpy(own)] for sample, own in zip(samples, kept)]
        regions = [[(box[None], NO_POINTS) for box in image] for image in boxes]
        vectors = trial.detector.model.encode_visual(features, RegionPrompts.from_lists(regions, trial.detector.device))
        for sample, own, vector in zip(samples, kept, vectors):
            truth = sample.labels[own]
            near = (vector[: len(truth)] @ prompts.T).cpu()  # (boxes, C)
            true = near.gather(
                1, torch.tensor([[column[label]] for label in truth.tolist()], dtype=torch.int64).reshape(-1, 1)
            )
            ranks = (near >= true).sum(1) - 1
            rows += [
                {"image_id": sample.image_id, "label": label, "rank": rank}
                for label, rank in zip(truth.tolist(), ranks.tolist())
            ]
    return trial.together(rows)


def region_scores(rows: list[dict], names: list[str]) -> dict:
    """Accuracy in percent of the rows of `region_ranks`.

    Returns:
        top1, top5 over all boxes; top1_of_categories, the mean over categories (one box of a rare one counts for more);
        most_frequent, the top1 of always answering the commonest category; boxes; per_category {name: top1}.

    Raises ValueError where there is no box.
    """
    if not rows:
        raise ValueError("nothing to classify: the chosen images hold no box of the chosen categories")
    ranks, counts = np.array([row["rank"] for row in rows]), Counter(row["label"] for row in rows)
    own = {label: np.array([row["rank"] == 0 for row in rows if row["label"] == label]) for label in sorted(counts)}
    per_category = {names[label]: 100 * float(right.mean()) for label, right in own.items()}
    return {
        "top1": 100 * float((ranks == 0).mean()),
        "top5": 100 * float((ranks < 5).mean()),
        "top1_of_categories": float(np.mean(list(per_category.values()))),
        "most_frequent": 100 * max(counts.values()) / len(rows),
        "boxes": len(rows),
        "per_category": per_category,
    }
