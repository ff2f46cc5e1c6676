"""COCO's average precision, computed by pycocotools.

AP is the mean over IoU thresholds 0.50:0.05:0.95 and over categories, at most 100 detections an image and category
(counting: more). pycocotools is given numbered copies of what it needs: it writes into what it gets, and reads an id 0
as "no match".
"""

import contextlib
import io
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIZES = ("small", "medium", "large")  # COCO's: area up to 32 x 32 px, up to 96 x 96, beyond


def coco_ap(
    dataset_json: dict,
    detections: Sequence[dict],
    category_ids: Collection[int] | None = None,
    image_ids: Collection[int] | None = None,
    sizes: bool = False,
    max_detections: int = 100,
) -> dict:
    """AP in percent.

    Args:
        dataset_json: a parsed COCO annotation file. `iscrowd` defaults to 0, `area` to that of the box.
        detections: each {"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "score"}; not changed.
        category_ids: only these count; default all.
        image_ids: only these count; default all.
        sizes: also AP_small, AP_medium, AP_large (takes four times as long).
        max_detections: of an image and category, the best so many; COCO: 100.

    Returns:
        AP, AP50, AP75; with `sizes`, AP_small, AP_medium, AP_large (None where no object has that size); per_category:
        {name: AP} of the categories with ground truth. Only those are averaged over.

    Raises:
        ValueError: nothing to find (no ground truth at all), or an id that the set does not have.
    """
    names = {category["id"]: category["name"] for category in dataset_json["categories"]}
    images = {image["id"] for image in dataset_json["images"]}
    categories_asked, images_asked = asked_for(detections, names, images, category_ids, image_ids)
    truth = among(dataset_json["annotations"], images_asked, categories_asked)
    if all(entry.get("iscrowd", 0) for entry in truth):
        raise ValueError("nothing to find: the chosen images hold no object of the chosen categories")
    with_truth = {entry["category_id"] for entry in truth}
    found = among(detections, images_asked, with_truth)
    evaluation = match(truth, found, images_asked, with_truth, max_detections, sizes)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision = 100 * evaluation.eval["precision"][..., 0]  # (10 IoU thresholds, recalls, categories, sizes: all first)
    result = mean_precisions(precision[..., 0], [names[category] for category in sorted(with_truth)])
    if sizes:
        result |= {f"AP_{size}": mean_precision(precision[..., place]) for place, size in enumerate(SIZES, 1)}
    return result


def among(entries: Iterable[dict], image_ids: Collection[int], category_ids: Collection[int]) -> list[dict]:
    """The annotations or detections of these images and categories."""
    return [e for e in entries if e["image_id"] in image_ids and e["category_id"] in category_ids]


def match(
    truth: Sequence[dict],
    found: Sequence[dict],
    image_ids: Collection[int],
    category_ids: Collection[int],
    max_detections: int,
    sizes: bool = False,
) -> COCOeval:
    """pycocotools' evaluation of detections that are matched with the ground truth, not yet accumulated."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_index(truth, image_ids, category_ids), _index(found, image_ids, category_ids), "bbox")
        evaluation.params.maxDets = [max_detections]
        if not sizes:
            evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
    return evaluation


def asked_for(
    detections: Sequence[dict],
    categories: Collection[int],
    images: Collection[int],
    category_ids: Collection[int] | None,
    image_ids: Collection[int] | None,
) -> tuple[set[int], set[int]]:
    """(category ids, image ids) that count; None: all. Raises ValueError that names the ids that the set lacks."""
    asked = set(categories if category_ids is None else category_ids), set(images if image_ids is None else image_ids)
    for what, ids, known in (
        ("category_ids", asked[0], categories),
        ("image_ids", asked[1], images),
        ("the detections' category_id", {d["category_id"] for d in detections}, categories),
        ("the detections' image_id", {d["image_id"] for d in detections}, images),
    ):
        if unknown := sorted(ids - set(known), key=str):
            raise ValueError(f"{what}: {unknown[:5]} not in the set; expected ids of its own categories and images")
    return asked


def numbered(source: dict, number: int) -> dict:
    """What pycocotools needs of an annotation or a detection, with an id of its own."""
    box = list(source["bbox"])
    area = box[2] * box[3] if "score" in source else source.get("area", box[2] * box[3])
    entry = {"id": number, "image_id": source["image_id"], "category_id": source["category_id"], "bbox": box}
    score = {"score": source["score"]} if "score" in source else {}
    return entry | score | {"area": area, "iscrowd": source.get("iscrowd", 0)}


def _index(entries: Sequence[dict], image_ids: Collection[int], category_ids: Collection[int]) -> COCO:
    """Annotations or detections as a COCO object of pycocotools, numbered from 1."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in image_ids],
        "categories": [{"id": category} for category in category_ids],
        "annotations": [numbered(entry, number) for number, entry in enumerate(entries, 1)],
    }
    coco.createIndex()
    return coco


def mean_precision(precision: np.ndarray) -> float | None:
    """pycocotools marks what has no ground truth with a negative precision."""
    known = precision[precision >= 0]
    return float(known.mean()) if known.size else None


def mean_precisions(precision: np.ndarray, names: Sequence[str]) -> dict:
    """AP, AP50, AP75 and per_category of precisions [10 IoU thresholds, recalls, categories]; names of the last."""
    each = {name: mean_precision(precision[..., k]) for k, name in enumerate(names)}
    ap, ap50, ap75 = (mean_precision(own) for own in (precision, precision[0], precision[5]))
    per_category = {name: own for name, own in each.items() if own is not None}
    return {"AP": ap, "AP50": ap50, "AP75": ap75, "per_category": per_category}
