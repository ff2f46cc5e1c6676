"""Interactive prompting without a browser: what the canvas takes and refuses; the studio's rounds, negatives, bank,
review, export, autosave.
"""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import supervision
import torch
from ipywidgets import Button
from PIL import Image
from pycocotools.coco import COCO
from safetensors.torch import load_file
from tiny import TINY, seeded_model, squares

import trex2_mini
from trex2_mini import Detector, PromptBank
from trex2_mini.images import load_image
from trex2_mini.interactive import session
from trex2_mini.interactive.canvas import LONGEST_SIDE, PromptCanvas, as_annotations, undecided
from trex2_mini.interactive.studio import FLOOR, PromptStudio
from trex2_mini.weights.tuning import tune

BOX, OTHER = [4.0, 4.0, 24.0, 28.0], [34.0, 30.0, 60.0, 55.0]


@pytest.fixture(scope="module")
def detector():
    model = seeded_model()
    model.box_decoder.logit_bias.data.fill_(0)  # an untrained model that finds something
    return Detector(model, TINY)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, name in enumerate(["a.png", "b.png"]):
        Image.fromarray(squares(index, (64, 80)).image).save(folder / name)
    return folder


@pytest.fixture
def studio(detector, pictures, tmp_path):
    return PromptStudio(detector, pictures, ["coin", "key"], autosave=tmp_path / "work.json")


def canvas(height: int = 60, width: int = 80) -> PromptCanvas:
    return PromptCanvas(np.zeros((height, width, 3), np.uint8), ["coin", "key"])


def again(studio) -> PromptStudio:
    """After the kernel was restarted: the same call as before."""
    return PromptStudio(
        studio.detector, studio.session.autosave.parent / "pictures", ["coin", "key"], autosave=studio.session.autosave
    )


# ---- the canvas


def test_a_box_drawn_from_right_to_left_and_over_the_border():
    drawn = canvas()
    drawn.prompts = [{"xyxy": [90, 50, 10.123, 20]}, {"xy": [3, 4], "negative": True, "category": "key"}]
    box, point = drawn.prompts
    assert box == {
        "id": box["id"],
        "category": "coin",
        "kind": "box",
        "negative": False,
        "xyxy": [10.12, 20.0, 80.0, 50.0],
    }
    assert point == {"id": point["id"], "category": "key", "kind": "point", "negative": True, "xy": [3.0, 4.0]}
    assert box["id"] and box["id"] != point["id"]
    assert drawn.boxes() == {"coin": [[10.12, 20.0, 80.0, 50.0]]} and drawn.boxes(negative=True) == {}
    assert drawn.points() == {} and drawn.points(negative=True) == {"key": [[3.0, 4.0]]}


BAD_PROMPTS = {
    "has no size": {"xyxy": [5, 5, 5, 9]},
    # nothing is left of it in hundredths
    "prompts\\[1\\]\\['xyxy'\\]\\[0\\] = \\[1.001, 1.0, 1.004, 9.0\\] is 0.003 px wide": {"xyxy": [1.001, 1, 1.004, 9]},
    "lies outside the image \\(80 x 60 px\\)": {"xyxy": [81, 5, 90, 9]},
    "prompts\\[1\\]\\['xy'\\]\\[0\\] = \\[-1.0, 5.0\\] lies outside": {"xy": [-1, 5]},
    "finite numbers": {"xy": [float("nan"), 5]},
    "expected a list of": {"xyxy": "everything"},
    "at least one \\[x1, y1, x2, y2\\]": {"xyxy": [1, 2, 3]},
    "expected one, got 2": {"xy": [[1, 2], [3, 4]]},
    "a box with 'xyxy' or a point with 'xy'": {"xyxy": BOX, "xy": [1, 2]},
    "or a point with 'xy', got": {"kind": "box", "xy": [1, 2]},
    "unknown category 'dog'; expected one of \\['coin', 'key'\\]": {"xy": [1, 2], "category": "dog"},
    "a dict with the keys": {"xy": [1, 2], "colour": "red"},
    "got 7": 7,
    "each id once, got \\['first'\\]": {"id": "first", "xy": [1, 2]},
}


