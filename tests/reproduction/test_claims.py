"""All protocols at once give the numbers of one at a time; the claims table computes its verdicts; every finding is one
of the paper's.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from colours import Colours, write_set

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.evaluation.bank import visual_bank, visual_banks
from trex2_mini.evaluation.bootstrap import bootstrap_difference
from trex2_mini.evaluation.protocols import evaluate
from trex2_mini.evaluation.together import pieces, together
from trex2_mini.evaluation.trial import Trial
from trex2_mini.reproduction import claims
from trex2_mini.reproduction.claims import (
    CONTRADICTED,
    HOLDS,
    NOT_TESTABLE,
    UNDECIDED,
    Finding,
    Resampled,
    compared,
    crop_ranks,
    findings,
    over_seeds,
    over_sets,
    prompts_sweep,
    read_ablations,
    sweep_sets,
    sweep_spread,
)


class Features(list):
    """The images themselves, with what ImageFeatures keeps for further prompts."""

    def __init__(self, images):
        super().__init__(images)
        self.kept = {}


class Painter(Colours):
    def encode_batch(self, images):
        return Features(images)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> CocoDataset:
    return write_set(tmp_path_factory.mktemp("sets") / "val")


@pytest.fixture(scope="module")
def found(data):
    return together(Painter(), data, data, examples=1, draws=2, seed=3, progress=False)


def test_the_numbers_are_those_of_evaluate(data, found):
    """One protocol, one draw at a time: the mean is the same to the last bit."""
    measured = found.measured()
    for protocol in ("text", "visual-g", "mixed", "visual-i", "visual-i-others", "region", "region-visual"):
        key = "top1" if protocol.startswith("region") else "AP"
        single = [
            evaluate(Painter(), data, protocol, reference=data, examples=1, seed=s, progress=False) for s in (3, 4)
        ]
        draws = measured[protocol]["draws"]
        assert measured[protocol][key] == np.mean([own[key] for own in single[:draws]]), protocol
        if draws == 2:
            assert measured[protocol]["std"][key] == np.std([own[key] for own in single], ddof=1)
        if protocol.startswith("visual-i"):
            echo = measured["echo" if protocol == "visual-i" else "echo-others"]["AP"]
            assert echo == np.mean([own["echo"] for own in single])
    assert measured["visual-i"]["AP"] > measured["echo-others"]["AP"] == 0
    assert found.about["seed"] == 3 and found.about["dataset"]["annotations_sha256"] and "commit" in found.about


def test_pieces_give_the_numbers_of_the_whole(data, found):
    several = together(Painter(), data, data, examples=1, draws=2, seed=3, batch_size=2, memory=1e-9, progress=False)
    trial = Trial(Painter(), data, len(data), batch_size=2)
    assert [len(piece.image_ids) for piece in pieces(trial, 1e-9)] == [2, 2, 1] and len(list(pieces(trial, 9))) == 1
    assert several.measured() == found.measured()
    assert [list(a.detections) for a in several.answers["visual-i"]] == [
        list(a.detections) for a in found.answers["visual-i"]
    ]
    with pytest.raises(ValueError, match="above 0 GiB"):
        together(Painter(), data, data, memory=0)


def test_images_are_encoded_once(data):
    detector, seen = Painter(), []
    real = detector.encode_batch
    detector.encode_batch = lambda images: seen.extend(images) or real(images)
    together(detector, data, data, examples=16, draws=3, progress=False)
    assert len(seen) == 4 + 5  # four that hold something, as examples; all, to be searched


def test_banks_of_several_draws_are_those_of_each(data):
    draws = [(1, 0), (1, 1), (16, 0)]
    for bank, (examples, seed) in zip(visual_banks(Painter(), data, data.names, draws, progress=False), draws):
        single = visual_bank(Painter(), data, data.names, examples, seed, progress=False)
        assert bank.names == single.names
        torch.testing.assert_close(bank.embeddings, single.embeddings, atol=0, rtol=0)


def test_numbers_must_be_positive(data):
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        together(Painter(), data, data, draws=0)


def test_too_few_images_are_not_resampled(found):
    """Four of the pictures hold anything, which is fewer than five."""
    own = Resampled(found, 5)
    assert np.isnan(own.ap("visual-i")).all() and compared(own.ap("visual-i"), own.ap("echo"), "images") is None


def test_resampled_differences_are_those_of_the_bootstrap(found, monkeypatch):
    monkeypatch.setattr(claims, "FEWEST", 1)
    own = Resampled(found, 50, seed=1)
    difference = own.ap("visual-i") - own.ap("echo")
    expected = bootstrap_difference(found.answers["visual-i"], found.answers["echo"], 50, seed=1)
    assert difference[0] == pytest.approx(expected["difference"])
    ours = compared(own.ap("visual-i"), own.ap("echo"), "images")
    assert (ours.low, ours.high) == (pytest.approx(expected["low"]), pytest.approx(expected["high"]))
    measured = found.measured()
    assert own.ap("text")[0] == pytest.approx(measured["text"]["AP"])
    assert own.top1(found.regions["region"])[0] == pytest.approx(measured["region"]["top1"])
    assert own.ap("echo", "trained")[0] < own.ap("echo")[0]  # blue is novel and always alone, so its echo is right


def test_verdicts():
    def verdict(more, less):
        return Finding("", "", None, compared(np.array(more, float), np.array(less, float), "images"))

    assert verdict([5, 5, 6], [1, 1, 2]).verdict == HOLDS
    assert verdict([1, 1, 2], [5, 5, 6]).verdict == CONTRADICTED
    assert verdict([1, 0, 2], [1, 1, 1]).verdict == UNDECIDED
    nothing = Finding("", "", None, None, "no weights")
    assert (nothing.verdict, nothing.reason, nothing.row()["difference"]) == (NOT_TESTABLE, "no weights", "")
    assert compared(np.full(3, np.nan), np.ones(3), "images") is None


def test_intervals_over_seeds_and_sets():
    runs = [
        {"variant": v, "seed": s, "steps": 9, "AP": {"text": ap}}
        for v, s, ap in (("a", 0, 3.0), ("a", 1, 5.0), ("b", 0, 1.0), ("b", 1, 6.0))
    ]
    seeds = over_seeds(runs, "text", "a", "b")
    assert (seeds.more, seeds.less) == (4, 3.5)
    assert over_seeds(runs[::2], "text", "a", "b") is None and over_seeds(runs, "text", "a", "c") is None
    assert (seeds.low, seeds.high) == (pytest.approx(0.5 - 12.7062 * 1.5), pytest.approx(0.5 + 12.7062 * 1.5))
    longer = [run | {"steps": 18, "AP": {"text": 10 + run["AP"]["text"]}} for run in runs]
    assert over_seeds([*runs, *longer], "text", "a", "b").more == 14  # the longest runs decide
    assert over_seeds([*runs, longer[0]], "text", "a", "b").more == 4  # of those that have pairs
    spread = over_sets([1, 2, 9], 500, np.median)
    assert spread[0] == 2 and set(spread) == {1, 2, 9}


class Fixed:
    """Measures that are all alike, in place of `Resampled`."""

    weights, found = np.ones((4, 2)), SimpleNamespace(regions={"region-visual": []})

    def ap(self, protocol, group="all"):
        return np.full(4, 50.0)

    def top1(self, draws):
        return np.full(4, 50.0)


def table(ablations=(), sets=5):
    wild = [{"visual-g": {"AP": 2.0}, "text": {"AP": 1.0}}] * sets
    return findings(Fixed(), Fixed(), wild, {n: np.full(4, 10.0) for n in (1, 16, 64)}, np.full(5, 20.0), [], ablations)


def test_every_finding_holds_in_the_paper():
    rows = table()
    with_paper = [own for own in rows if own.paper]
    assert len(with_paper) >= 12 and all(own.paper[0] > own.paper[1] for own in with_paper)
    assert len({own.statement for own in rows}) == len(rows)
    known = {own.statement: own for own in rows}
    assert known["A box says more than a point (COCO)"].paper == (56.6, 54.3)
    assert known["A box says more than a point (COCO)"].verdict == UNDECIDED  # 50 against 50
    assert known["... and the median over sets"].verdict == HOLDS
    assert all(own.reason for own in rows if own.verdict == NOT_TESTABLE)
    assert known["Alignment lifts text"].verdict == NOT_TESTABLE
    known = {own.statement: own for own in table(sets=4)}
    assert known["... and the median over sets"].reason == "needs at least 5 images or sets that hold what it is about"


def test_what_is_missing_is_not_testable():
    rows = findings(None, None, [], {}, np.full(5, 20.0), [])
    tested = [own.statement for own in rows if own.verdict != NOT_TESTABLE]
    assert len(tested) == 1 and tested[0].startswith("A further prompt costs less")
    assert all(own.reason for own in rows if own.verdict == NOT_TESTABLE)


def test_ablations_are_compared_by_seed(tmp_path):
    def run(variant, seed, steps, ap):
        (tmp_path / f"{variant}-{seed}-{steps}.json").write_text(
            f'{{"variant": "{variant}", "seed": {seed}, "steps": {steps}, "AP": {{"text/trained": {ap},'
            f' "visual-g/trained": {ap}}}}}'
        )

    for seed in (0, 1):
        run("joint", seed, 500, 40 + seed), run("joint, no alignment", seed, 500, 20 + seed), run("joint", seed, 100, 5)
    runs = read_ablations(tmp_path)
    assert {own["steps"] for own in runs} == {500} and read_ablations(tmp_path / "none") == []
    known = {own.statement: own for own in table(runs)}
    assert known["Alignment lifts text"].verdict == HOLDS
    assert (known["Alignment lifts text"].ours.more, known["Alignment lifts text"].ours.less) == (40.5, 20.5)
    assert known["Training with visual prompts too helps text"].verdict == NOT_TESTABLE


def test_sweep(tmp_path, data):
    """Every category is on enough reference scenes; each number of prompts has its draws."""
    reference, test = sweep_sets(tmp_path, 3, 4, 2, seed=0)
    assert len(test) == 2 and reference.names == test.names
    for label in range(3):
        category = reference.category_ids[label]
        assert len({a["image_id"] for a in reference.coco["annotations"] if a["category_id"] == category}) >= 4
    sweep = prompts_sweep(Painter(), data, data, (1, 2), draws=2, progress=False)
    spread = sweep_spread(sweep, 5)
    assert {n: len(own) for n, own in sweep.items()} == {1: 2, 2: 2} and all(len(own) == 6 for own in spread.values())


def test_crops_of_plain_colours_are_named(data, found):
    """The frozen backbone tells coloured squares apart."""
    rows = crop_ranks(found, data, seed=3)
    assert {row["image_id"] for row in rows} <= set(found.answers["text"][0].image_ids)
    assert np.mean([row["rank"] == 0 for row in rows]) > 0.9
