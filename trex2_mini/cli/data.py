"""`trex2 data`: make the embedded sets, fetch parts of COCO and LVIS, check a set."""

from pathlib import Path

import click

from trex2_mini.cli.options import PATH, Group, Several

READERS = {  # of datasets/large
    "objects365": "detection:objects365",
    "open-images": "detection:open_images",
    "crowdhuman": "detection:crowdhuman",
    "gold-g": "grounding:gold_g",
    "hiertext": "regions:hiertext",
    "sa-1b": "regions:sa_1b",
    "shards": "shards:web_shards",
}


class _Sets(Group):
    """A name that is no command is a set to get: `data coco` is `data get coco`."""

    def resolve_command(self, ctx: click.Context, args: list[str]):
        return super().resolve_command(ctx, args if args[0] in self.commands else ["get", *args])


@click.group(cls=_Sets, no_args_is_help=False)
def data() -> None:
    """Make the embedded sets, fetch public ones, check a set. `trex2 data NAME` is short for `trex2 data get NAME`.

    Examples:
    trex2 data emoji
    trex2 data coco --images 500
    trex2 data check my/set --out statistics.png
    """


@data.command()
@click.argument("name")
@click.option("--images", type=click.IntRange(1), default=500, help="coco, lvis: how many pictures.")
@click.option("--full", is_flag=True, help="coco, lvis: all of them.")
@click.option("--split", type=click.Choice(["val2017", "train2017"]), default="val2017", help="coco.")
@click.option("--ids", type=PATH, metavar="FILE", help="coco: the ids of the pictures, one a line.")
@click.option("--seed", type=int, default=0, help="Of the choice of pictures.")
def get(name: str, images: int | None, full: bool, split: str, ids: Path | None, seed: int) -> None:
    """Make or fetch a set, under TREX2_DATA (default: data/ of the repository).

    NAME: emoji (what the demo needs), emoji-family (all embedded sets), one of them by name; fetched: coco, lvis
    (lvis-val), lvis-train, lvis-minival, photos.

    Examples:
    trex2 data emoji-family
    trex2 data lvis-minival --images 500
    """
    from trex2_mini.datasets import download
    from trex2_mini.datasets.emoji.family import make_family
    from trex2_mini.datasets.emoji.sets import EMOJI_SETS
    from trex2_mini.datasets.formats import LVIS_SETS
    from trex2_mini.datasets.registry import open_dataset

    images = None if full else images
    name = "lvis-val" if name == "lvis" else name
    if name == "coco":
        chosen = _whole_numbers(ids) if ids else None
        names = [download.coco(split, images, seed, chosen)]
    elif name in LVIS_SETS:
        names = [download.lvis(name, images, seed)]
    elif name == "photos":
        names = download.photos()
    else:
        names = {"emoji": ["emoji-val", "emoji-reference"], "emoji-family": list(EMOJI_SETS)}.get(name, [name])
    if name == "emoji-family":  # several sets at a time
        make_family()
    for own in names:
        dataset = open_dataset(own)
        boxes = len(dataset.coco["annotations"])
        print(f"{own}: {len(dataset)} images, {len(dataset.names)} categories, {boxes} boxes in {dataset.images}")


@data.command()
@click.argument("name", metavar="SET")
@click.argument("out", type=PATH)
@click.option("--least", type=click.IntRange(12), default=24, help="Pixels of the longer side of an object, at least.")
def cutouts(name: str, out: Path, least: int) -> None:
    """Cut the objects out of a set with masks, for scenes that are composed in training: `train --data cutouts:OUT`.

    SET: a folder in COCO format or a known set, with polygon masks. OUT: a new folder, with one folder a category.

    Examples:
    trex2 data cutouts coco-train2017 data/cutouts
    trex2 data cutouts my/set my/cutouts --least 48
    """
    from trex2_mini.datasets.cutout_sets import make_library
    from trex2_mini.datasets.registry import open_dataset

    found = make_library(open_dataset(name), out, least)
    print(f"{out}: {sum(found.values())} objects of {len(found)} categories")


@data.command("cutouts-val")
@click.argument("library", type=PATH)
@click.option(
    "--photographs", metavar="SET", help="Pieces of its pictures lie behind the objects (default: drawn ones)."
)
def cutouts_val(library: Path, photographs: str | None) -> None:
    """Make the set cutouts-val: scenes of those cut-outs of a library that no training uses, under TREX2_DATA.

    Examples:
    trex2 data cutouts-val data/cutouts
    trex2 data cutouts-val data/cutouts --photographs coco-val2017
    """
    from trex2_mini.datasets.cutout_sets import make_cutouts_val
    from trex2_mini.datasets.registry import open_dataset
    from trex2_mini.paths import data_root

    behind = open_dataset(photographs) if photographs else None
    made = open_dataset(str(make_cutouts_val(library, data_root() / "cutouts-val", behind)))
    novel = sum(category["novel"] for category in made.categories)
    print(f"cutouts-val: {len(made)} images, {len(made.names)} categories ({novel} novel) in {made.images}")


