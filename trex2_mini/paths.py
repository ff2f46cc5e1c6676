"""Where things lie on disk. Paths come from here, never from the working directory."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CATALOGUE = REPOSITORY / "data" / "emoji_catalogue.csv"
EMOJI_MANIFEST = REPOSITORY / "data" / "emoji_manifest.json"
PHOTOS_MANIFEST = REPOSITORY / "data" / "photos_manifest.json"


def data_root() -> Path:
    """The folder of generated and downloaded data: $TREX2_DATA if set, otherwise the repository's data/."""
    return Path(os.environ.get("TREX2_DATA") or REPOSITORY / "data").expanduser()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
