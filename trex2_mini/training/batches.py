"""The batch of a training step, as a function of (seed, step) alone: runs can stop and go on, workers can make batches
ahead."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torchvision.ops import box_area
from torchvision.transforms import v2

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.cutout_sets import cut_out
from trex2_mini.datasets.large.index import ParquetDataset
from trex2_mini.datasets.registry import open_training_set
from trex2_mini.datasets.sample import Sample
from trex2_mini.datasets.scenes.batches import CutoutBatches, EmojiBatches, drawn_size, to_array, to_tensors
from trex2_mini.datasets.scenes.cutouts import Backgrounds
from trex2_mini.datasets.scenes.library import Library
from trex2_mini.paths import read_text
from trex2_mini.training.copy_paste import paste

CUTOUTS = "cutouts:"  # before the folder of a library


class DatasetBatches:
    """Pictures of a set in COCO format, drawn at random and changed: objects pasted in, scaled, cropped, mirrored,
    colours distorted. In place of a picture that cannot be read stands another (`CocoDataset.read`).

    Two pictures in a row share a category where the set allows it, as emoji scenes do. One size a batch (those of the
    emoji scenes, times short_side / 192), and nothing is padded but with grey.

    Args:
        dataset: what to draw from; pictures without any object are left out.
        short_side: pixels of the shorter side of a batch.
        balance: see `open_batches`.
        least_visible: an object of which the crop shows a smaller share is no target.
        pasted: the share of pictures that get copies of one object of their own or of the picture before
            (copy_paste.py); sets with masks only.

    Raises:
        ValueError: the set has no object.
    """

    def __init__(
        self,
        dataset: CocoDataset | ParquetDataset,
        batch_size: int,
        seed: int = 0,
        short_side: int = 192,
        balance: float = 0.0,
        least_visible: float = 0.3,
        pasted: float = 0.5,
    ):
        self.dataset, self.batch_size, self.seed, self.balance = dataset, batch_size, seed, balance
        self.short_side, self.least_visible, self.pasted = short_side, least_visible, pasted
        self.names = dataset.names
        # a data engine's rare phrases are no negatives: only those of its global dictionary are (paper, section 3.3)
        self.trainable = [label for label, c in enumerate(dataset.categories) if c.get("negative", True)]
        self._holdings = dataset.holdings
        if not len(self._holdings.pictures):
            raise ValueError(f"{dataset.path} holds no object to train on")
        dataset.left_out.most = min(dataset.left_out.most, len(self._holdings.pictures) // 2)
        self._annotations: dict[int, list[dict]] = {}  # with masks, to paste from
        if pasted and isinstance(dataset, CocoDataset):
            self._annotations = dataset.annotations_by_image()
            self._label_of = {category: label for label, category in enumerate(dataset.category_ids)}

    def __call__(self, step: int) -> list[Sample]:
        rng = np.random.default_rng([self.seed, step, 3])
        return self._drawn(self.batch_size, drawn_size(self.short_side, rng), rng)

    def pictures(self, index: int, count: int, size: tuple[int, int]) -> list[Sample]:
        """`count` pictures of one (height, width) in pixels, drawn from (seed, index)."""
        return self._drawn(count, size, np.random.default_rng([self.seed, index, 3]))

    def _drawn(self, count: int, size: tuple[int, int], rng: np.random.Generator) -> list[Sample]:
        batch: list[Sample] = []
        held = self._holdings
        cuts: list[tuple[Image.Image, int]] = []
        for i in range(count):
            if i % 2 == 0:
                pool = held.holding(rng.choice(held.labels)) if rng.random() < self.balance else held.pictures
            index = pool[rng.integers(len(pool))]
            while (sample := self.dataset.read(int(index))) is None:
                index = held.pictures[rng.integers(len(held.pictures))]
            if len(sample.labels):  # the next picture shares a category with this one
                pool = held.holding(rng.choice(np.unique(sample.labels)))
            cuts = (cuts if i % 2 else []) + self._cuts(sample)
            if sample.vocabulary is not None:  # others of a kind that was not looked for may be there without a box
                cuts = [(cut, label) for cut, label in cuts if label in sample.vocabulary]
            if cuts and rng.random() < self.pasted:
                sample = paste(sample, cuts, rng)
            batch.append(self._changed(sample, *size, rng))
        return batch

    def _cuts(self, sample: Sample) -> list[tuple[Image.Image, int]]:
        """The objects of a picture that can be set into others."""
        entries = self._annotations.get(sample.image_id, ())
        found = [(cut_out(sample.image, entry), self._label_of[entry["category_id"]]) for entry in entries]
        return [(cut, label) for cut, label in found if cut is not None]

    def _changed(self, sample: Sample, height: int, width: int, rng: np.random.Generator) -> Sample:
        """A random view of `sample`, [height, width]."""
        scale = v2.ScaleJitter((height, width), (0.75, 1.9), antialias=True)
        view = v2.Compose(
            [
                v2.RandomCrop((height, width), pad_if_needed=True, fill=124),
                v2.RandomHorizontalFlip(),
                v2.RandomPhotometricDistort(p=0.5),
            ]
        )
        picture, boxes = to_tensors(sample)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))
            picture, whole = scale(picture, boxes)
            picture, boxes = view(picture, whole)
        kept = (box_area(boxes) >= self.least_visible * box_area(whole)) & (box_area(boxes) >= 9)
        labels = sample.labels[kept.numpy()]
        known = {"vocabulary": sample.vocabulary, "ambiguous": sample.ambiguous}
        return Sample(to_array(picture), boxes[kept].numpy(), labels, sample.image_id, **known)


Source = EmojiBatches | CutoutBatches | DatasetBatches


def _text_only(step: int) -> tuple[str, ...]:
    return ("text",)


class MixedBatches:
    """Batches in which each pair of pictures comes from a source drawn by its share. Categories of one name are one
    category, whether it is written with a capital letter or with a low line for a space.

    A source's pictures say nothing about the categories that only other sources know: `Sample.vocabulary` tells which
    ones count.

    Args:
        sources, shares: where pictures come from, and how often.
        short_sides: px; each step has one of them, drawn evenly. All pictures of a batch have one size.
        parts: batches (parts) of one step.
        visual_shares: of the sources in visual iterations, where they differ; 0: the source is for text alone, as one
            with a share of 0 in `shares` is for visual prompts alone.
        kinds: what the iteration of a step trains (`iteration_kinds`); needed with visual_shares.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        shares: Sequence[float],
        seed: int = 0,
        short_sides: Sequence[int] = (192,),
        parts: int = 1,
        visual_shares: Sequence[float] | None = None,
        kinds: Callable[[int], tuple[str, ...]] = _text_only,
    ):
        own = {"text": shares, "visual": shares if visual_shares is None else visual_shares}
        for values in own.values():
            if len(sources) != len(values) or not sources or min(values) < 0 or sum(values) <= 0:
                raise ValueError(f"expected a share above 0 for each of {len(sources)} sources, got {list(values)}")
        if (visual_shares is None and min(shares) == 0) or any(a == b == 0 for a, b in zip(*own.values())):
            raise ValueError(f"expected a share above 0 for each of {len(sources)} sources, got {list(shares)}")
        self.sources, self.seed, self.short_sides, self.parts = list(sources), seed, tuple(short_sides), parts
        self.shares = {kind: np.array(values) / sum(values) for kind, values in own.items()}
        self.kinds = kinds
        self._prompts = [tuple(kind for kind, values in own.items() if values[i] > 0) for i in range(len(sources))]
        spelling: dict[str, str] = {}  # of each name, the first one met
        for source in sources:
            for name in source.names:
                spelling.setdefault(_plain(name), name)
        self.names = list(spelling.values())
        place = {plain: label for label, plain in enumerate(spelling)}
        self._label = [np.array([place[_plain(name)] for name in source.names]) for source in sources]
        told = [which for which, prompts in enumerate(self._prompts) if "text" in prompts]
        self.trainable = sorted({int(self._label[which][c]) for which in told for c in sources[which].trainable})

    def __call__(self, step: int) -> list[Sample]:
        rng, count = np.random.default_rng([self.seed, step, 4]), self.sources[0].batch_size
        short_side = np.random.default_rng([self.seed, step // self.parts, 5]).choice(self.short_sides)
        size = drawn_size(int(short_side), rng)
        shares = self.shares["text" if "text" in self.kinds(step // self.parts) else "visual"]
        batch: list[Sample] = []
        for first in range(0, count, 2):
            which = int(rng.choice(len(self.sources), p=shares))
            pair = step * ((count + 1) // 2) + first // 2  # a number that no other pair has
            drawn = self.sources[which].pictures(pair, min(2, count - first), size)
            batch += [_joined(sample, self._label[which], self._prompts[which]) for sample in drawn]
        return batch


def _joined(sample: Sample, own: np.ndarray, prompts: tuple[str, ...]) -> Sample:
    """A source's picture with the labels of the mixture; own: the mixture's label for each of the source's."""
    return dataclasses.replace(
        sample,
        labels=own[sample.labels],
        vocabulary=np.unique(own if sample.vocabulary is None else own[sample.vocabulary]),
        ambiguous=None if sample.ambiguous is None else own[sample.ambiguous],
        prompts=prompts,
    )


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip()


def open_batches(
    data: Sequence[str],
    batch_size: int,
    seed: int = 0,
    short_side: int = 192,
    balance: float = 0.0,
    short_sides: Sequence[int] = (0,),
    parts: int = 1,
    visual_data: Sequence[str] | None = None,
    kinds: Callable[[int], tuple[str, ...]] | None = None,
) -> Source | MixedBatches:
    """Where a training's pictures come from.

    Args:
        data: "emoji" (scenes made on the fly), "cutouts:FOLDER" (scenes of the cut-outs in a folder, before pieces of
            the photographs of the mixture's sets) or anything `open_dataset` takes, each with =SHARE where there are
            several.
        short_side: px of the shorter side of a batch's pictures. short_sides: drawn anew for every step instead, where
            0 stands for `short_side`. parts: batches of one step, which share its short side.
        balance: 0..1, the share of draws that take every category with the same chance; the others follow the data's
            long tail. Cut-outs are always balanced.
        visual_data: where the pictures of visual iterations come from, if they differ; `data` is for the text
            iterations then. kinds: which iteration is which (`iteration_kinds`).

    Raises ValueError for a share or an option that cannot be meant, and where both kinds of prompts are trained in
    every iteration but the two lists differ.
    """
    if (
        not isinstance(batch_size, int)
        or batch_size < 1
        or not isinstance(balance, (int, float))
        or not 0 <= balance <= 1
    ):
        raise ValueError(f"expected batch_size of at least 1 and balance in 0..1, got {batch_size!r} and {balance!r}")
    shares, visual = _shares(data), None if visual_data is None else _shares(visual_data)
    if visual is not None and (kinds is None or any({"text", "visual"} <= set(kinds(step)) for step in range(100_000))):
        raise ValueError(
            "text data and visual data of their own need iterations that train one kind of prompts each:"
            " --set visual_per_text=8 (the paper's authors), or another number above 0"
        )
    names = list(dict.fromkeys([*shares, *(visual or ())]))
    sets = {name: open_training_set(name) for name in names if name != "emoji" and not name.startswith(CUTOUTS)}
    whole = [own for own in sets.values() if isinstance(own, CocoDataset)]
    behind = Backgrounds.of(whole) if whole and any(name.startswith(CUTOUTS) for name in names) else None
    sources: list[Source] = []
    for name in names:
        if name == "emoji":
            sources.append(EmojiBatches(batch_size, seed, balance, short_side=short_side))
        elif name in sets:
            sources.append(DatasetBatches(sets[name], batch_size, seed, short_side, balance))
        else:
            library = Library.open(name.removeprefix(CUTOUTS))
            sources.append(CutoutBatches(library, batch_size, behind, seed, short_side))
    sides = [side or short_side for side in short_sides]
    if len(sources) == 1 and sides == [short_side]:
        return sources[0]
    own, other = ([given.get(name, 0.0) for name in names] for given in (shares, visual or shares))
    if visual is None:
        return MixedBatches(sources, own, seed, sides, parts)
    return MixedBatches(sources, own, seed, sides, parts, other, kinds)


def sets_of(batches: Source | MixedBatches) -> list[tuple[str, CocoDataset | ParquetDataset]]:
    """The sets that batches draw from, with their names."""
    sources = batches.sources if isinstance(batches, MixedBatches) else [batches]
    return [(str(own.dataset.path.parent), own.dataset) for own in sources if isinstance(own, DatasetBatches)]


def _shares(data: Sequence[str]) -> dict[str, float]:
    """{name: share} of NAME[=SHARE], which is 1 where it is not said. Raises ValueError."""
    shares: dict[str, float] = {}
    for entry in data:
        name, separator, share = entry.rpartition("=")
        name, share = (name, share) if separator else (entry, "1")
        if name in shares:
            raise ValueError(f"--data names {name} twice; give it one share")
        try:
            shares[name] = float(share)
        except ValueError:
            raise ValueError(f"--data {entry}: expected NAME or NAME=SHARE with a number, got {share!r}") from None
    return shares


def read_mixture(path: Path) -> tuple[list[str], list[str]]:
    """(text data, visual data) of a YAML file {text: {NAME: SHARE}, visual: {NAME: SHARE}}, each as NAME=SHARE.

    Raises ValueError for a file of another form.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected a YAML file such as data/mixtures/paper_swin_t.yml")
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    lists = []
    for kind in ("text", "visual"):
        own = content.get(kind) if isinstance(content, dict) else None
        if not isinstance(own, dict) or not own or not all(isinstance(v, (int, float)) and v > 0 for v in own.values()):
            raise ValueError(f"{path}: expected {kind}: {{NAME: SHARE above 0, ...}}, got {own!r:.80}")
        lists.append([f"{name}={share}" for name, share in own.items()])
    return lists[0], lists[1]
