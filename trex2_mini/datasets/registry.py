"""All sets by name: the embedded emoji family, the coins, photo-wild, the official COCO and LVIS files, and folders in
any format of formats.py."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.coins import coins
from trex2_mini.datasets.emoji.sets import EMOJI_SETS, make_emoji_set
from trex2_mini.datasets.formats import (
    COCO_SPLITS,
    LVIS_SETS,
    looks_like_a_set,
    official_coco,
    official_lvis,
    open_folder,
)
from trex2_mini.datasets.large.index import ParquetDataset
from trex2_mini.datasets.odinw import large_suites, open_large_suite
from trex2_mini.paths import REPOSITORY, data_root

INDEX = "index.parquet"  # trex2 data index
PHOTO_WILD_FOLDER = REPOSITORY / "data" / "photo-wild"  # made by data/makers/photo_wild.py
PHOTO_WILD = tuple(
    f"photo-wild-{name}/{split}"
    for name in ("aquarium", "food-trays", "kuih-cakes", "rice-pests", "ships", "thermal-cheetah")
    for split in ("examples", "val")
)


def open_training_set(name: str) -> CocoDataset | ParquetDataset:
    """What training draws from: anything `open_dataset` takes, or a folder with index.parquet and images/; folders by
    their path, or by their name under the data root."""
    for folder in (Path(name).expanduser(), data_root() / name):
        if (folder / INDEX).is_file():
            return ParquetDataset(folder / INDEX, folder / "images")
    here = data_root() / name
    try:
        return open_dataset(str(here) if (here / "annotations.json").is_file() and name not in EMOJI_SETS else name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; or {data_root() / name / INDEX}, which `trex2 data index` writes") from None


def open_dataset(name: str) -> CocoDataset:
    """Open a set by its name.

    Args:
        name: "emoji-val" or another set of the embedded family, or "coins" (made on first use); "cutouts-val" (made by
            `trex2 data cutouts-val`); "photo-wild-aquarium/val" or another of `PHOTO_WILD` (in the repository);
            "coco-val2017", "coco-train2017", "lvis-val", "lvis-minival", "lvis-train" (official files under <data
            root>); "odinw35/NAME/val" or "/train", "rf100/NAME/test" or "/train" (odinw.py); or a folder or JSON file
            in one of the formats of formats.py's table.

    Raises:
        FileNotFoundError: there is no such set; the message says where it was looked for.
    """
    if name in EMOJI_SETS:
        folder = make_emoji_set(name, data_root())
        return CocoDataset(folder / "annotations.json", folder / "images")
    if name == "coins":
        return coins(data_root() / "coins")
    if name in PHOTO_WILD:
        folder = PHOTO_WILD_FOLDER / name.removeprefix("photo-wild-")
        return CocoDataset(folder / "annotations.json", folder / "images")
    if name == "cutouts-val":
        folder = data_root() / name
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{name} is made from a library of cut-outs: trex2 data cutouts-val LIBRARY ({folder})"
            )
        return CocoDataset(folder / "annotations.json", folder / "images")
    if name.startswith(("odinw35/", "rf100/")):
        return open_large_suite(name)
    official = re.fullmatch(rf"coco-({'|'.join(COCO_SPLITS)})(-.+)?", name)
    if official:
        return official_coco(name, official[1], official[2] or "")
    part = re.fullmatch(rf"({'|'.join(LVIS_SETS)})(-\d.*)?", name)
    if part:
        return official_lvis(name, part[1], part[2] is not None)
    folder = Path(name).expanduser()
    found = open_folder(folder)
    if found is None:
        known = [*EMOJI_SETS, "coins", *PHOTO_WILD, *(f"coco-{split}" for split in COCO_SPLITS), *LVIS_SETS]
        alike = get_close_matches(name, known, n=3)
        near = f", such as {', '.join(alike or ['emoji-val', 'coins', 'coco-val2017'])} (data/README.md has all)"
        inside = ""
        if folder.is_dir():
            parts = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and looks_like_a_set(p)]
            inside = f" (its folders {', '.join(parts)} are sets)" if parts else " (the folder holds none of these)"
        raise FileNotFoundError(
            f"no set {name!r}{inside}: expected a folder with annotations.json and images/, a Roboflow export "
            "(_annotations.coco.json), Pascal VOC (XML files), YOLO (images/, labels/, data.yaml), the JSON file of "
            f"Label Studio, FiftyOne, CVAT or labelme, or a known name{near}"
        )
    return found


def suites() -> dict[str, dict[str, str]]:
    """The collections of small sets: {name: {set to measure on: set to take examples from}}."""
    examples = {"emoji-wild": (EMOJI_SETS, "train"), "photo-wild": (PHOTO_WILD, "examples")}
    return {
        suite: {n: n.removesuffix("val") + split for n in names if n.startswith(f"{suite}-") and n.endswith("/val")}
        for suite, (names, split) in examples.items()
    } | large_suites()


def reference_of(data: object) -> str:
    """The set that generic visual prompts for `data` are taken from, unless one is named.

    Of a suite's set it is the set's other split, of COCO's and LVIS's official sets their training split, else
    emoji-reference.
    """
    if not isinstance(data, str):
        return "emoji-reference"
    pairs = {name: other for suite in suites().values() for name, other in suite.items()}
    official = {"coco-": "coco-train2017", "lvis-": "lvis-train"}
    return pairs.get(data) or official.get(data[:5], "emoji-reference")
