"""Ablations: every variant is a recipe of its own, the small world is what it says, a run is measured once and read
afterwards.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from tiny import TINY_MODEL

from trex2_mini.datasets.scenes.batches import EmojiBatches
from trex2_mini.datasets.scenes.catalogue import load_catalogue
from trex2_mini.reproduction import ablations
from trex2_mini.reproduction.ablations import (
    TABLE_4,
    TRAINED,
    VARIANTS,
    ablate,
    compare,
    noise,
    small_set,
    small_world,
    variant_config,
)
from trex2_mini.training.iteration import iteration_kinds


def test_variants_differ_and_share_the_rest():
    configs = {variant: variant_config(variant, 30, 1) for variant in VARIANTS}
    assert len(set(configs.values())) == len(VARIANTS)
    assert {(c.train.steps, c.train.seed, c.train.batch_size) for c in configs.values()} == {(30, 1, 4)}
    with pytest.raises(ValueError, match="unknown variant 'more'"):
        variant_config("more", 30, 1)


def test_table_4_trains_what_it_says():
    kinds = {
        v: {k for step in range(1, 30) for k in iteration_kinds(step, variant_config(v, 30, 0).train)} for v in TABLE_4
    }
    assert kinds["joint"] == kinds["joint, no alignment"] == {"text", "visual"}
    assert kinds["text only"] == {"text"} and kinds["visual only"] == {"visual"}
    assert [variant_config(v, 30, 0).train.loss_align > 0 for v in TABLE_4] == [True, False, False, False]


def test_the_world(tmp_path):
    world = small_world()
    assert sum(c.novel for c in world) == len(world) - TRAINED and len({c.name for c in world}) == len(world)
    batch = EmojiBatches(2, 0, 0.5, world, ((128, 128),))
    assert batch.trainable == list(range(TRAINED)) and batch(0)[0].image.shape == (128, 128, 3)
    assert all(label < TRAINED for step in range(3) for sample in batch(step) for label in sample.labels)
    dataset = small_set(tmp_path / "set", 7, 32, 4)
    held = [{a["category_id"] for a in own} for own in dataset.annotations_by_image().values()]
    counts = np.bincount([c for own in held for c in own], minlength=len(world) + 1)[1:]
    # 128 places for 36 categories: three or four each, but for an object that found no place
    assert counts.sum() >= 30 * 4 and counts.max() <= 5
    again = small_set(tmp_path / "again" / "set", 7, 32, 4)
    assert again.path.read_bytes() == dataset.path.read_bytes()
    assert np.array_equal(again[3].image, dataset[3].image)


def test_scenes_of_the_usual_world_are_as_before():
    usual, named = EmojiBatches(2, 0, 0.5), EmojiBatches(2, 0, 0.5, load_catalogue())
    assert all(np.array_equal(a.image, b.image) for a, b in zip(usual(3), named(3)))


def test_a_run_is_measured_once(tmp_path, monkeypatch):
    def tiny(variant, steps, seed):
        config = variant_config(variant, steps, seed)
        return dataclasses.replace(config, model=dataclasses.replace(TINY_MODEL, short_side=128, long_side=256))

    monkeypatch.setattr(ablations, "variant_config", tiny)
    made = small_set  # few scenes, quickly measured
    monkeypatch.setattr(ablations, "small_set", lambda folder, seed, scenes, n: made(folder, seed, 16, 4))
    (result,) = ablate(tmp_path / "results", tmp_path / "work", ["joint"], [3], steps=2, progress=False)
    assert set(result["AP"]) == {f"{p}/{c}" for p, c in ablations.PROTOCOLS}
    assert all(0 <= ap <= 100 for ap in result["AP"].values()) and result["loss"][-1][0] == 2
    (file,) = (tmp_path / "results").iterdir()
    file.write_text(json.dumps(result | {"AP": {"text/trained": 12.5}}))
    assert ablate(tmp_path / "results", tmp_path / "work", ["joint"], [3], steps=2)[0]["AP"] == {"text/trained": 12.5}


def test_compare():
    def run(variant, seed, ap):
        return {"variant": variant, "seed": seed, "AP": {"text": ap}}

    results = [run("joint", 0, 10.0), run("joint", 1, 12.0), run("x", 0, 13.0), run("x", 1, 16.0), run("y", 1, 11.0)]
    table = compare(results)
    assert table["joint"]["text"] == (11.0, 0.0, 0.0)
    # by hand: joint and x have the residuals -+0.25, +-0.25 (y, with one seed, fits exactly); one degree of freedom is
    # left
    deviation, freedom = noise(results, "text")
    assert (deviation, freedom) == (pytest.approx(0.5), 1)
    mean, difference, half = table["x"]["text"]
    assert (mean, difference) == (14.5, 3.5) and half == pytest.approx(12.706 * 0.5, rel=1e-3)
    assert table["y"]["text"][1:] == (-1.0, pytest.approx(12.706 * 0.5 * 2**0.5, rel=1e-3))
    assert compare([results[0], results[2]])["x"]["text"][2] == np.inf  # of one seed
    # runs of another length have levels and shifts of their own, and tell of the noise: residuals 0.25 and 1.0
    longer = [own | {"steps": 9, "AP": {"text": 4 * own["AP"]["text"] + 7}} for own in results[:4]]
    assert noise([*results, *longer], "text") == (pytest.approx(((0.25 + 4.0) / 2) ** 0.5), 2)
    assert compare(results, others=longer)["x"]["text"][2] == pytest.approx(4.3027 * (4.25 / 2) ** 0.5, rel=1e-3)
    with pytest.raises(ValueError, match="no run of 'joint' under seed 2"):
        compare([*results, run("x", 2, 1.0)])


def test_noise_is_found_where_it_was_put():
    """Two-way layouts with a known spread, and a hole: the estimate's mean square is the variance, and 95 % of the
    intervals hold the truth.
    """
    rng, squares, held = np.random.default_rng(0), [], []
    for _ in range(400):
        results = [
            {"variant": name, "seed": seed, "AP": {"text": 3.0 * v + 5.0 * seed + 2.0 * rng.standard_normal()}}
            for v, name in enumerate(("joint", "x", "y", "z"))
            for seed in range(3)
            if (name, seed) != ("z", 2)
        ]
        squares.append(noise(results, "text")[0] ** 2)
        _, difference, half = compare(results)["z"]["text"]
        held.append(abs(difference - 9.0) <= half)
    assert noise(results, "text")[1] == 5
    assert np.mean(squares) == pytest.approx(4.0, rel=0.1) and 0.92 <= np.mean(held) <= 0.98
