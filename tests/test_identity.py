"""Vectors know their model; a checkpoint knows its words."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini.checkpoint import load_model, save_model, state_hash, write_tensors
from trex2_mini.detector import Detector
from trex2_mini.interactive.studio import PromptStudio
from trex2_mini.names import Vocabulary, read_aliases
from trex2_mini.prompt_bank import PromptBank

BOX = [[5, 5, 30, 30]]


@pytest.fixture(scope="module")
def detectors():
    return [Detector(seeded_model(seed=seed), TINY, "cpu") for seed in (0, 1)]


@pytest.fixture
def strict():
    """Warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Which weights


def test_a_model_and_its_half_precision_file_agree(detectors, tmp_path):
    save_model(tmp_path, detectors[0].model, TINY)
    assert state_hash(load_model(tmp_path)[0]) == detectors[0].weights != detectors[1].weights
    assert len(detectors[0].weights) == 16


def test_a_bank_of_another_model_is_refused(detectors, tmp_path, strict):
    own, other = detectors
    bank = own.embed({"coin": [(squares(0).image, BOX)]})
    bank.save(path := tmp_path / "bank.safetensors")
    again = PromptBank.load(path)
    assert again.weights == bank.weights == own.weights
    assert len(own.detect(squares(0).image, prompts=again, score_threshold=0)) > 0
    with pytest.raises(
        ValueError, match=r"bank of coin was made by a model with other weights.*embed the examples again.*insist"
    ):
        other.detect(squares(0).image, prompts=again)
    assert len(other.detect(squares(0).image, prompts=again, score_threshold=0, allow_other_model=True)) > 0


def test_official_files_say_it_too(tmp_path, strict):
    PromptBank(["coin"], torch.ones(1, 256), "abc").save_official(path := tmp_path / "coin.safetensors")
    assert list(load_file(path)) == ["visual_embedding"] and PromptBank.load(path).weights == "abc"


@pytest.mark.parametrize("key, shape", [("visual_embedding", (256,)), ("embeddings", (1, 32))])
def test_old_files_are_taken_with_a_warning(tmp_path, key, shape):
    write_tensors(path := tmp_path / "coin.safetensors", {key: torch.ones(shape)}, {"names": '["coin"]'})
    with pytest.warns(UserWarning, match="does not say which model"):
        assert PromptBank.load(path).weights == ""


def test_a_studio_leaves_another_models_vectors_out(detectors, tmp_path):
    """What was drawn stays; the vectors are in a copy of the file; a bank is refused at its button."""
    own, other = detectors
    own.embed({"coin": [(squares(0).image, BOX)]}).save(bank := tmp_path / "bank.safetensors")
    pictures, autosave = {"a.png": squares(0).image}, tmp_path / "studio.json"
    studio = PromptStudio(own, pictures, ["coin"], autosave)
    studio.canvas.prompts = [{"xyxy": BOX[0]}]
    studio.load_bank(bank)
    before = autosave.read_text()
    assert PromptStudio(own, pictures, ["coin"], autosave).session.bank.loaded.keys() == {"coin"}
    with pytest.warns(UserWarning, match="other weights and were left out"):
        studio = PromptStudio(other, pictures, ["coin"], autosave)
    assert studio.session.bank.loaded == {} and studio.canvas.boxes() == {"coin": BOX}
    kept = json.loads((tmp_path / "studio.json.other-model-1").read_text())
    assert kept["loaded"] == json.loads(before)["loaded"] and kept["weights"] == own.weights
    with pytest.raises(ValueError, match="other weights"):
        studio.load_bank(bank)
    studio.load_bank(bank, allow_other_model=True)
    assert studio.session.bank.bank().weights == other.weights


# Which words


@pytest.fixture
def reader(detectors, tmp_path):
    save_model(tmp_path, detectors[0].model, TINY)
    Vocabulary.of(["donut", "traffic light", "church", "knife"], ["old lorry"]).save(tmp_path)
    return Detector.load(tmp_path, "cpu")


@pytest.mark.parametrize("name", ["donut", "Donuts", "old  traffic light", "a donut", "churches", "lorries"])
def test_known_names(reader, name, strict):
    reader.detect(squares(0).image, text=[name])


@pytest.mark.parametrize(
    "asked, taught", [("Donuts", "donut"), ("churches", "church"), ("old lorries", "old lorry"), ("knife", "knife")]
)
def test_a_number_that_was_not_taught(reader, asked, taught, strict):
    """The plural of a known word answers as the word, under its own name: its token was never taught."""
    found, known = (reader.detect(squares(0).image, text=[name], score_threshold=0) for name in (asked, taught))
    assert found.names == [asked]
    np.testing.assert_array_equal(found.scores, known.scores)
    assert reader.vocabulary.as_taught("three zebras") == "three zebras"  # not known in any number


@pytest.mark.parametrize(
    "name, said",
    [
        ("甜甜圈", r"'甜甜圈' is not known to this checkpoint; it knows names such as \['donut'"),
        ("猫", "not known"),
        ("donat", r"nearest known names are \['donut'\]"),
        ("old zebra", r"never taught 'zebra'"),
    ],
)
def test_unknown_names(reader, name, said):
    for ask in ({"text": [name]}, {"text": "donut", "negative_text": [name]}):
        with pytest.warns(UserWarning, match=said):
            reader.detect(squares(0).image, **ask)
    with pytest.warns(UserWarning, match=said):
        reader.classify(squares(0).image, BOX, [name])


def test_aliases(reader, tmp_path, strict):
    """An alias answers as what it stands for, under its own name; several phrases as their mean."""
    image = reader.encode(squares(0).image)
    plain = reader.detect(image, text="donut", score_threshold=0)
    (tmp_path / "aliases.json").write_text(
        json.dumps({"甜甜圈": "donut", "thing": ["donut", "knife"]}), encoding="utf-8"
    )
    found = reader.use_aliases(tmp_path / "aliases.json").detect(image, text="甜甜圈", score_threshold=0)
    assert found.names == ["甜甜圈"]
    np.testing.assert_allclose(found.scores, plain.scores, atol=1e-6)
    vectors = reader.model.encode_text(["donut", "knife"]).mean(0)
    bank = PromptBank(["Thing"], vectors[None].detach())
    one, two = (reader.detect(image, score_threshold=0, **ask) for ask in ({"text": "Thing"}, {"prompts": bank}))
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-6)
    for bad in ([1], {"a": 3}, {"a": []}, {1: "b"}):
        with pytest.raises(ValueError, match="expected"):
            read_aliases(bad)
    (tmp_path / "vocabulary.json").write_text("[]")
    with pytest.raises(ValueError, match=r"vocabulary\.json: expected"):
        Detector.load(tmp_path)


def test_a_phrase_too_long_is_named():
    detector = Detector(seeded_model(), TINY, "cpu")  # 8 tokens
    with pytest.warns(UserWarning, match=r"'a very .*' has 11 tokens, of which the text tower reads 8"):
        detector.detect(squares(0).image, text="a very small red car beside the old church")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.detect(squares(0).image, text=NAMES)


def test_the_shipped_checkpoints_say_what_they_know():
    for name in ("nano-emoji", "nano-photo"):
        detector = Detector.load(name, "cpu")
        known = detector.vocabulary
        assert known.advice("donut") is None and known.advice("dog") is None and known.advice("甜甜圈")
    assert known.advice("traffic lights") is None
