"""The options by which `detect`, `count`, `video` and `search` are asked, and the pictures that they look at."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trex2_mini.cli.options import PATH, checkpoint

if TYPE_CHECKING:
    import numpy as np

    from trex2_mini.detector import Detections, Detector
    from trex2_mini.prompt_bank import PromptBank


def places(kind: str, dest: str, help: str):
    """--box X1 Y1 X2 Y2 or --point X Y, in pixels."""
    corners = "X1 Y1 X2 Y2" if kind.endswith("box") else "X Y"
    said, count = f"{help}, in pixels; may be repeated.", len(corners.split())
    return click.option(f"--{kind}", dest, nargs=count, type=float, multiple=True, metavar=corners, help=said)


DEVICE = click.option("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU of NVIDIA's where there is one).")
NAME = click.option("--name", default="object", help="The name of what the boxes and points show.")
QUESTION = [
    click.option(
        "--text", help="Names, separated by commas; one that holds a comma in double quotes: 'cat, \"a, b\"'."
    ),
    click.option("--text-file", type=PATH, metavar="FILE", help="Names, one a line."),
    places("box", "boxes", "An example on the picture"),
    places("point", "points", "An example on the picture"),
    NAME,
    click.option("--bank", type=PATH, metavar="FILE", help="A prompt bank, as `trex2 embed` writes it."),
    click.option("--allow-other-model", is_flag=True, help="Take a bank that a model with other weights made."),
    click.option("--aliases", type=PATH, metavar="FILE", help='JSON: what names stand for, {"甜甜圈": "donut"}.'),
    checkpoint(),
    DEVICE,
]
OPTIONS = [
    *QUESTION,
    click.option("--negative-text", help="Names of what is not meant."),
    places("negative-box", "negative_boxes", "What is not meant"),
    places("negative-point", "negative_points", "What is not meant"),
    click.option("--beta", type=float, default=0.3, help="How much a negative takes from a score."),
    click.option("--threshold", type=float, default=0.3, help="Least score, 0..1."),
    click.option("--max-detections", type=int, default=300, help="Of a picture, the best."),
    click.option("--class-agnostic-nms", is_flag=True, help="Of boxes that overlap the best stays, of whatever name."),
    click.option("--tiles", type=int, default=1, metavar="N", help="Look at N x N overlapping parts of a picture."),
]


@dataclass(frozen=True)
class Question:
    """The values of QUESTION."""

    text: str | None
    text_file: Path | None
    boxes: Sequence
    points: Sequence
    name: str
    bank: Path | None
    allow_other_model: bool
    aliases: Path | None
    checkpoint: str
    device: str | None

    @cached_property
    def detector(self) -> Detector:
        from trex2_mini.detector import Detector

        found = Detector.load(self.checkpoint, self.device)
        if self.bank:
            from trex2_mini.weights.tuning import load_tuned

            found, self.__dict__["prompts"] = load_tuned(found, self.bank)
        return found.use_aliases(self.aliases) if self.aliases else found

    @cached_property
    def names(self) -> list[str] | None:
        from trex2_mini.names import unique_names
        from trex2_mini.paths import read_text

        found = unique_names(self.text) if self.text is not None else []
        if self.text_file:
            found += unique_names(read_text(self.text_file))
        return found or None

    @cached_property
    def prompts(self) -> PromptBank | None:
        return self.detector and self.__dict__.get("prompts")  # a bank comes with the detector that it was tuned for

    @property
    def placed(self) -> dict[str, dict[str, Sequence]]:
        """Boxes and points as `Detector.detect` takes them; only those that were given."""
        return {key: {self.name: own} for key, own in {"boxes": self.boxes, "points": self.points}.items() if own}


@dataclass(frozen=True)
class Asked(Question):
    """The values of OPTIONS."""

    negative_text: str | None
    negative_boxes: Sequence
    negative_points: Sequence
    beta: float
    threshold: float
    max_detections: int
    class_agnostic_nms: bool
    tiles: int

    @cached_property
    def negatives(self) -> list[str] | None:
        from trex2_mini.names import unique_names

        return unique_names(self.negative_text) if self.negative_text is not None else None

    @property
    def on_picture(self) -> list[str]:
        """The options given that lie on one picture."""
        given = {"--box": self.boxes, "--point": self.points}
        given |= {"--negative-box": self.negative_boxes, "--negative-point": self.negative_points}
        return [option for option, own in given.items() if own]

    def everywhere(self, image: np.ndarray) -> Asked:
        """The same question for other pictures: boxes and points on this one become part of the bank."""
        from trex2_mini.prompt_bank import together

        if self.negative_boxes or self.negative_points:
            raise ValueError("--negative-box and --negative-point lie on one picture; use --negative-text")
        if not (self.boxes or self.points):
            return self
        example = (image, *(list(own) or None for own in (self.boxes, self.points)))
        banks = [self.detector.embed({self.name: [example]}), *([self.prompts] if self.prompts else [])]
        asked = replace(self, boxes=(), points=())
        asked.__dict__.update(prompts=together(banks), detector=self.detector)  # what the cached properties would give
        return asked

    @property
    def key(self) -> dict[str, Any]:
        """All that decides what is found, for a half-done file."""
        from trex2_mini.annotations import bank_key

        own = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("bank", "text_file", "checkpoint", "device"):
            del own[name]
        found = {"text": self.names, "prompts": bank_key(self.prompts), "weights": self.detector.weights}
        return own | found | {"aliases": self.detector.aliases}

    def read(self, picture: Any) -> Any:
        """A picture as `detect` takes it."""
        from trex2_mini.images import load_image

        return self.detector.encode(picture) if self.tiles == 1 else load_image(picture)

    def detect(self, image: Any) -> Detections:
        """What is on a picture that was `read`."""
        options: dict[str, Any] = dict(self.placed)
        options |= {"text": self.names, "prompts": self.prompts, "score_threshold": self.threshold}
        options |= {"max_detections": self.max_detections, "class_agnostic_nms": self.class_agnostic_nms}
        options |= {"negative_text": self.negatives, "beta": self.beta, "allow_other_model": self.allow_other_model}
        if self.tiles == 1:
            negative = {"negative_boxes": self.negative_boxes, "negative_points": self.negative_points}
            return self.detector.detect(image, **options, **{key: own for key, own in negative.items() if own})
        from trex2_mini.evaluation.tiles import detect_in_parts

        if self.negative_boxes or self.negative_points:
            raise ValueError("--tiles goes with --negative-text, not with --negative-box or --negative-point")
        return detect_in_parts(self.detector, image, self.tiles, **options)


def prompts(function: Callable, kind: type[Question] = Asked, options: Sequence[Callable] = OPTIONS) -> Callable:
    """Gives a command OPTIONS; it gets them as one argument, `asked`."""

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        return function(asked=kind(**{field.name: given.pop(field.name) for field in fields(kind)}), **given)

    for option in reversed(options):
        command = option(command)
    return command


question = functools.partial(prompts, kind=Question, options=QUESTION)


def pictures(function: Callable) -> Callable:
    """PICTURES... and --recursive."""
    for option in (
        click.option("--recursive", is_flag=True, help="Also the folders in a folder."),
        click.argument("pictures", nargs=-1, required=True, metavar="PICTURE|FOLDER|URL..."),
    ):
        function = option(function)
    return function


def gather(given: Sequence[str], recursive: bool) -> dict[str, Any]:
    """{name: path or address}; what lies in a folder is named by its place there, with forward slashes. Raises
    ValueError: a folder without pictures, two pictures of one name."""
    from trex2_mini.annotations import pictures_in

    found: list[tuple[str, Any]] = []
    for own in given:
        if Path(own).is_dir():
            before = "" if len(given) == 1 else f"{Path(own).resolve().name}/"
            inside = pictures_in(Path(own), recursive)
            found += [(before + path.relative_to(own).as_posix(), path) for path in inside]
        else:
            found.append((own.split("?")[0].rsplit("/", 1)[-1] if "://" in own else Path(own).name, own))
    names = [name for name, _ in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several pictures are called {', '.join(twice[:5])}; give the folder that holds them")
    return dict(found)


def look(asked: Asked, chosen: dict[str, Any], partial: Path | None) -> dict[str, tuple[int, int, Detections]]:
    """What is on each picture; notes on stderr: queries that were all used, pictures that were left out."""
    from trex2_mini.annotations import detect_pictures

    if len(chosen) > 1 and asked.on_picture:
        raise ValueError(
            f"{', '.join(asked.on_picture)} lie on one picture, and these are {len(chosen)}; make a bank with"
            " `trex2 embed` and ask by --bank"
        )
    key = asked.key | {"pictures": list(chosen)} if partial else None
    found, counts = detect_pictures(
        asked.read, asked.detect, chosen.items(), len(chosen), partial, key, progress=len(chosen) > 1
    )
    for name, (_, _, own) in found.items():
        if own.full:
            click.echo(f"{name}: {own.note}: --tiles {asked.tiles + 1}", err=True)
    if len(chosen) > 1:
        click.echo(", ".join(f"{key}: {value}" for key, value in counts.items()))
    return found