@pytest.mark.parametrize("expected", BAD_PROMPTS)
def test_a_bad_prompt_is_refused_and_the_old_ones_stay(expected):
    drawn = canvas()
    first = {"id": "first", "xyxy": BOX}
    drawn.prompts = [first]
    before = drawn.prompts
    with pytest.raises(ValueError, match=expected):
        drawn.prompts = [first, BAD_PROMPTS[expected]]
    assert drawn.prompts == before
    with pytest.raises(ValueError, match=expected):
        drawn.set_state({"prompts": [first, BAD_PROMPTS[expected]]})  # as a message from the browser
    assert drawn.prompts == before


def test_a_message_from_the_browser_is_brought_into_form():
    drawn, seen = canvas(), []
    drawn.observe(lambda change: seen.append(change["new"]), "prompts")
    drawn.set_state(
        {"prompts": [{"id": "a", "category": "key", "kind": "box", "negative": True, "xyxy": [20, 20, -5, 10]}]}
    )
    assert drawn.boxes(negative=True) == {"key": [[0.0, 10.0, 20.0, 20.0]]} and seen == [drawn.prompts]


def test_a_thousand_prompts():
    drawn, start = canvas(), time.perf_counter()
    drawn.prompts = [{"xyxy": [i % 70, i % 50, i % 70 + 5, i % 50 + 5], "negative": i % 2 == 1} for i in range(1000)]
    assert time.perf_counter() - start < 2
    assert len({prompt["id"] for prompt in drawn.prompts}) == 1000
    assert len(drawn.boxes()["coin"]) == len(drawn.boxes(negative=True)["coin"]) == 500


@pytest.mark.parametrize(
    "bad, expected",
    [
        ([], "at least one category"),
        (["coin", "coin "], "each name once"),
        ([{"name": " "}], "expected a name"),
        ([3], "expected a name"),
        ([{"name": "coin", "colour": "reddish"}], "expected a colour"),
        (["key"], "\\['coin'\\] have prompts"),
    ],
)
def test_bad_categories(bad, expected):
    drawn = canvas()
    drawn.prompts = [{"xyxy": BOX}]
    with pytest.raises(ValueError, match=expected):
        drawn.categories = bad
    assert drawn.names() == ["coin", "key"]


def test_categories_have_colours_and_one_is_active():
    drawn = canvas()
    assert [c["colour"] for c in drawn.categories] == ["#1f77b4", "#ff7f0e"] and drawn.active == "coin"
    drawn.categories = [{"name": "dog", "colour": "red"}]
    assert drawn.categories == [{"name": "dog", "colour": "#ff0000"}] and drawn.active == "dog"
    with pytest.raises(ValueError, match="expected one of \\['dog'\\], got 'coin'"):
        drawn.active = "coin"


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"state": "perhaps"}, "a state of"),
        ({"score": 1.5}, "a score in 0..1"),
        ({"score": None}, "a score in 0..1"),
        ({"box": [1, 1, 1, 1]}, "has no size"),
        ({"size": 3}, "a dict with the keys"),
    ],
)
def test_bad_detections(change, expected):
    good = {"box": BOX, "label": "coin", "score": 0.5}
    drawn = canvas()
    drawn.detections = [good]
    assert drawn.detections[0]["state"] == "proposed"
    with pytest.raises(ValueError, match=expected):
        drawn.detections = [good | change]
    assert len(drawn.detections) == 1


def test_another_image_takes_the_old_prompts_away():
    drawn = canvas()
    drawn.prompts, old = [{"xyxy": [50, 40, 79, 59]}], drawn.image_src
    drawn.set_image(np.full((20, 30, 3), 255, np.uint8))
    assert (drawn.height, drawn.width, drawn.prompts) == (20, 30, []) and drawn.image_src not in ("", old)


