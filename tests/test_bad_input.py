"""Odd and wrong input at the user's object: a clear ValueError, or the right result."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini.checkpoint import CheckpointError, save_model, write_tensors
from trex2_mini.config import Config, preset
from trex2_mini.detector import Detections, Detector, top_detections
from trex2_mini.prompt_bank import PromptBank

BOX = [[10, 12, 40, 44]]
NAN = float("nan")


@pytest.fixture(scope="module")
def detector():
    """Random weights; every (query, prompt) pair is a detection, so that they can be counted."""
    config = preset("nano")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, nms_iou=1.0))
    return Detector(seeded_model(config.model), config, "cpu")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return squares(1, (60, 80), 3).image


@pytest.fixture(scope="module")
def encoded(detector, image):
    return detector.encode(image)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A saved tiny model: {file name: content}."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(folder, seeded_model(), TINY)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(folder, files: dict[str, bytes]):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def everything(detector: Detector, image) -> Detections:
    """All detections for one box and one name."""
    return detector.detect(image, text="cat", boxes={"square": BOX}, score_threshold=0.0)


def assert_equal(ours: Detections, expected: Detections) -> None:
    assert len(expected) > 0 and ours.names == expected.names
    for key in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(ours, key), getattr(expected, key))


# Prompts


def test_a_detection_is_what_it_says(detector, encoded):
    """Boxes in pixels inside the image, scores falling, labels that index the names: what the other tests stand on."""
    found = everything(detector, encoded)
    assert found.boxes.shape == (200, 4) and found.boxes.dtype == np.float32 and found.names == ["square", "cat"]
    assert (
        (found.boxes >= 0).all()
        and (found.boxes <= [80, 60, 80, 60]).all()
        and (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
    )
    assert (np.diff(found.scores) <= 0).all() and set(found.labels) == {0, 1}
    half = float(np.median(found.scores))
    assert_equal(found.filter(half), detector.detect(encoded, text="cat", boxes={"square": BOX}, score_threshold=half))


@pytest.mark.parametrize("prompts", [{}, {"text": None}, {"boxes": {}}, {"points": {}}], ids=str)
def test_no_prompt(detector, encoded, prompts):
    with pytest.raises(ValueError, match="no prompt: give text"):
        detector.detect(encoded, **prompts)


@pytest.mark.parametrize(
    "boxes, message",
    [
        ([[90, 10, 100, 20]], "outside the image"),
        ([[-30, -30, -1, -1]], "outside the image"),
        ([[10, 10, 10, 30]], "no size"),
        ([[10, 10, 10, 10]], "use points"),
        ([[10, NAN, 20, 30]], "finite"),
        ([[10, 10, math.inf, 30]], "finite"),
        ([[10, 10, 20]], "x1, y1, x2, y2"),
        ([10, 10], "x1, y1, x2, y2"),
        ([], "at least one"),
        ("10 10 20 30", "x1, y1, x2, y2"),
        ([["a", "b", "c", "d"]], "x1, y1, x2, y2"),
        ([[10, 10, 20, 30], [1, 2]], "x1, y1, x2, y2"),
        ({"coin": [[90, 10, 100, 20]]}, "coin"),
        ({"coin": []}, "coin"),
    ],
    ids=str,
)
def test_boxes_that_cannot_be_prompts(detector, encoded, image, boxes, message):
    """Outside the image, of no size, not a number, of the wrong shape: ValueError in detect, embed and classify."""
    with pytest.raises(ValueError, match=message):
        detector.detect(encoded, boxes=boxes)
    if not isinstance(boxes, dict):
        with pytest.raises(ValueError, match=message):
            detector.embed({"coin": [(encoded, boxes)]})
        with pytest.raises(ValueError, match=message):
            detector.classify(encoded, boxes, NAMES)


@pytest.mark.parametrize(
    "points, message",
    [
        ([[81, 10]], "outside"),
        ([[10, -1]], "outside"),
        ([[NAN, 10]], "finite"),
        ([[1, 2, 3]], r"\[x, y\]"),
        ([], "at least one"),
    ],
    ids=str,
)
def test_points_that_cannot_be_prompts(detector, encoded, points, message):
    with pytest.raises(ValueError, match=message):
        detector.detect(encoded, points=points)


def test_boxes_are_mended(detector, encoded):
    """Drawn from right to left or bottom to top, or over the border: the same as the box in order and clipped."""
    for mended, box in (
        ([40, 44, 10, 12], [10, 12, 40, 44]),
        ([40, 12, 10, 44], [10, 12, 40, 44]),
        ([50, 40, 500, 400], [50, 40, 80, 60]),
    ):
        assert_equal(
            detector.detect(encoded, boxes=[mended], score_threshold=0),
            detector.detect(encoded, boxes=[box], score_threshold=0),
        )


def test_boxes_of_any_container(detector, encoded):
    """A list, one flat box, numpy, torch and tuples are the same."""
    expected = detector.detect(encoded, boxes=BOX, score_threshold=0)
    assert expected.names == ["object"]
    for boxes in (BOX[0], np.array(BOX), torch.tensor(BOX), (tuple(BOX[0]),), {"object": BOX}):
        assert_equal(detector.detect(encoded, boxes=boxes, score_threshold=0), expected)


@pytest.mark.parametrize("text", ["", ",", [], ["cat", " "], ["cat", None], 7, True, np.array("cat")], ids=str)
def test_names_that_are_none(detector, encoded, text):
    with pytest.raises(ValueError, match="non-empty name"):
        detector.detect(encoded, text=text)
    with pytest.raises(ValueError, match="non-empty name"):
        detector.classify(encoded, BOX, text)


def test_a_name_that_comes_twice_counts_once(detector, encoded):
    """A repeated name changes nothing, also where it is mixed with a box: (T + V) / 2."""
    for boxes in (None, {"cat": BOX}):
        once = detector.detect(encoded, text="cat, dog", boxes=boxes, score_threshold=0)
        assert_equal(detector.detect(encoded, text="cat, dog, cat", boxes=boxes, score_threshold=0), once)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, 30, NAN, None, "0.3", [0.3]])
def test_score_threshold_out_of_range(detector, encoded, threshold):
    with pytest.raises(ValueError, match="score_threshold"):
        detector.detect(encoded, text="cat", score_threshold=threshold)


def test_limits_of_the_number_of_detections(detector, encoded):
    """More than there are gives what there is; zero and negative numbers are refused or give none."""
    assert len(detector.detect(encoded, text="cat", score_threshold=0, max_detections=10_000)) == 100
    assert len(detector.detect(encoded, text="cat", score_threshold=0, max_detections=7)) == 7
    for wrong in (-1, 2.5, None, NAN):
        with pytest.raises(ValueError, match="max_detections"):
            detector.detect(encoded, text="cat", max_detections=wrong)
    with pytest.raises(ValueError, match="beta"):
        detector.detect(encoded, text="cat", beta="0.3")


def test_prompt_banks(detector, encoded, tmp_path):
    """A bank survives its file; one of the wrong D, of the wrong length, or that is none is refused."""
    bank = detector.embed({"coin": [(encoded, BOX), (encoded, [[1, 1, 9, 9]])], "key": [(encoded, BOX)]})
    bank.save(tmp_path / "bank.safetensors")
    again = PromptBank.load(tmp_path / "bank.safetensors")
    assert again.names == ["coin", "key"] and torch.equal(again.embeddings, bank.embeddings)
    assert_equal(
        detector.detect(encoded, prompts=again, score_threshold=0),
        detector.detect(encoded, prompts=bank, score_threshold=0),
    )
    for wrong in (
        PromptBank(["coin"], torch.zeros(1, 256)),
        PromptBank(["coin", "key"], torch.zeros(1, 128)),
        PromptBank(["coin"], torch.zeros(128)),
    ):
        with pytest.raises(ValueError, match="expected a prompt bank"):
            detector.detect(encoded, prompts=wrong)
    with pytest.raises(ValueError, match="expected a PromptBank"):
        detector.detect(encoded, prompts={"coin": bank.embeddings[0]})
    for names in ('["coin", "key", "x"]', '["coin", "coin"]', "[1, 2]", "coin", "null"):
        write_tensors(tmp_path / "odd.safetensors", {"embeddings": bank.embeddings}, {"names": names})
        with pytest.raises(CheckpointError, match=r"odd\.safetensors: expected"):
            PromptBank.load(tmp_path / "odd.safetensors")
    write_tensors(tmp_path / "odd.safetensors", {"embeddings": bank.embeddings * NAN}, {"names": '["coin", "key"]'})
    with pytest.raises(CheckpointError, match="expected finite"):
        PromptBank.load(tmp_path / "odd.safetensors")
    save_model(tmp_path / "model", seeded_model(), TINY)
    with pytest.raises(CheckpointError, match="not a prompt bank"):
        PromptBank.load(tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match="nowhere"):
        PromptBank.load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(
    "examples", [{}, {"coin": []}, [1], True, {"coin": 3}, {"coin": [(1, 2, 3, 4)]}, {"coin": [(1, None)]}], ids=str
)
def test_no_examples(detector, examples):
    with pytest.raises(ValueError, match="no examples"):
        detector.embed(examples)


# Pictures


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.full((4, 4, 3), 200.0),
        np.full((4, 4, 3), NAN),
        None,
        7,
    ],
    ids=lambda a: str(getattr(a, "shape", a)),
)
def test_what_is_no_picture(detector, array):
    """Empty, of the wrong shape or range, NaN, not a picture at all: ValueError."""
    with pytest.raises(ValueError):
        detector.encode(array)


def test_pil_pictures_that_cannot_be_converted(detector):
    """What Pillow raises for a picture in memory (a bad EXIF block, transparency of another kind) is our error too;
    "La" is read.
    """
    picture = Image.new("RGB", (8, 8))
    picture.info["exif"] = b"nonsense that is no TIFF header"
    with pytest.raises(ValueError, match="PIL picture is not a readable picture"):
        detector.encode(picture)
    assert detector.encode(Image.new("La", (8, 8))).height == 8


def test_files_that_are_no_picture(detector, image, tmp_path):
    """Corrupt, truncated and empty files: ValueError with the path; a missing one: FileNotFoundError."""
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.kron(image, np.ones((8, 8, 1), np.uint8))).save(whole)
    for name, content in {
        "corrupt.jpg": b"\xff\xd8\xff" + bytes(200),
        "cut.jpg": whole.read_bytes()[:2000],
        "empty.png": b"",
        "text.png": b"a cat",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            detector.encode(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        detector.encode(str(tmp_path / "missing.png"))


@pytest.mark.parametrize(
    "orientation, turn",
    [
        (1, lambda a: a),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
        (2, lambda a: a[:, ::-1]),
    ],
)
def test_an_exif_rotated_jpeg_is_the_upright_picture(detector, image, tmp_path, orientation, turn):
    """The same detections, and boxes in the pixels of the upright picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "rotated.jpg"
    Image.fromarray(image).save(path, exif=exif)
    stored = np.asarray(Image.open(path))
    upright = detector.encode(np.ascontiguousarray(turn(stored)))
    rotated = detector.encode(path)
    assert (rotated.height, rotated.width) == (upright.height, upright.width) == turn(stored).shape[:2]
    assert_equal(everything(detector, rotated), everything(detector, upright))


