"""load_image: every kind of picture becomes uint8 [H, W, 3], and what is no picture is named."""

import numpy as np
import pytest
from PIL import Image

from trex2_mini.images import load_image


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def check(array: np.ndarray) -> np.ndarray:
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
    return array


def test_path_string_pil_and_array_agree(picture, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    for source in (path, str(path), Image.fromarray(picture), picture):
        np.testing.assert_array_equal(check(load_image(source)), picture)


def test_exif_rotation_is_applied(picture, tmp_path):
    path, exif = tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    Image.fromarray(picture).save(path, exif=exif)
    np.testing.assert_array_equal(check(load_image(path)), np.rot90(picture, -1))


def test_transparency_is_laid_over_white(tmp_path):
    array = np.zeros((4, 4, 4), np.uint8)
    array[:2] = [10, 20, 30, 255]
    array[2:] = [10, 20, 30, 0]
    path = tmp_path / "clear.png"
    Image.fromarray(array).save(path)
    for source in (path, array, array / 255.0):
        loaded = check(load_image(source))
        assert (loaded[:2] == [10, 20, 30]).all() and (loaded[2:] == 255).all()


def test_palette_with_a_transparent_colour(tmp_path):
    indexed = Image.new("P", (4, 4), 0)
    indexed.putpalette([0, 0, 0, 200, 100, 50])
    indexed.putpixel((1, 1), 1)
    path = tmp_path / "palette.png"
    indexed.save(path, transparency=0)
    loaded = check(load_image(path))
    assert loaded[1, 1].tolist() == [200, 100, 50] and loaded[0, 0].tolist() == [255, 255, 255]
    assert load_image(indexed)[0, 0].tolist() == [0, 0, 0]  # without transparency


def test_sixteen_bit_is_scaled(tmp_path):
    deep = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    path = tmp_path / "deep.png"
    Image.fromarray(deep).save(path)
    for source in (path, deep):
        assert check(load_image(source))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "LA", "CMYK", "YCbCr", "RGBa"])
def test_other_modes(mode):
    source = Image.new("RGBA", (6, 5), (255, 255, 255, 255)).convert("RGB" if mode in ("CMYK", "YCbCr") else "RGBA")
    assert (check(load_image(source.convert("RGBA" if mode == "RGBa" else mode).convert(mode))) > 250).all()


def test_grey_bool_and_float_arrays():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (check(load_image(grey))[..., 2] == grey).all()
    assert (check(load_image(grey[..., None]))[..., 0] == grey).all()
    assert check(load_image(grey > 5)).max() == 255
    assert check(load_image(np.full((2, 2, 3), 0.5))).max() == 128


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.full((2, 2, 3), np.nan), "NaN"),
        (np.full((2, 2, 3), 200.0), "divide by 255"),
        (np.zeros((3, 20, 30), np.uint8), "channels last"),
        (np.zeros((2, 20, 30, 3), np.uint8), "one picture at a time"),
        (np.zeros(5, np.uint8), "got shape"),
        (np.zeros((2, 2, 3), np.int64), "int64"),
        (Image.new("RGB", (0, 4)), "empty"),
        (42, "expected a path"),
        (None, "expected a path"),
    ],
)
def test_what_is_no_picture(source, words):
    with pytest.raises(ValueError, match=words):
        load_image(source)


def test_broken_files_are_named(picture, tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.kron(picture, np.ones((8, 8, 1), np.uint8))).save(whole)
    data = whole.read_bytes()
    for name, content in {"cut.jpg": data[: len(data) // 2], "noise.jpg": b"no picture", "nothing.jpg": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_image(tmp_path / name)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg does not exist"):
        load_image(tmp_path / "absent.jpg")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_image(tmp_path)
