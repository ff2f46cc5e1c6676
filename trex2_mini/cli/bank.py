"""`trex2 embed` and `trex2 bank`: examples as prompts to keep."""

import json
from pathlib import Path

import click

from trex2_mini.cli.options import PATH, checkpoint, command, group
from trex2_mini.cli.prompts import DEVICE, NAME, places

OUT = click.option("--out", type=PATH, required=True, metavar="FILE", help="The bank to write, safetensors.")


@command()
@click.argument("picture", required=False)
@places("box", "boxes", "An example on PICTURE")
@places("point", "points", "An example on PICTURE")
@NAME
@click.option("--set", "labelled", metavar="NAME|FOLDER", help="A labelled set instead: all its categories, or --text.")
@click.option("--crops", type=PATH, metavar="FOLDER", help="Objects cut out instead: FOLDER/CATEGORY/x.png.")
@click.option("--text", help="--set: only these categories, separated by commas.")
@click.option("--examples", type=click.IntRange(1), default=16, metavar="N", help="--set, --crops: so many a category.")
@click.option("--seed", type=int, default=0, help="Of their choice.")
@click.option(
    "--tune", is_flag=True, help="--set: let the vectors, or a box decoder with them, learn on --examples pictures."
)
@checkpoint()
@DEVICE
@OUT
def embed(picture, boxes, points, name, labelled, crops, text, examples, seed, tune, checkpoint, device, out) -> None:
    """Make a prompt bank: from boxes or points on a picture, from a labelled set, or from objects cut out.

    Boxes are x1 y1 x2 y2, in pixels of the picture. Examples on several pictures: a bank for each, then `bank merge`.
    --tune takes half a minute for ten pictures. It measures on pictures that it holds back, says what helped, and keeps
    that alone. A decoder that learned is written beside the bank, and used with it.

    Examples:
    trex2 embed photo.jpg --box 192 30 240 73 --name coin --out coin.safetensors
    trex2 embed --set my/set --text "cat, dog" --examples 8 --out pets.safetensors
    trex2 embed --set my/set --tune --examples 10 --out mine.safetensors
    trex2 embed --crops my/crops --out mine.safetensors
    """
    if sum(map(bool, (picture, labelled, crops))) != 1 or bool(picture) != bool(boxes or points):
        raise click.UsageError("Give PICTURE with --box or --point, or --set, or --crops.", click.get_current_context())
    if tune and not labelled:
        raise click.UsageError("--tune learns from a labelled set: give --set.", click.get_current_context())
    from trex2_mini.detector import Detector

    detector = Detector.load(checkpoint, device)
    if picture:
        bank = detector.embed({name: [(picture, list(boxes) or None, list(points) or None)]})
    elif labelled:
        from trex2_mini.datasets.registry import open_dataset
        from trex2_mini.evaluation.bank import visual_bank
        from trex2_mini.names import name_key, unique_names

        dataset = open_dataset(labelled)
        spelled = {name_key(name): name for name in dataset.names}
        asked = unique_names(text) if text else dataset.names
        if unknown := [name for name in asked if name_key(name) not in spelled]:
            raise ValueError(f"{labelled} has no {', '.join(unknown)}; it has names such as {dataset.names[:5]}")
        asked = [spelled[name_key(name)] for name in asked]
        if tune:
            from trex2_mini.weights.tuning import labelled as pictures_of
            from trex2_mini.weights.tuning import tune as learn

            tuned = learn(detector, pictures_of(dataset, examples, seed, asked), seed=seed)
            tuned.save(out)
            click.echo(f"{tuned.line}\n{out}: {', '.join(tuned.bank.names)}")
            return
        bank = visual_bank(detector, dataset, asked, examples, seed)
        if missing := [name for name in asked if name_key(name) not in {name_key(own) for own in bank.names}]:
            click.echo(f"without an example in {labelled}, left out: {', '.join(missing)}", err=True)
    else:
        bank = _of_crops(detector, crops, examples, seed)
    bank.save(out)
    click.echo(f"{out}: {', '.join(bank.names)}")