def as_file(picture: Image.Image, path):
    picture.save(path)
    return path


def test_pictures_of_every_kind_are_the_same_picture(detector, image, tmp_path):
    """PIL, path, float, RGBA, palette, grey and 16-bit pictures give what their plain RGB version gives."""
    grey = image[..., 0]
    grey_rgb = np.repeat(grey[..., None], 3, 2)
    opaque = np.concatenate([image, np.full((*grey.shape, 1), 255, np.uint8)], 2)
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    assert sixteen.mode.startswith("I;16")
    half = np.concatenate([image, np.where(grey > 128, 255, 0)[..., None].astype(np.uint8)], 2)
    over_white = np.where(grey[..., None] > 128, image, 255).astype(np.uint8)
    palette = Image.fromarray(image).quantize(16)
    cases = {
        "PIL": (Image.fromarray(image), image),
        "PNG": (as_file(Image.fromarray(image), tmp_path / "rgb.png"), image),
        "path as a string": (str(tmp_path / "rgb.png"), image),
        "float": (image.astype(np.float32) / 255, image),
        "opaque RGBA": (opaque, image),
        "RGBA": (half, over_white),
        "RGBA file": (as_file(Image.fromarray(half), tmp_path / "rgba.png"), over_white),
        "palette": (as_file(palette, tmp_path / "palette.png"), np.asarray(palette.convert("RGB"))),
        "grey array": (grey, grey_rgb),
        "grey array with a channel": (grey[..., None], grey_rgb),
        "grey file": (as_file(Image.fromarray(grey), tmp_path / "grey.png"), grey_rgb),
        "16-bit array": (grey.astype(np.uint16) * 257, grey_rgb),
        "16-bit file": (as_file(sixteen, tmp_path / "sixteen.png"), grey_rgb),
    }
    for name, (source, rgb) in cases.items():
        try:
            assert_equal(everything(detector, source), everything(detector, rgb))
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 400, 3), (700, 2, 3), (5, 5, 3)], ids=str)
def test_pictures_of_odd_sizes(detector, shape):
    """One pixel, a line, a ribbon: detections inside the picture."""
    found = detector.detect(np.zeros(shape, np.uint8), text="cat", score_threshold=0)
    assert len(found) and np.isfinite(found.boxes).all() and (found.boxes <= [shape[1], shape[0]] * 2).all()