def test_a_large_image_is_sent_smaller_but_keeps_its_coordinates():
    drawn = canvas(100, 3 * LONGEST_SIDE)
    assert drawn.image_src.startswith("data:image/png;base64,") and drawn.width == 3 * LONGEST_SIDE
    drawn.set_image(np.zeros((1200, 1500, 3), np.uint8))
    assert drawn.image_src.startswith("data:image/jpeg;base64,")
    drawn.prompts = [{"xyxy": [1400, 1100, 1500, 1200]}]
    assert drawn.boxes() == {"coin": [[1400.0, 1100.0, 1500.0, 1200.0]]}


def test_the_browsers_half_uses_traits_that_there_are():
    source = Path(trex2_mini.__file__).parent.joinpath("interactive", "canvas.js").read_text(encoding="utf-8")
    used = set(re.findall(r'(?:get|write)\("(\w+)"', source))
    synced = {name for name in canvas().traits(sync=True) if not name.startswith("_")}
    assert used and used <= synced and {"prompts", "detections", "image_src", "active"} <= used


def test_what_is_decided():
    accepted = {"box": BOX, "label": "coin", "score": 0.9, "state": "accepted"}
    near = [BOX[0] + 1, *BOX[1:]]
    proposals = [{"box": near, "label": "coin"}, {"box": near, "label": "key"}, {"box": OTHER, "label": "coin"}]
    assert undecided(proposals, [accepted]) == proposals[2:]
    assert undecided(proposals, [accepted | {"state": "rejected"}]) == proposals[1:]
    assert undecided(proposals, []) == proposals and undecided([], [accepted]) == []


def test_a_drawn_box_is_an_annotation_unless_its_object_was_accepted():
    reviewed = [
        {"box": BOX, "label": "coin", "score": 0.9, "state": "accepted"},
        {"box": OTHER, "label": "coin", "score": 0.8, "state": "rejected"},
    ]
    prompts = [
        {"kind": "box", "category": "coin", "negative": False, "xyxy": [5.0, 4, 24, 28]},
        {"kind": "box", "category": "key", "negative": False, "xyxy": OTHER},
        {"kind": "box", "category": "key", "negative": True, "xyxy": BOX},
        {"kind": "point", "category": "key", "negative": False, "xy": [1.0, 1]},
    ]
    found = as_annotations(prompts, reviewed, ["key"])
    assert found.boxes.tolist() == [BOX, OTHER] and [found.names[label] for label in found.labels] == ["coin", "key"]
    np.testing.assert_allclose(found.scores, [0.9, 1])


# ---- the studio: asking


def shown(studio) -> list[tuple]:
    return [(d["label"], *d["box"], d["score"]) for d in studio.canvas.detections]


def expected(detector, image, threshold: float, **asked) -> list[tuple]:
    found = detector.detect(image, score_threshold=threshold, **asked)
    rows = zip(found.labels.tolist(), found.boxes.tolist(), found.scores.tolist())
    return [(found.names[label], *(round(v, 2) for v in box), round(score, 4)) for label, box, score in rows]


def test_each_round_is_the_detectors_own_answer(studio, detector, pictures):
    assert studio.canvas.detections == [] and "nothing is asked" in studio.message.value
    studio.threshold.value = 0.4
    studio.canvas.prompts = [{"xyxy": BOX}]
    first = shown(studio)
    assert first and first == expected(detector, pictures / "a.png", 0.4, boxes={"coin": [BOX]})
    studio.canvas.prompts = [
        *studio.canvas.prompts,
        {"xy": [50, 40], "category": "key"},
        {"xyxy": OTHER, "negative": True},
    ]
    asked = {"boxes": {"coin": [BOX]}, "points": {"key": [[50, 40]]}, "negative_boxes": {"coin": [OTHER]}}
    assert shown(studio) == expected(detector, pictures / "a.png", 0.4, **asked)
    studio.beta.value = 1.5
    assert shown(studio) == expected(detector, pictures / "a.png", 0.4, beta=1.5, **asked)
    rounds = [entry for entry in studio.history if entry["what"] == "answer"]
    assert [(r["prompts"], r["negatives"]) for r in rounds] == [(1, 0), (2, 1), (2, 1)] and all(
        r["ms"] > 0 for r in rounds
    )
    assert "round 3: 2 drawn, 1 negative" in studio.timing.value and "encoded in" in studio.timing.value


