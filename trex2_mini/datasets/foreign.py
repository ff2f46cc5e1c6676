"""Sets that are not in COCO's format, read into it: Pascal VOC, YOLO, Label Studio, labelme, FiftyOne's own.

What cannot be read as a box is left out and named in the set's `problems`. A picture that is missing or broken stays
in the set: who reads it leaves it out (`CocoDataset.read`), and `data check` names it.
"""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.pictures import Pictures, name_parts
from trex2_mini.images import UnreadablePicture, looks_like_picture, picture_endings, picture_size
from trex2_mini.paths import read_json, read_names, read_text

CLASS_FILES = ("classes.txt", "obj.names")  # of YOLO's label files: one name a line
TRUE = ("1", "true", "yes")


class Collected:
    """Pictures and their named boxes as a reader meets them. names: in their order; without them, sorted as met."""

    def __init__(self, folder: Path, names: Sequence[str] = ()):
        self.folder, self.finder, self.names = folder, Pictures(folder, ()), list(names)
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.problems: list[str] = []

    def picture(self, name: str, path: Path | None = None) -> tuple[int, int] | None:
        """Begin with a picture; its (width, height), or None where it cannot be read."""
        self.images.append({"id": len(self.images) + 1, "file_name": name})
        try:
            size = picture_size(path or self.finder.find(name))
        except UnreadablePicture:
            return None
        self.images[-1] |= dict(zip(("width", "height"), size))
        return size

    def box(self, name: str, corners: Iterable[float], **more: Any) -> None:
        """A box [x1, y1, x2, y2] in pixels on the picture that was begun last."""
        x1, y1, x2, y2 = corners
        own = {"id": len(self.annotations) + 1, "image_id": len(self.images), "category_id": name}
        self.annotations.append(own | {"bbox": [x1, y1, x2 - x1, y2 - y1]} | more)

    def dataset(self, path: Path) -> CocoDataset:
        """path: the set's name is its folder, beside it lies prompts.json."""
        names = self.names or sorted({annotation["category_id"] for annotation in self.annotations})
        number = {name: place for place, name in enumerate(names, 1)}
        content = {
            "images": self.images,
            "annotations": [a | {"category_id": number[a["category_id"]]} for a in self.annotations],
            "categories": [{"id": place, "name": name} for name, place in number.items()],
        }
        return CocoDataset(path, self.folder, content, self.problems)


def bounds(points: Any, where: str) -> tuple[float, float, float, float]:
    """The box of points [[x, y], ...]. Raises ValueError, naming `where`, for what is none."""
    try:
        array = np.asarray(points, dtype=float).reshape(-1, 2)
        (x1, y1), (x2, y2) = array.min(0).tolist(), array.max(0).tolist()
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: expected points [[x, y], ...], got {points!r:.80}") from None
    return x1, y1, x2, y2


# ---- Pascal VOC


def voc_files(folder: Path) -> list[Path]:
    inside = (folder / name for name in ("Annotations", "annotations"))
    return sorted(next((own for own in inside if own.is_dir()), folder).glob("*.xml"))


def voc(folder: Path) -> CocoDataset:
    """One XML a picture, in Annotations/ with JPEGImages/ (Kaggle: annotations/, images/), or side by side.

    Its pixels count from 1; "difficult" objects are crowds.
    """
    inside = (folder / name for name in ("JPEGImages", "images", "Images"))
    found = Collected(next((own for own in inside if own.is_dir()), folder))
    by_stem = {p.stem.casefold(): p.name for p in found.folder.iterdir() if looks_like_picture(p)}
    shares: list[bool] = []
    for path in voc_files(folder):
        root = read_xml(path)
        parts = name_parts(root.findtext("filename") or "")
        file = parts[-1][:255] if parts else path.stem  # longer than a file's name can be
        if file not in found.finder:
            file = by_stem.get(path.stem.casefold(), file)
        found.picture(file)
        for entry in root.iter("object"):
            name, box = (entry.findtext("name") or "").strip(), entry.find("bndbox")
            try:
                x1, y1, x2, y2 = (float(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax"))  # type: ignore[union-attr, arg-type]
            except (AttributeError, TypeError, ValueError):
                raise ValueError(f"{path}: an object {name!r} has no bndbox with xmin, ymin, xmax, ymax") from None
            if not name:
                raise ValueError(f"{path}: an object has no name; a text prompt needs one")
            shares.append(0 <= min(x1, y1) and max(x2, y2) <= 1)
            difficult = (entry.findtext("difficult") or "").strip().lower() in TRUE
            found.box(name, (x1 - 1, y1 - 1, x2, y2), iscrowd=int(difficult))
    if shares and all(shares):
        found.problems.append(
            f"all {len(shares)} boxes lie in 0..1 and look like shares of the picture; Pascal VOC's are pixels: "
            "multiply x by the picture's width, y by its height"
        )
    return found.dataset(folder / "annotations.xml")


def read_xml(path: Path) -> ElementTree.Element:
    """An XML file's root, in the encoding that it declares. Files with a document type are refused: nothing in them may
    be expanded."""
    declared = re.match(rb"\s*<\?xml[^>]{0,80}encoding=[\"']([\w.-]{1,40})", path.read_bytes()[:200])
    text = read_text(path, declared[1].decode() if declared else None)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"{path} declares a document type; a plain Pascal VOC file has none")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} is not XML: {error}") from None


