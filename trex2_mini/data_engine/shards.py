"""An engine over many pictures: in shards of image ids, each written whole or not at all, by this process or by a pool
of actors on Ray, with the same result.

    OUT/shards/settings.json   what the shards were made with; a rerun with anything else is refused
    OUT/shards/00000.json      [{"id", "height", "width", "labels"}] of the first `shard` pictures by id, and so on
    OUT/annotations.json, OUT/images/   the set, merged at the end; or OUT/index.parquet, OUT/images/

A rerun makes the shards that are missing. Every actor computes with one thread, a picture at a time, so labels do not
depend on how many there are. An actor that dies is started anew by Ray and makes its shard again. The actors are on
this machine, or on the cluster that RAY_ADDRESS names, whose machines must all see OUT and the pictures by one path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from trex2_mini.annotations import bring
from trex2_mini.checkpoint import file_hash, load_model
from trex2_mini.data_engine.engines import TextEngine, VisualEngine, check_thresholds
from trex2_mini.datasets.large.index import write_index
from trex2_mini.datasets.large.rows import Row, read_picture
from trex2_mini.datasets.pictures import Pictures
from trex2_mini.detector import Detector
from trex2_mini.evaluation.provenance import describe_code
from trex2_mini.images import LeftOut
from trex2_mini.paths import locked, write_text


def run_engine(
    engine: TextEngine | VisualEngine,
    images: Sequence[dict],
    folder: str | Path,
    out: str | Path,
    checkpoint: str | Path = "nano-emoji",
    *,
    head: dict | None = None,
    shard: int = 50,
    workers: int = 1,
    parquet: bool | None = None,
    progress: bool = True,
) -> dict:
    """Label pictures, and write those that got labels as a set.

    Args:
        images: COCO's "images": id and file_name, relative to `folder`; of a picture within a tar also "offset" and
            "size" in bytes.
        out: the set's folder.
        checkpoint: a shipped name or a folder.
        head: the source's "info" and "licenses", carried along.
        shard: pictures a shard.
        workers: 1: this process; more: actors on Ray, each with a GPU where there are any.
        parquet: write an index for millions of pictures (datasets/large) instead of COCO's format; None: where the
            pictures are in tars.

    Returns:
        {"images": looked at, "kept": with labels, "boxes", "names": categories with boxes, "resumed": images whose
        shard was there, "unreadable": file names}

    Raises:
        ValueError: no images, a threshold out of range, `out` was begun with other settings, another process works
        there, several workers without Ray, or COCO's format for pictures in tars.
    """
    check_thresholds(engine)
    images = sorted(images, key=lambda image: image["id"])
    for what, number in {"the number of images": len(images), "shard": shard, "workers": workers}.items():
        if number < 1:
            raise ValueError(f"{what} must be at least 1, got {number}")
    in_tars = any("offset" in image for image in images)
    if in_tars and parquet is False:
        raise ValueError("COCO's format has no place for pictures within tars; write Parquet")
    folder, out = Path(folder).resolve(), Path(out).resolve()
    settings = _settings(engine, images, checkpoint, shard)
    shards = out / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    busy = f"another process runs an engine into {out}; wait for it, or choose another folder"
    with locked(shards / "engine.lock", busy):
        begun = shards / "settings.json"
        if begun.exists() and json.loads(begun.read_text(encoding="utf-8")) != settings:
            raise ValueError(
                f"{out} was begun with other pictures, settings or weights; remove it, or choose another folder"
            )
        write_text(begun, json.dumps(settings, indent=2) + "\n")
        parts = [images[i : i + shard] for i in range(0, len(images), shard)]
        todo = [number for number in range(len(parts)) if not _file(shards, number).exists()]
        resumed = len(images) - sum(len(parts[number]) for number in todo)
        weights = Path(checkpoint).resolve() if Path(checkpoint).exists() else checkpoint
        given = (engine, parts, folder, shards, weights)
        with tqdm(
            total=len(images), initial=resumed, desc=f"{engine.kind} engine", unit="picture", disable=not progress
        ) as bar:
            for number in (_alone if workers == 1 else _on_ray)(todo, workers, given):
                bar.update(len(parts[number]))
        records = (
            record for n in range(len(parts)) for record in json.loads(_file(shards, n).read_text(encoding="utf-8"))
        )
        counts = _merge(engine, images, records, folder, out, settings, head or {}, in_tars or bool(parquet))
    return counts | {"resumed": resumed}


def _file(shards: Path, number: int) -> Path:
    return shards / f"{number:05d}.json"


def _settings(engine: TextEngine | VisualEngine, images: Sequence[dict], checkpoint: str | Path, shard: int) -> dict:
    """All that decides the labels. The pictures' captions or boxes, and their files' names, by their hash."""
    fields = {f.name: getattr(engine, f.name) for f in dataclasses.fields(engine)}
    given = {key: fields.pop(key) for key in ("phrases", "boxes", "names") if key in fields}
    known = [[image["id"], image["file_name"], image.get("offset")] for image in images]
    data = json.dumps([known, given], sort_keys=True)
    weights = file_hash(load_model(checkpoint)[2])
    return {
        "engine": engine.kind,
        **fields,
        "input_sha256": hashlib.sha256(data.encode()).hexdigest(),
        "checkpoint": Path(checkpoint).name,
        "checkpoint_hash": weights,
        "shard": shard,
    }


class _Labeller:
    """Makes shards, with a detector of its own."""

    def __init__(self, engine, parts: list[list[dict]], folder: Path, shards: Path, checkpoint: str | Path):
        torch.set_num_threads(1)
        self.engine, self.parts, self.shards = engine, parts, shards
        self.pictures = Pictures(folder, [image["file_name"] for part in parts for image in part])
        self.left_out = LeftOut(sum(map(len, parts)))  # each process leaves out so many: all together stay few
        self.detector = Detector.load(checkpoint)
        if engine.names:  # encoded once, in one order: the last bits of an embedding depend on what it is encoded with
            with torch.inference_mode():
                self.detector.model.encode_text(engine.names)

    def __call__(self, row: dict) -> dict:
        records = [self._record(image) for image in self.parts[row["number"]]]
        write_text(_file(self.shards, row["number"]), json.dumps(records))
        return row

    def _record(self, entry: dict) -> dict:
        place = entry.get("offset", -1), entry.get("size", 0)
        image = self.left_out.read(
            entry["id"], lambda name: read_picture(self.pictures.find(name), *place), entry["file_name"]
        )
        if image is None:  # collections from the web have broken pictures
            return {"id": entry["id"], "unreadable": self.left_out[entry["id"]], "labels": []}
        labels = self.engine.label(self.detector, entry["id"], image)
        return {"id": entry["id"], "height": image.shape[0], "width": image.shape[1], "labels": labels}


def _alone(todo: list[int], _: int, given: tuple) -> Iterator[int]:
    """Makes the shards `todo` here; yields the number of each as it is done."""
    if todo:
        with _one_thread():
            yield from (row["number"] for row in map(_Labeller(*given), [{"number": number} for number in todo]))


def start_ray(workers: int) -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts Ray on this machine. Raises ValueError where it cannot."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(f'{workers} workers need Ray: pip install "trex2-mini[ray]"') from error
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tell nobody
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # of a busy machine; Ray gives up after 15 s
    here = {"num_cpus": workers + 1, "include_dashboard": False, "address": "local"}
    try:
        ray.init(log_to_driver=False, logging_level="error", **({} if os.environ.get("RAY_ADDRESS") else here))
    except Exception as error:  # Ray raises no narrower one
        raise ValueError(f"Ray did not start; on a busy machine try again: {error}") from error


def _on_ray(todo: list[int], workers: int, given: tuple) -> Iterator[int]:
    """The same by a pool of actors."""
    if not todo:
        return
    start_ray(workers)
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    numbers = ray.data.from_items([{"number": number} for number in todo], override_num_blocks=len(todo))
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    made = numbers.map(_Labeller, fn_constructor_args=given, concurrency=workers, num_cpus=1, num_gpus=gpus)
    try:
        for row in made.iter_rows():
            yield int(row["number"])
    except ray.exceptions.RayTaskError as error:  # what went wrong in an actor, as if it had here
        raise error.cause if isinstance(error.cause, ValueError) else error from None


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _merge(
    engine: TextEngine | VisualEngine,
    images: Sequence[dict],
    records: Iterator[dict],
    folder: Path,
    out: Path,
    settings: dict,
    head: dict,
    parquet: bool,
) -> dict:
    """Writes annotations.json or index.parquet and brings the pictures; returns the counts.

    Categories are the names with boxes and the dictionary's others, by name. "negative" says whether training may draw
    a name as a negative, "count" in how many pictures' captions it is (text engine).
    """
    pictures = Pictures(folder, [image["file_name"] for image in images])
    entry_of = {image["id"]: image for image in images}
    counts = {"images": len(images), "kept": 0, "boxes": 0, "names": 0, "unreadable": []}
    dictionary, with_boxes = engine.dictionary, set()

    def kept() -> Iterator[tuple[dict, list[dict]]]:
        for record in records:
            entry, labels = entry_of[record["id"]], record["labels"]
            if "unreadable" in record:
                counts["unreadable"].append(entry["file_name"])
            if not labels:
                continue
            path = pictures.find(entry["file_name"])
            name = path.relative_to(folder).as_posix()
            bring(path, out / "images" / name)
            counts["kept"] += 1
            counts["boxes"] += len(labels)
            with_boxes.update(label["name"] for label in labels)
            yield entry | {"file_name": name, "height": record["height"], "width": record["width"]}, labels

    if parquet:
        rows = (
            Row(
                image["file_name"], image["width"], image["height"], [label["bbox"] for label in labels],
                [label["name"] for label in labels], [False] * len(labels), offset=image.get("offset", -1),
                size=image.get("size", 0),
            )
            for image, labels in kept()
        )  # fmt: skip
        write_index(rows, out / "index.parquet", dictionary=list(dictionary))
        return counts | {"names": len(with_boxes)}
    found = list(kept())
    category = {name: number for number, name in enumerate(sorted(with_boxes | set(dictionary)), 1)}
    annotations = []
    for image, labels in found:
        for label in labels:
            own = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category[label["name"]]}
            extra = {key: value for key, value in label.items() if key != "name"}
            annotations.append(
                own | extra | {"area": round(label["bbox"][2] * label["bbox"][3], 2), "iscrowd": 0, "segmentation": []}
            )
    info = {
        "description": f"pseudo-labels of the {engine.kind} engine",
        "source": head.get("info"),
        "engine": settings,
        **describe_code(),
    }
    coco = {
        "info": info,
        "licenses": head.get("licenses", []),
        "images": [image for image, _ in found],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "negative": name in dictionary}
            | ({"count": dictionary[name]} if dictionary.get(name) else {})
            for name, number in category.items()
        ],
    }
    write_text(out / "annotations.json", json.dumps(coco, ensure_ascii=False))
    return counts | {"names": len(with_boxes)}