def test_a_negative_of_what_is_not_asked_for_speaks_against_all(studio, detector, pictures):
    studio.threshold.value, studio.beta.value = FLOOR, 1.0
    studio.canvas.prompts = [{"xyxy": BOX}, {"xyxy": OTHER, "category": "key", "negative": True}]
    against = {"boxes": {"coin": [BOX]}, "beta": 1.0}
    assert shown(studio) == expected(detector, pictures / "a.png", FLOOR, negative_boxes=[OTHER], **against)
    assert shown(studio) != expected(detector, pictures / "a.png", FLOOR, **against)
    studio.negative_text.value = "dog"
    assert shown(studio) == expected(
        detector, pictures / "a.png", FLOOR, negative_boxes=[OTHER], negative_text="dog", **against
    )


def test_an_image_is_encoded_once_and_the_threshold_needs_no_model(studio, detector, monkeypatch):
    calls = []
    monkeypatch.setattr(detector, "encode", lambda image: calls.append(image))
    studio.canvas.prompts = [{"xyxy": BOX}]
    studio.canvas.prompts = [{"xy": [50, 40]}]
    monkeypatch.setattr(detector, "detect", lambda *_, **__: pytest.fail("the model ran"))
    counts = []
    for threshold in (FLOOR, 0.5, 0.6, 1.0):
        studio.threshold.value = threshold
        counts.append(len(studio.canvas.detections))
        assert all(d["score"] >= threshold for d in studio.canvas.detections)
    assert calls == [] and counts[0] > counts[-1] == 0 and counts == sorted(counts, reverse=True)


def test_the_four_workflows(studio, detector, pictures):
    studio.canvas.prompts, studio.threshold.value = [{"xyxy": BOX}], FLOOR
    studio.collect()
    studio.choose("b.png")
    studio.canvas.prompts = [{"xyxy": OTHER, "category": "key"}]
    bank, image = detector.embed({"coin": [(pictures / "a.png", [BOX])]}), pictures / "b.png"
    studio.text.value = "dog, key"
    asked = {
        "interactive": {"boxes": {"key": [OTHER]}},
        "text": {"text": ["dog", "key"]},
        "generic": {"prompts": bank},
        "mixed": {"boxes": {"key": [OTHER]}, "text": ["dog", "key"], "prompts": bank},
    }
    answers = []
    for workflow, prompts in asked.items():
        studio.workflow.value = workflow
        answers.append(shown(studio))
        assert answers[-1] and answers[-1] == expected(detector, image, FLOOR, **prompts), workflow
    assert len({str(answer) for answer in answers}) == 4
    assert studio.canvas.names() == ["coin", "key", "dog"], (
        "words join the categories, so that negatives can be drawn for them"
    )
    assert "<b>dog</b>" in studio.counts.value


def test_mistakes_are_shown_and_raised(studio, pictures):
    with pytest.raises(ValueError, match=r"no picture 'c.png' here"):
        studio.choose("c.png")
    studio.canvas.prompts = [{"xyxy": BOX}]
    studio.collect()
    (pictures / "a.png").unlink()
    with pytest.warns(UserWarning, match=r"no picture 'a.png' here"):  # it opens all the same
        studio.workflow.value = "generic"
        fresh = again(studio)
    assert fresh.current == "b.png"
    with pytest.raises(ValueError, match=r"no picture 'a.png' here"):
        fresh.workflow.value = "mixed"
    assert "no picture" in fresh.message.value
    fresh.drop(0)
    assert again(fresh).session.bank.examples == []


def test_words_with_a_comma_too_many(studio, detector, pictures):
    studio.workflow.value, studio.threshold.value, studio.text.value = "text", FLOOR, "dog, ,cat,"
    assert shown(studio) == expected(detector, pictures / "a.png", FLOOR, text=["dog", "cat"])


