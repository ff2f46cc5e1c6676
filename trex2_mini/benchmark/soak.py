"""Soak: many prompts and many images in one process with `nano-emoji`; its resident memory must stay where the warm-up
left it. Linux only."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from trex2_mini.benchmark.measure import gibibytes, row
from trex2_mini.detector import Detector

PROMPTS, IMAGES = 2000, 500
WARM_UP = 0.1  # of the calls; memory is read after it, and then SAMPLES times
SAMPLES = 20
GOAL = 0.95  # flat within 5 %
SIDES = (96, 640)  # pixels of the images, each side drawn between


def rows(quick: bool, repeats: int) -> Iterator[dict]:
    """repeats is not used: a soak is one long run."""
    if not Path("/proc/self/status").exists():
        yield {"note": "left out: memory is read from /proc, on Linux only"}
        return
    detector, rng = Detector.load("nano-emoji", "cpu"), np.random.default_rng(0)
    prompts, images = (40, 20) if quick else (PROMPTS, IMAGES)
    encoded = [detector.encode(_picture(rng)) for _ in range(4)]
    bank = detector.embed({"thing": [(encoded[0], [[5, 5, 60, 60]])]})

    def prompt(number: int) -> None:
        """Every kind of prompt in turn, on one of four pictures; the names are new ones each time."""
        image = encoded[number % len(encoded)]
        box = [sorted(rng.uniform(0, image.width, 2)) for _ in "xy"]
        (x1, x2), (y1, y2) = box[0], np.clip(box[1], 0, image.height - 4)
        boxes = [[x1, y1, x2 + 2, y2 + 2]]
        given = [
            {"boxes": boxes}, {"points": [[x1, y1]]}, {"text": [f"thing {number}", f"other {number}"]},
            {"prompts": bank, "text": "thing"},
            {"boxes": {"a": boxes, f"b {number}": boxes}, "negative_boxes": {"a": boxes},
                "negative_text": f"not {number}"},
        ]  # fmt: skip
        detector.detect(image, score_threshold=0.0, **given[number % len(given)])

    def image(number: int) -> None:
        detector.detect(_picture(rng), text="cat, dog", boxes=[[5, 5, 60, 60]], score_threshold=0.0)

    for what, count, call in (("interactive prompts", prompts, prompt), ("images", images, image)):
        yield from _flat(f"{count:,} {what}", count, call)


def _picture(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (*rng.integers(*SIDES, 2), 3), np.uint8)


def _flat(what: str, count: int, call: Callable[[int], None]) -> Iterator[dict]:
    warm, series = max(1, int(WARM_UP * count)), []
    at = set(np.linspace(warm, count, SAMPLES + 1).astype(int).tolist())
    for number in range(1, count + 1):
        call(number)
        if number in at:
            gc.collect()
            series.append(gibibytes("VmRSS"))
    yield row(f"{what}, resident memory", "the highest later", max(series[1:]), "after warm-up", series[0], "GiB", GOAL)
    yield {
        "note": f"{what}: {', '.join(f'{value:.3f}' for value in series)} GiB, from call {warm} on at even distances"
    }
