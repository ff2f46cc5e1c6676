"""Teach the text tower names that no box was ever labelled with: an image classifier is the teacher.

The paper names the boxes of SA-1B by a region classifier. Here EfficientNet-Lite0's own ImageNet head, which knows
1,000 classes, looks at pictures and at the objects in them. Where it is sure of a class, the visual prompts V of those
regions have a mean, and T of the class's names is trained to be that mean: a name is then as good a question as the
examples were. No box needs a label for this. It is not in the paper, whose text tower has read CLIP's captions.

What the tower was taught before stays: T of the known names is held where it is (`text_distillation.distil`).
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn
from tqdm import tqdm

from trex2_mini.checkpoint import save_model
from trex2_mini.datasets.formats import looks_like_a_set
from trex2_mini.datasets.registry import open_dataset
from trex2_mini.datasets.scenes.library import Library
from trex2_mini.detector import Detector
from trex2_mini.images import load_image
from trex2_mini.model.image_encoder import load_lite0
from trex2_mini.names import Vocabulary
from trex2_mini.paths import write_text
from trex2_mini.weights.text_distillation import catalogue_names, distil

SIDE = 224  # px of what the classifier sees
SURE = 0.5  # a region counts for a class from this probability
GRID, CELL = 3, 128  # cut-outs are laid on grey, so many a row, each in a cell of so many pixels


@dataclass(frozen=True)
class Shown:
    """A picture [H, W, 3] and regions of it that each show one thing: boxes [n, 4] xyxy in pixels. name: what they
    show, where the folder says it."""

    image: np.ndarray
    boxes: np.ndarray
    name: str | None = None


def class_names() -> list[list[str]]:
    """The names of ImageNet's 1,000 classes, in small letters; a name that two classes have belongs to neither."""
    info = ImageNetInfo()
    names = [info.label_name_to_description(synset, False).lower().split(",") for synset in info.label_names()]
    names = [[name.strip() for name in own] for own in names]
    met = [name for own in names for name in own]
    return [[name for name in own if met.count(name) == 1] for own in names]


def classifier() -> nn.Module:
    """EfficientNet-Lite0 with its head, as the image encoder gets it from PyPI."""
    model = timm.create_model("tf_efficientnet_lite0").eval()
    load_lite0(model)
    return model


def pictures_of(source: str) -> Iterable[Shown]:
    """The pictures of a library of cut-outs (the part that training may use, several on grey), of folders NAME/picture
    (the whole picture is one region, with the folder's name), or of any set that `open_dataset` takes (its boxes, not
    its labels). Raises FileNotFoundError where the source is none of these."""
    folder = Path(source).expanduser()
    found = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if any(folder.glob("*/*.webp")) or any(folder.glob("*/*/*.webp")):
        library = Library.open(folder).part(held_out=False)
        files = [file for own in library.files for file in own]
        return (_on_grey(files[i : i + GRID * GRID]) for i in range(0, len(files), GRID * GRID))
    if found and not looks_like_a_set(folder):
        return (_whole(path) for path in found)
    data = open_dataset(source)
    samples = (data.read(i) for i in range(len(data)))
    return (Shown(sample.image, sample.boxes) for sample in samples if sample is not None and len(sample.boxes))


def _whole(path: Path) -> Shown:
    image = load_image(path)
    height, width = image.shape[:2]
    return Shown(image, np.array([[0, 0, width, height]], np.float32), path.parent.name)


def _on_grey(files: Sequence[str]) -> Shown:
    """Cut-outs in the cells of a grid, each as large as its cell allows."""
    sheet, boxes = Image.new("RGB", (GRID * CELL, GRID * CELL), (124, 124, 124)), []
    for i, file in enumerate(files):
        with Image.open(file) as picture:
            cut = picture.convert("RGBA")
        cut.thumbnail((CELL - 16, CELL - 16))
        x, y = (i % GRID) * CELL + (CELL - cut.width) // 2, (i // GRID) * CELL + (CELL - cut.height) // 2
        sheet.paste(cut, (x, y), cut)
        boxes.append([x, y, x + cut.width, y + cut.height])
    return Shown(np.asarray(sheet), np.array(boxes, np.float32))


