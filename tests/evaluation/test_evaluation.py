"""Metrics against pycocotools and by hand; protocols with a detector that knows colours, and with a random model."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from colours import COLOURS, IDS, SCENES, ColourDetector, detection, write_set
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import double_precision

from trex2_mini.config import preset
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.detector import Detector
from trex2_mini.evaluation import metrics
from trex2_mini.evaluation.bank import visual_bank
from trex2_mini.evaluation.interactive import draw_prompts, echo_detections, only_others
from trex2_mini.evaluation.metrics import coco_ap
from trex2_mini.evaluation.protocols import PROTOCOLS, Trial, choose_labels, evaluate, text, visual_interactive
from trex2_mini.model.trex2 import TRex2


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> CocoDataset:
    return write_set(tmp_path_factory.mktemp("sets") / "val")


@pytest.fixture(scope="module")
def random_detector() -> Detector:
    """Nano's parts, one layer each, never trained."""
    return untrained()


@pytest.fixture(scope="module")
def exact_detector() -> Detector:
    """In float64, for comparisons of the same sums in other batches."""
    with double_precision():
        return untrained()


def untrained() -> Detector:
    torch.manual_seed(0)
    config = preset("nano")
    model = dataclasses.replace(config.model, encoder_layers=1, decoder_layers=1, prompt_blocks=1, short_side=128)
    return Detector(TRex2(model), dataclasses.replace(config, model=model), "cpu")


def perfect(coco: dict) -> list[dict]:
    return [detection(a["image_id"], a["category_id"], a["bbox"]) for a in coco["annotations"]]


# ---- metrics


@pytest.mark.parity
@pytest.mark.parametrize("piece", [metrics.PIECE, 5])
def test_coco_ap_is_pycocotools(piece, capfd, monkeypatch):
    monkeypatch.setattr(metrics, "PIECE", piece)
    rng = np.random.default_rng(0)
    images = [{"id": i} for i in range(1, 13)]
    coco = {"images": images, "annotations": [], "categories": [{"id": c, "name": f"c{c}"} for c in (1, 2, 4, 7)]}
    found = []
    for number in range(1, 121):
        x, y, w, h = rng.uniform([0, 0, 5, 5], [200, 200, 150, 150]).tolist()
        image, category = int(rng.integers(1, 13)), int(rng.choice([1, 2, 4]))  # nothing of category 7
        entry = {"id": number, "image_id": image, "category_id": category, "bbox": [x, y, w, h], "area": w * h * 0.8}
        coco["annotations"].append(entry | {"iscrowd": int(number % 15 == 0)})
        for _ in range(3):
            moved = (np.array([x, y, w, h]) + rng.normal(0, 4, 4)).clip(1).tolist()
            found.append(detection(image, category, moved, float(rng.random())))
    found += [detection(1, 7, (0, 0, 9, 9), 0.5)]
    before = copy.deepcopy((coco, found))
    got = coco_ap(coco, found, sizes=True)
    assert (coco, found) == before and capfd.readouterr().out == ""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(coco)
        truth.createIndex()
        reference = COCOeval(truth, truth.loadRes(copy.deepcopy(found)), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    keys = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    np.testing.assert_allclose([got[key] for key in keys], 100 * reference.stats[:6], rtol=1e-12)
    plain = coco_ap(coco, found)
    assert plain == {key: value for key, value in got.items() if key in plain} and "AP_small" not in plain
    assert 5 < got["AP"] < 95 and list(got["per_category"]) == ["c1", "c2", "c4"]
    assert np.mean(list(got["per_category"].values())) == pytest.approx(got["AP"])


def test_coco_ap_at_its_ends(data):
    best = coco_ap(data.coco, perfect(data.coco), sizes=True)
    assert (best["AP"], best["AP50"], best["AP75"]) == pytest.approx((100, 100, 100)) and best["AP_large"] is None
    assert best["per_category"] == pytest.approx({"red": 100, "green": 100, "blue": 100})
    assert coco_ap(data.coco, [])["AP"] == 0
    minimal = copy.deepcopy(data.coco)
    for annotation in minimal["annotations"]:
        del annotation["id"], annotation["area"], annotation["iscrowd"]
    assert coco_ap(minimal, perfect(minimal))["AP"] == pytest.approx(100)


def test_coco_ap_restricted(data):
    reds = [d for d in perfect(data.coco) if d["category_id"] == IDS["red"]]
    assert coco_ap(data.coco, reds)["AP"] == pytest.approx(100 / 3)  # three categories, one found
    assert coco_ap(data.coco, reds, [IDS["red"], IDS["blue"]])["AP"] == pytest.approx(50)
    assert coco_ap(data.coco, reds, image_ids=[10, 13])["AP"] == pytest.approx(50)  # red and green are there
    assert coco_ap(data.coco, reds, [IDS["red"]], [13])["per_category"] == {"red": pytest.approx(100)}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([], [77]), "category_ids"),
        (([], None, [77]), "image_ids"),
        (([detection(77, 3, (0, 0, 1, 1))],), "detections' image_id"),
        (([detection(10, 77, (0, 0, 1, 1))],), "detections' category_id"),
        (([], None, [14]), "nothing to find"),
    ],
)
def test_coco_ap_refuses(data, arguments, words):
    with pytest.raises(ValueError, match=words):
        coco_ap(data.coco, *arguments)


