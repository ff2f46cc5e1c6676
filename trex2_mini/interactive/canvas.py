"""PromptCanvas: an image in a notebook to draw prompts on and to review detections (an anywidget; its browser's half is
canvas.js).

The whole state is in traits that Python can read and set, so it also works without a browser. All coordinates are
pixels of the original image.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import anywidget
import numpy as np
import torch
import traitlets
from matplotlib.colors import is_color_like, to_hex
from PIL import Image
from torchvision.ops import box_iou

from trex2_mini.boxes import check_boxes, check_points
from trex2_mini.detector import DEFAULT_NAME, Detections
from trex2_mini.images import load_image
from trex2_mini.names import name_key, tidy
from trex2_mini.plots import PALETTE

LONGEST_SIDE = 2048  # pixels of the picture that is sent to the browser; coordinates stay those of the original
SAME_OBJECT = 0.5  # IoU from which two boxes show the same object
STATES = ("proposed", "accepted", "rejected")


class PromptError(ValueError, traitlets.TraitError):
    """A prompt, category or detection that cannot be drawn. A TraitError too, so that traitlets takes the whole
    assignment back.
    """


class PromptCanvas(anywidget.AnyWidget):
    """An image to draw prompts on.

    categories  [{"name": "coin", "colour": "#1f77b4"}, ...]; plain names may be given; `active` is the one that is
                drawn next
    prompts     [{"id", "category", "kind": "box", "negative": bool, "xyxy": [x1, y1, x2, y2]}, ... or "kind": "point",
                "xy": [x, y]]; id, category
                (the active one), kind and negative (False) may be left out
    detections  [{"id", "box": [x1, y1, x2, y2], "label", "score": 0..1, "state": "proposed" | "accepted" | "rejected"},
                ...]

    What is set is checked and brought to this form: corners ordered, boxes clipped to the image, hundredths of a pixel.
    Raises PromptError (a ValueError) for a box without size or outside, an unknown category or key, an id that is there
    twice; the old value then stays.
    """

    _esm = Path(__file__).with_name("canvas.js")
    image_src = traitlets.Unicode(read_only=True).tag(sync=True)
    width = traitlets.Int(read_only=True).tag(sync=True)
    height = traitlets.Int(read_only=True).tag(sync=True)
    categories = traitlets.List().tag(sync=True)
    active = traitlets.Unicode().tag(sync=True)
    prompts = traitlets.List().tag(sync=True)
    detections = traitlets.List().tag(sync=True)

    def __init__(self, image: Any, categories: Sequence[str | Mapping] = (DEFAULT_NAME,), **options: Any):
        super().__init__(**options)
        self.categories = list(categories)
        self.set_image(image)

    def set_image(self, image: Any, prompts: Sequence[Mapping] = (), detections: Sequence[Mapping] = ()) -> None:
        """Another image (anything `load_image` takes) with its prompts and detections; those of the old one go."""
        array = load_image(image)
        height, width = array.shape[:2]
        with self.hold_sync():
            self.prompts, self.detections = [], []
            self.set_trait("width", width)
            self.set_trait("height", height)
            self.set_trait("image_src", data_url(array))
            self.prompts, self.detections = list(prompts), list(detections)

    def names(self) -> list[str]:
        """The categories' names."""
        return [category["name"] for category in self.categories]

    def boxes(self, negative: bool = False) -> dict[str, list[list[float]]]:
        """{category: [[x1, y1, x2, y2], ...]} of the positive or the negative boxes, as `Detector.detect`
        takes them."""
        return by_category(self.prompts, "xyxy", negative)

    def points(self, negative: bool = False) -> dict[str, list[list[float]]]:
        """{category: [[x, y], ...]}."""
        return by_category(self.prompts, "xy", negative)

    def show(self, detections: Detections) -> None:
        """Draw what a detector found, as proposals."""
        self.detections = as_proposals(detections)

    @traitlets.validate("categories")
    def _check_categories(self, proposal: dict) -> list[dict]:
        checked = check_categories(proposal["value"])
        if used := {prompt["category"] for prompt in self.prompts} - {category["name"] for category in checked}:
            raise PromptError(f"categories: {sorted(used)} have prompts; remove those first, got only {checked}")
        return checked

    @traitlets.observe("categories")
    def _keep_active(self, change: dict) -> None:
        if self.active not in self.names():
            self.active = self.names()[0]

    @traitlets.validate("active")
    def _check_active(self, proposal: dict) -> str:
        if proposal["value"] not in self.names():
            raise PromptError(f"active: expected one of {self.names()}, got {proposal['value']!r}")
        return proposal["value"]

    @traitlets.validate("prompts")
    def _check_prompts(self, proposal: dict) -> list[dict]:
        return check_prompts(proposal["value"], self.height, self.width, self.names(), self.active)

    @traitlets.validate("detections")
    def _check_detections(self, proposal: dict) -> list[dict]:
        return check_detections(proposal["value"], self.height, self.width)


