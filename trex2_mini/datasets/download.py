"""Fetching COCO, LVIS and small sets of photographs: annotations, and as many pictures as wanted, one by one.

Files grow under a name of their own (.part) and get their final name only when they are whole and checked. What was
interrupted goes on where it stopped (HTTP Range), unless the file on the server has changed meanwhile. COCO's mirrors
are given with TREX2_COCO_URL and TREX2_LVIS_URL.
"""

import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PureWindowsPath
from urllib.parse import quote

import numpy as np
import requests
from PIL import Image
from tqdm import tqdm

from trex2_mini.datasets.formats import LVIS_SETS, lvis_dataset
from trex2_mini.paths import PHOTOS_MANIFEST, data_root, write_text

COCO_URL, LVIS_URL = "http://images.cocodataset.org", "https://dl.fbaipublicfiles.com/LVIS"
COCO_MD5 = {
    "train2017.zip": "cced6f7f71b7629ddf16f17bbcfab6b2",
    "val2017.zip": "442b8da7639aecaf257c1dceb8ba8c80",
    "annotations_trainval2017.zip": "f4bbac642086de4f52a3fdda2de5fa2c",
}
CHUNK = 1 << 16
LONGEST = 448  # px, of the photographs of `photos`


class DownloadError(OSError):
    """A file could not be fetched; the message says why, and what is kept."""


def fetch(
    url: str,
    path: Path,
    md5: str | None = None,
    check: Callable[[Path], None] | None = None,
    attempts: int = 5,
    wait: float = 1.0,
    timeout: float = 30.0,
    progress: bool = False,
) -> Path:
    """Fetch `url` to `path`, unless it is there already.

    Args:
        md5: hexadecimal digest that the whole file must have.
        check: called with the whole file before it gets its name; raises ValueError if the file is not what it should
        be.
        attempts: tries in all; the pause between them doubles from `wait` seconds.
        timeout: seconds without a byte after which a try has failed.

    Returns:
        `path`. It is there whole and checked, or not at all; `path`.part keeps what an interruption left.

    Raises:
        DownloadError: no such file on the server, no connection after all tries, or content that is not what it should
        be.
    """
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part, mark = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.etag")
    reason = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(wait * 2 ** (attempt - 1))
        try:
            _transfer(url, part, mark, timeout, progress)
            _verify(part, md5, check)
        except requests.HTTPError as error:
            reason = str(error)
            if 400 <= error.response.status_code < 500 and error.response.status_code not in (408, 416, 429):
                break
            if error.response.status_code == 416:  # what we have is no beginning of what is there
                part.unlink(missing_ok=True)
        except (requests.RequestException, _Short) as error:
            reason = f"{type(error).__name__}: {error}"
        except ValueError as error:  # whole, but wrong: begin anew
            reason = str(error)
            part.unlink(missing_ok=True)
        else:
            mark.unlink(missing_ok=True)
            os.replace(part, path)
            return path
    kept = (
        f"; {part.stat().st_size:,} bytes are kept in {part} and the next call goes on from there"
        if part.exists()
        else ""
    )
    raise DownloadError(f"{url} could not be fetched after {attempt + 1} tries: {reason}{kept}")


class _Short(Exception):
    """The server closed the connection before the file was whole."""


def _transfer(url: str, part: Path, mark: Path, timeout: float, progress: bool) -> None:
    """One try: append to `part` what is missing. `mark` holds the server's tag of the file that `part` is the beginning
    of."""
    start = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if mark.is_file():
            headers["If-Range"] = mark.read_text(encoding="utf-8")
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        answer.raise_for_status()
        if answer.status_code != 206:
            start = 0  # no ranges here, or the file has changed: all of it comes
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if tag and not tag.startswith("W/"):
            mark.write_text(tag, encoding="utf-8")
        expected = answer.headers.get("Content-Length")
        whole = start + int(expected) if expected is not None else None
        bar = tqdm(total=whole, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress)
        with bar, part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for block in answer.iter_content(CHUNK):
                file.write(block)
                bar.update(len(block))
    size = part.stat().st_size
    if whole is not None and size < whole:
        raise _Short(f"{size:,} of {whole:,} bytes came")


def _verify(part: Path, md5: str | None, check: Callable[[Path], None] | None) -> None:
    if md5:
        digest = hashlib.md5(usedforsecurity=False)
        with part.open("rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
        if digest.hexdigest() != md5:
            raise ValueError(f"its MD5 is {digest.hexdigest()}, not {md5}")
    if check:
        check(part)


def whole_picture(path: Path) -> None:
    """Raises ValueError if `path` is not a picture that can be decoded to its last pixel."""
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"not a whole picture ({error})") from None