# Configurations and checkpoints


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"giga.*nano.*swin_l.*swin_t"):
        preset("giga")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": {"depth": 3}}, "model: unknown key 'depth'; known: .*dim"),
        ({"model": {"text": {"size": 3}}}, r"model\.text: unknown key 'size'"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"model": {"dim": "128"}}, r"model\.dim: expected a valid integer, got '128'"),
        ({"model": {"dim": 128.5}}, "dim: expected a valid integer"),
        ({"model": {"dim": True}}, "dim: expected a valid integer"),
        ({"train": {"lr": "fast"}}, "lr: expected a valid number"),
        ({"train": {"amp": 1}}, "amp: expected a valid boolean"),
        ({"model": {"strides": 8}}, "strides: expected"),
        ({"model": {"strides": ["a"]}}, r"strides\.0: expected a valid integer"),
        ({"model": 3}, "expected an object"),
        ({"name": None}, "name: expected a valid string"),
        ({"model": {"dim": 0}}, "dim: expected greater than or equal to 4, got 0"),
        ({"model": {"encoder_layers": 10**9}}, "encoder_layers: expected less than or equal to 48"),
        ({"model": {"nms_iou": NAN}}, "nms_iou: expected a finite number, got nan"),
        ({"model": {"strides": [8, -16]}}, r"strides\.1: expected greater than or equal to 1, got -16"),
        ({"model": {"backbone_levels": 4}}, "a stride for each"),
        ({"model": {"dim": 30}}, "multiple of 4"),
        ({"model": {"text": {"width": 33}}}, "multiple of heads"),
        ({"train": {"steps": -1}}, "steps: expected greater than or equal to 1"),
        ({"train": {"lr": math.inf}}, "lr: expected a finite number, got inf"),
    ],
    ids=str,
)
def test_configurations_that_are_wrong(change, message):
    """Unknown keys and wrong types are refused, with the place and what was expected."""

    def merged(base, extra):
        return {**base, **{k: merged(base[k], v) if isinstance(v, dict) else v for k, v in extra.items()}}

    with pytest.raises(ValueError, match=message):
        Config.from_json(json.dumps(merged(json.loads(TINY.to_json()), change)))


