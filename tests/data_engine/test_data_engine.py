"""The data engines: phrases, what each does to a picture, shards that resume and do not depend on the processes, and
their quality.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini.checkpoint import save_model
from trex2_mini.cli import main
from trex2_mini.data_engine import (
    TextEngine,
    VisualEngine,
    effect,
    frequent_phrases,
    noun_phrases,
    pseudo_label_quality,
    run_engine,
)
from trex2_mini.data_engine.engines import boxes_of, phrases_of, read_boxes, read_captions, similarities
from trex2_mini.data_engine.phrases import find_parser
from trex2_mini.data_engine.shards import start_ray
from trex2_mini.datasets.registry import open_dataset, open_training_set
from trex2_mini.datasets.statistics import check_pictures
from trex2_mini.detector import Detections, Detector
from trex2_mini.paths import read_names
from trex2_mini.training.batches import DatasetBatches, open_batches
from trex2_mini.training.sampling import sample_names

PICTURES = 7


class Oracle:
    """Stands in for a detector: finds the squares by their colours, with scores and probabilities that a test gives it.

    `missed` pixels in x are added to every box; `confused` {name: name} says what it takes for what.
    """

    def __init__(self, samples, score=0.9, sure=0.9, confused=None, missed=0.0):
        self.samples, self.score, self.sure, self.confused, self.missed = samples, score, sure, confused or {}, missed

    def encode(self, image):
        return next(s for s in self.samples if np.array_equal(s.image, image))

    def detect(self, encoded, text=None, boxes=None, score_threshold=0.3):
        names = list(text or boxes)
        seen = [self.confused.get(NAMES[label], NAMES[label]) for label in encoded.labels]
        found = [(box, names.index(name)) for box, name in zip(encoded.boxes, seen) if name in names]
        kept = found if self.score >= score_threshold else []
        own = np.array([box for box, _ in kept], np.float32).reshape(-1, 4) + [self.missed, 0, self.missed, 0]
        return Detections(
            own.astype(np.float32), np.full(len(kept), self.score), np.array([n for _, n in kept], int), names
        )

    def classify(self, encoded, boxes, names):
        """The colour of the square whose left edge is nearest."""
        said = [
            NAMES[encoded.labels[int(np.abs(encoded.boxes[:, 0] - box[0] + self.missed).argmin())]] for box in boxes
        ]
        table = np.full((len(boxes), len(names)), (1 - self.sure) / max(1, len(names) - 1))
        for row, name in enumerate(said):
            if name in names:
                table[row, names.index(name)] = self.sure
        return [names[i] for i in table.argmax(1)], table


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(folder, seeded_model(), TINY)
    return folder


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Pictures of squares with captions.json, annotations.json (the truth) and half of the boxes without names in
    some.json.
    """
    folder = tmp_path_factory.mktemp("captioned")
    (folder / "images").mkdir()
    images, captions, annotations = [], [], []
    for index in range(PICTURES):
        sample = squares(index, objects=2)
        Image.fromarray(sample.image).save(folder / "images" / f"{index}.png")
        images.append({"id": index + 1, "file_name": f"{index}.png", "width": 64, "height": 64})
        said = " and ".join(f"a {NAMES[label]}" for label in sample.labels)
        captions.append({"id": index + 1, "image_id": index + 1, "caption": f"A picture of {said}."})
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist()):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "image_id": index + 1, "category_id": label + 1}
            annotations.append({"id": len(annotations) + 1, **box})
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    categories = [{"id": i + 1, "name": n} for i, n in enumerate(NAMES)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(truth))
    return folder


