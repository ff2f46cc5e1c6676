"""The paper's zero-shot protocols (spec section 5) and some of ours; `evaluate` measures a detector by any of them.

    text              the names of all categories of the set are the prompts, on every image
    visual-g          one prompt a category, averaged over N reference images (`visual_bank`), on every image
    mixed             (T + V) / 2 of those two
    visual-i          for each category present in an image, one of its boxes there (or its centre) is the prompt
    visual-i-others   the same answers, but only the *other* instances are to be found (ours; interactive.py)
    visual-i-negatives  with and without negative prompts, where look-alikes are in the image (ours; negatives.py)
    region            every ground-truth box is to be named (region.py); region-visual: by examples instead of names
    counting          the objects like one to three boxes are to be counted (counting.py)
    video             prompted on the first frame of a clip, used on the later ones (video.py)

Visual-I tells which categories are present and counts the prompted instance as found, so the AP of a mere echo of the
prompts stands beside it. A category set (all, trained, novel) restricts prompts and ground truth alike. An image gives
its 300 best (query, prompt) pairs.

Public beside `evaluate`: `answers` (the detections of one of PROTOCOLS or of video, to be measured or resampled:
bootstrap.py) and in repeat.py `repeated` (several draws).
"""

import dataclasses
import time
import warnings
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.detector import Detector
from trex2_mini.evaluation.bank import NO_POINTS, visual_bank
from trex2_mini.evaluation.baselines import baseline_detections
from trex2_mini.evaluation.bootstrap import bootstrap
from trex2_mini.evaluation.counting import counting, open_counting
from trex2_mini.evaluation.interactive import Prompts, draw_prompts, echo_detections, only_others
from trex2_mini.evaluation.lvis import lvis_ap
from trex2_mini.evaluation.negatives import negatives
from trex2_mini.evaluation.packed import Packed
from trex2_mini.evaluation.provenance import describe_code, describe_dataset, describe_file
from trex2_mini.evaluation.region import region_ranks, region_scores
from trex2_mini.evaluation.trial import (
    Answers,
    Options,
    Trial,
    as_coco,
    choose_labels,
    normalized,
    open_detector,
    opened,
)
from trex2_mini.evaluation.video import video
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.prompt_bank import PromptBank

PROTOCOLS = ("text", "visual-i", "visual-i-others", "visual-g", "mixed")  # AP over the images of a set
ALL_PROTOCOLS = (*PROTOCOLS, "visual-i-negatives", "region", "region-visual", "counting", "video")
NO_BOXES = torch.zeros(0, 4)


def evaluate(
    checkpoint: str | Path | Detector,
    data: str | Path | CocoDataset,
    protocol: str,
    categories: str = "all",
    options: Options | None = None,
    **changes,
) -> dict:
    """Measure a detector by one protocol.

    Args:
        checkpoint: a shipped name, a folder, or a Detector.
        data: a name or folder for `open_dataset`, or a CocoDataset; for counting what `open_counting` takes.
        protocol: one of ALL_PROTOCOLS.
        categories: one of CATEGORY_SETS; trained and novel go by the categories' own flag "novel".
        options, changes: see `Options`; `changes` are single ones by name, as in evaluate(..., limit=100).

    Returns:
        AP, AP50, AP75 in percent by COCO's rules, or on a set with federated annotation by LVIS's, with AP_r, AP_c,
        AP_f and fixed_AP. region: top1, top5 and more of `region_scores` instead; counting: MAE, RMSE and more of
        `counting`; video: also what `video` says; visual-i-negatives: what `negatives` says.
        Where they come from: protocol, data, category_set, images, categories (those with ground truth), prompts
        (names; for visual-i, prompts drawn), seed, checkpoint, checkpoint_hash, dataset, versions, commit, seconds;
        last per_category {name: AP, or top1}.
        visual-g, mixed: examples, reference, without_examples (names left out, also of the ground truth).
        visual-i, visual-i-others: echo, the AP, under the same protocol, of answering the prompted box itself; the APs
        of `baselines`. visual-i-others: also pairs_with_others and AP_pairs_with_others, see `only_others`.
        unreadable: {image id: why} of the pictures that were left out, where there are any; they count nowhere.

    Raises:
        ValueError: unknown protocol or categories, no flag "novel", nothing to find, no example, number under 1, an
        option of another protocol.
    """
    if protocol not in ALL_PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; expected one of {', '.join(ALL_PROTOCOLS)}")
    options = dataclasses.replace(options or Options(), **changes).of(protocol, data)
    start = time.perf_counter()
    detector, weights = open_detector(checkpoint)
    if protocol == "counting":
        if categories != "all":
            raise ValueError(f"counting has splits, not the category set {categories!r}: give split= (--split) instead")
        dataset = open_counting(data, options.split)
        folder, described = dataset.folder, describe_file(dataset.annotations)
        scores = counting(detector, dataset, options) | {"split": options.split}
    else:
        dataset = opened(data)
        folder, described = dataset.path.parent, describe_dataset(dataset)
        told = detector.vocabulary if protocol in ("text", "mixed", "region") else None
        if told and (unknown := [name for name in dataset.names if told.unknown(name)]):
            said = f"{len(unknown)} of {len(dataset.names)} names have words that this checkpoint was never taught"
            warnings.warn(f"{said}, and are hardly found by text: {', '.join(unknown[:5])}", stacklevel=2)
        if protocol.startswith("region"):
            scores = _region(_trial(detector, dataset, options), choose_labels(dataset, categories), protocol, options)
        elif protocol == "visual-i-negatives":
            scores = negatives(detector, dataset, choose_labels(dataset, categories), options)
        else:
            given = answers(detector, dataset, protocol, categories, options)
            scores = given.measure()
            scores |= {"images": len(given.image_ids), "categories": len(scores["per_category"])}
            if options.resamples:
                spread = bootstrap(given, options.resamples, options.seed)
                scores |= {"AP_low": spread["low"], "AP_high": spread["high"], "resamples": options.resamples}
            if given.federated:
                fixed = lvis_ap(given.truth, given.detections, given.category_ids, given.image_ids, fixed=True)
                scores["fixed_AP"] = fixed["AP"]
            scores |= given.details
    if dataset.left_out:
        scores["unreadable"] = {str(name): why for name, why in dataset.left_out.items()}
    per_category = scores.pop("per_category")
    return {
        "protocol": protocol,
        "data": str(data) if isinstance(data, (str, Path)) else str(folder),
        "category_set": categories,
        **scores,
        "seed": options.seed,
        **weights,
        "dataset": described,
        **describe_code(),
        "seconds": round(time.perf_counter() - start, 1),
        "per_category": per_category,
    }