def press(studio, text: str) -> None:
    def buttons(widget):
        found = [widget] if isinstance(widget, Button) else []
        return found + [b for child in getattr(widget, "children", ()) for b in buttons(child)]

    (button,) = [b for b in buttons(studio) if b.description == text]
    button.click()


def test_a_button_shows_its_mistakes(studio):
    press(studio, "Collect examples")
    assert "draw boxes around examples" in studio.message.value
    press(studio, "Save bank")
    assert "the bank is empty" in studio.message.value
    press(studio, "Export")
    assert "nothing to export" in studio.message.value


def test_no_image(detector, tmp_path):
    with pytest.raises(ValueError, match="no image"):
        PromptStudio(detector, [])
    with pytest.raises(ValueError, match="holds no picture"):
        PromptStudio(detector, tmp_path)
    with pytest.raises(FileNotFoundError):
        PromptStudio(detector, tmp_path / "a.png")


def test_pictures_of_every_kind(detector, pictures):
    studio = PromptStudio(detector, {"array": squares(3).image, "pil.png": Image.open(pictures / "a.png")})
    assert list(studio.session.sources) == ["array.png", "pil.png"]
    assert studio.add_image(pictures / "b.png") == "b.png" and studio.current == "b.png"
    assert studio.add_image(pictures / "b.png") == "b.png", "the same file is the same image"
    assert studio.add_image(squares(4).image, "b.png") == "b-2.png"
    assert list(studio.chooser.options) == ["array.png", "pil.png", "b.png", "b-2.png"]


# ---- review, bank, export


def test_what_was_decided_lasts_through_further_rounds(studio):
    studio.threshold.value = 0.4
    studio.canvas.prompts = [{"xyxy": BOX}]
    first, second, *rest = studio.canvas.detections
    moved = [v + 0.5 for v in first["box"][:2]] + first["box"][2:]
    studio.canvas.detections = [first | {"state": "accepted", "box": moved}, second | {"state": "rejected"}, *rest]
    studio.canvas.prompts = [*studio.canvas.prompts, {"xy": [50, 40]}]
    now = {d["id"]: d for d in studio.canvas.detections}
    assert (
        now[first["id"]]["box"] == moved
        and now[first["id"]]["state"] == "accepted"
        and now[second["id"]]["state"] == "rejected"
    )
    assert "(1 accepted)" in studio.counts.value
    studio.threshold.value = 1.0
    assert {d["id"] for d in studio.canvas.detections} == {first["id"], second["id"]}, (
        "the threshold hides proposals only"
    )
    studio.canvas.detections = [first, second]  # undone
    studio.threshold.value = 0.4
    assert all(d["state"] == "proposed" for d in studio.canvas.detections)


def test_a_bank_by_hand(studio, detector, pictures, tmp_path):
    studio.canvas.prompts = [
        {"xyxy": BOX},
        {"xyxy": OTHER, "category": "key"},
        {"xyxy": [1, 1, 9, 9], "negative": True},
    ]
    assert studio.collect() == 2 and studio.collect() == 0
    studio.choose("b.png")
    studio.canvas.prompts = [{"xyxy": OTHER}, {"xyxy": [30, 2, 50, 20]}]
    assert studio.collect() == 2
    assert len(studio.gallery.children) == 4 and 'alt="coin, a.png"' in studio.gallery.children[0].children[0].value
    studio.drop(3)
    a, b = pictures / "a.png", pictures / "b.png"
    embedded = detector.embed({"coin": [(a, [BOX]), (b, [OTHER])], "key": [(a, [OTHER])]})
    bank = studio.session.bank.bank()
    assert bank.names == ["coin", "key"]
    torch.testing.assert_close(bank.embeddings, embedded.embeddings)
    studio.save_bank(tmp_path / "bank.safetensors")
    loaded = PromptBank.load(tmp_path / "bank.safetensors")
    torch.testing.assert_close(loaded.embeddings, bank.embeddings)

    fresh = PromptStudio(detector, pictures)
    fresh.load_bank(tmp_path / "bank.safetensors")
    fresh.workflow.value, fresh.threshold.value = "generic", FLOOR
    assert shown(fresh) == expected(detector, a, FLOOR, prompts=loaded)
    press_drop = fresh.gallery.children[0].children[1]
    press_drop.click()
    assert fresh.session.bank.bank().names == ["key"] and len(fresh.gallery.children) == 1
    with pytest.raises(ValueError, match="no example 'coin' to drop"):
        fresh.drop("coin")