def crops(shown: Shown, margin: float = 0.15) -> Tensor:
    """What the classifier sees of the regions: [n, 3, SIDE, SIDE], squares around the boxes, in -1..1."""
    image, found = Image.fromarray(shown.image), []
    for x1, y1, x2, y2 in shown.boxes:
        half = max(x2 - x1, y2 - y1) * (0.5 + margin if shown.name is None else 0.5)
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        square = tuple(round(float(v)) for v in (x - half, y - half, x + half, y + half))
        found.append(np.asarray(image.crop(square).resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def look(detector: Detector, pictures: Iterable[Shown], least: int = 24) -> tuple[Tensor, Tensor]:
    """(V [n, D] of every region, what the teacher thinks of it [n, 1000], adding up to 1). Boxes with a side under
    `least` px are left out: there is nothing to recognize. A region whose name is a class's is that class."""
    teacher, place = classifier(), {name: i for i, own in enumerate(class_names()) for name in own}
    vectors, thoughts = [], []
    for shown in tqdm(pictures, desc="pictures", unit="picture"):
        large = (shown.boxes[:, 2:] - shown.boxes[:, :2]).min(1) >= least
        shown = Shown(shown.image, shown.boxes[large], shown.name)
        if not len(shown.boxes):
            continue
        encoded = detector.encode(shown.image)
        vectors.append(
            detector.embed({f"region {i}": [(encoded, [box])] for i, box in enumerate(shown.boxes)}).embeddings
        )
        if shown.name is not None and shown.name.lower() in place:
            sure = torch.zeros(len(shown.boxes), 1000)
            sure[:, place[shown.name.lower()]] = 1
            thoughts.append(sure)
        else:
            thoughts.append(teacher(crops(shown)).softmax(-1))
    return torch.cat(vectors), torch.cat(thoughts)


def class_vectors(vectors: Tensor, thoughts: Tensor, length: float) -> dict[int, Tensor]:
    """Of each class that the teacher is `SURE` of somewhere: the mean V of its regions, weighted by its probability,
    stretched to `length` (that of the known names' T)."""
    weights = thoughts * (thoughts >= SURE)
    sums = weights.T @ vectors  # (1000, D)
    return {
        number: sums[number] / sums[number].norm() * length
        for number in torch.nonzero(weights.sum(0) > 0)[:, 0].tolist()
    }


def teach_names(source: str | Path, out: str | Path, pictures: Iterable[Shown], steps: int = 400) -> dict:
    """Write to `out` the checkpoint `source` with a text tower that knows the names of ImageNet's classes, as far as
    the pictures show them. Returns what was measured; it is also in name_teacher.json.

    Raises ValueError where the checkpoint has no vocabulary.json.
    """
    began = time.perf_counter()
    detector = Detector.load(source, "cpu")
    if detector.vocabulary is None:
        raise ValueError(f"{source} has no vocabulary.json, so it is not known which names its T must be kept of")
    classes = {name for own in class_names() for name in own}
    known = list(dict.fromkeys([*detector.vocabulary.names, *(n for n in catalogue_names() if n not in classes)]))
    encoder = detector.model.text_prompt_encoder
    with torch.no_grad():
        kept = encoder(known).clone()
    vectors, thoughts = look(detector, pictures)
    means = class_vectors(vectors.clone(), thoughts.clone(), float(kept.norm(dim=-1).mean()))
    told = {name.lower() for name in known}
    fresh = [(name, i) for i in means for name in class_names()[i] if name not in told]
    names, targets = [name for name, _ in fresh], torch.stack([means[i] for _, i in fresh])
    distil(encoder, names, targets, known, kept, steps, aside=0)
    with torch.no_grad():
        moved = torch.cosine_similarity(encoder(known), kept)
        reached = torch.cosine_similarity(encoder(names), targets).mean()
    result = {
        "source": str(source), "regions": len(vectors), "classes": len(means), "names": len(names), "steps": steps,
        "cosine_names": round(float(reached), 3),
        "cosine_known": round(float(moved.mean()), 4), "cosine_known_least": round(float(moved.min()), 4),
        "seconds": round(time.perf_counter() - began),
    }  # fmt: skip
    save_model(Path(out), detector.model, detector.config)
    (detector.vocabulary | Vocabulary.of(names)).save(Path(out))
    write_text(Path(out) / "name_teacher.json", json.dumps(result, indent=2) + "\n")
    return result
