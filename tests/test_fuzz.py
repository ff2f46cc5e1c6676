"""Odd input at every public entry point: it works, or our own clear error comes. No other crash, no hang, no file
outside the output folder.

TREX2_FUZZ=100 python -m pytest -q -s tests/test_fuzz.py      # cases an entry point; the default, 6, is what `make
test` runs
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini import annotations
from trex2_mini.checkpoint import load_model, save_model, write_tensors
from trex2_mini.cli import main
from trex2_mini.config import Config
from trex2_mini.datasets.counting import CountingDataset
from trex2_mini.datasets.large.index import write_index
from trex2_mini.datasets.pictures import Pictures
from trex2_mini.datasets.registry import open_dataset
from trex2_mini.datasets.statistics import check_pictures, statistics
from trex2_mini.detector import Detections, Detector
from trex2_mini.evaluation.trial import choose_labels
from trex2_mini.images import MissingPicture, load_image
from trex2_mini.model.trex2 import TRex2
from trex2_mini.paths import read_names
from trex2_mini.prompt_bank import PromptBank
from trex2_mini.reproduction.batches import read_grid
from trex2_mini.search import PhotoIndex, search
from trex2_mini.training.batches import open_batches
from trex2_mini.weights.hub import SharedDetector

EXAMPLES = int(os.environ.get("TREX2_FUZZ", 6))
SECONDS = 30  # a case that takes longer hangs
CASES: Counter[str] = Counter()  # entry point -> cases
REFUSED: Counter[str] = Counter()  # of these, those that raised one of our errors
PACKAGE = str(Path(annotations.__file__).parent)
settings.register_profile(
    "ours", max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES <= 6, print_blob=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
fuzz = settings(settings.get_profile("ours"))


# What watches a case

_written: list[str] | None = None  # paths opened for writing, made, renamed or removed while a case runs


def _audit(event: str, arguments: tuple) -> None:
    if _written is None:
        return
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        _written.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else "")
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
        _written.append(os.fsdecode(arguments[0]))
    elif event in ("os.rename", "os.link", "os.symlink"):
        _written.append(os.fsdecode(arguments[1]))


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The working directory and the data root are empty folders of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TREX2_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@contextmanager
def watched(entry: str):
    """One case, in a fresh folder: it ends in time, well or with our own clear error, and nothing is written
    elsewhere.
    """
    global _written
    CASES[entry] += 1

    def hang(*_):
        raise AssertionError(f"{entry}: more than {SECONDS} s")

    before, _written = signal.signal(signal.SIGALRM, hang), []
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield Path(folder)
            except (ValueError, FileNotFoundError) as error:
                assert_ours(error)
                REFUSED[entry] += 1
            root = Path(folder).parent.resolve()
            outside = [p for p in _written if not Path(p).resolve().is_relative_to(root) and not _harmless(p)]
            assert not outside, f"{entry} wrote outside its folder: {outside}"
    finally:
        _written = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _harmless(path: str) -> bool:
    """Devices, byte code and what matplotlib, a tokenizer or hypothesis keeps for itself."""
    kept = ("__pycache__", "/.cache/", "matplotlib", "/.hypothesis/")
    return path in ("", os.devnull) or any(part in path for part in kept)


def assert_ours(error: Exception) -> None:
    """Raised by a `raise` of this package, with a sentence."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    shown = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno} {frame.line})"
    assert frame.filename.startswith(PACKAGE) and (frame.line or "").startswith("raise"), shown
    assert len(str(error).split()) >= 4, shown


# What is odd

ODD_NUMBERS = [0, -1, 1, 0.5, 10**9, -(10**9), 10**30, 1e308, 1e-300, float("nan"), float("inf"), float("-inf")]
ODD_TEXTS = ["", " ", "x", ",", "../../outside", "/tmp/outside", "\x00", "\ud800", "ü🦖", "NaN", "1e400", "a" * 3000]
odd_scalars = st.one_of(
    st.sampled_from([None, True, *ODD_NUMBERS, *ODD_TEXTS]), st.integers(-300, 300), st.floats(), st.text(max_size=8)
)
odd = st.recursive(
    odd_scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
number = st.one_of(st.floats(-100, 200), st.sampled_from(ODD_NUMBERS), st.integers(-100, 200))
odd_arrays = st.builds(
    lambda *given: _array(*given),
    st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 9, 33]), max_size=5),
    st.sampled_from(["?", "b", "B", "h", "H", "i", "q", "e", "f", "d", "g", "F", "O", "U3", "S2", "M8[s]", "V3", "unit",
        ">f4", ">u2"]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip


def _array(shape: list[int], dtype: str, seed: int) -> np.ndarray:
    """Any shape and type, its bytes drawn at random ("unit": floats in 0..1, a picture if the shape allows it)."""
    rng = np.random.default_rng(seed)
    if dtype == "unit":
        return rng.random(shape, np.float32)
    if dtype == "O":
        return np.full(shape, "a", object)
    kind = np.dtype(dtype)
    if dtype == "U3":
        return np.full(shape, "abc", kind)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * kind.itemsize), kind).reshape(shape)


def places(tree) -> list[list]:
    """The paths to every value of a JSON tree."""
    found = [[]]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += [[key, *rest] for rest in places(value)]
    return found


