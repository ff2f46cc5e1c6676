"""The tables of README.md, the model cards and data/results/README.md, from the files that the commands wrote.

    python data/makers/pages.py        # writes every row anew; tests/test_numbers.py holds pages and files together

A row is known by its first cell, within the page. The files: data/checkpoints/*/metrics.json (`trex2 scorecard`), data/
ablations (`trex2 ablate`), data/engines.json (`trex2 engine effect`), data/benchmarks (`trex2 benchmark`), and in data/
results photo_wild.json (`trex2 suite`), search.json (`trex2 search --measure`), tuning.json (`trex2 tuning`),
laptop.json (notebooks 13 and 15 in `trex2 reproduce --scale laptop`) and recipe.json (`trex2 train` and `evaluate`, as
the card says).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from trex2_mini.evaluation.suite import ROWS
from trex2_mini.paths import REPOSITORY
from trex2_mini.reproduction.ablations import VARIANTS, compare
from trex2_mini.reproduction.claims import CONTRADICTED, HOLDS, NOT_TESTABLE, UNDECIDED, read_ablations

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
LAPTOP = {
    "text": "Text",
    "visual-g": "Visual-G",
    "mixed": "Mixed",
    "visual-i": "Visual-I, box",
    "points": "Visual-I, point",
    "echo": "echo of the box",
    "visual-i-others": "Visual-I others",
}
ABLATED = ("text/trained", "visual-g/trained", "visual-g/novel", "visual-i-others/trained")
DRAWINGS = {
    "Visual-I: a box on the image": "visual-i",
    "Visual-I others: the instances that were *not* prompted": "visual-i-others",
    "Visual-G: 16 example images": "visual-g",
    "Text: the name of each category": "text",
    "Text, by synonyms (`--synonyms`; 311 categories)": "synonyms",
    "Mixed: (T + V) / 2": "mixed",
}
TIMES = {  # what, beside what: how it is said, and the ratios that are said: (file, what, ours, reference)
    ("deformable attention, encoder layer of an 800 x 1066 image, forward", "`transformers`' PyTorch function"): (
        "{:.1f} times as fast; {:.1f} compiled",
        ("attention", "encoder layer, 800x1066, D=256, forward", "weighted gather", "transformers"),
        ("attention", "encoder layer, 800x1066, D=256, forward", "compiled", "transformers"),
    ),
    ("the same, forward and backward", "the same"): (
        "{:.1f} times",
        ("attention", "encoder layer, 800x1066, D=256, forward + backward", "weighted gather", "transformers"),
    ),
    ("900 queries, forward", "the same"): (
        "{:.1f} times; {:.1f} compiled",
        ("attention", "900 queries, 800x1066, D=256, forward", "weighted gather", "transformers"),
        ("attention", "900 queries, 800x1066, D=256, forward", "compiled", "transformers"),
    ),
    ("`swin_t`, full pass, 800 x 1066", "Grounding DINO tiny (random weights)"): (
        "{:.1f} times as fast; {:.1f} with compiled attention",
        ("model", "swin_t 800x1066, full pass", "swin_t", "Grounding DINO tiny"),
        ("model", "swin_t 800x1066, full pass", "swin_t, compiled attention", "Grounding DINO tiny"),
    ),
    ("a further prompt on an encoded image", "a full pass"): (
        "1/{:.0f} of it for `swin_t`, 1/{:.0f} for `swin_l`, 1/{:.0f} for `nano`",
        ("model", "swin_t, a further prompt", "prompt and decode", "full pass"),
        ("model_swin_l", "swin_l, a further prompt", "prompt and decode", "full pass"),
        ("model", "nano, a further prompt", "prompt and decode", "full pass"),
    ),
    ("`nano` by hand (one thread): a further box; with a negative point", "50 ms, what feels immediate"): (
        "1/{:.1f} of it; 1/{:.1f}",
        ("interaction", "further answer: a further box", "prompt and decode", "limit"),
        ("interaction", "further answer: a negative point", "prompt and decode", "limit"),
    ),
    ("`nano`, full pass, 192 x 256", "`ultralytics`' YOLO11n (no prompts, 80 fixed classes)"): (
        "{:.2f} times as fast",
        ("model_nano_yolo", "nano 192x256, full pass", "nano", "YOLO11n"),
    ),
    ("COCO AP of 5,000 images x 300 detections", "plain pycocotools, all twelve numbers"): (
        "{:.2f} times as fast",
        (
            "evaluation_5000", "COCO AP, 5,000 images x 300 detections, 80 categories", "coco_ap: AP, AP50, AP75",
            "plain pycocotools: all 12 numbers",
        ),
    ),
    ("training step of `nano`", "the same model with `transformers`' attention"): (
        "{:.1f} times as fast",
        ("training", "nano, batch 8, 192x192, step", "ours, float32", "transformers' attention"),
    ),
    ("`nano` as ONNX under onnxruntime: encode, prompt, decode", "PyTorch, one thread, busy machine"): (
        "{:.2f}, {:.2f}, {:.2f} times as fast",
        ("onnx", "nano 192x256, encode", "onnxruntime", "PyTorch"),
        ("onnx", "nano 192x256, prompt", "onnxruntime", "PyTorch"),
        ("onnx", "nano 192x256, decode", "onnxruntime", "PyTorch"),
    ),
}  # fmt: skip


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
        cells = {
            own["pictures"]: f"{own['Visual-G']:.1f} → {own['tuned']:.1f} ({own['strength']})" for own in run["rows"]
        }
        name = run["judge"].removeprefix("photo-wild-").removesuffix("/val")
        rows.append((name, *(cells.get(pictures, "") for pictures in (2, 5, 10, 16, 20))))
    return rows


def laptop() -> list[Row]:
    """protocol | emoji-coco | emoji-lvis-minival | its AP_r, AP_c, AP_f | emoji-wild, mean | median"""
    found = read("results/laptop.json")["tables"]
    rows = []
    for key, title in LAPTOP.items():
        coco, lvis, wild = (found[name][key] for name in ("emoji-coco", "emoji-lvis-minival", "emoji-wild"))
        drawn = key not in ("text", "echo")  # by chance, so there is a deviation
        cells = [f"{own['AP']:.1f}" + (f" ± {own['std']['AP']:.1f}" if drawn else "") for own in (coco, lvis)]
        rest = (*(lvis[group] for group in ("AP_r", "AP_c", "AP_f")), wild["mean"], wild["median"])
        rows.append((title, *cells, *(f"{value:.1f}" for value in rest)))
    return rows


def verdicts() -> list[Row]:
    """whose findings | how many hold, are contradicted, undecided, not testable"""
    kinds = (HOLDS, CONTRADICTED, UNDECIDED, NOT_TESTABLE)
    counts = {"of the paper": Counter(), "of our own": Counter()}
    for claim in read("results/laptop.json")["claims"]:
        counts["of our own" if claim["paper"] == "not in the paper" else "of the paper"][claim["verdict"]] += 1
    return [(f"findings {whose}", *(str(own[kind]) for kind in kinds)) for whose, own in counts.items()]


def recipe() -> list[Row]:
    """share of cut-outs | AP of each set and protocol"""
    columns = (
        "coco-val2017 visual-i-others all", "coco-val2017 visual-i all", "coco-val2017 text all",
        "cutouts-val visual-i-others novel", "photo-wild-thermal-cheetah/val visual-i-others all",
        "photo-wild-aquarium/val visual-i-others all", "photo-wild-kuih-cakes/val visual-i-others all",
    )  # fmt: skip
    rows = read("results/recipe.json")["rows"]
    return [(arm, *(f"{own[column]['AP']:.1f}" for column in columns)) for arm, own in rows.items()]


def ablations() -> list[Row]:
    """variant | seeds | AP of each measure, and joint's under the same seeds (difference ± half its interval); the
    usual runs, then the longer ones"""
    usual, longer = (read_ablations(DATA / "ablations" / folder) for folder in ("", "longer"))
    rows = []
    for runs, others in ((usual, []), (longer, usual)):
        length = f", {runs[0]['steps']:,} steps" if others else ""
        found = compare(runs, others=others)
        for variant in sorted(found, key=list(VARIANTS).index):
            seeds = sum(run["variant"] == variant for run in runs)
            cells = []
            for measure in ABLATED:
                ap, difference, half = found[variant][measure]
                told = f"{difference:+.1f} ± {half:.1f}"
                told = f"**{told}**" if abs(difference) > half else told
                cells.append(f"{ap:.1f}" if variant == "joint" else f"{ap:.1f}, joint {ap - difference:.1f} ({told})")
            rows.append((f"{variant}{length}", str(seeds), *cells))
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


def drawings() -> list[Row]:
    """protocol | AP of trained categories | of novel ones | the echo's of both"""
    cells: dict[str, dict] = {}
    for own in scorecard("nano-emoji").values():
        if own["data"] == "emoji-val" and "AP" in own:
            protocol = "synonyms" if own.get("synonyms") else own["protocol"]
            cells.setdefault(protocol, {})[own["category_set"]] = own
    rows = []
    for title, protocol in DRAWINGS.items():
        trained, novel = (cells[protocol].get(kind, {}) for kind in ("trained", "novel"))
        echo = f"{trained['echo']:.1f} / {novel['echo']:.1f}" if "echo" in trained else ""
        rows.append((title, *(f"{round(own['AP'], 2):.1f}" if own else "" for own in (trained, novel)), echo))
    return rows


