"""LVIS average precision: federated ground truth, frequency groups, and the "fixed AP" of Dave et al. (arXiv
2102.01066).

LVIS annotates a category on some images only: on the rest a detection of it counts neither for nor against. AP_r, AP_c
and AP_f average over the categories of up to 10, up to 100 and more training images. Two ways to limit the detections,
which give different numbers:

    AP          the 300 best detections of each image (the benchmark's own rule)
    fixed AP    the 10,000 best detections of each category over the whole set, none dropped by image

Matched and accumulated by pycocotools, as COCO's AP is: metrics.py. What was not looked for is left out before.
"""

from collections.abc import Collection, Sequence

import numpy as np

from trex2_mini.evaluation.metrics import Matches, among, asked_for, match, mean_precision, mean_precisions, precisions
from trex2_mini.evaluation.packed import Packed

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
    images, categories = _checked(dataset_json)
    found = Packed.of(detections)
    categories_asked, images_asked = asked_for(found, categories, images, category_ids, image_ids)
    truth = among(dataset_json["annotations"], images_asked, categories_asked)
    if not truth:
        raise ValueError("nothing to find: the chosen images hold no object of the chosen categories")
    key, count = ("category_id", PER_CATEGORY) if fixed else ("image_id", PER_IMAGE)
    best = found.best(key, count).among(images_asked, categories_asked)
    matched = match_looked_for(dataset_json, truth, best, images_asked)
    order = sorted(categories_asked)
    precision = precisions(matched, order)[..., 0]  # (10 IoU thresholds, recalls, categories)
    frequency = np.array([categories[c]["frequency"] for c in order])
    groups = {f"AP_{group}": mean_precision(precision[..., frequency == group]) for group in FREQUENCIES}
    return mean_precisions(precision, [categories[c]["name"] for c in order]) | groups


def match_looked_for(
    dataset_json: dict, truth: Sequence[dict], found: Packed, image_ids: Collection[int]
) -> dict[tuple[int, int], Matches]:
    """`match`, none of the detections left out by number: only the pairs (image, category) that were looked for are
    judged, and where not all objects are annotated what matches nothing is neither right nor wrong."""
    judged, partly = {(a["image_id"], a["category_id"]) for a in truth}, set()
    for image in dataset_json["images"]:
        judged |= {(image["id"], category) for category in image["neg_category_ids"]}
        partly |= {(image["id"], category) for category in image["not_exhaustive_category_ids"]}
    return match(truth, found, image_ids, max(1, len(found)), judged=judged, partly=partly)


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
