"""`trex2 search`."""

from __future__ import annotations

import click

from trex2_mini.cli.options import PATH, checkpoint, command, write_json, write_result


@command()
@click.argument("folder", type=PATH)
@click.option("--text", help="Names, separated by commas.")
@click.option("--image", type=PATH, metavar="FILE", help="An example picture; --box and --point lie on it.")
@click.option(
    "--box", "boxes", nargs=4, type=float, multiple=True, metavar="X1 Y1 X2 Y2",
    help="An example on --image, in pixels; may be repeated.",
)  # fmt: skip
@click.option(
    "--point", "points", nargs=2, type=float, multiple=True, metavar="X Y",
    help="An example on --image, in pixels; may be repeated.",
)  # fmt: skip
@click.option("--name", default="object", help="The name of what the examples show; as in --text, to mix with a word.")
@click.option("--bank", "bank_path", type=PATH, metavar="FILE", help="A prompt bank that PromptBank.save wrote.")
@click.option("--all", "every", is_flag=True, help="All names must be on a picture; otherwise one is enough.")
@click.option("--top", type=int, default=10, help="How many pictures.")
@click.option("--shortlist", type=int, default=30, help="The detector looks at so many; 0: the index alone answers.")
@click.option("--threshold", type=float, default=0.3, help="Least score of the boxes, 0..1.")
@click.option("--index", "where", type=PATH, metavar="FOLDER", help="Where the index is kept [FOLDER/.trex2-search].")
@click.option("--out", type=PATH, metavar="FILE.html", help="Write a page with what was found, cut out.")
@checkpoint()
@click.option("--measure", is_flag=True, help="FOLDER is a labelled set: how well are its pictures found?")
@click.option("--pictures", type=int, help="--measure: so many pictures, drawn at random [all].")
@click.option("--questions", type=int, help="--measure: so many categories, drawn at random [all].")
@write_result()
def search(
    folder, text, image, boxes, points, name, bank_path, every, top, shortlist, threshold, where, out, checkpoint,
    measure, pictures, questions, json_path,
) -> None:  # fmt: skip
    """Rank the pictures of a folder, and of the folders in it, by words, by examples on a picture, or by both.

    The first call indexes the pictures; later ones index what has changed.

    Examples:
    trex2 search my/photos --text "dog" --out found.html
    trex2 search my/photos --image photo.jpg --box 192 30 240 73 --name coin --text coin
    trex2 search emoji-coco --measure --json retrieval.json
    """
    from trex2_mini.detector import Detector

    if measure:
        from trex2_mini.search.measure import measure_search

        result = measure_search(checkpoint, str(folder), pictures, questions)
        for modality in ("text", "visual", "both"):
            for way in ("index", "shortlist", "everything", "random"):
                scores = ", ".join(f"{key} {100 * value:.1f}" for key, value in result[modality][way].items())
                print(f"{modality:7s} {way:11s} {scores}")
        write_json(json_path, result)
        return
    from trex2_mini.paths import write_text
    from trex2_mini.prompt_bank import PromptBank
    from trex2_mini.search import PhotoIndex, contact_sheet
    from trex2_mini.search import search as ask

    index = PhotoIndex(Detector.load(checkpoint), folder, where)
    index.update()
    hits = ask(
        index,
        text,
        image,
        {name: boxes} if boxes else None,
        {name: points} if points else None,
        PromptBank.load(bank_path) if bank_path else None,
        top,
        shortlist,
        every,
        threshold,
    )
    found = []
    for hit in hits:
        own = hit.detections
        print(f"{hit.score:.2f}  {len(own):3d}  {hit.path}")
        found.append(
            {
                "file": hit.path.relative_to(index.folder).as_posix(),
                "score": hit.score,
                "boxes": own.boxes.tolist(),
                "scores": own.scores.tolist(),
                "names": [own.names[label] for label in own.labels],
            }
        )
    for left_out, why in index.unreadable.items():
        print(f"left out: {left_out}: {why}")
    write_json(json_path, {"folder": str(folder), "hits": found, "unreadable": index.unreadable})
    if out:
        write_text(out, contact_sheet(hits, f"{folder}: {text or name}"))
        print(f"page: {out}")
