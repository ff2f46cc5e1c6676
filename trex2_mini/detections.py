"""Detections: what a detector found on one picture, and the forms in which other tools take it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor
from torchvision.ops import batched_nms

from trex2_mini.boxes import normalized_to_xyxy
from trex2_mini.images import load_image
from trex2_mini.paths import write_text

if TYPE_CHECKING:
    import pandas
    import supervision
    from matplotlib.axes import Axes

NEARLY_ALL = 0.9  # a share of the queries: from here on, some objects may have had none
SHOWN = 20  # rows in a notebook


class Detection(NamedTuple):
    """One object: its name, its score in 0..1, its box (x1, y1, x2, y2) in pixels."""

    name: str
    score: float
    box: tuple[float, float, float, float]


@dataclass
class Detections:
    """boxes [N, 4] float32 xyxy in pixels of the original image; scores [N] in 0..1, highest first; labels [N] indices
    into `names`. queries: (those of the model that answered, those it has), where a detector counted them.

    `for name, score, box in found`; found[0] is one Detection; found[2:5] or a mask gives fewer Detections.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    queries: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (int, np.integer)):
            box = tuple(self.boxes[index].tolist())
            return Detection(self.names[self.labels[index]], float(self.scores[index]), box)
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index])

    def __iter__(self) -> Iterator[Detection]:
        return (self[index] for index in range(len(self)))

    def filter(self, threshold: float) -> Detections:
        """Those with a score of at least `threshold`; the model does not run again."""
        return self[self.scores >= threshold]

    def counts(self) -> dict[str, int]:
        """{name: how many}, every name that was asked for."""
        return {name: int((self.labels == label).sum()) for label, name in enumerate(self.names)}

    @property
    def full(self) -> bool:
        """Nearly all queries of the model were used, so it may have missed some: look at parts of the picture."""
        return self.queries is not None and self.queries[0] >= NEARLY_ALL * self.queries[1]

    def __str__(self) -> str:
        found = ", ".join(f"{number} {name}" for name, number in self.counts().items())
        return f"{len(self)} detections ({found})" + (f"; {self.note}" if self.full else "")

    @property
    def note(self) -> str:
        """What to say where `full`."""
        used, all_of_them = self.queries or (0, 0)
        return f"{used} of {all_of_them} queries used: there may be more objects; search the picture in parts (tiles)"

    # ---- for other tools

    def to_dataframe(self) -> pandas.DataFrame:
        """Columns name, score, x1, y1, x2, y2 (pixels)."""
        import pandas

        columns = dict(zip(("x1", "y1", "x2", "y2"), self.boxes.reshape(-1, 4).T))
        return pandas.DataFrame({"name": [self.names[i] for i in self.labels], "score": self.scores} | columns)

    def to_supervision(self) -> supervision.Detections:
        """As supervision.Detections, with class_name in its data. Raises ValueError where supervision is missing."""
        if find_spec("supervision") is None:
            raise ValueError("to_supervision needs one package more: pip install supervision")
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.reshape(-1, 4).astype(np.float32),
            confidence=self.scores,
            class_id=self.labels.astype(int),
            data={"class_name": np.array([self.names[i] for i in self.labels], dtype=str)},
        )

    def to_coco(self, image_id: int = 1) -> list[dict]:
        """COCO annotations of one picture: bbox [x, y, width, height] in pixels; categories count from 1 in `names`."""
        rows = []
        for (x1, y1, x2, y2), score, label in zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist()):
            row = {"image_id": image_id, "category_id": label + 1, "score": round(score, 4)}
            row |= {"bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)], "area": round((x2 - x1) * (y2 - y1), 2)}
            rows.append(row | {"iscrowd": 0, "segmentation": []})  # pycocotools' showAnns asks for the last
        return rows

    def crops(self, image: Any) -> list[np.ndarray]:
        """The part of `image` (anything `load_image` takes) in each box, uint8 [h, w, 3], at least a pixel each way."""
        array = load_image(image)
        height, width = array.shape[:2]
        found = []
        for x1, y1, x2, y2 in self.boxes:
            left, top = min(int(x1), width - 1), min(int(y1), height - 1)
            found.append(array[top : max(round(y2), top + 1), left : max(round(x2), left + 1)])
        return found

    def plot(self, image: Any, **options: Any) -> Axes:
        """Draw them over `image`; options are those of `plots.show_detections`."""
        from trex2_mini.plots import show_detections

        return show_detections(image, self, **options)

    def save(self, path: str | Path) -> Path:
        """Write a .csv (the columns of `to_dataframe`) or a .json: {"detections": [{"name", "score", "box"}, ...]}.

        Raises ValueError for another ending.
        """
        path = Path(path).expanduser()
        if path.suffix.lower() == ".csv":
            write_text(path, self.to_dataframe().to_csv(index=False))
        elif path.suffix.lower() == ".json":
            write_text(path, json.dumps({"detections": [one._asdict() for one in self]}, ensure_ascii=False, indent=2))
        else:
            raise ValueError(f"expected a file that ends with .csv or .json, got {path}")
        return path

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{score:.2f}</td><td>{', '.join(f'{v:.0f}' for v in box)}</td></tr>"
            for name, score, box in self[:SHOWN]
        )
        more = f"<p>and {len(self) - SHOWN} more</p>" if len(self) > SHOWN else ""
        head = "<tr><th>name</th><th>score</th><th>x1, y1, x2, y2 (px)</th></tr>"
        return f"<p>{html.escape(str(self))}</p><table>{head}{rows}</table>{more}"


def top_detections(
    logits: Tensor,
    boxes: Tensor,
    sizes: Sequence[tuple[int, int]],
    names: list[str],
    max_detections: int,
    nms_iou: float = 1.0,
    class_agnostic: bool = False,
) -> list[Detections]:
    """logits [B, Q, C], boxes [B, Q, 4] cxcywh in 0..1, sizes [(height, width)] -> per image its best (query, prompt)
    pairs, as DINO does.

    Of a prompt's boxes that overlap by more than `nms_iou` the best stays (1: all stay); class_agnostic: of all
    prompts' boxes. `nano` needs it: three decoder layers leave duplicates.
    """
    scores = logits.sigmoid()
    best, index = scores.flatten(1).topk(min(max(max_detections, 300), scores[0].numel()), dim=1)
    results = []
    for score, at, box, (height, width) in zip(best, index, boxes, sizes, strict=True):
        pixels, label = normalized_to_xyxy(box[at // logits.shape[2]], height, width), at % logits.shape[2]
        groups = label.new_zeros(len(label)) if class_agnostic else label
        keep = batched_nms(pixels, score, groups, nms_iou)[:max_detections]  # by falling score
        pixels, score, label = pixels[keep], score[keep], label[keep]
        results.append(Detections(pixels.cpu().numpy(), score.cpu().numpy(), label.cpu().numpy(), names))
    return results
