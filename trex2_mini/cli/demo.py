"""`trex2 demo`: what `make demo` does, on every system."""

import json
import os
from pathlib import Path

import click

from trex2_mini.cli.options import PATH, command


@command()
@click.option("--out", type=PATH, metavar="FOLDER", help="Where to write (default runs/demo of the repository).")
def demo(out: Path | None) -> None:
    """Run notebooks/00_quickstart.ipynb on the shipped checkpoints, and search the photographs that come along; leaves
    the notebook, its pictures and index.html.

    Examples:
    trex2 demo
    trex2 demo --out my/demo
    """
    from trex2_mini.paths import REPOSITORY

    notebook = REPOSITORY / "notebooks" / "00_quickstart.ipynb"
    if not notebook.is_file():
        raise ValueError(f"the demo needs the repository with its notebooks, and {notebook} does not exist")
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # no debugger notes from the kernel
    os.environ.pop("MPLBACKEND", None)
    import papermill
    from nbconvert import HTMLExporter

    from trex2_mini.datasets.registry import open_dataset
    from trex2_mini.paths import write_text

    for name in ("emoji-val", "emoji-reference"):
        open_dataset(name)  # made if missing
    out = (out or REPOSITORY / "runs" / "demo").resolve()
    out.mkdir(parents=True, exist_ok=True)
    executed, page = out / notebook.name, out / f"{notebook.stem}.html"
    parameters = {"output_dir": str(out)}
    try:
        papermill.execute_notebook(notebook, executed, parameters, kernel_name="python3", cwd=notebook.parent)
    except papermill.PapermillExecutionError as error:
        raise ValueError(f"cell {error.exec_count} of {executed} stopped: {error.ename}: {error.evalue}") from error
    write_text(page, HTMLExporter().from_filename(str(executed))[0])
    write_text(out / "index.html", _first_page(out, page.name))
    print(f"\n{(out / 'summary.txt').read_text(encoding='utf-8')}\nThe executed notebook: {executed}")
    print(f"What was found:        {out / 'index.html'} (open it in a browser)")


SEARCHES = {  # a box on a picture, and what it shows
    "boat": ("ships/val/images/00004.jpg", [305, 156, 372, 246]),
    "cheetah": ("thermal-cheetah/val/images/00066.jpg", [304, 231, 362, 279]),
}


def _first_page(out: Path, notebook: str) -> str:
    """Photographs with what the four workflows found, two searches by example, and what was measured."""
    from trex2_mini.datasets.registry import PHOTO_WILD_FOLDER
    from trex2_mini.detector import Detector
    from trex2_mini.evaluation.suite import as_table
    from trex2_mini.paths import REPOSITORY
    from trex2_mini.search import PhotoIndex, contact_sheet, search

    index = PhotoIndex(Detector.load(), PHOTO_WILD_FOLDER, out / "search")  # the notebook's
    index.update()
    sheets = []
    for name, (picture, box) in SEARCHES.items():
        example = PHOTO_WILD_FOLDER / picture
        hits = [hit for hit in search(index, image=example, boxes={name: [box]}, top=7) if hit.path != example]
        sheets.append(
            contact_sheet(
                hits[:6], f"A box around one {name} on {picture}: the six likeliest others, right and wrong alike"
            )
        )
    measured = json.loads((REPOSITORY / "data" / "results" / "photo_wild.json").read_text(encoding="utf-8"))
    table = as_table(measured).to_html(index=False, float_format="{:.1f}".format, border=0)
    return f"""<!doctype html><meta charset="utf-8"><title>trex2_mini</title>
<style>body {{font: 16px/1.5 sans-serif; max-width: 1200px; margin: 1em auto; padding: 0 1em}} img {{max-width: 100%}}
td, th {{padding: 2px 10px; text-align: right}}</style>
<h1>trex2_mini: one model, asked in four ways</h1>
<p>By a name, by a box or a point on the picture (dashed, star), by examples on another picture, by both.
None of these photographs was trained on; they were chosen because each shows its workflow at work.</p>
<img src="hero.png" alt="photographs with detections of all four workflows">
<h2>The same on drawings</h2>
<p>Another small checkpoint. It was never trained on a hippopotamus: twelve examples show it what to look for.</p>
<img src="drawings.png" alt="drawings with detections of all four workflows">
<h2>Search: {len(index.files)} photographs, ranked by one example</h2>
{"".join(sheets)}
<h2>What was measured</h2>
<p>AP (COCO's, in percent) on the six sets of photographs that come with the repository. <i>others</i> counts only
objects that were not prompted; <i>echo</i> is a program that repeats the prompted box.</p>
{table}
<p><a href="{notebook}">The notebook</a> has the code of all this, and shows where the model fails.</p>
"""