def test_tuned_on_what_was_accepted(studio, detector):
    """The tuned vectors are those of `weights.tuning`, and the next answer is given by them."""
    labelled = []
    for name in ("a.png", "b.png"):
        studio.choose(name)
        studio.canvas.detections = [{"label": "coin", "score": 0.5, "box": BOX, "state": "accepted"}]
        labelled.append((studio.session.image(name), {"coin": [BOX]}))
    with pytest.raises(ValueError, match="at least two pictures"):
        PromptStudio(detector, {"c.png": squares(3).image}).tune()
    tuned, alone = studio.tune(), tune(detector, labelled, strengths=["vectors"], progress=False)
    torch.testing.assert_close(tuned.bank.embeddings, alone.bank.embeddings)
    torch.testing.assert_close(studio.session.bank.bank().embeddings, alone.bank.embeddings)
    assert "held-back" in studio.message.value


def test_banks_of_another_width_are_refused(studio, tmp_path):
    PromptBank(["coin"], torch.zeros(1, 256)).save_official(tmp_path / "coin.safetensors")
    with pytest.raises(ValueError, match=r"expected a prompt bank of shape \[1, 32\]"):
        studio.load_bank(tmp_path / "coin.safetensors")
    studio.canvas.prompts = [{"xyxy": BOX}]
    studio.collect()
    with pytest.raises(ValueError, match="one category of 256 numbers"):
        studio.save_bank(tmp_path / "official.safetensors", official=True)


def test_the_official_file_for_a_model_of_256(studio, tmp_path, monkeypatch):
    studio.canvas.prompts = [{"xyxy": BOX}]
    studio.collect()
    monkeypatch.setattr(
        studio.detector, "embed", lambda examples: PromptBank(list(examples), torch.arange(256.0)[None])
    )
    studio.save_bank(tmp_path / "coin.safetensors", official=True)
    tensors = load_file(tmp_path / "coin.safetensors")
    assert list(tensors) == ["visual_embedding"] and tensors["visual_embedding"].tolist() == list(range(256))


def test_a_folder_with_the_bank(studio, pictures, tmp_path):
    studio.canvas.prompts = [{"xyxy": BOX}]
    studio.collect()
    studio.workflow.value, studio.threshold.value = "generic", 0.5
    result = studio.detect_folder(pictures, tmp_path / "found.json")
    written = json.loads((tmp_path / "found.json").read_text())
    assert result["pictures"] == 2 and result["detections"] == len(written["annotations"]) > 0


@pytest.mark.parametrize("format", ["coco", "yolo", "voc"])
def test_exports_are_read_by_others(studio, tmp_path, format):
    studio.threshold.value = 0.6
    studio.canvas.prompts = [{"xyxy": BOX}]
    studio.accept_shown()
    studio.choose("b.png")
    studio.canvas.prompts = [{"xyxy": [10.0, 12, 40, 50], "category": "key"}]
    truth = {
        name: sorted(
            (own.names[label], *np.rint(box).astype(int).tolist()) for box, label in zip(own.boxes, own.labels)
        )
        for name, (_, _, own) in studio.annotations().items()
    }
    assert len(truth["a.png"]) > 1 and truth["b.png"] == [("key", 10, 12, 40, 50)]
    path = studio.export(tmp_path / "set", format)
    pictures = {"coco": path.parent / "images", "yolo": path.parent / "images", "voc": path.parent / "JPEGImages"}[
        format
    ]
    if format == "coco":
        coco = COCO(str(path))
        assert {(own["width"], own["height"]) for own in coco.imgs.values()} == {(80, 64)}
        rows = [
            (coco.imgs[a["image_id"]]["file_name"], coco.cats[a["category_id"]]["name"], a["bbox"])
            for a in coco.anns.values()
        ]
        read = {
            name: sorted(
                (c, *np.rint([x, y, x + w, y + h]).astype(int).tolist()) for n, c, (x, y, w, h) in rows if n == name
            )
            for name in truth
        }
    else:
        if format == "yolo":
            dataset = supervision.DetectionDataset.from_yolo(str(pictures), str(path.parent / "labels"), str(path))
        else:
            dataset = supervision.DetectionDataset.from_pascal_voc(str(pictures), str(path))
        read = {
            Path(name).name: sorted(
                (dataset.classes[c], *np.rint(box).astype(int).tolist()) for box, c in zip(own.xyxy, own.class_id)
            )
            for name, _, own in dataset
        }
    assert read.keys() == truth.keys()
    for name in truth:
        assert [row[0] for row in read[name]] == [row[0] for row in truth[name]]
        np.testing.assert_allclose([row[1:] for row in read[name]], [row[1:] for row in truth[name]], atol=1)