def answers(
    checkpoint: str | Path | Detector,
    data: str | Path | CocoDataset,
    protocol: str,
    categories: str = "all",
    options: Options | None = None,
    **changes,
) -> Answers:
    """The detections of one of PROTOCOLS, or of video, with what is needed to measure them. Arguments as in
    `evaluate`."""
    if protocol not in (*PROTOCOLS, "video"):
        raise ValueError(
            f"expected one of {', '.join(PROTOCOLS)}, video; {protocol!r} gives no detections to measure by AP"
        )
    options = dataclasses.replace(options or Options(), **changes).of(protocol, data)
    detector = Detector.load(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
    dataset = opened(data)
    labels = choose_labels(dataset, categories)
    if protocol == "video":
        return video(detector, dataset, labels, options)
    trial, truth = _trial(detector, dataset, options), dataset.coco
    details: dict = {}
    if protocol == "text":
        phrases = first_synonyms(dataset) if options.synonyms else dict(enumerate(dataset.names))
        labels = [label for label in labels if label in phrases]
        detections = text(trial, labels, [phrases[label] for label in labels])
        details |= {"prompts": len(labels), "synonyms": options.synonyms}
    elif protocol in ("visual-g", "mixed"):
        labels, bank, details = _bank(trial, labels, options)
        detections = (visual_generic if protocol == "visual-g" else mixed)(trial, labels, bank)
    else:
        chosen = {dataset.category_ids[label] for label in labels}
        drawn = draw_prompts(truth, options.seed, chosen, set(trial.image_ids))
        detections = visual_interactive(trial, drawn, options.points)
        beside = {"echo": echo_detections(drawn)}
        beside |= {
            kind: baseline_detections(kind, dataset, drawn, trial.image_ids, options.progress)
            for kind in options.baselines
        }
        details |= {"prompts": len(drawn), "prompted_with": "points" if options.points else "boxes"}
        if protocol == "visual-i-others":
            beside = {kind: only_others(truth, answer, drawn)[1] for kind, answer in beside.items()}
            truth, detections, pairs = only_others(truth, detections, drawn)
            there = detections.of_pairs(pairs)
    given = Answers(truth, detections, [dataset.category_ids[label] for label in labels], trial.image_ids, details)
    if protocol == "visual-i-others":
        details |= {"pairs_with_others": len(pairs), "AP_pairs_with_others": given.measure(there)["AP"]}
    if protocol in ("visual-i", "visual-i-others"):
        details |= {kind: given.measure(answer)["AP"] for kind, answer in beside.items()}
    return given


def _trial(detector: Detector, dataset: CocoDataset, options: Options) -> Trial:
    images = len(dataset.coco["images"][: options.limit])
    return Trial(detector, dataset, images, options.batch_size, options.progress)


def _bank(trial: Trial, labels: list[int], options: Options) -> tuple[list[int], PromptBank, dict]:
    """The labels that have examples, their bank, and what a result says of it."""
    names, references = [trial.dataset.names[label] for label in labels], opened(options.reference)
    bank = visual_bank(
        trial.detector, references, names, options.examples, options.seed, trial.batch_size, trial.progress
    )
    labels = [label for label in labels if trial.dataset.names[label] in bank.names]
    details = {"prompts": len(labels), "examples": options.examples, "reference": describe_dataset(references)}
    return labels, bank, details | {"without_examples": [name for name in names if name not in bank.names]}


def _region(trial: Trial, labels: list[int], protocol: str, options: Options) -> dict:
    """What `evaluate` says of region classification."""
    details: dict = {"prompts": len(labels)}
    if protocol == "region-visual":
        labels, bank, details = _bank(trial, labels, options)
        prompts = bank.embeddings
    else:
        with torch.inference_mode():
            prompts = trial.detector.encode_text([trial.dataset.names[label] for label in labels])
    scores = region_scores(region_ranks(trial, labels, prompts), trial.dataset.names)
    return scores | details | {"images": trial.images, "categories": len(scores["per_category"])}


def first_synonyms(dataset: CocoDataset) -> dict[int, str]:
    """label -> the first of the category's synonyms that is not its name (LVIS lists the name too, and writes _ for a
    space)."""
    found = {}
    for label, category in enumerate(dataset.categories):
        others = [s.replace("_", " ") for s in category.get("synonyms", []) if s != category["name"]]
        if others:
            found[label] = others[0]
    if not found:
        raise ValueError(f"{dataset.path}: no category has synonyms")
    return found


def text(trial: Trial, labels: list[int], phrases: list[str] | None = None) -> Packed:
    """Text: the names of `labels`, or `phrases`, one for each, are the prompts of every image. Returns detections as
    COCO results."""
    phrases = [trial.dataset.names[label] for label in labels] if phrases is None else phrases
    with torch.inference_mode():
        prompts = trial.detector.encode_text(phrases)
    return _same_prompts(trial, labels, prompts)


def visual_generic(trial: Trial, labels: list[int], bank: PromptBank) -> Packed:
    """Visual-G: the bank's embeddings, one for each of `labels`, are the prompts of every image."""
    return _same_prompts(trial, labels, bank.embeddings)


def mixed(trial: Trial, labels: list[int], bank: PromptBank) -> Packed:
    """Mixed: (T + V) / 2, one for each of `labels`, are the prompts of every image."""
    with torch.inference_mode():
        texts = trial.detector.encode_text(bank.names)
    return _same_prompts(trial, labels, (texts + bank.embeddings.to(texts.device)) / 2)


@torch.inference_mode()
def _same_prompts(trial: Trial, labels: list[int], prompts: Tensor) -> Packed:
    """Detections of the same prompts [C, D], one for each of `labels`, on every image."""
    prompts, results = prompts.to(trial.detector.device), Packed()
    for samples, features in trial.batches():
        output = trial.detector.model.decode(features, prompts)
        results.extend(as_coco(trial.detector, trial.dataset, samples, output, [labels] * len(samples)))
    return trial.together(results)


@torch.inference_mode()
def visual_interactive(trial: Trial, drawn: Prompts, points: bool = False) -> Packed:
    """Visual-I: an image has its own prompts only; a category's detections come from its prompt alone."""
    label_of = {category: label for label, category in enumerate(trial.dataset.category_ids)}
    prompts_of: dict[int, dict[int, dict]] = defaultdict(dict)  # image id -> {label: annotation}
    for (image, category), annotation in drawn.items():
        prompts_of[image][label_of[category]] = annotation
    results = Packed()
    for samples, features in trial.batches():
        own = [prompts_of[sample.image_id] for sample in samples]
        if not any(own):
            continue
        boxes = [normalized(list(prompts.values()), sample) for prompts, sample in zip(own, samples)]
        regions = [[(NO_BOXES, b[None, :2]) if points else (b[None], NO_POINTS) for b in image] for image in boxes]
        prompts = RegionPrompts.from_lists(regions, trial.detector.device)
        vectors = trial.detector.model.encode_visual(features, prompts)
        output = trial.detector.model.decode(features, vectors, prompts.mask.any(-1))
        columns = [list(prompts) for prompts in own]
        results.extend(as_coco(trial.detector, trial.dataset, samples, output, columns))
    return trial.together(results)
