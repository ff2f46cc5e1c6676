"""The commands as a user types them, on a model that builds in no time, and the checkpoint that comes with the
repository.
"""

from __future__ import annotations

import json

import pytest
from PIL import Image
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini.__main__ import main
from trex2_mini.checkpoint import SHIPPED, file_hash, load_model, save_model
from trex2_mini.evaluation.protocols import evaluate


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(folder, seeded_model(), TINY)
    return folder


@pytest.fixture(scope="module")
def squares_set(tmp_path_factory):
    """Four pictures of squares as a folder in COCO format."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "images").mkdir()
    coco = {"images": [], "annotations": [], "categories": [{"id": i + 1, "name": n} for i, n in enumerate(NAMES)]}
    for index in range(4):
        sample = squares(index)
        Image.fromarray(sample.image).save(folder / "images" / f"{index}.png")
        coco["images"].append({"id": index + 1, "file_name": f"{index}.png", "width": 64, "height": 64})
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist()):
            number = len(coco["annotations"]) + 1
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            coco["annotations"].append({"id": number, "image_id": index + 1, "category_id": label + 1, **box})
    (folder / "annotations.json").write_text(json.dumps(coco))
    return folder


def test_detect_prints_what_it_finds_and_draws_it(checkpoint, squares_set, tmp_path, capsys):
    picture = squares_set / "images" / "0.png"
    prompts = ["--text", "red square", "--box", "5", "5", "20", "20", "--point", "30", "30", "--name", "square"]
    out = tmp_path / "new folder" / "out.png"
    arguments = [
        "detect",
        str(picture),
        *prompts,
        "--checkpoint",
        str(checkpoint),
        "--threshold",
        "0",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "square" in printed and "detections with a score of at least 0.0" in printed
    assert Image.open(out).size[0] > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect", "nowhere.png", "--text", "cat"], "nowhere.png does not exist"),
        (["detect", "{picture}"], "no prompt"),
        (["detect", "{picture}", "--box", "500", "500", "600", "600"], "outside the image"),
        (["detect", "{picture}", "--text", "cat", "--threshold", "3"], "0..1"),
        (["evaluate", "--protocol", "text", "--data", "nowhere"], "no set 'nowhere'"),
        (["evaluate", "--protocol", "text", "--data", "{set}", "--categories", "novel"], "novel"),
        (["info", "--preset", "huge"], "unknown preset 'huge'"),
    ],
)
def test_mistakes_are_explained_in_one_line(arguments, message, checkpoint, squares_set, capsys):
    filled = [a.format(picture=squares_set / "images" / "0.png", set=squares_set) for a in arguments]
    assert main(filled + (["--checkpoint", str(checkpoint)] if filled[0] != "info" else [])) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error


def test_evaluate_writes_what_it_measured(checkpoint, squares_set, tmp_path, capsys):
    out = tmp_path / "deep" / "result.json"
    arguments = ["evaluate", "--protocol", "visual-i", "--data", str(squares_set), "--checkpoint", str(checkpoint)]
    assert main([*arguments, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["images"] == 4 and result["checkpoint_hash"] == file_hash(checkpoint / "model.safetensors")
    assert result["protocol"] == "visual-i" and 0 <= result["AP"] <= result["AP50"] <= 100
    assert "per_category" not in capsys.readouterr().out


def test_info_counts_every_parameter_once(capsys):
    assert main(["info", "--size", "96", "128"]) == 0
    lines = capsys.readouterr().out.splitlines()
    counts = {
        line[:24].strip(): int(line[24:].split()[0].replace(",", "")) for line in lines if line.endswith("parameters")
    }
    assert counts.pop("total") == sum(counts.values()) - counts["backbone alone"]
    assert any("tokens, 100 queries" in line for line in lines)


def test_the_shipped_checkpoint_is_small_and_its_numbers_are_its_own():
    folder = SHIPPED / "nano-emoji"
    path = load_model("nano-emoji")[2]
    assert path.stat().st_size < 25e6
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics and all(result["checkpoint_hash"] == file_hash(path) for result in metrics)
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    last_run = json.loads((folder / "config.json").read_text())["train"]["steps"]
    assert steps == sorted(steps) and steps[-1] - last_run in (0, *steps)  # it began where an earlier run ended


def test_the_shipped_checkpoint_finds_what_it_is_shown():
    """The first 40 validation scenes: far above the echo of the prompts, also on categories that were never trained."""
    result = evaluate("nano-emoji", "emoji-val", "visual-i", limit=40, progress=False)
    assert result["AP"] > 60 and result["AP"] > result["echo"] + 5
    others = evaluate("nano-emoji", "emoji-val", "visual-i-others", limit=40, progress=False)
    assert others["AP"] > 40 and others["echo"] == 0


def test_a_suite_is_a_table_with_mean_and_median(monkeypatch, capsys, tmp_path):
    from trex2_mini.evaluation import suite

    one = {"photo-wild-ships/val": "photo-wild-ships/examples"}
    monkeypatch.setattr(suite, "suites", lambda: {"photo-wild": one})
    asked = [
        "suite",
        "photo-wild",
        "--examples",
        "1",
        "--draws",
        "1",
        "--limit",
        "1",
        "--json",
        str(tmp_path / "a.json"),
    ]
    assert main(asked) == 0
    assert capsys.readouterr().out.startswith("| AP | ships | mean | median |\n")
    assert json.loads((tmp_path / "a.json").read_text())["AP"]["echo"]["mean"] > 0
