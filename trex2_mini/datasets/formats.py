"""Sets in the formats they come in: COCO and LVIS as published, folders in COCO format, Roboflow's export, Pascal VOC.
All become a `CocoDataset`.

LVIS's names are cleaned for prompting by one rule, `prompt_name`: underscores become spaces, "bat_(animal)" becomes
"bat (animal)".
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from PIL import Image

from trex2_mini.datasets.check import FIELDS, check_entries
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.paths import data_root, read_json

COCO_SPLITS = ("train2017", "val2017")
LVIS_SETS = {"lvis-train": "lvis_v1_train", "lvis-val": "lvis_v1_val", "lvis-minival": "lvis_v1_val"}
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def open_folder(folder: Path) -> CocoDataset | None:
    """The set in a folder, whatever its format; None where there is none."""
    if (folder / "annotations.json").is_file():
        return CocoDataset(folder / "annotations.json", folder / "images")
    if (folder / "_annotations.coco.json").is_file():
        return _roboflow(folder)
    if folder.is_dir() and _voc_files(folder):
        return _voc(folder)
    return None


def looks_like_a_set(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("annotations.json", "_annotations.coco.json")) or bool(
        _voc_files(folder)
    )


def official_coco(name: str, split: str, subset: str) -> CocoDataset:
    root = data_root() / "coco"
    annotations, images = root / "annotations" / f"instances_{split}{subset}.json", root / split
    if not annotations.is_file() or not images.is_dir():
        raise FileNotFoundError(
            f"{name} needs {annotations} and the pictures in {images}: unpack COCO's official archives there, or fetch"
            " a part: python -m trex2_mini data coco --images 500"
        )
    return CocoDataset(annotations, images)


def official_lvis(name: str, whole: str, subset: bool) -> CocoDataset:
    path = data_root() / "lvis" / f"{name if subset else LVIS_SETS[whole]}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{name} needs {path}: fetch it with python -m trex2_mini data {whole}")
    return lvis_dataset(read_json(path), path, data_root() / "coco", whole == "lvis-minival")


def lvis_dataset(content: dict, path: Path, images: Path, minival: bool = False) -> CocoDataset:
    """LVIS's annotations over COCO's folders train2017 and val2017 under `images`.

    A picture lies where its `coco_url` says. minival: only those in COCO's val2017. Categories keep LVIS's fields
    (frequency, synonyms, ...).
    """
    check_entries(content, path, FIELDS | {"images": ("id", "coco_url")})
    kept = []
    for image in content["images"]:
        split, _, file = "/".join(str(image["coco_url"]).rsplit("/", 2)[-2:]).partition("/")
        if split not in COCO_SPLITS or file in ("", ".", ".."):  # nothing is fetched to, or read from, anywhere else
            raise ValueError(
                f"{path}: expected a coco_url that ends in train2017/FILE or val2017/FILE, got"
                f" {image['coco_url']!r:.80}"
            )
        if not minival or split == "val2017":
            kept.append(image | {"file_name": f"{split}/{file}"})
    ids = {str(image["id"]) for image in kept}
    names = [prompt_name(c["name"]) if isinstance(c["name"], str) else c["name"] for c in content["categories"]]
    content = content | {
        "images": kept,
        "annotations": [a for a in content["annotations"] if not minival or str(a["image_id"]) in ids],
        "categories": [c | {"name": name, "lvis_name": c["name"]} for c, name in zip(content["categories"], names)],
    }
    return CocoDataset(path, images, content)


def prompt_name(name: str) -> str:
    """LVIS's category name as a phrase: "bat_(animal)" -> "bat (animal)"."""
    return re.sub(r"\s+", " ", name.replace("_", " ")).strip()


def _roboflow(folder: Path) -> CocoDataset:
    """Roboflow's COCO export: the pictures lie beside the file, and category 0 is often no category but the name of the
    project.
    """
    path = folder / "_annotations.coco.json"
    content = read_json(path)
    check_entries(content, path, FIELDS)
    used = {str(a["category_id"]) for a in content["annotations"]}
    parents = {str(c.get("supercategory")) for c in content["categories"]}
    kept = [c for c in content["categories"] if str(c["id"]) in used or str(c["name"]) not in parents]
    return CocoDataset(path, folder, content | {"categories": kept})


def _voc_files(folder: Path) -> list[Path]:
    own = folder / "Annotations"
    return sorted((own if own.is_dir() else folder).glob("*.xml"))


def _voc(folder: Path) -> CocoDataset:
    """Pascal VOC: one XML a picture, in Annotations/ with JPEGImages/, or side by side. Its pixels count from 1;
    "difficult" objects are crowds.
    """
    pictures = folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder
    images, annotations, names = [], [], []
    for number, path in enumerate(_voc_files(folder), 1):
        root = read_xml(path)
        file = (root.findtext("filename") or "").strip() or path.stem
        stem = Path(file.replace("\\", "/")).name[:255]  # longer than a file's name can be
        found = next(
            (p for p in (pictures / stem, *(pictures / f"{path.stem}{s}" for s in PICTURES)) if p.is_file()), None
        )
        if found is None:
            raise ValueError(f"{path}: no picture {stem!r} in {pictures}")
        with Image.open(found) as picture:
            width, height = picture.size
        images.append({"id": number, "file_name": found.name, "width": width, "height": height})
        for entry in root.iter("object"):
            name, box = (entry.findtext("name") or "").strip(), entry.find("bndbox")
            try:
                x1, y1, x2, y2 = (float(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax"))  # type: ignore[union-attr, arg-type]
            except (AttributeError, TypeError, ValueError):
                raise ValueError(f"{path}: an object {name!r} has no bndbox with xmin, ymin, xmax, ymax") from None
            if name not in names:
                names.append(name)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": name,
                    "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]}
                | {"iscrowd": int((entry.findtext("difficult") or "0").strip() == "1")}
            )  # fmt: skip
    ids = {name: number for number, name in enumerate(sorted(names), 1)}
    content = {
        "images": images,
        "annotations": [a | {"category_id": ids[a["category_id"]]} for a in annotations],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }
    return CocoDataset(folder / "annotations.xml", pictures, content)


def read_xml(path: Path) -> ElementTree.Element:
    """An XML file's root. Files with a document type are refused: nothing in them may be expanded."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"{path} declares a document type; a plain Pascal VOC file has none")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not XML: {error}") from None
