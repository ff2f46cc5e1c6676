"""Negative prompts: T-Rex-Omni's rule by hand, whom a negative speaks against, what cannot be one; the protocol beside
look-alikes.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from colours import Colours
from PIL import Image
from tiny import TINY, picture, seeded_model

from trex2_mini import Detector
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.evaluation.interactive import draw_prompts
from trex2_mini.evaluation.negatives import look_alikes
from trex2_mini.evaluation.protocols import evaluate
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


# ---- the protocol

KINDS = [("red", "warm"), ("orange", "warm"), ("pink", "warm"), ("brown", "warm"), ("blue", "cold")]
ALIKE = [  # (category, colour, x, y)
    ("red", (255, 0, 0), 4, 4),
    ("red", (200, 0, 0), 30, 4),  # a dim one, farther from the bright one than orange is
    ("orange", (255, 51, 0), 4, 30),
    ("blue", (0, 0, 255), 30, 30),
]
OTHER_WARM = [("red", (255, 0, 0), 4, 4), ("orange", (255, 51, 0), 30, 4), ("pink", (255, 0, 90), 4, 30)]
ALL_WARM = [*OTHER_WARM, ("brown", (120, 60, 0), 30, 30)]


def coloured(folder, scenes) -> CocoDataset:
    """Squares of 16 px on black."""
    (folder / "images").mkdir(parents=True)
    names = [name for name, _ in KINDS]
    coco = {"images": [], "annotations": []}
    coco["categories"] = [{"id": i, "name": name, "supercategory": group} for i, (name, group) in enumerate(KINDS, 1)]
    for number, scene in enumerate(scenes):
        image = np.zeros((64, 64, 3), np.uint8)
        for name, colour, x, y in scene:
            image[y : y + 16, x : x + 16] = colour
            entry = {"id": len(coco["annotations"]), "image_id": number, "category_id": names.index(name) + 1}
            coco["annotations"].append(entry | {"bbox": [x, y, 16, 16], "area": 256, "iscrowd": 0})
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        coco["images"].append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 64})
    (folder / "annotations.json").write_text(json.dumps(coco))
    return CocoDataset(folder / "annotations.json", folder / "images")


@pytest.mark.parametrize("points", [False, True])
def test_look_alikes_by_hand(tmp_path, points):
    """A similarity is 5 - 20 x the distance of two colours. Asked by bright red: bright 5, orange 1, dim 0.69. Orange
    as a negative of beta
    0.3 pushes itself to 1 - 0.3 x 5 = -0.5, below dim red, which it is unlike; of beta 1 below the threshold."""
    data = coloured(tmp_path / "set", [ALIKE, ALIKE[3:]])
    # bright red is the prompt
    seed = next(seed for seed in range(99) if draw_prompts(data.coco, seed)[0, 1]["id"] == 0)
    result = evaluate(
        Colours(), data, "visual-i-negatives", points=points, seed=seed, resamples=20, batch_size=1, progress=False
    )
    assert (result["images"], result["prompts"], result["negatives"], result["categories"]) == (1, 2, 1, 2)
    red = 100 * (51 + 50 * 2 / 3) / 101
    assert (result["AP_without"], result["AP"]) == pytest.approx(((red + 100) / 2, 100))
    assert (result["AP_others_without"], result["AP_others"]) == pytest.approx((50, 100))
    table = result["by_beta"]
    assert list(table) == ["without", "0.1", "0.3", "1.0"]
    assert [row["found"] for row in table.values()] == [100] * 4
    # of bright and dim red (asked by orange) and orange (asked by red), dim red is below the threshold
    assert [row["alarms"] for row in table.values()] == pytest.approx([200 / 3, 200 / 3, 200 / 3, 0])
    assert result["gain"]["low"] == result["gain"]["high"] == pytest.approx(result["AP"] - result["AP_without"])
    assert result["gain_others"]["difference"] == pytest.approx(50)
    assert result["prompted_with"] == ("points" if points else "boxes") and json.loads(json.dumps(result)) == result


def test_negatives_are_other_categories_of_the_same_kind(tmp_path):
    data = coloured(tmp_path / "set", [ALL_WARM, OTHER_WARM, ALIKE[2:]])
    drawn = draw_prompts(data.coco, 0)
    alike = look_alikes(data, drawn)
    assert alike[0, 1] == [2, 3, 4] and alike[1, 2] == [1, 3] and not {(2, 2), (2, 5)} & alike.keys()
    for most, mean in ((1, 1), (2, 2), (3, (4 * 3 + 3 * 2) / 7)):
        result = evaluate(Colours(), data, "visual-i-negatives", examples=most, progress=False)
        assert result["negatives"] == pytest.approx(mean) and (result["images"], result["prompts"]) == (2, 7)
        assert result["AP_others"] is None and result["by_beta"]["0.3"]["AP_others"] is None  # every category once


def test_the_protocol_refuses(tmp_path):
    data = coloured(tmp_path / "set", [ALIKE])
    for options, words in [
        ({"examples": 4}, "1 to 3 negatives a prompt, got 4"),
        ({"threshold": 2.0}, "threshold"),
        ({"baselines": ["template"]}, "visual-i-others', not for"),
        ({"categories": "novel"}, 'flag "novel"'),
    ]:
        with pytest.raises(ValueError, match=words):
            evaluate(Colours(), data, "visual-i-negatives", progress=False, **options)
    with pytest.raises(ValueError, match="no look-alikes"):
        evaluate(Colours(), coloured(tmp_path / "alone", [ALIKE[2:]]), "visual-i-negatives", progress=False)
    del data.categories[0]["supercategory"]
    with pytest.raises(ValueError, match='without "supercategory"'):
        evaluate(Colours(), data, "visual-i-negatives", progress=False)