def test_every_fault_of_a_configuration_is_named_in_a_line_of_its_own():
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(TINY.train, steps=0, lr="fast")
    assert str(caught.value).splitlines() == [
        "TrainConfig.steps: expected greater than or equal to 1, got 0",
        "TrainConfig.lr: expected a valid number, got 'fast'",
    ]


def test_a_configuration_goes_to_another_process():
    assert pickle.loads(pickle.dumps(TINY)) == TINY


@pytest.mark.parametrize("text", ["", "{", "[]", '"nano"', '{"name": "x"}'])
def test_what_is_no_configuration(text):
    with pytest.raises(ValueError, match="configuration"):
        Config.from_json(text)


@pytest.mark.parametrize("model", [{"backbone": "no_such_net"}, {"strides": (8, 16, 24)}, {"dim": 36, "heads": 5}])
def test_models_that_cannot_be_built(model):
    with pytest.raises(ValueError):
        seeded_model(dataclasses.replace(TINY.model, **model))


def test_a_checkpoint_survives_its_file(checkpoint, tmp_path):
    """Saved and loaded from the folder or from the file: the same detections (weights rounded to half precision)."""
    detector = Detector.load(written(tmp_path, checkpoint), "cpu")
    picture = squares(0).image
    assert detector.config == TINY and all(p.dtype == torch.float32 for p in detector.model.parameters())
    model = seeded_model()
    model.load_state_dict(
        {k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    )
    assert_equal(everything(detector, picture), everything(Detector(model, TINY, "cpu"), picture))
    assert_equal(
        everything(Detector.load(tmp_path / "model.safetensors", "cpu"), picture), everything(detector, picture)
    )


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_truncated_checkpoint(checkpoint, tmp_path, keep):
    """Cut anywhere, even by one byte: CheckpointError that says so."""
    cut = checkpoint["model.safetensors"][:keep]
    with pytest.raises(CheckpointError, match="truncated"):
        Detector.load(written(tmp_path, {**checkpoint, "model.safetensors": cut}))


def test_foreign_checkpoint(checkpoint, tmp_path):
    """Weights of another shape or with other names: CheckpointError that counts and names them."""
    for changed in ({"ffn_dim": 96}, {"encoder_layers": 2}, {"prompt_blocks": 1}):
        config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, **changed))
        with pytest.raises(CheckpointError, match=r"belongs to another model.*config.json"):
            Detector.load(written(tmp_path, {**checkpoint, "config.json": config.to_json().encode()}))


