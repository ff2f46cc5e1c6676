"""What is made on disk around cut-outs: a library from any set with masks, and the set `cutouts-val`.

python -m trex2_mini data cutouts coco-train2017 OUT     # a library: OUT/CATEGORY/N.webp
"""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.scenes.cutouts import Backgrounds, CutoutGenerator
from trex2_mini.datasets.scenes.library import HELD_BACK, Library, novel_names

SEED, SCENES = 3_000_000, 240  # of cutouts-val
LARGEST = 160  # px, of a cut-out
INSTANCES = 3  # a trained name needs so many held-back pictures to be measured


def cut_out(image: np.ndarray, annotation: dict) -> Image.Image | None:
    """The object of a COCO annotation as RGBA, cut at its box; None where it has no polygons or is under 12 pixels wide
    or high.

    image: uint8 [H, W, 3]. Raises ValueError: the polygons are none.
    """
    polygons = annotation.get("segmentation")
    if not isinstance(polygons, list) or not polygons or annotation.get("iscrowd", 0):
        return None
    try:
        mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *image.shape[:2]))).astype(bool)
    except Exception as error:  # pycocotools raises bare exceptions
        raise ValueError(
            f"annotation {annotation.get('id')}: its segmentation is no list of polygons: {error}"
        ) from error
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if min(len(rows), len(columns)) < 12:
        return None
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Image.fromarray(np.dstack([image, np.where(mask, 255, 0).astype(np.uint8)])[window])


def make_library(dataset: CocoDataset, folder: str | Path, least: int = 24, progress: bool = True) -> dict[str, int]:
    """Cut every object that has a polygon mask out of a set's pictures, and write it to `folder`/CATEGORY/N.webp.

    Args:
        dataset: a set whose annotations have polygons; crowds are left out.
        folder: new, or empty.
        least: an object whose longer side has fewer pixels is left out; of more than LARGEST it is scaled down.

    Returns:
        {name: how many objects}.

    Raises:
        ValueError: the folder holds something, two names would have one folder, or no object has a mask.
    """
    folder = _new(folder)
    names = {c["id"]: name for c, name in zip(dataset.categories, dataset.names, strict=True)}
    places = {key: _folder_name(name) for key, name in names.items()}
    if len(set(places.values())) < len(set(names.values())):
        raise ValueError(
            f"{dataset.path}: two names differ only in characters that no folder's name may have; rename one of them"
        )
    found: dict[str, int] = {}
    annotations = dataset.annotations_by_image()
    readable = (sample for place in range(len(dataset)) if (sample := dataset.read(place)) is not None)
    for sample in tqdm(readable, "cutting out", len(dataset), unit="picture", disable=not progress):
        for entry in annotations[sample.image_id]:
            cut = cut_out(sample.image, entry)
            if cut is None or max(cut.size) < least:
                continue
            cut.thumbnail((LARGEST, LARGEST))
            name = names[entry["category_id"]]
            path = folder / places[entry["category_id"]] / f"{found.get(name, 0)}.webp"
            path.parent.mkdir(parents=True, exist_ok=True)
            cut.save(path, "WEBP", quality=90)
            found[name] = found.get(name, 0) + 1
    if not found:
        raise ValueError(
            f"{dataset.path} has no object of {least} pixels with a polygon mask (a 'segmentation' that is a list)"
        )
    return found


def _new(folder: str | Path) -> Path:
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already; name a new folder")
    return folder


def _folder_name(name: str) -> str:
    """A name as that of a folder, which no name can lead out of."""
    return re.sub(r"[^\w '&(),.+-]", "_", name).strip(" .") or "_"


def make_cutouts_val(
    library: str | Path, folder: str | Path, photographs: CocoDataset | None = None, scenes: int | None = None
) -> Path:
    """Write scenes of cut-outs that no training saw. The set is in COCO format; its categories say if they are `novel`.

    Args:
        library: the folder of cut-outs. Trained names show held-back pictures, novel names any. Broad names are not
        used.
        folder: new, or empty.
        scenes: how many (default `SCENES`).
        photographs: lie behind the objects; take pictures that nothing is trained on. None: drawn backgrounds.

    Raises:
        ValueError: the folder holds something; the library has too few held-back pictures, or no novel name.
    """
    held, novel_ones = Library.open(library).part(held_out=True), novel_names()
    generator = CutoutGenerator(held, None if photographs is None else Backgrounds.of([photographs]), SEED, broad=0.0)
    broad = set(held.broader.values())
    usable = [
        n not in broad and len(f) >= (1 if n in novel_ones else INSTANCES)
        for n, f in zip(held.names, held.files, strict=True)
    ]
    pools = [
        [i for i, name in enumerate(held.names) if usable[i] and (name in novel_ones) == novel]
        for novel in (False, True)
    ]
    if not all(pools):
        raise ValueError(
            f"{library}: expected names with {INSTANCES * HELD_BACK} pictures or more and some of the names held out "
            f"from training (data/cutouts_novel.json), found {len(pools[0])} and {len(pools[1])}"
        )
    folder = _new(folder)
    (folder / "images").mkdir(parents=True)
    ids = {label: place for place, label in enumerate(sorted(pools[0] + pools[1]), 1)}
    rng, decks = np.random.default_rng(SEED), [[], []]
    images, annotations = [], []
    for index in range(scenes or SCENES):
        labels: list[int] = []
        for _ in range(rng.integers(1, 5)):
            novel = int(rng.random() < 0.4)
            decks[novel] = decks[novel] or rng.permutation(pools[novel]).tolist()
            labels.append(decks[novel].pop())
        sample = generator.scene(index, (256, 320), list(dict.fromkeys(labels)))
        name = f"{index:04d}.jpg"
        Image.fromarray(sample.image).save(folder / "images" / name, quality=92)
        images.append({"id": index + 1, "file_name": name, "height": 256, "width": 320})
        for (x1, y1, x2, y2), label, area in zip(
            sample.boxes.tolist(), sample.labels.tolist(), sample.areas.tolist(), strict=True
        ):
            entry = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": ids[label], "iscrowd": 0}
            annotations.append(entry | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area})
    categories = [
        {"id": place, "name": held.names[label], "novel": held.names[label] in novel_ones}
        for label, place in ids.items()
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
