"""What people's inputs differ in, kind by kind, at entry points that the rooms' own tests do not reach: the right
value, or one line that says what is wrong. Commands are called as a user calls them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini.annotations import bring, detect_folder, pictures_in
from trex2_mini.checkpoint import save_model
from trex2_mini.cli import main
from trex2_mini.config import Config
from trex2_mini.datasets.registry import open_dataset
from trex2_mini.datasets.statistics import check_pictures
from trex2_mini.detector import Detector
from trex2_mini.evaluation.protocols import evaluate
from trex2_mini.images import load_image
from trex2_mini.names import Vocabulary, unique_names
from trex2_mini.paths import read_text, write_text
from trex2_mini.plots import drawn
from trex2_mini.prompt_bank import PromptBank


@pytest.fixture(scope="module")
def detector():
    return Detector(seeded_model(), TINY, "cpu")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working folder, with a checkpoint in `model` and a set of two pictures, `set`."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model", seeded_model(), TINY)
    (tmp_path / "set" / "images").mkdir(parents=True)
    coco = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in enumerate(NAMES, 1)]}
    for number in (1, 2):
        Image.fromarray(squares(number).image).save(tmp_path / "set" / "images" / f"{number}.png")
        coco["images"].append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        coco["annotations"].append({"id": number, "image_id": number, "category_id": 1, "bbox": [5, 5, 20, 20]})
    (tmp_path / "set" / "annotations.json").write_text(json.dumps(coco))
    return tmp_path


@pytest.fixture
def says(place, capsys):
    """says("detect a.png") -> (exit status, stdout, stderr)."""

    def call(line: str, *more: object, checkpoint: bool = True) -> tuple[int, str, str]:
        given = ["--checkpoint", "model"] if checkpoint else []
        code = main([*line.split(), *map(str, more), *given])
        return code, *capsys.readouterr()

    return call


def changed(place, **first):
    """The set, its first annotation changed."""
    path = place / "set" / "annotations.json"
    coco = json.loads(path.read_text())
    coco["annotations"][0] |= first
    path.write_text(json.dumps(coco))
    return open_dataset(str(place / "set"))


# 1. lists of names


@pytest.mark.parametrize("text", ["猫。狗。", "猫|狗", "猫 | 狗 |", "猫。 狗"])
def test_a_full_stop_of_chinese_and_a_bar_separate_names(text):
    assert unique_names(text) == ["猫", "狗"]


def test_a_set_that_lacks_a_name_is_not_embedded_without_it(says):
    code, _, said = says(f"embed --set set --out bank.safetensors --text {NAMES[0].split()[-1]}x")
    assert code == 1 and "set has no" in said and NAMES[0] in said
    assert says("embed --set set --out bank.safetensors --text", NAMES[0].upper())[0] == 0
    assert PromptBank.load("bank.safetensors").names == [NAMES[0]]
    code, _, said = says("embed --set set --out bank.safetensors --text", f"{NAMES[0]}, {NAMES[3]}")
    assert code == 0 and f"left out: {NAMES[3]}" in said  # it has that category, and no picture of it


# 2. boxes


def test_boxes_of_less_than_a_pixel_and_beyond_their_picture_are_counted(place):
    less = check_pictures(changed(place, bbox=[5, 5, 0.5, 9]), progress=False)
    assert less == ["1 boxes are less than a pixel wide or high; the first on picture 1, [5, 5, 0.5, 9]"]
    changed(place, bbox=[5, 5, 90, 9])
    path = place / "set" / "annotations.json"
    coco = json.loads(path.read_text())
    assert check_pictures(open_dataset("set"), progress=False) == []  # one of two
    path.write_text(json.dumps(coco | {"annotations": coco["annotations"][:1]}))
    out = check_pictures(open_dataset("set"), progress=False)
    assert out == ["1 boxes reach out of their picture; the first on picture 1, [5, 5, 90, 9]"]


def test_a_wrong_question_is_said_before_a_folder_is_indexed(says, place):
    for wrong, words in (
        (["--image", "set/images/1.png", "--box", *"0.1 0.1 0.5 0.5".split()], "lie in 0..1"),
        (["--bank", "none.safetensors"], "no prompt bank"),
        (["--box", *"1 1 20 20".split()], "give --image"),
        (["--text", "cat", "--threshold", "7"], "--threshold"),
    ):
        code, _, said = says("search set/images", *wrong)
        assert code and words in said and not (place / "set" / "images" / ".trex2-search").exists()


# 3. vectors of other weights


def test_search_takes_a_bank_of_another_model_only_when_told(says):
    PromptBank(["a"], seeded_model().encode_text(["a"]).detach(), "0" * 16).save("other.safetensors")
    code, _, said = says("search set/images --bank other.safetensors")
    assert code == 1 and "--allow-other-model" in said
    assert says("search set/images --bank other.safetensors --allow-other-model")[0] == 0


def test_bank_list_does_not_wait_for_torch(place):
    PromptBank(["a", "b"], seeded_model().encode_text(["a", "b"]).detach(), "0" * 16).save("two.safetensors")
    code = "import sys; from trex2_mini.cli import main\n"
    code += "print(main(['bank', 'list', 'two.safetensors']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == "two.safetensors: 2 names of 32 numbers, model 0000000000000000 a b 0 False".split()


# 5. bad pictures


def test_a_bad_crop_and_a_bad_picture_of_cut_outs_are_left_out(says, place):
    for name in ("cat/a.png", "cat/b.png", "cat/c.png"):
        (place / "crops" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(squares(3).image).save(place / "crops" / name)
    (place / "crops" / "cat" / "b.png").write_bytes(b"no picture")
    (place / "crops" / ".git").mkdir()
    code, _, said = says("embed --crops crops --out bank.safetensors")
    assert code == 0 and "b.png" in said and PromptBank.load("bank.safetensors").names == ["cat"]
    changed(place, segmentation=[[1, 1, 60, 1, 60, 60, 1, 60]], bbox=[1, 1, 59, 59])
    (place / "set" / "images" / "2.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"2\.png"):
        from trex2_mini.datasets.cutout_sets import make_library

        assert make_library(open_dataset("set"), place / "cut", progress=False) == {NAMES[0]: 1}


# 6. text of other encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk"])
def test_lists_and_settings_in_other_encodings(says, place, encoding):
    (place / "names.txt").write_bytes("一片大药\ncat\n".encode(encoding))
    code, out, _ = says("count set/images/1.png --text-file names.txt --threshold 0")
    assert code == 0 and "一片大药" in out and "cat" in out
    (place / "config.json").write_bytes(TINY.to_json().encode(encoding))
    assert Config.load("config.json") == TINY


def test_what_declares_another_encoding_than_it_has(tmp_path):
    (tmp_path / "a.xml").write_bytes('<?xml encoding="gb2312"?>药片'.encode())
    with pytest.warns(UserWarning, match="says that it is gb2312, but is UTF-8"):
        assert read_text(tmp_path / "a.xml", "gb2312").endswith("药片")
    (tmp_path / "a.xml").write_bytes('<?xml encoding="gb2312"?>药片'.encode("gb2312"))
    assert read_text(tmp_path / "a.xml", "gb2312").endswith("药片")


# 8. deep pictures


def test_more_than_16_bits_are_scaled_by_what_they_hold():
    array = np.array([[0, 100_000], [131_071, -5]], np.int32)
    with pytest.warns(UserWarning, match="131071"):
        assert load_image(Image.fromarray(array))[..., 0].tolist() == [[0, 195], [255, 0]]


# 9. words


def test_a_plural_is_asked_for_as_the_name_that_was_taught(detector):
    known = Vocabulary.of(["pill", "box of matches", "glasses", "cherry"], ["red pills"])
    for given, asked in {
        "Pills": "pill", "pill": "pill", "glasses": "glasses", "cherries": "cherry", "dogs": "dogs",
    }.items():  # fmt: skip
        assert known.as_taught(given) == asked
    told = Detector(detector.model, TINY, "cpu")
    told.vocabulary = known
    own, plural = (told.ask(text=name) for name in ("pill", "pills"))
    assert plural.names == ["pills"] and (own.embeddings == plural.embeddings).all()


def test_evaluation_says_which_names_were_never_taught(detector, place):
    told = Detector(detector.model, TINY, "cpu")
    told.vocabulary = Vocabulary.of(NAMES[1:], ["square"])
    with pytest.warns(UserWarning, match=rf"1 of {len(NAMES)} names have words .* never taught.*: {NAMES[0]}"):
        evaluate(told, "set", "text", progress=False)


# 10. lossless oddities


def test_ids_and_numbers_as_tools_write_them(place):
    for odd in (
        {"id": 1.0}, {"id": None}, {"bbox": ["5", "5.0", "20", "20"]}, {"area": "400", "iscrowd": "0"},
        {"area": None, "iscrowd": None, "image_id": 1.0},
    ):  # fmt: skip
        assert changed(place, **odd)[0].boxes.tolist() == [[5, 5, 25, 25]]
    with pytest.raises(ValueError, match="bbox must be"):
        changed(place, bbox=["five", 5, 20, 20])


def test_what_exif_turns_is_said_where_the_size_is_that_before(place):
    turned = Image.Exif()
    turned[0x112] = 6
    Image.new("RGB", (40, 64)).save(place / "set" / "images" / "1.png", exif=turned)
    path = place / "set" / "annotations.json"
    coco = json.loads(path.read_text())
    coco["images"][0] |= {"width": 40, "height": 64}
    path.write_text(json.dumps(coco))
    (problem,) = check_pictures(open_dataset("set"), progress=False)
    assert "recorded as 40 x 64, is 64 x 40 as EXIF turns it" in problem


def test_hidden_files_are_no_pictures(place):
    (place / "set" / "images" / "._1.png").write_bytes(b"macOS writes these")
    (place / "set" / "images" / ".trash").mkdir()
    (place / "set" / "images" / ".trash" / "3.png").write_bytes(b"")
    for recursive in (False, True):
        assert [path.name for path in pictures_in(place / "set" / "images", recursive)] == ["1.png", "2.png"]


# 12. and what is written


def test_a_run_that_failed_before_its_first_picture_binds_nobody(detector, place):
    with pytest.raises(ValueError, match="no prompt"):
        detect_folder(detector, "set/images", "out.json", progress=False)
    assert detect_folder(detector, "set/images", "out.json", "cat", progress=False)["pictures"] == 2


def test_a_picture_of_an_earlier_set_gives_way(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
    bring(tmp_path / "old", tmp_path / "set" / "a.png")
    bring(tmp_path / "new", tmp_path / "set" / "a.png")
    bring(tmp_path / "set" / "a.png", tmp_path / "set" / "a.png")
    assert (tmp_path / "set" / "a.png").read_text() == "new" and (tmp_path / "old").read_text() == "old"


# 14. huge pictures


def test_drawing_takes_no_hundred_bytes_a_pixel():
    picture = np.full((3000, 3000, 3), 200, np.uint8)
    found = SimpleNamespace(boxes=np.array([[100, 1000, 2000, 2900]]), scores=[0.5], labels=[0], names=["cat"])
    tracemalloc.start()
    pixels = drawn(picture, found)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pixels.shape == picture.shape and most < 20 * 3000 * 3000
    assert (pixels[:800] == 200).all() and (pixels[1500, 100] != 200).any() and (pixels[1500, 1000] == 200).all()


# 15. messages


def test_mistakes_of_writing_name_what_was_asked_for(says, tmp_path):
    code, _, said = says("detect set/images/1.png --text cat --out found.xyz")
    assert code == 2 and "found.xyz: expected one of .png" in said
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/a.json cannot be written"):
        write_text(tmp_path / "file" / "a.json", "{}")
    code, _, said = says("data check emoji-vall", checkpoint=False)
    assert code == 1 and said.index("a folder with") < said.index("emoji-val,") and "emoji-wild-lineart" not in said
    (tmp_path / "ids.txt").write_text("1 two")
    assert "whole numbers, got 'two'" in says("data get coco --ids ids.txt", checkpoint=False)[2]


def test_search_by_a_whole_picture_with_a_contact_sheet(says, place):
    code, out, _ = says("search set/images --image set/images/2.png --sheet sheet.png --out page.html --top 2")
    assert code == 0 and (place / "page.html").read_text().count("<figure>") == 2
    sheet = Image.open(place / "sheet.png")
    assert sheet.width == 1224 and sheet.height > 150 and "picture: sheet.png" in out
