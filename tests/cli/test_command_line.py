"""The commands as a user types them, on a model that builds in no time, and the checkpoint that comes with the
repository.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import click
import pytest
from PIL import Image

from trex2_mini.checkpoint import SHIPPED, file_hash, load_model
from trex2_mini.cli import main, trex2
from trex2_mini.cli.info import peak_memory
from trex2_mini.evaluation.protocols import evaluate


def test_detect_prints_what_it_finds_and_draws_it(checkpoint, squares_set, tmp_path, capsys):
    picture = squares_set / "images" / "0.png"
    prompts = ["--text", "red square", "--box", "5", "5", "20", "20", "--point", "30", "30", "--name", "square"]
    out = tmp_path / "new folder" / "out.png"
    options = ["--checkpoint", str(checkpoint), "--threshold", "0", "--out", str(out)]
    assert main(["detect", str(picture), *prompts, *options]) == 0
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


def leaves(group: click.Group, path: str = "trex2"):
    """Every command with the words that call it."""
    for name in group.list_commands(click.Context(group)):
        own = group.get_command(click.Context(group), name)
        yield from leaves(own, f"{path} {name}") if isinstance(own, click.Group) else [(f"{path} {name}", own)]


LEAVES = dict(leaves(trex2))


@pytest.mark.parametrize("path", [*LEAVES, "trex2", "trex2 data", "trex2 engine"])
def test_every_help_has_examples_that_are_command_lines(path, capsys):
    """Two at least, each of which parses; where boxes are given, their order and unit are said."""
    assert main([*path.split()[1:], "--help"]) == 0
    shown = capsys.readouterr().out
    examples = [shlex.split(line) for line in shown.split("Examples:\n")[1].splitlines()]
    assert len(examples) >= 2
    for words in examples:
        words = words[words.index("trex2_mini" if words[0] == "torchrun" else "trex2") + 1 :]
        command, context = trex2, click.Context(trex2)
        while isinstance(command, click.Group):
            _, command, words = command.resolve_command(context, words)
        command.make_context("trex2", list(words))
    assert "X1 Y1 X2 Y2" not in shown or "in pixels" in " ".join(shown.split())


def test_help_does_not_wait_for_torch():
    lines = [[*path.split()[1:], "--help"] for path in ["trex2", *LEAVES]]
    script = f"""import sys
from trex2_mini.cli import main
status = sum(main(line) for line in {lines})
print(status, sorted({{"torch", "numpy", "PIL", "matplotlib"}} & set(sys.modules)), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "0 []\n"


def test_options_of_several_values(monkeypatch):
    """Up to the next option, repeated, or both; a negative number is a value."""
    spelled = "--seeds 0 -1 --steps 3 --variants joint --variants text visual"
    context = LEAVES["trex2 ablate"].make_context("ablate", spelled.split())
    assert context.params["seeds"] == (0, -1) and context.params["variants"] == ("joint", "text", "visual")
    assert context.params["steps"] == 3
    assert main(["ablate", "--variants", "--steps", "3"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["data"], "Missing command"),
        (["detect"], "Missing argument"),
        (["detect", "x.png", "--box", "1", "2"], "requires 4 arguments"),
        (["evaluate", "--protocol", "magic"], "'magic' is not one of"),
        (["engine", "visual", "--similarity", "1"], "No such option"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(arguments, message, capsys):
    status, said = main(arguments), capsys.readouterr().err
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1 and message in said


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("trex2_mini.config.preset", stop)
    assert main(["info"]) == 130 and capsys.readouterr().err.strip() == "interrupted"


def test_a_console_without_the_letters_shows_their_numbers(tmp_path):
    command = [sys.executable, "-m", "trex2_mini", "detect", "猫.png"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, cwd=tmp_path
    )
    assert done.returncode == 1 and "\\u732b.png does not exist" in done.stderr


def test_peak_memory_where_it_cannot_be_known(monkeypatch):
    """Windows has no module `resource`."""
    assert peak_memory().endswith(" GiB") and float(peak_memory().split()[0]) > 0
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() == "not known on this system"


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert "objects found" in capsys.readouterr().out
    assert {"00_quickstart.ipynb", "00_quickstart.html", "index.html", "hero.png", "metrics.json"} <= {
        path.name for path in (tmp_path / "demo").iterdir()
    }


def test_demo_without_the_repository(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("trex2_mini.paths.REPOSITORY", tmp_path)
    assert main(["demo"]) == 1 and "the demo needs the repository" in capsys.readouterr().err


def test_a_suite_is_a_table_with_mean_and_median(monkeypatch, capsys, tmp_path):
    from trex2_mini.evaluation import suite

    one = {"photo-wild-ships/val": "photo-wild-ships/examples"}
    monkeypatch.setattr(suite, "suites", lambda: {"photo-wild": one})
    few = ["--examples", "1", "--draws", "1", "--limit", "1", "--json", str(tmp_path / "a.json")]
    assert main(["suite", "photo-wild", *few]) == 0
    assert capsys.readouterr().out.split("\n")[0].split() == ["|", "AP", "|", "ships", "|", "mean", "|", "median", "|"]
    assert json.loads((tmp_path / "a.json").read_text())["AP"]["echo"]["mean"] > 0


def test_search_ranks_a_folder_writes_a_page_and_measures(checkpoint, squares_set, tmp_path, capsys):
    pictures, out, found = squares_set / "images", tmp_path / "found.html", tmp_path / "found.json"
    example = ["--image", str(pictures / "0.png"), "--box", "5", "5", "20", "20", "--name", "red square"]
    options = ["--checkpoint", str(checkpoint), "--index", str(tmp_path / "index"), "--out", str(out), "--top", "3"]
    assert main(["search", str(pictures), "--text", "red square", *example, *options, "--json", str(found)]) == 0
    assert out.read_text().count("<figure>") == 3 and len(json.loads(found.read_text())["hits"]) == 3
    measured = tmp_path / "measured.json"
    options = ["--checkpoint", str(checkpoint), "--measure", "--json", str(measured)]
    assert main(["search", str(squares_set), *options]) == 0
    result = json.loads(measured.read_text())
    assert result["pictures"] == 4 and result["bytes_a_picture"] == 16 * (32 + 4) * 2
    # a shortlist of all pictures loses nothing
    assert result["text"]["shortlist"] == result["text"]["everything"] and result["text"]["kept"]["30"] == 1
    assert "index" in capsys.readouterr().out
    assert main(["search", str(pictures), *options[:2]]) == 1
    assert not (pictures / ".trex2-search").exists()
    assert "no prompt" in capsys.readouterr().err
