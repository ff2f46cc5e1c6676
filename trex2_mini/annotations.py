"""Whole folders of pictures: detect on each, and keep the detections in files that other programs read: COCO JSON,
YOLO, Pascal VOC.

Boxes stay in pixels of the original pictures; each format's own convention is kept: COCO x, y, width, height; YOLO
centre and size as shares of the picture; VOC whole pixels counted from 1, both ends inside the box. Every file is
written whole or not at all.
"""

import datetime
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, TextIO
from xml.etree import ElementTree

import numpy as np
from tqdm import tqdm

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.detector import Detections, Detector
from trex2_mini.images import LeftOut, looks_like_picture, picture_size, warn_of_heic
from trex2_mini.names import unique_names
from trex2_mini.paths import locked, write_text
from trex2_mini.prompt_bank import PromptBank

FORMATS = ("coco", "yolo", "voc")
Found = Mapping[str, tuple[int, int, Detections]]  # file name of a picture -> (height, width, what is on it)


def export(
    folder: str | Path,
    found: Found,
    format: str = "coco",
    pictures: str | Path | Mapping[str, Path] | None = None,
    names: Sequence[str] = (),
) -> Path:
    """Write what was found on some pictures as an annotated set.

    Args:
        folder: made if missing. coco: annotations.json; yolo: data.yaml and labels/*.txt; voc: Annotations/*.xml.
        found: {file name: (height, width, detections)}; COCO keeps the scores, the other two have no place for them.
        pictures: the folder with the pictures, or {file name: path}. Given, they are linked (where that cannot be done,
            copied) into the set, so that it is complete.
        names: these are listed first, found or not.

    Returns:
        The file, or for voc the folder, that readers want.

    Raises:
        ValueError: unknown format, a file name with a folder in it, two pictures whose names differ by their ending
        only.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    for name in found:
        plain = PureWindowsPath(name).name == name and name.strip(".") and name.isprintable()
        if not plain or len(name.encode()) > 200:
            raise ValueError(f"expected plain file names, got {name!r:.80}")
    stems = [Path(name).stem for name in found]
    if format != "coco" and len(set(stems)) < len(stems):
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        raise ValueError(f"{format} has one label file a name: rename the pictures that share {twice}")
    folder = Path(folder)
    names = list(dict.fromkeys([*names, *(name for _, _, d in found.values() for name in d.names)]))
    if pictures is not None:
        place = folder / {"coco": "images", "yolo": "images", "voc": "JPEGImages"}[format]
        place.mkdir(parents=True, exist_ok=True)
        for name in found:
            bring(pictures[name] if isinstance(pictures, Mapping) else Path(pictures) / name, place / name)
    return {"coco": _coco, "yolo": _yolo, "voc": _voc}[format](folder, found, names)


def as_coco(found: Found, names: Sequence[str]) -> dict:
    """The COCO dictionary of an annotated set; categories are numbered from 1 in the order of `names`."""
    categories = [{"id": i, "name": n, "supercategory": "none"} for i, n in enumerate(names, 1)]
    info = {"description": "written by trex2_mini", "date_created": datetime.date.today().isoformat()}
    coco: dict = {"info": info, "licenses": [], "images": [], "annotations": [], "categories": categories}
    for image_id, (file, (height, width, own)) in enumerate(found.items(), 1):
        coco["images"].append({"id": image_id, "file_name": file, "height": height, "width": width})
        for row, label in zip(own.to_coco(image_id), own.labels):
            number, category = len(coco["annotations"]) + 1, names.index(own.names[label]) + 1
            coco["annotations"].append({"id": number, **row, "category_id": category})
    return coco


def _coco(folder: Path, found: Found, names: list[str]) -> Path:
    path = folder / "annotations.json"
    write_text(path, json.dumps(as_coco(found, names), ensure_ascii=False))
    return path


def _yolo(folder: Path, found: Found, names: list[str]) -> Path:
    for file, (height, width, own) in found.items():
        lines = []
        for (x1, y1, x2, y2), label in zip(own.boxes.tolist(), own.labels.tolist()):
            values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{names.index(own.names[label])} " + " ".join(f"{v:.6f}" for v in values) + "\n")
        write_text(folder / "labels" / f"{Path(file).stem}.txt", "".join(lines))
    listed = "".join(f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(names))
    path = folder / "data.yaml"
    write_text(path, f"path: .\ntrain: images\nval: images\nnc: {len(names)}\nnames:\n{listed}")
    return path


def _voc(folder: Path, found: Found, names: list[str]) -> Path:
    for file, (height, width, own) in found.items():
        root = ElementTree.Element("annotation")
        _fill(root, folder="JPEGImages", filename=file, size={"width": width, "height": height, "depth": 3})
        for (x1, y1, x2, y2), label in zip(np.rint(own.boxes).astype(int).tolist(), own.labels.tolist()):
            box = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": max(x1 + 1, x2), "ymax": max(y1 + 1, y2)}
            _fill(root, object={"name": own.names[label], "difficult": 0, "truncated": 0, "bndbox": box})
        ElementTree.indent(root)
        write_text(folder / "Annotations" / f"{Path(file).stem}.xml", ElementTree.tostring(root, encoding="unicode"))
    return folder / "Annotations"


def _fill(element: ElementTree.Element, **content: Any) -> None:
    """Elements of these names, with a text or with further elements in them."""
    for key, value in content.items():
        own = ElementTree.SubElement(element, key)
        if isinstance(value, dict):
            _fill(own, **value)
        else:
            own.text = str(value)


def convert(dataset: CocoDataset, out: str | Path, format: str = "coco") -> tuple[Path, dict[str, int]]:
    """Write a set in another format, with its pictures; a picture in a sub-folder carries that in its name.

    COCO keeps all that the set's annotations say. YOLO and VOC have boxes and names alone, and no crowds.

    Returns (the file or folder that readers want, {"pictures", "boxes", "crowds_left_out", "unreadable"}).
    Raises ValueError as `export` does, and for too many unreadable pictures.
    """
    own, label = dataset.annotations_by_image(), {c: i for i, c in enumerate(dataset.category_ids)}
    found: dict[str, tuple[int, int, Detections]] = {}
    paths, images, crowds = {}, [], 0
    for image in dataset.coco["images"]:
        path = dataset.left_out.read(image["id"], dataset.pictures.find, image["file_name"])
        size = path and dataset.left_out.read(image["id"], picture_size, path)
        if not size:
            continue
        file = "_".join(path.relative_to(dataset.images).parts)
        kept = [a for a in own[image["id"]] if not a.get("iscrowd", 0)]
        crowds += len(own[image["id"]]) - len(kept)
        boxes = np.array([a["bbox"] for a in kept], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, [*size, *size])
        whole = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        labels = np.array([label[a["category_id"]] for a in kept], int)[whole]
        found[file] = (*size[::-1], Detections(boxes[whole], np.ones(len(labels)), labels, dataset.names))
        paths[file] = path
        images.append(image | {"file_name": file, "width": size[0], "height": size[1]})
    if format == "coco":
        content = {"info": {}, "licenses": []} | dataset.coco | {"images": images}
        kept_ids = {image["id"] for image in images}
        content["annotations"] = [
            {"id": i, "segmentation": [], "iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3]} | a
            for i, a in enumerate(dataset.coco["annotations"], 1)
            if a["image_id"] in kept_ids
        ]
        place = Path(out) / "annotations.json"
        for file, path in paths.items():
            bring(path, Path(out) / "images" / file)
        write_text(place, json.dumps(content, ensure_ascii=False))
        boxes_written, crowds = len(content["annotations"]), 0
    else:
        place = export(out, found, format, paths, dataset.names)
        boxes_written = sum(len(detections) for _, _, detections in found.values())
    counts = {"pictures": len(found), "boxes": boxes_written, "crowds_left_out": crowds}
    return place, counts | {"unreadable": len(dataset) - len(images)}


def bring(source: Path, target: Path) -> None:
    """Link a picture to its place in a set, its folder made if missing; a copy where the file system cannot link."""
    if target.exists():
        if target.samefile(source):
            return
        target.unlink()  # of an earlier set, in which the name meant another picture
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())


def pictures_in(folder: Path, recursive: bool = False) -> list[Path]:
    """The pictures of a folder, by name; recursive: of the folders inside it too, else those are left out and warned
    of, as is HEIC without its package. What is hidden (.name) does not count. Raises ValueError where there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder with pictures, and {folder} is none")
    entries = sorted(folder.rglob("*") if recursive else folder.iterdir())
    entries = [path for path in entries if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    found = [path for path in entries if looks_like_picture(path) and path.is_file()]
    warn_of_heic(folder, entries)
    inside = [p.name for p in entries if not recursive and p.is_dir() and any(map(looks_like_picture, p.iterdir()))]
    if found and inside:
        warnings.warn(f"{folder}: the pictures in its folders {', '.join(inside[:9])} are left out", stacklevel=2)
    if not found:
        raise ValueError(
            f"{folder} holds no picture; expected files such as .jpg or .png"
            + (f", which its folders {', '.join(inside[:9])} hold; --recursive takes those" if inside else "")
        )
    return found


def detect_pictures(
    read: Callable[[Any], Any],
    detect: Callable[[Any], Detections],
    pictures: Iterable[tuple[str, Any]],
    total: int,
    partial: Path | None = None,
    asked: dict | None = None,
    progress: bool = True,
    most_unreadable: int | None = None,
) -> tuple[dict[str, tuple[int, int, Detections]], dict[str, int]]:
    """Detect on each of several pictures; those that cannot be read are left out and warned of by name.

    Args:
        read: gives a picture as `detect` takes it: an EncodedImage (`Detector.encode`), or pixels (`load_image`).
        pictures: (name, what `read` takes), names being different; total: how many there are.
        partial: what is done is kept here, a line a picture, and an interrupted call goes on there. Remove it when what
            was found is written.
        asked: all that decides what is found; a half-done file that was begun with something else is refused.
        most_unreadable: so many pictures may be left out; None: see `LeftOut`.

    Returns:
        {name: (height, width, detections)}, and
        {"pictures": seen, "detections": found, "resumed": seen in an earlier run, "unreadable": left out}.

    Raises:
        ValueError: too many unreadable pictures, another run at the same file, a half-done file of something else.
    """
    if partial is None:
        return _detect_each(read, detect, pictures, {}, LeftOut(total, most_unreadable), None, progress)
    out = partial.with_suffix("")
    with locked(out.with_name(out.name + ".lock"), f"another process writes {out}; wait for it, or name another file"):
        seen = _resume(partial, json.loads(json.dumps(asked)))
        left_out = LeftOut(total, most_unreadable)
        left_out |= {name: record["unreadable"] for name, record in seen.items() if "unreadable" in record}
        with partial.open("a", encoding="utf-8", newline="\n") as file:
            return _detect_each(read, detect, pictures, seen, left_out, file, progress)


def _resume(partial: Path, asked: dict) -> dict[str, dict]:
    """The records of a half-done file; it is begun where there is none. Raises ValueError."""
    lines = partial.read_text(encoding="utf-8", errors="replace").split("\n") if partial.exists() else []
    try:
        done = [json.loads(line) for line in lines[:-1]]  # what follows the last line end was cut off by a kill
        for record in done[1:]:
            _as_found(record)
        seen = {record["file"]: record for record in done[1:]}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{partial} is damaged ({type(error).__name__}: {error}); remove it, and the folder is done anew"
        ) from None
    if len(done) > 1 and done[0] != asked:
        raise ValueError(
            f"{partial} was begun with other prompts, pictures or weights; remove it, or choose another file for the"
            " result"
        )
    write_text(partial, "".join(json.dumps(record) + "\n" for record in [asked, *done[1:]]))
    return seen