def check_categories(categories: Sequence[str | Mapping]) -> list[dict[str, str]]:
    """Categories in the form that PromptCanvas documents. Raises PromptError."""
    checked: list[dict] = []
    for index, given in enumerate(categories):
        given = {"name": given} if isinstance(given, str) else given
        name = given.get("name") if isinstance(given, Mapping) else None
        if not isinstance(name, str) or not name.strip():
            raise PromptError(f"categories[{index}]: expected a name, or {{'name': ..., 'colour': ...}}, got {given!r}")
        colour = given.get("colour", PALETTE[index % len(PALETTE)])
        if not is_color_like(colour):
            raise PromptError(f"categories[{index}]: expected a colour such as '#1f77b4' or 'red', got {colour!r}")
        checked.append({"name": tidy(name), "colour": to_hex(colour)})
    names = [category["name"] for category in checked]
    if not names or len({name_key(name) for name in names}) < len(names):
        raise PromptError(f"expected at least one category, each name once, got {names}")
    return checked


def check_prompts(prompts: Sequence[Mapping], height: int, width: int, names: Sequence[str], active: str) -> list[dict]:
    """Prompts in the form that PromptCanvas documents. Raises PromptError."""
    checked = []
    for index, given in enumerate(prompts):
        what = f"prompts[{index}]"
        _check_keys(given, {"id", "category", "kind", "negative", "xyxy", "xy"}, what)
        kind, key, check = ("box", "xyxy", check_boxes) if "xyxy" in given else ("point", "xy", check_points)
        if len(given.keys() & {"xyxy", "xy"}) != 1 or given.get("kind", kind) != kind:
            raise PromptError(f"{what}: expected a box with 'xyxy' or a point with 'xy', got {dict(given)!r}")
        category = given.get("category", active)
        category = {name_key(name): name for name in names}.get(name_key(str(category)), category)
        if category not in names:
            raise PromptError(
                f"{what}: unknown category {category!r}; expected one of {list(names)}, or add it to `categories`"
            )
        place = _place(check, given[key], height, width, f"{what}[{key!r}]")
        negative = bool(given.get("negative", False))
        checked.append(
            {"id": given.get("id") or _fresh("p"), "category": category, "kind": kind, "negative": negative, key: place}
        )
    return _unique(checked, "prompts")


def check_detections(detections: Sequence[Mapping], height: int, width: int) -> list[dict]:
    """Detections in the form that PromptCanvas documents. Raises PromptError."""
    checked = []
    for index, given in enumerate(detections):
        what = f"detections[{index}]"
        _check_keys(given, {"id", "box", "label", "score", "state"}, what)
        if not {"box", "label"} <= given.keys():
            raise PromptError(f"{what}: expected a 'box' and a 'label', got {dict(given)!r}")
        box = _place(check_boxes, given["box"], height, width, f"{what}['box']")
        score = given.get("score", 1.0)
        state = given.get("state", STATES[0])
        if not isinstance(score, (int, float)) or not (0 <= score <= 1) or state not in STATES:
            raise PromptError(f"{what}: expected a score in 0..1 and a state of {STATES}, got {score!r} and {state!r}")
        checked.append(
            {
                "id": given.get("id") or _fresh("d"),
                "box": box,
                "label": str(given["label"]),
                "score": round(score, 4),
                "state": state,
            }
        )
    return _unique(checked, "detections")


