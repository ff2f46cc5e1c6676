"""Training batches: from (seed, step) alone, sharing categories, changed pictures with boxes that follow, mixtures that
know what they asked.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.scenes.batches import EmojiBatches
from trex2_mini.training.batches import DatasetBatches, MixedBatches, open_batches
from trex2_mini.training.copy_paste import cut_out, paste
from trex2_mini.training.iteration import iteration_losses, text_prompts
from trex2_mini.training.sampling import sample_names


@pytest.fixture
def folder(tmp_path):
    """A set of coloured squares in COCO format; picture 0 is empty."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i in range(8):
        sample = squares(i, (96, 128), objects=0 if i == 0 else 2)
        Image.fromarray(sample.image).save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": 128, "height": 96})
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist()):
            entry = {"id": len(annotations) + 1, "image_id": i + 1, "category_id": label + 1, "iscrowd": 0}
            annotations.append(entry | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (tmp_path / "annotations.json").write_text(text)
    return tmp_path


def dataset(folder):
    return CocoDataset(folder / "annotations.json", folder / "images")


def same(one, other):
    return all(
        np.array_equal(a.image, b.image) and np.array_equal(a.boxes, b.boxes) and np.array_equal(a.labels, b.labels)
        for a, b in zip(one, other, strict=True)
    )


def test_a_batch_follows_from_seed_and_step(folder):
    first, again = (DatasetBatches(dataset(folder), 4, seed=3) for _ in range(2))
    state = torch.random.get_rng_state()
    assert same(first(5), again(5)) and not same(first(5), first(6))
    assert not same(first(5), DatasetBatches(dataset(folder), 4, seed=4)(5))
    assert torch.equal(state, torch.random.get_rng_state())  # torch's own generator is left alone


def test_boxes_follow_their_objects(folder):
    """After scaling, cropping and mirroring, the middle of every box shows its square and not the grey around it."""
    seen = 0
    for step in range(12):
        for sample in DatasetBatches(dataset(folder), 4)(step):
            height, width = sample.image.shape[:2]
            assert {height % 32, width % 32} == {0}
            for x1, y1, x2, y2 in sample.boxes:
                assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
                colour = sample.image[int((y1 + y2) / 2), int((x1 + x2) / 2)].astype(int)
                assert np.ptp(colour) > 30, (step, colour)
                seen += 1
    assert seen > 50


def test_neighbours_share_a_category(folder):
    batches = DatasetBatches(dataset(folder), 4, least_visible=0.0)
    drawn = []
    batches._changed = lambda sample, *_: drawn.append(sample) or sample
    for step in range(10):
        batches(step)
    pairs = list(zip(drawn[::2], drawn[1::2]))
    assert len(pairs) == 20 and all(set(a.labels) & set(b.labels) for a, b in pairs)
    emoji = EmojiBatches(4)(0)
    assert set(emoji[1].labels) <= set(emoji[0].labels) and set(emoji[3].labels) <= set(emoji[2].labels)


def test_an_object_out_of_sight_is_no_target(folder):
    few, all_of_them = (
        sum(len(s.labels) for step in range(20) for s in DatasetBatches(dataset(folder), 4, least_visible=share)(step))
        for share in (0.99, 0.0)
    )
    assert few < all_of_them


def test_a_mixture_joins_names_and_knows_what_was_looked_for(folder):
    mixed = MixedBatches([EmojiBatches(2), DatasetBatches(dataset(folder), 2)], [1, 3])
    assert mixed.names[-4:] == NAMES and len(mixed.names) == 474 + 4
    kinds = [mixed(step)[0].vocabulary for step in range(40)]
    own = [len(kind) for kind in kinds]
    assert set(own) == {474, 4} and 20 < own.count(4) < 40  # a share of 3 in 4
    batch = next(b for b in map(mixed, range(40)) if len(b[0].vocabulary) == 4)
    assert all(mixed.names[label] in NAMES for s in batch for label in s.labels)
    asked = sample_names(batch, mixed.trainable, 50, np.random.default_rng(0))
    assert {mixed.names[c] for c in asked} == set(NAMES)  # nobody looked for emoji in these pictures


def test_a_federated_set_stays_one(folder):
    """LVIS: a picture's kinds and its neg_category_ids were looked for, nothing else; crops, copies and mixtures leave
    it so.
    """
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image |= {"neg_category_ids": [1], "not_exhaustive_category_ids": []}
    path.write_text(json.dumps(content))
    federated = DatasetBatches(dataset(folder), 2)
    mixed = MixedBatches([federated, EmojiBatches(2)], [1, 1e-9])
    for step in range(8):
        for sample, shifted in zip(federated(step), mixed(step), strict=True):
            assert {0, *sample.labels} <= set(sample.vocabulary) and len(sample.vocabulary) <= 3
            assert {mixed.names[label] for label in shifted.vocabulary} == {NAMES[label] for label in sample.vocabulary}


def test_scenes_are_enlarged_with_their_boxes():
    for usual, large in zip(EmojiBatches(2, 3)(1), EmojiBatches(2, 3, short_side=256)(1), strict=True):
        (height, width), scale = usual.image.shape[:2], 256 / 192
        assert (
            large.image.shape[:2] == (round(height * scale), round(width * scale)) and min(large.image.shape[:2]) == 256
        )
        np.testing.assert_allclose(large.boxes, usual.boxes * scale, rtol=5e-3)
        assert np.array_equal(large.labels, usual.labels) and large.boxes.dtype == np.float32
        x1, y1, x2, y2 = (round(side) for side in usual.boxes[0])
        X1, Y1, X2, Y2 = (round(float(side)) for side in large.boxes[0])
        colours = usual.image[y1:y2, x1:x2].mean((0, 1)), large.image[Y1:Y2, X1:X2].mean((0, 1))
        np.testing.assert_allclose(*colours, atol=4)  # the same piece of the picture


def test_what_was_not_looked_for_carries_no_loss():
    """Category 3 was not looked for in image 1: its text prompt and image 0's visual prompt of it are masked there."""
    model, samples = seeded_model(), [squares(0), squares(1)]
    samples[0].labels, samples[1].labels = np.array([3, 0]), np.array([1, 2])
    samples[1].vocabulary = np.array([0, 1, 2])
    assert text_prompts(model, samples, NAMES, [0, 1, 2, 3]).mask.tolist() == [[True] * 4, [True, True, True, False]]
    losses = iteration_losses(model.train(), samples, NAMES, range(4), TINY.train, 1)
    assert all(torch.isfinite(value) for value in losses.values())


def test_bad_input_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="NAME=SHARE"):
        open_batches([f"{folder}=much"], 2)
    with pytest.raises(ValueError, match="share above 0"):
        open_batches(["emoji=0", str(folder)], 2)
    empty = json.loads((folder / "annotations.json").read_text()) | {"annotations": []}
    (folder / "annotations.json").write_text(json.dumps(empty))
    with pytest.raises(ValueError, match="no object to train on"):
        open_batches([str(folder)], 2)


