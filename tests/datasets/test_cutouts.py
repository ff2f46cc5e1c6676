"""Cut-outs: scenes from (seed, index) alone, tight boxes, other objects of one name, one level of names, held-out
pictures, libraries.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from trex2_mini.cli import main
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.cutout_sets import make_cutouts_val, make_library
from trex2_mini.datasets.registry import open_dataset
from trex2_mini.datasets.scenes.batches import CutoutBatches
from trex2_mini.datasets.scenes.cutouts import Backgrounds, CutoutGenerator
from trex2_mini.datasets.scenes.library import Library, novel_names
from trex2_mini.training.batches import open_batches

NOVEL = "abacus"  # one of the names held out
PICTURES = {"one/pug": 8, "two/pug": 4, "one/corgi": 3, "one/dog": 2, "one/cup": 16, "one/plate": 1, f"two/{NOVEL}": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A library of ellipses; each picture has a grey of its own."""
    root = tmp_path_factory.mktemp("library")
    number = 0
    for place, count in PICTURES.items():
        (root / place).mkdir(parents=True)
        for i in range(count):
            number += 1
            rows, columns = np.mgrid[:40, :60]
            inside = ((rows - 19.5) / 20) ** 2 + ((columns - 29.5) / 30) ** 2 <= 1
            pixels = np.dstack([np.full((40, 60, 3), 5 * number, np.uint8), np.where(inside, 255, 0).astype(np.uint8)])
            Image.fromarray(pixels).save(root / place / f"{i}.webp", lossless=True)
    (root / "groups.json").write_text(json.dumps({"pug": "dog", "corgi": "dog", "soup bowl": "dish"}))
    return root


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two pictures: the left half of each is a cup."""
    root = tmp_path_factory.mktemp("photographs")
    (root / "images").mkdir()
    for i in range(2):
        pixels = np.zeros((120, 160, 3), np.uint8)
        pixels[:, 80:] = 255
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 160, "height": 120} for i in range(2)]
    square = [[10, 10, 60, 10, 60, 60, 10, 60]]
    boxes = [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, 80, 120], "iscrowd": 0, "segmentation": square}
        for i in range(2)
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cup"}]}
    (root / "annotations.json").write_text(json.dumps(content))
    return CocoDataset(root / "annotations.json", root / "images")


def test_a_library_joins_sources_and_knows_broad_names(folder):
    library = Library.open(folder)
    assert library.names == (NOVEL, "corgi", "cup", "dog", "plate", "pug")
    assert [len(files) for files in library.files] == [6, 3, 16, 2, 1, 12]
    assert library.broader == {"pug": "dog", "corgi": "dog"}  # nothing is shown of a soup bowl


def test_training_and_evaluation_share_no_picture(folder):
    library = Library.open(folder)
    ours, held = library.part(held_out=False), library.part(held_out=True)
    for name, whole, one, other in zip(library.names, library.files, ours.files, held.files, strict=True):
        assert set(one) | set(other) == set(whole) and not set(one) & set(other), name
    assert [len(files) for files in held.files] == [6, 0, 4, 0, 0, 3]  # all of the novel name, a quarter of large ones
    batches = CutoutBatches(library, 2)
    assert NOVEL in novel_names() and batches.names.index(NOVEL) not in batches.trainable
    assert all(NOVEL not in {batches.names[label] for label in s.vocabulary} for s in batches(0))


def test_scenes_follow_from_seed_and_index(folder, photographs):
    library, behind = Library.open(folder), Backgrounds.of([photographs])
    first, again, other = (CutoutGenerator(library, behind, seed) for seed in (1, 1, 2))
    first.scene(4)  # what was drawn before changes nothing
    for index in range(5):
        one, two = first.scene(index), again.scene(index)
        assert np.array_equal(one.image, two.image) and np.array_equal(one.boxes, two.boxes)
        assert np.array_equal(one.vocabulary, two.vocabulary) and np.array_equal(one.ambiguous, two.ambiguous)
        assert not np.array_equal(one.image, other.scene(index, one.image.shape[:2]).image)


def test_boxes_are_tight(folder):
    """On a scene without light, noise or shadow, the box of the last object (nothing covers it) ends where its ellipse
    does.
    """
    generator = CutoutGenerator(Library.open(folder), seed=3)
    knobs = {"light": 0.0, "noise": 0.0, "blur": 0.0, "shadow": 0.0, "clutter": 0.0, "backgrounds": (0, 1, 0, 0, 0)}
    generator.config = dataclasses.replace(generator.config, **knobs)
    generator._recolour = lambda rng, patch: np.concatenate([patch[..., 3:] * [1, 0, 1], patch[..., 3:]], -1)
    generator._finish = lambda rng, pixels: pixels
    for index in range(12):
        sample = generator.scene(index, (192, 256))
        solid = (np.abs(sample.image - [255, 0, 255]) < 1).all(-1)  # magenta: an object's full colour
        x1, y1, x2, y2 = sample.boxes[-1].astype(int)
        assert solid[y1:y2, x1:x2].any(0).mean() > 0.8 and solid[y1:y2, x1:x2].any(1).mean() > 0.8
        grown = np.zeros_like(solid)
        for a, b, c, d in sample.boxes.astype(int):
            grown[max(b - 1, 0) : d + 1, max(a - 1, 0) : c + 1] = True
        assert not (solid & ~grown).any()  # and nothing of any object lies outside the boxes


def test_objects_of_a_name_are_different_pictures(folder):
    library = Library.open(folder)
    generator = CutoutGenerator(library)
    label = library.names.index("cup")
    keys = generator._keys(np.random.default_rng(0), [label] * 20)
    assert len(set(keys[:16])) == 16 and len(set(keys[16:])) == 4  # the deck is dealt anew when it is empty


def test_a_scene_uses_one_level_of_names(folder):
    library = Library.open(folder)
    generator = CutoutGenerator(library, seed=5)
    dog, narrow = library.names.index("dog"), {library.names.index("pug"), library.names.index("corgi")}
    levels = set()
    for index in range(40):
        sample = generator.scene(index, (128, 128))
        held, known = set(sample.labels.tolist()), set(sample.vocabulary.tolist())
        assert held <= known and not (dog in known and narrow & known)
        if dog in held:
            assert set(sample.ambiguous.tolist()) == narrow
        elif narrow & held:
            assert sample.ambiguous.tolist() == [dog]
        else:
            assert not len(sample.ambiguous)
        levels.add((dog in held, bool(narrow & held)))
    assert {(True, False), (False, True)} <= levels
    assert {generator._all[dog][0]} <= set(library.files[dog]) and len(generator._all[dog]) == 2 + 12 + 3
    paired = generator.scene(7, (128, 128), categories=[dog])
    assert set(paired.labels.tolist()) == {dog}  # categories that are given set the level


def test_what_a_background_shows_is_unknown(folder, photographs):
    """The photographs' left halves are cups: a piece that shows some of it makes "cup" unknown, unless the scene has
    cups.
    """
    library, behind = Library.open(folder), Backgrounds.of([photographs])
    rng = np.random.default_rng(0)
    pieces = [behind.piece(rng, 64, 64) for _ in range(60)]
    for pixels, shown in pieces:
        assert pixels.shape == (64, 64, 3)
        assert shown == ({"cup"} if (pixels < 128).any() else set())
    assert sum("cup" in shown for _, shown in pieces) < 15  # windows with less of an object are preferred
    generator = CutoutGenerator(library, behind, drawn=0.0)
    plate, cup = library.names.index("plate"), library.names.index("cup")
    object.__setattr__(behind, "names", tuple(("cup",) for _ in behind.paths))
    known = [cup in generator.scene(i, (64, 64), categories=[plate]).vocabulary for i in range(30)]
    assert not all(known) and any(known)
    assert all(cup in generator.scene(i, (64, 64), categories=[cup]).vocabulary for i in range(10))


def test_mixed_with_a_set(folder, photographs):
    mixed = open_batches([f"cutouts:{folder}=3", f"{photographs.path.parent}=1"], 4, short_side=64)
    assert mixed.names == [NOVEL, "corgi", "cup", "dog", "plate", "pug"] and mixed.trainable == [1, 2, 3, 4, 5]
    samples = [sample for step in range(10) for sample in mixed(step)]
    only = [s for s in samples if s.ambiguous is None]
    assert 0 < len(only) < 20 and all(s.vocabulary.tolist() == [2] for s in only)
    assert mixed.sources[0].generator.backgrounds.paths[0].endswith("images/0.png")


def test_a_library_from_masks(photographs, tmp_path):
    assert make_library(photographs, tmp_path / "out", progress=False) == {"cup": 2}
    cut = Image.open(tmp_path / "out" / "cup" / "1.webp")
    assert cut.size == (50, 50)  # the mask's extent, not the box's
    with pytest.raises(ValueError, match="holds something already"):
        make_library(photographs, tmp_path / "out", progress=False)
    photographs.categories[0]["name"], kept = "../cup", photographs.names
    photographs.names = ["../cup"]
    try:
        make_library(photographs, tmp_path / "safe", progress=False)
    finally:
        photographs.names, photographs.categories[0]["name"] = kept, "cup"
    assert [p.name for p in (tmp_path / "safe").iterdir()] == ["_cup"]  # no name leads out of the folder


def test_cutouts_val(folder, photographs, tmp_path):
    made = make_cutouts_val(folder, tmp_path / "val", photographs, scenes=6)
    dataset = open_dataset(str(made))
    assert {c["name"]: c["novel"] for c in dataset.categories} == {NOVEL: True, "cup": False, "pug": False}
    assert len(dataset) == 6 and all(len(sample.labels) for sample in dataset)
    with pytest.raises(ValueError, match="holds something already"):
        make_cutouts_val(folder, made, photographs, scenes=6)
    (tmp_path / "small" / "cup").mkdir(parents=True)
    Image.new("RGBA", (20, 20)).save(tmp_path / "small" / "cup" / "0.webp")
    with pytest.raises(ValueError, match="12 pictures or more"):
        make_cutouts_val(tmp_path / "small", tmp_path / "other")


def test_the_commands(folder, photographs, tmp_path, monkeypatch, capsys):
    """A library from a set, a set from a library, and that set by its name."""
    monkeypatch.setenv("TREX2_DATA", str(tmp_path))
    monkeypatch.setattr("trex2_mini.datasets.cutout_sets.SCENES", 5)
    with pytest.raises(FileNotFoundError, match="data cutouts-val LIBRARY"):
        open_dataset("cutouts-val")
    assert main(["data", "cutouts", str(photographs.path.parent), str(tmp_path / "own")]) == 0
    assert "2 objects of 1 categories" in capsys.readouterr().out
    assert main(["data", "cutouts-val", str(folder), "--photographs", str(photographs.path.parent)]) == 0
    assert "5 images, 3 categories (1 novel)" in capsys.readouterr().out
    assert len(open_dataset("cutouts-val")) == 5


def test_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Library.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no cut-outs"):
        Library.open(tmp_path)
    (tmp_path / "pug").mkdir()
    Image.new("RGBA", (20, 20)).save(tmp_path / "pug" / "0.webp")
    (tmp_path / "groups.json").write_text(json.dumps({"pug": "dog", "dog": "animal"}))
    with pytest.raises(ValueError, match="narrow name: broad name"):
        Library.open(tmp_path)
