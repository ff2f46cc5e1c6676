"""photo-wild: that what is shipped is whole, apart and attributed, and that the tool chooses as it says."""

from __future__ import annotations

import json

import numpy as np
import photo_wild
import pytest
from photo_wild import ALIKE, SETS, SPLITS, alikeness, choose, scenes, thumbnail
from PIL import Image

from trex2_mini.datasets.registry import PHOTO_WILD, open_dataset, reference_of, suites
from trex2_mini.datasets.registry import PHOTO_WILD_FOLDER as FOLDER
from trex2_mini.datasets.statistics import check_pictures
from trex2_mini.paths import REPOSITORY, read_json

SHARED = REPOSITORY.parent / "shared"


def thumbnails(paths):
    return np.stack([thumbnail(path) for path in paths])


@pytest.mark.parametrize("name", PHOTO_WILD)
def test_a_set_is_sound_and_its_boxes_lie_in_its_pictures(name):
    dataset = open_dataset(name)
    assert dataset.problems == [] and check_pictures(dataset, progress=False) == []
    sizes = {image["id"]: (image["width"], image["height"]) for image in dataset.coco["images"]}
    assert max(max(size) for size in sizes.values()) <= 448
    for annotation in dataset.coco["annotations"]:
        x, y, w, h = annotation["bbox"]
        width, height = sizes[annotation["image_id"]]
        assert min(x, y) >= 0 and min(w, h) > 0 and x + w <= width + 0.01 and y + h <= height + 0.01
    listed = {image["file_name"] for image in dataset.coco["images"]}
    assert listed == {path.name for path in dataset.images.iterdir()} and 16 <= len(listed) <= 40
    assert {a["category_id"] for a in dataset.coco["annotations"]} == set(dataset.category_ids)


def test_the_tool_and_the_registry_know_the_same_sets():
    assert [f"photo-wild-{name}/{split}" for name in SETS for split in SPLITS] == list(PHOTO_WILD)


@pytest.mark.parametrize("name", SETS)
def test_no_scene_lies_in_both_splits(name):
    examples, val = (open_dataset(f"photo-wild-{name}/{split}") for split in SPLITS)
    assert examples.names == val.names
    entries = [(d, image) for d in (examples, val) for image in d.coco["images"]]
    assert len({image["file_name"] for _, image in entries}) == len(entries)
    looks = thumbnails([d.images / image["file_name"] for d, image in entries])
    found = scenes([image["source_file"] for _, image in entries], looks)
    first = len(examples)
    assert alikeness(looks[:first], looks[first:]).max() < ALIKE + 0.02  # the JPEG files are compressed anew
    names = [image["source_file"] for _, image in entries]
    by_name = scenes(names, np.zeros((len(names), 256)))  # by clips and numbers alone
    assert not set(by_name[:first]) & set(by_name[first:])
    assert len(set(found)) >= 8


def test_it_is_small_and_every_set_is_attributed():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 8_000_000
    readme = (REPOSITORY / "data" / "README.md").read_text(encoding="utf-8")
    manifest = read_json(FOLDER / "manifest.json")["sets"]
    assert set(manifest) == set(SETS) == {path.name for path in FOLDER.iterdir() if path.is_dir()}
    for name, about in manifest.items():
        assert about["licence"] == "CC BY 4.0" and len(about["commit"]) == 40
        for told in (f"photo-wild-{name}", SETS[name], about["repository"], about["commit"][:7]):
            assert told in readme, f"{name}: {told} is not in data/README.md"
        for split in SPLITS:
            assert read_json(FOLDER / name / split / "annotations.json")["info"]["project"] == SETS[name]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "photos").is_dir(), reason="the training sets are not beside the repository")
def test_no_picture_is_one_of_the_training_sets():
    ours = sorted(FOLDER.rglob("*.jpg"))
    folders = ("photos", "more-photos", "coco/train2017", "roboflow")
    theirs = [p for f in folders for p in sorted((SHARED / f).rglob("*")) if p.suffix in (".jpg", ".jpeg", ".png")]
    assert len(theirs) > 4000
    near = alikeness(thumbnails(ours), thumbnails(theirs))
    alike = [(ours[i].relative_to(FOLDER), theirs[j], near[i, j]) for i, j in zip(*np.where(near > 0.95))]
    assert not alike, alike


@pytest.mark.skipif(not (SHARED / "wild").is_dir(), reason="the larger sets are not beside the repository")
def test_the_tool_makes_the_same_sets_again(tmp_path, monkeypatch):
    monkeypatch.setattr(photo_wild, "SETS", {"ships": SETS["ships"]})
    photo_wild.build(SHARED / "wild", tmp_path)
    for split in SPLITS:
        made, kept = (json.loads((f / "ships" / split / "annotations.json").read_text()) for f in (tmp_path, FOLDER))
        assert made == kept


def test_clips_neighbours_and_mirrored_pictures_are_one_scene(tmp_path):
    rng = np.random.default_rng(1)
    first = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    other = rng.integers(0, 255, first.shape, dtype=np.uint8)[:40, :60].repeat(8, 0).repeat(8, 1)
    for file, pixels in {"a.png": first, "b.png": first[:, ::-1], "c.png": other}.items():
        Image.fromarray(pixels).save(tmp_path / file)
    looks = thumbnails(sorted(tmp_path.iterdir()))
    assert alikeness(looks, looks)[0, 1] > 0.99 > ALIKE > alikeness(looks, looks)[0, 2]
    one, two, three = scenes(["a_jpg.rf.1.jpg", "b_jpg.rf.2.jpg", "c_jpg.rf.3.jpg"], looks)
    assert one == two != three
    apart = np.zeros((4, 256))
    files = ["P_19_mov-7_jpg.rf.0.jpg", "P_19_mov-12_jpg.rf.0.jpg", "IMG_0100_jpg.rf.0.jpg", "IMG_0102-2_jpg.rf.0.jpg"]
    a, b, c, d = scenes(files, apart)
    assert a == b and c == d and a != c


def test_every_category_comes_first_into_both_splits():
    contents = [{1}] * 60 + [{2}, {2, 1}]
    for seed in range(5):
        chosen = choose(contents, list(range(62)), np.random.default_rng(seed))
        assert [len(chosen[split]) for split in SPLITS] == [photo_wild.PICTURES[split] for split in SPLITS]
        assert all(any(2 in contents[i] for i in chosen[split]) for split in SPLITS)
        assert not set(chosen["examples"]) & set(chosen["val"])


def test_examples_of_a_suite_come_from_its_other_split():
    assert reference_of("photo-wild-ships/val") == "photo-wild-ships/examples"
    assert reference_of("emoji-wild-night/val") == "emoji-wild-night/train"
    assert reference_of("coco-val2017") == "coco-train2017" and reference_of("lvis-minival") == "lvis-train"
    assert reference_of("emoji-val") == reference_of(open_dataset("photo-wild-ships/val")) == "emoji-reference"
    assert list(suites()["photo-wild"]) == [name for name in PHOTO_WILD if name.endswith("/val")]
    assert len(suites()["emoji-wild"]) == 15
