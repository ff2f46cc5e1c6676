"""Negative prompts (T-Rex-Omni's rule, spec section 10) on look-alikes: does showing what is *not* meant help? The
protocol is ours.

A look-alike is another category of the same super-category on the same image. Each category that has look-alikes on an
image is asked for there alone, as in Visual-I: one of its boxes is the prompt, one box each of up to N of its
look-alikes are the negatives, once left out and then given with several betas. Ground truth and answers are those of
the prompted pairs (image, category) alone.

Beside AP, what a user sees at a score threshold: how many instances are found, and on how many look-alikes there is a
false alarm.
"""

from collections import defaultdict

import numpy as np
from pycocotools import mask
from tqdm import tqdm

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.detector import Detector
from trex2_mini.evaluation.bootstrap import bootstrap_difference
from trex2_mini.evaluation.interactive import Prompts, draw_prompts, only_others
from trex2_mini.evaluation.packed import Packed
from trex2_mini.evaluation.trial import EXAMPLES, MAX_DETECTIONS, Answers, Options, coco_results

NEGATIVES = EXAMPLES["visual-i-negatives"]  # of a prompt, at most
BETA = 0.3  # T-Rex-Omni's
BETAS = (0.1, BETA, 1.0)


def negatives(detector: Detector, dataset: CocoDataset, labels: list[int], options: Options) -> dict:
    """Ask for those of `labels` that have look-alikes, with up to `examples` negatives a prompt; resamples are for 95 %
    intervals of what negatives of beta = BETA gain.

    Returns:
        AP, AP50, AP75, of Visual-I with negatives of beta = BETA; AP_without, without them; AP_others,
        AP_others_without, the same for the instances that were not prompted (`only_others`; None where none is left);
        by_beta {beta: {AP, AP_others, found, alarms}}, "without" being one of them; found and alarms: percent of the
        asked instances, and of the look-alikes, with an answer of at least `threshold` at IoU >= 0.5. With resamples
        also gain, gain_others {difference, low, high, ...}: AP - AP_without, by `bootstrap_difference`. images,
        prompts, negatives (mean number a prompt), prompted_with, threshold, categories, per_category {name: AP}.

    Raises ValueError where nothing has look-alikes, a threshold outside 0..1, more negatives than NEGATIVES.
    """
    threshold, most, seed = options.threshold, options.examples, options.seed
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in 0..1, got {threshold}")
    if not 1 <= most <= NEGATIVES:
        raise ValueError(f"expected 1 to {NEGATIVES} negatives a prompt, got {most}")
    images = dataset.coco["images"][: options.limit]
    drawn = draw_prompts(dataset.coco, seed, None, {image["id"] for image in images})
    alike = look_alikes(dataset, drawn)
    chosen = {dataset.category_ids[label] for label in labels}
    pairs = {pair: drawn[pair] for pair in alike if pair[1] in chosen}
    if not pairs:
        raise ValueError(
            f"{dataset.path}: no image holds two categories of one super-category, so there are no look-alikes"
        )
    shown = {
        (image, category): [
            drawn[image, other]
            for other in np.random.default_rng([seed, image, category]).permutation(alike[image, category])[:most]
        ]
        for image, category in pairs
    }
    detections = _ask(detector, dataset, pairs, shown, options)
    pairs = {pair: annotation for pair, annotation in pairs.items() if pair[0] not in dataset.left_out}
    held: dict[tuple[int, int], list] = defaultdict(list)
    for annotation in dataset.coco["annotations"]:
        held[annotation["image_id"], annotation["category_id"]].append(annotation)
    truth = dataset.coco | {"annotations": [annotation for pair in pairs for annotation in held[pair]]}
    asked = sorted({category for _, category in pairs})
    ids = [image["id"] for image in images if any(pair[0] == image["id"] for pair in pairs)]
    whole = {beta: Answers(truth, own, asked, ids) for beta, own in detections.items()}
    others = {beta: Answers(*only_others(truth, own, pairs)[:2], asked, ids) for beta, own in detections.items()}
    some_left = bool(others[None].truth["annotations"])
    scores = {beta: own.measure() for beta, own in whole.items()}
    by_beta = {
        "without" if beta is None else str(beta): {
            "AP": scores[beta]["AP"],
            "AP_others": others[beta].measure()["AP"] if some_left else None,
            **_at_threshold(detections[beta], pairs, alike, held, threshold),
        }
        for beta in detections
    }
    gains = {"gain": whole, **({"gain_others": others} if some_left else {})} if options.resamples else {}
    return {
        **scores[BETA],
        "AP_without": by_beta["without"]["AP"],
        "AP_others": by_beta[str(BETA)]["AP_others"],
        "AP_others_without": by_beta["without"]["AP_others"],
        "by_beta": by_beta,
        **{key: bootstrap_difference(own[BETA], own[None], options.resamples, seed) for key, own in gains.items()},
        "images": len(ids),
        "prompts": len(pairs),
        "negatives": float(np.mean([len(own) for own in shown.values()])),
        "prompted_with": "points" if options.points else "boxes",
        "threshold": threshold,
        "categories": len(scores[BETA]["per_category"]),
    }


