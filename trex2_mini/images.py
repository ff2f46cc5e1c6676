"""Reading pictures, whatever they are, as uint8 RGB arrays; and as the tensors that the model takes."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MOST_BYTES = 50_000_000  # of a picture from an address
T = TypeVar("T")


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

    EXIF rotation is applied, transparency is laid over white, 16-bit values are scaled to 8 bit.

    Args:
        source: a path, an address (http, https), a file's bytes or an open binary file, a PIL picture, or an array
            [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, uint16, bool, or floats in 0..1; of tensors also
            [3, H, W].

    Raises:
        UnreadablePicture: a file that is none (MissingPicture) or no picture.
        ValueError: an array that is no picture.
    """
    if isinstance(source, Tensor):
        array = (
            source.detach().cpu().float().numpy() if source.dtype == torch.bfloat16 else source.detach().cpu().numpy()
        )
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4)
        source = np.moveaxis(array, 0, -1) if first else array
    if isinstance(source, np.ndarray):
        return _over_white(_eight_bit(source))
    if isinstance(source, str) and "://" in source:
        source = _fetched(source)
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    if not isinstance(source, (str, Path, Image.Image)) and not hasattr(source, "read"):
        raise ValueError(
            f"expected a path, an address, bytes, a PIL picture or a numpy array [H, W, 3], got {type(source).__name__}"
        )
    name = "the PIL picture"
    try:
        if isinstance(source, Image.Image):
            array = _pixels(source)
        elif hasattr(source, "read"):
            name = "the file"
            with Image.open(source) as picture:
                array = _pixels(picture)
        else:
            name = path = Path(os.path.expanduser(source))  # ~nobody stays as it is
            if not path.is_file():
                reason = "is a folder, not a picture" if path.is_dir() else "does not exist"
                raise MissingPicture(f"the picture {path} {reason}; check the path (relative to {Path.cwd()})")
            with Image.open(path) as picture:
                array = _pixels(picture)
    except MissingPicture:
        raise
    except Exception as error:  # of a broken file Pillow raises many kinds
        raise UnreadablePicture(
            f"{name} is not a readable picture (corrupt, cut short or of an unknown format): {error}"
        ) from error
    return _over_white(_eight_bit(array))


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


def _pixels(picture: Image.Image) -> np.ndarray:
    """A PIL picture, upright, as [H, W] uint16 or float, or [H, W, 3 | 4] uint8."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit greyscale; Pillow may hand it out as 32-bit
        return np.clip(np.asarray(picture), 0, 65535).astype(np.uint16)
    if picture.mode == "F":
        return np.asarray(picture)
    if picture.mode == "La":
        picture = picture.convert("LA")
    transparent = picture.has_transparency_data or picture.mode == "RGBa"
    return np.array(picture.convert("RGBA" if transparent else "RGB"))


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
        return np.round(array / 257.0).astype(np.uint8)
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
        f"expected uint8, uint16, bool or float in 0..1, got {array.dtype}; cast it with array.astype(np.uint8)"
    )


def _over_white(array: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 1 | 3 | 4] as RGB, transparency over white."""
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    if array.shape[2] == 3:
        return np.ascontiguousarray(array)
    alpha = array[..., 3:].astype(np.float32) / 255
    return np.round(array[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def to_image(array: np.ndarray) -> Tensor:
    """uint8 [h, w, 3] -> float [3, h, w] in 0..1."""
    return torch.tensor(array).permute(2, 0, 1).float() / 255  # a copy: PIL's arrays are read-only
