"""`trex2 evaluate`, `trex2 scorecard` and `trex2 suite`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from trex2_mini.cli.options import Several, checkpoint, command, write_json, write_result

PROTOCOLS = (
    "text", "visual-i", "visual-i-others", "visual-i-negatives", "visual-g", "mixed", "region", "region-visual",
    "counting", "video",
)  # fmt: skip


@command()
@click.option("--data", default="emoji-val", help="A set's name, or a folder with annotations.json and images/.")
@click.option(
    "--reference",
    help="Where Visual-G draws its examples (default: the set's own training split, else emoji-reference).",
)
@click.option(
    "--protocol", required=True, type=click.Choice(PROTOCOLS),
    help="visual-i-negatives: with look-alikes; region, region-visual: naming boxes; counting: --data emoji-count; "
    "video: --data emoji-clips.",
)  # fmt: skip
@click.option("--categories", type=click.Choice(["all", "trained", "novel"]), default="all")
@checkpoint(default="nano-emoji")
@click.option(
    "--examples", type=int, metavar="N",
    help="Images a category for Visual-G (default 16); boxes shown for counting, negatives given for "
    "visual-i-negatives (1 to 3, default 3); frames prompted for video (1).",
)  # fmt: skip
@click.option(
    "--tiles", type=float, default=0.0, metavar="S",
    help="counting: in tiles, S sides of an exemplar wide (8 is good); 0: none.",
)  # fmt: skip
@click.option("--points", is_flag=True, help="Visual-I with centre points instead of boxes.")
@click.option("--synonyms", is_flag=True, help="text asks by the first synonym instead of the name.")
@click.option(
    "--baselines", cls=Several, type=click.Choice(["template", "features"]),
    help="Of the visual-i protocols, beside the echo: evaluation/baselines.py.",
)  # fmt: skip
@click.option("--split", default="test", help="counting: val or test.")
@click.option("--threshold", type=float, default=0.3, help="counting, visual-i-negatives: from which score (0..1) on.")
@click.option("--limit", type=int, help="Only the first so many images; video: clips.")
@click.option("--seed", type=int, default=0)
@click.option("--draws", type=int, default=1, metavar="K", help="Mean and deviation over the seeds SEED to SEED+K-1.")
@click.option(
    "--bootstrap", "resamples", type=int, default=0, metavar="R",
    help="A 95 % interval of AP by R resamples of the images.",
)  # fmt: skip
@write_result()
def evaluate(json_path: Path | None, **options: Any) -> None:
    """Measure a checkpoint by one of the paper's protocols.

    Examples:
    trex2 evaluate --protocol text --data lvis-minival --checkpoint runs/mine
    trex2 evaluate --protocol visual-i-others --data my/set --baselines template features --draws 3 --json result.json
    trex2 evaluate --protocol counting --data emoji-count --tiles 8 --threshold 0.06
    """
    from trex2_mini.evaluation.repeat import repeated
    from trex2_mini.processes import one_of_many

    with one_of_many() as first:  # under torchrun the processes share the images; the first one reports
        result = repeated(**options)
        if first:
            write_json(json_path, result)
            print(json.dumps({key: value for key, value in result.items() if key != "per_category"}, indent=2))


@command()
@checkpoint("Whose goals: nano-emoji or nano-photo.", default="nano-emoji")
@click.option("--source", metavar="FOLDER", help="Other weights, measured against the same goals.")
@click.option("--draws", type=int, default=1, metavar="K", help="Of examples and prompts; their mean is shown.")
@click.option("--limit", type=int, help="Only the first so many images of each set.")
@write_result("Write the results here; an interrupted run goes on.")
def scorecard(checkpoint: str, source: str | None, draws: int, limit: int | None, json_path: Path | None) -> None:
    """All protocols of a shipped checkpoint, its goals beside its numbers.

    Examples:
    trex2 scorecard --checkpoint nano-emoji
    trex2 scorecard --checkpoint nano-photo --source runs/mine --draws 3 --json scorecard.json
    """
    from trex2_mini.evaluation.tables import as_markdown
    from trex2_mini.reproduction import scorecard as card

    results = card.scorecard(checkpoint, draws, limit, json_path, source)
    print(as_markdown(card.as_table(results), ".1f"), end="")


@command()
@click.argument("name", type=click.Choice(["photo-wild", "emoji-wild", "odinw35", "rf100"]))
@checkpoint()
@click.option("--examples", type=int, default=16, metavar="N", help="Pictures a category.")
@click.option("--draws", type=int, default=3, metavar="K", help="Of examples and prompts.")
@click.option("--limit", type=int, help="Only the first so many images of each set.")
@click.option("--seed", type=int, default=0)
@write_result()
def suite(name: str, checkpoint: str, json_path: Path | None, **options: Any) -> None:
    """All protocols over a suite of small sets, with mean and median.

    Examples:
    trex2 suite photo-wild
    trex2 suite emoji-wild --checkpoint nano-emoji --draws 1 --json wild.json
    """
    from trex2_mini.evaluation.suite import as_table, measure_suite, missing
    from trex2_mini.evaluation.tables import as_markdown

    result = measure_suite(checkpoint, name, **options)
    write_json(json_path, result)
    print(as_markdown(as_table(result), ".1f"), end="")
    if missing(result):
        print(f"{missing(result)} sets of {name} are not here; the mean and the median are of the others.")


@command()
@click.argument("learn", metavar="SET")
@click.argument("judge", metavar="OTHER-SET")
@checkpoint()
@click.option(
    "--pictures", cls=Several, type=click.IntRange(2), default=[2, 5, 10], metavar="N...", help="Labelled ones."
)
@click.option("--limit", type=int, help="Only the first so many pictures of OTHER-SET.")
@click.option("--seed", type=int, default=0, help="Of the pictures drawn.")
@write_result()
def tuning(learn, judge, checkpoint, pictures, limit, seed, json_path) -> None:
    """What tuned prompts bring: AP on OTHER-SET against the number of labelled pictures of SET.

    Examples:
    trex2 tuning photo-wild-ships/examples photo-wild-ships/val
    trex2 tuning my/train my/val --pictures 2 5 10 20 --limit 100 --json tuning.json
    """
    from trex2_mini.evaluation.tables import as_markdown
    from trex2_mini.weights.tuning_curve import tuning_curve

    table = tuning_curve(checkpoint, learn, judge, pictures, limit, seed)
    write_json(json_path, {"learn": learn, "judge": judge, "checkpoint": checkpoint, "rows": table.to_dict("records")})
    print(as_markdown(table, ".1f"), end="")
