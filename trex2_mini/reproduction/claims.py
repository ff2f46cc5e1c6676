"""The paper's findings as statements that numbers can refute, and what ours say to each: the claims table.

Every finding says that one quantity is larger than another. The paper's two stand beside our two, measured on the
embedded family: other data and another scale, so signs can be compared, sizes not. The verdict is computed: `holds`
where the whole 95 % interval of our difference lies above 0, `contradicted` where it lies below, `undecided` where it
holds 0, `not testable here` where something is missing that the paper had. Findings of ours that the paper does not
state have no `paper` and are counted apart.

Intervals: 95 % by bootstrap over the images (all draws of examples averaged) or over the emoji-wild sets; of trained
variants, Student's t over the seeds' differences; of times, 95 % of the rounds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from trex2_mini.config import preset
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.emoji.formats import category_entries, instances
from trex2_mini.datasets.emoji.pictures import Picture
from trex2_mini.datasets.sample import Sample
from trex2_mini.datasets.scenes.catalogue import load_catalogue
from trex2_mini.datasets.scenes.generator import SceneGenerator
from trex2_mini.detector import Detector
from trex2_mini.evaluation.bank import draw_examples, visual_banks
from trex2_mini.evaluation.bootstrap import Matched, resampled
from trex2_mini.evaluation.packed import Packed
from trex2_mini.evaluation.protocols import visual_generic
from trex2_mini.evaluation.together import Together, pieces
from trex2_mini.evaluation.trial import Answers, Trial
from trex2_mini.images import to_image
from trex2_mini.model.image_encoder import IMAGENET_MEAN, IMAGENET_STD, build_backbone
from trex2_mini.reproduction.ablations import half_interval
from trex2_mini.reproduction.paper import paper_number

HOLDS, CONTRADICTED, UNDECIDED, NOT_TESTABLE = "holds", "contradicted", "undecided", "not testable here"
VARIANT_OF = {  # training in table 4 -> variant of ablations.py
    "joint, alignment": "joint",
    "joint, no alignment": "joint, no alignment",
    "text only": "text only",
    "visual only": "visual only",
}
FEWEST = 5  # images or sets: of fewer a bootstrap says nothing
NUMBERS = (1, 2, 4, 8, 16, 32, 64)  # of prompts; the paper's table 5 has 1, 4, 16, 32 and 64


@dataclass(frozen=True)
class Compared:
    """Our two quantities, and the interval of their difference."""

    more: float
    less: float
    low: float
    high: float
    over: str  # what the interval is over


@dataclass(frozen=True)
class Finding:
    """statement: that the first number of a pair is larger than the second. paper: its pair, None where the paper has
    none. reason: of no `ours`."""

    statement: str
    source: str
    paper: tuple[float, float] | None
    ours: Compared | None
    reason: str = ""

    @property
    def verdict(self) -> str:
        if self.ours is None:
            return NOT_TESTABLE
        return HOLDS if self.ours.low > 0 else CONTRADICTED if self.ours.high < 0 else UNDECIDED

    def row(self) -> dict[str, str]:
        """A line of the table, as text."""
        paper, ours = (f"{self.paper[0]:.1f} > {self.paper[1]:.1f}" if self.paper else "", self.ours)
        return {
            "finding": self.statement,
            "paper": f"{paper} ({self.source})" if paper else self.source,
            "ours, another scale": f"{ours.more:.1f}, {ours.less:.1f}" if ours else "",
            "difference": f"{ours.more - ours.less:+.1f} [{ours.low:+.1f}, {ours.high:+.1f}] over {ours.over}"
            if ours
            else "",
            "verdict": self.verdict,
            "remark": self.reason,
        }


def compared(more: np.ndarray, less: np.ndarray, over: str, level: float = 0.95) -> Compared | None:
    """Two arrays [1 + R], the plain number first, then its resamples. None where a plain number is NaN: there was
    nothing to measure."""
    if math.isnan(more[0]) or math.isnan(less[0]):
        return None
    low, high = np.nanquantile((more - less)[1:], [(1 - level) / 2, (1 + level) / 2])
    return Compared(float(more[0]), float(less[0]), float(low), float(high), over)


class Resampled:
    """A set's measures under common resamples of its images: arrays [1 + R] of percents, the plain number first,
    averaged over the draws."""

    def __init__(self, found: Together, resamples: int, seed: int = 0):
        self.found, first = found, found.answers["text"][0]
        self.image_ids = first.image_ids
        self.weights = np.concatenate([np.ones((1, len(self.image_ids))), resampled(first, resamples, seed)])
        self.ap = lru_cache(None)(self._ap)

    def _ap(self, protocol: str, group: str = "all") -> np.ndarray:
        """AP of a group: all, trained (what is not marked as novel), or LVIS's r, c or f. NaN where fewer than FEWEST
        images hold any of it."""
        kinds = {"all": lambda c: True, "trained": lambda c: not c.get("novel")}
        wanted = kinds.get(group, lambda c: c.get("frequency") == group)
        own = {category["id"] for category in self.found.dataset.categories if wanted(category)}
        draws = []
        for answers in self.found.answers[protocol]:
            ids = [category for category in answers.category_ids if category in own]
            wanted_here = (a["image_id"] for a in answers.truth["annotations"] if a["category_id"] in set(ids))
            if len(set(wanted_here) & set(self.image_ids)) < FEWEST:
                return np.full(len(self.weights), np.nan)
            draws.append(Matched(dataclasses.replace(answers, category_ids=ids)).ap(self.weights))
        return np.mean(draws, axis=0)

    def top1(self, draws: Sequence[list[dict]]) -> np.ndarray:
        """Accuracy of region classification from rows of `region_ranks`, a list a draw."""
        place = {image: number for number, image in enumerate(self.image_ids)}
        right, boxes = np.zeros(len(place)), np.zeros(len(place))
        for row in (row for rows in draws for row in rows):
            right[place[row["image_id"]]] += row["rank"] == 0
            boxes[place[row["image_id"]]] += 1
        return 100 * (self.weights @ right) / (self.weights @ boxes)


def over_sets(values: Sequence[float], resamples: int, statistic: Callable = np.mean, seed: int = 0) -> np.ndarray:
    """[1 + R]: a statistic of one number a set, and of as many sets drawn with replacement; the same sets for every
    list of this length."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    own = np.asarray(values, dtype=float)
    return np.concatenate([[statistic(own)], statistic(own[drawn], axis=1)])


