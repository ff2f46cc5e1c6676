"""LVIS AP against hotcoco, on real annotations where they are at hand and on a small set of our own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import TINY, seeded_model

from trex2_mini.detector import Detector
from trex2_mini.evaluation import metrics
from trex2_mini.evaluation.lvis import lvis_ap
from trex2_mini.evaluation.protocols import evaluate
from trex2_mini.paths import REPOSITORY

REAL = REPOSITORY.parent / "shared" / "lvis" / "lvis_val_100.json"


def small() -> dict:
    """Twelve categories in three frequency groups on 40 images; some objects of a category are not annotated where it
    was not looked for.
    """
    rng = np.random.default_rng(0)
    categories = [
        {"id": c, "name": f"thing {c}", "frequency": "rcf"[c % 3], "image_count": 5, "instance_count": 9}
        for c in range(1, 13)
    ]
    images, annotations = [], []
    for i in range(1, 41):
        held, absent = np.split(rng.permutation(np.arange(1, 13))[:7], [4])
        images.append(
            {"id": i, "width": 200, "height": 200, "neg_category_ids": absent.tolist(), "file_name": f"{i}.jpg"}
            | {"not_exhaustive_category_ids": held[:1].tolist()}
        )
        for c in held.tolist():
            for _ in range(rng.integers(1, 4)):
                x, y, w, h = rng.uniform([0, 0, 10, 10], [120, 120, 80, 80]).tolist()
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": i, "category_id": c, "bbox": [x, y, w, h], "area": w * h}
                )
    return {"images": images, "annotations": annotations, "categories": categories}


def answers(truth: dict, an_image: int) -> list[dict]:
    """Noisy copies of the objects, some under a wrong name, and boxes at random."""
    rng = np.random.default_rng(1)
    ids = [c["id"] for c in truth["categories"]]
    found = []
    for image in truth["images"]:
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        asked = image["neg_category_ids"] + [a["category_id"] for a in own]
        for _ in range(an_image):
            if own and rng.random() < 0.5:
                a = own[rng.integers(len(own))]
                box, category = np.array(a["bbox"]) + rng.normal(0, 4, 4), a["category_id"]
                category = int(rng.choice(asked)) if rng.random() < 0.2 else category
            else:
                box, category = (
                    rng.uniform(5, 90, 4),
                    int(rng.choice(ids if rng.random() < 0.5 or not asked else asked)),
                )
            found.append(
                {
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": np.maximum(box, 1).tolist(),
                    "score": float(rng.random()),
                }
            )
    return found


def oracle(truth: dict, found: list[dict], cap: int, tmp_path: Path) -> dict:
    """The same by hotcoco, which has its own cap of detections an image."""
    hotcoco = pytest.importorskip("hotcoco")
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    gt = hotcoco.LVIS(str(tmp_path / "truth.json"))
    evaluation = hotcoco.LVISEval(gt, hotcoco.LVISResults(gt, str(tmp_path / "found.json"), max_dets=cap), "bbox")
    evaluation.run()
    return evaluation.get_results()


@pytest.mark.parametrize("source", ["small", "small, in pieces", "real"])
def test_equals_hotcoco(source, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "PIECE", 7 if "pieces" in source else metrics.PIECE)
    if source == "real" and not REAL.is_file():
        pytest.skip(f"{REAL} is not here")
    truth = json.loads(REAL.read_text()) if source == "real" else small()
    found = answers(truth, 400)
    ours, theirs = lvis_ap(truth, found), oracle(truth, found, 300, tmp_path)
    for own, name in (
        ("AP", "AP"),
        ("AP50", "AP50"),
        ("AP75", "AP75"),
        ("AP_r", "APr"),
        ("AP_c", "APc"),
        ("AP_f", "APf"),
    ):
        if ours[own] is not None:
            assert ours[own] == pytest.approx(100 * theirs[name], abs=1e-6), own
    assert ours["AP"] > 1


def test_fixed_ap_drops_nothing_by_image(tmp_path):
    truth = small()
    found = answers(truth, 400)
    fixed = lvis_ap(truth, found, fixed=True)
    assert fixed["AP"] == pytest.approx(100 * oracle(truth, found, 10_000, tmp_path)["AP"], abs=1e-6)
    assert fixed["AP"] != pytest.approx(lvis_ap(truth, found)["AP"], abs=1e-3)


def test_a_category_that_was_not_looked_for_does_not_count():
    truth = small()
    perfect = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in truth["annotations"]]
    assert lvis_ap(truth, perfect)["AP"] == pytest.approx(100)
    first = truth["images"][0]
    held = {a["category_id"] for a in truth["annotations"] if a["image_id"] == 1}
    unasked = next(c for c in range(1, 13) if c not in held and c not in first["neg_category_ids"])
    extra = {"image_id": 1, "bbox": [1, 1, 50, 50], "score": 0.99}
    assert lvis_ap(truth, [*perfect, extra | {"category_id": unasked}])["AP"] == pytest.approx(100)
    assert lvis_ap(truth, [*perfect, extra | {"category_id": first["neg_category_ids"][0]}])["AP"] < 99.9


def test_chosen_categories_and_images():
    truth = small()
    found = answers(truth, 30)
    part = lvis_ap(truth, found, category_ids={1, 2}, image_ids=range(1, 21))
    assert set(part["per_category"]) == {"thing 1", "thing 2"} and part["AP_r"] is None


@pytest.mark.parametrize("spoil, message", [
    (lambda t: [i.pop("neg_category_ids") for i in t["images"]], "lack neg_category_ids"),
    (lambda t: [c.pop("frequency") for c in t["categories"]], "lack frequency"),
    (lambda t: t["categories"][0].update(frequency="x"), "frequencies r, c and f"),
    (lambda t: t["annotations"].clear(), "nothing to find"),
])  # fmt: skip
def test_bad_files_are_named(spoil, message):
    truth = small()
    spoil(truth)
    with pytest.raises(ValueError, match=message):
        lvis_ap(truth, [])


def test_unknown_ids_are_named():
    with pytest.raises(ValueError, match="category_id: \\[99\\]"):
        lvis_ap(small(), [{"image_id": 1, "category_id": 99, "bbox": [0, 0, 1, 1], "score": 1}])


def test_evaluate_measures_a_federated_set_by_its_own_rules(tmp_path):
    """A set in LVIS's format on disk, through the same call as any other."""
    truth = small() | {"images": small()["images"][:4]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] <= 4]
    (tmp_path / "images").mkdir()
    for image in truth["images"]:
        Image.fromarray(np.full((200, 200, 3), 90, np.uint8)).save(tmp_path / "images" / image["file_name"])
    (tmp_path / "annotations.json").write_text(json.dumps(truth))
    result = evaluate(Detector(seeded_model(), TINY), tmp_path, "visual-i-others", progress=False)
    assert {"AP", "AP_r", "AP_c", "AP_f", "fixed_AP", "echo", "AP_pairs_with_others"} <= set(result)
    assert result["echo"] == pytest.approx(0, abs=20) and result["images"] == 4
