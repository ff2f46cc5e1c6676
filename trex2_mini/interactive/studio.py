"""PromptStudio: a PromptCanvas with a Detector round it, in a notebook: prompt, look, refine; collect a bank; review;
export.

The paper's interactive workflow (section 3.4), with what the official demo lacks (spec section 9): boxes and points
mix, points may be negative, and nothing drawn is lost: every change goes to the autosave file. Each control calls a
public method, so everything also works without a browser.
"""

import html
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np

from trex2_mini import annotations
from trex2_mini.detector import DEFAULT_NAME, Detections, Detector
from trex2_mini.interactive.canvas import PromptCanvas, as_proposals, data_url, undecided
from trex2_mini.interactive.search_tab import SearchTab
from trex2_mini.interactive.session import Session, pictures_of
from trex2_mini.names import name_key, split_names, unique_names
from trex2_mini.weights.tuning import Tuned, tune

__all__ = ["PromptCanvas", "PromptStudio"]

WORKFLOWS = ("interactive", "text", "generic", "mixed")
SETTINGS = ("workflow", "text", "negative_text", "threshold", "beta")  # controls that the autosave file keeps
FLOOR = 0.05  # proposals below this score are not kept; above it the threshold moves without the model


class PromptStudio(ipywidgets.VBox):
    """Prompt, look, refine; collect examples; accept, reject, correct; export.

    images      a path, a folder, a list of paths, or {file name: anything `load_image` takes}; None: scenes of the
                embedded emoji-val
    categories  to draw; names in the words and in the bank join them
    autosave    a JSON file, written at each change and read at the start; None keeps nothing. A damaged one is moved
                aside, never overwritten

    canvas      the PromptCanvas; setting its `prompts` asks the detector anew, setting its `detections` reviews them
    chooser, workflow, text, negative_text, threshold, beta   ipywidgets, each with a `.value`
    session     what is kept: pictures, work, bank
    history         [{"image", "what": "encode" | "answer" | "threshold", "ms", ...}, ...]: the rounds, and the model's
                    time
    Raises ValueError where there is no image, FileNotFoundError where a path leads nowhere.
    """

    def __init__(
        self,
        detector: Detector,
        images: Any = None,
        categories: Sequence[str] = (DEFAULT_NAME,),
        autosave: str | Path | None = None,
    ):
        self.detector, self.session = detector, Session(detector, images, autosave)
        self.current = ""
        self.history = self.session.history
        self._proposals: list[dict] = []
        self._quiet = True  # the studio itself is setting the traits
        self.canvas = PromptCanvas(np.zeros((1, 1, 3), np.uint8), categories)
        super().__init__(self._controls())
        self.add_class("trex-studio")
        said = ""
        try:
            said = self.session.restore(self._take_up)
        except ValueError as error:  # the message says where the damaged file lies now
            warnings.warn(said := str(error), stacklevel=2)
        sources = self.session.sources
        if not sources:
            raise ValueError("no image: expected a path, a folder, a list of paths or {file name: picture}, got none")
        self._quiet = False
        order, self.current = sorted(sources, key=lambda name: name != self.current), ""
        for name in order:
            try:
                self.choose(name)
            except (ValueError, OSError) as error:  # the studio opens all the same, and shows what can be shown
                warnings.warn(said := str(error), stacklevel=2)
            if self.current:
                break
        else:
            raise ValueError(f"none of the {len(sources)} pictures can be opened; the last one: {said}")
        self._show_bank()
        self.say(said or self.message.value)

    # ---- images

    def choose(self, name: str) -> None:
        """Go to an image of the chooser and ask anew. Raises ValueError for a name that is not in it."""
        try:
            image, own = self.session.image(name), self.session.work_on(name)
        except (ValueError, OSError):
            with self._silently():
                self.chooser.value = self.current or None
            raise
        self.current = name
        with self._silently():
            if self.chooser.options != (names := tuple(self.session.sources)):
                self.chooser.options = names
            self.chooser.value = name
            self.canvas.set_image(image, own["prompts"], own["reviewed"])
        self.answer()

    def add_image(self, source: Any, name: str | None = None) -> str:
        """Put a path, PIL picture or array into the chooser and open it; returns its name there. Raises ValueError,
        FileNotFoundError.
        """
        known = set(self.session.sources)
        name = self.session.add(source, name)
        try:
            self.choose(name)
        finally:
            if self.current != name and name not in known:  # it could not be opened
                del self.session.sources[name]
        return name

    def _add_path(self, path: str) -> None:
        names = [self.session.add(source, name) for name, source in pictures_of(path)]
        self.choose(names[0])

    def _take_uploads(self) -> None:
        for upload in self.upload.value:
            self.choose(self.session.add_upload(upload["name"], bytes(upload["content"])))

    # ---- prompting

    def answer(self) -> None:
        """Ask the detector with all that is given now, by the workflow; the canvas shows the proposals."""
        self.session.work[self.current]["prompts"] = self.canvas.prompts
        encoded, asked, self._proposals = self.session.encode(self.current), self._asked(), []
        if asked:
            start = time.perf_counter()
            found = self.detector.detect(encoded, score_threshold=FLOOR, beta=self.beta.value, **asked)
            spent = time.perf_counter() - start
            self._proposals = as_proposals(found)
            spelled = {name_key(name): name for name in self.canvas.names()}
            new = [name for name in found.names if name_key(name) not in spelled]
            for proposal in self._proposals:
                proposal["label"] = spelled.get(name_key(proposal["label"]), proposal["label"])
            with self._silently():
                self.canvas.categories = [*self.canvas.categories, *new]
            self._show()
            self._note("answer", spent)
        else:
            self._show()
        self.say("" if asked else "nothing is asked for yet: draw a box or a point, type words, or collect a bank")
        self._save()

    def _asked(self) -> dict[str, Any]:
        """The prompts of `Detector.detect` that the workflow uses; empty where there is no positive one."""
        workflow, asked = self.workflow.value, {}
        if workflow in ("text", "mixed") and (words := _words(self.text)):
            asked["text"] = words
        if workflow in ("generic", "mixed") and (bank := self.session.bank.bank()):
            asked["prompts"] = bank
        if workflow in ("interactive", "mixed"):
            asked |= {
                key: own for key, own in (("boxes", self.canvas.boxes()), ("points", self.canvas.points())) if own
            }
        if not asked:
            return {}
        bank_names = asked["prompts"].names if "prompts" in asked else ()
        named = (*asked.get("text", ()), *bank_names, *asked.get("boxes", ()), *asked.get("points", ()))
        names = {name_key(name) for name in named}
        for key, own in (("boxes", self.canvas.boxes(negative=True)), ("points", self.canvas.points(negative=True))):
            against: dict[str, list] = {}
            # a negative of a category that is not asked for speaks against all that are
            for category, places in own.items():
                for name in [category] if name_key(category) in names else names:
                    against.setdefault(name, []).extend(places)
            if against:
                asked[f"negative_{key}"] = against
        if words := _words(self.negative_text):
            asked["negative_text"] = words
        return asked

    def _show(self) -> None:
        """What was reviewed, and the proposals from the threshold on that show something else. The model
        does not run."""
        reviewed = self.session.work[self.current]["reviewed"]
        shown = [p for p in self._proposals if p["score"] >= self.threshold.value]
        with self._silently():
            self.canvas.detections = [*reviewed, *undecided(shown, reviewed)]
        counts = Counter(d["label"] for d in self.canvas.detections if d["state"] != "rejected")
        accepted = sum(d["state"] == "accepted" for d in reviewed)
        listed = " · ".join(f"<b>{html.escape(name)}</b> {number}" for name, number in counts.most_common())
        self.counts.value = f"{listed or 'nothing found'} ({accepted} accepted)"

    def accept_shown(self) -> None:
        """Accept every proposal that is shown."""
        self.canvas.detections = [
            detection | {"state": "accepted"} if detection["state"] == "proposed" else detection
            for detection in self.canvas.detections
        ]

    def _review(self) -> None:
        self.session.work[self.current]["reviewed"] = [d for d in self.canvas.detections if d["state"] != "proposed"]
        self._show()
        self._save()

    def _move_threshold(self) -> None:
        start = time.perf_counter()
        self._show()
        self._note("threshold", time.perf_counter() - start)
        self._save()

    def _note(self, what: str, seconds: float) -> None:
        """One more entry of the log, and the last ones under the canvas."""
        negatives = sum(prompt["negative"] for prompt in self.canvas.prompts)
        entry = {
            "image": self.current,
            "what": what,
            "ms": 1000 * seconds,
            "prompts": len(self.canvas.prompts) - negatives,
        }
        self.history.append(entry | {"negatives": negatives, "shown": len(self.canvas.detections)})
        own = [entry for entry in self.history if entry["image"] == self.current]
        rounds = [entry for entry in own if entry["what"] == "answer"]
        lines = [f"encoded in {e['ms']:.0f} ms, once" for e in own if e["what"] == "encode"][-1:]
        lines += [
            f"round {n}: {e['prompts']} drawn, {e['negatives']} negative, {e['shown']} shown, {e['ms']:.0f} ms"
            for n, e in enumerate(rounds, 1)
        ][-3:]
        lines += [f"threshold moved in {e['ms']:.1f} ms" for e in own[-1:] if e["what"] == "threshold"]
        self.timing.value = " · ".join(lines)

    # ---- the prompt bank

    def collect(self) -> int:
        """Take the positive boxes of this image into the bank's examples; returns how many were new. Raises ValueError
        where there is none."""
        drawn = [
            {"name": n, "image": self.current, "box": box} for n, own in self.canvas.boxes().items() for box in own
        ]
        if not drawn:
            raise ValueError(
                "no positive box on this image: draw boxes around examples first (points are not collected)"
            )
        new = self.session.bank.add(drawn)
        self._bank_changed(f"{new} new examples")
        return new

    def drop(self, which: int | str) -> None:
        """Drop an example by its place in `session.bank.examples`, or what was loaded under a name."""
        self.session.bank.drop(which)
        self._bank_changed("dropped")

    def save_bank(self, path: str | Path, official: bool = False) -> None:
        """See `BankBuilder.save`."""
        bank = self.session.bank.save(path, official)
        self.say(f"wrote {Path(path).name}: {', '.join(bank.names)}")

    def load_bank(self, path: str | Path, allow_other_model: bool = False) -> None:
        """See `BankBuilder.load`."""
        bank = self.session.bank.load(path, allow_other_model)
        self._bank_changed(f"loaded {', '.join(bank.names)}")

    def tune(self) -> Tuned:
        """Tune a vector for each name on what was accepted and drawn on two or more images, see `weights.tuning.tune`;
        the vectors join the bank. Every object of these names on these images should be accepted or drawn."""
        labelled = []
        for name, (_, _, found) in self.annotations().items():
            boxes: dict[str, list] = {}
            for label, _, box in found:
                boxes.setdefault(label, []).append(box)
            labelled.append((self.session.image(name), boxes))
        self.say("tuning: about ten seconds for ten images")
        tuned = tune(self.detector, labelled, strengths=["vectors"], progress=False)
        self.session.bank.add_vectors(tuned.bank.names, tuned.bank.embeddings)
        self._bank_changed(tuned.line)
        return tuned

    def detect_folder(self, folder: str | Path, out: str | Path | None = None) -> dict[str, int]:
        """The workflow's words and bank on a whole folder, see `annotations.detect_folder`; out: a COCO JSON file, else
        one in the folder."""
        asked = {key: own for key, own in self._asked().items() if key in ("text", "prompts")}
        folder = Path(folder).expanduser()
        out, threshold = out or folder / "detections.json", self.threshold.value
        result = annotations.detect_folder(
            self.detector, folder, out, score_threshold=threshold, progress=False, **asked
        )
        self.say(f"{folder.name}: {result}")
        return result

    def _bank_changed(self, message: str) -> None:
        self._show_bank()
        self._save()
        self.answer()
        self.say(message)

    def _show_bank(self) -> None:
        bank = self.session.bank
        entries = [(f"{e['name']}, {e['image']}", e, i) for i, e in enumerate(bank.examples)]
        entries += [(f"{name}, loaded", None, name) for name in bank.loaded]
        self.gallery.children = [
            ipywidgets.VBox(
                [
                    self._thumbnail(text, example),
                    self._button("drop", "drop", f"Drop {text}", partial(self.drop, which)),
                ]
            )
            for text, example, which in entries
        ]

    def _thumbnail(self, text: str, example: dict | None) -> ipywidgets.HTML:
        shown = html.escape(text, quote=True)
        if example and example["image"] in self.session.sources:
            image = self.session.image(example["image"])
            x1, y1, x2, y2 = np.array(example["box"]).round().astype(int)
            crop = image[min(y1, len(image) - 1) : max(y2, y1 + 1), min(x1, image.shape[1] - 1) : max(x2, x1 + 1)]
            shown = f'<img src="{data_url(crop)}" alt="{shown}" title="{shown}" style="height: 56px">'
        return ipywidgets.HTML(shown)

    # ---- keeping

    def annotations(self) -> dict[str, tuple[int, int, Detections]]:
        """What was accepted and drawn, {image: (height, width, detections)}, see `Session.annotations`."""
        return self.session.annotations(self.canvas.names())

    def export(self, folder: str | Path, format: str = "coco") -> Path:
        """`annotations()` with their pictures as a data set of coco, yolo or voc, see `Session.export`."""
        path = self.session.export(folder, format, self.canvas.names())
        found = self.annotations()
        self.say(f"wrote {sum(len(own) for _, _, own in found.values())} boxes on {len(found)} images as {format}")
        return path

    def _save(self) -> None:
        settings = {key: getattr(self, key).value for key in SETTINGS}
        self.session.save(
            {
                "categories": self.canvas.categories,
                "active": self.canvas.active,
                "current": self.current,
                "settings": settings,
            }
        )

    def _take_up(self, saved: dict[str, Any]) -> None:
        """What `_save` gave to the session."""
        for key in SETTINGS:
            getattr(self, key).value = saved["settings"][key]
        names = [category["name"] for category in saved["categories"]]
        self.canvas.categories = saved["categories"] + [c for c in self.canvas.categories if c["name"] not in names]
        self.canvas.active = saved["active"]
        self.current = str(saved["current"])

    # ---- the controls

    def say(self, message: Any) -> None:
        """A line under the canvas."""
        self.message.value = html.escape(str(message), quote=False)

    def _controls(self) -> list[ipywidgets.Widget]:
        """Make the controls and wire each to its method; classes begin with trex-studio-, for tests and CSS."""
        wide, one_line = {"flex": "1 1 16em", "width": "auto"}, {"continuous_update": False}
        self.chooser = ipywidgets.Dropdown(description="Image")
        self.workflow = ipywidgets.ToggleButtons(options=WORKFLOWS, style={"button_width": "7.5em"})
        self.text = ipywidgets.Text(description="Words", placeholder="cat, dog", layout=wide, **one_line)
        self.negative_text = ipywidgets.Text(description="Not meant", placeholder="words", layout=wide, **one_line)
        self.threshold = ipywidgets.FloatSlider(0.3, min=FLOOR, max=1, step=0.01, description="Threshold")
        self.beta = ipywidgets.FloatSlider(
            0.3, min=0, max=2, step=0.05, description="Beta", tooltip="how much a negative prompt takes", **one_line
        )
        self.counts = ipywidgets.HTML()
        self.timing = ipywidgets.HTML()
        self.message = ipywidgets.HTML()
        self.gallery = ipywidgets.HBox()
        self.gallery.layout.flex_flow = "row wrap"
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=True, description="Upload")
        path, bank_path, export_path = (
            ipywidgets.Text(description=name, value=value, placeholder=hint, layout=wide, **one_line)
            for name, value, hint in (
                ("Add", "", "path of a picture or a folder"),
                ("Bank file", "bank.safetensors", ""),
                ("Folder", "", "for the data set, or with pictures to search"),
            )
        )
        official = ipywidgets.Checkbox(
            description="official file (one name, 256 numbers)", indent=False, layout={"width": "auto"}
        )
        form = ipywidgets.Dropdown(options=annotations.FORMATS, layout={"width": "6em"})
        actions = {
            "add": ("Add", "Add the picture or the folder", lambda: self._add_path(path.value)),
            "accept-shown": ("Accept all shown", "Accept all proposals", self.accept_shown),
            "collect": ("Collect examples", "Take the positive boxes of this image into the bank", self.collect),
            "save-bank": ("Save bank", "Write the bank", lambda: self.save_bank(bank_path.value, official.value)),
            "load-bank": ("Load bank", "Add a saved bank", lambda: self.load_bank(bank_path.value)),
            "tune": ("Tune", "Learn the names from what is accepted and drawn on several images", self.tune),
            "export": (
                "Export",
                "Write a data set into the folder",
                lambda: self.export(export_path.value, form.value),
            ),
            "detect-folder": (
                "Detect in folder",
                "Words and bank on every picture",
                lambda: self.detect_folder(export_path.value),
            ),
        }
        button = {name: self._button(name, *given) for name, given in actions.items()}
        names = "image path upload workflow text counts negative-text threshold beta timing message gallery".split()
        controls = [self.chooser, path, self.upload, self.workflow, self.text, self.counts, self.negative_text]
        controls += [self.threshold, self.beta, self.timing, self.message, self.gallery]
        names += ["bank-path", "official", "export-path", "format"]
        for name, control in zip(names, [*controls, bank_path, official, export_path, form], strict=True):
            control.add_class(f"trex-studio-{name}")
        for control in (self.workflow, self.text, self.negative_text, self.beta):
            control.observe(self._when_user(self.answer), "value")
        self.threshold.observe(self._when_user(self._move_threshold), "value")
        self.chooser.observe(self._when_user(lambda: self.choose(self.chooser.value)), "value")
        self.upload.observe(self._when_user(self._take_uploads), "value")
        self.canvas.observe(self._when_user(self.answer), "prompts")
        self.canvas.observe(self._when_user(self._review), "detections")
        self.canvas.observe(self._when_user(self._save), ["categories", "active"])
        self.finder = SearchTab(self)
        rows = [
            [self.chooser, path, button["add"], self.upload],
            [self.workflow, self.threshold, self.beta],
            [self.text, self.negative_text],
            [self.counts, button["accept-shown"]],
        ]
        below = [
            [button["collect"], bank_path, button["save-bank"], button["load-bank"], button["tune"], official],
            [self.gallery],
            [export_path, form, button["export"], button["detect-folder"]],
            [self.finder],
        ]
        row = partial(ipywidgets.HBox, layout={"flex_flow": "row wrap", "align_items": "center"})
        return [*map(row, rows), self.canvas, self.timing, self.message, *map(row, below)]

    def _button(self, name: str, text: str, tooltip: str, act: Callable[[], Any]) -> ipywidgets.Button:
        """A button whose mistakes are shown under the canvas."""
        button = ipywidgets.Button(description=text, tooltip=tooltip, layout={"width": "auto"})
        button.add_class(f"trex-studio-{name}")

        def clicked(_: Any) -> None:
            try:
                act()
            except (ValueError, OSError) as error:
                self.say(error)

        button.on_click(clicked)
        return button

    def _when_user(self, act: Callable[[], Any]) -> Callable[[Any], None]:
        """An observer that leaves out what the studio itself sets. A mistake is shown under the canvas, and raised for
        whoever set the trait."""

        def changed(_: Any) -> None:
            if not self._quiet:
                try:
                    act()
                except (ValueError, OSError) as error:
                    self.say(error)
                    raise

        return changed

    @contextmanager
    def _silently(self) -> Iterator[None]:
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before


def _words(control: ipywidgets.Text) -> list[str]:
    words = split_names(control.value)
    return unique_names(words) if words else []
