"""The tables of README.md, the model cards and data/results/README.md, from the files that the commands wrote.

    python data/makers/pages.py        # writes every row anew; tests/test_numbers.py holds pages and files together

A row is known by its first cell, within the page. The files: data/checkpoints/*/metrics.json (`trex2 scorecard`), data/
ablations (`trex2 ablate`), and in data/results photo_wild.json (`trex2 suite`), search.json (`trex2 search --measure`)
and tuning.json (`trex2 tuning`).
"""

from __future__ import annotations

import json
from pathlib import Path

from trex2_mini.evaluation.suite import ROWS
from trex2_mini.paths import REPOSITORY
from trex2_mini.reproduction.ablations import VARIANTS, compare

DATA = REPOSITORY / "data"
Row = tuple[str, ...]
WILD_ROWS = {
    "text": "Text",
    "visual-g": "Visual-G, 16",
    "mixed": "Mixed",
    "visual-i": "Visual-I, box",
    "points": "Visual-I, point",
    "echo": "echo of the box",
    "visual-i-others": "others, box",
    "points-others": "others, point",
    "template-others": "template matching, others",
    "features-others": "ImageNet features, others",
}
ABLATED = ("text/trained", "visual-g/trained", "visual-g/novel", "visual-i-others/trained")


def read(path: str) -> list | dict:
    return json.loads((DATA / path).read_text(encoding="utf-8"))


def scorecard(checkpoint: str) -> dict[str, dict]:
    return {own["line"]: own for own in read(f"checkpoints/{checkpoint}/metrics.json")}


def goals(checkpoint: str) -> list[Row]:
    """set and protocol | AP ± deviation over draws | goal | verdict"""
    rows = []
    for line, own in scorecard(checkpoint).items():
        deviation = f" ± {own['std']['AP']:.1f}" if isinstance(own.get("std"), dict) else ""
        goal = "" if own["goal"] is None else f"{own['goal']:.1f}"
        rows.append((line, f"{own['value']:.1f}{deviation}", goal, own["verdict"]))
    return rows


def how_good() -> list[Row]:
    """set | others | template | Visual-I (echo) | Visual-G | Text: the six rows of the first page"""
    columns = ("visual-i-others", "template-others", "visual-i", "echo", "visual-g", "text")
    photo, emoji, wild = scorecard("nano-photo"), scorecard("nano-emoji"), read("results/photo_wild.json")["AP"]

    def measured(label: str, *values: float | None) -> Row:
        others, template, visual, echo, generic, text = ("" if v is None else f"{round(v, 2):.1f}" for v in values)
        return label, others, template, f"{visual} ({echo})", generic, text

    def of_card(label: str, card: dict, data: str, kind: str = "all") -> Row:
        found = {
            own["protocol"]: own for own in card.values() if own["data"].endswith(data) and own["category_set"] == kind
        }
        others, visual = found["visual-i-others"], found["visual-i"]
        rest = (found.get(name, {}).get("AP") for name in ("visual-g", "text"))
        return measured(label, others["AP"], others.get("template"), visual["AP"], visual["echo"], *rest)

    return [
        of_card("COCO val2017, 70 pictures", photo, "coco-val2017"),
        measured("photo-wild, mean of six sets", *(wild[column]["mean"] for column in columns)),
        of_card("of these: infrared cheetahs", photo, "thermal-cheetah/val"),
        of_card("of these: aquarium", photo, "aquarium/val"),
        of_card("coins, one picture", photo, "coins"),
        of_card("drawings, never-trained categories (`nano-emoji`)", emoji, "emoji-val", "novel"),
    ]


def photo_wild() -> list[Row]:
    """protocol | a column a set | mean | median"""
    table = read("results/photo_wild.json")["AP"]
    return [(WILD_ROWS[key], *(f"{value:.1f}" for value in table[key].values())) for key in ROWS if key in table]


def tuning() -> list[Row]:
    """set | AP by number of labelled pictures, Visual-G -> tuned (strength)"""
    rows = []
    for run in read("results/tuning.json"):
        cells = [f"{own['Visual-G']:.1f} → {own['tuned']:.1f} ({own['strength']})" for own in run["rows"]]
        rows.append((run["judge"].split("/")[0].removeprefix("photo-wild-"), *cells))
    return rows


def ablations() -> list[Row]:
    """variant | seeds | AP of each measure, and joint's under the same seeds (difference ± half its interval)"""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((DATA / "ablations").glob("*.json"))]
    rows = []
    for variant, found in sorted(compare(runs).items(), key=lambda own: list(VARIANTS).index(own[0])):
        seeds = sum(run["variant"] == variant for run in runs)
        cells = []
        for measure in ABLATED:
            ap, difference, half = found[measure]
            told = f"{difference:+.1f} ± {half:.1f}"
            told = f"**{told}**" if abs(difference) > half else told
            cells.append(f"{ap:.1f}" if variant == "joint" else f"{ap:.1f}, joint {ap - difference:.1f} ({told})")
        rows.append((variant, str(seeds), *cells))
    return rows


def search() -> list[Row]:
    """set and question | mAP / recall at 1 / 5 / 10 of each way to look | mAP by chance"""

    def cell(scores: dict) -> str:
        return " / ".join(f"{100 * scores[key]:.0f}" for key in ("AP", "R@1", "R@5", "R@10"))

    rows = []
    for name, own in read("results/search.json").items():
        for modality in ("text", "visual", "both") if "text" in own else ():
            ways = (cell(own[modality][way]) for way in ("index", "shortlist", "shortlist 30", "everything"))
            title = f"{name}, {own['pictures']} pictures, {own['questions']} questions, {modality}"
            rows.append((title, *ways, f"{100 * own[modality]['random']['AP']:.0f}"))
    return rows


PAGES = {
    "README.md": [how_good],
    "data/checkpoints/nano-photo/README.md": [lambda: goals("nano-photo"), photo_wild, tuning],
    "data/checkpoints/nano-emoji/README.md": [lambda: goals("nano-emoji")],
    "data/results/README.md": [ablations, search],
}


def lines(page: str) -> dict[str, str]:
    """{first cell: row} of a page's rows that come from files."""
    return {row[0]: f"| {' | '.join(row)} |".replace("  ", " ") for make in PAGES[page] for row in make()}


def main() -> None:
    for page in PAGES:
        path = Path(REPOSITORY / page)
        text = path.read_text(encoding="utf-8").splitlines()
        for first, row in lines(page).items():
            places = [i for i, line in enumerate(text) if line.startswith(f"| {first} |")]
            if len(places) != 1:
                raise SystemExit(f"{page}: expected one row that begins with '| {first} |', found {len(places)}")
            text[places[0]] = row
        path.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
