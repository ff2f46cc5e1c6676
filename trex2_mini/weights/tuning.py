"""Prompts tuned on a few labelled pictures: one vector a name, started at Visual-G's mean, learned with the detection
losses while the model stands still. Ours; the paper has no such step.

    tuned = tune(detector, [("a.jpg", {"coin": [[10, 10, 60, 60]]}), ...])
    print(tuned.line)                              # what it brings on pictures that were held back
    tuned.detector.detect("new.jpg", prompts=tuned.bank)
    tuned.save("coins.safetensors")

Every picture is encoded once, so that it takes seconds. Two strengths: the vectors alone, or the vectors with a box
decoder of their own, which overfits within half a minute. So each number of steps of each strength is first measured
on pictures that were held back (cross-validation: every picture once); the best is taken, and none where tuning does
not help.
"""

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from trex2_mini.boxes import check_boxes, xyxy_to_normalized
from trex2_mini.checkpoint import CheckpointError, load_weights, read_tensors, write_tensors
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.detections import top_detections
from trex2_mini.detector import Detector
from trex2_mini.evaluation.metrics import coco_ap
from trex2_mini.images import load_image
from trex2_mini.losses.criterion import Targets, detection_losses
from trex2_mini.model.box_decoder import BoxDecoder, DecoderOutput
from trex2_mini.model.image_encoder import ImageFeatures
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.names import name_key, unique_names
from trex2_mini.prompt_bank import PromptBank

FOLDS = 4
STRENGTHS = ("vectors", "decoder")
PICTURES_A_STEP = 4
NO_POINTS = torch.zeros(0, 2)


@dataclass
class Tuned:
    """bank: the tuned vectors, for `detector`: the one given, or one with a decoder of its own.

    report: {"pictures", "folds", "strength": that is taken, "none" where no tuning helps, "steps", "AP": {strength:
    {steps: on held-back pictures; 0: untuned}}, "per_category": {name: [before, after]}, "seconds"}.
    """

    bank: PromptBank
    detector: Detector
    report: dict

    @property
    def line(self) -> str:
        """What was tried and what is taken, in one line."""
        tried = {strength: max(aps.items(), key=lambda own: own[1]) for strength, aps in self.report["AP"].items()}
        untuned = next(iter(self.report["AP"].values()))[0]
        best = ", ".join(f"{ap:.1f} with {strength} ({steps} steps)" for strength, (steps, ap) in tried.items())
        taken = {"none": "nothing helps, the untuned mean is kept"}.get(
            self.report["strength"], f"{self.report['strength']} is kept"
        )
        return (
            f"AP on held-back pictures ({self.report['pictures']} pictures, {self.report['folds']} parts, "
            f"{self.report['seconds']:.0f} s): {untuned:.1f} untuned, {best}: {taken}"
        )

    def save(self, file: str | Path) -> None:
        """The bank; where the decoder learned too, it lies beside: mine.safetensors, mine.decoder.safetensors."""
        self.bank.save(file)
        beside = decoder_file(file)
        beside.unlink(missing_ok=True)  # of an earlier tuning
        if base := getattr(self.detector, "tuned_from", None):
            tensors = {key: value.half() for key, value in self.detector.model.box_decoder.state_dict().items()}
            write_tensors(beside, tensors, {"weights": base})


def decoder_file(bank: str | Path) -> Path:
    """Where the decoder of a tuned bank lies."""
    return Path(bank).with_suffix(".decoder.safetensors")


@dataclass
class _Picture:
    features: ImageFeatures
    size: tuple[int, int]  # height, width in pixels
    labels: Tensor  # [n]
    boxes: Tensor  # [n, 4] cxcywh in 0..1
    shown: dict[int, Tensor]  # label -> V of its boxes on this picture


