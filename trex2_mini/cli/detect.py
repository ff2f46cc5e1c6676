"""`trex2 detect`, `trex2 count` and `trex2 classify`."""

import json
import re
from pathlib import Path

import click

from trex2_mini.cli.options import PATH, checkpoint, command, write_json, write_result
from trex2_mini.cli.prompts import DEVICE, Asked, gather, look, pictures, places, prompts

DRAWN = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf", ".svg")


@command()
@pictures
@prompts
@write_result("One picture: what is on it; several: COCO. Interrupted, the same command goes on.")
@click.option("--csv", "csv_path", type=PATH, metavar="FILE", help="picture, name, score, x1, y1, x2, y2.")
@click.option("--export", "export_to", type=PATH, metavar="FOLDER", help="Write an annotated set, with the pictures.")
@click.option("--format", type=click.Choice(["coco", "yolo", "voc"]), default="coco", help="Of --export.")
@click.option("--crops", type=PATH, metavar="FOLDER", help="Write each object's part of its picture, by name.")
@click.option(
    "--out", type=PATH, metavar="FILE|FOLDER", help="Draw what is found; of several pictures, into this folder."
)
def detect(
    pictures: tuple[str], recursive: bool, asked: Asked, json_path: Path | None, csv_path: Path | None,
    export_to: Path | None, format: str, crops: Path | None, out: Path | None,
) -> None:  # fmt: skip
    """Find objects on pictures. Boxes are x1 y1 x2 y2, in pixels of the picture.

    Examples:
    trex2 detect photo.jpg --text "cat, dog" --out found.png
    trex2 detect photo.jpg --box 192 30 240 73 --name coin --negative-point 300 55
    trex2 detect my/folder --recursive --bank coins.safetensors --export my/set --format yolo --crops my/crops
    """
    chosen = gather(pictures, recursive)
    if out and len(chosen) == 1 and out.suffix and out.suffix.lower() not in DRAWN and not out.is_dir():
        raise click.UsageError(f"--out {out}: expected one of {', '.join(DRAWN)}.", click.get_current_context())
    outputs = [path for path in (json_path, csv_path, export_to, crops, out) if path]
    partial = outputs[0].with_name(f"{outputs[0].name}.part") if outputs and len(chosen) > 1 else None
    found = look(asked, chosen, partial)
    from trex2_mini import annotations
    from trex2_mini.paths import write_text
    from trex2_mini.plots import save_detections

    alone = next(iter(found)) if len(chosen) == 1 else None
    if alone:
        for name, score, box in found[alone][2]:
            click.echo(f"{name:24s} {score:.2f}  " + " ".join(f"{v:7.1f}" for v in box))
        click.echo(f"{len(found[alone][2])} detections with a score of at least {asked.threshold}")
    if json_path and alone:
        height, width, own = found[alone]
        head = {"picture": alone, "height": height, "width": width, "boxes": "x1, y1, x2, y2 in pixels"}
        write_json(json_path, head | {"detections": [one._asdict() for one in own]})
    elif json_path:
        coco = annotations.as_coco(found, annotations.names_of(found))
        write_text(json_path, json.dumps(coco, ensure_ascii=False))
    if csv_path:
        import pandas

        rows = [own.to_dataframe().assign(picture=name) for name, (_, _, own) in found.items()]
        columns = ["picture", "name", "score", "x1", "y1", "x2", "y2"]
        write_text(csv_path, pandas.concat(rows)[columns].to_csv(index=False, lineterminator="\n"))
    if export_to:
        if "://" in "".join(pictures):
            raise ValueError("--export takes pictures of this machine; download those with an address first")
        flat = {name: name.replace("/", "_") for name in found}
        if len(set(flat.values())) < len(flat):
            raise ValueError("--export puts all pictures into one folder, where two of these would have one name")
        sources = {flat[name]: Path(chosen[name]) for name in found}
        annotations.export(export_to, {flat[name]: own for name, own in found.items()}, format, sources)
    for name, (_, _, own) in found.items():
        if crops:
            _write_crops(crops, name, own, chosen[name])
        if out:
            whole = name if Path(name).suffix.lower() in DRAWN else f"{name}.png"
            save_detections(chosen[name], own, out if alone and out.suffix.lower() in DRAWN else out / whole)
    if partial:
        partial.unlink()
    for what, path in {
        "COCO file" if not alone else "JSON": json_path, "CSV": csv_path, f"{format.upper()} set": export_to,
        "crops": crops, "picture" if alone else "pictures": out,
    }.items():  # fmt: skip
        if path:
            click.echo(f"{what}: {path}")


