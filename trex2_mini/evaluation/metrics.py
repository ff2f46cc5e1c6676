"""COCO's average precision, computed by pycocotools.

AP is the mean over IoU thresholds 0.50:0.05:0.95 and over categories, at most 100 detections an image and category
(counting: more). pycocotools is given numbered copies of what it needs: it writes into what it gets, and reads an id 0
as "no match". It matches PIECE images at a time, and 36 bytes a detection are kept of that, so a large set takes little
more memory than its annotations and its detections.
"""

import contextlib
import copy
import io
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trex2_mini.evaluation.packed import Packed

SIZES = ("small", "medium", "large")  # COCO's: area up to 32 x 32 px, up to 96 x 96, beyond
PIECE = 50  # images that are matched at a time


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
    found = Packed.of(detections)
    categories_asked, images_asked = asked_for(found, names, images, category_ids, image_ids)
    truth = among(dataset_json["annotations"], images_asked, categories_asked)
    if all(entry.get("iscrowd", 0) for entry in truth):
        raise ValueError("nothing to find: the chosen images hold no object of the chosen categories")
    with_truth = {entry["category_id"] for entry in truth}
    matched = match(truth, found.among(images_asked, with_truth), images_asked, max_detections, sizes)
    precision = precisions(matched, sorted(with_truth), sizes)
    result = mean_precisions(precision[..., 0], [names[category] for category in sorted(with_truth)])
    if sizes:
        result |= {f"AP_{size}": mean_precision(precision[..., place]) for place, size in enumerate(SIZES, 1)}
    return result


def among(entries: Iterable[dict], image_ids: Collection[int], category_ids: Collection[int]) -> list[dict]:
    """The annotations of these images and categories."""
    return [e for e in entries if e["image_id"] in image_ids and e["category_id"] in category_ids]


@dataclass(frozen=True)
class Matches:
    """A category's detections, image by image, matched with its objects at COCO's ten IoU thresholds.

    images, scores [n] of the detections; right, wrong [10, n], neither where a detection does not count; objects [m]:
    the image of each object that is to be found.
    """

    images: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    objects: np.ndarray

    @classmethod
    def of(cls, entry: dict, partly: bool) -> "Matches":
        """What pycocotools says of an image and category; partly: what matches nothing there does not count."""
        matched = entry["dtMatches"] > 0
        counts = ~np.asarray(entry["dtIgnore"], bool) & (matched | (not partly))
        objects = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
        images = (np.full(number, entry["image_id"], dtype=np.int64) for number in (matched.shape[1], objects))
        scores = np.array(entry["dtScores"], dtype=np.float64)
        return cls(next(images), scores, matched & counts, ~matched & counts, next(images))

    @classmethod
    def joined(cls, parts: Sequence["Matches"]) -> "Matches":
        names = ("images", "scores", "right", "wrong", "objects")
        return cls(*(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names))


def match(
    truth: Iterable[dict],
    found: Packed,
    image_ids: Collection[int],
    max_detections: int,
    sizes: bool = False,
    judged: Collection[tuple[int, int]] | None = None,
    partly: Collection[tuple[int, int]] = (),
) -> dict[tuple[int, int], Matches]:
    """{(category id, size): its matches}; size 0: objects of all sizes, with `sizes` 1, 2, 3: of SIZES.

    LVIS's rules, where annotations are objects and never crowds: judged, the pairs (image, category) whose detections
    count; partly, those of them where a detection that matches nothing is neither right nor wrong.
    """
    images, held = sorted(image_ids), defaultdict(list)
    for entry in truth:
        held[entry["image_id"]].append(entry)
    groups = [images[start : start + PIECE] for start in range(0, len(images), PIECE)]
    parts: dict[tuple[int, int], list[Matches]] = defaultdict(list)
    for group, own in zip(groups, found.pieces(groups)):
        objects = [a for image in group for a in held[image]]
        if judged is not None:
            objects = [a | {"iscrowd": 0} for a in objects]
            own = [d for d in own if (d["image_id"], d["category_id"]) in judged]
        here: dict[tuple[int, int], list[Matches]] = defaultdict(list)
        for entry in _matched(objects, own, group, max_detections, sizes):
            pair = entry["image_id"], entry["category_id"]
            here[pair[1], entry["size"]].append(Matches.of(entry, pair in partly))
        for key, several in here.items():
            parts[key].append(Matches.joined(several))
    return {key: Matches.joined(several) for key, several in parts.items()}


def _matched(
    truth: Sequence[dict], found: Sequence[dict], images: Sequence[int], max_detections: int, sizes: bool
) -> list[dict]:
    """pycocotools' entries of a few images, each with its "size"."""
    categories = sorted({entry["category_id"] for entry in (*truth, *found)})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_index(truth, images, categories), _index(found, images, categories), "bbox")
        _choose(evaluation, max_detections, sizes)
        evaluation.evaluate()
    areas = evaluation.params.areaRng
    return [entry | {"size": areas.index(entry["aRng"])} for entry in evaluation.evalImgs if entry is not None]


def _choose(evaluation: COCOeval, max_detections: int, sizes: bool) -> None:
    evaluation.params.maxDets = [max_detections]
    if not sizes:
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]


def precisions(matched: dict[tuple[int, int], Matches], category_ids: Sequence[int], sizes: bool = False) -> np.ndarray:
    """Percents [10 IoU thresholds, 101 recalls, categories, 1 + sizes], accumulated by pycocotools; negative where
    there is nothing to find."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(iouType="bbox")
        _choose(evaluation, max((len(own.scores) for own in matched.values()), default=1), sizes)
        evaluation.params.imgIds, evaluation.params.catIds = [0], list(category_ids)
        evaluation._paramsEval = copy.deepcopy(evaluation.params)
        kinds = range(len(evaluation.params.areaRng))
        evaluation.evalImgs = [_entry(matched.get((category, kind))) for category in category_ids for kind in kinds]
        evaluation.accumulate()
    return 100 * evaluation.eval["precision"][..., 0]


def _entry(matches: Matches | None) -> dict | None:
    """All images of a category as one, in pycocotools' words."""
    if matches is None:
        return None
    scored = {"dtScores": matches.scores, "dtMatches": matches.right, "dtIgnore": ~(matches.right | matches.wrong)}
    return scored | {"gtIgnore": np.zeros(len(matches.objects))}


def asked_for(
    found: Packed,
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
        ("the detections' category_id", set(np.unique(found.table["category_id"]).tolist()), categories),
        ("the detections' image_id", set(np.unique(found.table["image_id"]).tolist()), images),
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
