"""An engine over many pictures: in shards of image ids, each written whole or not at all, by one process or several,
with the same result.

    OUT/shards/settings.json   what the shards were made with; a rerun with anything else is refused
    OUT/shards/00000.json      [{"id", "height", "width", "labels"}] of the first `shard` pictures by id, and so on
    OUT/annotations.json, OUT/images/   the set, merged at the end

A rerun makes the shards that are missing. Every process computes with one thread, a picture at a time, so labels do not
depend on their number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from trex2_mini.annotations import bring
from trex2_mini.checkpoint import file_hash, load_model
from trex2_mini.data_engine.engines import TextEngine, VisualEngine, check_thresholds
from trex2_mini.datasets.pictures import Pictures
from trex2_mini.detector import Detector
from trex2_mini.evaluation.provenance import describe_code
from trex2_mini.images import LeftOut, load_image
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
    progress: bool = True,
) -> dict:
    """Label pictures, and write those that got labels as a set in COCO format.

    Args:
        images: COCO's "images": id and file_name, relative to `folder`.
        out: the set's folder.
        checkpoint: a shipped name or a folder.
        head: the source's "info" and "licenses", carried along.
        shard: pictures a shard.
        workers: processes; 1: this one.

    Returns:
        {"images": looked at, "kept": with labels, "boxes", "names": categories with boxes, "resumed": images whose
        shard was there,
        "unreadable": file names}

    Raises:
        ValueError: no images, a threshold out of range, `out` was begun with other settings, or another process works
        there.
    """
    check_thresholds(engine)
    images = sorted(images, key=lambda image: image["id"])
    for what, number in {"the number of images": len(images), "shard": shard, "workers": workers}.items():
        if number < 1:
            raise ValueError(f"{what} must be at least 1, got {number}")
    folder, out = Path(folder), Path(out)
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
        resumed = sum(len(part) for number, part in enumerate(parts) if number not in todo)
        with tqdm(
            total=len(images), initial=resumed, desc=f"{engine.kind} engine", unit="picture", disable=not progress
        ) as bar:
            for number in _done(todo, workers, (engine, parts, folder, shards, str(checkpoint))):
                bar.update(len(parts[number]))
        records = [
            record for n in range(len(parts)) for record in json.loads(_file(shards, n).read_text(encoding="utf-8"))
        ]
        counts = _merge(engine, images, records, folder, out, settings, head or {})
    return counts | {"resumed": resumed}


def _file(shards: Path, number: int) -> Path:
    return shards / f"{number:05d}.json"


def _settings(engine: TextEngine | VisualEngine, images: Sequence[dict], checkpoint: str | Path, shard: int) -> dict:
    """All that decides the labels. The pictures' captions or boxes, and their files' names, by their hash."""
    fields = {f.name: getattr(engine, f.name) for f in dataclasses.fields(engine)}
    given = {key: fields.pop(key) for key in ("phrases", "boxes", "names") if key in fields}
    data = json.dumps([[[image["id"], image["file_name"]] for image in images], given], sort_keys=True)
    weights = file_hash(load_model(checkpoint)[2])
    return {
        "engine": engine.kind,
        **fields,
        "input_sha256": hashlib.sha256(data.encode()).hexdigest(),
        "checkpoint": Path(checkpoint).name,
        "checkpoint_hash": weights,
        "shard": shard,
    }


class _Worker:
    """Makes shards, with a detector of its own."""

    def __init__(
        self, engine: TextEngine | VisualEngine, parts: list[list[dict]], folder: Path, shards: Path, checkpoint: str
    ):
        self.engine, self.parts, self.shards = engine, parts, shards
        self.pictures = Pictures(folder, [image["file_name"] for part in parts for image in part])
        self.left_out = LeftOut(sum(map(len, parts)))  # each process leaves out so many: all together stay few
        self.detector = Detector.load(checkpoint)
        if engine.names:  # encoded once, in one order: the last bits of an embedding depend on what it is encoded with
            with torch.inference_mode():
                self.detector.model.encode_text(engine.names)

    def make(self, number: int) -> int:
        write_text(_file(self.shards, number), json.dumps([self._record(image) for image in self.parts[number]]))
        return number

    def _record(self, entry: dict) -> dict:
        image = self.left_out.read(entry["id"], lambda name: load_image(self.pictures.find(name)), entry["file_name"])
        if image is None:  # collections from the web have broken pictures
            return {"id": entry["id"], "unreadable": self.left_out[entry["id"]], "labels": []}
        labels = self.engine.label(self.detector, entry["id"], image)
        return {"id": entry["id"], "height": image.shape[0], "width": image.shape[1], "labels": labels}


_worker: _Worker | None = None


def _start(arguments: tuple) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = _Worker(*arguments)


def _make(number: int) -> int:
    return _worker.make(number)


def _done(todo: list[int], workers: int, arguments: tuple) -> Iterator[int]:
    """Makes the shards `todo`; yields the number of each as it is done."""
    if not todo:
        return
    if workers == 1:
        with _one_thread():
            yield from map(_Worker(*arguments).make, todo)
        return
    # fresh processes: forking one that runs torch's threads may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), context, _start, (arguments,)) as pool:
        futures = [pool.submit(_make, number) for number in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


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
    records: list[dict],
    folder: Path,
    out: Path,
    settings: dict,
    head: dict,
) -> dict:
    """Writes annotations.json and brings the pictures; returns the counts.

    Categories are the names with boxes and the dictionary's others, by name. "negative" says whether training may draw
    a name as a negative, "count" in how many pictures' captions it is (text engine).
    """
    pictures = Pictures(folder, [image["file_name"] for image in images])
    entry_of = {image["id"]: image for image in images}
    kept = [record for record in records if record["labels"]]
    dictionary, with_boxes = engine.dictionary, {label["name"] for record in kept for label in record["labels"]}
    names = sorted(with_boxes | set(dictionary))
    category = {name: number for number, name in enumerate(names, 1)}
    annotations = []
    for record in kept:
        for label in record["labels"]:
            own = {"id": len(annotations) + 1, "image_id": record["id"], "category_id": category[label["name"]]}
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
        "images": [],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "negative": name in dictionary}
            | ({"count": dictionary[name]} if dictionary.get(name) else {})
            for name, number in category.items()
        ],
    }
    for record in kept:
        path = pictures.find(entry_of[record["id"]]["file_name"])
        own = {"file_name": path.relative_to(folder).as_posix(), "height": record["height"], "width": record["width"]}
        coco["images"].append(entry_of[record["id"]] | own)
        bring(path, out / "images" / own["file_name"])
    write_text(out / "annotations.json", json.dumps(coco, ensure_ascii=False))
    return {
        "images": len(images),
        "kept": len(kept),
        "boxes": len(annotations),
        "names": len(with_boxes),
        "unreadable": [entry_of[r["id"]]["file_name"] for r in records if "unreadable" in r],
    }
