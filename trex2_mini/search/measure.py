"""How well pictures are found: retrieval on a labelled set, by words, by an example, by both; and how fast.

A question is a category. Right are the pictures that are annotated with it; the picture that its example lies on is
left out of all its rankings. AP is the mean, over the right pictures, of the precision at their rank; mAP its mean over
questions. Recall at k is the share of the right pictures among the first k, at most k of them counted as findable.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.detector import Detector
from trex2_mini.evaluation.provenance import describe_code, describe_dataset
from trex2_mini.evaluation.trial import open_detector, opened
from trex2_mini.model.image_encoder import ImageFeatures
from trex2_mini.search.index import PhotoIndex
from trex2_mini.search.rank import SHORTLIST, search

CUTS, KEPT, CHANCE = (1, 5, 10), 10, 20  # k of recall; first pictures that a shortlist is to keep; random orders
SHORTLISTS = (SHORTLIST, 30, 50)  # lengths that are compared
WAYS = ("index", "shortlist", *(f"shortlist {length}" for length in SHORTLISTS[1:]), "everything", "random")


@torch.inference_mode()
def measure_search(
    checkpoint: str | Path | Detector,
    data: str | Path | CocoDataset,
    pictures: int | None = None,
    questions: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """Picture retrieval: {"text" | "visual" | "both": {one of WAYS: scores, "kept": {length of a shortlist: share of
    everything's first 10 that it holds}}}, and what it was measured on.

    pictures, questions  so many are drawn by the seed; None: all. A question needs two pictures: one for its example.
    index, shortlist, everything  the index alone ranks; the detector ranks the first SHORTLIST (or so many) of it; or
                                  all pictures
    Raises ValueError where no category is on two pictures.
    """
    detector, weights = open_detector(checkpoint)
    dataset, draw = opened(data), np.random.default_rng(seed)
    chosen = draw.permutation(len(dataset))[:pictures]
    samples = [dataset[int(place)] for place in chosen]
    holds = np.array([np.isin(np.arange(len(dataset.names)), sample.labels) for sample in samples])  # [pictures, names]
    labels = draw.permutation(np.flatnonzero(holds.sum(0) >= 2))[:questions]
    if not len(labels):
        raise ValueError(f"{dataset.path}: no category is on two of the {len(samples)} pictures")
    examples = np.array([draw.choice(np.flatnonzero(holds[:, label])) for label in labels])
    asked = torch.stack([_asked(detector, dataset.names[n], samples[e], n) for n, e in zip(labels, examples)], 1)
    everything, indexed = torch.zeros(2, len(samples), 3, len(labels))
    with TemporaryDirectory() as folder:
        index = PhotoIndex(detector, folder)
        for place, sample in enumerate(tqdm(samples, desc="looking", unit="picture", disable=not progress)):
            row = index.row(detector.encode(sample.image)).half().float()[:, : asked.shape[-1]]
            indexed[place] = (
                detector.model.box_decoder.logits(row[None], asked.flatten(0, 1)[None], None)[0].amax(0).view(3, -1)
            )
            everything[place] = _alone(detector, detector.encode_batch([sample.image]), asked.flatten(0, 1)).view(3, -1)
        result: dict = {"bytes_a_picture": index.bytes_a_picture}
    for kind, modality in enumerate(("text", "visual", "both")):
        rankings: dict[str, list[dict]] = {way: [] for way in WAYS}
        kept: dict[int, list[float]] = {length: [] for length in SHORTLISTS}
        for name, (label, example) in enumerate(zip(labels, examples)):
            rest = np.arange(len(samples)) != example
            right, full = holds[rest, label], everything[rest, kind, name].numpy()
            alone = indexed[rest, kind, name].numpy()
            order = np.argsort(-alone, kind="stable")
            first = np.argsort(-full, kind="stable")[:KEPT]
            orders = {"index": alone, "everything": full}
            for length, way in zip(SHORTLISTS, WAYS[1:-2]):
                orders[way] = alone - 1e6  # behind the shortlist the index's order stands
                orders[way][order[:length]] = full[order[:length]]
                kept[length].append(np.isin(first, order[:length]).mean())
            for way, scores in orders.items():
                rankings[way].append(retrieval_scores(scores, right))
            rankings["random"] += [retrieval_scores(draw.random(len(right)), right) for _ in range(CHANCE)]
        result[modality] = {
            way: {key: round(float(np.mean([own[key] for own in each])), 4) for key in each[0]}
            for way, each in rankings.items()
        } | {"kept": {str(length): round(float(np.mean(own)), 4) for length, own in kept.items()}}
    about = {"pictures": len(samples), "questions": len(labels), "seed": seed, "shortlist": SHORTLIST}
    return result | about | weights | {"data": describe_dataset(dataset)} | describe_code()


def _alone(detector: Detector, features: ImageFeatures, prompts: Tensor) -> Tensor:
    """The best logit of each of `prompts` [C, D] on one picture, each asked alone: [C]. They are decoded as a batch."""
    detector.model.decode(features, prompts[:1])  # keeps what every question needs
    parts = [features.tokens, features.padding, features.centres, features.valid, *features.kept.values()]
    tokens, padding, centres, valid, *kept = (part.expand(len(prompts), *part.shape[1:]) for part in parts)
    same = dict(zip(features.kept, kept))
    features = ImageFeatures(tokens, features.shapes, padding, centres, valid, features.sizes * len(prompts), same)
    return detector.model.decode(features, prompts[:, None]).logits.amax((1, 2))


def _asked(detector: Detector, name: str, sample, label: int) -> Tensor:
    """A question as words, as one example box, and as both: [3, D]."""
    box = {"boxes": {name: sample.boxes[sample.labels == label][:1]}}
    ways = ({"text": [name]}, {"image": sample.image, **box}, {"text": [name], "image": sample.image, **box})
    return torch.cat([detector.ask(**way).embeddings for way in ways])


def retrieval_scores(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """{"AP", "R@1", "R@5", "R@10"} in 0..1 of pictures ranked by `scores` [N], of which those of `right` [N] (bool, one
    at least) are to come first.
    """
    found = right[np.argsort(-scores, kind="stable")]
    ranks = np.flatnonzero(found) + 1
    recall = {f"R@{k}": float(found[:k].sum() / min(k, len(ranks))) for k in CUTS}
    return {"AP": float((np.arange(1, len(ranks) + 1) / ranks).mean())} | recall


def time_search(
    detector: Detector,
    folder: str | Path,
    words: Sequence[str],
    simulated: Sequence[int] = (1_000, 100_000),
    progress: bool = True,
) -> dict:
    """Processor seconds (on one thread of a quiet machine: seconds) of indexing a folder, in a temporary place, and of
    questions: {"pictures", "indexing", "question", "index_alone": of the folder, "shortlist", "bytes_a_picture",
    "simulated": {pictures: {"index_alone", "question"}}}.

    Of the second and further `words` the median counts; the first one waits for what is loaded once. Simulated indexes
    repeat the rows of the folder's; the detector's part of a question is the same for all.
    """
    with TemporaryDirectory() as place:
        index = PhotoIndex(detector, folder, place)
        spent = {"indexing": _seconds(index.update, progress)}
        for key, shortlist in (("question", SHORTLIST), ("index_alone", 0)):
            each = [_seconds(search, index, word, shortlist=shortlist) for word in words]
            spent[key] = float(np.median(each[1:]))
        prompts = detector.ask(text=words[0]).embeddings
        looking, rows = spent["question"] - spent["index_alone"], (Path(place) / "vectors.f16").read_bytes()
        larger = {}
        for pictures in simulated:
            with open(Path(place) / "vectors.f16", "wb") as file:
                for _ in range(math.ceil(pictures * index.bytes_a_picture / len(rows))):
                    file.write(rows)
            alone = _seconds(index.scores, prompts)
            larger[str(pictures)] = {"index_alone": alone, "question": looking + alone}
        about = {"pictures": len(index.files), "shortlist": SHORTLIST, "bytes_a_picture": index.bytes_a_picture}
        return about | spent | {"simulated": larger}


def _seconds(act, *arguments, **options) -> float:
    start = time.process_time()
    act(*arguments, **options)
    return time.process_time() - start
