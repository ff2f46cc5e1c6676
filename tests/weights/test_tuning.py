"""Tuned prompts: they learn what is shown, stop where held-back pictures say, and survive their files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini.checkpoint import CheckpointError
from trex2_mini.datasets.registry import open_dataset
from trex2_mini.detector import Detector
from trex2_mini.losses.criterion import Targets, detection_losses
from trex2_mini.weights.tuning import Tuned, _learn, _look, _with_decoder, decoder_file, labelled, load_tuned, tune
from trex2_mini.weights.tuning_curve import tuning_curve


@pytest.fixture(scope="module")
def detector():
    model = seeded_model()
    model.box_decoder.logit_bias.data.fill_(-2)
    return Detector(model, TINY, "cpu")


def pictures(number: int) -> list[tuple[np.ndarray, dict]]:
    found = []
    for sample in map(squares, range(number)):
        labels = set(sample.labels.tolist())
        found.append((sample.image, {NAMES[label]: sample.boxes[sample.labels == label] for label in labels}))
    return found


@pytest.mark.parametrize("decoder", [False, True])
def test_the_loss_falls_and_the_model_stands_still(detector, decoder):
    """On the pictures learned from; the detector that was given is as before."""
    before = {key: value.clone() for key, value in detector.model.state_dict().items()}
    known = [_look(detector, image, boxes, NAMES) for image, boxes in pictures(3)]

    def loss(vectors, own) -> float:
        with torch.no_grad():
            outputs = [(own(one.features, vectors[None], auxiliary=True), one) for one in known]
            each = [detection_losses(out, Targets([p.labels], [p.boxes]), TINY.train).values() for out, p in outputs]
            for one in known:
                one.features.kept.clear()
            return sum(float(value) for values in each for value in values)

    losses = [loss(*state) for state in _learn(detector, known, len(NAMES), 12, decoder, 0)]
    assert len(losses) == 13 and losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(value, before[key]) for key, value in detector.model.state_dict().items())
    assert all(parameter.grad is None for parameter in detector.model.parameters())


@pytest.mark.parametrize("strengths", [["vectors"], ["decoder"], ["vectors", "decoder"]])
def test_what_is_written_is_read(detector, strengths, tmp_path):
    """The report's best number of steps is the one taken; files give the same answers."""
    tuned = tune(detector, pictures(4), steps=4, strengths=strengths, every=2, progress=False)
    report = tuned.report
    best = max(ap for aps in report["AP"].values() for ap in aps.values())
    assert [list(report["AP"][kind]) for kind in strengths] == [[0, 2, 4]] * len(strengths)
    taken = strengths[0] if report["strength"] == "none" else report["strength"]
    assert report["AP"][taken][report["steps"]] == best and (report["strength"] == "none") == (report["steps"] == 0)
    assert report["pictures"] == report["folds"] == 4 and set(report["per_category"]) <= set(NAMES)
    assert (tuned.detector is detector) == (report["strength"] != "decoder")
    assert "held-back" in tuned.line and all(kind in tuned.line for kind in strengths)
    file = tmp_path / "mine.safetensors"
    decoder_file(file).write_bytes(b"of an earlier tuning")
    tuned.save(file)
    again, bank = load_tuned(detector, file)
    one, two = (
        d.detect(squares(7).image, prompts=b, score_threshold=0)
        for d, b in ((again, bank), (tuned.detector, tuned.bank))
    )
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-6)
    assert (again is detector) == (tuned.detector is detector)


def test_pictures_of_a_set(squares_set):
    """Those that hold the names asked for, with the boxes of these alone; larger draws hold the smaller ones."""
    dataset = open_dataset(str(squares_set))
    few, many = labelled(dataset, 2, names=[NAMES[0].upper()]), labelled(dataset, 4, names=[NAMES[0]])
    assert all(list(boxes) == [NAMES[0]] and len(boxes[NAMES[0]]) for _, boxes in many)
    assert all(np.array_equal(one, other) for (one, _), (other, _) in zip(few, many))
    with pytest.raises(ValueError, match="the set has no unicorn"):
        labelled(dataset, 2, names=["unicorn"])


def test_a_decoder_of_its_own_names_its_model(detector, tmp_path):
    known = [_look(detector, image, boxes, NAMES) for image, boxes in pictures(2)]
    _, own = list(_learn(detector, known, len(NAMES), 3, True, 0))[-1]
    other = _with_decoder(detector, own)
    assert other.weights != detector.weights and other.model.image_encoder is detector.model.image_encoder
    bank = dataclasses.replace(detector.embed({"a": [(squares(0).image, [[5, 5, 30, 30]])]}), weights=other.weights)
    Tuned(bank, other, {}).save(tmp_path / "a.safetensors")
    again, loaded = load_tuned(detector, tmp_path / "a.safetensors")
    assert again.weights == other.weights == loaded.weights
    with pytest.raises(CheckpointError, match="tuned from a model with other weights"):
        load_tuned(Detector(seeded_model(seed=1), TINY, "cpu"), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="load_tuned"):  # the bank alone, with the detector as it was
        detector.detect(squares(0).image, prompts=loaded)


def test_a_row_a_number_of_pictures(detector, squares_set):
    """Every AP is that of a detector and a bank; what is taken is one of the strengths."""
    table = tuning_curve(detector, str(squares_set), str(squares_set), [2, 4], limit=3, progress=False)
    assert list(table["pictures"]) == [2, 4] and table[["Visual-G", "vectors", "decoder"]].map(
        lambda ap: 0 <= ap <= 100
    ).all(axis=None)
    assert all(row.tuned in (row.vectors, row.decoder) for row in table.itertuples())
    with pytest.raises(ValueError, match="expected 9; ask for fewer"):
        tuning_curve(detector, str(squares_set), str(squares_set), [9])


@pytest.mark.parametrize(
    "wrong", [[], pictures(1), [(squares(0).image, {}), *pictures(1)]], ids=["none", "one", "empty"]
)
def test_too_few_pictures(detector, wrong):
    with pytest.raises(ValueError, match="at least two pictures with boxes"):
        tune(detector, wrong)
