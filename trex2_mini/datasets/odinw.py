"""ODinW's 35 sets and Roboflow 100 under the data root. Each set is measured with examples of its own training split.

<data root>/odinw35/   GLIP's archives, unpacked: folders as data/odinw35.csv lists them
<data root>/rf100/     a folder a set, in Roboflow's COCO export: NAME/train, NAME/valid, NAME/test
"""

import csv
from pathlib import Path

from trex2_mini.datasets.check import FIELDS, check_entries
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.formats import open_folder
from trex2_mini.paths import ODINW, data_root, read_json

RF100_SETS = 100


def odinw_sets() -> dict[str, dict[str, str]]:
    """{set: its folder, annotations and prompts}, all 35."""
    with ODINW.open(encoding="utf-8", newline="") as file:
        return {entry["set"]: entry for entry in csv.DictReader(file)}


def _annotations(entry: dict[str, str], split: str) -> Path:
    file = entry["annotations"]
    if split == "train":
        file = file.replace("valid/", "train/").replace("val_", "train_")
    return data_root() / "odinw35" / entry["folder"] / file


def open_large_suite(name: str) -> CocoDataset:
    """ "odinw35/Aquarium/val", "rf100/coins-1apki/test": a set of a suite. Raises FileNotFoundError, ValueError."""
    suite, _, rest = name.partition("/")
    own, _, split = rest.rpartition("/")
    if suite == "rf100":
        found = open_folder(data_root() / "rf100" / own / split) if "/" not in own and ".." not in own else None
        if found is None:
            raise FileNotFoundError(f"no set {name}: expected {data_root() / name}/_annotations.coco.json")
        return found
    sets = odinw_sets()
    if own not in sets or split not in ("train", "val"):
        raise FileNotFoundError(
            f"no set {name}: expected odinw35/NAME/val or /train with NAME one of {', '.join(sets)}"
        )
    path = _annotations(sets[own], split)
    content = read_json(path)
    check_entries(content, path, FIELDS)
    phrases = dict(pair.split("=", 1) for pair in sets[own]["prompts"].split(";") if pair)
    used = {entry["category_id"] for entry in content["annotations"]}
    kept = [c for c in content["categories"] if str(c["name"]).strip() or c["id"] in used]  # a group's blank name
    called = [c | {"name": phrases.get(c["name"], c["name"])} for c in kept]
    return CocoDataset(path, path.parent, content | {"categories": called})


def large_suites() -> dict[str, dict[str, str]]:
    """{suite: {set to measure on: set of examples}}, of the sets that are there."""
    odinw = {
        f"odinw35/{name}/val": f"odinw35/{name}/train"
        for name, entry in odinw_sets().items()
        if all(_annotations(entry, split).is_file() for split in ("val", "train"))
    }
    folders = sorted(path.parent.parent for path in (data_root() / "rf100").glob("*/test/_annotations.coco.json"))
    rf100 = {f"rf100/{path.name}/test": f"rf100/{path.name}/train" for path in folders if (path / "train").is_dir()}
    return {"odinw35": odinw, "rf100": rf100}