# ---- nothing is lost


def test_everything_is_there_after_a_restart(studio, tmp_path):
    studio.canvas.prompts = [{"xyxy": BOX}, {"xy": [50, 40], "negative": True, "category": "key"}]
    studio.collect()
    studio.accept_shown()
    studio.canvas.categories = [*studio.canvas.categories, {"name": "dog", "colour": "red"}]
    studio.canvas.active = "dog"
    PromptBank(["cat"], torch.randn(1, 32)).save(tmp_path / "cat.safetensors")
    studio.load_bank(tmp_path / "cat.safetensors")
    studio.choose("b.png")
    studio.canvas.prompts = [{"xy": [5, 5]}]
    studio.threshold.value, studio.beta.value, studio.workflow.value, studio.text.value = 0.45, 0.7, "mixed", "sun"
    fresh = again(studio)
    assert (
        fresh.current == "b.png" and fresh.canvas.prompts == studio.canvas.prompts and "went on" in fresh.message.value
    )
    assert shown(fresh) == shown(studio) != []
    assert fresh.canvas.categories == studio.canvas.categories and fresh.canvas.active == "dog"
    assert [getattr(fresh, key).value for key in ("threshold", "beta", "workflow", "text")] == [
        0.45,
        0.7,
        "mixed",
        "sun",
    ]
    assert fresh.session.bank.examples == studio.session.bank.examples and len(fresh.gallery.children) == 2
    torch.testing.assert_close(fresh.session.bank.bank().embeddings, studio.session.bank.bank().embeddings)
    studio.choose("a.png"), fresh.choose("a.png")
    assert fresh.canvas.prompts == studio.canvas.prompts and len(fresh.canvas.prompts) == 2
    accepted = [d for d in fresh.canvas.detections if d["state"] == "accepted"]
    assert accepted and accepted == [d for d in studio.canvas.detections if d["state"] == "accepted"]


def test_uploads_are_kept(studio, pictures, tmp_path):
    content = (pictures / "a.png").read_bytes()
    upload = {
        "name": "mine.png",
        "type": "image/png",
        "size": len(content),
        "content": memoryview(content),
        "last_modified": datetime.now(),
    }
    studio.upload.value = (upload,)
    assert studio.current == "mine.png"
    studio.canvas.prompts = [{"xyxy": BOX}]
    assert (tmp_path / "work_uploads" / "mine.png").read_bytes() == content
    fresh = again(studio)
    assert fresh.current == "mine.png" and fresh.canvas.boxes() == {"coin": [BOX]}
    with pytest.raises(ValueError, match="not a readable picture"):
        studio.upload.value = (upload | {"name": "text.png", "content": memoryview(b"no picture")},)