# ---- YOLO


def yolo_places(folder: Path) -> tuple[Path, Path] | None:
    """(pictures, labels) of a YOLO folder: images/ and labels/, one of its images/train, or both side by side."""
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        return folder / "images", folder / "labels"
    parts = folder.resolve().parts
    if "images" in parts:
        place = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:place], "labels", *parts[place + 1 :])
        return (folder, labels) if labels.is_dir() else None
    return (folder, folder) if any((folder / name).is_file() for name in CLASS_FILES) else None


def yolo(pictures: Path, labels: Path) -> CocoDataset:
    """A text file of labels a picture: a line is a class and a box (x, y of its centre, width, height), or a polygon,
    in shares of the picture. The names are in data.yaml, or in classes.txt.
    """
    paths = sorted(p for p in pictures.iterdir() if looks_like_picture(p) and p.is_file())
    if not paths:
        parts = [str(own) for own in sorted(pictures.iterdir()) if own.is_dir()]
        raise ValueError(
            f"{pictures} holds no picture; open one of {', '.join(parts)}" if parts else f"{pictures} holds no picture"
        )
    names, keypoints = _yolo_names(pictures, labels)
    found = Collected(pictures, names)
    for path in paths:
        size, file = found.picture(path.name, path), labels / f"{path.stem}.txt"
        for number, line in enumerate(read_text(file).splitlines() if size and file.is_file() else (), 1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            label, values = _yolo_line(line, where)
            if not 0 <= label < len(names):
                raise ValueError(f"{where}: class {label}, but there are the {len(names)} names {names[:3]} ...")
            if len(values) <= 5 or keypoints:  # a fifth is a prediction's score
                x, y, w, h = values[:4]
                corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            else:
                corners = bounds(values, where)
            found.box(names[label], (share * side for share, side in zip(corners, (*size, *size))))
    stems = {path.stem for path in paths}
    alone = [p.name for p in sorted(labels.glob("*.txt")) if p.stem not in stems and p.name not in CLASS_FILES]
    if alone:
        found.problems.append(f"{len(alone)} label files without a picture are left out: {', '.join(alone[:5])}")
    return found.dataset(labels / "labels.txt")


def _yolo_line(line: str, where: str) -> tuple[int, list[float]]:
    try:
        label, *values = map(float, line.split())
    except ValueError:
        label, values = math.nan, []
    if not label.is_integer() or not (len(values) in (4, 5) or (len(values) >= 6 and len(values) % 2 == 0)):
        raise ValueError(f"{where}: expected a class and x y width height, or a polygon, got {line!r:.80}")
    if not all(-1 <= value <= 2 for value in values):
        raise ValueError(
            f"{where}: expected shares of the picture in 0..1, got {line!r:.80}; divide pixels by its size"
        )
    return int(label), values


def _yolo_names(pictures: Path, labels: Path) -> tuple[list[str], bool]:
    """The names, and whether boxes have keypoints behind them."""
    places = dict.fromkeys([labels, pictures, *list(pictures.resolve().parents)[:3]])
    for place in places:
        for path in sorted([*place.glob("*.yaml"), *place.glob("*.yml")]):
            try:
                content = yaml.safe_load(read_text(path))
            except (yaml.YAMLError, ValueError, RecursionError) as error:
                raise ValueError(f"{path} is not YAML: {error}") from None
            names = content.get("names") if isinstance(content, dict) else None
            if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
                names = [names[number] for number in range(len(names))]
            if isinstance(names, list) and names:
                return [str(name) for name in names], "kpt_shape" in content
        for path in (place / name for name in CLASS_FILES):
            if path.is_file():
                return read_names(path), False
    raise ValueError(
        f"no names of the classes in {labels}: expected data.yaml with names, or classes.txt with one a line"
    )


# ---- Label Studio, labelme, FiftyOne


def label_studio(path: Path, tasks: list, folder: Path) -> CocoDataset:
    """Label Studio's JSON or JSON-MIN: rectangles (turned ones too) and polygons in percent of the picture."""
    found, others = Collected(folder), 0
    for place, task in enumerate(tasks):
        where = f"{path}, task {place}"
        name, results = _task(task, where)
        size = found.picture(name)
        for result in results:
            value = result.get("value", result) if isinstance(result, dict) else None
            kind = next(
                (k for k in ("rectanglelabels", "polygonlabels") if isinstance(value, dict) and value.get(k)), None
            )
            if kind is None or not isinstance(value[kind], list):
                others += 1
                continue
            try:
                sides = [float(result.get(f"original_{key}") or size[i]) for i, key in enumerate(("width", "height"))]  # type: ignore[index]
                points = value["points"] if kind == "polygonlabels" else _turned(value, sides)
                pixels = np.asarray(points, dtype=float).reshape(-1, 2) * sides / 100
            except (KeyError, TypeError, ValueError, OverflowError):
                raise ValueError(f"{where}: expected {kind} with numbers in percent, got {value!r:.80}") from None
            found.box(str(value[kind][0]), bounds(pixels, where))
    if others:
        found.problems.append(f"{others} results are neither rectangles nor polygons with a label; they are left out")
    return found.dataset(path)


def _task(task: Any, where: str) -> tuple[str, list]:
    """The picture's name and the results of a task; of several annotators the first."""
    data = task.get("data", task) if isinstance(task, dict) else None
    texts = [v for v in data.values() if isinstance(v, str)] if isinstance(data, dict) else []
    name = next((v for v in texts if Path("/".join(name_parts(v))).suffix.lower() in picture_endings()), None)
    if name is None:
        raise ValueError(f"{where}: expected data with the name of a picture, got {data!r:.80}")
    given = task.get("annotations", task.get("completions"))
    own = [a for a in given if isinstance(a, dict) and not a.get("was_cancelled")] if isinstance(given, list) else []
    results = (
        own[0].get("result") if own else next((v for v in task.values() if isinstance(v, list) and v != given), [])
    )
    return name, results if isinstance(results, list) else []


def _turned(value: dict, sides: list[float]) -> np.ndarray:
    """The corners, in percent, of a rectangle that is turned clockwise around its upper left one."""
    x, y, w, h = (float(value[key]) for key in ("x", "y", "width", "height"))
    angle, sides = math.radians(float(value.get("rotation") or 0)), np.array(sides)
    edges = np.array([[0, 0], [w, 0], [w, h], [0, h]]) * sides
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return [x, y] + edges @ turn / sides


def labelme(files: Sequence[Path], folder: Path) -> CocoDataset:
    """labelme: one JSON a picture; rectangles, polygons and circles are boxes."""
    found, others = Collected(folder), 0
    for path in files:
        content = read_json(path)
        shapes = content.get("shapes") if isinstance(content, dict) else None
        if not isinstance(shapes, list) or not isinstance(content.get("imagePath"), str):
            raise ValueError(f"{path} is no file of labelme's: expected shapes, a list, and imagePath")
        found.picture(content["imagePath"])
        for shape in shapes:
            kind = shape.get("shape_type", "polygon") if isinstance(shape, dict) else None
            if kind not in ("rectangle", "polygon", "circle", "rotation"):
                others += 1
                continue
            corners = bounds(shape.get("points"), str(path))
            if kind == "circle":  # its centre, and a point on its edge
                x, y, *edge = np.asarray(shape["points"], dtype=float).ravel().tolist()
                far = math.dist((x, y), edge[:2] or (x, y))
                corners = (x - far, y - far, x + far, y + far)
            found.box(str(shape.get("label") or ""), corners)
    if others:
        found.problems.append(f"{others} shapes are no boxes (points, lines, masks); they are left out")
    return found.dataset(files[0])


def fiftyone(path: Path, content: dict, folder: Path) -> CocoDataset:
    """FiftyOne's own labels.json: {"classes", "labels": {picture: [{"label", "bounding_box" in shares}]}}."""
    found, classes = Collected(folder), content["classes"]
    stems = {p.stem: p.name for p in folder.iterdir() if looks_like_picture(p)}
    for key, objects in content["labels"].items() if isinstance(content["labels"], dict) else ():
        size = found.picture(stems.get(key, key))
        for entry in objects if isinstance(objects, list) and size else ():
            try:
                label = entry["label"]
                name = classes[label] if isinstance(label, int) else label
                x, y, w, h = map(float, entry["bounding_box"])
            except (KeyError, TypeError, ValueError, IndexError):
                raise ValueError(
                    f"{path}, {key!r:.80}: expected a label and a bounding_box, got {entry!r:.80}"
                ) from None
            found.box(str(name), (x * size[0], y * size[1], (x + w) * size[0], (y + h) * size[1]))
    return found.dataset(path)
