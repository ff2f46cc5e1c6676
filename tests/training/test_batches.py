"""Training batches: from (seed, step) alone, sharing categories, changed pictures with boxes that follow, mixtures that
know what they asked.
"""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.cutout_sets import cut_out
from trex2_mini.datasets.scenes.batches import EmojiBatches
from trex2_mini.paths import REPOSITORY
from trex2_mini.training.batches import DatasetBatches, MixedBatches, open_batches, read_mixture
from trex2_mini.training.copy_paste import paste
from trex2_mini.training.iteration import iteration_kinds, iteration_losses, text_prompts
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
    mixed = MixedBatches([EmojiBatches(4), DatasetBatches(dataset(folder), 4)], [1, 3])
    assert mixed.names[-4:] == NAMES and len(mixed.names) == 474 + 4
    batches = [mixed(step) for step in range(20)]
    known = [[len(sample.vocabulary) for sample in batch] for batch in batches]
    assert all(a == b and c == d for a, b, c, d in known)  # a pair comes from one source
    assert any(a != c for a, _, c, _ in known)  # a batch from several
    first = [pair for a, _, c, _ in known for pair in (a, c)]
    assert set(first) == {474, 4} and 20 < first.count(4) < 40  # a share of 3 in 4
    batch = next(b for b, sizes in zip(batches, known) if sizes == [4] * 4)
    assert all(mixed.names[label] in NAMES for s in batch for label in s.labels)
    asked = sample_names(batch, mixed.trainable, 50, np.random.default_rng(0))
    assert {mixed.names[c] for c in asked} == set(NAMES)  # nobody looked for emoji in these pictures
    assert all(len({sample.image.shape for sample in batch}) == 1 for batch in batches)


def test_no_two_pairs_of_a_mixture_are_the_same(folder):
    mixed = MixedBatches([EmojiBatches(3)], [1], short_sides=[64])
    ids = [sample.image_id for step in range(5) for sample in mixed(step)]
    assert len(ids) == 15 and len(set(ids)) == len(ids)


def test_one_name_in_two_spellings_is_one_category(folder):
    path = folder / "annotations.json"
    other = json.loads(path.read_text())
    first = dataset(folder)
    for category in other["categories"]:
        category["name"] = category["name"].title().replace(" ", "_")
    path.write_text(json.dumps(other))
    second = dataset(folder)
    mixed = MixedBatches([DatasetBatches(first, 2), DatasetBatches(second, 2)], [1, 1])
    assert second.names == ["Red_Square", "Green_Square", "Blue_Square", "Yellow_Square"] and mixed.names == NAMES


def test_every_step_has_one_short_side(folder):
    mixed = open_batches([f"{folder}=1", "emoji=1"], 2, short_side=64, short_sides=(0, 96, 128), parts=2)
    sides = [[min(mixed(2 * step + part)[0].image.shape[:2]) for part in range(2)] for step in range(12)]
    assert all(one == other for one, other in sides) and {one for one, _ in sides} == {64, 96, 128}
    for sample in mixed(0):
        assert sample.image.shape[0] % 32 == sample.image.shape[1] % 32 == 0 and sample.boxes.max() <= 256


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
        for sample, shifted in zip(
            federated.pictures(step, 2, mixed(step)[0].image.shape[:2]), mixed(step), strict=True
        ):
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


def test_a_picture_that_no_prompt_counts_on_carries_no_loss():
    """Cropped empty, from a source that knows none of the other picture's names: nothing is asked of it, nothing
    breaks.
    """
    model, samples = seeded_model().train(), [squares(0), squares(1, objects=0)]
    samples[0].labels, samples[0].vocabulary = np.array([0, 1]), np.array([0, 1])
    samples[1].vocabulary = np.array([2, 3])
    config = dataclasses.replace(TINY.train, visual_per_text=0, loss_token=1.0)
    losses = iteration_losses(model, samples, NAMES, range(4), config, 1)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_other_names_of_an_object_are_no_negatives():
    """Where "yellow square" may be another name of image 0's objects, its text is neither pushed away nor pulled."""
    model, samples = seeded_model().train(), [squares(0)]
    samples[0].labels, samples[0].vocabulary = np.array([0, 1]), np.array([0, 1, 2])
    config = dataclasses.replace(TINY.train, visual_per_text=0, text_negatives=4)

    def align() -> float:
        return float(iteration_losses(model, samples, NAMES, range(3), config, 1)["align"].detach())

    whole = align()
    samples[0].ambiguous = np.array([2])
    assert align() < whole  # one negative fewer
    samples[0].ambiguous = np.array([0, 1])  # its own name still counts; the other one is no negative
    assert 0 < align() < whole


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


def test_text_and_visual_data_are_two_lists(folder, tmp_path):
    kinds = functools.partial(iteration_kinds, config=dataclasses.replace(TINY.train, visual_per_text=1))
    text, visual = DatasetBatches(dataset(folder), 4), EmojiBatches(4)
    mixed = MixedBatches([text, visual], [1, 0], short_sides=[64], visual_shares=[1, 3], kinds=kinds)
    assert mixed.trainable == [0, 1, 2, 3]  # the names of what is for visual prompts alone are no negatives
    for step in range(6):
        known = [sample.prompts for sample in mixed(step)]
        assert kinds(step) == (("text",) if step % 2 == 0 else ("visual",))
        assert set(known) == {("text", "visual")} if step % 2 == 0 else set(known) <= {("text", "visual"), ("visual",)}
    assert any(("visual",) == s.prompts for step in (1, 3, 5) for s in mixed(step))
    with pytest.raises(ValueError, match="share above 0"):
        MixedBatches([text, visual], [1, 0], visual_shares=[1, 0], kinds=kinds)
    with pytest.raises(ValueError, match="share above 0"):
        MixedBatches([text, visual], [1, 0])
    both = functools.partial(iteration_kinds, config=dataclasses.replace(TINY.train, visual_per_text=0))
    with pytest.raises(ValueError, match="visual_per_text"):
        open_batches(["emoji"], 2, visual_data=[str(folder)], kinds=both)
    opened = open_batches([f"{folder}=2"], 2, visual_data=["emoji", f"{folder}=1"], kinds=kinds)
    assert opened.shares["text"].tolist() == [1, 0] and opened.shares["visual"].tolist() == [0.5, 0.5]
    path = tmp_path / "m.yml"
    path.write_text("text: {emoji: 1}\nvisual: {emoji: 1, coins: 0.5}")
    assert read_mixture(path) == (["emoji=1"], ["emoji=1", "coins=0.5"])
    for bad in ("text: [emoji]", "text: {emoji: 0}\nvisual: {emoji: 1}", "- 1", "a: ["):
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"m\.yml"):
            read_mixture(path)
    assert len([read_mixture(own) for own in (REPOSITORY / "data" / "mixtures").glob("*.yml")]) == 3


@pytest.mark.parametrize("prompts", [("text",), ("visual",)])
def test_what_a_picture_is_not_for_gives_no_loss(prompts):
    train = dataclasses.replace(TINY.train, visual_per_text=1, denoising_queries=0)
    samples = [dataclasses.replace(squares(i), prompts=prompts) for i in range(2)]
    losses = iteration_losses(seeded_model(), samples, NAMES, range(4), train, step=0 if prompts == ("text",) else 1)
    assert {name.split("/")[0] for name in losses} == set(prompts)  # no alignment: it needs both