# ---- Visual-I without a model


def test_prompts_are_drawn_once_a_category_and_image(data):
    drawn = draw_prompts(data.coco, seed=0)
    pairs = {(a["image_id"], a["category_id"]) for a in data.coco["annotations"]}
    assert set(drawn) == pairs and all((a["image_id"], a["category_id"]) == pair for pair, a in drawn.items())
    assert draw_prompts(data.coco, 0) == drawn
    assert any(draw_prompts(data.coco, seed) != drawn for seed in range(1, 10))
    some = draw_prompts(data.coco, 0, {IDS["green"], IDS["blue"]}, {11, 12})
    assert some == {pair: drawn[pair] for pair in [(11, 5), (11, 9), (12, 9)]}  # a restriction changes no draw


def test_crowds_and_unusable_boxes_are_no_prompts(data):
    coco = copy.deepcopy(data.coco)
    changes = [{"iscrowd": 1}, {"bbox": [70, 8, 20, 20]}, {"bbox": [6, 40, 0, 12]}]
    for annotation, change in zip(coco["annotations"], changes):  # the whole first image
        annotation |= change
    assert {image for image, _ in draw_prompts(coco, 0)} == {11, 12, 13}


def test_echo_by_hand(data):
    """red: 2 of 3 instances answered, green: 2 of 3, blue: 2 of 2. Precision is 1 up to recall 2/3, that is at 0, 0.01,
    ..., 0.66 (67 of COCO's 101 recalls) and 0 beyond."""
    result = coco_ap(data.coco, echo_detections(draw_prompts(data.coco, 3)))
    assert result["per_category"] == pytest.approx({"red": 100 * 67 / 101, "green": 100 * 67 / 101, "blue": 100})
    assert result["AP"] == pytest.approx((2 * 100 * 67 / 101 + 100) / 3)


