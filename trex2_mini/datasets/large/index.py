"""An index of annotations that millions of pictures fit in: one Parquet file, read through memory-mapped arrays.

`write_index` puts the rows of a reader into a Parquet file, and unpacks its columns beside it (FILE.arrays/, plain .npy
files). A process maps these, so that opening takes no time, and all DataLoader workers share one copy in the system's
page cache. A Parquet file that was copied alone is unpacked on its first opening. Needs pyarrow: pip install
"trex2-mini[large]".
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from trex2_mini.datasets.holdings import Holdings
from trex2_mini.datasets.large.rows import Row, inside, read_picture
from trex2_mini.datasets.sample import Sample
from trex2_mini.images import LeftOut

FLAT = {"boxes": np.float32, "labels": np.int32, "crowd": np.bool_, "looked_for": np.int32, "ambiguous": np.int32}
OF_PICTURE = {"width": np.int32, "height": np.int32, "offset": np.int64, "size": np.int64}
ALL = -1  # the one entry of looked_for where everything was looked for


def schema():
    """The columns of an index, as pyarrow's schema."""
    import pyarrow

    integers = pyarrow.list_(pyarrow.int32())
    types = {"file": pyarrow.string(), "caption": pyarrow.string(), "boxes": pyarrow.list_(pyarrow.float32())}
    types |= {"labels": integers, "crowd": pyarrow.list_(pyarrow.bool_())}
    types |= {"looked_for": integers, "ambiguous": integers}
    return pyarrow.schema(types | {key: pyarrow.from_numpy_dtype(kind) for key, kind in OF_PICTURE.items()})


def write_index(
    rows: Iterable[Row], path: Path, more_than: int = 0, group: int = 50_000, dictionary: Sequence[str] | None = None
) -> Path:
    """Rows as a Parquet file, written whole or not at all.

    more_than: names of at most so many boxes are no negatives (the paper: phrases of grounding data that occur more
    than 100 times are the global dictionary). group: rows in memory at a time. dictionary: the names that are
    negatives, boxed here or not, instead of those that `more_than` chooses.

    Raises ValueError for a box that is not four finite numbers, or where boxes, names and crowd differ in length.
    """
    import pyarrow
    import pyarrow.parquet

    place = {name: label for label, name in enumerate(dictionary or ())}
    counts: Counter = Counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with pyarrow.parquet.ParquetWriter(draft, schema(), compression="zstd") as writer:
            for some in _groups(rows, group):
                entries = [_entry(row, place, counts) for row in some]
                try:
                    writer.write_table(pyarrow.Table.from_pylist(entries, schema=schema()))
                except (pyarrow.ArrowException, OverflowError, TypeError) as error:
                    raise ValueError(f"{path}: sizes or captions of a picture are none: {error}") from error
            negatives = {name for name in place if counts[name] > more_than} if dictionary is None else set(dictionary)
            categories = [{"name": name, "negative": name in negatives} for name in place]
            writer.add_key_value_metadata({"categories": json.dumps(categories)})
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    shutil.rmtree(arrays_of(path), ignore_errors=True)
    unpack(path)
    return path