def tune(
    detector: Detector,
    pictures: Sequence[tuple[Any, Mapping[str, Any]]],
    steps: int = 30,
    strengths: Sequence[str] = STRENGTHS,
    every: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Tuned:
    """Vectors for the names on a few labelled pictures; about ten are enough.

    Args:
        pictures: [(picture, {"coin": [[x1, y1, x2, y2], ...], ...}), ...] in pixels; every object of these names is in.
        steps: at most so many; `every` so many are measured.
        strengths: what may learn, "vectors" alone or the box "decoder" with them; what helps most is taken.

    Raises:
        ValueError: fewer than two pictures with boxes, boxes that cannot be used, an unknown strength, or steps and
        every under 1.
    """
    if steps < 1 or every < 1:
        raise ValueError(f"expected steps and every of at least 1, got {steps} and {every}")
    if not strengths or set(strengths) - set(STRENGTHS):
        raise ValueError(f"strengths: expected one or both of {', '.join(STRENGTHS)}, got {strengths!r}")
    began = time.perf_counter()
    names = unique_names([name for _, boxes in pictures for name in boxes]) if pictures else []
    known = [_look(detector, image, boxes, names) for image, boxes in pictures]
    if sum(len(picture.labels) > 0 for picture in known) < 2:
        raise ValueError(
            f"expected at least two pictures with boxes, one to learn from and one to measure on, got {len(known)}"
        )
    order, folds = np.random.default_rng(seed).permutation(len(known)), min(FOLDS, len(known))
    truth = _truth(known, names)
    found: dict[tuple[int, str], list[dict]] = {}  # what `coco_ap` says of each part that was held back
    todo = [(strength, fold) for strength in strengths for fold in range(folds)]
    for strength, fold in tqdm(todo, "tuning", disable=None if progress else True):
        aside = [int(i) for i in order[fold::folds] if len(known[i].labels)]
        rest = [known[i] for i in order if i not in order[fold::folds]]
        for step, (vectors, own) in enumerate(_learn(detector, rest, len(names), steps, strength == "decoder", seed)):
            if step % every == 0 and aside:
                rows = [row for i in aside for row in _answers(detector, own, known[i], vectors, names, i)]
                found.setdefault((step, strength), []).append(coco_ap(truth, rows, image_ids=[i + 1 for i in aside]))
    # a mean over the parts: scores of models that learned from different pictures do not compare
    held_back = {key: float(np.mean([own["AP"] for own in parts])) for key, parts in found.items()}
    steps, strength = max(held_back, key=lambda key: (round(held_back[key], 3), -key[0], -STRENGTHS.index(key[1])))
    *_, (vectors, own) = _learn(detector, known, len(names), steps, strength == "decoder", seed)
    if steps and strength == "decoder":
        detector = _with_decoder(detector, own)
    report = {
        "pictures": len(known),
        "folds": folds,
        "strength": strength if steps else "none",
        "steps": steps,
        "AP": {kind: {n: round(ap, 2) for (n, k), ap in held_back.items() if k == kind} for kind in strengths},
        "per_category": {name: [_of(name, found[n, strength]) for n in (0, steps)] for name in names},
        "seconds": round(time.perf_counter() - began, 1),
    }
    return Tuned(PromptBank(names, vectors.cpu(), detector.weights), detector, report)


def _of(name: str, parts: list[dict]) -> float | None:
    """The AP of a name, a mean over the parts that hold it; None where none does."""
    own = [part["per_category"][name] for part in parts if name in part["per_category"]]
    return round(float(np.mean(own)), 2) if own else None


def load_tuned(detector: Detector, file: str | Path) -> tuple[Detector, PromptBank]:
    """What `Tuned.save` wrote, for the detector that was tuned; any other bank comes with the detector as it is.
    Raises CheckpointError where the tuned detector was another.
    """
    beside = decoder_file(file)
    if beside.exists():
        tensors, metadata = read_tensors(beside, "decoder")
        if metadata.get("weights") != detector.weights:
            raise CheckpointError(
                f"{beside} was tuned from a model with other weights ({metadata.get('weights')}; this one has "
                f"{detector.weights}); load that model, or tune again"
            )
        own = copy.deepcopy(detector.model.box_decoder)
        load_weights(own, tensors, str(beside))
        detector = _with_decoder(detector, own)
    return detector, PromptBank.load(file)


def labelled(
    dataset: CocoDataset, count: int, seed: int = 0, names: Sequence[str] | None = None
) -> list[tuple[Any, dict]]:
    """`count` pictures of a set, drawn at random among those with boxes of `names` (all), as `tune` takes them.

    Raises ValueError: a name that the set does not have.
    """
    label_of = {name_key(name): label for label, name in enumerate(dataset.names)}
    if unknown := [name for name in names or () if name_key(name) not in label_of]:
        raise ValueError(f"the set has no {', '.join(unknown)}; it has {', '.join(dataset.names[:20])}")
    wanted = set(label_of.values()) if names is None else {label_of[name_key(name)] for name in names}
    found = []
    for place in np.random.default_rng(seed).permutation(len(dataset)):
        if len(found) == count:
            break
        sample = dataset[int(place)]
        if labels := sorted(wanted & set(sample.labels.tolist())):
            boxes = {dataset.names[label]: sample.boxes[sample.labels == label] for label in labels}
            found.append((sample.image, boxes))
    return found


def _with_decoder(detector: Detector, decoder: BoxDecoder) -> Detector:
    """Another detector with this decoder; all other parts are shared."""
    model = copy.copy(detector.model)
    model._modules = {**model._modules, "box_decoder": decoder.requires_grad_(True)}
    with torch.no_grad():  # as its file keeps it, so that both are the same model
        for tensor in decoder.state_dict().values():
            tensor.copy_(tensor.half())
    other = Detector(model, detector.config, detector.device)
    other.vocabulary, other.aliases, other.tuned_from = detector.vocabulary, detector.aliases, detector.weights
    return other


def _look(detector: Detector, image: Any, boxes: Mapping[str, Any], names: list[str]) -> _Picture:
    """Encode a picture, and each name's boxes on it as one V."""
    array, label_of = load_image(image), {name_key(name): label for label, name in enumerate(names)}
    size = array.shape[:2]
    given: dict[int, Tensor] = {}
    for name, own in boxes.items():
        checked = xyxy_to_normalized(torch.from_numpy(check_boxes(own, *size, f"boxes[{name!r}]")), *size)
        label = label_of[name_key(name)]
        given[label] = torch.cat([given.get(label, torch.zeros(0, 4)), checked])
    features = detector.encode_batch([array])
    regions = RegionPrompts.from_lists([[(own, NO_POINTS) for own in given.values()]], detector.device)
    with torch.inference_mode():
        vectors = detector.model.encode_visual(features, regions)[0] if given else []
    labels = torch.tensor([label for label, own in given.items() for _ in own], dtype=torch.long)
    # gradients go through them, which tensors of inference mode do not allow
    clones = {
        field.name: getattr(features, field.name).clone()
        for field in dataclasses.fields(features)
        if isinstance(getattr(features, field.name), Tensor)
    }
    shown = {label: vector.clone() for label, vector in zip(given, vectors)}
    return _Picture(
        dataclasses.replace(features, **clones),
        size,
        labels.to(detector.device),
        torch.cat([torch.zeros(0, 4), *given.values()]).to(detector.device),
        shown,
    )


def _learn(detector: Detector, pictures: list[_Picture], categories: int, steps: int, decoder: bool, seed: int):
    """Yields (vectors [C, D], decoder) before the first and after each step; a name without a picture stays zero."""
    own = copy.deepcopy(detector.model.box_decoder).requires_grad_(decoder)
    start = torch.zeros(categories, detector.config.model.dim, device=detector.device)
    for label in range(categories):
        if vectors := [picture.shown[label] for picture in pictures if label in picture.shown]:
            start[label] = torch.stack(vectors).mean(0)
    vectors = torch.nn.Parameter(start)
    groups = [{"params": [vectors], "lr": 0.03 if decoder else 0.05}]
    if decoder:
        groups.append({"params": list(own.parameters()), "lr": 3e-4})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    rng = np.random.default_rng(seed)
    yield vectors.detach().clone(), own
    for _ in range(steps):
        chosen = rng.choice(len(pictures), min(PICTURES_A_STEP, len(pictures)), replace=False)
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            for alike in _by_size([pictures[place] for place in chosen]):
                output = own(_joined(alike), vectors.expand(len(alike), -1, -1), auxiliary=True)
                losses = [
                    detection_losses(_of_one(output, i), Targets([one.labels], [one.boxes]), detector.config.train)
                    for i, one in enumerate(alike)
                ]
                (torch.stack([value for parts in losses for value in parts.values()]).sum() / len(chosen)).backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        yield vectors.detach().clone(), own


def _by_size(pictures: list[_Picture]) -> list[list[_Picture]]:
    """Those whose maps have one size, together: one pass of the decoder for all of them."""
    groups: dict[Any, list[_Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.features.shapes[0], []).append(picture)
    return list(groups.values())


def _joined(pictures: list[_Picture]) -> ImageFeatures:
    """The features of pictures whose maps have one size, as a batch."""
    each = [picture.features for picture in pictures]
    fields = ("tokens", "padding", "centres", "valid")
    whole = {name: torch.cat([getattr(own, name) for own in each]) for name in fields}
    return ImageFeatures(**whole, shapes=each[0].shapes, sizes=[size for own in each for size in own.sizes])


def _of_one(output: DecoderOutput, place: int) -> DecoderOutput:
    """What the decoder says of one picture of a batch."""
    parts = [DecoderOutput(own.logits[place, None], own.boxes[place, None]) for own in (output, *output.auxiliary)]
    parts[0].auxiliary = parts[1:]
    return parts[0]


@torch.no_grad()
def _answers(
    detector: Detector, decoder: BoxDecoder, picture: _Picture, vectors: Tensor, names: list[str], image_id: int
) -> list[dict]:
    """COCO results of one picture; names without a vector have none."""
    picture.features.kept.clear()  # of a decoder that has learned since
    output = decoder(picture.features, vectors[None])
    logits = output.logits.masked_fill(~vectors.any(-1), -torch.inf)
    best = top_detections(logits, output.boxes, [picture.size], names, 100, detector.config.model.nms_iou)[0]
    rows = best.filter(1e-6).to_coco(image_id + 1)
    return [{key: row[key] for key in ("image_id", "category_id", "bbox", "score")} for row in rows]


def _truth(pictures: list[_Picture], names: list[str]) -> dict:
    """The labelled pictures as a COCO dictionary."""
    annotations = []
    for image_id, picture in enumerate(pictures, 1):
        height, width = picture.size
        for label, (cx, cy, w, h) in zip(picture.labels.tolist(), picture.boxes.tolist()):
            bbox = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1, "bbox": bbox}
            annotations.append(row | {"area": bbox[2] * bbox[3], "iscrowd": 0})
    return {
        "images": [{"id": i, "height": p.size[0], "width": p.size[1]} for i, p in enumerate(pictures, 1)],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(names, 1)],
    }
