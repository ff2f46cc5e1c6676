"""`trex2 detect`, `count`, `classify`, `embed`, `bank` and `video`, as a user types them."""

from __future__ import annotations

import json
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from pycocotools.coco import COCO
from tiny import NAMES, squares

from trex2_mini import Detector, PromptBank
from trex2_mini.cli import main
from trex2_mini.datasets.registry import open_dataset


@pytest.fixture
def run(checkpoint, capsys):
    """run("detect a.png --threshold 0", *more) -> what was printed; status: what is expected of it."""

    def call(line: str, *more: object, status: int = 0) -> str:
        arguments = [*line.split(), *map(str, more)]
        given = [] if arguments[0] == "bank" else ["--checkpoint", str(checkpoint)]
        assert main([*arguments, *given]) == status, capsys.readouterr()
        said = capsys.readouterr()
        return said.out if status == 0 else said.err

    return call


@pytest.fixture
def tree(squares_set, tmp_path):
    """a.png, and sub/b.png, sub/c.png in the folder `tree`."""
    folder = tmp_path / "tree"
    for index, name in enumerate(("a.png", "sub/b.png", "sub/c.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((squares_set / "images" / f"{index}.png").read_bytes())
    return folder


def test_all_outputs_of_a_tree_of_pictures(run, tree, tmp_path):
    """Names in sub-folders keep their folder, with forward slashes; an exported set is flat; all agree."""
    names = tmp_path / "names.txt"
    names.write_text("\ufeffred square\ngrün/blau\n", encoding="utf-8")
    out = tmp_path / "out"
    printed = run(
        "detect", tree, "--recursive", "--text-file", names, "--threshold", "0", "--max-detections", "5",
        "--json", out / "a.json", "--csv", out / "a.csv", "--export", out / "yolo", "--format", "yolo",
        "--crops", out / "crops", "--out", out / "drawn",
    )  # fmt: skip
    assert "pictures: 3, detections: 15, resumed: 0, unreadable: 0" in printed and "YOLO set: " in printed
    coco = COCO(str(out / "a.json"))
    assert [image["file_name"] for image in coco.dataset["images"]] == ["a.png", "sub/b.png", "sub/c.png"]
    assert [category["name"] for category in coco.dataset["categories"]] == ["red square", "grün/blau"]
    lines = (out / "a.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "picture,name,score,x1,y1,x2,y2" and len(lines) == 16 == len(coco.anns) + 1
    x, y, width, height = coco.anns[1]["bbox"]
    assert [float(v) for v in lines[1].split(",")[3:]] == pytest.approx([x, y, x + width, y + height], abs=0.01)
    assert len((out / "yolo" / "labels" / "sub_b.txt").read_text().splitlines()) == 5
    assert sorted(path.name for path in (out / "yolo" / "images").iterdir()) == ["a.png", "sub_b.png", "sub_c.png"]
    assert {path.name for path in (out / "crops").iterdir()} <= {"red square", "grün_blau"}
    assert len(list((out / "crops").rglob("*.png"))) == 15
    assert Image.open(out / "drawn" / "sub" / "b.png").size == (750, 750)
    assert not list(out.rglob("*.part*"))
    run("detect", tree, "--text", "cat", "--export", out / "voc", "--format", "voc")
    assert len(open_dataset(str(out / "voc"))) == 1  # without --recursive


def test_json_of_one_picture_and_its_size(run, tree, tmp_path):
    """A picture keeps its size where it is drawn, and JSON says in what its boxes are."""
    large = tmp_path / "large.png"
    Image.open(tree / "a.png").resize((1001, 803)).save(large)
    with plt.rc_context({"savefig.bbox": "tight"}):  # as in a notebook
        run("detect --threshold 0 --text cat", large, "--json", tmp_path / "a.json", "--out", tmp_path / "drawn.png")
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["picture"] == "large.png" and (found["height"], found["width"]) == (803, 1001)
    assert found["boxes"] == "x1, y1, x2, y2 in pixels" and set(found["detections"][0]) == {"name", "score", "box"}
    drawn = np.asarray(Image.open(tmp_path / "drawn.png").convert("RGB"), int)
    assert drawn.shape == (803, 1001, 3)
    same = np.abs(drawn - np.asarray(Image.open(large), int)).max(-1) < 3
    assert same.mean() > 0.3  # pixels that nothing was drawn over are the picture's own


def test_a_tuned_bank(run, tree, squares_set, tmp_path):
    """It says what helped on pictures that were held back; `detect` takes the decoder that lies beside the bank."""
    out = tmp_path / "mine.safetensors"
    printed = run("embed --tune --seed 1 --examples 3 --set", squares_set, "--out", out)
    assert "AP on held-back pictures (3 pictures, 3 parts" in printed and NAMES[0] in printed
    run("detect --threshold 0", tree / "a.png", "--bank", out, "--json", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["detections"]
    assert "--tune learns from a labelled set" in run(
        "embed --tune --box 1 1 9 9", tree / "a.png", "--out", out, status=2
    )


def test_negatives_take_from_scores(run, tree):
    def best(*more):
        return float(run("detect --threshold 0 --box 5 5 20 20", tree / "a.png", *more).splitlines()[0][24:30])

    for negative in (["--negative-box", 5, 5, 20, 20], ["--negative-point", 12, 12], ["--negative-text", "cat"]):
        assert best(*negative, "--beta", 5) <= best(*negative, "--beta", 0)
    same = ["--negative-box", 5, 5, 20, 20]
    assert best(*same, "--beta", 5) < best(*same, "--beta", 0)


def test_boxes_of_other_names_suppress_each_other_only_when_asked(run, tree):
    """One prompt under two names answers twice; class-agnostic, once."""
    line = f"detect {tree / 'a.png'} --threshold 0 --text cat,dog --max-detections 200"
    assert run(line).count("\n") > run(line + " --class-agnostic-nms").count("\n")


def test_an_interrupted_run_goes_on_and_two_do_not_meet(run, tree, tmp_path, monkeypatch):
    out, calls = tmp_path / "a.json", []
    detect = Detector.detect

    def stopping(self, image, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return detect(self, image, **options)

    monkeypatch.setattr(Detector, "detect", stopping)
    line = f"detect {tree} --recursive --text cat --json {out}"
    assert "interrupted" in run(line, status=130) and (tmp_path / "a.json.part").exists()
    assert "other prompts" in run(line + " --beta 0.1", status=1)
    with FileLock(tmp_path / "a.json.lock"):
        assert "another process writes" in run(line, status=1)
    assert "resumed: 2" in run(line) and len(calls) == 4 and not list(tmp_path.glob("*.part*"))


def test_full_queries_are_said_and_tiles_find_more(run, tree, checkpoint, capsys):
    """At threshold 0.001 the tiny model's queries all answer; four parts give more boxes than one picture."""
    line = ["detect", str(tree / "a.png"), "--text", "cat", "--threshold", "0.001", "--checkpoint", str(checkpoint)]
    assert main(line) == 0
    said = capsys.readouterr()
    assert "20 of 20 queries used" in said.err and "--tiles 2" in said.err
    assert main([*line, "--tiles", "3"]) == 0
    assert capsys.readouterr().out.count("\n") > said.out.count("\n")
    assert "1 to 8 parts" in run("detect --text cat --tiles 9", tree / "a.png", status=1)
    assert "--negative-text" in run("detect --text cat --tiles 2 --negative-box 1 1 9 9", tree / "a.png", status=1)


def test_a_broken_picture_is_one_line(run, tree, checkpoint, capsys):
    (tree / "broken.jpg").write_bytes(b"no picture")
    assert main(["detect", str(tree), "--recursive", "--text", "cat", "--checkpoint", str(checkpoint)]) == 0
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if "broken.jpg" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: left out: ") and "unreadable: 1" in said.out


def test_mistakes(run, tree):
    assert "make a bank with `trex2 embed`" in run("detect --recursive --box 1 1 9 9", tree, status=1)
    assert "several pictures are called a.png" in run("detect --text cat", tree / "a.png", tree / "a.png", status=1)
    assert "--recursive" in run("detect --text cat", tree.parent, status=1)
    assert "fractions" in run("detect --box 0.1 0.1 0.5 0.5", tree / "a.png", status=1)
    assert "Missing option '--box'" in run("classify --text cat", tree / "a.png", status=2)
    assert "Give PICTURE" in run("embed --out x --box 1 1 9 9", status=2)


def test_count(run, tree, tmp_path):
    printed = run(
        "count --recursive --text cat,dog --threshold 0 --max-detections 4", tree, "--csv", tmp_path / "c.csv"
    )
    assert printed.splitlines()[-1].startswith("all: ") and "sub/b.png: " in printed
    rows = [line.split(",") for line in (tmp_path / "c.csv").read_text().splitlines()]
    assert rows[0] == ["picture", "cat", "dog"] and all(int(a) + int(b) == 4 for _, a, b in rows[1:])


def test_classify(run, tree, tmp_path):
    line = "classify --text cat,dog,cow --box 5 5 20 20 --box 1 1 9 9 --top 2"
    assert len(run(line, tree / "a.png", "--json", tmp_path / "c.json").splitlines()) == 2
    (first, second) = json.loads((tmp_path / "c.json").read_text())["boxes"]
    assert first["box"] == [5, 5, 20, 20] and len(second["names"]) == 2 and 0 < sum(second["names"].values()) <= 1


def test_banks_from_a_picture_a_set_and_crops(run, tree, squares_set, checkpoint, tmp_path):
    """Each is the mean of its examples' V; banks merge by name, names are dropped, other models' are refused."""
    detector = Detector.load(checkpoint)
    one, two, whole = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "whole"))
    run("embed --box 5 5 20 20 --point 30 30 --name thing", tree / "a.png", "--out", one)
    expected = detector.embed({"thing": [(tree / "a.png", [[5, 5, 20, 20]], [[30, 30]])]})
    np.testing.assert_allclose(PromptBank.load(one).embeddings, expected.embeddings, atol=1e-6)
    run("embed --point 40 40 --name Thing", tree / "a.png", "--out", two)
    run("bank merge", one, two, "--out", two)
    other = detector.embed({"thing": [(tree / "a.png", None, [[40, 40]])]}).embeddings
    merged = PromptBank.load(two)
    assert merged.names == ["thing"]
    np.testing.assert_allclose(merged.embeddings, (expected.embeddings + other) / 2, atol=1e-6)
    run("embed --examples 2", "--set", squares_set, "--out", whole)
    assert sorted(PromptBank.load(whole).names) == sorted(NAMES)
    run("bank drop", whole, "Red  Square, blue square", "--out", whole)
    assert sorted(PromptBank.load(whole).names) == ["green square", "yellow square"]
    assert "has no 'cat'" in run("bank drop", whole, "cat", "--out", whole, status=1)

    for index in range(3):
        sample = squares(index)
        for number, (box, label) in enumerate(zip(sample.boxes.astype(int), sample.labels)):
            path = tmp_path / "crops" / NAMES[label] / f"{index}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.image[box[1] : box[3], box[0] : box[2]]).save(path)
    run("embed", "--crops", tmp_path / "crops", "--out", tmp_path / "crops.safetensors")
    own = PromptBank.load(tmp_path / "crops.safetensors")
    assert own.names == sorted(path.name for path in (tmp_path / "crops").iterdir())
    assert f"{len(own.names)} names of 32 numbers, model {detector.weights}" in run(
        "bank list", tmp_path / "crops.safetensors"
    )

    assert "red square" not in run("detect --threshold 0", tree / "a.png", "--bank", whole)
    own.weights = "0" * 16
    own.save(tmp_path / "other.safetensors")
    assert "--allow-other-model" in run("detect", tree / "a.png", "--bank", tmp_path / "other.safetensors", status=1)
    run("detect --allow-other-model", tree / "a.png", "--bank", tmp_path / "other.safetensors")
    assert "different weights" in run("bank merge", one, tmp_path / "other.safetensors", "--out", two, status=1)


# ---- video

av = pytest.importorskip("av")


@pytest.fixture
def clip(tmp_path):
    """Twelve frames of 64 x 48 px, 6 a second, in each of which a red square has moved on."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(12):
            pixels = np.full((48, 64, 3), 128, np.uint8)
            pixels[10:24, 3 * index : 3 * index + 14] = (230, 20, 20)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_by_a_box_on_one_frame(run, clip, tmp_path):
    found, drawn = tmp_path / "found.json", tmp_path / "drawn.mp4"
    line = f"video {clip} --box 9 10 23 24 --frame 3 --name square --threshold 0 --max-detections 2 --every 2"
    assert "6 frames, 12 detections, 0 resumed" in run(line, "--json", found, "--out", drawn)
    coco = json.loads(found.read_text())
    assert [image["frame_index"] for image in coco["images"]] == [0, 2, 4, 6, 8, 10]
    assert coco["videos"] == [{"id": 1, "name": "clip", "height": 48, "width": 64, "fps": 3.0}]
    assert {image["video_id"] for image in coco["images"]} == {1} and len(coco["annotations"]) == 12
    with av.open(str(drawn)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 6 and container.streams.video[0].average_rate == 3
    assert frames[0].shape == (750, 1000, 3)


def test_a_video_goes_on_and_mistakes(run, clip, tmp_path, monkeypatch):
    calls, detect = [], Detector.detect

    def stopping(self, image, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return detect(self, image, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Detector, "detect", stopping)
        run("video --text cat --limit 5", clip, "--json", tmp_path / "f.json", status=130)
    assert "5 frames" in (said := run("video --text cat --limit 5", clip, "--json", tmp_path / "f.json"))
    assert "2 resumed" in said
    end = ["--json", tmp_path / "g.json"]
    assert "no frame 99" in run("video --box 1 1 9 9 --frame 99", clip, *end, status=1)
    assert "does not exist" in run("video --text cat nowhere.mp4", *end, status=1)
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    assert "error: " in run("video --text cat", tmp_path / "broken.mp4", *end, status=1)
    assert "--negative-text" in run("video --box 1 1 9 9 --negative-point 2 2", clip, *end, status=1)
    monkeypatch.setitem(sys.modules, "av", None)
    assert "trex2-mini[video]" in run("video --text cat", clip, *end, status=1)