def test_pasted_objects_are_where_their_boxes_are():
    """A red disc, cut out by its polygon, lies in every new box; what it hides is no object any more."""
    rows, columns = np.mgrid[:60, :80]
    disc = (rows - 30) ** 2 + (columns - 40) ** 2 < 15**2
    donor = np.zeros((60, 80, 3), np.uint8)
    donor[disc] = (255, 0, 0)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    outline = np.stack([40 + 15 * np.cos(angles), 30 + 15 * np.sin(angles)], 1).ravel().tolist()
    cut = cut_out(donor, {"id": 1, "segmentation": [outline]})
    assert abs(cut.width - 30) <= 2 and abs(cut.height - 30) <= 2
    hidden = 0
    for seed in range(20):
        target = squares(1, (96, 128), objects=2)
        pasted = paste(target, [(cut, 7)], np.random.default_rng(seed))
        new = pasted.boxes[pasted.labels == 7]
        assert 1 <= len(new) <= 4 and (pasted.labels != 7).sum() <= 2
        hidden += (pasted.labels != 7).sum() < 2
        for x1, y1, x2, y2 in new[-1:].astype(int):
            assert 0 <= x1 < x2 <= 128 and 0 <= y1 < y2 <= 96
            assert pasted.image[(y1 + y2) // 2, (x1 + x2) // 2, 0] > 200
    assert hidden  # some seeds cover a square


def test_cut_out_refuses_what_has_no_outline():
    picture = np.zeros((60, 80, 3), np.uint8)
    assert cut_out(picture, {"id": 1, "bbox": [1, 1, 30, 30]}) is None
    assert cut_out(picture, {"id": 1, "iscrowd": 1, "segmentation": {"counts": [], "size": [60, 80]}}) is None
    assert cut_out(picture, {"id": 1, "segmentation": [[1, 1, 4, 1, 4, 4]]}) is None  # too small to be of use
    with pytest.raises(ValueError, match="annotation 5"):
        cut_out(picture, {"id": 5, "segmentation": [["a", "b"]]})
