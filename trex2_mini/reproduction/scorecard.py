"""What a shipped checkpoint was meant to reach, and what it does reach: all its protocols from one command, goals
beside numbers.

    python -m trex2_mini scorecard --checkpoint nano-emoji --draws 3 --json data/checkpoints/nano-emoji/metrics.json

The goals were written down before the numbers were known. A set that is not on this
machine is said to be missing, not left out.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from trex2_mini.checkpoint import file_hash, load_model
from trex2_mini.datasets.emoji.sets import EMOJI_SETS
from trex2_mini.detector import Detector
from trex2_mini.evaluation.protocols import evaluate
from trex2_mini.evaluation.repeat import repeated
from trex2_mini.paths import data_root, write_text

WILD = "emoji-wild"  # the mean over its worlds
BASELINES = ("template", "features")


@dataclass(frozen=True)
class Line:
    """One number: a protocol on a set, with the AP (counting: the error in percent of the mean count) that it was to
    reach.

    above: protocols of the same set, or baselines of this line, that it was to surpass.
    """

    data: str
    protocol: str
    categories: str = "all"
    goal: float | None = None
    above: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)

    @property
    def key(self) -> str:
        return " ".join([self.data, self.protocol, self.categories, *(f"{k}={v}" for k, v in self.options.items())])


def _emoji() -> list[Line]:
    goals = {
        "visual-i": (85, 76),
        "visual-i-others": (75, 62),
        "visual-g": (76, 66),
        "text": (75, 15),
        "mixed": (None, None),
    }
    lines = [
        Line("emoji-val", protocol, categories, goal)
        for protocol, pair in goals.items()
        for categories, goal in zip(("trained", "novel"), pair)
    ]
    lines.append(Line("emoji-val", "text", "trained", 58, options={"synonyms": True}))
    lines += [Line("emoji-lvis-minival", protocol) for protocol in ("text", "visual-g")]
    lines.append(Line("emoji-lvis-minival", "mixed", above=("text", "visual-g")))
    lines += [Line(WILD, "text"), Line(WILD, "visual-g", goal=35)]
    return [*lines, Line("emoji-count", "counting"), Line("emoji-count", "counting", goal=8, options={"tiles": 8.0})]


def _photo() -> list[Line]:
    wild = "photo-wild-{}/val"
    sets = (  # with the goals of Visual-I and others (which is to surpass the baselines too), Visual-G and Text
        ("coco-val2017", 34, 12, 14, 16, "coco-train2017"),
        (wild.format("aquarium"), 24, 14, None, None, wild.format("aquarium").replace("val", "examples")),
        (wild.format("thermal-cheetah"), 36, 25, None, None, wild.format("thermal-cheetah").replace("val", "examples")),
        # its games are in the training mix: measured, not judged
        ("roboflow/chess/valid", None, None, None, None, "roboflow/chess/train"),
    )
    lines = []
    for data, visual, others, generic, text, reference in sets:
        rivals = {"above": BASELINES, "options": {"baselines": list(BASELINES)}}
        lines += [Line(data, "visual-i", goal=visual), Line(data, "visual-i-others", goal=others, **rivals)]
        lines += [Line(data, "visual-g", goal=generic, options={"reference": reference}), Line(data, "text", goal=text)]
    lines += [Line("coins", "visual-i"), Line("coins", "visual-i-others", goal=85, **rivals)]
    held_out = (("visual-i", 55), ("visual-i-others", 40), ("text", 10))  # cut-out objects of names held out
    lines += [Line("cutouts-val", protocol, "novel", goal) for protocol, goal in held_out]
    return lines + [Line("emoji-val", protocol, "trained") for protocol in ("text", "visual-i", "visual-i-others")]


LINES = {"nano-emoji": _emoji(), "nano-photo": _photo()}


def scorecard(
    checkpoint: str,
    draws: int = 1,
    limit: int | None = None,
    file: str | Path | None = None,
    source: str | Path | None = None,
    progress: bool = True,
) -> list[dict]:
    """Measure every line of a shipped checkpoint.

    Args:
        checkpoint: a key of LINES.
        draws: of the examples and prompted boxes, seeds 0 to draws - 1, whose mean is reported; text and counting draw
        nothing.
        limit: only the first so many images of each set.
        file: where the results are written after every line; those that are there for the same weights, draws and limit
        are not measured again.
        source: other weights of the same kind, to be measured against the same goals.

    Returns:
        What `evaluate` (or `repeated`) says of each line, with line (its key), draws, limit, and value, goal and
        verdict (see `judged`); of a set that is not here only line and missing.

    Raises ValueError for a checkpoint without goals and for a file that holds something else.
    """
    if checkpoint not in LINES:
        raise ValueError(f"no goals for {checkpoint!r}; there are some for {', '.join(LINES)}")
    model, config, path = load_model(source or checkpoint)
    detector, weights = Detector(model, config), {"checkpoint": checkpoint, "checkpoint_hash": file_hash(path)}
    asked = weights | {"draws": draws, "limit": limit}
    known = [r for r in _read(file) if all(r.get(key) == value for key, value in asked.items())]
    results = []
    for line in LINES[checkpoint]:
        done = next((r for r in known if r["line"] == line.key), None)
        if done is None:
            if progress:
                print(f"{line.key} ...", flush=True)
            try:
                done = _measure(detector, line, draws, limit, progress) | asked
            except FileNotFoundError as error:
                done = {"missing": str(error)}
            done = {"line": line.key, **done}
        results.append(done)
        results[-1] |= judged(line, results)
        if file:
            write_text(Path(file), json.dumps([r for r in results if "missing" not in r], indent=1) + "\n")
    return results


def _read(file: str | Path | None) -> list[dict]:
    if file is None or not Path(file).is_file():
        return []
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        return [entry for entry in content if "line" in entry]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is no list of results ({error}); give another file") from error


def _measure(detector: Detector, line: Line, draws: int, limit: int | None, progress: bool) -> dict:
    options = line.options | {"limit": limit, "progress": progress}
    draws = draws if line.protocol.startswith(("visual", "mixed")) else 1
    if line.data == WILD:
        worlds = sorted(name.split("/")[0] for name in EMOJI_SETS if name.startswith(WILD) and name.endswith("/val"))
        found = {
            w: repeated(draws, detector, f"{w}/val", line.protocol, **options, reference=f"{w}/train") for w in worlds
        }
        first = found[worlds[0]]
        by_world = {w: r["AP"] for w, r in found.items()}
        by_seed = np.mean([r.get("by_seed", {}).get("AP", [r["AP"]]) for r in found.values()], axis=0)
        kept = {key: first[key] for key in ("protocol", "versions", "commit", "seed")}
        spread = {"std": {"AP": float(np.std(by_seed, ddof=1))}} if draws > 1 else {}
        return kept | {"data": WILD, "AP": float(np.mean(list(by_world.values()))), "worlds": by_world} | spread
    if line.protocol == "counting":  # the threshold is chosen on other pictures
        tried = evaluate(detector, line.data, "counting", split="val", **options)["MAE_by_threshold"]
        return evaluate(detector, line.data, "counting", threshold=float(min(tried, key=tried.get)), **options)
    options["reference"] = _place(line.options.get("reference", "emoji-reference"))
    result = repeated(draws, detector, _place(line.data), line.protocol, line.categories, **options)
    return result | {"data": line.data}


def _place(data: str) -> str:
    """A set's name, or a folder under the root of the data."""
    folder = data.startswith("cutouts") or (
        "/" in data and data not in EMOJI_SETS and not data.startswith("photo-wild")
    )
    return str(data_root() / data) if folder else data