def fetch_many(jobs: Sequence[tuple[str, Path]], workers: int = 8, progress: bool = True, **options) -> None:
    """Fetch (url, path) pairs in parallel, each checked as a picture. Raises DownloadError at the end if some failed;
    the others stay."""
    jobs, failures = [(url, path) for url, path in jobs if not path.is_file()], []

    def one(job: tuple[str, Path]) -> str | None:
        try:
            fetch(*job, check=whole_picture, **options)
        except DownloadError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(one, jobs)
        for failure in tqdm(results, total=len(jobs), desc="pictures", unit="picture", disable=not progress):
            if failure:
                failures.append(failure)
    if failures:
        raise DownloadError(
            f"{len(failures)} of {len(jobs)} pictures failed; run the command again to go on. First: {failures[0]}"
        )


def unpack(archive: Path, target: Path, members: Iterable[str] | None = None) -> None:
    """Unpack a zip file's members (default: all) into `target`. Each file appears whole.

    Raises ValueError before anything is written, if the archive is broken or a member would leave `target` (..,
    absolute paths, links).
    """
    target = target.resolve()
    try:
        with zipfile.ZipFile(archive) as file:
            chosen = [file.getinfo(name) for name in members] if members is not None else file.infolist()
            for info in chosen:
                place = (target / info.filename).resolve()
                if not place.is_relative_to(target) or stat.S_ISLNK(info.external_attr >> 16):
                    raise ValueError(
                        f"{archive}: the member {info.filename!r} would leave {target}; nothing was unpacked"
                    )
            for info in tqdm(chosen, desc=f"unpacking {archive.name}", unit="file", disable=len(chosen) < 10):
                if not info.is_dir():
                    place = target / info.filename
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".unpack-") as draft:
                        os.replace(file.extract(info, draft), place)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{archive} is not the archive it should be: {error}") from None


def choose_images(coco: dict, count: int, seed: int = 0) -> list[int]:
    """`count` image ids, drawn at random, but so that as many categories as possible keep a picture: the rarest
    category chooses first."""
    order = np.random.default_rng(seed).permutation(sorted(image["id"] for image in coco["images"])).tolist()
    place = {image: position for position, image in enumerate(order)}
    holding: dict[int, set[int]] = {}
    for annotation in coco["annotations"]:
        holding.setdefault(annotation["category_id"], set()).add(annotation["image_id"])
    chosen: dict[int, None] = {}
    for category in sorted(holding, key=lambda c: (len(holding[c]), c)):
        if len(chosen) < count and not holding[category] & chosen.keys():
            chosen[min(holding[category], key=place.__getitem__)] = None
    for image in order:
        if len(chosen) >= count:
            break
        chosen[image] = None
    return sorted(chosen)


def coco(
    split: str = "val2017", images: int | None = 500, seed: int = 0, ids: Sequence[int] | None = None, **options
) -> str:
    """COCO's annotations and pictures of a split into <data root>/coco, in the official layout.

    images: how many, chosen by `choose_images`; None: the whole split, as an archive. ids: these pictures instead.
    Returns the name under which `open_dataset` knows the result.
    """
    base, root = os.environ.get("TREX2_COCO_URL", COCO_URL).rstrip("/"), data_root() / "coco"
    annotations = root / "annotations" / f"instances_{split}.json"
    if not annotations.is_file():
        name = "annotations_trainval2017.zip"
        archive = fetch(f"{base}/annotations/{name}", root / name, _md5(name), progress=True, **options)
        unpack(archive, root, [f"annotations/instances_{split}.json"])
    if images is None and ids is None:
        archive = fetch(
            f"{base}/zips/{split}.zip", root / f"{split}.zip", _md5(f"{split}.zip"), progress=True, **options
        )
        unpack(archive, root)
        return f"coco-{split}"
    content = json.loads(annotations.read_text(encoding="utf-8"))
    chosen = set(choose_images(content, images or 0, seed) if ids is None else ids)
    unknown = sorted(chosen - {image["id"] for image in content["images"]})
    if unknown:
        raise ValueError(f"no pictures of {split}: {unknown[:5]}")
    part = _restricted(content, chosen)
    for image in part["images"]:
        if PureWindowsPath(image["file_name"]).name != image["file_name"] or not image["file_name"].strip("."):
            raise ValueError(
                f"{annotations}: expected plain file names, got {image['file_name']!r}; nothing was fetched"
            )
    fetch_many([(f"{base}/{split}/{i['file_name']}", root / split / i["file_name"]) for i in part["images"]], **options)
    suffix = (
        f"-{len(chosen)}" if ids is None and seed == 0 else f"-{len(chosen)}-seed{seed}" if ids is None else "-chosen"
    )
    write_text(annotations.with_name(f"instances_{split}{suffix}.json"), json.dumps(part))
    return f"coco-{split}{suffix}"


