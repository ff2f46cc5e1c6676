"""All sets by name: the embedded emoji family, the coins, the official COCO and LVIS files, and folders in any format
of formats.py.
"""

from __future__ import annotations

import re
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
from trex2_mini.paths import data_root


def open_dataset(name: str) -> CocoDataset:
    """Open a set by its name.

    Args:
        name: "emoji-val" or another set of the embedded family, or "coins" (made on first use); "coco-val2017",
            "coco-train2017",
            "lvis-val", "lvis-minival", "lvis-train" (official files under <data root>); or a folder or JSON file in one
            of the formats of formats.py's table.

    Raises:
        FileNotFoundError: there is no such set; the message says where it was looked for.
    """
    if name in EMOJI_SETS:
        folder = make_emoji_set(name, data_root())
        return CocoDataset(folder / "annotations.json", folder / "images")
    if name == "coins":
        return coins(data_root() / "coins")
    official = re.fullmatch(rf"coco-({'|'.join(COCO_SPLITS)})(-.+)?", name)
    if official:
        return official_coco(name, official[1], official[2] or "")
    part = re.fullmatch(rf"({'|'.join(LVIS_SETS)})(-\d.*)?", name)
    if part:
        return official_lvis(name, part[1], part[2] is not None)
    folder = Path(name).expanduser()
    found = open_folder(folder)
    if found is None:
        known = ", ".join([*EMOJI_SETS, "coins", *(f"coco-{split}" for split in COCO_SPLITS), *LVIS_SETS])
        inside = ""
        if folder.is_dir():
            parts = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and looks_like_a_set(p)]
            inside = f" (its folders {', '.join(parts)} are sets)" if parts else " (the folder holds none of these)"
        raise FileNotFoundError(
            f"no set {name!r}{inside}: expected one of {known}, or a folder with annotations.json and images/, "
            "a Roboflow export (_annotations.coco.json), Pascal VOC (XML files), YOLO (images/, labels/, data.yaml), or the JSON "
            "file of Label Studio, FiftyOne, CVAT or labelme"
        )
    return found
