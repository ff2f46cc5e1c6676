"""What the notebooks share, so that their cells hold only what they teach: the look of figures, tables, exercises."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from IPython.display import SVG, display
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torchvision.ops import box_iou

from trex2_mini.detector import Detections
from trex2_mini.evaluation.provenance import describe_code
from trex2_mini.images import load_image
from trex2_mini.paths import REPOSITORY
from trex2_mini.plots import show_detections
from trex2_mini.reproduction.paper import paper_table

TRAINING = ("denoising", "losses", "alignment")
HERE = {  # what each notebook is about, by its number
    "01": ("image", "names", "regions"), "02": ("losses",), "03": ("encoder", "visual", "decoder"),
    "04": ("backbone", "encoder"), "05": ("regions", "visual"), "06": ("names", "text"), "07": ("selection", "decoder"),
    "08": ("alignment",), "09": ("losses", "denoising"), "10": TRAINING, "11": ("prompts",), "12": ("regions",),
    "13": ("answers",), "14": ("answers",), "15": TRAINING, "16": ("image", "names", "regions"),
    "17": ("encoder", "decoder"), "18": TRAINING,
}  # fmt: skip
MARKED = 'fill="#ffffff" color="#e4572e"'


def figure(here: Sequence[str] = ()) -> str:
    """data/architecture.svg, the figure of the model, with some of its parts marked. Raises ValueError for others."""
    drawn = (REPOSITORY / "data" / "architecture.svg").read_text(encoding="utf-8")
    for part in here:
        plain = f'<g id="{part}" fill="#22313f" color="#ffffff">'
        if plain not in drawn:
            raise ValueError(f"the figure of the model has no part {part!r}")
        drawn = drawn.replace(plain, f'<g id="{part}" {MARKED}>')
    return drawn


class Table(pd.DataFrame):
    """A DataFrame that is shown without its index."""

    @property
    def _constructor(self) -> type[Table]:
        return Table

    def _repr_html_(self) -> str:
        return self.to_html(index=False, border=0)

    def __repr__(self) -> str:
        return self.to_string(index=False)


def figure_format(shown: Figure) -> str:
    """jpeg for a figure that holds pictures (arrays [H, W, 3 or 4]), else png, which keeps lines and letters sharp."""
    return "jpeg" if any(image.get_array().ndim == 3 for ax in shown.axes for image in ax.images) else "png"


def begin(name: str, output_dir: str = "") -> Path:
    """The folder of a notebook's output, made if missing: `output_dir`, or runs/NAME in the repository.

    Shows the figure of the model with the parts marked that the notebook is about (name: begins with its number; not
    in notebook 0, which is about all of them), and sets the look of figures: 110 dots an inch, in the format of
    `figure_format`.
    """
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}\n"  # no file, no line
    if name[:2] in HERE:
        display(SVG(figure(HERE[name[:2]])))
    plt.rcParams.update({"figure.dpi": 110, "savefig.bbox": "tight"})
    if shell := get_ipython():
        set_matplotlib_formats()  # none of the backend's own: the next lines choose for each figure
        for kind, options in {"png": {}, "jpeg": {"pil_kwargs": {"quality": 78, "optimize": True}}}.items():
            shell.display_formatter.formatters[f"image/{kind}"].for_type(
                Figure,
                lambda own, kind=kind, options=options: (
                    print_figure(own, kind, **options) if figure_format(own) == kind else None
                ),
            )
    output = Path(output_dir).resolve() if output_dir else REPOSITORY / "runs" / name
    output.mkdir(parents=True, exist_ok=True)
    return output


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> Table:
    """A table to look at, sort and export (a DataFrame)."""
    return Table([list(row) for row in rows], columns=list(header))


def paper(number: int, columns: Sequence[str] | None = None) -> Table:
    """Table `number` of the paper, or some of its columns; what the paper does not give stays empty."""
    names, rows = paper_table(number)
    chosen = [names.index(column) for column in columns or names]
    return table([names[i] for i in chosen], [["" if row[i] is None else row[i] for i in chosen] for row in rows])


def gallery(panels: Sequence[Mapping[str, Any]], rows: int = 1, width: float = 12, size: float = 6) -> Figure:
    """Pictures with what was found on them, in `rows` of one width, the pictures of a row of one height.

    Args:
        panels: for each picture the arguments of `show_detections`. width: of the figure in inches. size: of the labels
            in points.
    """
    lines = [[panels[i] for i in own] for own in np.array_split(np.arange(len(panels)), rows)]
    shapes = [[load_image(panel["image"]).shape for panel in line] for line in lines]
    ratios = [[shape[1] / shape[0] for shape in line] for line in shapes]
    heights = [width / sum(own) + 0.3 for own in ratios]  # and a title
    whole = plt.figure(figsize=(width, sum(heights)), layout="constrained")
    parts = whole.subfigures(rows, 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, line, own in zip(parts, lines, ratios):
        for ax, panel in zip(part.subplots(1, len(line), width_ratios=own, squeeze=False)[0], line):
            show_detections(ax=ax, size=size, **panel)
    return whole


def judge(
    found: Detections | np.ndarray, boxes: np.ndarray, names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections are right, bool [N], and which objects are found, bool [G].

    A detection is right if it overlaps an object by an IoU of at least 0.5 that no better-scored one has claimed.

    Args:
        found: detections or boxes [N, 4], best score first. boxes: the objects [G, 4]; both xyxy pixels.
        names: of the objects; given, a detection must also have its object's name.
    """
    found_boxes = found.boxes if isinstance(found, Detections) else np.asarray(found, np.float32).reshape(-1, 4)
    right, hit = np.zeros(len(found_boxes), bool), np.zeros(len(boxes), bool)
    truth = torch.as_tensor(np.asarray(boxes, np.float32).reshape(-1, 4))
    overlap = box_iou(torch.as_tensor(found_boxes), truth).numpy()
    for i, own in enumerate(overlap):
        same = True if names is None else np.asarray(names) == found.names[found.labels[i]]
        free = np.where(~hit & same, own, 0)
        if free.size and free.max() >= 0.5:
            right[i] = hit[free.argmax()] = True
    return right, hit


def why_wrong(found: Detections, boxes: np.ndarray, names: Sequence[str]) -> list[str]:
    """What each wrong detection lies on, by the IoU of its box with the objects `boxes` [G, 4] (xyxy pixels), `names`.

    "the object itself": at least 0.1 with an object of its name, which is answered twice or boxed badly; else "another
    thing": at least 0.5 with one of another name; else "background".
    """
    own = np.asarray(names)
    wrong = ~judge(found, boxes, own)[0]
    overlap = box_iou(torch.as_tensor(found.boxes), torch.as_tensor(np.asarray(boxes, np.float32))).numpy()
    reasons = []
    for row, label in zip(overlap[wrong], found.labels[wrong]):
        same = own == found.names[label]
        near = row[same].max(initial=0) >= 0.1
        another = row[~same].max(initial=0) >= 0.5
        reasons.append("the object itself" if near else "another thing" if another else "background")
    return reasons


def write_metrics(output: Path, metrics: dict[str, Any]) -> None:
    """metrics.json in `output`: the numbers, and with which code they were measured."""
    text = json.dumps(metrics | describe_code(), indent=1, default=float) + "\n"
    (output / "metrics.json").write_text(text, encoding="utf-8")
