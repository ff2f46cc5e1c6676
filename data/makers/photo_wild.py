"""photo-wild: small sets of photographs that nothing here was trained on, the real cousin of emoji-wild (and of ODinW).

The sets lie in the repository, as data/photo-wild/SET/{examples,val}: visual prompts are taken from `examples`,
AP is measured on `val`. `build` made them from the larger sets in ../shared/wild, with a fixed seed; the same sources
give the same pictures again:

    python data/makers/photo_wild.py ../shared/wild

Pictures of one scene never lie in both splits. A scene is: pictures of one video clip, pictures that a camera
numbered within `NEIGHBOURS` of each other, and pictures that look alike (`alikeness`), chained.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from trex2_mini.datasets.registry import PHOTO_WILD_FOLDER as FOLDER
from trex2_mini.paths import read_json, write_text

SETS = {  # uploader/project on universe.roboflow.com; all are under CC BY 4.0
    "aquarium": "Aquarium Combined",
    "food-trays": "charladinna-bbx/deteksi_mbg",
    "kuih-cakes": "kuih-ketayap/kuih-dataset",
    "rice-pests": "rice-plant-pest-detection/rice-plant-pest-detection-5r6r7",
    "ships": "creator2004/ships-dataset-labeling-jkbpj",
    "thermal-cheetah": "brad-dwyer/thermal-cheetah",
}
SPLITS = ("examples", "val")
PHRASES = {  # what the text protocol asks instead of a set's own name
    "thermal-cheetah": {"human": "person"},
    "kuih-cakes": {
        "kuih lompang": "small steamed rice cake",
        "kuih kaswi": "brown palm sugar cake",
        "kuih ketayap": "green pancake roll",
        "nona manis": "green custard cake",
        "karipap": "curry puff",
    },
}
PARTLY_ANNOTATED = {"ships": {5, 6, 26, 45}}  # ids of pictures with many ships that have no box: left out
PICTURES = {"examples": 16, "val": 30}
A_SCENE = {"examples": 4, "val": 6}  # at most so many pictures of one scene
ALIKE = 0.85  # from this alikeness on, two pictures are one scene
NEIGHBOURS = 2
LONG_SIDE, QUALITY, SEED = 448, 72, 0
AT_LEAST = 3  # pictures of every category in each split, as far as there are enough


def thumbnail(path: Path) -> np.ndarray:
    """A picture as 256 grey values (16 x 16) of mean 0 and length 1; a plain picture gives zeros."""
    with Image.open(path) as picture:
        picture.draft("L", (64, 64))
        grey = np.asarray(picture.convert("L").resize((16, 16), Image.Resampling.BOX), dtype=np.float64)
    grey = grey - grey.mean()
    return (grey / max(float(np.linalg.norm(grey)), 1e-9)).ravel()


def alikeness(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation of thumbnails [N, 256] and [M, 256], also if one is mirrored: [N, M] in -1..1 (1: the same)."""
    mirrored = second.reshape(-1, 16, 16)[:, :, ::-1].reshape(-1, 256)
    return np.maximum(first @ second.T, first @ mirrored.T)


def scenes(files: list[str], thumbnails: np.ndarray) -> list[int]:
    """The number of each picture's scene, from the names of the source files and thumbnails [N, 256]."""
    stems = [re.split(r"_jpe?g|_png", Path(file).name, flags=re.IGNORECASE)[0] for file in files]
    clips = [re.match(r"(.+_mov)-[0-9]+$", stem, flags=re.IGNORECASE) for stem in stems]
    numbers = [re.match(r"IMG_([0-9]{4})(?!.*_mov)", stem, flags=re.IGNORECASE) for stem in stems]
    near = alikeness(thumbnails, thumbnails) >= ALIKE
    scene = list(range(len(files)))
    for i in range(len(files)):
        for j in range(i):
            same_clip = clips[i] and clips[j] and clips[i][1] == clips[j][1]
            neighbours = numbers[i] and numbers[j] and abs(int(numbers[i][1]) - int(numbers[j][1])) <= NEIGHBOURS
            if near[i, j] or same_clip or neighbours:
                old, new = scene[i], scene[j]
                scene = [new if own == old else own for own in scene]
    return scene