@data.command()
@click.argument("folder", metavar="NAME|FOLDER")
@click.option("--out", type=PATH, metavar="FILE", help="A picture of the statistics.")
@click.option("--decode", is_flag=True, help="Read every picture's pixels too: finds files that are cut short.")
@click.option("--against", cls=Several, metavar="NAME...", help="Evaluation sets whose pictures must not be in it.")
def check(folder: str, out: Path | None, decode: bool, against: tuple[str]) -> None:
    """What is in a set, and what is wrong with it.

    Examples:
    trex2 data check my/set --decode
    trex2 data check my/set --against coco-val2017 lvis-val
    trex2 data check emoji-val --out statistics.png
    """
    from trex2_mini.datasets.large.index import ParquetDataset
    from trex2_mini.datasets.leaks import warnings_of
    from trex2_mini.datasets.registry import open_dataset, open_training_set
    from trex2_mini.datasets.statistics import check_pictures, statistics

    dataset = open_training_set(folder)
    others = [(name, open_dataset(name)) for name in against]
    if isinstance(dataset, ParquetDataset):  # its boxes were checked when it was written
        print(f"{dataset.path}: {len(dataset):,} images, {len(dataset.names):,} categories")
        _print_problems(warnings_of([(folder, dataset)], others, look=True))
        return
    found = statistics(dataset)
    print(f"{dataset.path}: {found['images']} images ({found['empty_images']} without objects), {found['boxes']} boxes")
    print(f"{found['categories']} categories, by number of boxes:")
    rows = list(found["per_category"].items())
    for name, counts in rows if len(rows) <= 30 else [*rows[:15], *rows[-15:]]:
        print(f"  {name:32s} {counts['boxes']:7,d} boxes on {counts['images']:6,d} images")
    if out:
        from trex2_mini.plots import save_statistics

        save_statistics(found, out)
        print(f"picture: {out}")
    problems = dataset.problems + check_pictures(dataset, decode=decode)
    _print_problems(problems + warnings_of([(folder, dataset)], others, look=True))


def _print_problems(problems: list[str]) -> None:
    for problem in problems[:50]:
        print(f"problem: {problem}")
    print(f"{len(problems)} problems" + (", the first 50 are shown" if len(problems) > 50 else ""))


@data.command()
@click.argument("kind", type=click.Choice(tuple(READERS)))
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, required=True, metavar="FOLDER", help="index.parquet is written here; put or link the"
    " pictures to images/ in it.")  # fmt: skip
@click.option("--classes", type=PATH, metavar="FILE", help="open-images: class descriptions; shards: a name a line.")
@click.option("--labels", type=PATH, metavar="FILE", help="open-images: labels verified by people.")
@click.option("--hierarchy", type=PATH, metavar="FILE", help="open-images: the JSON of broader and narrower names.")
@click.option("--more-than", type=int, help="Names of at most so many boxes are no negatives (gold-g: 100).")
def index(kind: str, source: Path, out: Path, classes: Path | None, labels: Path | None, hierarchy: Path | None,
    more_than: int | None) -> None:  # fmt: skip
    """An index of a large set, for training: FOLDER is a name for `train --text-data`. data/README.md lists the files.

    SOURCE: the annotation file; for sa-1b and shards the folder.

    Examples:
    trex2 data index crowdhuman annotation_train.odgt --out data/crowdhuman
    trex2 data index gold-g final_flickr_separateGT_train.json --out data/gold-g-flickr
    """
    import importlib

    from trex2_mini.datasets.large.index import write_index

    module, name = READERS[kind].split(":")
    read = getattr(importlib.import_module(f"trex2_mini.datasets.large.{module}"), name)
    given = {"open-images": (classes, labels, hierarchy), "shards": (_lines(classes),)}.get(kind, ())
    if kind == "open-images" and classes is None:
        raise ValueError("open-images: give --classes oidv7-class-descriptions-boxable.csv")
    more_than = {"gold-g": 100}.get(kind, 0) if more_than is None else more_than
    path = write_index(read(source, *given), out / "index.parquet", more_than)
    (out / "images").mkdir(exist_ok=True)
    print(f"{path}: {path.stat().st_size:,} bytes; the pictures belong into {out / 'images'}")


def _lines(path: Path | None) -> list[str] | None:
    from trex2_mini.paths import read_text

    return read_text(path).splitlines() if path else None


def _whole_numbers(path: Path) -> list[int]:
    words = " ".join(_lines(path) or ()).split()
    if wrong := [word for word in words if not word.isdecimal()]:
        raise ValueError(f"{path}: expected the ids of pictures, whole numbers, got {wrong[0]!r:.40}")
    return [int(word) for word in words]


@data.command()
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT", type=PATH)
@click.option("--to", type=click.Choice(["coco", "yolo", "voc"]), default="coco", help="The format to write.")
def convert(source: str, out: Path, to: str) -> None:
    """Write a set of any format that we read, a name, folder or JSON file, in another, with its pictures.

    Examples:
    trex2 data convert my/label-studio.json my/set --to coco
    trex2 data convert emoji-val my/yolo --to yolo
    """
    from trex2_mini.annotations import convert
    from trex2_mini.datasets.registry import open_dataset

    path, counts = convert(open_dataset(source), out, to)
    print(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in counts.items()))
    print(f"{to}: {path}")
