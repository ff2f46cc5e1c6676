"""What is kept of prompting by hand: the pictures, what was drawn and decided on each, the bank in the making; and the
autosave file of it all.

No widget is in here. PromptStudio (studio.py) shows a Session and fills it.
"""

import io
import json
import os
import shutil
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from traitlets import TraitError

from trex2_mini import annotations
from trex2_mini.detector import Detections, Detector, EncodedImage
from trex2_mini.images import LeftOut, load_image, picture_size
from trex2_mini.interactive.canvas import as_annotations, check_categories, check_detections, check_prompts
from trex2_mini.interactive.examples import BankBuilder
from trex2_mini.paths import data_root, write_text

SCENES = 12  # embedded scenes, where no images are given
KEPT_ENCODINGS = 16  # images
SAVED_AS = "trex2_mini studio 1"


class Session:
    """Pictures, and what was done on them.

    sources   {name: path or picture}, what can be opened; a name is a file name
    work      {name: {"source": path or None, "size": [height, width], "prompts": [...], "reviewed": [...]}}, in the
              canvas' form
    bank      a BankBuilder
    history   [{"image", "what": "encode", "ms"}, ...] and what the studio adds
    autosave  a JSON file, or None
    """

    def __init__(self, detector: Detector, images: Any = None, autosave: str | Path | None = None):
        self.detector, self.autosave = detector, None if autosave is None else Path(autosave).expanduser()
        if self.autosave is not None and self.autosave.is_dir():
            raise ValueError(f"autosave: expected a file, and {autosave} is a folder; name a file in it")
        self.sources: dict[str, Any] = {}
        self.work: dict[str, dict] = {}
        self.history: list[dict] = []
        self.bank = BankBuilder(detector, self.encode)
        self._encodings: OrderedDict[str, EncodedImage] = OrderedDict()
        given = pictures_of(images)
        left_out = LeftOut(len(given))
        for name, source in given:
            left_out.read(name or str(source), self.add, source, name)

    # ---- pictures

    def add(self, source: Any, name: str | None = None) -> str:
        """Take in a path, PIL picture or array; returns its name here. Of a file only the head is read.
        Raises ValueError, FileNotFoundError.
        """
        if not isinstance(source, (str, Path)):
            load_image(source)  # refuses what is no picture
        else:
            source = Path(source).expanduser().resolve()
            picture_size(source)  # refuses what is no picture by its head; the pixels are read when it is looked at
            for known, other in self.sources.items():
                if isinstance(other, Path) and other == source:
                    return known
        wanted = Path(name or (source.name if isinstance(source, Path) else f"picture-{len(self.sources) + 1}"))
        ending = wanted.suffix or ".png"
        names = (wanted.stem + (f"-{number}" if number > 1 else "") + ending for number in count(1))
        name = next(name for name in names if name not in self.sources)
        self.sources[name] = source
        return name

    def add_upload(self, name: str, content: bytes) -> str:
        """Take in an uploaded file; with autosave it is kept in a folder beside that file, since the browser's copy is
        gone at a restart."""
        name = self.add(_decoded(name, content), Path(name).name)
        if self.autosave is not None:
            path = self.autosave.with_name(f"{self.autosave.stem}_uploads") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self.sources[name] = path.resolve()
        return name

    def image(self, name: str) -> np.ndarray:
        """uint8 [H, W, 3]. Raises ValueError for a name that is not here."""
        return load_image(self._source(name))

    def _source(self, name: str) -> Any:
        if name not in self.sources:
            raise ValueError(f"no picture {name!r} here; expected one of {list(self.sources)}, or add it")
        return self.sources[name]

    def encode(self, name: str) -> EncodedImage:
        """The picture's features, from the detector or from the last time."""
        if name not in self._encodings:
            start = time.perf_counter()
            self._encodings[name] = self.detector.encode(self._source(name))
            self.history.append({"image": name, "what": "encode", "ms": 1000 * (time.perf_counter() - start)})
        self._encodings.move_to_end(name)
        while len(self._encodings) > KEPT_ENCODINGS:
            self._encodings.popitem(last=False)
        return self._encodings[name]

    def work_on(self, name: str) -> dict:
        """The entry of `work` for a picture. What was drawn when it had another size is kept under another name."""
        size, source = list(self.image(name).shape[:2]), self.sources[name]
        if name in self.work and self.work[name]["size"] != size:
            height, width = self.work[name]["size"]
            self.work[f"{name} of {width} x {height} px"] = self.work.pop(name)
        self.work.setdefault(name, {"size": size, "prompts": [], "reviewed": []})
        self.work[name]["source"] = str(source) if isinstance(source, Path) else None
        return self.work[name]

    # ---- results

    def annotations(self, names: Sequence[str]) -> dict[str, tuple[int, int, Detections]]:
        """{picture: (height, width, what is on it)} of the pictures that were worked on, see `canvas.as_annotations`;
        names: the first labels."""
        return {
            name: (*own["size"], as_annotations(own["prompts"], own["reviewed"], names))
            for name, own in self.work.items()
            if name in self.sources and (own["prompts"] or own["reviewed"])
        }

    def export(self, folder: str | Path, format: str, names: Sequence[str]) -> Path:
        """Write `annotations` with their pictures as a data set, see `annotations.export`. Raises ValueError where
        nothing was done.
        """
        if not (found := self.annotations(names)):
            raise ValueError("nothing to export: accept detections, or draw boxes, first")
        with tempfile.TemporaryDirectory() as pictures:
            for name in found:
                source, target = self.sources[name], Path(pictures) / name
                if isinstance(source, Path):
                    target.write_bytes(source.read_bytes())
                else:
                    Image.fromarray(load_image(source)).save(target)
            return annotations.export(Path(folder).expanduser(), found, format, pictures)

    # ---- the autosave file

    def save(self, more: Mapping[str, Any]) -> None:
        """Write everything, and the studio's own `more` (categories, current, settings), whole or not at all."""
        if self.autosave is not None:
            loaded = {name: vector.tolist() for name, vector in self.bank.loaded.items()}
            saved = {"format": SAVED_AS, "work": self.work, "examples": self.bank.examples, "loaded": loaded}
            saved["weights"] = self.detector.weights
            try:
                write_text(self.autosave, json.dumps(saved | dict(more)))
            except OSError as error:
                raise ValueError(
                    f"{self.autosave} cannot be written ({error}), so nothing is kept; name another file as autosave, "
                    "or None"
                ) from error

    def restore(self, take_up: Callable[[dict[str, Any]], None]) -> str:
        """Take up the autosave file and the pictures it names that are still there; `take_up` gets what `save` was
        given. Returns what to say of it, nothing without a file.

        Vectors that another model made are left out, and a copy of the file kept aside. A file that cannot be
        used, be it by `take_up`, is moved aside, never overwritten, and ValueError says where to.
        """
        if self.autosave is None or not self.autosave.exists():
            return ""
        try:
            saved = json.loads(self.autosave.read_text(encoding="utf-8"))
            if saved.pop("format") != SAVED_AS:
                raise ValueError(f"its format is not {SAVED_AS!r}")
            saved["categories"] = check_categories(saved["categories"])
            names = [category["name"] for category in saved["categories"]]
            work, dim = saved.pop("work"), self.detector.config.model.dim
            for own in work.values():
                own["prompts"] = check_prompts(own["prompts"], *own["size"], names, names[0])
                own["reviewed"] = check_detections(own["reviewed"], *own["size"])
            examples = [{key: example[key] for key in ("name", "image", "box")} for example in saved.pop("examples")]
            loaded = {name: torch.tensor(vector).reshape(dim) for name, vector in saved.pop("loaded").items()}
            other = bool(loaded) and saved.pop("weights", "") not in ("", self.detector.weights)
            take_up(saved)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, TraitError) as error:
            aside = self._aside("damaged")
            os.replace(self.autosave, aside)
            raise ValueError(
                f"{self.autosave.name} could not be used ({type(error).__name__}: {error}); it was moved to"
                f" {aside.name}, and a new one is begun"
            ) from error
        said = f"went on with {self.autosave.name}"
        if other:
            shutil.copyfile(self.autosave, aside := self._aside("other-model"))
            said += (
                f"; its loaded vectors {list(loaded)} are of a model with other weights and were left out: embed them "
            )
            warnings.warn(said := said + f"again with this one, or open {aside.name} with that model", stacklevel=3)
        self.work, self.bank.examples, self.bank.loaded = work, examples, {} if other else loaded
        for name, own in work.items():
            if name not in self.sources and own["source"] and Path(own["source"]).is_file():
                self.add(own["source"], name)
        return said

    def _aside(self, why: str) -> Path:
        """A name beside the autosave file that is free."""
        numbered = (self.autosave.with_name(f"{self.autosave.name}.{why}-{number}") for number in count(1))
        return next(path for path in numbered if not path.exists())


def pictures_of(images: Any) -> list[tuple[str | None, Any]]:
    """(name, picture) of whatever a Session takes as images."""
    if images is None:
        scenes = data_root() / "emoji-val" / "images"
        if not scenes.is_dir():
            raise ValueError(
                f"no images given, and no embedded scenes in {scenes}: run `python -m trex2_mini data`, or give images"
            )
        return [(None, path) for path in annotations.pictures_in(scenes)[:SCENES]]
    if isinstance(images, Mapping):
        return list(images.items())
    if isinstance(images, (str, Path)) and Path(images).expanduser().is_dir():
        return [(None, path) for path in annotations.pictures_in(Path(images).expanduser())]
    return [
        (None, image) for image in ([images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else images)
    ]


def _decoded(name: str, content: bytes) -> np.ndarray:
    try:
        return load_image(Image.open(io.BytesIO(content)))
    except OSError as error:
        raise ValueError(f"{name} is not a readable picture: {error}") from error