def look_alikes(dataset: CocoDataset, drawn: Prompts) -> dict[tuple[int, int], list[int]]:
    """(image id, category id) -> the categories among `drawn` that are its look-alikes there; those without any are
    left out.

    Raises ValueError where categories have no "supercategory".
    """
    if not all("supercategory" in category for category in dataset.categories):
        raise ValueError(f'{dataset.path}: categories without "supercategory", so nobody knows what looks alike')
    group = {category["id"]: category["supercategory"] for category in dataset.categories}
    kin: dict[tuple[int, str], list[int]] = defaultdict(list)
    for image, category in drawn:
        kin[image, group[category]].append(category)
    found = {pair: [other for other in kin[pair[0], group[pair[1]]] if other != pair[1]] for pair in drawn}
    return {pair: own for pair, own in found.items() if own}


def _ask(
    detector: Detector, dataset: CocoDataset, pairs: Prompts, shown: dict, options: Options
) -> dict[float | None, Packed]:
    """beta (None: without negatives) -> detections as COCO results."""
    results = {beta: Packed() for beta in (None, *BETAS)}
    kind = "points" if options.points else "boxes"
    place = {image["id"]: index for index, image in enumerate(dataset.coco["images"])}
    before, encoded = None, None
    for image, category in tqdm(sorted(pairs), "negatives", disable=not options.progress):
        if image != before:
            before, sample = image, dataset.read(place[image])
            encoded = None if sample is None else detector.encode(sample.image)
        if encoded is None:
            continue
        size = np.array([encoded.width, encoded.height] * 2)
        prompt, against = (
            [_marks(annotation, size, options.points) for annotation in own]
            for own in ([pairs[image, category]], shown[image, category])
        )
        for beta in results:
            asked = {kind: prompt} | ({} if beta is None else {f"negative_{kind}": against, "beta": beta})
            found = detector.detect(encoded, **asked, score_threshold=0, max_detections=MAX_DETECTIONS)
            results[beta].extend(coco_results(found, image, [category]))
    return results


def _marks(annotation: dict, size: np.ndarray, points: bool) -> list[float]:
    """An annotation's box, cut at the image's border, as xyxy, or its centre."""
    x, y, w, h = annotation["bbox"]
    box = np.clip([x, y, x + w, y + h], 0, size)
    return ((box[:2] + box[2:]) / 2 if points else box).tolist()


def _at_threshold(detections: Packed, pairs: Prompts, alike: dict, held: dict, threshold: float) -> dict:
    """found and alarms, see `negatives`."""
    answers: dict[tuple[int, int], list] = defaultdict(list)
    for detection in detections:
        if detection["score"] >= threshold:
            answers[detection["image_id"], detection["category_id"]].append(detection["bbox"])
    hit: dict[str, list[bool]] = {"found": [], "alarms": []}
    for image, category in pairs:
        for key, categories in (("found", [category]), ("alarms", alike[image, category])):
            boxes = [a["bbox"] for other in categories for a in held[image, other] if not a.get("iscrowd", 0)]
            own = answers[image, category]
            overlap = np.array(mask.iou(own, boxes, [0] * len(boxes))) if own else np.zeros((1, len(boxes)))
            hit[key] += (overlap.max(0) >= 0.5).tolist()
    return {key: 100 * float(np.mean(own)) for key, own in hit.items()}