def _write_crops(folder: Path, picture: str, found, source) -> None:
    """FOLDER/NAME/PICTURE-001.png; what file systems do not take in a name becomes _."""
    from PIL import Image

    stem = picture.rsplit(".", 1)[0].replace("/", "_")
    for number, (one, pixels) in enumerate(zip(found, found.crops(source)), 1):
        path = (
            folder / (re.sub(r'[\\/:*?"<>|\x00-\x1f]|^\.+', "_", one.name).strip() or "_") / f"{stem}-{number:03d}.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@command()
@pictures
@prompts
@click.option("--csv", "csv_path", type=PATH, metavar="FILE", help="picture, and a column for each name.")
def count(pictures: tuple[str], recursive: bool, asked: Asked, csv_path: Path | None) -> None:
    """How many objects are on pictures. Boxes are x1 y1 x2 y2, in pixels of the picture.

    Examples:
    trex2 count coins.jpg --box 134 110 173 145 --name coin
    trex2 count my/folder --text "cat, dog" --tiles 2 --csv counts.csv
    """
    import pandas

    from trex2_mini.paths import write_text

    found = look(asked, gather(pictures, recursive), None)
    table = pandas.DataFrame({name: own.counts() for name, (_, _, own) in found.items()}).T.fillna(0).astype(int)
    for picture, row in table.iterrows():
        click.echo(f"{picture}: " + ", ".join(f"{number} {name}" for name, number in row.items()))
    if len(table) > 1:
        click.echo("all: " + ", ".join(f"{number} {name}" for name, number in table.sum().items()))
    if csv_path:
        write_text(csv_path, table.to_csv(index_label="picture", lineterminator="\n"))


@command()
@click.argument("picture")
@places("box", "boxes", "What is to be named")
@click.option("--text", required=True, help="Names that compete, separated by commas.")
@checkpoint()
@DEVICE
@click.option("--top", type=click.IntRange(1), default=3, help="How many names a box.")
@write_result()
def classify(
    picture: str, boxes, text: str, checkpoint: str, device: str | None, top: int, json_path: Path | None
) -> None:
    """What is in these boxes? The best of some names for each. Boxes are x1 y1 x2 y2, in pixels of the picture.

    Examples:
    trex2 classify photo.jpg --box 10 10 60 60 --text "coin, button"
    trex2 classify photo.jpg --box 10 10 60 60 --box 80 15 130 70 --text "cat, dog, fox" --top 1 --json named.json
    """
    from trex2_mini.detector import Detector
    from trex2_mini.names import unique_names

    if not boxes:
        raise click.UsageError("Missing option '--box'.", click.get_current_context())
    names = unique_names(text)
    _, shares = Detector.load(checkpoint, device).classify(picture, boxes, names)
    rows = []
    for box, own in zip(boxes, shares):
        best = {names[i]: round(float(own[i]), 4) for i in own.argsort()[::-1][:top]}
        rows.append({"box": list(box), "names": best})
        click.echo(" ".join(f"{v:7.1f}" for v in box) + "  " + ", ".join(f"{name} {p:.2f}" for name, p in best.items()))
    write_json(json_path, {"picture": picture, "boxes": rows})
