"""Sets on disk around the cut-outs: a library made from any set with masks, and `cutouts-val`, scenes of what training never saw.

python -m trex2_mini data cutouts coco-train2017 OUT     # a library: OUT/CATEGORY/N.webp
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.scenes.cutouts import HELD_BACK, NOVEL, Backgrounds, CutoutGenerator, Library

SEED, SCENES = 3_000_000, 240  # of cutouts-val
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


def make_library(
    dataset: CocoDataset, folder: str | Path, least: int = 24, most: int = 160, progress: bool = True
) -> dict[str, int]:
    """Cut every object with a polygon mask out of a set's pictures and write it as `folder`/CATEGORY/N.webp, with transparency.

    Args:
        dataset: a set whose annotations have polygons; crowds are left out.
        folder: new, or empty.
        least: an object whose longer side has fewer pixels is left out. most: a larger one is scaled down to this.

    Returns:
        {name: how many objects}.

    Raises:
        ValueError: the folder holds something, two names would have one folder, or no object has a mask.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already; name a new folder for the library")
    names = {c["id"]: name for c, name in zip(dataset.categories, dataset.names, strict=True)}
    places = {key: _folder_name(name) for key, name in names.items()}
    if len(set(places.values())) < len(set(names.values())):
        raise ValueError(
            f"{dataset.path}: two names differ only in characters that no folder's name may have; rename one of them"
        )
    found: dict[str, int] = {}
    annotations = dataset.annotations_by_image()
    for sample in tqdm(dataset, "cutting out", len(dataset), unit="picture", disable=not progress):
        for entry in annotations[sample.image_id]:
            cut = cut_out(sample.image, entry)
            if cut is None or max(cut.size) < least:
                continue
            cut.thumbnail((most, most))
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


def _folder_name(name: str) -> str:
    """A name as that of a folder, which no name can lead out of."""
    return re.sub(r"[^\w '&(),.+-]", "_", name).strip(" .") or "_"


def make_cutouts_val(
    library: str | Path, folder: str | Path, photographs: CocoDataset | None = None, scenes: int = SCENES
) -> Path:
    """Scenes of cut-outs that no training saw, as a set in COCO format whose categories say whether they are `novel`.

    Args:
        library: the folder of cut-outs. Trained names show held-back pictures, novel ones (`NOVEL`) any; narrow names only.
        folder: to write; what it holds is replaced.
        photographs: lie behind the objects; take pictures that nothing is trained on. None: drawn backgrounds.

    Raises:
        ValueError: the library has too few held-back pictures of any name, or no novel name.
    """
    held = Library.open(library).part(held_out=True)
    generator = CutoutGenerator(held, None if photographs is None else Backgrounds.of([photographs]), SEED, broad=0.0)
    broad = set(held.broader.values())
    usable = [
        n not in broad and len(f) >= (1 if n in NOVEL else INSTANCES)
        for n, f in zip(held.names, held.files, strict=True)
    ]
    pools = [
        [i for i, name in enumerate(held.names) if usable[i] and (name in NOVEL) == novel] for novel in (False, True)
    ]
    if not all(pools):
        raise ValueError(
            f"{library}: expected names with {INSTANCES * HELD_BACK} pictures or more, and some of the names held out from training "
            f"(data/cutouts_novel.json), found {len(pools[0])} and {len(pools[1])}"
        )
    folder = Path(folder).expanduser()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    ids = {label: place for place, label in enumerate(sorted(pools[0] + pools[1]), 1)}
    rng, decks = np.random.default_rng(SEED), [[], []]
    images, annotations = [], []
    for index in range(scenes):
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
        {"id": place, "name": held.names[label], "novel": held.names[label] in NOVEL} for label, place in ids.items()
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
