"""The embedded family: every set as published, its format valid, and what it says about its pictures true."""

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict

import emoji_family
import numpy as np
import pytest
from emoji_family import contact_sheet, statistics
from pycocotools.coco import COCO

from trex2_mini.datasets.emoji.family import table
from trex2_mini.datasets.emoji.formats import FREQUENCY_SCENES, phrase, training_counts
from trex2_mini.datasets.emoji.pictures import FRAMES, draw
from trex2_mini.datasets.emoji.sets import EMOJI_SETS, make_emoji_set, plan
from trex2_mini.datasets.emoji.worlds import WORLDS, WorldGenerator, world_catalogue
from trex2_mini.datasets.scenes.batches import EmojiBatches
from trex2_mini.datasets.scenes.catalogue import FONTS, icon_pyramid, load_catalogue
from trex2_mini.datasets.scenes.generator import SceneGenerator
from trex2_mini.datasets.scenes.painting import Canvas, tight_box
from trex2_mini.paths import EMOJI_MANIFEST, REPOSITORY

FAMILY = [name for name in EMOJI_SETS if name not in ("emoji-val", "emoji-reference")]
PUBLISHED = json.loads(EMOJI_MANIFEST.read_text())["sets"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(name): folder of the first three scenes of a set (one clip); made once."""
    root = tmp_path_factory.mktemp("family")
    return lambda name: make_emoji_set(name, root, scenes=1 if name == "emoji-clips" else 3, progress=False)


def read(folder, file="annotations.json"):
    return json.loads((folder / file).read_text())


def by_image(truth):
    found = defaultdict(list)
    for annotation in truth["annotations"]:
        found[annotation["image_id"]].append(annotation)
    return found


# all sets


@pytest.mark.parametrize("name", FAMILY)
def test_a_set_begins_as_published_and_is_in_coco_format(name, made):
    folder = made(name)
    manifest = read(folder, "manifest.json")
    assert (
        manifest["annotations_sha256"]
        == PUBLISHED[name]["first_1_sha256" if name == "emoji-clips" else "first_3_sha256"]
    )
    assert set(manifest["other_files_sha256"]) == set(PUBLISHED[name].get("other_files_sha256", {}))
    coco = COCO(str(folder / "annotations.json"))
    assert (
        len(coco.imgs) == len(coco.dataset["images"]) == len(list((folder / "images").iterdir())) == manifest["images"]
    )
    assert len(coco.anns) == len(coco.dataset["annotations"]) == manifest["annotations"] > 0
    for annotation in coco.anns.values():
        image, (x, y, w, h) = coco.imgs[annotation["image_id"]], annotation["bbox"]
        assert annotation["category_id"] in coco.cats
        assert 0 <= x and 0 <= y and min(w, h) >= 4 and x + w <= image["width"] and y + h <= image["height"]
        assert 0 < annotation["area"] <= w * h


def test_the_manifest_lists_every_set():
    assert list(PUBLISHED) == list(EMOJI_SETS)
    assert table(PUBLISHED) in (REPOSITORY / "data" / "README.md").read_text(), "put the table of emoji_family.py there"
    assert (REPOSITORY / "data" / "emoji_family.jpg").stat().st_size < 400_000


def test_statistics_and_contact_sheet(made, tmp_path):
    from trex2_mini.datasets.coco import CocoDataset

    folder = made("emoji-sa")
    found = statistics(CocoDataset(folder / "annotations.json", folder / "images"))
    sides = [a["bbox"][2] * a["bbox"][3] for a in read(folder)["annotations"]]
    assert found["annotations"] == len(sides) and found["median_side"] == pytest.approx(
        np.median(np.sqrt(sides)), abs=0.06
    )
    assert found["boxes_an_image"] == pytest.approx(len(sides) / 3, abs=0.06)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown emoji set 'emoji-wild-night'.*<world>/train.*night"):
        make_emoji_set("emoji-wild-night", tmp_path)
    assert not list(tmp_path.iterdir())


# artwork from fonts


def test_glyphs_come_from_the_packages_files_without_qt():
    for font in FONTS:
        name = {"noto": "1F408", "phosphor": "cat-light", "remix": "scissors-fill"}.get(font, "cat")
        assert 100 < max(icon_pyramid(f"{font}:{name}")[0].size) <= 144
    with pytest.raises(ValueError, match="no glyph 'no such thing'"):
        icon_pyramid("material:no such thing")
    code = (
        "import sys; from trex2_mini.datasets.scenes.catalogue import icon_pyramid; icon_pyramid('awesome:cat');"
        "assert not [m for m in sys.modules if m.lower().startswith(('qt', 'pyqt', 'pyside'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# emoji-coco


def test_emoji_coco_has_cocos_names(made):
    categories = read(made("emoji-coco"))["categories"]
    known = {c.coco: c for c in load_catalogue() if c.coco}
    assert len(categories) == 64 and {c["name"] for c in categories} == set(known)
    assert all(c["novel"] == known[c["name"]].novel for c in categories)


# emoji-lvis


def test_frequency_groups_are_lviss(made):
    categories, catalogue = read(made("emoji-lvis-minival"))["categories"], load_catalogue()
    assert [c["name"] for c in categories] == [c.name for c in catalogue]
    for category in categories:
        count = category["image_count"]
        assert category["frequency"] == ("r" if count <= 10 else "c" if count <= 100 else "f")
        assert category["instance_count"] >= count and category["name"] in category["synonyms"]
        assert not category["novel"] or (count == 0 and category["frequency"] == "r")
    groups = Counter(category["frequency"] for category in categories)
    assert min(groups[group] for group in "rcf") >= 50
    assert sum(category["image_count"] for category in categories) > 2 * FREQUENCY_SCENES


def test_frequencies_are_those_of_the_scenes_that_training_draws():
    batches = EmojiBatches(4, seed=0)
    images, instances = Counter(), Counter()
    for step in range(6):
        for sample in batches(step):
            images.update(set(sample.labels.tolist()))
            instances.update(sample.labels.tolist())
    planned = training_counts(24)
    assert abs(sum(n for n, _ in planned) - images.total()) <= 0.02 * images.total()
    assert abs(sum(n for _, n in planned) - instances.total()) <= 0.05 * instances.total()
    assert sum(abs(n - images[label]) for label, (n, _) in enumerate(planned)) <= 0.05 * images.total()


def test_lvis_annotation_is_federated():
    recipe = EMOJI_SETS["emoji-lvis-val"]
    from trex2_mini.datasets.emoji.formats import category_entries, federated, instances

    pictures = [p for i, held in enumerate(plan(recipe)[:40]) for p in draw("lvis", "", recipe.seed, i, held)]
    truth = instances(pictures, category_entries(load_catalogue()), {})
    lvis = federated(truth, recipe.seed)
    whole, shown = by_image(truth), by_image(lvis)
    group = {c["id"]: c["frequency"] for c in lvis["categories"]}
    hidden = partial = 0
    for image in lvis["images"]:
        full = Counter(a["category_id"] for a in whole[image["id"]])
        some = Counter(a["category_id"] for a in shown[image["id"]])
        negative, incomplete = set(image["neg_category_ids"]), set(image["not_exhaustive_category_ids"])
        assert 5 <= len(negative) <= 14 and not negative & full.keys()  # absent for certain, so never annotated
        assert incomplete <= some.keys() <= full.keys()
        for category_id, count in some.items():
            assert count < full[category_id] if category_id in incomplete else count == full[category_id]
        assert {c for c in full if group[c] == "r"} <= some.keys()
        hidden, partial = hidden + len(full.keys() - some.keys()), partial + len(incomplete)
    assert hidden > 10 and partial > 3
    ids = {a["id"]: a for a in truth["annotations"]}
    for annotation in lvis["annotations"]:
        assert annotation == {key: value for key, value in ids[annotation["id"]].items() if key != "iscrowd"}


def test_minival_is_the_beginning_of_val(made):
    mini, val = read(made("emoji-lvis-minival")), read(made("emoji-lvis-val"))
    assert all(mini[key] == val[key] for key in ("images", "annotations", "categories"))
    assert plan(EMOJI_SETS["emoji-lvis-minival"]) == plan(EMOJI_SETS["emoji-lvis-val"])[:400]


# emoji-wild


def test_worlds_are_many_small_and_mixed():
    assert len(WORLDS) >= 12
    for world in WORLDS:
        categories = world_catalogue(world)
        assert 8 <= len(categories) <= 15 and len({c.name for c in categories}) == len(categories), world
        assert 2 <= sum(c.novel for c in categories) <= len(categories) - 5, world
        splits = [EMOJI_SETS[f"emoji-wild-{world}/{split}"] for split in ("train", "val")]
        assert splits[0].seed != splits[1].seed and 40 <= splits[1].scenes <= 60
        examples = np.bincount(np.concatenate(plan(splits[0])), minlength=len(categories))
        assert examples.min() >= 16, f"{world}: Visual-G asks for 16 pictures a category"
    assert len({WORLDS[world].names for world in WORLDS}) == len(WORLDS)


def chroma(image):
    return np.ptp(image.astype(int), axis=2).mean()


def sides(sample):
    return np.sqrt(np.prod(sample.boxes[:, 2:] - sample.boxes[:, :2], axis=1))


def blocks(image, side=3):
    cut = image[: image.shape[0] // side * side, : image.shape[1] // side * side]
    return (cut == cut[::side, ::side].repeat(side, 0).repeat(side, 1)).all()


def inside(sample):
    """Which pixels lie in a box."""
    mask = np.zeros(sample.image.shape[:2], bool)
    for x1, y1, x2, y2 in sample.boxes.astype(int):
        mask[y1:y2, x1:x2] = True
    return mask


@pytest.fixture(scope="module")
def training_scenes():
    generator = SceneGenerator(seed=10_000)
    return [generator.scene(index) for index in range(8)]


# what tells a world's scenes from training's: at least four of five of its own have it, at most one of four of
# training's
MARKS = {
    "lineart": lambda s: s.image.mean() > 190 and chroma(s.image) < 20,
    "interface": lambda s: min((np.abs(s.image.astype(int) - v).max(axis=2) == 0).mean()
        for v in [np.median(s.image[100:], (0, 1))]) > 0.2,
    "blackboard": lambda s: s.image.mean() < 105 and chroma(s.image) < 40,
    "documents": lambda s: np.median(s.image) > 225,
    "night": lambda s: s.image.mean() < 75,
    "aerial": lambda s: len(s.boxes) >= 25 and np.median(sides(s)) < 18,
    "underwater": lambda s: s.image[..., 2].mean() > s.image[..., 0].mean() + 25 and s.image.std() < 45,
    "pixelart": lambda s: blocks(s.image),
    "thermal": lambda s: (s.image[..., 0] >= s.image[..., 1].astype(int) - 2).mean() > 0.99
    and s.image[..., 1].mean() < 110 and s.image.std() > 50,
    "stickers": lambda s: (s.image.min(axis=2) > 190)[inside(s)].mean() > 0.2,
    "crowded": lambda s: len(s.boxes) >= 8 and np.median(sides(s)) > 45,
    "grey": lambda s: chroma(s.image) < 0.01,
    "silhouettes": lambda s: (s.image.max(axis=2) < 70)[inside(s)].mean() > 0.4,
}  # fmt: skip


@pytest.mark.parametrize("world", WORLDS)
def test_a_world_looks_like_nothing_in_training(world, training_scenes):
    generator = WorldGenerator(world, 5)
    config, usual = WORLDS[world], SceneGenerator.touching
    scenes = [generator.scene(i, categories=[i, i + 1, i + 2]) for i in range(5)]
    again = generator.scene(2, categories=[2, 3, 4])
    np.testing.assert_array_equal(scenes[2].image, again.image)
    np.testing.assert_array_equal(scenes[2].boxes, again.boxes)
    own = config.font or config.ground or config.ink or config.look or (config.touching > usual and config.knobs)
    assert own, "a world needs a look, artwork or an arrangement of its own"
    if world in MARKS:
        mark = MARKS[world]
        assert sum(map(mark, scenes)) >= 4
        assert sum(map(mark, training_scenes)) <= 2
    else:
        assert config.font or config.ground


@pytest.mark.parametrize("world", ["pictograms", "aerial", "pixelart", "crowded", "stickers"])
def test_boxes_of_a_world_are_tight(world, monkeypatch):
    kept = []
    original = Canvas.__init__
    monkeypatch.setattr(Canvas, "__init__", lambda self, *args: (original(self, *args), kept.append(self))[0])
    sample, zoom = WorldGenerator(world, 9).scene(0, categories=[0, 1, 2]), WORLDS[world].zoom
    assert len(sample.boxes) == len(kept[-1].boxes) >= 3
    for i, (box, area) in enumerate(zip(sample.boxes, sample.areas)):
        mask = kept[-1].owner == i
        assert tuple(zoom * side for side in tight_box(mask)) == tuple(box.astype(int)) and area == zoom**2 * mask.sum()


def test_crowded_objects_are_hidden_more_than_training_allows():
    generator = WorldGenerator("crowded", 3)
    shares = []
    original = Canvas.place
    for index in range(4):
        canvases = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Canvas, "place", lambda self, *a, c=canvases: (c.append(self), original(self, *a))[1])
            generator.scene(index, categories=[0, 2, 4, 8])
        shares += [seen / whole for seen, whole in zip(canvases[-1].visible, canvases[-1].areas)]
    assert np.mean(np.array(shares) < 0.5) > 0.25 and min(shares) >= 0.2


# emoji-count


def test_counting_set_is_in_fsc147s_format(made):
    folder = made("emoji-count")
    truth, entries, splits = (
        read(folder),
        read(folder, "annotation_FSC147_384.json"),
        read(folder, "Train_Test_Val_FSC_147.json"),
    )
    classes = dict(line.split("\t") for line in (folder / "ImageClasses_FSC147.txt").read_text().splitlines())
    category, boxes = {c["id"]: c for c in truth["categories"]}, by_image(truth)
    assert sorted(splits["val"] + splits["test"]) == sorted(entries) == sorted(classes) and splits["train"] == []
    for image in truth["images"]:
        entry, own = entries[image["file_name"]], boxes[image["id"]]
        (counted,) = {a["category_id"] for a in own}
        assert category[counted]["name"] == classes[image["file_name"]]
        assert image["file_name"] in splits["test" if category[counted]["novel"] else "val"]
        assert 20 <= len(entry["points"]) == len(own) <= 300 and (entry["H"], entry["W"]) == (
            image["height"],
            image["width"],
        )
        assert len(entry["box_examples_coordinates"]) == 3
        for corners in entry["box_examples_coordinates"]:
            (x1, y1), _, (x2, y2), _ = corners
            assert corners == [[x1, y1], [x1, y2], [x2, y2], [x2, y1]]
            assert [x1, y1, x2 - x1, y2 - y1] in [a["bbox"] for a in own]
        for (px, py), a in zip(entry["points"], own):
            assert (px, py) == (a["bbox"][0] + a["bbox"][2] / 2, a["bbox"][1] + a["bbox"][3] / 2)


def test_counting_among_several_categories(made):
    folder = made("emoji-count-lvis")
    truth, count = read(folder), read(folder, "count_test.json")
    assert [e["image_id"] for e in count["annotations"]] == [i["id"] for i in truth["images"]]
    for entry in count["annotations"]:
        held = Counter(a["category_id"] for a in by_image(truth)[entry["image_id"]])
        own = [a["bbox"] for a in by_image(truth)[entry["image_id"]] if a["category_id"] == entry["category_id"]]
        assert len(held) >= 3 and held.most_common(1)[0][0] == entry["category_id"]
        assert (
            len(entry["boxes"]) == 3
            and all(box in own for box in entry["boxes"])
            and len(entry["points"]) == len(own) >= 12
        )


# emoji-clips


def test_clips_have_tracks():
    recipe = EMOJI_SETS["emoji-clips"]
    hidden = turned = 0
    for index, held in enumerate(plan(recipe)[:3]):
        frames = draw("clips", "", recipe.seed, index, held)
        assert [f.info for f in frames] == [{"video_id": index + 1, "frame_index": k} for k in range(FRAMES)]
        assert len({f.sample.image_id for f in frames}) == FRAMES
        places, names = defaultdict(dict), defaultdict(set)
        for k, frame in enumerate(frames):
            assert len(frame.extras) == len(frame.sample.boxes)
            for extra, box, label in zip(frame.extras, frame.sample.boxes, frame.sample.labels):
                assert 0.2 <= extra["visibility"] <= 1.02
                hidden += extra["visibility"] < 0.8
                places[extra["track_id"]][k] = box
                names[extra["track_id"]].add(int(label))
        assert set.union(*names.values()) <= set(held) and all(len(own) == 1 for own in names.values())
        for boxes in places.values():
            steps = [np.abs(boxes[k + 1] - boxes[k]).max() for k in boxes if k + 1 in boxes]
            ratios = [np.divide(*(boxes[k][2:] - boxes[k][:2])) for k in (min(boxes), max(boxes))]
            turned += abs(np.log(ratios[0] / ratios[1])) > 0.2
            assert not steps or max(steps) < 64
        travelled = [np.abs(np.diff([own[k].mean() for k in sorted(own)])).sum() for own in places.values()]
        assert max(travelled) > 20
    assert hidden >= 5 and turned >= 3


def test_clip_files_name_their_videos(made):
    clips = read(made("emoji-clips"))
    assert clips["videos"] == [{"id": 1, "name": "clip 1", "width": 256, "height": 192}]
    assert (
        all(i["video_id"] == 1 for i in clips["images"])
        and {"track_id", "visibility"} <= clips["annotations"][0].keys()
    )


# emoji-captions


def test_captions_tell_the_truth():
    recipe = EMOJI_SETS["emoji-captions"]
    from trex2_mini.datasets.emoji.formats import captions, category_entries, instances

    pictures = [p for i, held in enumerate(plan(recipe)[:25]) for p in draw("captions", "", recipe.seed, i, held)]
    truth = instances(pictures, category_entries(load_catalogue()), {"info": {}, "licenses": []})
    told = captions(truth, recipe.seed)
    assert all(entry.keys() == {"id", "image_id", "caption"} for entry in told["annotations"])
    assert len({entry["id"] for entry in told["annotations"]}) == len(told["annotations"])
    assert not any("named_category_ids" in image for image in told["images"])
    names, related = {c["id"]: c["name"] for c in truth["categories"]}, 0
    for image in truth["images"]:
        held = by_image(truth)[image["id"]]
        sentences = [entry["caption"] for entry in told["annotations"] if entry["image_id"] == image["id"]]
        assert 1 <= len(sentences) <= 2 and set(image["named_category_ids"]) <= {a["category_id"] for a in held}
        assert {c for c in {a["category_id"] for a in held} if names[c] in " ".join(sentences)} >= set(
            image["named_category_ids"]
        )
        for sentence in sentences[1:]:
            one, side, other = re.fullmatch(r"(.*?) (to the left of|above) (.*)\.", sentence).groups()
            axis = 0 if "left" in side else 1
            middles = defaultdict(list)
            for a in held:
                middles[names[a["category_id"]]].append(a["bbox"][axis] + a["bbox"][axis + 2] / 2)
            first, second = (max((n for n in middles if text.lower().endswith(n)), key=len) for text in (one, other))
            assert max(middles[first]) < min(middles[second])
            related += 1
        for found in re.findall(r"more than one ([a-z' -]+?)(?:,| and |\.| to the | above )", " ".join(sentences)):
            assert sum(names[a["category_id"]] == found for a in held) > 1
    assert related >= 5


def test_phrases():
    assert [phrase(name, 1) for name in ("dog", "apple", "unicorn", "hourglass", "bus", "rhinoceros")] == [
        "a dog", "an apple", "a unicorn", "an hourglass", "a bus", "a rhinoceros",
    ]  # fmt: skip
    assert [phrase(name, 2) for name in ("dog", "grapes", "bacon", "stack of books")] == [
        "more than one dog", "some grapes", "some bacon", "more than one stack of books",
    ]  # fmt: skip


# emoji-sa


def test_sa_boxes_are_a_nameless_part_of_the_truth(made):
    folder = made("emoji-sa")
    shown, truth = read(folder), read(folder, "truth.json")
    assert [c["name"] for c in shown["categories"]] == ["object"] and len(truth["categories"]) == 474
    boxes = {a["id"]: (a["image_id"], a["bbox"]) for a in truth["annotations"]}
    assert all(boxes[a["id"]] == (a["image_id"], a["bbox"]) and a["category_id"] == 1 for a in shown["annotations"])
    assert 0.4 < PUBLISHED["emoji-sa"]["annotations"] / 2400 < 0.8 and len(shown["annotations"]) < len(
        truth["annotations"]
    )
    assert {a["image_id"] for a in shown["annotations"]} == {i["id"] for i in shown["images"]}


def test_contact_sheet_shows_the_pictures(made, monkeypatch):
    monkeypatch.setattr(emoji_family, "make_emoji_set", lambda name, root=None: made(name))
    sheet = contact_sheet("emoji-wild-grey/val", count=2, height=60)
    assert sheet.height == 74 and sheet.width > 120
    assert np.ptp(np.asarray(sheet)[14:].astype(int), axis=2).max() > 100  # coloured boxes on grey pictures
