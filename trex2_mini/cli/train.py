"""`trex2 train`."""

import dataclasses
import functools
from pathlib import Path

import click

from trex2_mini.cli.options import PATH, Several, command


@command()
@click.option("--preset", default="nano", help="nano, swin_t or swin_l.")
@click.option(
    "--data", cls=Several, default=["emoji"], metavar="NAME[=SHARE]...",
    help="emoji (fresh scenes), cutouts:FOLDER (fresh scenes of cut-outs, see `data cutouts`), coco-train2017, or "
    "a folder in COCO format; several are mixed by their shares.",
)  # fmt: skip
@click.option("--text-data", cls=Several, metavar="NAME[=SHARE]...", help="Of text iterations, instead of --data.")
@click.option("--visual-data", cls=Several, metavar="NAME[=SHARE]...", help="Of visual iterations.")
@click.option("--mixture", type=PATH, metavar="FILE", help="Both lists as YAML: data/mixtures/one_gpu_day.yml.")
@click.option("--config", "config_path", type=PATH, metavar="FILE", help="A config.json instead of a preset.")
@click.option(
    "--set", "changes", cls=Several, metavar="KEY=VALUE...", help="Recipe values to change, such as steps=2000 lr=3e-4."
)
@click.option(
    "--run", "--out", "run", type=PATH, default=Path("runs/nano"), metavar="FOLDER",
    help="Folder of the run; under torchrun say --out, it takes --run for an option of its own.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on from the run's last saved state.")
@click.option("--start-from", metavar="NAME|FOLDER", help="Begin with the weights of a checkpoint.")
@click.option("--save-every", type=int, default=250, metavar="STEPS")
@click.option("--random-weights", is_flag=True, help="Do not start from ImageNet and CLIP weights (swin_t, swin_l).")
@click.option("--device", default="cpu", help="cpu or cuda; under torchrun each process has a GPU of its own.")
@click.option("--workers", type=int, default=1, help="Processes that make pictures, beside each that trains.")
@click.option(
    "--held-out", cls=Several, default=["coco-val2017", "lvis-val"], metavar="NAME...",
    help="Sets that will be measured on; training on their pictures is warned of, where the sets are here.",
)  # fmt: skip
def train(
    preset: str, data: tuple[str], text_data: tuple[str], visual_data: tuple[str], mixture: Path | None,
    config_path: Path | None, changes: tuple[str], run: Path, resume: bool, start_from: str | None, save_every: int,
    random_weights: bool, device: str, workers: int, held_out: tuple[str],
) -> None:  # fmt: skip
    """Train a model on emoji scenes or on sets in COCO format. Ctrl-C stops; --resume goes on.

    Examples:
    trex2 train --run runs/mine
    trex2 train --run runs/two --text-data emoji --visual-data emoji=1 my/boxes=2 --set visual_per_text=1
    trex2 train --run runs/mine --start-from nano-emoji --data emoji=0.3 my/folder=0.7 --set steps=2000 lr=3e-4
    trex2 train --config my/config.json --data cutouts:data/cutouts=0.4 coco-train2017=0.6 --set short_sides=224,256,288
    torchrun --nproc-per-node 8 -m trex2_mini train --preset swin_t --data coco-train2017 --device cuda --out runs/t
    """
    from trex2_mini import config as configs
    from trex2_mini.processes import one_of_many
    from trex2_mini.training.batches import open_batches, sets_of
    from trex2_mini.training.iteration import batch_parts, iteration_kinds
    from trex2_mini.training.trainer import Trainer

    config = configs.Config.load(config_path) if config_path else configs.preset(preset)
    config = dataclasses.replace(config, train=_changed(config.train, changes))
    if random_weights:  # nothing is frozen then
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, backbone_pretrained=False))
    recipe = config.train
    with one_of_many(device):  # under torchrun the processes share the batch; the first one logs and saves
        parts = batch_parts(recipe)
        size, short_side = recipe.batch_size // parts, config.model.short_side
        text, visual = _lists(data, text_data, visual_data, mixture)
        batches = open_batches(
            text, size, recipe.seed, short_side, recipe.balance, recipe.short_sides, parts, visual,
            functools.partial(iteration_kinds, config=recipe),
        )  # fmt: skip
        _warn_of_leaks(sets_of(batches), held_out)
        pretrained = not (random_weights or resume or start_from)
        trainer = Trainer(run, config, batches, batches.names, batches.trainable, device, pretrained=pretrained)
        if resume:
            trainer.resume()
        elif trainer.state_path.exists():
            raise ValueError(f"{run} holds a run already: add --resume to go on with it, or name another with --run")
        elif start_from:
            trainer.start_from(start_from)
        trainer.train(save_every, workers=workers)


def _warn_of_leaks(training: list, held_out: tuple[str]) -> None:
    """Says which of the sets trained on hold pictures of those that are measured on, by their file names."""
    from trex2_mini.datasets.leaks import warnings_of
    from trex2_mini.datasets.registry import open_dataset

    evaluation = []
    for name in held_out if training else ():
        try:
            evaluation.append((name, open_dataset(name)))
        except FileNotFoundError:  # a set that is not here can be compared with none
            continue
    for line in warnings_of(training, evaluation, look=False):
        click.echo(f"warning: {line} (trex2 data check NAME --against SET compares pixels too)", err=True)


def _lists(
    data: tuple[str], text: tuple[str], visual: tuple[str], mixture: Path | None
) -> tuple[list[str], list[str] | None]:
    """(data of text iterations, of visual ones; None: the same)."""
    from trex2_mini.training.batches import read_mixture

    if mixture and not (text or visual):
        return read_mixture(mixture)
    if mixture or bool(text) != bool(visual):
        raise ValueError("give --text-data and --visual-data together, or --mixture FILE alone")
    return (list(text), list(visual)) if text else (list(data), None)


def _changed(recipe, pairs: tuple[str]):
    """The recipe with KEY=VALUE changes; values are read as the field's own type."""
    changes = {}
    known = {f.name: type(getattr(recipe, f.name)) for f in dataclasses.fields(recipe)}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in known or not value:
            raise ValueError(f"--set {pair}: expected KEY=VALUE with KEY one of {sorted(known)}")
        try:
            if known[key] is tuple:  # of whole numbers
                changes[key] = tuple(int(part) for part in value.split(","))
            else:
                truth = {"true": True, "false": False}
                changes[key] = truth[value.lower()] if known[key] is bool else known[key](value)
        except (ValueError, KeyError):
            raise ValueError(f"--set {pair}: expected {key} to be {known[key].__name__}, got {value!r}") from None
    return dataclasses.replace(recipe, **changes)