def _detect_each(
    read: Callable[[Any], Any],
    detect: Callable[[Any], Detections],
    pictures: Iterable[tuple[str, Any]],
    seen: dict[str, dict],
    left_out: LeftOut,
    file: TextIO | None,
    progress: bool,
) -> tuple[dict[str, tuple[int, int, Detections]], dict[str, int]]:
    found: dict[str, tuple[int, int, Detections]] = {}
    resumed = len(seen)
    for name, source in tqdm(pictures, "detecting", left_out.total, unit="picture", disable=None if progress else True):
        if name in seen:
            if "unreadable" not in seen[name]:
                found[name] = _as_found(seen[name])
            continue
        if (image := left_out.read(name, read, source)) is None:
            record = {"file": name, "unreadable": left_out[name]}
        else:
            own = detect(image)
            size = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
            found[name] = (*size, own)
            record = {"file": name, "size": size, "names": own.names}
            record |= {key: getattr(own, key).tolist() for key in ("boxes", "scores", "labels")}
        if file:
            file.write(json.dumps(record) + "\n")
            file.flush()
    number = sum(len(own) for _, _, own in found.values())
    total, unreadable = len(found) + len(left_out), len(left_out)
    return found, {"pictures": total, "detections": number, "resumed": resumed, "unreadable": unreadable}


