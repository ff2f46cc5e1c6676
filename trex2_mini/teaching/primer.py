"""One page that shows what a detection transformer does, step by step, on a scene and with the model's own numbers."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from trex2_mini.boxes import normalized_to_xyxy
from trex2_mini.datasets.sample import Sample, normalized_boxes
from trex2_mini.detector import Detector
from trex2_mini.losses.matcher import match

COLOURS = plt.get_cmap("tab10").colors
IDLE = "#777777"
TITLES = (
    "1 image: a block of pixels",
    "2 backbone: a CNN, one vector a cell",
    "3 encoder: tokens exchange\nwhat they know",
    "4 queries: each starts\nfrom an anchor",
    "5 decoder: boxes move,\nlayer by layer",
    "6 logits: each query,\neach prompt",
    "7 matching: which query\nanswers for which object",
    "8 what the loss asks for:\n1 is yes, 0 is no",
)


def token_colours(tokens: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """Tokens [h * w, D] of a map as colours [h, w, 3]: their first three principal components, each stretched to 0..1.

    shape: (h, w).
    """
    centred = tokens.detach().float() - tokens.detach().float().mean(0)
    parts = centred @ torch.linalg.svd(centred, full_matrices=False)[2][:3].T
    low, high = parts.quantile(0.02, 0), parts.quantile(0.98, 0)
    return ((parts - low) / (high - low)).clamp(0, 1).view(*shape, 3).numpy()


def boxes_on(ax: Axes, boxes: Tensor, colours: list, labels: list[str] | None = None, **style) -> None:
    """Frames [n, 4] xyxy pixels, the last below the others; labels at the upper left, of idle ones lower right."""
    for i in reversed(range(len(colours))):
        (x1, y1, x2, y2), colour = boxes[i].tolist(), colours[i]
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, **({"lw": 2} | style)))
        if labels:
            at = (x2, y2, labels[i], "right", "bottom") if colour == IDLE else (x1, y1, labels[i], "left", "top")
            box = {"facecolor": colour, "pad": 1, "lw": 0}
            ax.text(*at[:3], ha=at[3], va=at[4], color="white", fontsize=7, bbox=box)


def cast(logits: Tensor, boxes: Tensor, truth: Tensor, labels: Tensor, spare: int = 3) -> tuple[list[int], list[int]]:
    """Who is shown: an object of each category, and queries: theirs first, then others, duplicates of them first.

    logits [Q, C], boxes and truth cxcywh, labels [n] columns of C -> objects, queries.
    """
    [(query, target)] = match(logits[None], boxes[None], [labels], [truth], 2, 5, 2)
    query = query[target.argsort()]
    objects = [int((labels == column).nonzero()[0]) for column in labels.unique()]
    chosen = query[objects].tolist()
    overlap = box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (boxes, truth[objects]))).amax(1)
    overlap[query] = -1  # those have an object of their own
    twins = overlap.argsort(descending=True)[:2].tolist()
    return objects, [*chosen, *twins, *overlap.argsort()[len(query) : len(query) + spare - len(twins)].tolist()]


@torch.inference_mode()
def draw_primer(detector: Detector, scene: Sample, names: list[str]) -> Figure:
    """The page: image, backbone, encoder, queries, decoder, logits, matching, targets of the loss.

    scene: a sample whose labels index `names`.
    """
    present = np.unique(scene.labels)
    prompts = [names[label] for label in present]
    labels, truth = torch.from_numpy(np.searchsorted(present, scene.labels)), normalized_boxes(scene)
    features = detector.encode(scene.image).features
    final = detector.model.decode(features, detector.model.encode_text(prompts), auxiliary=True)
    size = scene.image.shape[:2]
    objects, queries = cast(final.logits[0], final.boxes[0], truth, labels)
    anchors, found = (normalized_to_xyxy(b[0, queries], *size) for b in (final.auxiliary[-1].boxes, final.boxes))
    colours = [COLOURS[labels[o]] for o in objects] + [IDLE] * (len(queries) - len(objects))
    numbers = [f"q{i + 1}" for i in range(len(queries))]

    figure, axes = plt.subplots(2, 4, figsize=(12, 7), layout="constrained", dpi=110)
    for ax, title in zip(axes.flat, TITLES):
        ax.set_title(title, fontsize=10)
        ax.set(xticks=[], yticks=[])
    for ax, strength in zip(axes.flat, (1, 0.55, 0, 0.6, 0.6)):
        ax.imshow(scene.image, alpha=strength)
        ax.set(xlim=(0, size[1]), ylim=(size[0], 0))
    level = len(features.shapes) - 1
    (h, w), share = features.shapes[level], features.valid[0].tolist()
    extent = (0, size[1] / share[0], size[0] / share[1], 0)  # of the padded map, in pixels of the picture
    for step in range(max(h, w)):
        axes[0, 1].axvline(step * extent[1] / w, color="black", lw=0.6)
        axes[0, 1].axhline(step * extent[2] / h, color="black", lw=0.6)
    h, w = features.shapes[0]
    axes[0, 2].imshow(token_colours(features.tokens[0, : h * w], (h, w)), extent=extent)
    axes[0, 2].set(xlim=(0, size[1]), ylim=(size[0], 0))
    boxes_on(axes[0, 3], anchors, colours, numbers)
    boxes_on(axes[1, 0], anchors, colours, lw=0.8, linestyle=":")
    boxes_on(axes[1, 0], found, colours, numbers)
    logits = final.logits[0, queries]
    targets = torch.zeros_like(logits)
    targets[range(len(objects)), labels[objects]] = 1
    for ax, shown, form in ((axes[1, 1], logits, ".1f"), (axes[1, 3], targets, ".0f")):
        ax.imshow(shown.sigmoid() if ax is axes[1, 1] else shown, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
        for (row, column), value in np.ndenumerate(shown.numpy()):
            ax.text(column, row, f"{value:{form}}", ha="center", va="center", fontsize=9)
        ax.set_xticks(range(len(prompts)), prompts, rotation=30, fontsize=8)
        ax.set_yticks(range(len(queries)), numbers, fontsize=8)
    ax = axes[1, 2]
    ax.set(xlim=(0, 1), ylim=(len(queries) - 0.5, -0.5))
    for row, (number, colour) in enumerate(zip(numbers, colours)):
        ax.text(0.86, row, number, color="white", ha="center", va="center", bbox={"facecolor": colour, "lw": 0})
    for row, o in enumerate(objects):
        ax.text(
            0.05,
            row,
            prompts[labels[o]],
            fontsize=9,
            va="center",
            bbox={"facecolor": "white", "edgecolor": colours[row]},
        )
        ax.add_artist(ConnectionPatch((0.5, row), (0.77, row), "data", color=colours[row], arrowstyle="<->"))
    for row in range(len(objects), len(queries)):
        ax.text(0.05, row, "nobody: say no", fontsize=9, va="center", color=IDLE)
    return figure
