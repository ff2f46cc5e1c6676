"""`trex2 benchmark`."""

from pathlib import Path

import click

from trex2_mini.cli.options import command, write_json, write_result

NAMES = ("attention", "model", "training", "evaluation", "interaction", "onnx", "soak", "index")


@command()
@click.argument("name", type=click.Choice(NAMES))
@click.option("--quick", is_flag=True, help="Small sizes and few rounds: a look, not a measurement.")
@click.option("--repeats", type=int, metavar="N", help="Rounds of the median (default 5).")
@click.option("--preset", "presets", multiple=True, metavar="NAME", help="model: this preset alone; may be repeated.")
@click.option("--images", type=int, metavar="N", help="evaluation: AP of N images alone, once.")
@write_result()
def benchmark(
    name: str, quick: bool, repeats: int | None, presets: tuple[str], images: int | None, json_path: Path | None
):
    """Speed, as ratios to named references that are measured in the same run.

    Examples:
    trex2 benchmark attention --quick
    trex2 benchmark model --preset nano --json runs/speed/model.json
    """
    from trex2_mini.benchmark import as_table, run

    result = run(name, quick, repeats, presets or None, images)
    write_json(json_path, result)
    print(as_table(result))
