"""LVIS average precision: federated ground truth, frequency groups, and the "fixed AP" of Dave et al. (arXiv
2102.01066).

LVIS annotates a category on some images only: on the rest a detection of it counts neither for nor against. AP_r, AP_c
and AP_f average over the categories of up to 10, up to 100 and more training images. Two ways to limit the detections,
which give different numbers:

    AP          the 300 best detections of each image (the benchmark's own rule)
    fixed AP    the 10,000 best detections of each category over the whole set, none dropped by image

Computed by faster-coco-eval. Its own limit holds for each image *and category*, so the detections are cut before they
reach it.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from trex2_mini.evaluation.metrics import among, asked_for, mean_precision, mean_precisions, numbered

FREQUENCIES = ("r", "c", "f")
PER_IMAGE, PER_CATEGORY = 300, 10_000


def lvis_ap(
    dataset_json: dict,
    detections: Sequence[dict],
    category_ids: Collection[int] | None = None,
    image_ids: Collection[int] | None = None,
    fixed: bool = False,
) -> dict:
    """LVIS AP in percent.

    Args:
        dataset_json: a parsed LVIS annotation file: images with neg_category_ids and not_exhaustive_category_ids,
        categories with frequency.
        detections: each {"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "score"}; not changed.
        category_ids: only these count; default all.
        image_ids: only these count; default all.
        fixed: fixed AP instead of the 300 best of each image.

    Returns:
        AP, AP50, AP75, AP_r, AP_c, AP_f (None for a group without any object), and per_category {name: AP} of the
        categories with ground truth.

    Raises:
        ValueError: no LVIS fields, nothing to find, or an id that the set does not have.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    images, categories = _checked(dataset_json)
    categories_asked, images_asked = asked_for(detections, categories, images, category_ids, image_ids)
    known = among(dataset_json["annotations"], images_asked, categories_asked)
    truth = [numbered(a, number) | {"iscrowd": 0} for number, a in enumerate(known, 1)]
    if not truth:
        raise ValueError("nothing to find: the chosen images hold no object of the chosen categories")
    key, count = ("category_id", PER_CATEGORY) if fixed else ("image_id", PER_IMAGE)
    best = among(best_of_each(detections, key, count), images_asked, categories_asked)
    found = [numbered(d, number) for number, d in enumerate(best, 1)]
    shared = {
        "images": [images[i] for i in sorted(images_asked)],
        "categories": [categories[c] for c in sorted(categories_asked)],
    }
    evaluation = COCOeval_faster(
        COCO(shared | {"annotations": truth}), COCO(shared | {"annotations": found}), "bbox", lvis_style=True
    )
    crowded = Counter((d["image_id"], d["category_id"]) for d in found)
    evaluation.params.maxDets = [max(crowded.values(), default=1)]  # nothing further is cut
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = 100 * np.asarray(evaluation.eval["precision"])[..., 0, 0]  # (10 IoU thresholds, recalls, categories)
    order = [categories[c] for c in evaluation.params.catIds]
    frequency = np.array([category["frequency"] for category in order])
    groups = {f"AP_{group}": mean_precision(precision[..., frequency == group]) for group in FREQUENCIES}
    return mean_precisions(precision, [category["name"] for category in order]) | groups


def best_of_each(detections: Iterable[dict], key: str, count: int) -> list[dict]:
    """The `count` detections of highest score for each value of `key`; of equal scores the earlier one."""
    groups: dict[int, list[dict]] = defaultdict(list)
    for detection in detections:
        groups[detection[key]].append(detection)
    return [d for own in groups.values() for d in sorted(own, key=lambda d: d["score"], reverse=True)[:count]]


def _checked(dataset_json: dict) -> tuple[dict[int, dict], dict[int, dict]]:
    """The images and categories by id, with what federated evaluation needs."""
    images = {image["id"]: image for image in dataset_json["images"]}
    categories = {category["id"]: category for category in dataset_json["categories"]}
    for kind, entries, fields in (
        ("images", images, ("neg_category_ids", "not_exhaustive_category_ids")),
        ("categories", categories, ("frequency",)),
    ):
        lacking = [name for name in fields if any(name not in entry for entry in entries.values())]
        if lacking:
            raise ValueError(f"not an LVIS file: its {kind} lack {', '.join(lacking)}; use coco_ap for COCO's rules")
    unknown = {category["frequency"] for category in categories.values()} - set(FREQUENCIES)
    if unknown:
        raise ValueError(f"expected frequencies r, c and f, got {sorted(map(str, unknown))}")
    return images, categories