def others_example():
    """One category; image 1 holds the prompt P, two others near and far; image 2 only a prompt."""
    boxes = [(1, [0, 0, 10, 10]), (1, [4, 0, 10, 10]), (1, [50, 50, 10, 10]), (2, [0, 0, 10, 10])]  # P, near, far, Q
    coco = {"images": [{"id": 1}, {"id": 2}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    for number, (image, box) in enumerate(boxes):
        coco["annotations"].append({"id": number, "image_id": image, "category_id": 1, "bbox": box})
    return coco, {(1, 1): coco["annotations"][0], (2, 1): coco["annotations"][3]}


def test_others_takes_out_the_prompted_instance_and_one_answer():
    coco, drawn = others_example()
    found = [
        detection(1, 1, [3, 0, 10, 10], 0.95),  # IoU 0.54 with P, 0.82 with its neighbour: the neighbour's
        detection(1, 1, [0, 0, 10, 9], 0.9),  # P's
        detection(1, 1, [0, 0, 10, 10], 0.8),  # P's again, nearer but with less confidence: stays
        detection(1, 1, [50, 50, 10, 10], 0.7),
        detection(2, 1, [0, 0, 10, 4], 0.6),  # IoU 0.4 with Q: stays
    ]
    truth, remaining, pairs = only_others(coco, found, drawn)
    assert [a["id"] for a in truth["annotations"]] == [1, 2] and len(coco["annotations"]) == 4
    assert list(remaining) == [found[0], *found[2:]] and pairs == {(1, 1)}


def test_others_by_hand():
    """What is answered where there is no other instance is wrong, unless only the pairs with others are asked for."""
    coco, drawn = others_example()
    wrong = detection(2, 1, [60, 60, 10, 10], 2.0)
    truth, remaining, pairs = only_others(coco, [*perfect(coco), wrong], drawn)
    assert [d["bbox"] for d in remaining] == [[4, 0, 10, 10], [50, 50, 10, 10], wrong["bbox"]]
    assert coco_ap(truth, remaining)["AP"] == pytest.approx(100 * 2 / 3)  # wrong, right, right: 2/3 at every recall
    there = [d for d in remaining if (d["image_id"], d["category_id"]) in pairs]
    assert coco_ap(truth, there)["AP"] == pytest.approx(100)
    truth, remaining, _ = only_others(coco, echo_detections(drawn), drawn)
    assert len(remaining) == 0 and coco_ap(truth, remaining)["AP"] == 0


# ---- the protocols


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("categories", ["all", "trained", "novel"])
@pytest.mark.parametrize("protocol", ["text", "visual-i", "visual-g", "mixed"])
def test_a_detector_that_knows_colours_is_perfect(data, protocol, categories, points):
    result = evaluate(ColourDetector(), data, protocol, categories, reference=data, points=points, progress=False)
    assert (result["AP"], result["AP50"], result["AP75"]) == pytest.approx((100, 100, 100))
    assert result["images"] == 5
    expected = {"all": ["red", "green", "blue"], "trained": ["red", "green"], "novel": ["blue"]}[categories]
    assert list(result["per_category"]) == expected and result["categories"] == len(expected)


def test_synonyms_are_asked_for(data):
    """Each colour goes by the other's name here: a detector that knows its colours ranks the wrong objects first."""
    swapped = copy.deepcopy(data)
    for category, others in zip(swapped.categories, (["red", "green"], ["red", "blue"], [])):
        category["synonyms"] = others
    result = evaluate(ColourDetector(), swapped, "text", synonyms=True, progress=False)
    assert (result["prompts"], result["synonyms"]) == (2, True) and result["AP"] < 50
    assert list(result["per_category"]) == ["red", "green"]
    with pytest.raises(ValueError, match="no category has synonyms"):
        evaluate(ColourDetector(), data, "text", synonyms=True, progress=False)
    with pytest.raises(ValueError, match="'text', not for 'visual-i'"):
        evaluate(ColourDetector(), swapped, "visual-i", synonyms=True, progress=False)


def test_others_protocol(data):
    result = evaluate(ColourDetector(), data, "visual-i-others", progress=False)
    assert result["AP"] == result["AP_pairs_with_others"] == pytest.approx(100) and result["echo"] == 0
    assert (result["prompts"], result["pairs_with_others"], result["categories"]) == (6, 2, 2)  # two reds, two greens
    with pytest.raises(ValueError, match="nothing to find"):
        evaluate(ColourDetector(), data, "visual-i-others", "novel", progress=False)  # blue is always alone


def test_result_tells_where_it_comes_from(data):
    result = evaluate(ColourDetector(), str(data.path.parent), "visual-i", limit=2, seed=5, progress=False)
    assert json.loads(json.dumps(result)) == result
    assert (result["protocol"], result["images"], result["prompts"], result["seed"]) == ("visual-i", 2, 4, 5)
    assert result["echo"] == pytest.approx((51 + 67 + 101) / 101 * 100 / 3)  # red 1 of 2, green 2 of 3
    assert len(result["checkpoint_hash"]) == 16 and len(result["dataset"]["annotations_sha256"]) == 64
    assert set(result["versions"]) == {"torch", "pycocotools", "trex2_mini"}


def test_bank_with_few_examples(data, tmp_path):
    """One image of red, two of green, none of blue: all there are; what has none is left out, and said."""
    reference = write_set(tmp_path / "reference", [SCENES[0], ((64, 64), [("green", 8, 8, 8, 8)])])
    bank = visual_bank(ColourDetector(), reference, ["blue", "green", "red"], examples=16, progress=False)
    assert bank.names == ["green", "red"]
    torch.testing.assert_close(bank.embeddings, torch.tensor([[0.0, 1, 0], [1, 0, 0]]))
    result = evaluate(ColourDetector(), data, "visual-g", reference=reference, progress=False)
    assert result["without_examples"] == ["blue"] and result["AP"] == pytest.approx(100)
    assert (result["examples"], result["prompts"], result["categories"]) == (16, 2, 2)
    with pytest.raises(ValueError, match="no example"):
        evaluate(ColourDetector(), data, "mixed", "novel", reference=reference, progress=False)


@double_precision()
def test_bank_is_the_mean_of_embeddings_of_single_images(data, exact_detector):
    """Batched over images and categories, the bank is what `Detector.embed` makes one by one."""
    bank = visual_bank(exact_detector, data, list(COLOURS), batch_size=3, progress=False)
    examples = {name: [] for name in COLOURS}
    for sample in data:
        for label in np.unique(sample.labels):
            examples[data.names[label]].append((sample.image, sample.boxes[sample.labels == label]))
    torch.testing.assert_close(bank.embeddings, exact_detector.embed(examples).embeddings, atol=1e-9, rtol=0)
    one = visual_bank(exact_detector, data, ["red"], examples=1, progress=False).embeddings
    singles = [exact_detector.embed({"red": [pair]}).embeddings for pair in examples["red"]]
    assert sum(torch.allclose(one, single, atol=1e-9) for single in singles) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_same_seed_same_result(data, random_detector, protocol):
    first, second = (evaluate(random_detector, data, protocol, reference=data, progress=False) for _ in range(2))
    first.pop("seconds"), second.pop("seconds")
    assert first == second


@double_precision()
@pytest.mark.parametrize("protocol", ["text", "boxes", "points"])
def test_batches_do_not_change_the_answers(data, exact_detector, protocol):
    """Images of three sizes, one without any prompt, alone and together: the same scores and the same AP."""
    alone, together = [], []
    for size, answers in [(1, alone), (4, together)]:
        trial = Trial(exact_detector, data, 5, size, progress=False)
        drawn = draw_prompts(data.coco, 0)
        answers += text(trial, [0, 2]) if protocol == "text" else visual_interactive(trial, drawn, protocol == "points")
    first, second = (np.array(sorted((d["image_id"], d["score"]) for d in part)) for part in (alone, together))
    assert first.shape == second.shape and len(first) > 100
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert coco_ap(data.coco, alone)["AP"] == pytest.approx(coco_ap(data.coco, together)["AP"], abs=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batches_do_not_change_ap(data, protocol):
    results = [
        evaluate(ColourDetector(), data, protocol, reference=data, batch_size=size, progress=False) for size in (1, 4)
    ]
    assert results[0]["AP"] == results[1]["AP"] == pytest.approx(100)


def test_refusals(data, tmp_path):
    with pytest.raises(ValueError, match="visual-i-others"):
        evaluate(ColourDetector(), data, "visual", progress=False)
    with pytest.raises(ValueError, match="novel"):
        evaluate(ColourDetector(), data, "text", "rare", progress=False)
    with pytest.raises(ValueError, match="flag"):
        choose_labels(write_set(tmp_path / "plain", flags=False), "novel")
    for wrong in [{"examples": 0}, {"limit": 0}, {"batch_size": 0}]:
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least 1"):
            evaluate(ColourDetector(), data, "text", progress=False, **wrong)
