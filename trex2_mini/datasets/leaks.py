"""Pictures of an evaluation set among those of training: by their file names and by how they look.

Two pictures look alike where their difference hashes (whether each of 8 x 8 cells is brighter than its right
neighbour) differ in at most `DISTANCE` of 64 bits, mirrored or not: another size, compression or a watermark does not
hide a copy. Flat pictures, of which the hash says nothing, are compared by name alone.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.large.index import ParquetDataset
from trex2_mini.images import UnreadablePicture

DISTANCE = 4  # bits of 64
FLAT = 8  # a hash with fewer bits set, or fewer unset, says nothing
Set = CocoDataset | ParquetDataset


def difference_hash(picture: Image.Image) -> tuple[int, int]:
    """The 64-bit hash of a picture and of its mirror image."""
    grey = np.asarray(ImageOps.exif_transpose(picture).convert("L").resize((9, 8), Image.Resampling.BOX), dtype=int)
    sides = (grey, grey[:, ::-1])
    one, other = (int.from_bytes(np.packbits(g[:, 1:] > g[:, :-1]).tobytes(), "big") for g in sides)
    return one, other


def names_of(dataset: Set) -> list[str]:
    """The pictures' file names without folders and endings; those of COCO's pictures are their ids."""
    files = dataset.file_names() if isinstance(dataset, ParquetDataset) else _files(dataset)
    return [PurePosixPath(file.replace("\\", "/")).stem for file in files]


def _files(dataset: CocoDataset) -> list[str]:
    return [image["file_name"] for image in dataset.coco["images"]]


def shared_names(training: Set, evaluation: Set) -> list[str]:
    """File names (without folder and ending) of both sets, where they tell pictures apart: of five signs or more."""
    both = set(names_of(training)) & set(names_of(evaluation))
    return sorted(name for name in both if len(name) >= 5)


def hashes_of(dataset: Set) -> dict[str, tuple[int, int]]:
    """{file: its hashes} of the pictures that can be read."""
    found = {}
    if isinstance(dataset, ParquetDataset):
        for index, file in enumerate(dataset.file_names()):
            try:
                found[f"{file} #{index}"] = difference_hash(Image.fromarray(dataset.picture(index)))
            except UnreadablePicture:
                continue
        return found
    for file in _files(dataset):
        if file in dataset.pictures:
            try:
                with Image.open(dataset.pictures.find(file)) as picture:
                    picture.draft("L", (64, 64))  # a JPEG is decoded at an eighth of its size
                    found[file] = difference_hash(picture)
            except OSError:
                continue
    return found


def look_alikes(training: Set, evaluation: Set) -> list[tuple[str, str]]:
    """(picture of training, picture of evaluation) that look alike."""
    train, test = hashes_of(training), hashes_of(evaluation)
    if not train or not test:
        return []
    files = list(train)
    known = np.array([train[file] for file in files], dtype=np.uint64)  # (n, 2)
    pairs = []
    for file, (own, _) in test.items():
        if FLAT <= own.bit_count() <= 64 - FLAT:
            away = np.array([np.bitwise_xor(known[:, side], np.uint64(own)) for side in (0, 1)])
            bits = np.unpackbits(away.view(np.uint8).reshape(2, -1, 8), axis=-1).sum(-1).min(0)
            pairs += [(files[index], file) for index in np.flatnonzero(bits <= DISTANCE)]
    return pairs


def warnings_of(training: Sequence[tuple[str, Set]], evaluation: Sequence[tuple[str, Set]], look: bool) -> list[str]:
    """A line for each pair of sets that share pictures. look: compare how they look too, which reads every picture."""
    lines = []
    for name, train in training:
        for other, test in evaluation:
            if Path(train.path) == Path(test.path):
                lines.append(f"{name} is trained on and measured on")
                continue
            same = shared_names(train, test)
            if same:
                lines.append(f"{name} holds {len(same)} pictures of {other} by file name, such as {same[0]}")
            alike = look_alikes(train, test) if look else []
            if alike:
                count, first = len({b for _, b in alike}), " and ".join(alike[0])
                lines.append(f"{name} holds {count} pictures that look like those of {other}: {first}")
    return lines