def lvis(name: str, images: int | None = 500, seed: int = 0, **options) -> str:
    """LVIS v1's annotations of "lvis-train", "lvis-val" or "lvis-minival", and pictures of theirs into COCO's folders.

    images: how many, chosen by `choose_images`; None: all of them, one by one. Returns the name for `open_dataset`.
    """
    base, coco_base = os.environ.get("TREX2_LVIS_URL", LVIS_URL), os.environ.get("TREX2_COCO_URL", COCO_URL)
    path, pictures = data_root() / "lvis" / f"{LVIS_SETS[name]}.json", data_root() / "coco"
    pictures.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        archive = fetch(
            f"{base.rstrip('/')}/{path.name}.zip", path.with_name(path.name + ".zip"), progress=True, **options
        )
        unpack(archive, path.parent, [path.name])
    content = json.loads(path.read_text(encoding="utf-8"))
    whole = lvis_dataset(content, path, pictures, name == "lvis-minival").coco
    chosen = set(choose_images(whole, images, seed)) if images is not None else {i["id"] for i in whole["images"]}
    files = [image["file_name"] for image in whole["images"] if image["id"] in chosen]
    fetch_many([(f"{coco_base.rstrip('/')}/{file}", pictures / file) for file in files], **options)
    if images is None:
        return name
    suffix = f"-{len(chosen)}" if seed == 0 else f"-{len(chosen)}-seed{seed}"
    write_text(path.with_name(f"{name}{suffix}.json"), json.dumps(_restricted(content, chosen)))
    return f"{name}{suffix}"


def _md5(name: str) -> str | None:
    """The official digest; a mirror's archives may differ."""
    return COCO_MD5[name] if "TREX2_COCO_URL" not in os.environ else None


def _restricted(content: dict, chosen: set[int]) -> dict:
    images = [image for image in content["images"] if image["id"] in chosen]
    return content | {"images": images, "annotations": [a for a in content["annotations"] if a["image_id"] in chosen]}


def photos(**options) -> list[str]:
    """The 13 small sets of photographs that data/photos_manifest.json lists, from their public repositories at a fixed
    commit, into <data root>/photos: pictures scaled to at most 448 px, boxes with them. Returns their folders, for
    `open_dataset`.

    Raises DownloadError, and ValueError where a source is not what the manifest says.
    """
    base = os.environ.get("TREX2_GITHUB_URL", "https://raw.githubusercontent.com").rstrip("/")
    folders = []
    for entry in json.loads(PHOTOS_MANIFEST.read_text(encoding="utf-8")):
        folder = data_root() / "photos" / entry["name"]
        source, originals = f"{base}/{entry['repository']}/{entry['commit']}/{entry['split']}", folder / "originals"
        folders.append(str(folder))
        if (folder / "_annotations.coco.json").is_file():
            continue
        notes = json.loads(
            fetch(f"{source}/_annotations.coco.json", originals / "notes.json", **options).read_text("utf-8")
        )
        files = [file for file, _, _ in entry["files"]]
        fetch_many([(f"{source}/{quote(file)}", originals / file) for file in files], **options)
        write_text(folder / "_annotations.coco.json", json.dumps(_scaled_set(entry, notes, originals, folder)))
        shutil.rmtree(originals)
    return folders


def _scaled_set(entry: dict, notes: dict, originals: Path, folder: Path) -> dict:
    """Write the scaled pictures of a set and return its annotations, checked against the manifest."""
    found = {image["file_name"]: image for image in notes["images"]}
    name_of = {c["id"]: entry["categories"].get(c["name"]) for c in notes["categories"]}
    names = list(entry["categories"].values())
    images, annotations = [], []
    for number, (file, width, height) in enumerate(entry["files"], 1):
        if file not in found:
            raise ValueError(f"{entry['repository']} at {entry['commit']} has no picture {file!r}")
        with Image.open(originals / file) as picture:
            scale = min(1.0, LONGEST / max(picture.size))
            scaled = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            if (round(picture.width * scale), round(picture.height * scale)) != (width, height):
                raise ValueError(
                    f"{originals / file} is {picture.width} x {picture.height}, which does not scale to {width} x"
                    f" {height}"
                )
        scaled.save(folder / f"{number:04d}.jpg", quality=90)
        images.append(
            {"id": number, "file_name": f"{number:04d}.jpg", "width": width, "height": height, "source_file": file}
        )
        for note in notes["annotations"]:
            if note["image_id"] == found[file]["id"] and name_of[note["category_id"]]:
                x, y, w, h = (round(value * scale, 1) for value in note["bbox"])
                if w > 0 and h > 0:
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": number, "bbox": [x, y, w, h], "area": round(w * h, 2),
                            "iscrowd": 0}
                        | {"category_id": names.index(name_of[note["category_id"]]) + 1}
                    )  # fmt: skip
    if len(annotations) != entry["boxes"]:
        warnings.warn(
            f"{entry['name']}: {len(annotations)} boxes came, the manifest has {entry['boxes']}", stacklevel=2
        )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    info = {key: entry[key] for key in ("repository", "commit", "split", "licence")}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}