def judged(line: Line, results: list[dict]) -> dict:
    """value, goal and verdict ("met", "missed" or "" where nothing was asked) of the last of `results`, whose line this
    is."""
    own = results[-1]
    if "missing" in own:
        return {}
    small = line.protocol == "counting"
    value = 100 * own["MAE"] / own["mean_count"] if small else own["AP"]
    rivals = [own[name] for name in line.above if name in own]
    rivals += [r["AP"] for r in results[:-1] if r["line"] in {f"{line.data} {p} {line.categories}" for p in line.above}]
    asked = ([line.goal] if line.goal is not None else []) + rivals
    met = all(value < goal if small else value >= goal for goal in asked)
    return {
        "value": round(value, 2),
        "goal": max(asked) if asked else None,
        "verdict": ("met" if met else "missed") if asked else "",
    }


def as_table(results: list[dict]) -> pd.DataFrame:
    """AP in percent (of counting the mean error in percent of the mean count: less is better), its deviation over
    draws, goal, verdict."""
    columns = {"line": "set, protocol, categories", "value": "AP", "goal": "goal", "verdict": "verdict"}
    table = pd.DataFrame([{"verdict": "not here", **result} for result in results]).reindex(columns=[*columns, "std"])
    table["std"] = [own.get("AP") if isinstance(own, dict) else None for own in table["std"]]
    return table.rename(columns=columns | {"std": "±"})[[columns["line"], "AP", "±", "goal", "verdict"]]
