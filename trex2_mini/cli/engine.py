"""`trex2 engine`: pseudo-labels from captions or from boxes without names, and what they bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from trex2_mini.cli.options import PATH, Several, checkpoint, group, write_json, write_result


@group()
def engine() -> None:
    """The paper's two data engines: sets in COCO format with boxes that a checkpoint found. Boxes are in pixels.

    Examples:
    trex2 engine text --data my/captions --out runs/labels
    trex2 engine visual --data my/boxes --names names.txt
    """


def _shared(function):
    """The options of both engines."""
    for option in (
        write_result(),
        click.option("--truth", type=PATH, metavar="FILE", help="COCO, what is really there: precision and recall."),
        click.option("--parquet", is_flag=True, help="Write index.parquet, not COCO (pictures in tars: always)."),
        click.option("--workers", type=int, default=1, help="1: this process; more: actors on Ray (RAY_ADDRESS)."),
        click.option("--shard", type=int, default=50, help="Pictures a shard."),
        click.option("--limit", type=int, help="Only the first so many pictures."),
        checkpoint(default="nano-emoji"),
        click.option("--out", type=PATH, metavar="FOLDER", help="A rerun goes on (default runs/engine-NAME)."),
    ):
        function = option(function)
    return function


@engine.command()
@click.option(
    "--data", default="emoji-captions", metavar="NAME|FOLDER",
    help="A folder with captions.json and images/, tars of WebDataset, pictures with .txt, or a folder a category.",
)  # fmt: skip
@click.option("--score", type=float, default=0.2, help="Least score of a detection, 0..1.")
@click.option("--similarity", type=float, default=0.8, help="Least cosine of region and phrase.")
@click.option("--more-than", type=int, default=100, help="A phrase in more captions is a negative.")
@click.option("--parser", default="auto", help="auto, rules, or a pipeline of spaCy's such as en_core_web_sm.")
@_shared
def text(data: str, score: float, similarity: float, more_than: int, parser: str, **run: Any) -> None:
    """Boxes for the noun phrases of captioned pictures.

    Examples:
    trex2 engine text --data emoji-captions
    trex2 engine text --data my/pictures --parser en_core_web_sm --similarity 0.7 --out runs/labels
    """
    from trex2_mini.data_engine import engines
    from trex2_mini.data_engine.phrases import find_parser
    from trex2_mini.datasets.emoji.sets import EMOJI_SETS, make_emoji_set

    images, folder, captions, head = engines.read_captions(make_emoji_set(data) if data in EMOJI_SETS else data)
    found, parse = find_parser(parser)
    print(f"noun phrases by {found}")
    phrases = engines.phrases_of(captions, parse)
    own = engines.TextEngine(phrases, score=score, similarity=similarity, more_than=more_than)
    print(f"{len(own.names)} phrases, {len(own.dictionary)} of them in more than {more_than} captions")
    _run("text", own, images, folder, head, **run)


@engine.command()
@click.option(
    "--data", default="emoji-sa", metavar="NAME|FOLDER", help="A set with boxes, or a folder with index.parquet."
)
@click.option("--score", type=float, default=0.3, help="Least score of a detection, 0..1.")
@click.option("--names", type=PATH, metavar="FILE", help="One name a line (default: the 390 trained emoji names).")
@click.option("--probability", type=float, default=0.3, help="Least of a box's name.")
@click.option("--min-instances", type=int, default=2, help="Boxes of one name that keep a picture.")
@_shared
def visual(data: str, score: float, names: Path | None, probability: float, min_instances: int, **run: Any) -> None:
    """Names for boxes without names, and more boxes like them.

    Examples:
    trex2 engine visual --data emoji-sa
    trex2 engine visual --data my/boxes --names names.txt --probability 0.5
    """
    from trex2_mini.data_engine import engines
    from trex2_mini.datasets.registry import open_training_set
    from trex2_mini.datasets.scenes.catalogue import load_catalogue
    from trex2_mini.paths import read_names

    dataset = open_training_set(data)
    images, boxes = engines.read_boxes(dataset)
    head = {key: own for key, own in getattr(dataset, "coco", {}).items() if key in ("info", "licenses")}
    known = read_names(names) if names else [c.name for c in load_catalogue() if not c.novel]
    options = {"score": score, "probability": probability, "min_instances": min_instances}
    own = engines.VisualEngine(boxes, known, **options)
    _run("visual", own, images, dataset.images, head, **run)


def _run(name: str, own, images, folder, head, out, checkpoint, limit, shard, workers, parquet, truth, json_path):
    from trex2_mini.data_engine.effect import qualities
    from trex2_mini.data_engine.shards import run_engine

    out = out or _default_out(name)
    how = {"head": head, "shard": shard, "workers": workers, "parquet": parquet or None}
    result = run_engine(own, images[:limit], folder, out, checkpoint, **how)
    if truth:
        result |= qualities(out, truth)
    print(f"set: {out}  (trex2 data check {out})")
    _report(result, json_path)


@engine.command()
@click.option("--out", type=PATH, metavar="FOLDER", help="A rerun goes on (default runs/engine-effect).")
@checkpoint(default="nano-emoji")
@click.option("--steps", type=int, default=60, help="Of each fine-tuning.")
@click.option("--seeds", cls=Several, type=int, default=[0, 1], metavar="SEED...", help="Of the fine-tunings.")
@click.option("--images", type=int, default=100, help="Of emoji-val, to measure on.")
@click.option("--workers", type=int, default=1, help="Of the engines: more than 1 run on Ray.")
@write_result()
def effect(out, checkpoint, steps, seeds, images, workers, json_path) -> None:
    """AP with and without the engines' boxes, after short fine-tunings.

    Examples:
    trex2 engine effect
    trex2 engine effect --steps 120 --seeds 0 1 2 --json data/engines.json
    """
    from trex2_mini.data_engine.effect import measure_effect

    own = out or _default_out("effect")
    _report(measure_effect(own, checkpoint, steps, list(seeds), images=images, workers=workers), json_path)


def _default_out(name: str) -> Path:
    from trex2_mini.paths import REPOSITORY

    return REPOSITORY / "runs" / f"engine-{name}"


def _report(result: dict, json_path: Path | None) -> None:
    write_json(json_path, result)
    print(json.dumps(result, indent=2))
