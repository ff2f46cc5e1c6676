"""The two engines, each as what it does to one picture; shards.py runs them over many.

An engine is a frozen dataclass of its input and its thresholds. `names` are all the phrases it may give; `label` takes
a picture and returns its pseudo-labels, each {"name", "bbox": [x, y, width, height] in pixels, "score", ...}: none
where the picture is not worth keeping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from trex2_mini.annotations import pictures_in
from trex2_mini.boxes import xyxy_to_normalized
from trex2_mini.data_engine.phrases import Parser, frequent_phrases, noun_phrases
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.large.index import ParquetDataset
from trex2_mini.datasets.large.shards import web_shards
from trex2_mini.detector import Detector, EncodedImage
from trex2_mini.images import picture_size
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.paths import read_json, read_text

CAPTIONS = "captions.json"


@torch.inference_mode()
def similarities(detector: Detector, encoded: EncodedImage, boxes: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
    """Cosine of V of each region and T of each phrase: boxes [K, 4] (xyxy pixels) and P phrases -> [K, P]. In place of
    CLIP's score."""
    normalized = xyxy_to_normalized(torch.as_tensor(boxes, dtype=torch.float32), encoded.height, encoded.width)
    regions = [(box[None], torch.zeros(0, 2)) for box in normalized]
    vectors = detector.model.encode_visual(encoded.features, RegionPrompts.from_lists([regions], detector.device))[0]
    texts = detector.encode_text(phrases)
    return F.cosine_similarity(vectors[:, None], texts[None], dim=-1).cpu().numpy()


@dataclass(frozen=True)
class TextEngine:
    """Captioned pictures -> phrase-box pairs.

    phrases     {image id: the noun phrases of its captions}
    score       least score of a detection by the text prompt
    similarity  least cosine of V of the region and T of the phrase (the paper: a CLIP score above 0.8)
    more_than   phrases of more than so many pictures' captions are the dictionary, which training draws its negatives
                from (the paper: 100)
    """

    phrases: dict[int, list[str]]
    score: float = 0.2
    similarity: float = 0.8
    more_than: int = 100
    kind = "text"

    @property
    def names(self) -> list[str]:
        return sorted({phrase for own in self.phrases.values() for phrase in own})

    @property
    def dictionary(self) -> dict[str, int]:
        """The frequent phrases; see `frequent_phrases`."""
        return frequent_phrases(self.phrases.values(), self.more_than)

    def label(self, detector: Detector, image_id: int, image: np.ndarray) -> list[dict]:
        """What the detector finds of the picture's phrases, where region and phrase are alike. A region keeps one
        phrase, the most similar.
        """
        phrases = self.phrases.get(image_id, [])
        if not phrases:
            return []
        encoded = detector.encode(image)
        found = detector.detect(encoded, text=phrases, score_threshold=self.score)
        if not len(found):
            return []
        alike = similarities(detector, encoded, found.boxes, phrases)
        own = alike[np.arange(len(found)), found.labels]
        kept = (own >= self.similarity) & (found.labels == alike.argmax(1))
        return [
            {"name": found.names[label], "bbox": _xywh(box), "score": _short(score), "similarity": _short(cosine)}
            for box, label, score, cosine in zip(found.boxes[kept], found.labels[kept], found.scores[kept], own[kept])
        ]


@dataclass(frozen=True)
class VisualEngine:
    """Pictures with boxes but no names, and not on every object -> named boxes on every object of the named kinds.

    boxes          {image id: [[x1, y1, x2, y2], ...] in pixels}
    names          the dictionary of the region classification
    probability    least probability of a box's best name; boxes below it get no name
    min_instances  a picture is kept if at least one name has so many boxes
    score          least score of a detection by the visual prompts, the named boxes
    same           a detection that overlaps a given or a better new box by this IoU or more is the same object
    """

    boxes: dict[int, list[list[float]]]
    names: list[str]
    probability: float = 0.3
    min_instances: int = 2
    score: float = 0.3
    same: float = 0.5
    kind = "visual"

    @property
    def dictionary(self) -> dict[str, int]:
        """All names that are given, with in how many pictures nothing says: names of this engine are negatives wherever
        they are not found."""
        return dict.fromkeys(self.names, 0)

    def label(self, detector: Detector, image_id: int, image: np.ndarray) -> list[dict]:
        """The picture's given boxes with their names ("given": 1), and what they find as interactive prompts ("given":
        0).
        """
        given = self.boxes.get(image_id, [])
        if len(given) < self.min_instances:
            return []
        encoded = detector.encode(image)
        given = np.asarray(given, np.float32)
        best, probabilities = detector.classify(encoded, given, self.names)
        sure = probabilities.max(1)
        held = Counter(name for name, p in zip(best, sure) if p >= self.probability)
        if max(held.values(), default=0) < self.min_instances:
            return []
        prompts = {n: given[[b == n and p >= self.probability for b, p in zip(best, sure)]] for n in held}
        labels = [
            {"name": name, "bbox": _xywh(box), "score": _short(p), "given": 1}
            for box, name, p in zip(given, best, sure)
            if p >= self.probability
        ]
        taken = torch.from_numpy(given)  # those without a name too: they are objects, if of unknown kind
        found = detector.detect(encoded, boxes=prompts, score_threshold=self.score)  # by falling score
        for box, label, score in zip(found.boxes, found.labels, found.scores):
            own = torch.from_numpy(box)[None]
            if box_iou(own, taken).max() < self.same:
                taken = torch.cat([taken, own])
                labels.append({"name": found.names[label], "bbox": _xywh(box), "score": _short(score), "given": 0})
        return labels


