"""Negative prompts: T-Rex-Omni's rule by hand, whom a negative speaks against, and what cannot be one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import TINY, picture, seeded_model

from trex2_mini import Detector
from trex2_mini.model.visual_prompt import RegionPrompts

BOX, OTHER, POINT = [4.0, 4, 20, 20], [30.0, 30, 60, 50], [40.0, 10]


@pytest.fixture(scope="module")
def detector():
    return Detector(seeded_model(), TINY)


@pytest.fixture(scope="module")
def encoded(detector):
    return detector.encode((picture(64, 64).permute(1, 2, 0).numpy() * 255).astype(np.uint8))


def ask(detector, encoded, **options):
    """Scores by box, of everything."""
    found = detector.detect(encoded, score_threshold=0, **options)
    return {
        (found.names[label], *box.round(3).tolist()): score
        for box, score, label in zip(found.boxes, found.scores, found.labels)
    }


def test_the_rule_by_hand(detector, encoded):
    model, beta = detector.model, 0.5
    box = torch.tensor([[12.0, 12, 16, 16]]) / 64
    other, point = torch.tensor([[45.0, 40, 30, 20]]) / 64, torch.tensor([POINT]) / 64
    none, nothing = box[:0], point[:0]
    with torch.inference_mode():
        regions = [[(box, nothing), (other, nothing), (none, point)]]
        prompts = torch.cat(
            [model.encode_visual(encoded.features, RegionPrompts.from_lists(regions))[0], model.encode_text(["dog"])]
        )
        similarity = model.decode(encoded.features, prompts).logits[0]
        against = (similarity[:, 1:] - model.box_decoder.logit_bias).clamp(min=0).amax(1)
        expected = (similarity[:, 0] - beta * against).sigmoid()
    assert float(against.max()) > 0.1  # something is there to suppress
    scores = detector.detect(
        encoded,
        boxes=[BOX],
        negative_boxes=[OTHER],
        negative_points=[POINT],
        negative_text="dog",
        beta=beta,
        score_threshold=0,
    ).scores
    ours = sorted(scores.tolist(), reverse=True)
    assert set(np.round(ours, 5)) <= set(np.round(expected.tolist(), 5)) and len(ours) > 3


def test_beta_zero_is_no_negative_and_more_beta_is_less_score(detector, encoded):
    zero, some, much = (ask(detector, encoded, boxes=[BOX], negative_boxes=[OTHER], beta=beta) for beta in (0, 0.3, 3))
    shared = zero.keys() & some.keys() & much.keys()
    assert shared and all(zero[key] >= some[key] >= much[key] for key in shared)
    assert any(zero[key] > much[key] + 1e-4 for key in shared)


def test_a_named_negative_speaks_against_its_name_alone(detector, encoded):
    asked = {"a": [BOX], "b": [OTHER]}
    plain, named, everyone = (
        ask(detector, encoded, boxes=asked, negative_points=negative, beta=beta)
        for negative, beta in (([POINT], 0), ({"a": [POINT]}, 3), ([POINT], 3))
    )
    for key in plain.keys() & named.keys() & everyone.keys():
        assert named[key] == (pytest.approx(everyone[key]) if key[0] == "a" else pytest.approx(plain[key]))
    assert any(everyone[key] < plain[key] - 1e-5 for key in plain.keys() & everyone.keys() if key[0] == "b")


def test_refusals(detector, encoded):
    with pytest.raises(ValueError, match=r"'cow', which is not asked for; the prompted names are \['cat'\]"):
        detector.detect(encoded, text="cat", negative_boxes={"cow": [BOX]})
    with pytest.raises(ValueError, match="beta must be a number of at least 0, got -1"):
        detector.detect(encoded, text="cat", negative_text="dog", beta=-1)
    with pytest.raises(ValueError, match="no prompt"):
        detector.detect(encoded, negative_text="dog")