def choose(contents: list[set[int]], scene: list[int], rng: np.random.Generator) -> dict[str, list[int]]:
    """Indices of the pictures of each split; contents: the categories of each picture.

    First every category gets a picture in each split, rare ones first, then a second and a third. Then pictures are
    drawn, two for val and one for examples in turn, until the splits are full. A scene that gave a picture to a split
    is closed to the other.
    """
    chosen: dict[str, list[int]] = {split: [] for split in SPLITS}
    owner: dict[int, str] = {}
    order = [int(i) for i in rng.permutation(len(contents))]

    def take(split: str, wanted: int | None = None) -> bool:
        for i in order:
            taken = [scene[k] for k in chosen[split]].count(scene[i])
            free = owner.get(scene[i], split) == split and taken < A_SCENE[split] and i not in chosen[split]
            if free and (wanted is None or wanted in contents[i]):
                chosen[split].append(i)
                owner[scene[i]] = split
                return True
        return False

    count = {c: len({s for s, own in zip(scene, contents) if c in own}) for c in set().union(*contents)}
    for least in range(1, AT_LEAST + 1):
        for category in sorted(count, key=lambda c: (count[c], c)):
            for split in SPLITS:
                if sum(category in contents[i] for i in chosen[split]) < least:
                    take(split, category)
    room = True
    while room:
        turns = [split for split in ("val", "examples", "val") if len(chosen[split]) < PICTURES[split]]
        room = any([take(split) for split in turns if len(chosen[split]) < PICTURES[split]])
    return {split: sorted(indices) for split, indices in chosen.items()}


def build(source: Path, out: Path = FOLDER) -> None:
    """Make photo-wild anew in `out`.

    `source` is the folder of the larger sets, each with annotations.json and images/; manifest.json lies beside them.
    """
    about = {entry["name"]: entry for entry in read_json(source / "manifest.json")}
    manifest = {"seed": SEED, "long_side": LONG_SIDE, "quality": QUALITY, "sets": {}}
    for name in SETS:
        content = read_json(source / name / "annotations.json")
        entries = [i for i in content["images"] if i["id"] not in PARTLY_ANNOTATED.get(name, ())]
        thumbnails = np.stack([thumbnail(source / name / "images" / i["file_name"]) for i in entries])
        of_image = {i["id"]: [a for a in content["annotations"] if a["image_id"] == i["id"]] for i in entries}
        contents = [{a["category_id"] for a in of_image[i["id"]]} for i in entries]
        scene = scenes([i["source_file"] for i in entries], thumbnails)
        chosen = choose(contents, scene, np.random.default_rng(SEED))
        both = [set().union(*(contents[i] for i in chosen[split])) for split in SPLITS]
        categories = [c for c in content["categories"] if c["id"] in both[0] & both[1]]
        kept = {"project": SETS[name], "licence": "CC BY 4.0"} | {
            key: about[name][key] for key in ("repository", "commit")
        }
        dropped = [c["name"] for c in content["categories"] if c not in categories]
        manifest["sets"][name] = kept | {"categories_left_out": dropped, "scenes": len(set(scene))}
        for split in SPLITS:
            pictures = [entries[i] for i in chosen[split]]
            _write(out / name / split, source / name / "images", pictures, of_image, categories, kept, name)
    write_text(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def _write(
    folder: Path, source: Path, pictures: list[dict], of_image: dict, categories: list[dict], about: dict, name: str
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    known = {c["id"] for c in categories}
    images, annotations = [], []
    for entry in pictures:
        with Image.open(source / entry["file_name"]) as opened:
            picture = opened.convert("RGB")
        old = picture.size
        picture.thumbnail((LONG_SIDE, LONG_SIDE))
        picture.save(folder / "images" / entry["file_name"], quality=QUALITY, optimize=True)
        width, height = picture.size
        images.append(entry | {"width": width, "height": height})
        for a in of_image[entry["id"]]:
            x, y, w, h = a["bbox"]
            x1, x2 = (round(min(max(v * width / old[0], 0), width), 2) for v in (x, x + w))
            y1, y2 = (round(min(max(v * height / old[1], 0), height), 2) for v in (y, y + h))
            if a["category_id"] in known and x2 > x1 and y2 > y1:
                box = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
                own = {"id": len(annotations) + 1, "image_id": entry["id"], "category_id": a["category_id"]}
                annotations.append(own | {"bbox": box, "area": round(box[2] * box[3], 1), "iscrowd": 0})
    content = {"info": about, "images": images, "categories": categories, "annotations": annotations}
    write_text(folder / "annotations.json", json.dumps(content) + "\n")
    if name in PHRASES:
        phrases = {c["name"]: PHRASES[name][c["name"]] for c in categories if c["name"] in PHRASES[name]}
        write_text(folder / "prompts.json", json.dumps(phrases, indent=1) + "\n")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