@st.composite
def mutated(draw, tree):
    """A JSON tree with one to three values replaced, removed or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(tree)))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(odd)
            continue
        owner = tree
        for key in path[:-1]:
            owner = owner[key]
        how = draw(st.sampled_from(["replace", "replace", "remove", "double"]))
        if how == "replace":
            owner[path[-1]] = draw(odd)
        elif how == "remove":
            del owner[path[-1]]
        elif isinstance(owner, list):
            owner.append(copy.deepcopy(owner[path[-1]]))
        else:
            owner[f"{path[-1]}2"] = owner[path[-1]]
    return tree


@st.composite
def broken(draw, content: bytes):
    """Bytes cut, changed or with something put in between."""
    content = bytearray(content)
    rng = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(1, 4))):
        how, at = draw(st.sampled_from(["cut", "change", "head", "insert", "zero"])), rng.randrange(len(content) + 1)
        if how == "cut":
            del content[at:]
        elif how == "insert":
            content[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            at = min(at, 200) if how == "head" else at
            end = min(len(content), at + rng.randrange(1, 9))
            content[at:end] = bytes(end - at) if how == "zero" else rng.randbytes(end - at)
    return bytes(content)


def as_json(tree) -> bytes:
    return json.dumps(tree).encode()


# The user's object


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(seeded_model(), TINY, "cpu")


@pytest.fixture(scope="module")
def encoded(detector):
    return detector.encode(squares(0).image)


def assert_sound(found: Detections, height: int, width: int) -> None:
    assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
    assert (
        (found.boxes >= 0).all()
        and (found.boxes <= [width, height] * 2).all()
        and set(found.labels) <= set(range(len(found.names)))
    )


@fuzz
@given(odd_arrays | odd)
def test_encode_arrays(detector, source):
    with watched("encode: arrays"):
        encoded = detector.encode(source)
        assert_sound(detector.detect(encoded, text="cat", score_threshold=0), encoded.height, encoded.width)


MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "I;16B",
]


@fuzz
@given(st.sampled_from(MODES), st.integers(0, 40), st.integers(0, 40), st.integers(0, 12), st.binary(max_size=40))
def test_encode_pil(detector, mode, width, height, orientation, info):
    with watched("encode: PIL pictures"):
        picture = Image.new(mode, (width, height))
        picture.getexif()[0x0112] = orientation
        picture.info |= {"transparency": info} if mode in ("P", "L") and info else {"exif": info}
        array = load_image(picture)
        assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3


@fuzz
@given(st.data(), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO", "TGA"]))
def test_encode_files(data, kind):
    file = io.BytesIO()
    Image.fromarray(squares(1, (48, 48)).image).save(file, kind)
    content = data.draw(broken(file.getvalue()))
    with watched("encode: picture files") as folder:
        (folder / f"a.{kind.lower()}").write_bytes(content)
        load_image(folder / f"a.{kind.lower()}")


regions = st.one_of(
    st.just([[5, 5, 30, 30]]), odd, odd_arrays, st.lists(st.lists(number, min_size=2, max_size=4), max_size=4),
    st.dictionaries(odd_scalars.filter(lambda key: key == key),
        st.lists(st.lists(number, min_size=4, max_size=4), max_size=3), max_size=3),
)  # fmt: skip


@fuzz
@given(regions, st.booleans())
def test_boxes(detector, encoded, boxes, negative):
    with watched("detect: boxes"):
        given = {"text": "cat", "negative_boxes": boxes} if negative else {"boxes": boxes}
        assert_sound(detector.detect(encoded, score_threshold=0, **given), 64, 64)


@fuzz
@given(regions, st.booleans())
def test_points(detector, encoded, points, negative):
    with watched("detect: points"):
        given = {"text": "cat", "negative_points": points} if negative else {"points": points}
        assert_sound(detector.detect(encoded, score_threshold=0, **given), 64, 64)


@fuzz
@given(st.text() | st.lists(st.text(max_size=40), max_size=4) | odd | odd_arrays, st.booleans())
def test_names(detector, encoded, names, negative):
    with watched("detect: names"):
        given = {"text": "cat", "negative_text": names} if negative else {"text": names}
        assert_sound(detector.detect(encoded, score_threshold=0, **given), 64, 64)
        detector.classify(encoded, [[1, 1, 20, 20]], names)


@fuzz
@given(odd_scalars, odd_scalars, odd_scalars)
def test_options(detector, encoded, threshold, limit, beta):
    with watched("detect: options"):
        found = detector.detect(
            encoded, text="cat", negative_text="dog", score_threshold=threshold, max_detections=limit, beta=beta
        )
        assert_sound(found, 64, 64)
        found.filter(threshold)


@fuzz
@given(
    st.dictionaries(
        st.text(max_size=4), st.lists(st.tuples(odd_arrays | st.just("picture"), regions), max_size=3), max_size=2
    )
    | odd
)
def test_examples(detector, encoded, examples):
    if isinstance(examples, dict):
        pair = (encoded, [[1, 1, 20, 20]])
        examples = {
            name: [(encoded if isinstance(p[0], str) else p[0], p[1]) if isinstance(p, tuple) else p
                for p in own] + [pair]
            if isinstance(own, list) else own
            for name, own in examples.items()
        }  # fmt: skip
    with watched("embed: examples"):
        bank = detector.embed(examples)
        assert_sound(detector.detect(encoded, prompts=bank, score_threshold=0), 64, 64)


@fuzz
@given(regions, st.just(NAMES) | st.lists(st.text(min_size=1, max_size=5), max_size=3) | odd)
def test_classify(detector, encoded, boxes, names):
    with watched("classify"):
        best, probabilities = detector.classify(encoded, boxes, names)
        assert len(best) == len(probabilities) and np.isfinite(probabilities).all()


# Files: prompt banks, checkpoints, configurations


@fuzz
@given(
    st.just(["a", "b"]) | odd, st.just([2, 32]) | st.lists(st.integers(0, 40), max_size=3),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool]), number,
)  # fmt: skip
def test_prompt_banks(detector, encoded, names, shape, kind, value):
    with watched("prompt banks: names and tensors") as folder:
        tensor = torch.full(shape, float(value), dtype=torch.float64).to(kind)
        key = "visual_embedding" if names is None else "embeddings"
        write_tensors(folder / "bank.safetensors", {key: tensor}, {"names": json.dumps(names)})
        bank = PromptBank.load(folder / "bank.safetensors")
        assert_sound(detector.detect(encoded, prompts=bank, score_threshold=0), 64, 64)


@fuzz
@given(st.data())
def test_prompt_bank_files(detector, encoded, data):
    PromptBank(["a", "b"], torch.ones(2, 32)).save("bank.safetensors")
    content = data.draw(broken(Path("bank.safetensors").read_bytes()))
    with watched("prompt banks: broken files") as folder:
        (folder / "bank.safetensors").write_bytes(content)
        bank = PromptBank.load(folder / "bank.safetensors")
        assert_sound(detector.detect(encoded, prompts=bank, score_threshold=0), 64, 64)


@pytest.fixture(scope="module")
def checkpoint(detector, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(folder, detector.model, TINY)
    return folder


@fuzz
@given(st.data(), st.booleans())
def test_checkpoint_files(checkpoint, data, shared):
    """The header of a safetensors file is its first part: half of the changes go there."""
    content = data.draw(broken((checkpoint / "model.safetensors").read_bytes()))
    with watched("checkpoints: broken weights") as folder:
        (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
        (folder / "model.safetensors").write_bytes(content)
        SharedDetector.from_pretrained(folder) if shared else load_model(folder)


@fuzz
@given(mutated(json.loads(TINY.to_json())))
def test_configurations(tree):
    with watched("configurations"):
        TRex2(Config.from_json(as_json(tree).decode()).model, pretrained=False)


@fuzz
@given(st.data())
def test_configuration_files(checkpoint, data):
    content = data.draw(
        broken((checkpoint / "config.json").read_bytes()) | mutated(json.loads(TINY.to_json())).map(as_json)
    )
    with watched("checkpoints: broken config.json") as folder:
        (folder / "config.json").write_bytes(content)
        os.link(checkpoint / "model.safetensors", folder / "model.safetensors")
        Detector.load(folder).detect(squares(0).image, text="cat")


# Annotations

COCO = {
    "info": {"version": "1"},
    "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 64}, {"id": 2, "file_name": "2.png"}],
    "categories": [{"id": 3, "name": "cat", "novel": True, "supercategory": "animal"},
        {"id": 4, "name": "dog", "novel": False}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 20, 20], "area": 300, "iscrowd": 0,
         "segmentation": [[5, 5, 25, 5, 25, 25]]},
        {"id": 2, "image_id": 1, "category_id": 4, "bbox": [30, 5.5, 20, 20]},
        {"id": 3, "image_id": 2, "category_id": 4, "bbox": [0, 0, 60, 60], "iscrowd": 1},
        {"id": 4, "image_id": 2, "category_id": 3, "bbox": [10, 10, 10, 10]},
    ],
}  # fmt: skip
LVIS = {
    "images": [
        {"id": i, "coco_url": f"http://images.cocodataset.org/val2017/{i}.png", "neg_category_ids": [3],
            "not_exhaustive_category_ids": [4]}
        for i in (1, 2)
    ],
    "categories": [
        {"id": 3, "name": "bat_(animal)", "synonyms": ["bat"], "def": "flies", "frequency": "r", "synset": "bat.n.01"},
        {"id": 4, "name": "dog", "synonyms": ["dog"], "def": "barks", "frequency": "f", "synset": "dog.n.01"},
    ],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 4, "bbox": [5, 5, 20, 20], "area": 300,
        "segmentation": []}],
}  # fmt: skip
VOC = """<annotation><folder>x</folder><filename>1.png</filename>
<size><width>64</width><height>64</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object>
</annotation>"""
FSC = {
    "annotation_FSC147_384.json": {
        "1.png": {"box_examples_coordinates": [[[1, 1], [1, 9], [9, 9], [9, 1]]] * 3, "points": [[5, 5], [9, 9]]}
    },
    "Train_Test_Val_FSC_147.json": {"test": ["1.png"], "val": [], "train": []},
    "annotations.json": {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [{"image_id": 1, "bbox": [1, 1, 8, 8]}],
    },
}
FSCD = {
    "instances_test.json": COCO,
    "count_test.json": {
        "images": [],
        "annotations": [{"image_id": 1, "boxes": [[1, 1, 8, 8]]}, {"image_id": 2, "boxes": []}],
    },
}


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in (1, 2):
        Image.fromarray(squares(number).image).save(folder / f"{number}.png")
    return folder


def use(dataset, categories: str = "all") -> None:
    """Everything that the commands do with a set before a model comes in."""
    for index in range(len(dataset)):
        dataset.read(index)
    statistics(dataset)
    check_pictures(dataset, progress=False, decode=True)
    choose_labels(dataset, categories)


@fuzz
@given(mutated(COCO))
def test_coco(tree):
    with watched("annotations: COCO") as folder:
        pictures(folder / "images")
        (folder / "annotations.json").write_bytes(as_json(tree))
        use(open_dataset(str(folder)), "novel")


@fuzz
@given(broken(as_json(COCO)))
def test_coco_files(content):
    with watched("annotations: broken COCO files") as folder:
        pictures(folder / "images")
        (folder / "annotations.json").write_bytes(content)
        use(open_dataset(str(folder)))


@fuzz
@given(mutated(COCO))
def test_roboflow(tree):
    with watched("annotations: Roboflow") as folder:
        (pictures(folder / "set") / "_annotations.coco.json").write_bytes(as_json(tree))
        use(open_dataset(str(folder / "set")))


@fuzz
@given(mutated(LVIS), st.sampled_from(["lvis-val", "lvis-minival"]))
def test_lvis(place, tree, name):
    with watched("annotations: LVIS") as folder:
        os.environ["TREX2_DATA"] = str(folder)
        pictures(folder / "coco" / "val2017")
        (folder / "lvis").mkdir()
        (folder / "lvis" / "lvis_v1_val.json").write_bytes(as_json(tree))
        use(open_dataset(name))


@fuzz
@given(st.data(), odd_scalars.map(str), st.sampled_from(["cat", "64", "1.png", "20", "0", "bndbox"]))
def test_voc(data, value, at):
    text = VOC.replace(at, value.replace("<", "&lt;"), 1) if data.draw(st.booleans()) else None
    content = data.draw(broken(VOC.encode())) if text is None else text.encode(errors="replace")
    with watched("annotations: Pascal VOC") as folder:
        (pictures(folder / "set") / "1.xml").write_bytes(content)
        use(open_dataset(str(folder / "set")))


YOLO = b"0 0.5 0.5 0.2 0.3\n1 0.1 0.1 0.9 0.1 0.9 0.9\n"
YAML = {"path": ".", "train": "images", "names": ["cat", "dog"], "nc": 2}
RECTANGLE = {"x": 10, "y": 10, "width": 30, "height": 30, "rotation": 20, "rectanglelabels": ["cat"]}
POLYGON = {"points": [[1, 1], [50, 1], [50, 50]], "polygonlabels": ["dog"]}
TASKS = [
    {"id": 1, "data": {"image": "/data/local-files/?d=x/1.png"}, "annotations": [
        {"was_cancelled": False, "result": [{"value": RECTANGLE, "original_width": 64}, {"value": POLYGON}]}
    ]},
    {"image": "2.png", "label": [RECTANGLE]},
]  # fmt: skip
FIFTYONE = {"classes": ["cat"], "labels": {"1": [{"label": 0, "bounding_box": [0.1, 0.1, 0.5, 0.5]}], "2": None}}
LABELME = {"imagePath": "..\\1.png", "imageHeight": 64, "shapes": [
    {"label": "cat", "shape_type": "rectangle", "points": [[1, 1], [20, 20]]},
    {"label": "dog", "shape_type": "circle", "points": [[30, 30], [40, 40]]},
    {"label": "dog", "shape_type": "point", "points": [[30, 30]]},
]}  # fmt: skip
JSON_SETS = {"tasks.json": TASKS, "labels.json": FIFTYONE, "a.json": LABELME, "instances.json": COCO}


@fuzz
@given(st.data(), st.sampled_from(sorted(JSON_SETS)))
def test_json_of_other_tools(data, name):
    """Label Studio, FiftyOne, labelme, COCO under any name: the tree or the file is changed."""
    tree = JSON_SETS[name]
    content = data.draw(mutated(tree).map(as_json) | broken(as_json(tree)))
    with watched(f"annotations: {name}") as folder:
        (pictures(folder / "set") / name).write_bytes(content)
        use(open_dataset(str(folder / "set")))


@fuzz
@given(broken(YOLO) | st.just(YOLO), mutated(YAML).map(as_json) | broken(b"names: [cat, dog]"))
def test_yolo(labels, config):
    with watched("annotations: YOLO") as folder:
        pictures(folder / "images")
        (folder / "labels").mkdir()
        (folder / "labels" / "1.txt").write_bytes(labels)
        (folder / "data.yaml").write_bytes(config)
        dataset = open_dataset(str(folder))
        use(dataset)
        for to in annotations.FORMATS:
            annotations.convert(dataset, folder / to, to)


file_names = st.text(max_size=12) | st.sampled_from(
    [
        *ODD_TEXTS,
        "C:\\x\\1.png",
        "images\\1.png",
        "../../1.png",
        "/etc/passwd",
        "http://[",
        "http://h/1.png?x",
        "?d=../1.png",
        "1.PNG",
    ]
)


@fuzz
@given(st.lists(file_names, min_size=1, max_size=3))
def test_file_names(names):
    """Whatever a set calls its pictures: one inside its folder is found, or none."""
    with watched("annotations: file names") as folder:
        (folder / "1.png").write_bytes(b"outside")
        found = Pictures(pictures(folder / "images"), names)
        for name in names:
            try:
                assert found.find(name).resolve().is_relative_to((folder / "images").resolve())
            except MissingPicture as error:
                assert_ours(error)


@fuzz
@given(st.data(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gbk", "latin-1"]))
def test_text_files(data, encoding):
    with watched("text files") as folder:
        (folder / "a.txt").write_bytes(data.draw(broken("cat, 小猫\ncafé".encode(encoding, "replace"))))
        read_names(folder / "a.txt")


@fuzz
@given(st.data(), st.sampled_from([FSC, FSCD]))
def test_counting(data, files):
    which = data.draw(st.sampled_from(sorted(files)))
    tree = data.draw(mutated(files[which]))
    classes = data.draw(st.sampled_from([b"1.png\tcats\n", b"", b"\xff\xfe", b"\t\t\n1.png"]))
    with watched("annotations: FSC147 and FSCD-LVIS") as folder:
        pictures(folder / ("images_384_VarV2" if files is FSC else "images"))
        for name, content in (files | {which: tree}).items():
            (folder / name).write_bytes(as_json(content))
        (folder / "ImageClasses_FSC147.txt").write_bytes(classes)
        list(CountingDataset(folder))


@fuzz
@given(mutated({"cat": "a small cat", "dog": "a dog"}) | odd)
def test_prompt_phrases(tree):
    with watched("annotations: prompts.json") as folder:
        pictures(folder / "images")
        (folder / "annotations.json").write_bytes(as_json(COCO))
        (folder / "prompts.json").write_bytes(as_json(tree))
        use(open_dataset(str(folder)))


@fuzz
@given(
    st.lists(st.text(max_size=6) | st.sampled_from(["set", "set=1", "set=nan", "set=-1", "set=1e999", "emoji=0", "=",
        "set="]), max_size=3),
    odd_scalars, odd_scalars,
)  # fmt: skip
def test_batches(names, batch_size, balance):
    with watched("training data") as folder:
        pictures(folder / "set" / "images")
        (folder / "set" / "annotations.json").write_bytes(as_json(COCO))
        os.chdir(folder)
        try:
            batches = open_batches(
                names, batch_size if isinstance(batch_size, int) and abs(batch_size) < 9 else 2, 0, 64, balance
            )
            batches(0)
        finally:
            os.chdir(folder.parent)


@fuzz
@given(
    st.dictionaries(
        st.text(max_size=8) | st.sampled_from(ODD_TEXTS),
        st.lists(st.lists(number, min_size=4, max_size=4), max_size=2),
        max_size=3,
    ),
    st.sampled_from(["coco", "yolo", "voc", "x"]),
    st.text(min_size=1, max_size=4),
)
def test_export_of_annotations(boxes, format, name):
    found = {
        file: (64, 64, Detections(np.array(own, np.float32).reshape(-1, 4), np.ones(len(own), np.float32),
            np.zeros(len(own), int), [name]))
        for file, own in boxes.items()
    }  # fmt: skip
    with watched("annotations: export") as folder:
        annotations.export(folder / "out" / "set", found, format)
        assert {p.name for p in folder.iterdir()} <= {"out"} and {p.name for p in folder.glob("out/*")} <= {"set"}


@fuzz
@given(st.data())
def test_half_done_folders(detector, data):
    """The .part file of an interrupted `detect FOLDER`, changed."""
    with watched("detect: half-done folders") as folder:
        pictures(folder / "in")
        record = {
            "file": "1.png",
            "size": [64, 64],
            "names": ["cat"],
            "boxes": [[1, 1, 9, 9]],
            "scores": [0.5],
            "labels": [0],
        }
        asked = {
            "folder": str((folder / "in").resolve()),
            "text": "cat",
            "prompts": None,
            "score_threshold": 0.3,
            "weights": "",
        }
        lines = [as_json(asked), as_json(data.draw(mutated(record)))]
        content = b"".join(line + b"\n" for line in lines)
        (folder / "out.json.part").write_bytes(data.draw(st.just(content) | broken(content)))
        annotations.detect_folder(detector, folder / "in", folder / "out.json", "cat", progress=False)


def changed(tree, *path_and_value):
    """A JSON tree with the value at a path replaced."""
    *path, last, value = path_and_value
    tree = copy.deepcopy(tree)
    owner = tree
    for key in path:
        owner = owner[key]
    owner[last] = value
    return tree


def lvis(tree) -> dict[str, bytes]:
    return {"lvis/lvis_v1_val.json": as_json(tree)}


def fsc(**files) -> dict[str, bytes]:
    return {name: as_json(tree) for name, tree in (FSC | files).items()} | {"ImageClasses_FSC147.txt": b""}


def fscd(**files) -> dict[str, bytes]:
    return {
        f"{name}.json": as_json(tree)
        for name, tree in ({"instances_test": COCO, "count_test": FSCD["count_test.json"]} | files).items()
    }


POINTS, SPLITS, COUNT = "annotation_FSC147_384.json", "Train_Test_Val_FSC_147.json", FSCD["count_test.json"]
DEEP = b"[" * 100_000
READ_CONFIG = lambda folder: Config.load(folder / "config.json")  # noqa: E731
FINDINGS = {  # what the first runs found: files, and what is opened
    "LVIS without coco_url": (lvis(changed(LVIS, "images", 0, {"id": 1})), "lvis-val"),
    "LVIS, coco_url out of its folder": (lvis(changed(LVIS, "images", 0, "coco_url", "http://x/../outside.jpg")),
        "lvis-val"),
    "LVIS, coco_url no text": (lvis(changed(LVIS, "images", 0, "coco_url", [1])), "lvis-val"),
    "LVIS, images null": (lvis(changed(LVIS, "images", None)), "lvis-val"),
    "LVIS, neg_category_ids": (lvis(changed(LVIS, "images", 0, "neg_category_ids", [{}])), "lvis-val"),
    "COCO, id of an annotation": ({"annotations.json": as_json(changed(COCO, "annotations", 0, "id", {}))}, "."),
    "COCO, area": ({"annotations.json": as_json(changed(COCO, "annotations", 0, "area", "x"))}, "."),
    "COCO, file_name": ({"annotations.json": as_json(changed(COCO, "images", 0, "file_name", 7))}, "."),
    "COCO, deep": ({"annotations.json": DEEP}, "."),
    "COCO, no UTF-8": ({"annotations.json": b"\xff\xfe{}"}, "."),
    "Roboflow, category_id": ({"_annotations.coco.json": as_json(changed(COCO, "annotations", 0, "category_id", {}))},
        "."),
    "prompts.json": ({"annotations.json": as_json(COCO), "prompts.json": b"\xff"}, "."),
    "FSC147, null": (fsc(**{SPLITS: None}), CountingDataset),
    "FSC147, no list": (fsc(**{SPLITS: {"test": 3}}), CountingDataset),
    "FSC147, points": (fsc(**{POINTS: changed(FSC[POINTS], "1.png", "points", [[1, 2], [3]])}), CountingDataset),
    "FSC147, exemplars": (fsc(**{POINTS: changed(FSC[POINTS], "1.png", "box_examples_coordinates", None)}),
        CountingDataset),
    "FSC147, boxes": (fsc(**{"annotations.json": {"images": [{}], "annotations": []}}), CountingDataset),
    "FSCD-LVIS, lists": (fscd(count_test={"images": []}), CountingDataset),
    "FSCD-LVIS, boxes": (fscd(count_test=changed(COUNT, "annotations", 0, "boxes", [[1, 1, 8], 8])), CountingDataset),
    "FSCD-LVIS, category_id": (fscd(instances_test=changed(COCO, "annotations", 0, {"image_id": 1})), CountingDataset),
    "FSCD-LVIS, id": (fscd(instances_test=changed(COCO, "categories", 0, "id", {})), CountingDataset),
    "a grid, no UTF-8": ({"grid.yml": b"\xac"}, lambda folder: read_grid(folder / "grid.yml", folder)),
    "a configuration, no UTF-8": ({"config.json": TINY.to_json().encode().replace(b"tiny", b"\xc6")}, READ_CONFIG),
    "a configuration, deep": ({"config.json": DEEP}, READ_CONFIG),
}  # fmt: skip


@pytest.mark.parametrize("files, open_", FINDINGS.values(), ids=FINDINGS)
def test_findings_in_files(place, files, open_):
    for name in ("images", "images_384_VarV2", "coco/val2017"):
        pictures(place / name)
    os.environ["TREX2_DATA"] = str(place)
    for name, content in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        use(open_dataset(open_ if open_ != "." else str(place))) if isinstance(open_, str) else open_(place)
    assert_ours(caught.value)


# a label without a name
RECORD = {"file": "1.png", "size": [9, 9], "names": [], "boxes": [[1, 1, 2, 2]], "scores": [1], "labels": [0]}


@pytest.mark.parametrize(
    "line", [b"\x9a", b"null", b'{"file": "1.png"}', as_json(RECORD), DEEP], ids=lambda line: str(line[:20])
)
def test_findings_in_half_done_folders(detector, place, line):
    """The file is left as it is: its owner decides."""
    pictures(place / "in")
    (place / "out.json.part").write_bytes(b"{}\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"out\.json\.part is damaged.*remove it"):
        annotations.detect_folder(detector, place / "in", place / "out.json", "cat", progress=False)
    assert (place / "out.json.part").read_bytes() == b"{}\n" + line + b"\n" and not (place / "out.json").exists()


@pytest.mark.parametrize(
    "file, name", [("..", "a"), ("", "a"), ("a\0.jpg", "a"), ("\ud800.jpg", "a"), ("a" * 300, "a"), ("a.jpg", "\ud800")]
)
def test_findings_in_export(place, file, name):
    found = {file: (9, 9, Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, int), [name]))}
    with pytest.raises(ValueError) as caught:
        annotations.export(place / "out", found, "coco")
    assert_ours(caught.value)


# Grids of notebook parameters, command lines

GRID = [{"notebook": "nb", "minutes": 1, "parameters": {"steps": [8, 9], "images": 8, "name": "x"}}, {"notebook": "nb"}]


@fuzz
@given(mutated(GRID).map(as_json) | broken(as_json(GRID)) | st.binary(max_size=30) | st.sampled_from(
    [b"!!python/object/apply:os.system ['touch outside']", b"- &a [*a]", b"a: &a [b, *a]", b"- notebook: ../nb",
        b"- {notebook: 2020-01-01}"]
))  # fmt: skip
def test_grids(content):
    with watched("grids of notebook parameters") as folder:
        (folder / "nb.ipynb").write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
        (folder / "grid.yml").write_bytes(content)
        for run in read_grid(folder / "grid.yml", folder):
            run.name()


words = st.sampled_from(
    [
        *map(str, ODD_NUMBERS),
        *(t for t in ODD_TEXTS if "\x00" not in t),
        "CHECKPOINT",
        "SET",
        "PICTURE",
        "OUT",
        "GRID",
        "nano",
    ]
)
COMMANDS = {  # what is always given, and options of which some are given with odd values
    "detect": (["PICTURE", "--checkpoint", "CHECKPOINT"],
        ["--text", "--box", "--point", "--bank", "--json", "--name", "--threshold", "--out"]),
    "data": (["check"], ["", "--out", "--images", "--seed"]),
    "data lvis": (["lvis-val"], ["--images", "--seed"]),
    "evaluate": (
        ["--checkpoint", "CHECKPOINT", "--data", "SET", "--protocol", "text", "--limit", "1"],
        ["--protocol", "--data", "--categories", "--limit", "--seed", "--draws", "--bootstrap", "--examples", "--json",
            "--threshold"]
        + ["--split", "--reference"],
    ),
    "train": (
        ["--config", "CONFIG", "--data", "SET", "--run", "OUT", "--set", "steps=1"],
        ["--config", "--preset", "--data", "--set steps=", "--set lr=", "--set batch_size=", "--set amp=", "--set x="]
        + ["--start-from", "--resume", "--save-every", "--device"],
    ),
    "export": (["--checkpoint", "CHECKPOINT", "--out", "OUT", "--size", "63", "64"],
        ["--checkpoint", "--size", "--text"]),
    "info": (["--preset", "x"], ["--preset", "--size"]),
    "warm-start": (["--from", "SET", "--out", "OUT", "--config", "CONFIG"], ["--from", "--preset", "--config"]),
    "reproduce": (["--scale", "GRID", "--out", "OUT"], ["--scale", "--only", "--workers", "--submitit"]),
    "benchmark": (["x"], ["--repeats", "--preset"]),
    "distil": (["--checkpoint", "SET", "--out", "OUT"], ["--checkpoint", "--steps"]),
}  # fmt: skip


@st.composite
def command_lines(draw):
    command = draw(st.sampled_from(sorted(COMMANDS)))
    always, options = COMMANDS[command]
    line = [command.split()[0], *always]
    for option in draw(st.lists(st.sampled_from(options), max_size=3)):
        count = {"--box": 4, "--point": 2, "--size": 2}.get(option, 1)
        values = [draw(words) for _ in range(count)]
        if option.startswith("--set "):
            line += ["--set", "steps=1", option.removeprefix("--set ") + values[0]]
        else:
            line += [option, *values] if option else values
    return line


@fuzz
@given(command_lines())
def test_command_lines(checkpoint, place, line):
    with watched("command lines") as folder:
        pictures(folder / "set" / "images")
        (folder / "set" / "annotations.json").write_bytes(as_json(COCO))
        (folder / "config.json").write_text(TINY.to_json())
        (folder / "grid.yml").write_text("- {notebook: nowhere}")
        own = {
            "CHECKPOINT": checkpoint, "SET": folder / "set", "PICTURE": folder / "set/images/1.png",
            "OUT": folder / "out",
            "GRID": folder / "grid.yml", "CONFIG": folder / "config.json",
        }  # fmt: skip
        os.environ["TREX2_LVIS_URL"] = os.environ["TREX2_COCO_URL"] = "http://127.0.0.1:9"
        os.chdir(folder)
        try:
            code, said = quietly(lambda: main([str(own.get(word, word)) for word in line]))
        finally:
            os.chdir(folder.parent)
        assert code == 0 or (code in (1, 2) and "error: " in said and len(said.split()) > 4), (code, said)
        REFUSED["command lines"] += code != 0


def quietly(call) -> tuple[int, str]:
    """(exit status, what was written to stderr)."""
    from contextlib import redirect_stderr, redirect_stdout

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        try:
            code = call()
        except SystemExit as end:
            code = end.code
    return code, said.getvalue()


# Sets of millions of pictures, search indexes, and the commands that people type

PERSON = {"tag": "person", "fbox": [1, 1, 9, 9], "vbox": [1, 1, 8, 8], "extra": {"ignore": 1}}
WORD = {"vertices": [[1, 1], [9, 1], [9, 9]], "legible": True}
LINES = [{**WORD, "lines": [{**WORD, "words": [WORD]}]}]
CAPTIONED = {"id": 1, "file_name": "1.png", "width": 64, "height": 64, "caption": "a cat, a dog"}
PHRASE = {"image_id": 1, "bbox": [1, 1, 9, 9], "tokens_positive": [[2, 5]]}
LARGE = {  # reader -> (file, what it holds)
    "detection:objects365": ("a.json", changed(COCO, "images", 1, COCO["images"][0] | {"id": 2})),
    "detection:crowdhuman": ("a.odgt", {"ID": "1", "gtboxes": [PERSON, {**PERSON, "tag": "mask"}]}),
    "grounding:gold_g": ("a.json", {"images": [CAPTIONED], "annotations": [PHRASE]}),
    "regions:hiertext": ("a.jsonl", {"image_id": "1", "image_width": 64, "image_height": 64, "paragraphs": LINES}),
    "regions:sa_1b": ("sa_1.json", {"image": CAPTIONED, "annotations": [{"bbox": [1, 1, 9, 9], "predicted_iou": 0.9}]}),
}


def indexed(module: str, *source) -> None:
    name, _, reader = module.partition(":")
    read = getattr(import_module(f"trex2_mini.datasets.large.{name}"), reader)
    write_index(read(*source), Path("out") / "index.parquet")
    shutil.rmtree("out")


@fuzz
@given(st.data(), st.sampled_from(sorted(LARGE)))
def test_large_sets(data, module):
    name, tree = LARGE[module]
    content = data.draw(mutated(tree).map(as_json) | broken(as_json(tree)))
    with watched(f"large sets: {module}") as folder:
        (folder / name).write_bytes(content)
        indexed(module, folder if name.startswith("sa_") else folder / name)


BOXES_CSV = b"ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n1,/m/1,0.1,0.5,0.1,0.5,0\n2,/m/2,0,1,0,1,1\n"
TREE = {"LabelName": "/m/0", "Subcategory": [{"LabelName": "/m/1", "Subcategory": [{"LabelName": "/m/2"}]}]}


@fuzz
@given(st.just(BOXES_CSV) | broken(BOXES_CSV), broken(b"/m/1,cat\n/m/2,dog\n"), mutated(TREE))
def test_open_images(boxes, classes, tree):
    with watched("large sets: Open Images") as folder:
        for name, content in {"boxes": boxes, "classes": classes, "tree": as_json(tree)}.items():
            (folder / name).write_bytes(content)
        indexed("detection:open_images", folder / "boxes", folder / "classes", None, folder / "tree")


@fuzz
@given(st.data())
def test_shards(data):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in {"1.txt": b"a cat", "1.png": b"x", "1.json": b'{"width": 9}', "2.cls": b"0"}.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    content = data.draw(broken(file.getvalue()[:5120]))
    with watched("large sets: shards") as folder:
        (folder / "a.tar").write_bytes(content)
        indexed("shards:web_shards", folder, ["cat"])


@pytest.fixture(scope="module")
def index_files(detector, tmp_path_factory) -> dict[str, bytes]:
    """Those of a search index of the two pictures of `pictures`."""
    folder = pictures(tmp_path_factory.mktemp("search") / "in")
    PhotoIndex(detector, folder).update(progress=False)
    return {path.name: path.read_bytes() for path in (folder / ".trex2-search").iterdir()}


@fuzz
@given(st.data(), st.sampled_from(["index.json", "pictures.jsonl", "vectors.f16"]), st.booleans())
def test_search_indexes(detector, index_files, data, name, at_random):
    content = data.draw(st.binary(max_size=60) if at_random else broken(index_files[name]))
    with watched(f"search: {name}") as folder:
        where = pictures(folder / "in") / ".trex2-search"
        where.mkdir()
        for file, own in (index_files | {name: content}).items():
            (where / file).write_bytes(own)
        index = PhotoIndex(detector, folder / "in")
        index.update(progress=False)
        for hit in search(index, text="cat", shortlist=data.draw(st.sampled_from([0, 2]))):
            assert 0 <= hit.score <= 1
            assert_sound(hit.detections, 64, 64)


ASKED = "--text --box --point --name --bank --text-file --aliases --device --allow-other-model".split()
LOOKED = "--negative-text --negative-box --negative-point --beta --threshold --max-detections --tiles".split()
WRITTEN = "--json --csv --export --format --crops --class-agnostic-nms".split()
FLAGS = {"--recursive", "--class-agnostic-nms", "--allow-other-model", "--x"}
PEOPLES = {  # what is always given, and options of which some are given with odd values
    "detect": ("PICTURE", ASKED + LOOKED + WRITTEN),
    "detect several": ("FOLDER --text cat", [*ASKED, *LOOKED, "--json", "--recursive"]),
    "count": ("FOLDER --text cat", [*ASKED, *LOOKED, "--csv", "--recursive"]),
    "classify": ("PICTURE --box 1 1 30 30 --text cat", ["--text", "--box", "--top", "--json"]),
    "embed": ("PICTURE --box 1 1 30 30 --out OUT", ["--box", "--point", "--name", "--out"]),
    "embed set": ("--set SET --out OUT", ["--set", "--text", "--examples", "--seed"]),
    "embed crops": ("--crops SET --out OUT", ["--crops", "--examples", "--seed"]),
    "bank list": ("BANK", ["", "--x"]),
    "bank merge": ("BANK BROKEN --out OUT", ["", "--out"]),
    "bank drop": ("BANK a --out OUT", ["", "--out"]),
    "video": ("CLIP --text cat --json OUT", [*ASKED, *LOOKED, "--frame", "--every", "--limit", "--json"]),
    "search": ("FOLDER --text cat", [*ASKED, *"--image --top --shortlist --index --threshold --sheet".split()]),
}
peoples_words = words | st.sampled_from(["BANK", "BROKEN", "FOLDER", "CLIP", "1", "5", "30", "0.5", "cat", "dog; cat"])


@st.composite
def peoples_lines(draw, command):
    always, options = PEOPLES[command]
    line = command.split()[: 2 if command.startswith("bank") else 1] + always.split()
    for option in draw(st.lists(st.sampled_from(options), max_size=3)):
        count = 0 if option in FLAGS else {"box": 4, "point": 2}.get(option.replace("-", " ").split(" ")[-1], 1)
        line += [*filter(None, [option]), *(draw(peoples_words) for _ in range(count))]
    return line if command.startswith("bank") else [*line, "--checkpoint", "CHECKPOINT"]


@pytest.mark.parametrize("command", PEOPLES)
@settings(fuzz, max_examples=max(EXAMPLES // 2, 3))
@given(st.data())
def test_peoples_command_lines(checkpoint, place, command, data):
    line = data.draw(peoples_lines(command))
    with watched(f"trex2 {command}") as folder:
        pictures(folder / "set" / "images")
        (folder / "set" / "annotations.json").write_bytes(as_json(COCO))
        PromptBank(["a", "b"], torch.ones(2, 32)).save(folder / "bank.safetensors")
        (folder / "broken").write_bytes(data.draw(broken((folder / "bank.safetensors").read_bytes())))
        own = {"CHECKPOINT": checkpoint, "SET": "set", "FOLDER": "set/images", "PICTURE": "set/images/1.png"}
        own |= {"BANK": "bank.safetensors", "BROKEN": "broken", "CLIP": "set/images/2.png", "OUT": "out"}
        os.chdir(folder)
        try:
            code, said = quietly(lambda: main([str(own.get(word, word)) for word in line]))
        finally:
            os.chdir(folder.parent)
        last = said.strip().split("\n")[-1]
        assert code == 0 or (code in (1, 2) and last.startswith("error: ") and len(last.split()) > 4), (code, said)
        REFUSED[f"trex2 {command}"] += code != 0


def test_count():
    """The figures of the run, which the report quotes."""
    width = max(map(len, CASES), default=0)
    for entry, count in sorted(CASES.items()):
        print(f"\n{entry:{width}s} {count:5d} cases, {REFUSED[entry]:5d} refused", end="")
    print(f"\nall {sum(CASES.values())} cases, {sum(REFUSED.values())} refused")
    if len(CASES) > 20:  # the whole file ran
        assert sum(CASES.values()) >= 0.6 * EXAMPLES * len(CASES)
