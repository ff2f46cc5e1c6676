"""What a reader says of a picture, and rows as a COCO dictionary."""

from __future__ import annotations

import csv
import functools
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from trex2_mini.images import MissingPicture, load_image

# what reading a file of another form raises
FORMLESS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, csv.Error, EOFError, OSError)


@dataclass(frozen=True)
class Row:
    """A picture and what is known of it.

    Boxes are [x, y, width, height] in pixels of a picture of `width` x `height`. Where the file on disk has another
    size, they are scaled with it (so shares of the picture are boxes of a 1 x 1 picture). Size 0: the file's own.
    """

    file: str  # relative to the set's folder; of a picture within a tar, the tar
    width: int = 0
    height: int = 0
    boxes: Sequence[Sequence[float]] = ()
    names: Sequence[str] = ()  # of each box
    crowd: Sequence[bool] = ()  # of each box: a group, or not to be judged
    looked_for: Sequence[str] | None = None  # names that were looked for everywhere in the picture; None: all
    ambiguous: Sequence[str] = ()  # names that hold of its objects too, broader or narrower ones
    caption: str | None = None
    offset: int = -1  # bytes; of a picture within a tar
    size: int = 0


def named(reader: Callable[..., Iterator[Row]]) -> Callable[..., Iterator[Row]]:
    """A reader whose every error on a file of another form is a ValueError that names the file, and what was read."""

    @functools.wraps(reader)
    def read(source: Path, *more: Any, **options: Any) -> Iterator[Row]:
        try:
            yield from reader(source, *more, **options)
        except FORMLESS as error:
            if str(source) in str(error):
                raise
            kind = f"{type(error).__name__}: {error}"
            raise ValueError(f"{source} is not of the form that {reader.__name__} reads ({kind})") from error

    return read


def inside(file: str, what: Path) -> str:
    """A file name that stays in its folder, with forward slashes. Raises ValueError for any other."""
    if not isinstance(file, str):
        raise ValueError(f"{what}: expected the name of a picture, got {file!r:.80}")
    path = PurePosixPath(file.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name or "\0" in file or ":" in path.parts[0]:
        raise ValueError(f"{what}: expected the name of a picture within the set's folder, got {file!r:.80}")
    return path.as_posix()


def read_picture(path: Path, offset: int = -1, size: int = 0) -> np.ndarray:
    """uint8 [H, W, 3] of a file, or of `size` bytes within a tar. Raises UnreadablePicture."""
    if offset < 0:
        return load_image(path)
    if not path.is_file():
        raise MissingPicture(f"the tar {path} does not exist")
    with path.open("rb") as archive:
        archive.seek(offset)
        return load_image(archive.read(size))


def take(entry: Any, keys: Sequence[str], where: str) -> list:
    """The values of an entry's keys. Raises ValueError that says which are missing, and where."""
    missing = [key for key in keys if key not in entry] if isinstance(entry, dict) else list(keys)
    if missing:
        raise ValueError(f"{where}: expected an object with {', '.join(keys)}; {', '.join(missing)} is missing")
    return [entry[key] for key in keys]


def json_lines(path: Path) -> Iterator[Any]:
    """What the lines of a file hold, .gz or not. Raises ValueError with the line's number."""
    if not path.is_file():
        raise FileNotFoundError(f"the file {path} does not exist")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error


def as_coco(rows: Iterable[Row]) -> dict:
    """Rows of known size as a COCO dictionary (looked_for as LVIS's neg_category_ids). Categories by name."""
    rows = list(rows)
    names = sorted({name for row in rows for name in (*row.names, *(row.looked_for or ()))})
    ids = {name: number for number, name in enumerate(names, 1)}
    images, annotations = [], []
    for number, row in enumerate(rows, 1):
        if not row.width or row.offset >= 0:
            raise ValueError(f"{row.file}: only pictures of known size in folders can be put into a COCO file")
        image = {"id": number, "file_name": row.file, "width": row.width, "height": row.height}
        if row.looked_for is not None:
            image |= {"neg_category_ids": sorted(ids[n] for n in set(row.looked_for) - set(row.names))}
        images.append(image)
        annotations += [
            {"id": len(annotations) + k, "image_id": number, "category_id": ids[name], "bbox": list(box),
                "area": box[2] * box[3], "iscrowd": int(crowd)}
            for k, (box, name, crowd) in enumerate(zip(row.boxes, row.names, row.crowd), 1)
        ]  # fmt: skip
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