DAMAGES = {
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "another format": lambda text: text.replace("studio 1", "studio 9"),
    "no JSON object": lambda text: "[1, 2]",
    "a box outside": lambda text: text.replace(json.dumps(BOX), "[900, 900, 950, 950]"),
    "a missing part": lambda text: text.replace('"examples"', '"samples"'),
    "a wrong setting": lambda text: text.replace('"interactive"', '"telepathic"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_autosave_file_is_kept_aside(studio, damage):
    path = studio.session.autosave
    studio.canvas.prompts = [{"xyxy": BOX}]
    damaged = DAMAGES[damage](path.read_text(encoding="utf-8"))
    for number in (1, 2):
        path.write_text(damaged, encoding="utf-8")
        with pytest.warns(UserWarning, match=f"moved to work.json.damaged-{number}"):
            fresh = again(studio)
        assert fresh.canvas.prompts == [] and "could not be used" in fresh.message.value
        assert path.with_name(f"work.json.damaged-{number}").read_text(encoding="utf-8") == damaged
    fresh.canvas.prompts = [{"xyxy": OTHER}]
    assert again(fresh).canvas.boxes() == {"coin": [OTHER]}, "a new file was begun"


def test_an_image_that_has_another_size_now(studio, pictures):
    studio.canvas.prompts = [{"xyxy": OTHER}]
    Image.fromarray(squares(5, (40, 40)).image).save(pictures / "a.png")
    fresh = again(studio)
    assert fresh.canvas.prompts == [] and fresh.canvas.width == 40
    assert json.loads(studio.session.autosave.read_text())["work"]["a.png of 80 x 64 px"]["prompts"][0]["xyxy"] == OTHER


def test_work_on_an_image_that_is_not_there_now_stays_in_the_file(studio, pictures):
    studio.canvas.prompts = [{"xyxy": BOX}]
    (pictures / "a.png").rename(pictures.parent / "a.png")
    fresh = again(studio)
    assert fresh.current == "b.png"
    fresh.canvas.prompts = [{"xy": [3, 3]}]
    (pictures.parent / "a.png").rename(pictures / "a.png")
    last = again(fresh)
    last.choose("a.png")
    assert last.canvas.boxes() == {"coin": [BOX]}


# Pictures are opened when they are looked at


def test_a_bad_picture_does_not_refuse_the_folder(detector, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(np.full((40, 50, 3), 99, np.uint8)).save(tmp_path / name)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.warns(UserWarning, match=r"a\.png is not a readable picture"):
        studio = PromptStudio(detector, tmp_path)
    assert studio.current == studio.chooser.value == "b.png" and list(studio.session.sources) == ["b.png", "c.png"]
    with pytest.raises(ValueError, match="not a readable picture"):
        studio.add_image(tmp_path.joinpath("d.png").write_bytes(b"none") and tmp_path / "d.png")
    assert "d.png" not in studio.session.sources
    with pytest.raises(ValueError, match="not a readable picture"):
        PromptStudio(detector, tmp_path / "a.png")


def test_a_folder_opens_without_decoding_it(detector, tmp_path, monkeypatch):
    for index in range(20):
        Image.fromarray(np.full((40, 50, 3), index, np.uint8)).save(tmp_path / f"{index:02d}.png")
    opened = []
    monkeypatch.setattr(session, "load_image", lambda source: opened.append(source) or load_image(source))
    studio = PromptStudio(detector, tmp_path)
    assert {path.name for path in opened} == {"00.png"} and len(studio.chooser.options) == 20


def test_an_autosave_file_that_cannot_be_written(detector, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be written .*so nothing is kept"):
        studio = PromptStudio(detector, pictures, autosave=tmp_path / "file" / "studio.json")
    assert "cannot be written" in studio.message.value and studio.current
    with pytest.raises(ValueError, match="cannot be written"):
        studio.canvas.prompts = [{"xyxy": [1, 1, 20, 20]}]


def test_words_of_any_script(studio):
    """Separators of every script; a word that is a category in another spelling is that category."""
    studio.canvas.categories = ["Red square"]
    studio.workflow.value = "text"
    studio.threshold.value = 0.05
    studio.text.value = "red  SQUARE、猫；dog . "
    assert studio.canvas.names() == ["Red square", "猫", "dog"]
    assert {detection["label"] for detection in studio.canvas.detections} <= {"Red square", "猫", "dog"}
