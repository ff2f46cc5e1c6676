"""The reproduction notebooks as a batch: a grid of parameters through papermill, and one table of what came out.

notebooks/params/SCALE.yml holds the parameters of a scale, for any notebook; grid.yml says which notebooks run at it;
a list of values there is a run for each. A run is a notebook with one choice of parameters; it has a folder of its
own, named by a hash of the notebook's code, the parameters and the checkpoint's weights. So what is done is skipped,
and what failed is tried again. A change of the package's code does not change the name: delete the folder, or give
another --out, to measure again. By hand, `papermill notebooks/NN.ipynb out.ipynb -f notebooks/params/SCALE.yml` gives
the same numbers.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import html
import itertools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import papermill
import yaml
from tqdm import tqdm

from trex2_mini.checkpoint import SHIPPED, file_hash
from trex2_mini.evaluation.tables import as_markdown
from trex2_mini.paths import REPOSITORY, write_text

NOTEBOOKS = REPOSITORY / "notebooks"
PARAMETERS = NOTEBOOKS / "params"
SCALES = ("smoke", "laptop", "embedded", "coco_lvis")
NOT_MEASURED = frozenset(
    "versions config recipe parameters images per_category dataset reference by_seed seed claims".split()
)
COLUMNS = ("notebook", "parameters", "status", "seconds", "measure", "value")
PICTURES = 6  # of a run, in the HTML


@dataclass(frozen=True)
class Run:
    """One execution: a notebook, its parameters, and about how many minutes it takes on two quiet cores."""

    notebook: Path
    parameters: dict
    minutes: float = 1.0

    def name(self) -> str:
        """The run's folder: the notebook's name and a hash of its code, the parameters and the checkpoint's weights."""
        cells = json.loads(self.notebook.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        known = [code, self.parameters, _weights(self.parameters.get("checkpoint"))]
        return f"{self.notebook.stem}-{hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]}"


def _weights(checkpoint: str | None) -> str | None:
    """The hash of a checkpoint's weights; None where there is none to read (the run itself will say so)."""
    for folder in (Path(SHIPPED) / checkpoint, Path(checkpoint)) if checkpoint else ():
        if (folder / "model.safetensors").is_file():
            return file_hash(folder / "model.safetensors")
    return None


def read_scale(scale: str, folder: Path = PARAMETERS, notebooks: Path = NOTEBOOKS) -> list[Run]:
    """The runs of a scale: those that grid.yml of `folder` lists for it, with the parameters of SCALE.yml that each
    notebook has.

    Raises ValueError as `read_grid`, and for a scale that either file lacks.
    """
    grid, file = _read(folder / "grid.yml"), folder / f"{scale}.yml"
    if not isinstance(grid, dict) or scale not in grid:
        raise ValueError(f"{folder / 'grid.yml'}: expected a list of runs for each scale, found none for {scale!r}")
    shared = _read(file)
    if not isinstance(shared, dict):
        raise ValueError(f"{file}: expected a value for each parameter, got {shared!r:.120}")
    return _runs(folder / "grid.yml", grid[scale], shared, notebooks)


def read_grid(path: str | Path, notebooks: Path = NOTEBOOKS) -> list[Run]:
    """The runs of a YAML file: a list of {notebook, parameters, minutes}; every list among the parameters is expanded
    to a grid.

    Raises ValueError for a file that is missing, is no YAML or of another form, for an unknown notebook or parameter,
    or an empty list of values.
    """
    return _runs(Path(path), _read(Path(path)), {}, notebooks)


def _read(path: Path):
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: expected a YAML file of runs, got: {error}") from error


def _runs(path: Path, entries, shared: dict, notebooks: Path) -> list[Run]:
    """shared: parameters of all runs, of which each notebook is given those that it has and its entry does not."""
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a list of runs, each with `notebook` and `parameters`, got {entries!r:.80}")
    runs = []
    for entry in entries:
        known = isinstance(entry, dict) and set(entry) <= {"notebook", "parameters", "minutes"}
        parameters = entry.get("parameters", {}) if known else None
        if not known or not isinstance(entry.get("notebook"), str) or not isinstance(parameters, dict):
            raise ValueError(
                f"{path}: expected notebook: NAME, parameters: {{...}}, minutes: NUMBER; got {entry!r:.120}"
            )
        if not isinstance(minutes := entry.get("minutes", 1.0), (int, float)) or not 0 < minutes < math.inf:
            raise ValueError(f"{path}: minutes must be a number above 0, got {minutes!r}")
        if "output_dir" in parameters:
            raise ValueError(f"{path}: output_dir is chosen for each run; take it out of the parameters")
        notebook = notebooks / f"{entry['notebook']}.ipynb"
        if not notebook.is_file():
            raise ValueError(f"{path}: no notebook {entry['notebook']!r} in {notebooks}")
        own = parameters_of(notebook)
        if unknown := set(parameters) - own:
            raise ValueError(
                f"{path}: {entry['notebook']} has no parameter {', '.join(sorted(unknown))}; it has"
                f" {', '.join(sorted(own))}"
            )
        values = {key: value if isinstance(value, list) else [value] for key, value in parameters.items()}
        values = {key: [value] for key, value in shared.items() if key in own and key not in values} | values
        if not all(values.values()):
            raise ValueError(f"{path}: a parameter of {entry['notebook']} has an empty list of values")
        chosen = itertools.product(*values.values())
        runs += [Run(notebook, dict(zip(values, own_values)), float(minutes)) for own_values in chosen]
    return runs


def parameters_of(notebook: Path) -> set[str]:
    """The names that a notebook's cell tagged `parameters` assigns."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    found = [node for node in ast.walk(ast.parse("\n".join(code))) if isinstance(node, ast.Name)]
    return {node.id for node in found if isinstance(node.ctx, ast.Store)}


def execute(run: Run, folder: Path) -> dict:
    """Run a notebook in `folder` (executed.ipynb, metrics.json, status.json). Never raises: status is "done" or says
    what failed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").unlink(missing_ok=True)  # of an earlier try
    start, status = time.perf_counter(), "done"
    try:
        papermill.execute_notebook(
            str(run.notebook), str(folder / "executed.ipynb"), run.parameters | {"output_dir": str(folder)},
            kernel_name="python3", progress_bar=False, cwd=str(folder), log_output=False,
        )  # fmt: skip
        json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except Exception as error:  # one run's failure must not end the others
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        status = f"failed: {type(error).__name__}: {lines[-1]}"
    state = {
        "notebook": run.notebook.stem,
        "parameters": run.parameters,
        "status": status,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_text(folder / "status.json", json.dumps(state, indent=1))
    return state


def finished(folder: Path) -> dict | None:
    """The state of a run that is done, else None."""
    try:
        state = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if state.get("status") == "done" else None


def reproduce(
    runs: list[Run],
    out: str | Path,
    workers: int = 1,
    submitit: str | None = None,
    parameters: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Execute what is not done yet, write table.csv, table.md and table.html in `out`, and return the table.

    workers: runs at a time on this machine, which share its cores. submitit: "local" or "slurm" instead: every run is a
    job, with submitit's own `parameters` (slurm_partition, slurm_account, gpus_per_node, timeout_min ...). The table's
    rows: COLUMNS for each measure of each run; of a failed run one row without a measure. Raises ValueError
    for no runs, under one worker, another executor, or if submitit is not installed.
    """
    if not runs or workers < 1:
        raise ValueError(f"expected at least one run and one worker, got {len(runs)} and {workers}")
    out = Path(out)
    folders = {out / run.name(): run for run in runs}
    states = {folder: finished(folder) for folder in folders}
    todo = {folder: run for folder, run in folders.items() if states[folder] is None}
    minutes = sum(run.minutes for run in todo.values()) / (1 if submitit else workers)
    print(
        f"{len(folders)} runs, {len(folders) - len(todo)} of them done; about {minutes:.0f} minutes of work", flush=True
    )
    if todo and workers == 1 and not submitit:
        for folder, run in tqdm(todo.items(), unit="run"):
            states[folder] = execute(run, folder)
    elif todo:
        with _executor(out, workers, submitit, max(run.minutes for run in todo.values()), parameters) as pool:
            jobs = {pool.submit(execute, run, folder): folder for folder, run in todo.items()}
            for job in tqdm(_as_completed(jobs, submitit), total=len(jobs), unit="run"):
                try:
                    states[jobs[job]] = job.result()
                except Exception as error:  # the process itself died
                    state = {"notebook": todo[jobs[job]].notebook.stem, "parameters": todo[jobs[job]].parameters}
                    states[jobs[job]] = state | {"status": f"failed: {type(error).__name__}: {error}", "seconds": 0.0}
    return write_table(states, out)


def _executor(out: Path, workers: int, submitit: str | None, minutes: float, parameters: Mapping[str, str] | None):
    """Processes of this machine, or jobs of a cluster."""
    if parameters and submitit is None:
        raise ValueError("parameters of jobs need an executor: --submitit slurm")
    if submitit is None:
        threads = str(max(1, (os.cpu_count() or 1) // workers))
        spawn = multiprocessing.get_context("spawn")  # a forked torch with threads may hang
        return ProcessPoolExecutor(workers, mp_context=spawn, initializer=_share_cores, initargs=(threads,))
    if submitit not in ("local", "slurm"):
        raise ValueError(f"unknown executor {submitit!r}; expected local or slurm")
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise ValueError('submitit is not installed: pip install "trex2-mini[cluster]"') from error

    jobs = AutoExecutor(folder=out / "submitit", cluster=submitit)
    given = {key: int(value) if value.isdigit() else value for key, value in (parameters or {}).items()}
    try:
        jobs.update_parameters(**{"timeout_min": math.ceil(10 + 4 * minutes), "cpus_per_task": 2} | given)
    except (NameError, TypeError, AssertionError) as error:
        raise ValueError(f"submitit does not take the parameters {given}: {error}") from error
    return contextlib.nullcontext(jobs)


def _as_completed(jobs, submitit: str | None):
    if submitit is None:
        return as_completed(jobs)
    from submitit.helpers import as_completed as submitit_completed

    return submitit_completed(list(jobs))


def _share_cores(threads: str) -> None:
    os.environ["OMP_NUM_THREADS"] = threads  # the kernels inherit it


def measures(metrics: dict, prefix: str = "") -> dict[str, float]:
    """The finite numbers of a metrics.json, nested names joined by "/"; where they come from (NOT_MEASURED) is left
    out."""
    found = {}
    for key, value in metrics.items():
        if key in NOT_MEASURED:
            continue
        if isinstance(value, dict):
            found |= measures(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found[prefix + key] = value
    return found


def write_table(states: dict[Path, dict], out: Path) -> pd.DataFrame:
    """The table of all runs {folder: state}, written as table.csv, table.md and table.html (with the notebooks'
    pictures)."""
    rows, pictures = [], []
    for folder, state in states.items():
        base = state | {"parameters": ", ".join(f"{key}={value}" for key, value in state["parameters"].items())}
        found: dict = {"": float("nan")}
        if state["status"] == "done":
            found = measures(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))) or found
            images = "".join(f'<img src="data:{kind};base64,{data}">' for kind, data in _pictures(folder)[:PICTURES])
            title = html.escape(f"{base['notebook']} ({base['parameters']})")
            pictures.append(f"<h2>{title}</h2>{images}")
        rows += [base | {"measure": key, "value": value} for key, value in found.items()]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_text(out / "table.csv", table.to_csv(index=False, lineterminator="\n"))
    write_text(out / "table.md", as_markdown(table))
    style = "<style>body{font-family:sans-serif}td{padding:2px 8px}img{max-width:48%}</style>"
    page = f"<!doctype html><meta charset=utf-8><title>trex2_mini</title>{style}"
    page += table.to_html(index=False, na_rep="", float_format="{:.4g}".format, border=0)
    write_text(out / "table.html", "\n".join([page, *pictures]))
    return table


def _pictures(folder: Path) -> list[tuple[str, str]]:
    """(MIME type, base64) of the pictures in the executed notebook."""
    cells = json.loads((folder / "executed.ipynb").read_text(encoding="utf-8"))["cells"]
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    kinds = ("image/jpeg", "image/png")
    return [(kind, "".join(own[kind]).replace("\n", "")) for own in data for kind in kinds if kind in own]
