"""Interactive prompting in a notebook: PromptCanvas (draw and review, an anywidget; the browser's half is widget.js) and PromptStudio (the canvas with a
Detector round it).

The whole state is in traits that Python can read and set, so everything here also works without a browser. All coordinates are pixels of the
original image. Beyond the official demo (spec section 9): boxes and points mix, points may be negative, and nothing drawn is lost.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import anywidget
import traitlets
from matplotlib.colors import is_color_like, to_hex
from PIL import Image

from .boxes import check_boxes, check_points
from .datasets.coco import load_image
from .detector import DEFAULT_NAME, Detections
from .plots import PALETTE

LONGEST_SIDE = 2048  # pixels of the picture that is sent to the browser; coordinates stay those of the original
STATES = ("proposed", "accepted", "rejected")
PROMPT_KEYS = {"id", "category", "kind", "negative", "xyxy", "xy"}
DETECTION_KEYS = {"id", "box", "label", "score", "state"}


class PromptError(ValueError, traitlets.TraitError):
    """A prompt, category or detection that cannot be drawn. A TraitError too, so that traitlets takes the whole assignment back."""


class PromptCanvas(anywidget.AnyWidget):
    """An image to draw prompts on.

    categories  [{"name": "coin", "colour": "#1f77b4"}, ...]; plain names may be given; `active` is the one that is drawn next
    prompts     [{"id", "category", "kind": "box", "negative": bool, "xyxy": [x1, y1, x2, y2]}, ... or "kind": "point", "xy": [x, y]]; id, category
                (the active one), kind and negative (False) may be left out
    detections  [{"id", "box": [x1, y1, x2, y2], "label", "score": 0..1, "state": "proposed" | "accepted" | "rejected"}, ...]

    What is set is checked and brought to this form: corners ordered, boxes clipped to the image, hundredths of a pixel. Raises PromptError (a
    ValueError) for a box without size or outside, an unknown category or key, an id that is there twice; the old value then stays.
    """

    _esm = Path(__file__).with_name("widget.js")
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
            self.set_trait("image_src", _data_url(Image.fromarray(array)))
            self.prompts, self.detections = list(prompts), list(detections)

    def boxes(self, negative: bool = False) -> dict[str, list[list[float]]]:
        """{category: [[x1, y1, x2, y2], ...]} of the positive or the negative boxes, as `Detector.detect` takes them."""
        return self._by_category("xyxy", negative)

    def points(self, negative: bool = False) -> dict[str, list[list[float]]]:
        """{category: [[x, y], ...]}."""
        return self._by_category("xy", negative)

    def show(self, detections: Detections) -> None:
        """Draw what a detector found, as proposals."""
        self.detections = as_proposals(detections)

    def _by_category(self, key: str, negative: bool) -> dict[str, list]:
        found: dict[str, list] = {}
        for prompt in self.prompts:
            if key in prompt and prompt["negative"] == negative:
                found.setdefault(prompt["category"], []).append(prompt[key])
        return found

    @traitlets.validate("categories")
    def _check_categories(self, proposal: dict) -> list[dict]:
        checked: list[dict] = []
        for index, given in enumerate(proposal["value"]):
            given = {"name": given} if isinstance(given, str) else given
            if not isinstance(given, Mapping) or not str(given.get("name", "")).strip():
                raise PromptError(f"categories[{index}]: expected a name, or {{'name': ..., 'colour': ...}}, got {given!r}")
            colour = given.get("colour", PALETTE[index % len(PALETTE)])
            if not is_color_like(colour):
                raise PromptError(f"categories[{index}]: expected a colour such as '#1f77b4' or 'red', got {colour!r}")
            checked.append({"name": str(given["name"]).strip(), "colour": to_hex(colour)})
        names = [category["name"] for category in checked]
        if not names or len(set(names)) < len(names):
            raise PromptError(f"expected at least one category, each name once, got {names}")
        if used := {prompt["category"] for prompt in self.prompts} - set(names):
            raise PromptError(f"categories: {sorted(used)} have prompts; remove those first, got only {names}")
        return checked

    @traitlets.observe("categories")
    def _keep_active(self, change: dict) -> None:
        if self.active not in (names := self._names()):
            self.active = names[0]

    @traitlets.validate("active")
    def _check_active(self, proposal: dict) -> str:
        if proposal["value"] not in self._names():
            raise PromptError(f"active: expected one of {self._names()}, got {proposal['value']!r}")
        return proposal["value"]

    @traitlets.validate("prompts")
    def _check_prompts(self, proposal: dict) -> list[dict]:
        return _unique([self._check_prompt(given, f"prompts[{i}]") for i, given in enumerate(proposal["value"])], "prompts")

    def _check_prompt(self, given: Any, what: str) -> dict:
        _check_keys(given, PROMPT_KEYS, what)
        key = "xyxy" if "xyxy" in given else "xy"
        kind = "box" if key == "xyxy" else "point"
        if len(given.keys() & {"xyxy", "xy"}) != 1 or given.get("kind", kind) != kind:
            raise PromptError(f"{what}: expected a box with 'xyxy' or a point with 'xy', got {dict(given)!r}")
        category = given.get("category", self.active)
        if category not in self._names():
            raise PromptError(f"{what}: unknown category {category!r}; expected one of {self._names()}, or add it to `categories`")
        check = check_boxes if kind == "box" else check_points
        place = self._place(check, given[key], f"{what}[{key!r}]")
        negative = bool(given.get("negative", False))
        return {"id": str(given.get("id") or fresh_id("p")), "category": category, "kind": kind, "negative": negative, key: place}

    @traitlets.validate("detections")
    def _check_detections(self, proposal: dict) -> list[dict]:
        checked = []
        for index, given in enumerate(proposal["value"]):
            what = f"detections[{index}]"
            _check_keys(given, DETECTION_KEYS, what)
            box, label = self._place(check_boxes, given.get("box", []), f"{what}['box']"), str(given.get("label", self.active))
            score, state = float(given.get("score", 1.0)), given.get("state", "proposed")
            if not (0 <= score <= 1) or state not in STATES:
                raise PromptError(f"{what}: expected a score in 0..1 and a state of {STATES}, got {score} and {state!r}")
            checked.append({"id": str(given.get("id") or fresh_id("d")), "box": box, "label": label, "score": round(score, 4), "state": state})
        return _unique(checked, "detections")

    def _place(self, check: Any, numbers: Any, what: str) -> list[float]:
        """One box or point, checked, to hundredths of a pixel."""
        try:
            checked = check(numbers, self.height, self.width, what)
        except ValueError as error:
            raise PromptError(str(error)) from None
        if len(checked) != 1:
            raise PromptError(f"{what}: expected one, got {len(checked)}")
        return [round(value, 2) for value in checked[0].tolist()]

    def _names(self) -> list[str]:
        return [category["name"] for category in self.categories]


def fresh_id(letter: str) -> str:
    return letter + uuid4().hex[:8]


def as_proposals(detections: Detections) -> list[dict]:
    """Detections as the canvas takes them; boxes without size (clipped at the border) are left out."""
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    return [
        {"id": fresh_id("d"), "box": box, "label": detections.names[label], "score": score, "state": "proposed"}
        for box, score, label in rows
        if box[2] - box[0] >= 1e-2 and box[3] - box[1] >= 1e-2
    ]


def _check_keys(given: Any, known: set[str], what: str) -> None:
    if not isinstance(given, Mapping) or given.keys() - known:
        raise PromptError(f"{what}: expected a dict with the keys {sorted(known)}, got {given!r}")


def _unique(items: list[dict], what: str) -> list[dict]:
    if len({item["id"] for item in items}) < len(items):
        ids = [item["id"] for item in items]
        raise PromptError(f"{what}: each id once, got {sorted({i for i in ids if ids.count(i) > 1})} twice")
    return items


def _data_url(picture: Image.Image) -> str:
    """Small pictures as PNG, exactly; large ones smaller and as JPEG: they cross a network on their way to the browser."""
    buffer, large = io.BytesIO(), math.prod(picture.size) > 1_000_000
    if max(picture.size) > LONGEST_SIDE:
        picture = picture.copy()
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    picture.save(buffer, "JPEG" if large else "PNG", **({"quality": 90} if large else {}))
    return f"data:image/{'jpeg' if large else 'png'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