def _groups(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    some: list[Row] = []
    for row in rows:
        some.append(row)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def _entry(row: Row, place: dict[str, int], counts: Counter) -> dict:
    names = (*row.names, *(row.looked_for or ()), *row.ambiguous)
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{row.file}: expected names that are text, got {names!r:.80}")
    try:
        boxes = np.asarray(row.boxes if len(row.boxes) else np.zeros((0, 4)), dtype=np.float32)
    except (ValueError, TypeError):
        boxes = np.full((1, 1), np.nan)
    if boxes.shape[1:] != (4,) or not np.isfinite(boxes).all():
        raise ValueError(f"{row.file}: expected boxes of four finite numbers, got {row.boxes!r:.80}")
    if not len(row.boxes) == len(row.names) == len(row.crowd):
        raise ValueError(f"{row.file}: {len(row.boxes)} boxes, {len(row.names)} names, {len(row.crowd)} crowd marks")
    counts.update(row.names)
    labels, looked_for, ambiguous = (
        [place.setdefault(name, len(place)) for name in names]
        for names in (row.names, row.looked_for or (), row.ambiguous)
    )
    return {
        "file": row.file, "caption": row.caption, "boxes": boxes.ravel(), "labels": labels, "crowd": list(row.crowd),
        "looked_for": [ALL] if row.looked_for is None else sorted(set(looked_for)), "ambiguous": sorted(set(ambiguous)),
        "width": row.width, "height": row.height, "offset": row.offset, "size": row.size,
    }  # fmt: skip


def arrays_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.arrays")


def unpack(path: Path) -> None:
    """The columns of a Parquet file as .npy files in `arrays_of(path)`, a row group in memory at a time."""
    import pyarrow
    import pyarrow.parquet

    folder = arrays_of(path)
    try:
        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        categories = json.loads((file.metadata.metadata or {})[b"categories"])
    except (pyarrow.ArrowInvalid, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no index that write_index wrote: {error}") from error
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    draft.mkdir(parents=True)
    flat = {key: open(draft / key, "wb") for key in (*FLAT, "file", "caption")}
    lengths: dict[str, list[np.ndarray]] = {key: [] for key in flat}
    fixed: dict[str, list[np.ndarray]] = {key: [] for key in OF_PICTURE}
    try:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number).combine_chunks()
            for key, out in flat.items():
                column = table[key].combine_chunks()
                if key in FLAT:
                    values = column.flatten().to_numpy(zero_copy_only=False).astype(FLAT[key])
                    out.write(values.tobytes())
                    lengths[key].append(np.diff(column.offsets.to_numpy()))
                else:
                    texts = [(text or "").encode() for text in column.to_pylist()]
                    out.write(b"".join(texts))
                    lengths[key].append(np.array([len(text) for text in texts], dtype=np.int64))
            for key, kind in OF_PICTURE.items():
                fixed[key].append(table[key].to_numpy().astype(kind))
    finally:
        for out in flat.values():
            out.close()
    for key in flat:
        first = np.concatenate([[0], np.cumsum(np.concatenate(lengths[key] or [np.zeros(0, int)]))]).astype(np.int64)
        np.save(draft / f"{key}.first.npy", first)
        np.save(draft / f"{key}.npy", np.fromfile(draft / key, FLAT.get(key, np.uint8)))
        (draft / key).unlink()
    for key, kind in OF_PICTURE.items():
        np.save(draft / f"{key}.npy", np.concatenate(fixed[key] or [np.zeros(0, kind)]))
    first, labels = np.load(draft / "labels.first.npy"), np.load(draft / "labels.npy")
    judged = ~np.load(draft / "crowd.npy")
    pictures = np.repeat(np.arange(len(first) - 1, dtype=np.int32), np.diff(first))
    Holdings.of(labels[judged], pictures[judged], len(categories)).save(draft)
    (draft / "categories.json").write_text(json.dumps(categories), encoding="utf-8")
    os.replace(draft, folder)


@dataclass(frozen=True)
class Annotated:
    """What the index says of a picture: boxes float32 [N, 4] xywh (`Row`), labels [N], crowd [N]."""

    file: str
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    vocabulary: np.ndarray | None
    ambiguous: np.ndarray
    size: tuple[int, int]  # (width, height) that the boxes are in; (0, 0): the file's own
    place: tuple[int, int]  # (offset, size) in bytes within a tar; offset -1: a file


class ParquetDataset:
    """A set in an index; for training what a `CocoDataset` is, without any Python object per picture.

    Args:
        path: what `write_index` wrote.
        images: the folder that its file names are relative to.

    Raises:
        ValueError: the file is no such index. FileNotFoundError: it or the folder does not exist.
    """

    def __init__(self, path: Path | str, images: Path | str):
        self.path, self.images = Path(path), Path(images)
        for what, found in ((self.path, self.path.is_file()), (self.images, self.images.is_dir())):
            if not found:
                raise FileNotFoundError(f"{what} does not exist")
        folder = arrays_of(self.path)
        with FileLock(f"{folder}.lock"):  # of several processes one unpacks
            if folder.is_dir() and folder.stat().st_mtime < self.path.stat().st_mtime:
                shutil.rmtree(folder)
            if not folder.is_dir():
                unpack(self.path)
        self._folder = folder
        self._map()
        self.categories: list[dict] = [
            entry | {"id": label}
            for label, entry in enumerate(json.loads((folder / "categories.json").read_text(encoding="utf-8")))
        ]
        self.category_ids = list(range(len(self.categories)))
        self.names: list[str] = [entry["name"] for entry in self.categories]
        self.problems: list[str] = []
        self.left_out = LeftOut(len(self))

    def _map(self) -> None:
        def mapped(name: str) -> np.ndarray:
            array = np.load(self._folder / f"{name}.npy", mmap_mode="r")
            return np.asarray(array)  # a plain view: slicing it is five times as fast as slicing a memmap

        self._flat = {key: (mapped(key), mapped(f"{key}.first")) for key in (*FLAT, "file", "caption")}
        self._fixed = {key: mapped(key) for key in OF_PICTURE}
        self.holdings = Holdings.load(self._folder)

    def __getstate__(self) -> dict:  # a process that is started anew maps the files itself
        return {k: v for k, v in self.__dict__.items() if k not in ("_flat", "_fixed", "holdings")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._map()

    def __len__(self) -> int:
        return len(self._fixed["width"])

    def _of(self, key: str, index: int) -> np.ndarray:
        values, first = self._flat[key]
        return values[first[index] : first[index + 1]]

    def caption(self, index: int) -> str:
        """ "" where there is none."""
        return self._of("caption", index).tobytes().decode()

    def annotated(self, index: int) -> Annotated:
        """What is known of picture `index`; the picture is not read."""
        looked_for = self._of("looked_for", index)
        return Annotated(
            self._of("file", index).tobytes().decode(), self._of("boxes", index).reshape(-1, 4),
            self._of("labels", index), self._of("crowd", index),
            None if len(looked_for) == 1 and looked_for[0] == ALL else looked_for, self._of("ambiguous", index),
            (int(self._fixed["width"][index]), int(self._fixed["height"][index])),
            (int(self._fixed["offset"][index]), int(self._fixed["size"][index])),
        )  # fmt: skip

    def picture(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3], from a folder or from within a tar."""
        known = self.annotated(index)
        return read_picture(self.images / inside(known.file, self.path), *known.place)

    def read(self, index: int) -> Sample | None:
        """As `CocoDataset.read`."""
        return self.left_out.read(index, self.__getitem__, index)

    def __getitem__(self, index: int) -> Sample:
        """Picture `index` and its objects: boxes cut at the border, without crowds and boxes of no width or height."""
        known, image = self.annotated(index), self.picture(index)
        height, width = image.shape[:2]
        own = [actual / (said or actual) for actual, said in zip((width, height), known.size)]
        boxes = known.boxes.copy()
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes * np.array(own * 2, np.float32), 0, np.array([width, height] * 2, np.float32))
        good = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & ~known.crowd
        boxes, labels = boxes[good], known.labels[good].astype(np.int64)
        vocabulary = None if known.vocabulary is None else known.vocabulary.astype(np.int64)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        ambiguous = known.ambiguous.astype(np.int64) if len(known.ambiguous) else None
        return Sample(image, boxes, labels, index, areas, vocabulary, ambiguous)

    def file_names(self) -> Sequence[str]:
        """Of all pictures, as a list."""
        values, first = self._flat["file"]
        whole = values.tobytes()
        return [whole[a:b].decode() for a, b in zip(first[:-1].tolist(), first[1:].tolist())]
