"""`trex2 reproduce` and `trex2 ablate`."""

from __future__ import annotations

from pathlib import Path

import click

from trex2_mini.cli.options import PATH, Several, command


@command()
@click.option(
    "--scale", default="smoke",
    help="smoke, laptop, embedded, or coco_lvis on real data (notebooks/params); or a YAML file of runs of your own.",
)  # fmt: skip
@click.option("--out", type=PATH, metavar="FOLDER", help="Of the runs and tables (default runs/reproduce/SCALE).")
@click.option("--only", default="", metavar="NN", help="Only notebooks whose name begins so, such as 13.")
@click.option("--workers", type=int, default=1, help="Runs at a time.")
@click.option("--submitit", type=click.Choice(["local", "slurm"]), help="Every run as a job of submitit's.")
@click.option(
    "--slurm", cls=Several, metavar="KEY=VALUE...",
    help="submitit's parameters of a job: slurm_partition=gpu slurm_account=me gpus_per_node=1 timeout_min=600.",
)  # fmt: skip
def reproduce(scale: str, out: Path | None, only: str, workers: int, submitit: str | None, slurm: tuple[str]) -> None:
    """Run the reproduction notebooks over a grid of parameters; one table of what came out.

    Examples:
    trex2 reproduce --scale laptop --workers 2
    trex2 reproduce --scale smoke --only 13
    trex2 reproduce --scale laptop --submitit slurm --slurm slurm_partition=gpu gpus_per_node=1
    """
    from trex2_mini.paths import REPOSITORY
    from trex2_mini.reproduction import batches

    runs = (batches.read_scale if scale in batches.SCALES else batches.read_grid)(scale)
    runs = [run for run in runs if run.notebook.stem.startswith(only)]
    if not runs:
        raise ValueError(f"{scale} has no notebook that begins with {only!r}")
    out = out or REPOSITORY / "runs" / "reproduce" / Path(scale).stem
    if any("=" not in pair for pair in slurm):
        raise ValueError(f"--slurm: expected KEY=VALUE, got {' '.join(slurm)}")
    table = batches.reproduce(runs, out, workers, submitit, dict(pair.split("=", 1) for pair in slurm))
    print(batches.as_markdown(table), end="")
    print(f"tables: {out}/table.csv, table.md, table.html")
    failed = table[table["status"] != "done"].set_index(["notebook", "parameters"])["status"].to_dict()
    if failed:
        raise ValueError(f"{len(failed)} of {len(runs)} runs failed; the same command tries them again: {failed}")


@command()
@click.option("--variants", cls=Several, metavar="V...", help="Of ablations.VARIANTS (default all).")
@click.option("--seeds", cls=Several, type=int, default=[0, 1], metavar="SEED...")
@click.option("--steps", type=int, default=400, help="Of each run (400: about 4 minutes).")
@click.option("--out", type=PATH, default=Path("runs/ablations/results"), help="Folder of the results.")
@click.option("--work", type=PATH, default=Path("runs/ablations"), help="Folder of the scenes and runs.")
def ablate(variants: tuple[str], seeds: tuple[int], steps: int, out: Path, work: Path) -> None:
    """Train variants of the recipe with equal budgets in a small world.

    Examples:
    trex2 ablate --variants joint text visual --seeds 0 1
    trex2 ablate --out data/ablations --steps 1000
    """
    from trex2_mini.reproduction import ablations

    results = ablations.ablate(out, work, list(variants or ablations.VARIANTS), list(seeds), steps)
    for variant, measured in ablations.compare(results).items():
        shown = "; ".join(f"{m} {ap:.1f} ({d:+.1f} ± {half:.1f})" for m, (ap, d, half) in measured.items())
        print(f"{variant}: {shown}")
