"""The index of a large set, of made-up annotations: how long it opens, how fast random pictures' annotations are read
(without decoding pictures), and what a DataLoader's worker holds of its own. Linux only."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from trex2_mini.benchmark.measure import gibibytes, row
from trex2_mini.datasets.large.index import ParquetDataset, schema, unpack

PICTURES, A_PICTURE, NAMES = 2_000_000, 10, 2_000
OPENS, OWN, A_SECOND = 5.0, 0.3 / 1.073741824, 5_000.0  # seconds; 300 MB in GiB; pictures
READ = 5_000  # pictures an item of the DataLoader


def rows(quick: bool, repeats: int) -> Iterator[dict]:
    """repeats is not used: every figure is of one run."""
    count = PICTURES // 100 if quick else PICTURES
    what = f"{count:,} pictures, {count * A_PICTURE:,} boxes"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.parquet"
        _write(path, count)
        yield row(f"{what}: unpacking", "once, as it is written", _seconds(lambda: unpack(path)))
        yield row(f"{what}: opening", "every time", _seconds(lambda: ParquetDataset(path, folder)), "goal", OPENS)
        reader = _Reader(ParquetDataset(path, folder))
        seconds = _seconds(lambda: reader[0])
        yield row(f"{what}: annotations", "one process", READ / seconds, "goal", A_SECOND, "pictures/s", 1.0)
        loader, start = DataLoader(reader, batch_size=None, num_workers=2), time.perf_counter()
        memory = np.array(list(loader))
        seconds = time.perf_counter() - start
        yield row(
            f"{what}: annotations", "2 workers, with their start", READ * len(memory) / seconds, unit="pictures/s"
        )
        own, resident = memory.max(0)
        yield row(f"{what}: a worker's own memory", "written pages", own, "goal", OWN, "GiB", 1.0)
        yield {"note": f"a worker's resident memory, most of it shared: {resident:.2f} GiB"}
        yield {"note": f"the Parquet file: {path.stat().st_size / 1e6:,.0f} MB"}


class _Reader:
    """Item i reads the annotations of READ pictures drawn at random and says what its process then holds, in GiB."""

    def __init__(self, dataset: ParquetDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[float, float]:
        if index >= len(self):
            raise IndexError(index)
        for picture in np.random.default_rng(index).integers(len(self.dataset), size=READ):
            known = self.dataset.annotated(int(picture))
            assert len(known.boxes) == len(known.labels) == A_PICTURE
        return gibibytes("Private_Dirty", "smaps_rollup"), gibibytes("Rss", "smaps_rollup")


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _write(path: Path, count: int) -> None:
    """What `write_index` would write of `count` pictures of ten boxes each, made column by column."""
    import pyarrow
    import pyarrow.parquet

    rng, group = np.random.default_rng(0), 50_000
    with pyarrow.parquet.ParquetWriter(path, schema(), compression="zstd") as writer:
        for start in range(0, count, group):
            n = min(group, count - start)

            def lists(values: np.ndarray, a_picture: int, n: int = n) -> pyarrow.ListArray:
                return pyarrow.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * a_picture, values)

            labels = (NAMES * rng.random(n * A_PICTURE) ** 3).astype(np.int32)  # a long tail
            columns = {
                "file": [f"{number % 1000:03d}/{number:012d}.jpg" for number in range(start, start + n)],
                "caption": pyarrow.nulls(n, pyarrow.string()),
                "boxes": lists((640 * rng.random(n * A_PICTURE * 4)).astype(np.float32), 4 * A_PICTURE),
                "labels": lists(labels, A_PICTURE), "crowd": lists(np.zeros(n * A_PICTURE, bool), A_PICTURE),
                "looked_for": lists(np.full(n, -1, np.int32), 1), "ambiguous": lists(np.zeros(0, np.int32), 0),
                "width": np.full(n, 640, np.int32), "height": np.full(n, 480, np.int32),
                "offset": np.full(n, -1), "size": np.zeros(n, np.int64),
            }  # fmt: skip
            writer.write_table(pyarrow.table(columns, schema=schema()))
        categories = [{"name": f"name {number}", "negative": True} for number in range(NAMES)]
        writer.add_key_value_metadata({"categories": json.dumps(categories)})