def detect_folder(
    detector: Detector,
    folder: str | Path,
    out: str | Path,
    text: str | Sequence[str] | None = None,
    prompts: PromptBank | None = None,
    score_threshold: float = 0.3,
    weights: str = "",
    progress: bool = True,
    most_unreadable: int | None = None,
) -> dict[str, int]:
    """Detect on every picture of a folder with the same prompts, into a COCO JSON file; interrupted, it goes on where
    it was.

    Args:
        text, prompts, score_threshold: see `Detector.detect`.
        weights: what tells one model from another (default: `Detector.weights`).
        most_unreadable: see `detect_pictures`.

    Returns:
        The counts of `detect_pictures`.

    Raises:
        ValueError: no picture in the folder, no prompt, or as `detect_pictures`.
    """
    folder, out = Path(folder), Path(out)
    options = {"text": None if text is None else unique_names(text), "score_threshold": score_threshold}
    asked = {"folder": str(folder.resolve()), "prompts": bank_key(prompts), "weights": weights or detector.weights}
    pictures = [(path.name, path) for path in pictures_in(folder)]
    partial = out.with_name(out.name + ".part")
    found, counts = detect_pictures(
        detector.encode, lambda image: detector.detect(image, prompts=prompts, **options),
        pictures, len(pictures), partial, options | asked, progress, most_unreadable,
    )  # fmt: skip
    write_text(out, json.dumps(as_coco(found, names_of(found)), ensure_ascii=False))
    partial.unlink()
    return counts


def names_of(found: Found) -> list[str]:
    """All names that were asked for, in their order."""
    return list(dict.fromkeys(name for _, _, own in found.values() for name in own.names))


def bank_key(bank: PromptBank | None) -> list | None:
    """What tells banks apart in a half-done file."""
    return bank and [bank.names, bank.embeddings.double().sum().item()]


def _as_found(record: dict) -> tuple[int, int, Detections]:
    """A line of a half-done file as (height, width, detections)."""
    if "unreadable" in record:
        return 0, 0, Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int), [])
    height, width = map(int, record["size"])
    boxes = np.array(record["boxes"], dtype=np.float32).reshape(-1, 4)
    scores, labels = np.array(record["scores"], np.float32), np.array(record["labels"], int)
    names = [str(name) for name in record["names"]]
    if not len(boxes) == len(scores) == len(labels) or not np.isin(labels, np.arange(len(names))).all():
        raise ValueError("boxes, scores and labels do not fit together")
    return height, width, Detections(boxes, scores, labels, names)