def engines() -> list[Row]:
    """measure | AP of base | the differences of both arms with pseudo-labels, with their 95 % intervals"""
    found = read("engines.json")["effect"]
    rows = []
    for measure in dict.fromkeys(own["measure"] for own in found):
        arms = {own["arm"]: own for own in found if own["measure"] == measure}
        told = (
            f"{own['difference']:+.1f} ({own['low']:+.1f} to {own['high']:+.1f})"
            for own in (arms["+text"], arms["+visual"])
        )
        rows.append((f"engines: {measure}", f"{arms['start']['AP']:.1f}", f"{arms['base']['AP']:.1f}", *told))
    return rows


def speed() -> list[Row]:
    """what | the reference of the same run | the ratio of both"""
    rows = []
    for (title, beside), (said, *asked) in TIMES.items():
        ratios = []
        for file, *key in asked:
            found = read(f"benchmarks/{file}.json")["rows"]
            ratios += [own["ratio"] for own in found if [own["what"], own["ours"], own["reference"]] == key]
        rows.append((title, beside, said.format(*ratios)))
    return rows


PAGES = {
    "README.md": [how_good],
    "data/checkpoints/nano-photo/README.md": [lambda: goals("nano-photo"), photo_wild, tuning, recipe],
    "data/checkpoints/nano-emoji/README.md": [lambda: goals("nano-emoji")],
    "data/results/README.md": [drawings, laptop, verdicts, ablations, engines, search, speed],
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
