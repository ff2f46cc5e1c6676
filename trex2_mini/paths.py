"""Where things lie on disk. Paths come from here, never from the working directory."""

import codecs
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

REPOSITORY = Path(__file__).resolve().parent.parent
CATALOGUE = REPOSITORY / "data" / "emoji_catalogue.csv"
EMOJI_MANIFEST = REPOSITORY / "data" / "emoji_manifest.json"
CUTOUTS_NOVEL = REPOSITORY / "data" / "cutouts_novel.json"
ODINW = REPOSITORY / "data" / "odinw35.csv"
PHOTOS_MANIFEST = REPOSITORY / "data" / "photos_manifest.json"


def data_root() -> Path:
    """The folder of generated and downloaded data: $TREX2_DATA if set, otherwise the repository's data/."""
    return Path(os.environ.get("TREX2_DATA") or REPOSITORY / "data").expanduser()


def read_text(path: Path, declared: str | None = None) -> str:
    """A user's text file: UTF-8, UTF-16 with its mark, the encoding that it declares, or GB18030, which is warned of.

    Raises ValueError for one of another encoding; FileNotFoundError where there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the file {path} does not exist")
    content = path.read_bytes()
    marked = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    if declared and (text := _plainly_utf8(content)):
        if declared.lower().replace("-", "") != "utf8":
            warnings.warn(f"{path} says that it is {declared}, but is UTF-8; it was read as that", stacklevel=2)
        return text
    declared = "gb18030" if (declared or "").lower() in ("gb2312", "gbk") else declared  # what is written in their name
    for encoding in [declared, marked, "gb18030"] if declared else [marked, "gb18030"]:
        try:
            text = content.decode(encoding)
        except (UnicodeError, LookupError):
            continue
        if encoding == "gb18030" != declared:
            warnings.warn(f"{path} is not UTF-8 and was read as GB18030 (Chinese); save it as UTF-8", stacklevel=2)
        return text.removeprefix("\ufeff")
    raise ValueError(f"{path} is no text in UTF-8, UTF-16 or GB18030; save it as UTF-8")


def _plainly_utf8(content: bytes) -> str | None:
    """The text, where it can hardly be of another encoding: with characters that take three bytes or more."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeError:
        return None
    return text if max(text, default="") > "\u07ff" else None


def read_names(source: str | Path) -> list[str]:
    """A dictionary of names: a text file with one a line, each taken once. Raises ValueError where it holds none."""
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"no file {path}; expected a text file with one name a line")
    names = list(dict.fromkeys(line.strip() for line in read_text(path).splitlines() if line.strip()))
    if not names:
        raise ValueError(f"{path} holds no name; expected one a line")
    return names


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError for one that is none; FileNotFoundError where there is none."""
    try:
        return json.loads(read_text(path))
    # bytes that are no text, text that is no JSON, brackets without an end
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


@contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Holds a lock file for as long as the block lasts; the system lets go of it when the process ends,
    however it does.

    Raises ValueError: `otherwise` where another process holds it, and where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path).acquire(timeout=0)
    except Timeout:
        raise ValueError(otherwise) from None
    except OSError as error:
        raise ValueError(f"{path.parent} cannot be written to ({error}); choose another folder") from error
    with lock:
        yield


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, in UTF-8 and with "\\n" on every system; its folder is made if missing."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    except OSError as error:
        raise type(error)(f"{path} cannot be written ({error.strerror}); choose another place") from None
    except UnicodeEncodeError as error:  # half of a surrogate pair, from an escape in a JSON file
        raise ValueError(
            f"{path}: expected text that UTF-8 can hold, and a name or phrase in it is none: {error}"
        ) from None
    finally:
        with suppress(OSError):
            draft.unlink()
