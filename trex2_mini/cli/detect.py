"""`trex2 detect`."""

from __future__ import annotations

import click

from trex2_mini.cli.options import PATH, checkpoint, command


@command()
@click.argument("image", type=PATH)
@click.option("--text", help="Names, separated by commas.")
@click.option(
    "--box", "boxes", nargs=4, type=float, multiple=True, metavar="X1 Y1 X2 Y2",
    help="An example on the image, in pixels; may be repeated.",
)  # fmt: skip
@click.option(
    "--point", "points", nargs=2, type=float, multiple=True, metavar="X Y",
    help="An example on the image, in pixels; may be repeated.",
)  # fmt: skip
@click.option("--bank", "bank_path", type=PATH, metavar="FILE", help="A prompt bank that PromptBank.save wrote.")
@click.option("--json", "json_path", type=PATH, metavar="FILE", help="Of a folder: COCO; an interrupted run goes on.")
@click.option("--name", default="object", help="The name of what the boxes and points show.")
@checkpoint()
@click.option("--threshold", type=float, default=0.3, help="Least score, 0..1.")
@click.option("--out", type=PATH, metavar="FILE", help="Draw what is found.")
def detect(image, text, boxes, points, bank_path, json_path, name, checkpoint, threshold, out) -> None:
    """Find objects on a picture, or on all of a folder. Boxes are x1 y1 x2 y2, in pixels of the picture.

    Examples:
    trex2 detect photo.jpg --checkpoint nano-photo --text "cat, dog" --out found.png
    trex2 detect photo.jpg --checkpoint nano-photo --box 192 30 240 73 --point 300 55 --name coin
    trex2 detect my/folder --text "cat, dog" --json found.json
    """
    from trex2_mini.checkpoint import file_hash, load_model
    from trex2_mini.detector import Detector
    from trex2_mini.prompt_bank import PromptBank

    model, config, path = load_model(checkpoint)
    detector = Detector(model, config)
    bank = PromptBank.load(bank_path) if bank_path else None
    if image.is_dir():
        from trex2_mini.annotations import detect_folder

        if boxes or points or out or not json_path:
            raise ValueError(
                "of a folder: expected --text or --bank, and --json FILE for the result; "
                "boxes and points belong to one picture"
            )
        counts = detect_folder(detector, image, json_path, text, bank, threshold, file_hash(path))
        print(", ".join(f"{key}: {value}" for key, value in counts.items()))
        print(f"COCO file: {json_path}")
        return
    if json_path:
        raise ValueError(f"--json is for a folder of pictures, but {image} is none")
    found = detector.detect(
        image,
        text=text,
        boxes={name: boxes} if boxes else None,
        points={name: points} if points else None,
        prompts=bank,
        score_threshold=threshold,
    )
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        print(f"{found.names[label]:24s} {score:.2f}  " + " ".join(f"{v:7.1f}" for v in box))
    print(f"{len(found)} detections with a score of at least {threshold}")
    if out:
        from trex2_mini.plots import save_detections

        save_detections(image, found, out)
        print(f"picture: {out}")
