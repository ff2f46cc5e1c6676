"""load_image: every kind of picture becomes uint8 [H, W, 3], and what is no picture is named."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from trex2_mini.images import UnreadablePicture, load_image, load_reduced, picture_size
from trex2_mini.plots import show_detections


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


@pytest.mark.parametrize("ending", ["tif", "png"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_cameras_write_10_to_14_bits_into_16(tmp_path, ending, bits):
    """The largest value they can write is white, not a 64th of it; and it is said."""
    deep = np.array([[0, 2 ** (bits - 1), 2**bits - 1]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / f"deep.{ending}")
    for source in (tmp_path / f"deep.{ending}", deep, np.stack([deep] * 3, -1)):
        with pytest.warns(UserWarning, match=f"end at {2**bits - 1}"):
            assert check(load_image(source))[0, :, 0].tolist() == [0, 128, 255]


def test_the_tiff_tag_says_where_values_end(tmp_path):
    Image.fromarray(np.array([[0, 100, 1023]], dtype=np.uint16)).save(tmp_path / "a.tif", tiffinfo={281: 4095})
    with pytest.warns(UserWarning, match="end at 4095"):
        assert load_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 6, 64]


def test_twelve_bits_in_colour(tmp_path):
    """Pillow keeps 8 of the 16 bits, so four are left: coarse, but not black."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 4, 3), 4095, np.uint16), photometric="rgb")
    with pytest.warns(UserWarning, match="end at 4095"):
        assert load_image(tmp_path / "a.tif").min() > 235


@pytest.mark.parametrize("ending", ["jpg", "png", "array", "pil"])
def test_a_large_picture_is_decoded_smaller(tmp_path, ending):
    """At least twice the side that was asked for is left, turned upright; the whole picture's size is told."""
    whole = Image.fromarray(
        np.kron(np.arange(48, dtype=np.uint8).reshape(6, 8, 1) * 5, np.ones((100, 100, 3), np.uint8))
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    source, path = (
        {"array": np.rot90(np.asarray(whole), -1), "pil": whole.rotate(-90, expand=True)},
        tmp_path / f"a.{ending}",
    )
    if ending not in source:
        whole.save(path, exif=exif)
        assert picture_size(path) == (600, 800)
    array, size = load_reduced(source.get(ending, path), 64)
    assert size == (800, 600) and 128 <= min(check(array).shape[:2]) < 256
    full = np.asarray(whole.rotate(-90, expand=True).resize((6, 8), Image.Resampling.BOX), int)
    small = np.asarray(Image.fromarray(array).resize((6, 8), Image.Resampling.BOX), int)
    assert np.abs(full - small).max() <= 3


def test_a_large_picture_is_drawn_smaller_in_its_own_pixels():
    found = SimpleNamespace(boxes=np.array([[0, 0, 3000, 3000]]), scores=[0.5], labels=[0], names=["a"])
    ax = show_detections(np.zeros((3000, 3100, 3), np.uint8), found)
    assert ax.images[0].get_array().shape[:2] == (1500, 1550) and ax.get_xlim() == (-0.5, 3099.5)
    assert ax.patches[0].get_width() == 3000
    plt.close(ax.figure)


def test_limits_and_missing_plugins_are_named(tmp_path, monkeypatch):
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    (tmp_path / "a.heic").write_bytes(b"????ftypheic")
    with monkeypatch.context() as small:
        small.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(UnreadablePicture, match="MAX_IMAGE_PIXELS"):
            load_image(tmp_path / "a.png")
    words = "corrupt" if ".heic" in Image.registered_extensions() else "pip install pillow-heif"
    with pytest.raises(UnreadablePicture, match=words):
        load_image(tmp_path / "a.heic")


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