@pytest.mark.parametrize("gone", ["model.safetensors", "config.json"])
def test_incomplete_checkpoint(checkpoint, tmp_path, gone):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Detector.load(written(tmp_path, {k: v for k, v in checkpoint.items() if k != gone}))


def test_missing_checkpoint(tmp_path):
    for source in ("no-such-model", tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=r"no checkpoint at.*expected a folder"):
            Detector.load(source)


def test_a_pickle_is_never_loaded(checkpoint, tmp_path):
    """A torch.save file under the checkpoint's name is refused, not unpickled."""
    folder = written(tmp_path, checkpoint)
    torch.save({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        Detector.load(folder)


def test_duplicates_of_a_prompt_are_one_detection():
    """Two boxes of IoU 0.9 of one prompt: the better stays; of two prompts, or with nms_iou=1: both stay. The limit
    counts what stays.
    """
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.36], [0.2, 0.2, 0.1, 0.1]]])
    logits = torch.tensor([[[2.0, -9], [1.0, -9], [0.0, -9]]])

    def kept(logits, limit=3, nms_iou=0.7):
        return top_detections(logits, boxes, [(100, 100)], ["a", "b"], limit, nms_iou)[0].filter(0.1)

    assert kept(logits).scores.tolist() == pytest.approx([0.8808, 0.5], abs=1e-4)
    assert len(kept(logits, nms_iou=1.0)) == 3 and len(kept(logits, limit=2)) == 2 and len(kept(logits, limit=0)) == 0
    assert len(kept(torch.tensor([[[2.0, -9], [-9, 1.0], [0.0, -9]]]))) == 3