# phrases


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("Two dogs on a red sofa.", ["dogs", "red sofa"]),
        ("A man riding a horse next to the Statue of Liberty", ["man", "horse", "statue of liberty"]),
        ("There is more than one raccoon, some blueberries and a jack-o'-lantern.",
            ["raccoon", "blueberries", "jack-o'-lantern"]),
        ("A group of people standing in front of a bus; a bus!", ["people", "bus"]),
        ("More than one lion to the left of an owl.", ["lion", "owl"]),
        ("A photo of it.", []),
        ("", []),
        ("Ein Bär, 3 Äpfel", ["ein bär", "äpfel"]),
    ],
)  # fmt: skip
def test_the_rule_finds_noun_phrases(caption, phrases):
    assert noun_phrases(caption) == phrases


def test_the_rule_reads_the_embedded_captions():
    content = json.loads((open_dataset("emoji-captions").path.parent / "captions.json").read_text())
    truth = json.loads((open_dataset("emoji-captions").path.parent / "annotations.json").read_text())
    name_of = {category["id"]: category["name"] for category in truth["categories"]}
    captions: dict = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    found = phrases_of(captions)
    named = {image["id"]: {name_of[c] for c in image["named_category_ids"]} for image in truth["images"]}
    right = sum(len(named[image] & set(found[image])) for image in named)
    assert right / sum(map(len, named.values())) > 0.97 and right / sum(map(len, found.values())) > 0.97


def test_spacy_is_used_where_it_is_there_and_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)  # as if it were not installed
    assert find_parser("auto") == ("rules", None) == find_parser("rules")
    with pytest.raises(ValueError, match="spaCy, which is not installed"):
        find_parser("en_core_web_sm")


def test_spacy_chunks():
    spacy = pytest.importorskip("spacy")
    models = [name for name in spacy.util.get_installed_models() if name.startswith("en_")]
    if not models:
        pytest.skip("no English pipeline of spaCy's is installed")
    label, parse = find_parser("auto")
    assert label.startswith(sorted(models)[0])
    assert noun_phrases("Two dogs chase the red ball.", parse) == ["dogs", "red ball"]
    with pytest.raises(ValueError, match="no spaCy pipeline 'xx'"):
        find_parser("xx")


def test_the_dictionary_holds_frequent_phrases():
    captions = [["cat", "dog"], ["cat", "cat"], ["dog", "cat"], ["owl"]]
    assert frequent_phrases(captions, 1) == {"cat": 3, "dog": 2}
    assert list(frequent_phrases(captions, 0)) == ["cat", "dog", "owl"]
    with pytest.raises(ValueError, match="more_than must be at least 0"):
        frequent_phrases(captions, -1)


# one picture


