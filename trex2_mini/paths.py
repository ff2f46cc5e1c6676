"""Where things lie on disk. Paths come from here, never from the working directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
CATALOGUE = REPOSITORY / "data" / "emoji_catalogue.csv"
EMOJI_MANIFEST = REPOSITORY / "data" / "emoji_manifest.json"
CUTOUTS_NOVEL = REPOSITORY / "data" / "cutouts_novel.json"
ODINW = REPOSITORY / "data" / "odinw35.csv"
PHOTOS_MANIFEST = REPOSITORY / "data" / "photos_manifest.json"


def data_root() -> Path:
    """The folder of generated and downloaded data: $TREX2_DATA if set, otherwise the repository's data/."""
    return Path(os.environ.get("TREX2_DATA") or REPOSITORY / "data").expanduser()


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError for one that is none; FileNotFoundError where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"the file {path} does not exist")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    # bytes that are no text, text that is no JSON, brackets without an end
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except UnicodeEncodeError as error:  # half of a surrogate pair, from an escape in a JSON file
        raise ValueError(
            f"{path}: expected text that UTF-8 can hold, and a name or phrase in it is none: {error}"
        ) from None
    finally:
        draft.unlink(missing_ok=True)
