"""Visual-I without a model: which instances are the prompts, what an echo of them scores, what is left without them.

All of it works on annotations alone, so the echo baseline of any COCO-format set can be had without its pictures.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from pycocotools import mask

from trex2_mini.evaluation.packed import Packed

Prompts = dict[tuple[int, int], dict]  # (image id, category id) -> the annotation that is the prompt


def draw_prompts(
    coco: dict, seed: int, category_ids: set[int] | None = None, image_ids: set[int] | None = None
) -> Prompts:
    """For each image and category present in it one random annotation: no crowd, no box outside the image.

    A draw depends on (seed, image, category) alone, so a category set or a limit changes no other prompt.
    """
    sizes = {image["id"]: (image.get("width", np.inf), image.get("height", np.inf)) for image in coco["images"]}
    present: dict[tuple[int, int], list[dict]] = defaultdict(list)
    for annotation in coco["annotations"]:
        image, category, (x, y, w, h) = annotation["image_id"], annotation["category_id"], annotation["bbox"]
        wanted = (category_ids is None or category in category_ids) and (image_ids is None or image in image_ids)
        inside = min(w, h, x + w, y + h) > 0 and x < sizes[image][0] and y < sizes[image][1]
        if wanted and inside and not annotation.get("iscrowd", 0):
            present[image, category].append(annotation)
    return {pair: own[np.random.default_rng([seed, *pair]).integers(len(own))] for pair, own in sorted(present.items())}


def echo_detections(drawn: Prompts) -> list[dict]:
    """The echo baseline: each prompt's own box, with score 1, is the whole answer."""
    return [
        {"image_id": image, "category_id": category, "bbox": list(annotation["bbox"]), "score": 1.0}
        for (image, category), annotation in drawn.items()
    ]


def only_others(coco: dict, detections: Sequence[dict], drawn: Prompts) -> tuple[dict, Packed, set[tuple[int, int]]]:
    """Visual-I others: the prompted instances are taken out of the ground truth and of the answers.

    - The prompted annotation leaves the ground truth.
    - At most one detection a prompt leaves the answers: the one with the highest score among those whose IoU with the
      prompted instance is at least 0.5 and as high as with any other instance of the category there (as COCO matches).
      Further detections of the prompted instance stay, and are wrong.
    - A pair (image, category) without another instance stays: whatever is still answered there is wrong, because who
      finds the others must be silent where there are none. (A category that nowhere has another instance has no AP.)

    Returns:
        (ground truth, detections, the pairs that hold another instance). AP over those pairs alone, with the detections
        of all other pairs dropped, is what `evaluate` calls AP_pairs_with_others.
    """
    taken = {id(annotation) for annotation in drawn.values()}
    truth = [annotation for annotation in coco["annotations"] if id(annotation) not in taken]
    others: dict[tuple[int, int], list] = defaultdict(list)
    for annotation in truth:
        if not annotation.get("iscrowd", 0):
            others[annotation["image_id"], annotation["category_id"]].append(annotation["bbox"])
    found = Packed.of(detections)
    removed = []
    for pair, rows in found.by_pair():
        if pair not in drawn:
            continue
        instances = [drawn[pair]["bbox"], *others.get(pair, [])]
        boxes, scores = found.table["bbox"][rows], found.table["score"][rows]
        overlap = mask.iou(boxes, np.array(instances, dtype=float), [0] * len(instances))  # (answers, instances)
        hits = np.flatnonzero((overlap[:, 0] >= 0.5) & (overlap[:, 0] == overlap.max(1)))
        if len(hits):
            removed.append(rows[hits[scores[hits].argmax()]])
    remaining = found.take(np.delete(np.arange(len(found)), np.array(removed, dtype=int)))
    return coco | {"annotations": truth}, remaining, drawn.keys() & others.keys()
