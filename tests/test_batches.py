"""Training batches: from (seed, step) alone, sharing categories, changed pictures with boxes that follow, mixtures that know what they asked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini.datasets.batches import DatasetBatches, EmojiBatches, MixedBatches, open_batches
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.prompts import sample_names
from trex2_mini.training import iteration_losses, text_prompts


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
