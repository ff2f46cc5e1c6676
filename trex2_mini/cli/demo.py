"""`trex2 demo`: what `make demo` does, on every system."""

import os
from pathlib import Path

import click

from trex2_mini.cli.options import PATH, command


@command()
@click.option("--out", type=PATH, metavar="FOLDER", help="Where to write (default runs/demo of the repository).")
def demo(out: Path | None) -> None:
    """Run notebooks/00_quickstart.ipynb on the shipped checkpoint; leaves it, its pictures and an HTML page.

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
    print(f"\n{(out / 'summary.txt').read_text(encoding='utf-8')}\nThe executed notebook: {executed}")
    print(f"The same as a page:    {page} (open it in a browser)")
