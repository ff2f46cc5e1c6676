"""The contact sheet of a model card: photographs that were never trained on, with what one box and what words find.

    TREX2_DATA=data python data/makers/contact_sheet.py nano-photo data/checkpoints/nano-photo/contact_sheet.jpg

The pictures are chosen by rule, not by result: the first four of COCO val2017 under CC BY with three of a kind, and
from each set of photo-wild in turn the first ones with two of a kind.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from trex2_mini import Detector
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.registry import open_dataset, suites
from trex2_mini.datasets.sample import Sample

CC_BY = 4  # COCO's number of the licence
THRESHOLD = 0.2


def alike(dataset: CocoDataset, least: int, free: bool = False) -> Iterator[tuple[Sample, str]]:
    """(sample, its most frequent name) of the pictures with `least` objects of one name."""
    for index, entry in enumerate(dataset.coco["images"]):
        if not free or entry.get("license") == CC_BY:
            sample = dataset[index]
            for label, count in Counter(sample.labels.tolist()).most_common(1):
                if count >= least:
                    yield sample, dataset.names[label]


def chosen() -> list[tuple[str, Sample, str, list[str]]]:
    """(title, sample, the prompted name, all names of the set): twelve."""
    coco = open_dataset("coco-val2017")
    found = [(f"COCO {s.image_id}", s, name, coco.names) for s, name in alike(coco, 3, free=True)][:4]
    wild = {name: open_dataset(name) for name in suites()["photo-wild"]}
    rounds = zip(*([(key, s, name, own.names) for s, name in alike(own, 2)][:2] for key, own in wild.items()))
    return (found + [(key.split("/")[0].removeprefix("photo-wild-"), *rest) for each in rounds for key, *rest in each])[
        :12
    ]


def draw(axes: plt.Axes, sample: Sample, found, prompt=None) -> None:
    axes.imshow(sample.image)
    axes.set_axis_off()
    colours = {name: f"C{i % 10}" for i, name in enumerate(dict.fromkeys(name for name, *_ in found))}
    for name, score, (x1, y1, x2, y2) in reversed(list(found)):
        style = {"fill": False, "edgecolor": colours[name], "linewidth": 1 + 2 * score}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))
    for name, colour in list(colours.items())[:5]:
        count = sum(own == name for own, *_ in found)
        axes.plot([], [], color=colour, label=f"{name} {count}")
    if colours:
        axes.legend(loc="lower right", fontsize=7, framealpha=0.8, handlelength=1, borderpad=0.3)
    if prompt is not None:
        x1, y1, x2, y2 = prompt
        for colour, line in (("white", "solid"), ("black", "dashed")):
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, ls=line, lw=2))


def main(checkpoint: str, path: str) -> None:
    detector = Detector.load(checkpoint)
    figure, axes = plt.subplots(6, 4, figsize=(14, 17), layout="constrained")
    for (title, sample, name, names), (left, right) in zip(chosen(), axes.reshape(12, 2)):
        own = sample.boxes[sample.labels == names.index(name)]
        box = max(own.tolist(), key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
        image = detector.encode(sample.image)
        by_box = detector.detect(image, boxes={name: [box]}, score_threshold=THRESHOLD)
        present = [names[label] for label in sorted(set(sample.labels.tolist()))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names that it was never taught are part of the sheet
            by_text = detector.detect(image, text=present, score_threshold=THRESHOLD)
        draw(left, sample, by_box, box)
        draw(right, sample, by_text)
        left.set_title(f"{title}, one box: {len(by_box)} found,\n{len(own)} there ({name})", fontsize=9)
        right.set_title(
            f"text: {len(by_text)} found, {len(sample.labels)} there\n({', '.join(present)[:40]})", fontsize=9
        )
    figure.savefig(path, dpi=95, pil_kwargs={"quality": 82})


if __name__ == "__main__":
    main(*sys.argv[1:])