def _xywh(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]


def _short(value: float) -> float:
    return round(float(value), 4)


def _captions_file(path: Path) -> dict:
    """COCO's captions format, checked."""
    content = read_json(path)
    for kind, fields in (("images", {"id", "file_name"}), ("annotations", {"image_id", "caption"})):
        entries = content.get(kind) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(e, dict) and fields <= e.keys() for e in entries):
            raise ValueError(
                f"{path} is not in COCO's captions format: expected {kind!r}, a list of entries with {sorted(fields)}"
            )
    return content


def read_captions(folder: str | Path) -> tuple[list[dict], Path, dict[int, list[str]], dict]:
    """Captioned pictures of a folder: (COCO's "images", the folder that their file_name is relative to, {image id:
    captions}, info and licenses).

    Four layouts: captions.json (COCO's captions format) with images/; WebDataset's tars, whose pictures stay where they
    are; pictures with a .txt of the same name beside them, as web crawlers leave them; folders of pictures, whose names
    are the captions (classification sets: the category is the prompt). Raises ValueError for anything else.
    """
    folder = Path(folder).expanduser()
    if (folder / CAPTIONS).is_file():
        content = _captions_file(folder / CAPTIONS)
        captions: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        head = {key: content[key] for key in ("info", "licenses") if key in content}
        return content["images"], folder / "images", captions, head
    if not folder.is_dir():
        raise ValueError(
            f"no folder {folder}; expected {CAPTIONS} with images/, pictures with .txt files, tars, or a folder of"
            " pictures for each category"
        )
    if any(folder.glob("*.tar")):
        rows = list(enumerate(web_shards(folder), 1))
        images = [{"id": n, "file_name": row.file, "offset": row.offset, "size": row.size} for n, row in rows]
        return images, folder, {n: [row.caption] for n, row in rows}, {}
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    texts = {} if classes else {path.stem: read_text(path) for path in sorted(folder.glob("*.txt"))}
    paths = [path for own in classes for path in pictures_in(own)]
    if texts:
        paths = [path for path in pictures_in(folder) if path.stem in texts]
    if not paths:
        raise ValueError(
            f"{folder} holds no captioned picture: expected {CAPTIONS} with images/, pictures with .txt files, "
            "or a folder of pictures for each category"
        )
    images = [{"id": number, "file_name": path.relative_to(folder).as_posix()} for number, path in enumerate(paths, 1)]
    said = [texts[path.stem] if texts else path.parent.name.replace("_", " ") for path in paths]
    return images, folder, {image["id"]: [text] for image, text in zip(images, said)}, {}


def phrases_of(captions: dict[int, list[str]], parser: Parser | None = None) -> dict[int, list[str]]:
    """{image id: captions} -> {image id: its noun phrases, each once}."""
    return {
        image: list(dict.fromkeys(phrase for caption in own for phrase in noun_phrases(caption, parser)))
        for image, own in captions.items()
    }


def boxes_of(dataset: CocoDataset) -> dict[int, list[list[float]]]:
    """{image id: boxes [x1, y1, x2, y2]} of a set, whatever it calls them; cut at the picture's border, crowds and
    boxes of no size left out.
    """
    size = {image["id"]: image for image in dataset.coco["images"]}
    found: dict[int, list[list[float]]] = {}
    for image_id, own in dataset.annotations_by_image().items():
        image = size[image_id]
        if "width" not in image or "height" not in image:
            own_size = dataset.left_out.read(
                image_id, lambda n: picture_size(dataset.pictures.find(n)), image["file_name"]
            )
            image = image | dict(zip(("width", "height"), own_size or (0, 0)))  # nothing lies on an unreadable one
        corners = [
            (max(x, 0), max(y, 0), min(x + w, image["width"]), min(y + h, image["height"]))
            for x, y, w, h in (a["bbox"] for a in own if not a.get("iscrowd", 0))
        ]
        found[image_id] = [list(c) for c in corners if c[2] - c[0] >= 1 and c[3] - c[1] >= 1 and max(c) > 1]
    return found


def read_boxes(dataset: CocoDataset | ParquetDataset) -> tuple[list[dict], dict[int, list[list[float]]]]:
    """(COCO's "images" with where they lie, {image id: boxes [x1, y1, x2, y2] in pixels}) of a set in any form."""
    if isinstance(dataset, CocoDataset):
        return dataset.coco["images"], boxes_of(dataset)
    images, boxes = [], {}
    for index in range(len(dataset)):
        known = dataset.annotated(index)
        offset, size = known.place
        images.append(
            {"id": index, "file_name": known.file} | ({"offset": offset, "size": size} if offset >= 0 else {})
        )
        if known.size == (1, 1):
            raise ValueError(f"{dataset.path}: expected boxes in pixels, got shares of the pictures")
        kept = known.boxes[~known.crowd]
        boxes[index] = np.concatenate([kept[:, :2], kept[:, :2] + kept[:, 2:]], 1).tolist()
    return images, boxes


def check_thresholds(engine: TextEngine | VisualEngine) -> None:
    """Raises ValueError for a threshold that cannot be meant."""
    limits: Sequence[tuple[str, float, float]] = (
        ("score", 0, 1),
        ("similarity", -1, 1),
        ("probability", 0, 1),
        ("same", 0, 1),
    )
    for name, low, high in limits:
        value = getattr(engine, name, low)
        if not low <= value <= high:
            raise ValueError(f"{name} must lie in {low}..{high}, got {value}")
    if getattr(engine, "min_instances", 1) < 1 or getattr(engine, "more_than", 0) < 0:
        raise ValueError("min_instances must be at least 1, more_than at least 0")
