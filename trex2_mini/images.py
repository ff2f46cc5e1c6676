"""Reading pictures, whatever they are, as uint8 RGB arrays; and as the tensors that the model takes."""

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

MOST_BYTES = 50_000_000  # of a picture from an address
with suppress(ImportError):
    from pillow_heif import register_heif_opener

    register_heif_opener()

T = TypeVar("T")
HEIC = (".heic", ".heif")  # what telephones write


class UnreadablePicture(ValueError):
    """A picture that is missing, broken or of an unknown format; the message names it."""


class MissingPicture(UnreadablePicture, FileNotFoundError):
    """There is no such file."""


class LeftOut(dict[Any, str]):
    """The pictures of a run that could not be read, {name or id: why}: each is warned of, too many stop the run.

    total: pictures of the run. most: so many may be left out; by default 20 or 5 %, whichever is more; at most half.
    """

    def __init__(self, total: int, most: int | None = None):
        super().__init__()
        self.total, self.most = total, min(max(20, total // 20), total // 2) if most is None else most

    def read(self, name: Any, reader: Callable[..., T], *arguments: Any) -> T | None:
        """What `reader` gives; None, and the picture is left out, where it raises UnreadablePicture.

        Raises ValueError where it is one too many; the reader's error itself where the run has but one picture.
        """
        try:
            return reader(*arguments)
        except UnreadablePicture as error:
            if self.total == 1:
                raise
            if name not in self:
                self[name] = str(error)
                warnings.warn(f"left out: {error}", stacklevel=3)
            if len(self) > self.most:
                raise ValueError(
                    f"{len(self)} of {self.total} pictures cannot be read, and at most {self.most} may be left out; "
                    f"`data check --decode` names all of a set. The last: {error}"
                ) from error
            return None


def load_image(source: str | Path | bytes | BinaryIO | Image.Image | np.ndarray | Tensor) -> np.ndarray:
    """Read a picture as uint8 [H, W, 3], RGB.

    EXIF rotation is applied, transparency is laid over white, 16-bit values are scaled to 8 bit (`_sixteen_bit`).

    Args:
        source: a path, an address (http, https), a file's bytes or an open binary file, a PIL picture, or an array
            [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, uint16, bool, or floats in 0..1; of tensors also
            [3, H, W].

    Raises:
        UnreadablePicture: a file that is none (MissingPicture) or no picture.
        ValueError: an array that is no picture.
    """
    return load_reduced(source)[0]


def load_reduced(source: Any, side: int | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """`load_image` for who needs a shorter side of about `side` pixels only: large pictures are decoded smaller.

    Returns (the picture, its shorter side at least 2 `side` unless the whole one's is less; (height, width) of the
    whole one).
    """
    if isinstance(source, Tensor):
        source = _as_array(source)
    if isinstance(source, np.ndarray):
        array = _over_white(_eight_bit(source))
        size, factor = array.shape[:2], min(array.shape[:2]) // (2 * side) if side else 0
        return (np.asarray(Image.fromarray(array).reduce(factor)) if factor > 1 else array), size
    with _opened(source) as picture:
        array, size = _pixels(picture, side, isinstance(source, Image.Image))
    return _over_white(_eight_bit(array)), size


def picture_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a picture the way up it is shown, from its header alone. Raises UnreadablePicture."""
    with _opened(path) as picture:
        return _upright_size(picture)


def is_turned(path: str | Path) -> bool:
    """Whether its EXIF mark makes a picture's width its height. Raises UnreadablePicture."""
    with _opened(path) as picture:
        return _upright_size(picture) != picture.size


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    return picture.size[::-1] if picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5 else picture.size


def _as_array(tensor: Tensor) -> np.ndarray:
    """A tensor [H, W], [H, W, C] or [3, H, W] as an array, channels last."""
    array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()
    first = array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4)
    return np.moveaxis(array, 0, -1) if first else array


@contextmanager
def _opened(source: Any) -> Iterator[Image.Image]:
    """A picture, its pixels not yet read; what goes wrong inside is an UnreadablePicture that names it."""
    if isinstance(source, str) and "://" in source:
        source = _fetched(source)
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    if not isinstance(source, (str, Path, Image.Image)) and not hasattr(source, "read"):
        raise ValueError(
            f"expected a path, an address, bytes, a PIL picture or a numpy array [H, W, 3], got {type(source).__name__}"
        )
    name = "the file" if hasattr(source, "read") else "the PIL picture"
    try:
        if isinstance(source, Image.Image):
            yield source
        elif hasattr(source, "read"):
            with Image.open(source) as picture:
                yield picture
        else:
            name = path = Path(os.path.expanduser(source))  # ~nobody stays as it is
            if not path.is_file():
                reason = "is a folder, not a picture" if path.is_dir() else "does not exist"
                raise MissingPicture(f"the picture {path} {reason}; check the path (relative to {Path.cwd()})")
            with Image.open(path) as picture:
                yield picture
    except MissingPicture:
        raise
    except Image.DecompressionBombError:
        raise UnreadablePicture(
            f"{name} has more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} million pixels, Pillow's limit against files "
            "made to fill the memory; make it smaller, or if you trust it raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except Exception as error:  # of a broken file Pillow raises many kinds
        reason = f"corrupt, cut short or of an unknown format): {error}"
        if str(name).lower().endswith(HEIC) and HEIC[0] not in Image.registered_extensions():
            reason = "HEIC pictures need the package pillow-heif: pip install pillow-heif)"
        raise UnreadablePicture(f"{name} is not a readable picture ({reason}") from error


def _fetched(address: str) -> bytes:
    """A file from the web, MOST_BYTES at most. Raises ValueError."""
    import requests

    if not address.lower().startswith(("http://", "https://")):
        raise ValueError(f"expected a path, or an address that begins with http:// or https://, got {address!r:.200}")
    try:
        with requests.get(address, stream=True, timeout=(10, 30)) as answer:
            answer.raise_for_status()
            content = b""
            for part in answer.iter_content(1 << 20):
                content += part
                if len(content) > MOST_BYTES:
                    raise ValueError(
                        f"{address:.200} is larger than {MOST_BYTES // 1_000_000} MB; download it yourself"
                    )
    except requests.RequestException as error:
        raise ValueError(f"{address:.200} could not be fetched ({error}); check the address and the network") from error
    return content


def _pixels(picture: Image.Image, side: int | None, keep: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """A PIL picture, upright, as [H, W] uint8, uint16 or float, or [H, W, 3 | 4] uint8; and its whole (height, width).

    keep: `picture` itself is not to change.
    """
    width, height = _upright_size(picture)
    factor = min(picture.size) // (2 * side) if side else 0
    if factor > 1 and not keep:
        picture.draft(None, (picture.size[0] // factor, picture.size[1] // factor))  # JPEG alone can do it
    deep = ";16" in str(getattr(picture, "tile", ""))
    largest = getattr(picture, "tag_v2", {}).get(281)  # TIFF's MaxSampleValue
    picture = ImageOps.exif_transpose(picture) if keep else ImageOps.exif_transpose(picture, in_place=True) or picture
    if picture.mode.startswith("I"):  # 16-bit greyscale; Pillow may hand it out as 32-bit
        return _sixteen_bit(np.maximum(np.asarray(picture), 0), largest), (height, width)
    if picture.mode == "F":
        return np.asarray(picture), (height, width)
    if picture.mode == "La":
        picture = picture.convert("LA")
    mode = "RGBA" if picture.has_transparency_data or picture.mode == "RGBa" else "RGB"
    picture = picture if picture.mode == mode else picture.convert(mode)
    factor = min(picture.size) // (2 * side) if side else 0
    array = np.array(picture.reduce(factor) if factor > 1 else picture)
    if deep and array.size and array[..., :3].max() < 64:  # Pillow kept the upper half of 16 bits: of 14 or less
        array[..., :3] = _sixteen_bit(array[..., :3].astype(np.uint16) << 8, None)
    return array, (height, width)


def _sixteen_bit(array: np.ndarray, largest: int | tuple | None = None) -> np.ndarray:
    """uint16, or int32 of at least 0, as uint8. The largest value is `largest` (from the file's head), else the end of
    the 8 to 14 bits, 16 or more that the values need: cameras and microscopes write 10 to 14 bits into 16.
    """
    largest = max(largest) if isinstance(largest, tuple) and largest else largest
    if not isinstance(largest, int) or not 0 < largest <= 65535:
        bits = int(array.max(initial=0)).bit_length()
        largest = 65535 if 14 < bits <= 16 or not bits else 2 ** max(bits, 8) - 1
    if largest != 65535:
        warnings.warn(f"a 16-bit picture whose values end at {largest} is taken as one of that range", stacklevel=2)
    return np.round(np.minimum(array / float(largest), 1) * 255).astype(np.uint8)


def _eight_bit(array: np.ndarray) -> np.ndarray:
    """An array picture of any supported kind as uint8 [H, W, C]."""
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"expected an array [H, W], [H, W, 3] or [H, W, 4], got shape {array.shape}; "
            "move channels last with np.moveaxis(array, 0, -1) if they come first, and pass one picture at a time"
        )
    if array.size == 0:
        raise ValueError(f"the picture is empty: shape {array.shape}")
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return _sixteen_bit(array)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError("the picture holds NaN or infinite values")
        low, high = float(array.min()), float(array.max())
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(
                f"a float picture must lie in 0..1, this one lies in {low:g}..{high:g}; divide by 255 or cast to uint8"
            )
        return np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    raise ValueError(
        f"expected uint8, uint16, bool or float in 0..1, got {array.dtype}; cast it with array.astype(np.uint8) where "
        "its values end at 255, else with np.uint16"
    )


def _over_white(array: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 1 | 3 | 4] as RGB, transparency over white."""
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    if array.shape[2] == 3:
        return np.ascontiguousarray(array)
    alpha = array[..., 3:].astype(np.float32) / 255
    return np.round(array[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def picture_endings() -> set[str]:
    """Of the files that can be read: ".jpg", ".tif", ..."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def looks_like_picture(path: Path) -> bool:
    """By its name: of a known ending, and not hidden (macOS writes ._a.jpg beside a.jpg)."""
    return path.suffix.lower() in picture_endings() and not path.name.startswith(".")


def warn_of_heic(folder: Path, paths: Iterable[Path]) -> None:
    """Says how many of the paths cannot be read for want of pillow-heif."""
    unknown = [path.name for path in paths if path.suffix.lower() in set(HEIC) - picture_endings()]
    if unknown:
        said = f"{folder}: {len(unknown)} left out, for want of the package pillow-heif"
        warnings.warn(f"{said}: {', '.join(unknown[:9])}", stacklevel=3)


def to_image(array: np.ndarray) -> Tensor:
    """uint8 [h, w, 3] -> float [3, h, w] in 0..1."""
    return torch.tensor(array).permute(2, 0, 1).float().div_(255)  # a copy: PIL's arrays are read-only