def over_seeds(ablations: Sequence[dict], measure: str, more: str, less: str) -> Compared | None:
    """Two trained variants, in pairs of one seed, with `ablations.half_interval` of their difference: of the longest
    runs that both have, by the noise of all. None where the interval is unknown."""
    for steps in sorted({run["steps"] for run in ablations}, reverse=True):
        own = [run for run in ablations if run["steps"] == steps]
        runs = [{run["seed"]: run["AP"][measure] for run in own if run["variant"] == name} for name in (more, less)]
        seeds = sorted(runs[0].keys() & runs[1].keys())
        if seeds and np.isfinite(half := half_interval(ablations, measure, len(seeds))):
            values = [float(np.mean([run[seed] for seed in seeds])) for run in runs]
            difference = values[0] - values[1]
            return Compared(*values, difference - half, difference + half, f"{len(seeds)} seeds of {steps} steps")
    return None


# prompts against AP (table 5)


def sweep_sets(folder: Path, categories: int, examples: int, images: int, seed: int) -> tuple[CocoDataset, CocoDataset]:
    """(reference, test): fresh scenes of trained categories, each of which is on at least `examples` reference scenes.
    Written to `folder`."""
    trained = [category for category in load_catalogue() if not category.novel]
    catalogue = [trained[i * len(trained) // categories] for i in range(categories)]
    least = -(-categories * examples // min(6, categories))
    return tuple(
        _scenes(folder / name, catalogue, scenes, [seed, part], min(6, categories))
        for part, (name, scenes) in enumerate({"reference": least, "test": images}.items())
    )


def _scenes(folder: Path, catalogue: list, scenes: int, seed: list[int], each: int) -> CocoDataset:
    """Scenes that hold `each` categories, dealt from shuffled decks, so that every category comes as often."""
    rng = np.random.default_rng(seed)
    generator = SceneGenerator(seed=int(rng.integers(10**6, 10**7)), catalogue=catalogue)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    deck: list[int] = []
    pictures = []
    for index in range(scenes):
        while len(set(deck)) < each:
            deck += rng.permutation(len(catalogue)).tolist()
        held = list(dict.fromkeys(deck))[:each]
        for label in held:
            deck.remove(label)
        pictures.append(Picture(generator.scene(index, categories=held), f"{index:04d}.png"))
        Image.fromarray(pictures[-1].sample.image).save(folder / "images" / pictures[-1].file_name)
    content = instances(pictures, category_entries(catalogue), {"info": {"description": folder.name}})
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return CocoDataset(folder / "annotations.json", folder / "images")


def prompts_sweep(
    detector: Detector,
    reference: CocoDataset,
    test: CocoDataset,
    numbers: Sequence[int] = NUMBERS,
    draws: int = 3,
    seed: int = 0,
    limit: int | None = None,
    memory: float = 2.0,
    progress: bool = True,
) -> dict[int, list[Answers]]:
    """Visual-G by each number of example images, a list of draws; every image is encoded once. Categories without an
    example are left out. memory: as in `together`."""
    pairs = [(number, seed + draw) for number in numbers for draw in range(draws)]
    banks = visual_banks(detector, reference, test.names, pairs, progress=progress)
    trial = Trial(detector, test, len(test.coco["images"][:limit]), progress=progress)
    labels = [label for label, name in enumerate(test.names) if name in banks[0].names]
    found = [Packed() for _ in pairs]
    for piece in pieces(trial, memory):
        for own, bank in zip(found, banks):
            own.extend(visual_generic(piece, labels, bank))
    answers: dict[int, list[Answers]] = {number: [] for number in numbers}
    for (number, _), own in zip(pairs, found):
        answers[number].append(Answers(test.coco, own, [test.category_ids[label] for label in labels], trial.image_ids))
    return answers


def sweep_spread(sweep: dict[int, list[Answers]], resamples: int, seed: int = 0) -> dict[int, np.ndarray]:
    """{number of prompts: AP [1 + R]}, averaged over the draws, under common resamples of the images."""
    first = next(iter(sweep.values()))[0]
    weights = np.concatenate([np.ones((1, len(first.image_ids))), resampled(first, resamples, seed)])
    return {n: np.mean([Matched(own).ap(weights) for own in draws], axis=0) for n, draws in sweep.items()}


# what a round costs (table 7)


def round_shares(detector: Detector, sample: Sample, rounds: int = 20) -> np.ndarray:
    """What a further prompt takes, prompt encoder and decoder, in percent of a pass that encodes the image too: one
    number a round."""
    boxes = {"object": sample.boxes[:1].tolist()}
    encoded = detector.encode(sample.image)
    detector.detect(encoded, boxes=boxes)  # what is kept for further prompts is there from now on
    shares = []
    for _ in range(rounds):
        times = [time.perf_counter()]
        for source in (sample.image, encoded):
            detector.detect(source, boxes=boxes)
            times.append(time.perf_counter())
        shares.append(100 * (times[2] - times[1]) / (times[1] - times[0]))
    return np.array(shares)


# a stand-in for CLIP crops (table 9)

CROP = 96  # px


@torch.inference_mode()
def crop_ranks(found: Together, reference: CocoDataset, seed: int) -> list[dict]:
    """Region classification without a detector, rows as those of `region_ranks`: a box is cut out, seen by the frozen
    ImageNet backbone of `nano`, and compared by cosine with the mean of each category's examples, the ones of
    Visual-G's draw.

    Not CLIP, whose weights cannot be had here: it knows no names, so it stands beside "region-visual" only.
    """
    backbone = build_backbone(preset("nano").model, pretrained=True)[0].eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def look(sample: Sample, boxes: np.ndarray) -> torch.Tensor:
        """boxes [K, 4] xyxy pixels -> unit vectors [K, D]."""
        image, crops = to_image(sample.image), []
        height, width = sample.image.shape[:2]
        for x1, y1, x2, y2 in boxes.round().astype(int).tolist():
            x, y = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
            crop = image[:, y : max(y2, y + 1), x : max(x2, x + 1)]
            crops.append(F.interpolate(crop[None], (CROP, CROP), mode="bilinear", antialias=True)[0])
        maps = backbone((torch.stack(crops) - mean) / std)
        return F.normalize(maps[-1].mean((2, 3)), dim=1)

    dataset, names = found.dataset, [n for n in found.dataset.names if n not in found.about["without_examples"]]
    drawn = draw_examples(reference, names, found.about["examples"], seed)
    sums: dict[str, torch.Tensor] = {}
    for index in [i for i, image in enumerate(reference.coco["images"]) if image["id"] in drawn]:
        sample = reference[index]
        for label in set(drawn[sample.image_id]) & set(sample.labels.tolist()):
            vector = look(sample, sample.boxes[sample.labels == label]).mean(0)
            sums[reference.names[label]] = sums.get(reference.names[label], 0) + F.normalize(vector, dim=0)
    known = [name for name in names if name in sums]
    means, rows = F.normalize(torch.stack([sums[name] for name in known]), dim=1), []
    for index in range(found.about["images"]):
        sample = dataset[index]
        for label, vector in zip(sample.labels.tolist(), look(sample, sample.boxes) if len(sample.labels) else ()):
            if dataset.names[label] in known:
                near = means @ vector
                rank = int((near >= near[known.index(dataset.names[label])]).sum()) - 1
                rows.append({"image_id": sample.image_id, "label": label, "rank": rank})
    return rows


# the table


def findings(
    coco: Resampled | None,
    lvis: Resampled | None,
    wild: Sequence[dict],
    sweep: dict[int, np.ndarray],
    shares: np.ndarray,
    crops: Sequence[list[dict]],
    ablations: Sequence[dict] = (),
    absent: Mapping[str, str] | None = None,
) -> list[Finding]:
    """The claims table.

    Args:
        coco, lvis: on COCO or emoji-coco, and on a set of LVIS or emoji-lvis; None: not here, so not testable.
        wild: `Together.measured()` of each set of ODinW or emoji-wild.
        sweep: of `sweep_spread`, with 1, 16 and 64 prompts; none: not testable.
        shares: of `round_shares`.
        crops: of `crop_ranks` on coco, a list a draw.
        ablations: the results of `ablations.ablate`; without them what needs training is not testable.
        absent: {"coco", "lvis", "wild" or "sweep": why it was not measured}, for the remark of what rests on it.
    """
    found: list[Finding] = []
    c, v, r, f = "coco_val_ap", "lvis_val_ap", "lvis_val_apr", "lvis_val_apf"
    resamples = next((len(on.weights) - 1 for on in (coco, lvis) if on), 1)
    unknown = np.full(1 + resamples, np.nan)
    at = {number: sweep.get(number, unknown) for number in (1, 16, 64)}

    def add(
        statement: str, source: str, paper: tuple[float, float] | None, ours: Compared | None, why: str = "",
        on: str = "",
    ) -> None:  # fmt: skip
        few = f"needs at least {FEWEST} images or sets that hold what it is about"
        nothing = (absent or {}).get(on, few)
        found.append(Finding(statement, source, paper, ours, why or ("" if ours else nothing)))

    def table(number: int, column: str, **row) -> float:
        """A number of the paper; of Swin-T where the table has several backbones."""
        swin_t = {1: {"method": "T-Rex2", "backbone": "Swin-T"}, 2: {"backbone": "Swin-T"}}.get(number, {})
        return paper_number(number, column, **swin_t | row)

    def table1(column: str, more: str, less: str) -> tuple[float, float]:
        return table(1, column, prompt=more), table(1, column, prompt=less)

    def ap(on: Resampled | None, protocol: str, group: str = "all") -> np.ndarray:
        return unknown if on is None else on.ap(protocol, group)

    def images(on: Resampled | None, more: str, less: str, group: str = "all") -> Compared | None:
        return compared(ap(on, more, group), ap(on, less, group), "images")

    def sets(statistic: Callable) -> Compared | None:
        more, less = ([own[name]["AP"] for own in wild] for name in ("visual-g", "text"))
        spread = (over_sets(own, resamples, statistic) for own in (more, less))
        return compared(*spread, f"{len(wild)} sets") if len(wild) >= FEWEST else None

    def lead(group: str) -> np.ndarray:
        return ap(lvis, "text", group) - ap(lvis, "visual-g", group)

    def better(group: str = "all") -> np.ndarray:
        return np.maximum(ap(lvis, "text", group), ap(lvis, "visual-g", group))

    box, point = (
        {name: table(2, name, prompt=f"visual-i {kind}") for name in (c, v, r, f)} for kind in ("box", "point")
    )
    both = {name: table(8, name, prompt="text + visual-g") for name in (c, v, r)}
    single = {name: (table(8, name, prompt="text"), table(8, name, prompt="visual-g")) for name in (c, v, r)}
    prompts = {n: table(5, c, prompts=n) for n in (1, 16, 64)}

    add(
        "A box on the image itself finds more than examples from other images (COCO)", "tables 1, 2",
        (box[c], table(1, c, prompt="visual-g")), images(coco, "visual-i", "visual-g"), on="coco",
    )  # fmt: skip
    add(
        "A box on the image itself finds more than text (COCO)", "tables 1, 2", (box[c], table(1, c, prompt="text")),
        images(coco, "visual-i", "text"), on="coco",
    )  # fmt: skip
    add(
        "... on the long tail too (LVIS)", "tables 1, 2", (box[v], table(1, v, prompt="text")),
        images(lvis, "visual-i", "text"), on="lvis",
    )  # fmt: skip
    add(
        "A box says more than a point (COCO)",
        "table 2",
        (box[c], point[c]),
        images(coco, "visual-i", "points"),
        on="coco",
    )
    add(
        "... but slightly: a point keeps nine tenths of a box's AP (COCO)", "table 2", (point[c], 0.9 * box[c]),
        compared(ap(coco, "points"), 0.9 * ap(coco, "visual-i"), "images"), on="coco",
    )  # fmt: skip
    add(
        "A box on the image itself does best on rare categories: AP_r above AP_f (LVIS)", "table 2", (box[r], box[f]),
        compared(ap(lvis, "visual-i", "r"), ap(lvis, "visual-i", "f"), "images"), on="lvis",
    )  # fmt: skip
    add(
        "Text beats examples on common categories (COCO)", "table 1", table1(c, "text", "visual-g"),
        images(coco, "text", "visual-g", "trained"), on="coco",
    )  # fmt: skip
    add(
        "Examples beat text on rare categories (LVIS AP_r)", "table 1",
        table1(r, "visual-g", "text"), images(lvis, "visual-g", "text", "r"), on="lvis",
    )  # fmt: skip
    add(
        "Text's lead over examples grows with frequency: larger in AP_f than in AP_r (LVIS)", "table 1",
        (np.subtract(*table1(f, "text", "visual-g")), np.subtract(*table1(r, "text", "visual-g"))),
        compared(lead("f"), lead("r"), "images"), on="lvis",
    )  # fmt: skip
    add(
        "Far from the training data examples beat text: mean over sets (ODinW)", "table 1",
        table1("odinw35_avg", "visual-g", "text"), sets(np.mean), on="wild",
    )  # fmt: skip
    add(
        "... and the median over sets",
        "table 1",
        table1("odinw35_median", "visual-g", "text"),
        sets(np.median),
        on="wild",
    )
    add(
        "Words and examples together beat examples on common categories (COCO)", "table 8", (both[c], single[c][1]),
        images(coco, "mixed", "visual-g", "trained"), on="coco",
    )  # fmt: skip
    add(
        "... and lose to words there (COCO)", "table 8", (single[c][0], both[c]),
        images(coco, "text", "mixed", "trained"), on="coco",
    )  # fmt: skip
    add(
        "Together they beat the better of the two on the long tail (LVIS)", "table 8", (both[v], max(single[v])),
        compared(ap(lvis, "mixed"), better(), "images"), on="lvis",
    )  # fmt: skip
    add(
        "... and on its rare end (LVIS AP_r)", "table 8", (both[r], max(single[r])),
        compared(ap(lvis, "mixed", "r"), better("r"), "images"), on="lvis",
    )  # fmt: skip
    add(
        "16 examples are better than one (COCO)", "table 5", (prompts[16], prompts[1]),
        compared(at[16], at[1], "images"), on="sweep",
    )  # fmt: skip
    add(
        "Examples saturate: from 1 to 16 gains more than from 16 to 64 (COCO)", "table 5",
        (prompts[16] - prompts[1], prompts[64] - prompts[16]),
        compared(at[16] - at[1], at[64] - at[16], "images"), on="sweep",
    )  # fmt: skip
    seconds = {name: 1 / table(7, name, backbone="Swin-T") for name in ("fps", "interactive_fps")}
    add(
        "A further prompt costs less than half of a full pass (half, its share; in percent)", "table 7",
        (50.0, 100 * seconds["interactive_fps"] / seconds["fps"]),
        compared(np.full(1 + len(shares), 50.0), np.array([np.median(shares), *shares]), f"{len(shares)} rounds"),
    )  # fmt: skip
    add(
        "Regions are named better than by CLIP on crops (COCO top-1)", "table 9",
        (table(9, "coco_top1", method="T-Rex2", backbone="Swin-T"), table(9, "coco_top1", method="CLIP")), None,
        "CLIP's weights cannot be had without a network; the next row is a stand-in",
    )  # fmt: skip
    add(
        "Stand-in: V names regions better than crops seen by a frozen ImageNet backbone, both by examples",
        "not in the paper", None,
        compared(coco.top1(coco.found.regions["region-visual"]), coco.top1(crops), "images") if coco else None,
        on="coco",
    )  # fmt: skip
    add(
        "Without the prompted instances Visual-I's AP is lower (COCO)", "not in the paper", None,
        images(coco, "visual-i", "visual-i-others"), on="coco",
    )  # fmt: skip
    add(
        "An echo of the prompts has more than half of Visual-I's AP (COCO)", "not in the paper", None,
        compared(ap(coco, "echo"), 0.5 * ap(coco, "visual-i"), "images"), on="coco",
    )  # fmt: skip

    def variants(statement: str, column: str, more: tuple[str, str], less: tuple[str, str]) -> None:
        """Two rows of table 4, (training, prompt) each, of one prompt, and the runs of the same names."""
        paper = tuple(table(4, column, training=training, prompt=prompt) for training, prompt in (more, less))
        ours = over_seeds(ablations, f"{more[1]}/trained", VARIANT_OF[more[0]], VARIANT_OF[less[0]])
        world = "ours: a world of 24 drawn categories"
        add(statement, "table 4", paper, ours, world if ours else "needs variants trained under two seeds")

    aligned, apart = "joint, alignment", "joint, no alignment"
    variants("Alignment lifts examples", v, (aligned, "visual-g"), (apart, "visual-g"))
    variants("Alignment lifts text", v, (aligned, "text"), (apart, "text"))
    variants(
        "Trained on visual prompts alone, a model is poor at generic prompts (COCO)",
        c,
        (aligned, "visual-g"),
        ("visual only", "visual-g"),
    )
    variants("Training with visual prompts too helps text", v, (aligned, "text"), ("text only", "text"))
    labelled = "O365, OpenImages, HierText, CrowdHuman"
    add(
        "The visual data engine helps (Visual-I, COCO)",
        "table 6",
        tuple(
            table(6, c, model="T-Rex2-T", prompt="visual-i box", training_data=data)
            for data in (f"{labelled}, SA-1B", labelled)
        ),
        None,
        "needs trainings at scale",
    )
    add(
        "A larger backbone helps (Swin-L against Swin-T; text, COCO)",
        "table 1",
        (table(1, c, prompt="text", backbone="Swin-L"), table(1, c, prompt="text")),
        None,
        "one trained size is shipped",
    )
    return found


def read_ablations(folder: Path) -> list[dict]:
    """The results in `folder`, of the runs with the most steps; none where there is no folder."""
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    most = max((run["steps"] for run in runs), default=0)
    return [run for run in runs if run["steps"] == most]
