"""Sets in the formats they come in; all become a `CocoDataset`.

| format | what lies in the folder |
|---|---|
| COCO | annotations.json, or one JSON file of any name, beside the pictures or images/; a JSON file by its own path |
| CVAT, COCO as published | annotations/instances_NAME.json with images/, images/NAME/ or NAME/; name one of several |
| Roboflow | _annotations.coco.json beside the pictures |
| FiftyOne | labels.json (COCO's format or its own) with data/ |
| LVIS | a COCO file whose pictures have a coco_url alone |
| Pascal VOC | XML files: Annotations/ with JPEGImages/; annotations/ with images/ (Kaggle); or beside the pictures |
| YOLO | images/ with labels/ and data.yaml; images/train or train/ of it; or .txt and classes.txt with the pictures |
| Label Studio | one JSON or JSON-MIN export, beside the pictures or images/ |
| labelme | a JSON file a picture |

All by name: `official_coco`, `official_lvis`. We read these with our own code (foreign.py): `supervision` knows COCO,
VOC and YOLO alone and decodes every picture; `datumaro` pulls in twelve packages and an older Pillow.

LVIS's names are cleaned for prompting by one rule, `prompt_name`: underscores become spaces, "bat_(animal)" becomes
"bat (animal)".
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trex2_mini.datasets.check import FIELDS, check_entries
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.foreign import fiftyone, label_studio, labelme, voc, voc_files, yolo, yolo_places
from trex2_mini.datasets.pictures import Pictures
from trex2_mini.paths import data_root, read_json

COCO_SPLITS = ("train2017", "val2017")
LVIS_SETS = {"lvis-train": "lvis_v1_train", "lvis-val": "lvis_v1_val", "lvis-minival": "lvis_v1_val"}
ANNOTATIONS = ("annotations.json", "_annotations.coco.json", "labels.json")
NO_ANNOTATIONS = {"prompts.json", "captions.json", "manifest.json", "config.json", "settings.json"}


def open_folder(folder: Path) -> CocoDataset | None:
    """The set in a folder, or in a JSON file, whatever its format; None where there is none.

    Raises ValueError for several sets in one folder.
    """
    if folder.is_file() and folder.suffix == ".json":
        return _file(folder)
    if not folder.is_dir():
        return None
    for name in ANNOTATIONS:
        if (folder / name).is_file():
            return _file(folder / name)
    if voc_files(folder):
        return voc(folder)
    if (places := yolo_places(folder)) is not None:
        return yolo(*places)
    files = _json_files(folder)
    if len(files) > 1 and _is_labelme(read_json(files[0])):
        return labelme(files, _pictures(files[0], [read_json(files[0])["imagePath"]]))
    if len(files) > 1:
        raise ValueError(f"{folder} holds several annotation files; name one of {', '.join(map(str, files[:9]))}")
    return _file(files[0]) if files else None


def looks_like_a_set(folder: Path) -> bool:
    known = any((folder / name).is_file() for name in ANNOTATIONS)
    return known or bool(voc_files(folder) or _json_files(folder)) or yolo_places(folder) is not None


def _json_files(folder: Path) -> list[Path]:
    """What may be annotations: the "instances" of a folder annotations/, or all JSON files of the folder."""
    found = sorted((folder / "annotations").glob("instances_*.json"))
    return found or [p for p in sorted(folder.glob("*.json")) if p.name not in NO_ANNOTATIONS]


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and "shapes" in content and isinstance(content.get("imagePath"), str)


def _file(path: Path) -> CocoDataset:
    """The set of one JSON file."""
    content = read_json(path)
    if path.name == "_annotations.coco.json":
        return _roboflow(path, content)
    if isinstance(content, list) and content and all(isinstance(task, dict) for task in content):
        texts = [v for task in content[:1] for v in {**task, **_dict(task.get("data"))}.values() if isinstance(v, str)]
        return label_studio(path, content, _pictures(path, texts))
    if _is_labelme(content):
        return labelme([path], _pictures(path, [content["imagePath"]]))
    if isinstance(content, dict) and {"classes", "labels"} <= content.keys() and "images" not in content:
        return fiftyone(path, content, _pictures(path, ()))
    images = content.get("images") if isinstance(content, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    names = [v for key in ("file_name", "coco_url") if isinstance(v := _dict(first).get(key), str)]
    content = _phrases(content) if isinstance(content, dict) and names and "file_name" not in first else content
    return CocoDataset(path, _pictures(path, names), content)


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _pictures(path: Path, names: Iterable[str]) -> Path:
    """The folder of an annotation file's pictures: the first of the usual ones that holds one of `names`."""
    home, part = path.parent, path.stem.removeprefix("instances_")
    home = home.parent if home.name.lower() == "annotations" else home
    places = [home / "images" / part, home / "images", home / "data", home / part, home, path.parent]
    places = [place for place in places if place.is_dir()]
    names = list(names)
    holding = (place for place in places if any(name in Pictures(place, ()) for name in names))
    return next(holding, None) or next((p for p in places if p.name in ("images", "data")), home)


def _phrases(content: dict) -> dict:
    """LVIS's names as phrases."""
    categories = content.get("categories")
    if not isinstance(categories, list) or not all(isinstance(_dict(c).get("name"), str) for c in categories):
        return content
    return content | {"categories": [c | {"name": prompt_name(c["name"]), "lvis_name": c["name"]} for c in categories]}


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
    own = [a for a in content["annotations"] if not minival or str(a["image_id"]) in ids]
    return CocoDataset(path, images, _phrases(content | {"images": kept, "annotations": own}))


def prompt_name(name: str) -> str:
    """LVIS's category name as a phrase: "bat_(animal)" -> "bat (animal)"."""
    return re.sub(r"\s+", " ", name.replace("_", " ")).strip()


def _roboflow(path: Path, content: Any) -> CocoDataset:
    """Roboflow's COCO export: the pictures lie beside the file, and category 0 is often no category but the name of the
    project."""
    check_entries(content, path, FIELDS)
    used = {str(a["category_id"]) for a in content["annotations"]}
    parents = {str(c.get("supercategory")) for c in content["categories"]}
    kept = [c for c in content["categories"] if str(c["id"]) in used or str(c["name"]) not in parents]
    return CocoDataset(path, path.parent, content | {"categories": kept})