def as_proposals(detections: Detections) -> list[dict]:
    """Detections as the canvas takes them; boxes of less than a pixel are left out."""
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    return [
        {"id": _fresh("d"), "box": box, "label": detections.names[label], "score": score, "state": "proposed"}
        for box, score, label in rows
        if box[2] - box[0] >= 1 and box[3] - box[1] >= 1 and max(box) > 1
    ]


def undecided(proposals: Sequence[Mapping], reviewed: Sequence[Mapping]) -> list[dict]:
    """The proposals that show nothing on which the user has decided: an accepted box speaks for its object, a rejected
    one for its label there.
    """
    if not proposals or not reviewed:
        return list(proposals)
    same = box_iou(_boxes(proposals), _boxes(reviewed)) >= SAME_OBJECT
    speaks = [[r["state"] == "accepted" or r["label"] == p["label"] for r in reviewed] for p in proposals]
    decided = (same & torch.tensor(speaks)).any(1).tolist()
    return [proposal for proposal, known in zip(proposals, decided, strict=True) if not known]


def as_annotations(prompts: Sequence[Mapping], reviewed: Sequence[Mapping], names: Sequence[str]) -> Detections:
    """What is on an image, for export: the accepted detections, and the positive boxes drawn where none of that label
    was accepted (a prompt is an
    object too; its score is 1)."""
    rows = [detection for detection in reviewed if detection["state"] == "accepted"]
    drawn = [
        {"box": box, "label": name, "score": 1.0}
        for name, own in by_category(prompts, "xyxy", False).items()
        for box in own
    ]
    for row in drawn:
        same = [other for other in rows if other["label"] == row["label"]]
        if not same or box_iou(_boxes([row]), _boxes(same)).max() < SAME_OBJECT:
            rows.append(row)
    known = list(dict.fromkeys([*names, *(row["label"] for row in rows)]))
    scores = np.array([r["score"] for r in rows], np.float32)
    labels = np.array([known.index(r["label"]) for r in rows], int)
    return Detections(_boxes(rows).numpy(), scores, labels, known)


def by_category(prompts: Sequence[Mapping], key: str, negative: bool) -> dict[str, list[list[float]]]:
    """{category: [box or point, ...]} of those prompts that have `key` ("xyxy" or "xy") and are, or are
    not, negative."""
    found: dict[str, list] = {}
    for prompt in prompts:
        if key in prompt and prompt["negative"] == negative:
            found.setdefault(prompt["category"], []).append(prompt[key])
    return found


def data_url(array: np.ndarray) -> str:
    """uint8 [H, W, 3] for a browser: small pictures as PNG, exactly; large ones smaller and as JPEG, since they cross a
    network."""
    picture, buffer, large = Image.fromarray(array), io.BytesIO(), math.prod(array.shape[:2]) > 1_000_000
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    picture.save(buffer, "JPEG" if large else "PNG", **({"quality": 90} if large else {}))
    return f"data:image/{'jpeg' if large else 'png'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _boxes(rows: Sequence[Mapping]) -> torch.Tensor:
    return torch.tensor([row["box"] for row in rows], dtype=torch.float32).reshape(-1, 4)


def _check_keys(given: Any, known: set[str], what: str) -> None:
    if not isinstance(given, Mapping) or given.keys() - known:
        raise PromptError(f"{what}: expected a dict with the keys {sorted(known)}, got {given!r}")


def _place(check: Any, numbers: Any, height: int, width: int, what: str) -> list[float]:
    """One box or point, checked, to hundredths of a pixel."""
    try:
        checked = np.round(check(numbers, height, width, what).astype(float), 2)
        checked = check(checked, height, width, what)  # it must not have lost its size
    except ValueError as error:
        raise PromptError(str(error)) from None
    if len(checked) != 1:
        raise PromptError(f"{what}: expected one, got {len(checked)}")
    return [round(value, 2) for value in checked[0].tolist()]


def _unique(items: list[dict], what: str) -> list[dict]:
    ids = [item["id"] for item in items]
    if len(set(ids)) < len(ids):
        raise PromptError(
            f"{what}: expected each id once, got {sorted({i for i in ids if ids.count(i) > 1})} more than once"
        )
    return items


def _fresh(letter: str) -> str:
    return letter + uuid4().hex[:8]
