"""Captions and classification pictures in WebDataset's tar shards, as img2dataset writes them."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from trex2_mini.datasets.large.rows import Row, named

PICTURES = ("jpg", "jpeg", "png", "webp")


@named
def web_shards(folder: Path, names: Sequence[str] | None = None) -> Iterator[Row]:
    """The pictures of all *.tar in a folder, each with its caption; they stay in the tars.

    A sample is the files that share a name up to its first point: 000000012.jpg, .txt (the caption), .json (with
    img2dataset's "caption", "width", "height"), .cls (a class's place in `names`). Pictures without a caption are left
    out.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise ValueError(f"{folder} holds no .tar; expected img2dataset's output in the format webdataset")
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as archive:  # uncompressed: pictures are read in place
                yield from _samples(shard, archive, names)
        except tarfile.TarError as error:
            raise ValueError(f"{shard} is no plain tar: {error}") from error


def _samples(shard: Path, archive: tarfile.TarFile, names: Sequence[str] | None) -> Iterator[Row]:
    key, parts = "", {}
    for member in archive:
        if not member.isfile():
            continue
        own, _, kind = member.name.rpartition("/")[2].partition(".")
        own = f"{member.name.rpartition('/')[0]}/{own}"
        if own != key:
            yield from _sample(shard, archive, parts, names)
            key, parts = own, {}
        parts[kind.lower()] = member
    yield from _sample(shard, archive, parts, names)


def _sample(shard: Path, archive: tarfile.TarFile, parts: dict, names: Sequence[str] | None) -> Iterator[Row]:
    picture = next((parts[kind] for kind in PICTURES if kind in parts), None)
    texts = {kind: archive.extractfile(parts[kind]).read().decode() for kind in ("txt", "json", "cls") if kind in parts}
    try:
        about = json.loads(texts.get("json", "{}"))
        label = int(texts["cls"]) if "cls" in texts else None
    except ValueError as error:
        raise ValueError(f"{shard}: the .json or .cls beside {next(iter(parts.values())).name}: {error}") from error
    caption = texts.get("txt") or about.get("caption")
    if label is not None and caption is None:
        if not names or not 0 <= label < len(names):
            raise ValueError(f"{shard}: class {label} of {len(names or ())} names; give the list of names")
        caption = names[label]
    if picture is not None and caption and caption.strip():
        yield Row(
            shard.name, about.get("width") or 0, about.get("height") or 0, caption=caption.strip(),
            offset=picture.offset_data, size=picture.size,
        )  # fmt: skip
