"""`trex2 search`."""

from pathlib import Path

import click

from trex2_mini.cli.options import PATH, command, write_json, write_result
from trex2_mini.cli.prompts import Question, question


@command()
@click.argument("folder", type=PATH)
@question
@click.option(
    "--image", metavar="FILE|URL", help="An example picture; --box and --point lie on it, else all of it is one."
)
@click.option("--all", "every", is_flag=True, help="All names must be on a picture; otherwise one is enough.")
@click.option("--top", type=click.IntRange(1), default=10, help="How many pictures.")
@click.option("--shortlist", type=click.IntRange(0), default=10, help="The detector looks at so many, --top at least; "
    "0: the index alone answers.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.3, help="Least score of the boxes.")
@click.option("--index", "where", type=PATH, metavar="FOLDER", help="Where the index is kept [FOLDER/.trex2-search].")
@click.option("--out", type=PATH, metavar="FILE.html", help="Write a page with what was found, cut out.")
@click.option("--sheet", type=PATH, metavar="FILE.png", help="Write that page as a picture.")
@click.option("--measure", is_flag=True, help="FOLDER is a labelled set: how well are its pictures found?")
@click.option("--pictures", type=click.IntRange(1), help="--measure: so many pictures, drawn at random [all].")
@click.option("--questions", type=click.IntRange(1), help="--measure: so many categories, drawn at random [all].")
@write_result()
def search(
    folder: Path, asked: Question, image: str | None, every: bool, top: int, shortlist: int, threshold: float,
    where: Path | None, out: Path | None, sheet: Path | None, measure: bool, pictures: int | None,
    questions: int | None, json_path: Path | None,
) -> None:  # fmt: skip
    """Rank the pictures of a folder, and of the folders in it, by words, by examples on a picture, or by both.

    The first call indexes the pictures; later ones index what has changed. Boxes are x1 y1 x2 y2, in pixels of --image.

    Examples:
    trex2 search my/photos --text "dog" --out found.html
    trex2 search my/photos --image photo.jpg --box 192 30 240 73 --name coin --text coin
    trex2 search emoji-coco --measure --json retrieval.json
    """
    if measure:
        from trex2_mini.search.measure import WAYS, measure_search

        result = measure_search(asked.checkpoint, str(folder), pictures, questions)
        for modality in ("text", "visual", "both"):
            for way in WAYS:
                scores = ", ".join(f"{key} {100 * value:.1f}" for key, value in result[modality][way].items())
                print(f"{modality:7s} {way:12s} {scores}")
        write_json(json_path, result)
        return
    if asked.placed and not image:
        raise click.UsageError("--box and --point lie on a picture: give --image too.", click.get_current_context())
    from trex2_mini.paths import write_text
    from trex2_mini.search import PhotoIndex, contact_sheet
    from trex2_mini.search import search as ask
    from trex2_mini.search.page import as_picture

    detector = asked.detector
    index = PhotoIndex(detector, folder, where)
    example = detector.encode(image) if image else None
    placed = asked.placed or ({"boxes": {asked.name: [[0, 0, example.width, example.height]]}} if example else {})
    prompts = detector.ask(
        example, asked.names, prompts=asked.prompts, allow_other_model=asked.allow_other_model, **placed
    )  # before the pictures are indexed: a mistake in it is said at once
    index.update()
    hits = ask(index, prompts=prompts, top=top, shortlist=shortlist, every=every, score_threshold=threshold)
    found = []
    for hit in hits:
        print(f"{hit.score:.2f}  {len(hit.detections):3d}  {hit.path}")
        own = [one._asdict() for one in hit.detections]
        found.append({"picture": hit.path.relative_to(index.folder).as_posix(), "score": hit.score, "detections": own})
    for left_out, why in index.unreadable.items():
        click.echo(f"left out: {left_out}: {why}", err=True)
    write_json(json_path, {"folder": str(folder), "hits": found, "unreadable": index.unreadable})
    if out:
        write_text(out, contact_sheet(hits, f"{folder}: {', '.join(prompts.names)}"))
        print(f"page: {out}")
    if sheet:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        as_picture(hits).save(sheet)
        print(f"picture: {sheet}")
