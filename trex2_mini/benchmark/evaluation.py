"""Evaluation: encoding once against a pass a prompt, batches against single images, and our AP against plain
pycocotools."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
import torch

from trex2_mini.benchmark.measure import interleaved, row
from trex2_mini.benchmark.model import box_prompts, build
from trex2_mini.evaluation.metrics import coco_ap

PROMPTS = 4  # an image, for Visual-I


def rows(quick: bool, repeats: int, images: int | None = None) -> Iterator[dict]:
    """images: only AP, of so many images, each form once: for COCO val2017's 5,000 that takes minutes."""
    if images is not None:
        yield _average_precision(images, 1, warm_up=False)
        return
    ours = build("nano")
    pictures = [torch.rand(3, 192, 256) for _ in range(2 if quick else 8)]
    together, single = box_prompts(PROMPTS, len(pictures)), box_prompts(1)

    @torch.inference_mode()
    def once() -> None:
        features = ours.encode_images(pictures)
        ours.decode(features, ours.encode_visual(features, together))

    @torch.inference_mode()
    def every_time() -> None:
        for image in pictures:
            for _ in range(PROMPTS):
                features = ours.encode_images([image])
                ours.decode(features, ours.encode_visual(features, single))

    took = interleaved({"once": once, "every": every_time}, repeats)
    ours_a_second, theirs = len(pictures) / took["once"], len(pictures) / took["every"]
    what = f"nano, Visual-I, {len(pictures)} images x {PROMPTS} prompts"
    yield row(what, "encode once, batched", ours_a_second, "a pass a prompt", theirs, "images/s")

    yield _average_precision(40 if quick else 1000, min(repeats, 3))


def _average_precision(images: int, repeats: int, warm_up: bool = True) -> dict:
    truth, detections = synthetic_detections(images)
    forms = {"ours": lambda: coco_ap(truth, detections), "plain": lambda: plain_ap(truth, detections)}
    took = interleaved(forms, repeats, warm_up)
    what = f"COCO AP, {images:,} images x 300 detections, 80 categories"
    return row(what, "coco_ap: AP, AP50, AP75", took["ours"], "plain pycocotools: all 12 numbers", took["plain"])


def synthetic_detections(images: int, categories: int = 80) -> tuple[dict, list[dict]]:
    """A COCO truth of about 7 objects an image, and 300 detections an image, a third of them near an object and of its
    category."""
    rng = np.random.default_rng(0)
    annotations, detections = [], []
    for image in range(1, images + 1):
        count = int(rng.integers(1, 14))
        boxes = np.concatenate([rng.uniform(0, 400, (count, 2)), rng.uniform(10, 200, (count, 2))], 1)
        labels = rng.integers(1, categories + 1, count)
        annotations += [
            {"id": len(annotations) + k, "image_id": image, "category_id": int(c), "bbox": b.tolist(),
                "area": float(b[2] * b[3]), "iscrowd": 0}
            for k, (b, c) in enumerate(zip(boxes, labels), 1)
        ]  # fmt: skip
        chosen = rng.integers(0, count, 300)
        found = boxes[chosen] + rng.normal(0, 12, (300, 4))
        found[:, 2:] = np.maximum(found[:, 2:], 1)
        kinds = np.where(rng.random(300) < 0.3, labels[chosen], rng.integers(1, categories + 1, 300))
        detections += [
            {"image_id": image, "category_id": int(c), "bbox": b.tolist(), "score": float(s)}
            for b, c, s in zip(found, kinds, rng.random(300))
        ]
    truth = {
        "images": [{"id": i} for i in range(1, images + 1)],
        "categories": [{"id": c, "name": str(c)} for c in range(1, categories + 1)],
        "annotations": annotations,
    }
    return truth, detections


def plain_ap(truth: dict, detections: list[dict]) -> float:
    """AP in percent as pycocotools' own example computes it. The detections are copied: loadRes writes into what it
    gets."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        measured = COCOeval(coco, coco.loadRes([dict(d) for d in detections]), "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return 100 * float(measured.stats[0])