def test_the_text_engine_keeps_what_is_found_and_alike(monkeypatch):
    samples = [squares(0)]
    own = [NAMES[label] for label in samples[0].labels]
    absent = next(name for name in NAMES if name not in own)
    engine = TextEngine({1: [*own, absent]}, score=0.5, similarity=0.5)

    def alike(detector, encoded, boxes, phrases):
        return detector.classify(encoded, boxes, phrases)[1]

    monkeypatch.setattr("trex2_mini.data_engine.engines.similarities", alike)
    labels = engine.label(Oracle(samples), 1, samples[0].image)
    assert [label["name"] for label in labels] == own and labels[0]["score"] == labels[0]["similarity"] == 0.9
    x1, y1, x2, y2 = samples[0].boxes[0].tolist()
    assert labels[0]["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert engine.label(Oracle(samples, score=0.4), 1, samples[0].image) == []
    assert engine.label(Oracle(samples, sure=0.4), 1, samples[0].image) == []
    # detected as the absent colour, but more like its own: the filter takes it away
    wrong = Oracle(samples, confused={own[0]: absent})
    assert [label["name"] for label in engine.label(wrong, 1, samples[0].image)] == own[1:]
    assert engine.label(wrong, 2, samples[0].image) == [], "a picture without a caption"


def test_similarities_are_the_cosines_of_v_and_t():
    detector, sample = Detector(seeded_model(), TINY, "cpu"), squares(0)
    encoded = detector.encode(sample.image)
    found = similarities(detector, encoded, sample.boxes, NAMES)
    assert found.shape == (2, 4)
    for box, row in zip(sample.boxes, found):
        v = detector.embed({"it": [(encoded, [box])]}).embeddings[0]
        for name, value in zip(NAMES, row):
            t = detector.model.encode_text([name])[0]
            assert abs(float(v @ t / (v.norm() * t.norm())) - value) < 1e-5


def three_alike():
    """A picture with three squares of one colour and one of another; boxes in painting order."""
    sample = squares(3, (64, 96), objects=1)
    image, boxes = np.full((64, 96, 3), 128, np.uint8), []
    for place, x in enumerate((2, 26, 50, 74)):
        image[20:40, x : x + 20] = (230, 20, 20) if place < 3 else (20, 200, 20)
        boxes.append([x, 20, x + 20, 40])
    sample.image, sample.boxes, sample.labels = image, np.array(boxes, np.float32), np.array([0, 0, 0, 1])
    return sample


def test_the_visual_engine_names_and_completes():
    sample = three_alike()
    given = {1: [sample.boxes[i].tolist() for i in (0, 2, 3)]}  # the second is not annotated
    engine = VisualEngine(given, NAMES)
    labels = engine.label(Oracle([sample]), 1, sample.image)
    assert [(label["name"], label["bbox"][0], label["given"]) for label in labels] == [
        ("red square", 2, 1), ("red square", 50, 1), ("green square", 74, 1), ("red square", 26, 0),
    ]  # fmt: skip
    # too few of a kind, too unsure of the names, or nothing given
    assert VisualEngine(given, NAMES, min_instances=3).label(Oracle([sample]), 1, sample.image) == []
    assert engine.label(Oracle([sample], sure=0.29), 1, sample.image) == []
    assert engine.label(Oracle([sample]), 2, sample.image) == []
    # a detection beside its object by less than `same` is that object, by more it is another
    assert len(engine.label(Oracle([sample], missed=6.0), 1, sample.image)) == 4
    assert len(VisualEngine(given, NAMES, same=0.9).label(Oracle([sample], missed=6.0), 1, sample.image)) == 7


# many pictures


def run(captioned, checkpoint, out, workers=1, **options):
    images, folder, captions, head = read_captions(captioned)
    settings = {"score": 0.0, "similarity": -1.0, "more_than": 1} | options
    engine = TextEngine(phrases_of(captions), **settings)
    return run_engine(engine, images, folder, out, checkpoint, shard=3, workers=workers, progress=False, head=head)


def test_a_rerun_goes_on(captioned, checkpoint, tmp_path):
    one = tmp_path / "one"
    counts = run(captioned, checkpoint, one)
    assert counts["images"] == counts["kept"] == PICTURES and counts["boxes"] > PICTURES and counts["resumed"] == 0
    whole = (one / "annotations.json").read_bytes()
    assert [p.name for p in sorted((one / "shards").glob("0*.json"))] == ["00000.json", "00001.json", "00002.json"]

    # killed: one shard is missing, another was cut off under its temporary name
    (one / "shards" / "00001.json").unlink()
    (one / "shards" / "00001.json.99.part").write_text('[{"id"')
    (one / "annotations.json").unlink()
    untouched = (one / "shards" / "00002.json").stat().st_mtime_ns
    assert run(captioned, checkpoint, one) == counts | {"resumed": 4}
    assert (one / "annotations.json").read_bytes() == whole
    assert (one / "shards" / "00002.json").stat().st_mtime_ns == untouched

    with pytest.raises(ValueError, match="begun with other pictures, settings or weights"):
        run(captioned, checkpoint, one, score=0.1)


@pytest.fixture
def two_actors():
    """Ray on this machine. A machine so busy that it starts in neither of two tries has no room for the test."""
    ray = pytest.importorskip("ray", reason='needs pip install "trex2-mini[ray]"')
    for left in (1, 0):
        try:
            start_ray(2)
            break
        except ValueError as error:
            ray.shutdown()
            if not left:
                pytest.skip(str(error))
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_actors_one_of_which_is_killed_give_the_labels_of_one_process(captioned, checkpoint, tmp_path, two_actors):
    images, folder, captions, head = read_captions(captioned)
    mark = tmp_path / "killed"

    class Deadly(TextEngine):  # local: Ray sends it along by value
        def label(self, detector, image_id, image):
            if image_id == 5 and not mark.exists():
                mark.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().label(detector, image_id, image)

    engine = Deadly(phrases_of(captions), score=0.0, similarity=-1.0, more_than=1)
    options = {"shard": 2, "progress": False, "head": head}
    two = run_engine(engine, images, folder, tmp_path / "two", checkpoint, workers=2, **options)
    assert int(mark.read_text()) != os.getpid()
    assert run_engine(engine, images, folder, tmp_path / "one", checkpoint, **options) == two
    assert two["kept"] == PICTURES and two["resumed"] == 0
    for file in ("annotations.json", *(f"shards/{number:05d}.json" for number in range(4))):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_several_workers_without_ray_say_what_to_install(captioned, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"2 workers need Ray: pip install \"trex2-mini\[ray\]\""):
        run(captioned, checkpoint, tmp_path / "out", workers=2)


def test_tars_are_labelled_where_they_lie_and_written_as_parquet(captioned, checkpoint, tmp_path):
    pytest.importorskip("pyarrow")
    content = json.loads((captioned / "captions.json").read_text())
    said = {a["image_id"]: a["caption"] for a in content["annotations"]}
    (tmp_path / "tars").mkdir()
    for number, part in enumerate((content["images"][:4], content["images"][4:])):
        with tarfile.open(tmp_path / "tars" / f"{number:05d}.tar", "w") as archive:
            for image in part:
                texts = {"png": (captioned / "images" / image["file_name"]).read_bytes()}
                for ending, data in (texts | {"txt": said[image["id"]].encode()}).items():
                    member = tarfile.TarInfo(f"{image['id']:06d}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    counts = run(tmp_path / "tars", checkpoint, tmp_path / "out")
    run(captioned, checkpoint, tmp_path / "folder")
    made, coco = open_training_set(str(tmp_path / "out")), open_dataset(str(tmp_path / "folder"))
    assert counts["kept"] == len(made) == len(coco)
    negative = {c["name"] for c in made.categories if c["negative"]}
    assert negative == {c["name"] for c in coco.categories if c["negative"]}
    for index in range(len(coco)):
        ours, other = made[index], coco[index]
        assert (ours.image == other.image).all() and np.allclose(ours.boxes, other.boxes, atol=1e-4)
        assert [made.names[label] for label in ours.labels] == [coco.names[label] for label in other.labels]
    images, boxes = read_boxes(made)  # what the visual engine takes
    assert images[0]["offset"] > 0 and len(boxes[0]) == len(made.annotated(0).boxes)
    with pytest.raises(ValueError, match="write Parquet"):
        run_engine(VisualEngine(boxes, NAMES), images, made.images, tmp_path / "x", checkpoint, parquet=False)


def test_the_set_can_be_opened_checked_and_trained_on(captioned, checkpoint, tmp_path, capsys):
    out, counts = tmp_path / "out", run(captioned, checkpoint, tmp_path / "out")
    made = open_dataset(str(out))
    assert len(made) == counts["kept"] and not made.problems and not check_pictures(made, progress=False)
    info = made.coco["info"]["engine"]
    assert info["engine"] == "text" and info["score"] == 0.0 and len(info["checkpoint_hash"]) == 16
    assert {"score", "similarity", "area"} <= set(made.coco["annotations"][0])
    assert main(["data", "check", str(out)]) == 0 and "0 problems" in capsys.readouterr().out
    assert len(open_batches([str(out)], 2, short_side=64)(0)) == 2


def test_training_draws_its_negatives_from_the_dictionary(captioned, checkpoint, tmp_path):
    run(captioned, checkpoint, tmp_path, more_than=3)
    made = open_dataset(str(tmp_path))
    frequent = {c["name"] for c in made.categories if c["negative"]}
    assert frequent and frequent != set(made.names) and all(c["count"] > 3 for c in made.categories if c["negative"])
    batches = DatasetBatches(made, 2, short_side=64)
    rng = np.random.default_rng(0)
    for step in range(5):
        samples = batches(step)
        held = {int(label) for sample in samples for label in sample.labels}
        drawn = set(sample_names(samples, batches.trainable, 10, rng)) - held
        assert {made.names[label] for label in drawn} == frequent - {made.names[label] for label in held}


def test_other_names_are_negatives_as_before(captioned):
    assert DatasetBatches(open_dataset(str(captioned)), 2).trainable == [0, 1, 2, 3]


def test_broken_pictures_are_left_out_and_named(captioned, checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(captioned, copy)
    (copy / "images" / "3.png").write_bytes(b"no picture")
    counts = run(copy, checkpoint, tmp_path / "out")
    assert counts["unreadable"] == ["3.png"] and counts["kept"] == PICTURES - 1


def test_other_layouts_of_captions(captioned, tmp_path):
    crawled, classes = tmp_path / "crawled", tmp_path / "classes"
    for folder in (crawled, classes / "red_square", classes / "owl"):
        folder.mkdir(parents=True)
    for source, targets in (
        ("0.png", (crawled / "a.png", classes / "red_square" / "1.png")),
        ("1.png", (crawled / "b.png", classes / "owl" / "1.png")),
    ):
        for target in targets:
            shutil.copy(captioned / "images" / source, target)
    (crawled / "a.txt").write_text("A cat on a mat.\n")
    images, folder, captions, _ = read_captions(crawled)
    assert (
        [i["file_name"] for i in images] == ["a.png"]
        and phrases_of(captions) == {1: ["cat", "mat"]}
        and folder == crawled
    )
    images, _, captions, _ = read_captions(classes)
    assert [i["file_name"] for i in images] == ["owl/1.png", "red_square/1.png"]
    assert phrases_of(captions) == {1: ["owl"], 2: ["red square"]}
    for content in ("[", "[]", '{"images": [], "annotations": [{"caption": "a cat"}]}'):
        (crawled / "captions.json").write_text(content)
        with pytest.raises(ValueError, match="captions"):
            read_captions(crawled)
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "absent"):
        with pytest.raises(ValueError, match=r"expected captions\.json"):
            read_captions(tmp_path / nothing)


def test_the_commands(captioned, checkpoint, tmp_path, capsys):
    out, result = tmp_path / "text", tmp_path / "result.json"
    options = [
        "--checkpoint",
        str(checkpoint),
        "--score",
        "0",
        "--truth",
        str(captioned / "annotations.json"),
        "--json",
        str(result),
    ]
    text = [
        "engine",
        "text",
        "--data",
        str(captioned),
        "--out",
        str(out),
        "--parser",
        "rules",
        "--similarity=-1",
        "--limit",
        "3",
    ]
    assert main([*text, *options]) == 0
    assert "4 phrases, 0 of them in more than 100 captions" in capsys.readouterr().out
    found = json.loads(result.read_text())
    assert found["images"] == 3 and 0 <= found["named_quality"]["precision"] <= found["boxes_quality"]["precision"] <= 1

    (tmp_path / "names.txt").write_text("\n".join([*NAMES, "", NAMES[0]]))
    assert read_names(tmp_path / "names.txt") == NAMES
    visual = [
        "engine",
        "visual",
        "--data",
        str(captioned),
        "--out",
        str(tmp_path / "visual"),
        "--names",
        str(tmp_path / "names.txt"),
    ]
    assert main([*visual, "--probability", "0", "--min-instances", "1", *options]) == 0
    made = open_dataset(str(tmp_path / "visual"))
    given = [a for a in made.coco["annotations"] if a["given"]]
    assert len(given) == 2 * PICTURES and made.names == sorted(NAMES)
    assert json.loads(result.read_text())["boxes_quality"]["recall"] == 1.0  # every object was given

    assert main([*visual, "--probability", "2", *options]) == 1
    assert "probability must lie in 0..1, got 2.0" in capsys.readouterr().err


def test_boxes_of_a_set(captioned):
    boxes = boxes_of(open_dataset(str(captioned)))
    np.testing.assert_allclose(boxes[1], squares(0, objects=2).boxes)


# quality


def coco(*annotations):
    """(image, name, bbox, score) -> a COCO dictionary."""
    names = sorted({name for _, name, _, _ in annotations})
    entries = [{"image_id": i, "category_id": names.index(n), "bbox": b, "score": s} for i, n, b, s in annotations]
    images = [{"id": i} for i in sorted({a[0] for a in annotations})]
    return {"images": images, "annotations": entries, "categories": [{"id": i, "name": n} for i, n in enumerate(names)]}


def test_quality_by_hand():
    truth = coco((1, "cat", [0, 0, 10, 10], 0), (1, "dog", [20, 0, 10, 10], 0), (2, "cat", [0, 0, 10, 10], 0))
    made = coco(
        (1, "cat", [0, 0, 10, 9], 0.9),  # right
        (1, "cat", [0, 0, 10, 10], 0.8),  # a duplicate
        (1, "cat", [20, 0, 10, 10], 0.7),  # a box, but not its name
        (1, "dog", [25, 0, 10, 10], 0.6),  # IoU 1/3
    )  # fmt: skip
    named = pseudo_label_quality(made, truth)
    assert (named["right"], named["boxes"], named["objects"]) == (1, 4, 3)
    assert named["precision"] == 1 / 4 and named["recall"] == 1 / 3
    assert pseudo_label_quality(made, truth, names=False)["right"] == 2
    assert pseudo_label_quality(made, truth, names=False, iou=0.95)["right"] == 2  # the duplicate is the better box
    assert pseudo_label_quality(made, truth, image_ids=[1])["recall"] == 1 / 2
    nothing = pseudo_label_quality(coco(), truth)
    assert nothing["precision"] is None and nothing["recall"] == 0
    with pytest.raises(ValueError, match=r"images \[7\] are not in the truth"):
        pseudo_label_quality(coco((7, "cat", [0, 0, 1, 1], 1)), truth)


def test_threads_are_given_back(captioned, checkpoint, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(captioned, checkpoint, tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# the effect


@pytest.mark.slow
def test_the_effect_is_measured_in_three_arms_and_goes_on(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(effect, "TextEngine", partial(TextEngine, score=0.0, similarity=-1.0))
    monkeypatch.setattr(effect, "VisualEngine", partial(VisualEngine, probability=0.0, score=0.9))
    options = {"steps": 1, "seeds": [0], "scenes": 4, "images": 8, "resamples": 5, "progress": False}
    result = effect.measure_effect(tmp_path, str(checkpoint), **options)
    rows = {(row["measure"], row["arm"]): row for row in result["effect"]}
    arms = {arm for _, arm in rows}
    assert arms == {"start", "base", "+text", "+visual"} and len(rows) == 5 * len(arms)
    for (_, arm), row in rows.items():
        assert 0 <= row["AP"] <= 100 and len(row["by_seed"]) == 1
        assert ("difference" in row) == (arm in ("+text", "+visual"))
    trained = json.loads((tmp_path / "+text-0" / "config.json").read_text())["train"]
    assert trained["steps"] == 1 and trained["batch_size"] == effect.RECIPE["batch_size"]
    words = {c["name"] for c in open_dataset(str(tmp_path / "captioned")).categories}
    assert {"dairy cow", "bengal tiger", "rat"} <= words and "tiger" not in words  # synonyms, where there are any
    # nothing is made or trained twice
    made = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    assert effect.measure_effect(tmp_path, str(checkpoint), **options)["effect"] == result["effect"]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == made
