"""Region classification, counting, video, repeated draws, the bootstrap: against numbers found by hand, and a detector
that knows colours.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from colours import COLOURS, IDS, SCENES, ColourDetector, Colours, detection, write_set
from PIL import Image
from torchvision.ops import box_iou

from trex2_mini.cli import main
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.counting import CountingDataset, CountingSample
from trex2_mini.datasets.emoji.sets import make_emoji_set
from trex2_mini.detector import Detections
from trex2_mini.evaluation.bootstrap import Matched, bootstrap, bootstrap_difference, resampled
from trex2_mini.evaluation.counting import best_threshold, count_errors, count_one, counted, counting, open_counting
from trex2_mini.evaluation.lvis import lvis_ap
from trex2_mini.evaluation.metrics import coco_ap
from trex2_mini.evaluation.protocols import ALL_PROTOCOLS, Options, answers, evaluate
from trex2_mini.evaluation.region import region_ranks, region_scores
from trex2_mini.evaluation.repeat import repeated
from trex2_mini.evaluation.tiles import tile_grid
from trex2_mini.evaluation.trial import Answers, Trial
from trex2_mini.evaluation.video import clips


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> CocoDataset:
    return write_set(tmp_path_factory.mktemp("sets") / "val")


# ---- bootstrap


def noisy(seed: int, images: int = 12, federated: bool = False) -> Answers:
    """Boxes, and answers that are near them, twice there, missing or elsewhere; crowds, or LVIS's fields."""
    rng = np.random.default_rng(seed)
    coco = {"images": [{"id": i} for i in range(images)], "annotations": []}
    coco["categories"] = [{"id": c, "name": f"c{c}", "frequency": "rcf"[c % 3]} for c in range(1, 6)]
    found = []
    for image in coco["images"]:
        for category in rng.permutation(5)[:3] + 1:
            for _ in range(rng.integers(1, 5)):
                box = [*rng.uniform(0, 60, 2), *rng.uniform(8, 30, 2)]
                entry = {"image_id": image["id"], "category_id": int(category), "bbox": box}
                coco["annotations"].append(entry | ({} if federated else {"iscrowd": int(rng.random() < 0.1)}))
                for _ in range(rng.integers(0, 3)):
                    near = np.array(box) + rng.normal(0, 1.5, 4)
                    found.append(detection(image["id"], int(category), near.tolist(), float(rng.random())))
        for category in rng.integers(1, 6, 6):
            box = [*rng.uniform(0, 60, 2), 10, 10]
            found.append(detection(image["id"], int(category), box, float(rng.random())))
    if federated:
        for image in coco["images"]:
            present = {a["category_id"] for a in coco["annotations"] if a["image_id"] == image["id"]}
            image["neg_category_ids"] = [c for c in range(1, 6) if c not in present and rng.random() < 0.5]
            image["not_exhaustive_category_ids"] = [c for c in present if rng.random() < 0.3]
    return Answers(coco, found, [1, 2, 3, 5], list(range(images)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("federated", [False, True])
def test_weights_of_one_give_the_plain_ap(seed, federated):
    """Crowds, categories left out, federated ground truth and all: what coco_ap and lvis_ap say."""
    own = noisy(seed, federated=federated)
    assert own.federated == federated
    expected = (lvis_ap if federated else coco_ap)(own.truth, own.detections, own.category_ids, own.image_ids)["AP"]
    assert 5 < expected < 95
    assert Matched(own).ap(np.ones((1, 12)))[0] == pytest.approx(expected, abs=1e-9)
    assert bootstrap(own, 20)["AP"] == pytest.approx(expected, abs=1e-9)


def test_weights_are_repeated_images():
    """A resample by weights is the AP of the set in which the images really stand so many times."""
    own, rng = noisy(7), np.random.default_rng(0)
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=4)
    for row, got in zip(weights, Matched(own).ap(weights.astype(float))):
        truth, found, copies = {"images": [], "annotations": [], "categories": own.truth["categories"]}, [], 0
        for image, times in enumerate(row):
            for _ in range(times):
                truth["images"].append({"id": copies})
                truth["annotations"] += [
                    a | {"image_id": copies} for a in own.truth["annotations"] if a["image_id"] == image
                ]
                found += [d | {"image_id": copies} for d in own.detections if d["image_id"] == image]
                copies += 1
        assert got == pytest.approx(coco_ap(truth, found, own.category_ids)["AP"], abs=1e-9)


def half_found() -> tuple[dict, Answers, Answers]:
    boxes = [detection(image, 1, (0, 0, 10, 10)) for image in (1, 2)]
    coco = {"images": [{"id": 1}, {"id": 2}], "categories": [{"id": 1, "name": "a"}], "annotations": boxes}
    return coco, Answers(coco, boxes[:1], [1], [1, 2]), Answers(coco, boxes, [1], [1, 2])


def test_bootstrap_by_hand():
    """One of two images is answered. Resamples: that one twice (AP 100), the other twice (0), or each once (51 of 101
    recalls).
    """
    _, one, both = half_found()
    weights = np.array([[2.0, 0], [0, 2], [1, 1]])
    np.testing.assert_allclose(Matched(one).ap(weights), [100, 0, 100 * 51 / 101])
    spread = bootstrap(one, 400, seed=1)
    assert (spread["low"], spread["high"], spread["AP"]) == pytest.approx((0, 100, 100 * 51 / 101))
    assert spread == bootstrap(one, 400, seed=1)
    certain = bootstrap(both, 50)
    assert certain["low"] == certain["high"] == pytest.approx(100)


def test_difference_by_hand():
    coco, one, both = half_found()
    same = bootstrap_difference(both, both, 50)
    assert (same["difference"], same["low"], same["high"], same["above_zero"]) == (0, 0, 0, 0)
    more = bootstrap_difference(both, one, 400)  # 0, 50/101 or 100 more, on 1/4, 1/2 and 1/4 of the resamples
    assert more["difference"] == pytest.approx(100 * 50 / 101) and (more["low"], more["high"]) == pytest.approx(
        (0, 100)
    )
    assert more["above_zero"] == pytest.approx(0.75, abs=0.08)
    draws = bootstrap_difference([both, one], [one, one], 50)
    assert draws["difference"] == pytest.approx(more["difference"] / 2)
    with pytest.raises(ValueError, match="same images"):
        bootstrap_difference(one, Answers(coco, [], [1], [1]), 10)


def test_images_of_a_group_are_drawn_together():
    _, one, _ = half_found()
    assert np.unique(resampled(one, 200, 0)).tolist() == [0, 1, 2]
    one.groups = {1: 7, 2: 7}
    assert np.unique(resampled(one, 200, 0)).tolist() == [1]


def test_bootstrap_refuses():
    coco, one, _ = half_found()
    with pytest.raises(ValueError, match="resamples >= 1"):
        bootstrap(one, 0)
    with pytest.raises(ValueError, match="nothing to find"):
        Matched(Answers(coco | {"annotations": []}, [], [1], [1, 2]))


# ---- region classification


def test_region_scores_by_hand():
    rows = [{"image_id": 0, "label": label, "rank": rank} for label, rank in [(0, 0), (0, 0), (0, 5), (1, 4)]]
    scores = region_scores(rows, ["cat", "dog"])
    assert (scores["top1"], scores["top5"], scores["most_frequent"], scores["boxes"]) == (50, 75, 75, 4)
    assert scores["per_category"] == pytest.approx({"cat": 200 / 3, "dog": 0})
    assert scores["top1_of_categories"] == pytest.approx(100 / 3)
    with pytest.raises(ValueError, match="nothing to classify"):
        region_scores([], [])


def test_region_ranks(data):
    """Red's own prompt has gone to green's place: a box is nearest to the prompt of its colour, whatever that is
    called. Ties count against.
    """
    trial, eye = Trial(ColourDetector(), data, 5, 2, progress=False), torch.eye(3)
    assert [row["rank"] for row in region_ranks(trial, [0, 1, 2], eye)] == [0] * 8
    swapped = region_ranks(trial, [0, 1, 2], eye[[1, 0, 2]])
    assert [row["rank"] for row in swapped] == [
        2 if row["label"] < 2 else 0 for row in swapped
    ]  # a tie with blue, and the other
    assert {row["rank"] for row in region_ranks(trial, [0, 1, 2], torch.zeros(3, 3))} == {2}
    assert [row["label"] for row in region_ranks(trial, [2], eye[2:])] == [2, 2]


@pytest.mark.parametrize("protocol", ["region", "region-visual"])
def test_region_protocol(data, protocol):
    result = evaluate(ColourDetector(), data, protocol, reference=data, progress=False)
    assert (result["top1"], result["top5"], result["boxes"], result["prompts"]) == (100, 100, 8, 3)
    assert result["most_frequent"] == 37.5 and result["images"] == 5 and "AP" not in result
    assert list(
        evaluate(ColourDetector(), data, protocol, "novel", reference=data, progress=False)["per_category"]
    ) == ["blue"]
    assert json.loads(json.dumps(result)) == result


# ---- counting


def write_fsc147(folder, kind: str) -> None:
    """SCENES[0] (red: 2) and SCENES[1] (green: 2, blue: 1), red and green to be counted; as FSC147 or as
    emoji-count-lvis.
    """
    write_set(folder, SCENES[:2])
    asked = {"0.png": "red", "1.png": "green"}
    own = {f: [o[1:] for o in SCENES[i][1] if o[0] == n] for i, (f, n) in enumerate(asked.items())}
    if kind == "lvis":
        entries = [{"image_id": 10 + i, "category_id": IDS[asked[f]], "boxes": own[f][:3]} for i, f in enumerate(asked)]
        (folder / "count_test.json").write_text(json.dumps({"images": [], "annotations": entries}))
        return
    corners = {f: [[[x, y], [x, y + h], [x + w, y + h], [x + w, y]] for x, y, w, h in b] for f, b in own.items()}
    points = {f: [[x + w / 2, y + h / 2] for x, y, w, h in b] for f, b in own.items()}
    entries = {f: {"box_examples_coordinates": corners[f], "points": points[f]} for f in asked}
    (folder / "annotation_FSC147_384.json").write_text(json.dumps(entries))
    (folder / "Train_Test_Val_FSC_147.json").write_text(json.dumps({"train": [], "val": [], "test": list(asked)}))
    (folder / "ImageClasses_FSC147.txt").write_text("".join(f"{f}\t{n}\n" for f, n in asked.items()))
    coco = json.loads((folder / "annotations.json").read_text())  # FSC147 knows nothing of what is not counted
    coco["annotations"] = [a for a in coco["annotations"] if a["category_id"] != IDS["blue"] and a["bbox"][1] != 40]
    (folder / "annotations.json").write_text(json.dumps(coco))


@pytest.mark.parametrize("kind", ["lvis", "points"])
@pytest.mark.parametrize("exemplars", [1, 3])
def test_counting_of_one_who_knows_colours(tmp_path, kind, exemplars):
    write_fsc147(tmp_path / "set", kind)
    result = evaluate(Colours(), tmp_path / "set", "counting", examples=exemplars, progress=False)
    assert (result["MAE"], result["RMSE"], result["bias"], result["mean_count"]) == (0, 0, 0, 2)
    assert result["AP"] == pytest.approx(100) and result["MAE_constant"] == 0
    assert result["per_category"] == {"green": 0, "red": 0} and result["images"] == 2
    assert result["MAE_by_threshold"]["0.95"] == 0 and json.loads(json.dumps(result)) == result


def test_counting_without_boxes(tmp_path):
    write_fsc147(tmp_path / "set", "points")
    (tmp_path / "set" / "annotations.json").unlink()
    assert counting(Colours(), CountingDataset(tmp_path / "set"), Options(examples=3, progress=False))["AP"] is None


def test_counting_errors_by_hand():
    assert count_errors([3, 10], [5, 6]) == {"MAE": 3, "RMSE": pytest.approx(np.sqrt(10)), "bias": 1}
    scores = [np.array([0.9, 0.6, 0.3]), np.array([0.8, 0.1])]
    found = [Detections(np.zeros((len(s), 4)), s, np.zeros(len(s), int), ["it"]) for s in scores]
    assert counted(found, 0.3).tolist() == [3, 1] and counted(found, 0.7).tolist() == [1, 1]
    assert best_threshold(found, [2, 1]) == 0.35  # the first above 0.3, where the third no longer counts


@pytest.mark.parametrize("sides", [1.5, 2.5, 4.0, 50.0])
def test_tiles_share_a_picture(sides):
    """Every point is answered for by one tile, which holds it; tiles are alike, inside, and as many as are needed."""
    image, exemplars = np.zeros((90, 140, 3), np.uint8), np.array([[3, 4, 13, 24], [60, 50, 75, 62]], np.float32)
    grid = tile_grid(image, exemplars, sides)
    tiles, own = (np.stack(part) for part in zip(*grid))
    assert (tiles[:, :2] >= 0).all() and (tiles[:, 2:] <= [140, 90]).all()
    assert len(np.unique(tiles[:, 2:] - tiles[:, :2], axis=0)) == 1 and (len(grid) == 1) == (sides == 50.0)
    points = np.random.default_rng(0).uniform(0, [140, 90], (500, 2))
    answers = ((points[:, None] >= own[:, :2]) & (points[:, None] < own[:, 2:])).all(-1)  # (points, tiles)
    assert (answers.sum(1) == 1).all()
    holder = tiles[answers.argmax(1)]
    assert ((points >= holder[:, :2]) & (points <= holder[:, 2:])).all()


def test_tiles_count_what_one_look_cannot(tmp_path):
    """48 objects, a detector that sees 8 at once: in tiles it counts them all, those on a tile's border once."""
    red = [("red", 3 + 22 * i, 5 + 22 * j, 12, 12) for i in range(8) for j in range(6)]
    write_set(tmp_path / "set", [((140, 180), red)])
    asked = {"image_id": 10, "category_id": IDS["red"], "boxes": [o[1:] for o in red[:3]]}
    (tmp_path / "set" / "count_test.json").write_text(json.dumps({"images": [], "annotations": [asked]}))
    sample = CountingDataset(tmp_path / "set")[0]
    found = count_one(Colours(), sample, tiles=2.5)
    assert counted([found], 0.3) == [48]
    overlap = box_iou(torch.from_numpy(found.boxes[:48]), torch.from_numpy(sample.boxes))
    assert overlap.amax(0).min() > 0.99 and (np.diff(found.scores) <= 0).all()
    assert evaluate(Colours(), tmp_path / "set", "counting", tiles=2.5, progress=False)["MAE"] == 0


def test_counting_refuses(tmp_path):
    write_fsc147(tmp_path / "set", "lvis")
    for options, words in [
        ({"examples": 4}, "1 to 3 exemplars"),
        ({"threshold": 2.0}, "threshold"),
        ({"categories": "novel"}, "splits"),
        ({"split": "all"}, "unknown split"),
        ({"resamples": 9}, "resamples"),
        ({"tiles": 1.0}, "more than 1 exemplar side"),
        ({"tiles": float("nan")}, "more than 1 exemplar side"),
    ]:
        with pytest.raises(ValueError, match=words):
            evaluate(Colours(), tmp_path / "set", "counting", progress=False, **options)


@pytest.mark.parametrize("protocol", ["region", "region-visual", "counting", "video", "visual-g"])
def test_options_of_other_protocols_are_refused(protocol):
    """Before anything is opened: neither the set nor the checkpoint need to exist."""
    for options, words in [
        ({"synonyms": True}, "'text', not for"),
        ({"baselines": ["template"]}, "visual-i-others', not for"),
    ]:
        with pytest.raises(ValueError, match=words):
            evaluate("no-checkpoint", "no-set", protocol, **options)
    if protocol != "counting":
        with pytest.raises(ValueError, match="'counting', not for"):
            evaluate("no-checkpoint", "no-set", protocol, tiles=8.0)


@pytest.mark.parametrize("name, split", [("emoji-count", "val"), ("emoji-count", "test"), ("emoji-count-lvis", "test")])
def test_embedded_counting_sets(tmp_path, name, split):
    """Their counts are the numbers of boxes of the counted category in their annotation file."""
    folder = make_emoji_set(name, tmp_path, scenes=3, workers=1, progress=False)
    coco = json.loads((folder / "annotations.json").read_text())
    names = {c["id"]: c["name"] for c in coco["categories"]}
    ids = {image["file_name"]: image["id"] for image in coco["images"]}
    samples: list[CountingSample] = list(open_counting(folder, split))
    assert samples
    for sample in samples:
        own = [
            a
            for a in coco["annotations"]
            if a["image_id"] == ids[sample.file_name] and names[a["category_id"]] == sample.name
        ]
        assert sample.count == len(own) >= 3 and len(sample.exemplars) == 3


# ---- video


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> CocoDataset:
    """Two clips of four frames. 1: red stands, green moves by 8 px a frame; 2: red moves, blue comes in the second
    frame.
    """
    folder = tmp_path_factory.mktemp("film")
    (folder / "images").mkdir()
    coco = {"images": [], "annotations": [], "categories": [{"id": IDS[n], "name": n} for n in COLOURS]}
    for clip in (1, 2):
        for frame in (3, 2, 1, 0):  # not in their order
            moving = (4 + 8 * frame, 30, 12, 12)
            objects = {"red": (4, 4, 12, 12), "green": moving} if clip == 1 else {"red": moving}
            objects |= {"blue": (40, 4, 12, 12)} if clip == 2 and frame else {}
            image = np.zeros((64, 64, 3), np.uint8)
            number = len(coco["images"])
            for name, (x, y, w, h) in objects.items():
                image[y : y + h, x : x + w] = COLOURS[name]
                entry = {"id": len(coco["annotations"]), "image_id": number, "category_id": IDS[name]}
                coco["annotations"].append(entry | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
            Image.fromarray(image).save(folder / "images" / f"{number}.png")
            entry = {"id": number, "file_name": f"{number}.png", "height": 64, "width": 64}
            coco["images"].append(entry | {"video_id": clip, "frame_index": frame})
    (folder / "annotations.json").write_text(json.dumps(coco))
    return CocoDataset(folder / "annotations.json", folder / "images")


def test_video_by_hand(film):
    """Prompted on the first frames, blue is not asked for. The echo is right where red stands, and nowhere else."""
    assert [[film.coco["images"][f]["frame_index"] for f in clip] for clip in clips(film)] == [[0, 1, 2, 3]] * 2
    result = evaluate(ColourDetector(), film, "video", progress=False)
    assert (result["AP"], result["AP_near"], result["AP_far"]) == pytest.approx((100, 100, 100))
    assert (result["clips"], result["prompts"], result["images"], result["examples"]) == (2, 3, 6, 1)
    assert list(result["per_category"]) == ["red", "green"]
    moved_by_8 = 12 * 4 / (2 * 144 - 12 * 4)  # the IoU with the first frame's box, at most
    assert moved_by_8 < 0.5 and 0 < result["echo"] < 50
    alone = answers(ColourDetector(), film, "video", limit=1, progress=False)
    assert alone.details["echo"] == pytest.approx(50)  # red stands: 100; green: 0
    assert set(alone.groups.values()) == {1, 2} and len(alone.image_ids) == 3


def test_video_prompted_twice(film):
    """The third frame is prompted too: blue is asked for then, and two frames a clip are left."""
    result = evaluate(ColourDetector(), film, "video", examples=2, resamples=30, progress=False)
    assert (result["AP"], result["images"], result["prompts"]) == (pytest.approx(100), 4, 4)
    assert result["AP_low"] == result["AP_high"] == pytest.approx(100)


def test_video_refuses(film, data):
    with pytest.raises(ValueError, match="video_id"):
        evaluate(ColourDetector(), data, "video", progress=False)
    with pytest.raises(ValueError, match="fewer prompted frames"):
        evaluate(ColourDetector(), film, "video", examples=4, progress=False)


# ---- repeated draws, several processes, the command


def test_repeated_draws(data):
    """The echo is what depends on the draw here; its mean and deviation are those of single runs."""
    options = {"limit": 2, "progress": False}
    singles = [evaluate(ColourDetector(), data, "visual-i-others", seed=seed, **options) for seed in (3, 4, 5, 6)]
    one = evaluate(ColourDetector(), data, "visual-i", seed=3, **options)
    together = repeated(4, ColourDetector(), data, "visual-i-others", seed=3, **options)
    assert together["AP"] == pytest.approx(np.mean([s["AP"] for s in singles]))
    assert together["by_seed"]["AP"] == [s["AP"] for s in singles] and together["draws"] == 4
    assert together["std"]["AP"] == pytest.approx(np.std([s["AP"] for s in singles], ddof=1))
    again = repeated(1, ColourDetector(), data, "visual-i", seed=3, **options)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in one.items() if k != "seconds"}
    with pytest.raises(ValueError, match="draws"):
        repeated(0, ColourDetector(), data, "text")


def test_options_may_be_given_at_once_or_by_name(data):
    found = [
        evaluate(ColourDetector(), data, "visual-i", options=Options(seed=4, limit=2, points=True, progress=False)),
        evaluate(ColourDetector(), data, "visual-i", options=Options(seed=4, points=True), limit=2, progress=False),
        evaluate(ColourDetector(), data, "visual-i", seed=4, limit=2, points=True, progress=False),
    ]
    assert all({**own, "seconds": 0} == {**found[0], "seconds": 0} for own in found)
    assert found[0]["images"] == 2 and found[0]["seed"] == 4 and found[0]["prompted_with"] == "points"
    with pytest.raises(TypeError, match="limits"):
        evaluate(ColourDetector(), data, "visual-i", limits=2)


def test_two_processes_give_the_numbers_of_one(tmp_path, capsys):
    """Under torchrun, on drawn scenes with the shipped model: every measure is the same to the last bit."""
    folder = make_emoji_set("emoji-val", tmp_path, scenes=20, workers=1, progress=False)
    command = ["evaluate", "--data", str(folder), "--protocol", "visual-i-others", "--json"]
    threads, torch_run = (
        torch.get_num_threads(),
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"],
    )
    done = subprocess.run(
        [*torch_run, "--standalone", "-m", "trex2_mini", *command, str(tmp_path / "two.json")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    torch.set_num_threads(1)  # as torchrun gives each process
    try:
        assert main([*command, str(tmp_path / "one.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    one.pop("seconds"), two.pop("seconds")
    assert one == two and one["per_category"] and "protocol" in done.stdout and done.stdout.count('"protocol"') == 1


def test_the_command_knows_all_protocols(capsys):
    assert main(["evaluate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(protocol in shown for protocol in ALL_PROTOCOLS)
    assert main(["evaluate", "--protocol", "video", "--data", "emoji-val", "--limit", "1"]) == 1
    assert "video_id" in capsys.readouterr().err