def _of_crops(detector, folder: Path, examples: int, seed: int):
    """Each picture of FOLDER/CATEGORY is one example of it, from edge to edge."""
    import numpy as np
    from tqdm import tqdm

    from trex2_mini.annotations import pictures_in
    from trex2_mini.images import LeftOut
    from trex2_mini.prompt_bank import together

    if not folder.is_dir() or not (
        kinds := sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    ):
        raise ValueError(f"{folder}: expected a folder with a folder of pictures for each category")
    banks = []
    for number, kind in enumerate(tqdm(kinds, "categories", disable=None)):
        paths = pictures_in(kind)
        chosen = [paths[i] for i in np.random.default_rng([seed, number]).permutation(len(paths))[:examples]]
        left_out = LeftOut(len(chosen))
        encoded = [own for path in chosen if (own := left_out.read(path.name, detector.encode, path)) is not None]
        banks.append(detector.embed({kind.name: [(own, [[0, 0, own.width, own.height]]) for own in encoded]}))
    return together(banks)


@group()
def bank() -> None:
    """Look at prompt banks and change them.

    Examples:
    trex2 bank list coin.safetensors
    trex2 bank merge coin.safetensors button.safetensors --out both.safetensors
    """


@bank.command(name="list")
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
def list_(files: tuple[Path]) -> None:
    """The names in banks, their number of dimensions, and the model that made them.

    Examples:
    trex2 bank list coin.safetensors
    trex2 bank list coin.safetensors pets.safetensors
    """
    for file in files:
        names, width, weights = _described(file)
        click.echo(f"{file}: {len(names)} names of {width} numbers, model {weights or 'unknown'}")
        click.echo("".join(f"  {name}\n" for name in names), nl=False)


def _described(file: Path) -> tuple[list[str], int, str]:
    """(names, numbers of each, hash of the model that made them) of a bank; without torch where its head says so."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "np") as content:
            about, (rows, width) = content.metadata(), content.get_slice("embeddings").get_shape()
            names = json.loads(about["names"])
            if len(set(names)) == rows and all(isinstance(name, str) and name.strip() for name in names):
                return names, width, about.get("weights", "")
    except (SafetensorError, OSError, ValueError, TypeError, KeyError):
        pass  # what is wrong, or the official API's form, PromptBank.load knows
    from trex2_mini.prompt_bank import PromptBank

    own = PromptBank.load(file)
    return own.names, own.embeddings.shape[1], own.weights


@bank.command()
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
@OUT
def merge(files: tuple[Path], out: Path) -> None:
    """One bank of several; a name that several have gets the mean of their vectors.

    Examples:
    trex2 bank merge coin.safetensors button.safetensors --out both.safetensors
    trex2 bank merge monday.safetensors tuesday.safetensors --out coin.safetensors
    """
    from trex2_mini.prompt_bank import PromptBank, together

    own = together([PromptBank.load(file) for file in files])
    own.save(out)
    click.echo(f"{out}: {', '.join(own.names)}")


@bank.command()
@click.argument("file", type=PATH)
@click.argument("names")
@OUT
def drop(file: Path, names: str, out: Path) -> None:
    """The bank without some names, separated by commas.

    Examples:
    trex2 bank drop pets.safetensors cat --out rest.safetensors
    trex2 bank drop pets.safetensors "cat, dog" --out pets.safetensors
    """
    from trex2_mini.names import name_key, unique_names
    from trex2_mini.prompt_bank import PromptBank

    own, gone = PromptBank.load(file), {name_key(name): name for name in unique_names(names)}
    kept = [i for i, name in enumerate(own.names) if name_key(name) not in gone]
    if unknown := gone.keys() - {name_key(name) for name in own.names}:
        raise ValueError(
            f"{file} has no {', '.join(repr(gone[key]) for key in sorted(unknown))}; it has "
            f"{', '.join(map(repr, own.names))} (a name that holds a comma stands in double quotes)"
        )
    if not kept:
        raise ValueError(f"nothing would be left of {file}")
    PromptBank([own.names[i] for i in kept], own.embeddings[kept], own.weights).save(out)
    click.echo(f"{out}: {', '.join(own.names[i] for i in kept)}")
