"""Downloads against a server that misbehaves as real ones do: what ends under a file's name is whole and right, or
there is nothing.
"""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from trex2_mini.cli import main
from trex2_mini.datasets import download
from trex2_mini.datasets.download import DownloadError, choose_images, fetch, fetch_many, unpack, whole_picture
from trex2_mini.datasets.registry import open_dataset
from trex2_mini.paths import REPOSITORY

SHARED = REPOSITORY.parent / "shared"
CONTENT = np.random.default_rng(0).bytes(600_000)
QUICK = {"wait": 0.01, "timeout": 2.0}


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` {path: bytes}; `faults` {path: [fault, ...]} are used up one a request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests = {}, {}, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        queue = server.faults.get(self.path, [])
        fault = queue.pop(0) if queue else None
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", f"{self.path}.moved")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if isinstance(fault, int) or self.path not in server.files:
            self.send_response(fault or 404)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = server.files[self.path]
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and fault != "no ranges" else 0
        if start and self.headers.get("If-Range") not in (None, tag):
            start = 0
        if start >= len(body) and start:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        part = body[start:]
        if fault == "close":
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        elif fault == "hang":
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            time.sleep(3)
            self.close_connection = True
        elif fault == "slow":
            for begin in range(0, len(part), 20_000):
                self.wfile.write(part[begin : begin + 20_000])
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(bytes(len(part)) if fault == "wrong" else part)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.files["/file"] = CONTENT
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "faults",
    [[], ["close"], ["close", "close", "no ranges"], [500, 503, "close"], ["hang"], ["slow"], ["wrong"],
     ["close", "wrong", "close"], [429], ["no ranges"]],
    ids=str,
)  # fmt: skip
def test_it_ends_whole_whatever_happens_on_the_way(server, tmp_path, faults):
    server.faults["/file"] = list(faults)
    path = fetch(f"{server.url}/file", tmp_path / "folder" / "file", hashlib.md5(CONTENT).hexdigest(), **QUICK)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert len(server.requests) == len([f for f in faults if f not in ("slow", "no ranges")]) + 1


def test_a_redirection_is_followed(server, tmp_path):
    server.faults["/file"], server.files["/file.moved"] = ["redirect"], CONTENT
    assert fetch(f"{server.url}/file", tmp_path / "file", **QUICK).read_bytes() == CONTENT


def test_what_was_interrupted_goes_on_where_it_stopped(server, tmp_path):
    server.faults["/file"] = ["close"]
    with pytest.raises(DownloadError, match="bytes are kept"):
        fetch(f"{server.url}/file", tmp_path / "file", attempts=1, **QUICK)
    assert not (tmp_path / "file").exists()
    assert fetch(f"{server.url}/file", tmp_path / "file", **QUICK).read_bytes() == CONTENT
    assert 200_000 < int(server.requests[-1][1].removeprefix("bytes=").rstrip("-")) <= 300_000
    before = len(server.requests)
    fetch(f"{server.url}/file", tmp_path / "file", **QUICK)
    assert len(server.requests) == before  # it is there


def test_a_file_that_changed_on_the_server_begins_anew(server, tmp_path):
    server.faults["/file"] = ["close"]
    with pytest.raises(DownloadError):
        fetch(f"{server.url}/file", tmp_path / "file", attempts=1, **QUICK)
    server.files["/file"] = CONTENT[::-1]
    assert fetch(f"{server.url}/file", tmp_path / "file", **QUICK).read_bytes() == CONTENT[::-1]


def test_a_beginning_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    path = fetch(f"{server.url}/file", tmp_path / "file", hashlib.md5(CONTENT).hexdigest(), **QUICK)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("faults, words", [
    ([404], "404"), ([403], "403"), ([500] * 9, "500"), (["wrong"] * 9, "MD5"), (["close"] * 9, "tries"),
])  # fmt: skip
def test_a_failure_leaves_no_file(server, tmp_path, faults, words):
    server.faults["/file"] = list(faults)
    with pytest.raises(DownloadError, match=words):
        fetch(f"{server.url}/file", tmp_path / "file", hashlib.md5(CONTENT).hexdigest(), attempts=3, **QUICK)
    assert not (tmp_path / "file").exists()
    assert len(server.requests) == (1 if faults[0] in (404, 403) else 3)


def test_nobody_there(tmp_path):
    with pytest.raises(DownloadError, match="could not be fetched after 2 tries"):
        fetch("http://127.0.0.1:9/file", tmp_path / "file", attempts=2, **QUICK)


def test_killed_in_the_middle_and_run_again(server, tmp_path):
    """kill -9 of a real process; the next run asks for the rest and ends byte for byte."""
    server.faults["/file"] = ["slow"]
    code = (
        "import pathlib, sys; from trex2_mini.datasets.download import fetch; fetch(sys.argv[1],"
        " pathlib.Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, f"{server.url}/file", str(tmp_path / "file")])
    part = tmp_path / "file.part"
    deadline = time.monotonic() + 120
    while not (part.exists() and part.stat().st_size > 100_000) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended too early"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = part.stat().st_size
    assert 0 < kept < len(CONTENT) and not (tmp_path / "file").exists()
    assert fetch(f"{server.url}/file", tmp_path / "file", **QUICK).read_bytes() == CONTENT
    assert server.requests[-1][1] == f"bytes={kept}-"


def jpeg(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def test_pictures_in_parallel(server, tmp_path):
    """A truncated picture and a missing one are named; the others are there, and a second call asks only for what is
    missing.
    """
    for i in range(12):
        server.files[f"/{i}.jpg"] = jpeg()
    server.files["/3.jpg"] = jpeg()[:-200]
    del server.files["/7.jpg"]
    jobs = [(f"{server.url}/{i}.jpg", tmp_path / f"{i}.jpg") for i in range(12)]
    with pytest.raises(DownloadError, match="2 of 12 pictures failed"):
        fetch_many(jobs, workers=4, progress=False, attempts=2, **QUICK)
    assert {p.name for p in tmp_path.glob("*.jpg")} == {f"{i}.jpg" for i in range(12)} - {"3.jpg", "7.jpg"}
    server.files["/3.jpg"] = server.files["/7.jpg"] = jpeg()
    asked = len(server.requests)
    fetch_many(jobs, progress=False, **QUICK)
    assert len(server.requests) == asked + 2
    for _, path in jobs:
        whole_picture(path)


def zipped(names: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/out.txt", "a/../../../../../tmp/out.txt"])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path, name):
    (tmp_path / "bad.zip").write_bytes(zipped({"good.txt": b"1", name: b"2"}))
    with pytest.raises(ValueError, match="would leave"):
        unpack(tmp_path / "bad.zip", tmp_path / "target")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["bad.zip"]


def test_links_and_broken_archives_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="would leave"):
        unpack(tmp_path / "link.zip", tmp_path / "target")
    (tmp_path / "cut.zip").write_bytes(zipped({"a": b"1" * 1000})[:-30])
    with pytest.raises(ValueError, match="not the archive"):
        unpack(tmp_path / "cut.zip", tmp_path / "target")
    with pytest.raises(ValueError, match="not the archive"):
        (tmp_path / "good.zip").write_bytes(zipped({"a": b"1"}))
        unpack(tmp_path / "good.zip", tmp_path / "target", ["missing"])


def test_every_category_keeps_a_picture():
    rng = np.random.default_rng(0)
    images = [{"id": i} for i in range(500)]
    common = [{"image_id": i, "category_id": int(rng.integers(3))} for i in range(500)]
    rare = [{"image_id": int(rng.integers(500)), "category_id": 10 + c} for c in range(20)]
    content = {"images": images, "annotations": common + rare}
    chosen = choose_images(content, 40, seed=1)
    held = {a["category_id"] for a in content["annotations"] if a["image_id"] in set(chosen)}
    assert len(chosen) == 40 and held == {0, 1, 2, *range(10, 30)}
    assert chosen == choose_images(content, 40, seed=1) != choose_images(content, 40, seed=2)
    assert len(choose_images(content, 9999)) == 500


@pytest.fixture
def official(server, tmp_path, monkeypatch):
    """COCO and LVIS as their hosts serve them, small: eight pictures of val2017, three of them in LVIS val, one LVIS
    picture in train2017.
    """
    names = [f"{i:012d}.jpg" for i in range(1, 9)]
    for name in names:
        server.files[f"/val2017/{name}"] = jpeg()
    server.files["/train2017/000000000099.jpg"] = jpeg("blue")
    images = [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names, 1)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1 + i % 3, "bbox": [1, 1, 9, 9], "iscrowd": 0, "area": 81}
        for i in range(1, 9)
    ]
    kinds = [{"id": c, "name": name} for c, name in enumerate(("cat", "dog", "traffic light"), 1)]
    text = json.dumps({"images": images, "annotations": boxes, "categories": kinds})
    archive = {"annotations/instances_val2017.json": text.encode(), "annotations/captions_val2017.json": b"{}"}
    server.files["/annotations/annotations_trainval2017.zip"] = zipped(archive)
    server.files["/zips/val2017.zip"] = zipped({f"val2017/{name}": jpeg() for name in names})
    urls = [f"http://images.cocodataset.org/val2017/{name}" for name in names[:3]]
    urls.append("http://images.cocodataset.org/train2017/000000000099.jpg")
    federated = {"neg_category_ids": [2], "not_exhaustive_category_ids": [], "width": 40, "height": 30}
    lvis_images = [{"id": i, "coco_url": url} | federated for i, url in enumerate(urls, 1)]
    things = [
        {"id": c, "name": name, "frequency": "rcf"[c - 1], "synonyms": [name]}
        for c, name in enumerate(("bat_(animal)", "aerosol_can", "cat"), 1)
    ]
    lvis_boxes = [
        {"id": i, "image_id": i, "category_id": 1 if i < 3 else 3, "bbox": [1, 1, 9, 9], "area": 81}
        for i in range(1, 5)
    ]
    text = json.dumps({"images": lvis_images, "annotations": lvis_boxes, "categories": things})
    server.files["/lvis/lvis_v1_val.json.zip"] = zipped({"lvis_v1_val.json": text.encode()})
    monkeypatch.setenv("TREX2_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TREX2_COCO_URL", server.url)
    monkeypatch.setenv("TREX2_LVIS_URL", f"{server.url}/lvis")
    return server


def test_a_part_of_coco_by_one_command(official, capsys):
    assert main(["data", "coco", "--images", "4"]) == 0
    assert "coco-val2017-4: 4 images, 3 categories" in capsys.readouterr().out
    dataset = open_dataset("coco-val2017-4")
    assert len(dataset) == 4 and {label for sample in dataset for label in sample.labels.tolist()} == {0, 1, 2}
    assert sum(path.startswith("/val2017/") for path, _ in official.requests) == 4
    before = len(official.requests)
    assert main(["data", "coco", "--images", "4"]) == 0 and len(official.requests) == before


def test_all_of_coco_and_chosen_pictures(official, tmp_path, capsys):
    (tmp_path / "ids.txt").write_text("2\n5\n")
    assert main(["data", "coco", "--ids", str(tmp_path / "ids.txt")]) == 0
    assert [image["id"] for image in open_dataset("coco-val2017-chosen").coco["images"]] == [2, 5]
    assert main(["data", "coco", "--full"]) == 0 and len(open_dataset("coco-val2017")) == 8
    (tmp_path / "ids.txt").write_text("77\n")
    assert main(["data", "coco", "--ids", str(tmp_path / "ids.txt")]) == 1 and "77" in capsys.readouterr().err


def test_lvis_takes_its_pictures_from_where_they_lie(official):
    assert main(["data", "lvis", "--full"]) == 0
    whole = open_dataset("lvis-val")
    assert whole.names == ["bat (animal)", "aerosol can", "cat"] and len(whole) == 4
    assert whole[3].image[0, 0, 2] > 200  # the blue one, of train2017
    assert whole[0].vocabulary.tolist() == [0, 1] and whole.categories[0]["frequency"] == "r"
    minival = open_dataset("lvis-minival")
    assert len(minival) == 3
    assert main(["data", "lvis-minival", "--images", "2"]) == 0 and len(open_dataset("lvis-minival-2")) == 2


def test_a_wrong_name_is_refused(capsys):
    assert main(["data", "coc"]) == 1 and "no set 'coc'" in capsys.readouterr().err
    assert main(["data", "coco", "--images", "0"]) == 2 and "x>=1" in capsys.readouterr().err
    assert main(["data", "check"]) == 2 and "NAME|FOLDER" in capsys.readouterr().err


@pytest.mark.skipif(
    not (SHARED / "coco").is_dir(), reason="the COCO excerpt beside the repository (../shared/coco) is absent"
)
def test_real_coco_through_the_same_command(server, tmp_path, monkeypatch):
    """The real excerpt served under the official paths."""
    source = SHARED / "coco"
    text = (source / "annotations" / "instances_val2017.json").read_bytes()
    server.files["/annotations/annotations_trainval2017.zip"] = zipped({"annotations/instances_val2017.json": text})
    for path in (source / "val2017").iterdir():
        server.files[f"/val2017/{path.name}"] = path.read_bytes()
    monkeypatch.setenv("TREX2_DATA", str(tmp_path))
    monkeypatch.setenv("TREX2_COCO_URL", server.url)
    assert download.coco(images=20) == "coco-val2017-20"
    dataset = open_dataset("coco-val2017-20")
    assert len(dataset) == 20
    for image in dataset.coco["images"]:
        file = os.path.join("val2017", image["file_name"])
        assert (tmp_path / "coco" / file).read_bytes() == (source / file).read_bytes()


def test_photographs_are_fetched_by_commit_and_scaled(server, tmp_path, monkeypatch):
    """Two pictures of one set, served under GitHub's paths; then the manifest is wrong about the boxes."""
    entry = {"name": "eggs", "repository": "someone/eggs", "commit": "abc", "split": "train", "licence": "CC BY 4.0"}
    entry |= {"images": 2, "boxes": 2, "categories": {"egg_fertile": "fertile egg"}}
    entry["files"] = [["a b.jpg", 448, 224], ["c.jpg", 100, 80]]
    notes = {
        "images": [
            {"id": 5, "file_name": "a b.jpg"},
            {"id": 6, "file_name": "c.jpg"},
            {"id": 7, "file_name": "unused.jpg"},
        ],
        "categories": [{"id": 0, "name": "eggs"}, {"id": 1, "name": "egg_fertile"}],
        "annotations": [{"image_id": image, "category_id": 1, "bbox": [10, 20, 100, 50]} for image in (5, 6, 7)],
    }
    server.files["/someone/eggs/abc/train/_annotations.coco.json"] = json.dumps(notes).encode()
    server.files["/someone/eggs/abc/train/a%20b.jpg"] = jpeg("red", (896, 448))
    server.files["/someone/eggs/abc/train/c.jpg"] = jpeg("blue", (100, 80))
    (tmp_path / "manifest.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(download, "PHOTOS_MANIFEST", tmp_path / "manifest.json")
    monkeypatch.setenv("TREX2_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TREX2_GITHUB_URL", server.url)
    assert main(["data", "photos"]) == 0
    dataset = open_dataset(str(tmp_path / "data" / "photos" / "eggs"))
    assert dataset.names == ["fertile egg"] and [s.image.shape for s in dataset] == [(224, 448, 3), (80, 100, 3)]
    np.testing.assert_array_equal(dataset[0].boxes, [[5, 10, 55, 35]])
    assert not (tmp_path / "data" / "photos" / "eggs" / "originals").exists()
    (tmp_path / "manifest.json").write_text(json.dumps([entry | {"name": "again", "boxes": 3}]))
    with pytest.warns(UserWarning, match="2 boxes came, the manifest has 3"):
        download.photos()
    (tmp_path / "manifest.json").write_text(json.dumps([entry | {"name": "third", "files": [["c.jpg", 50, 40]]}]))
    with pytest.raises(ValueError, match="does not scale to 50 x 40"):
        download.photos()
    assert not (tmp_path / "data" / "photos" / "third" / "_annotations.coco.json").exists()


def test_the_manifest_of_photographs_names_its_sources():
    entries = json.loads(download.PHOTOS_MANIFEST.read_text())
    assert len(entries) == 13 and sum(e["images"] for e in entries) == 2140 and sum(e["boxes"] for e in entries) == 7813
    for entry in entries:
        assert len(entry["commit"]) == 40 and len(entry["files"]) == entry["images"]
        assert entry["licence"] in ("CC BY 4.0", "Public Domain")


@pytest.mark.parametrize("name", ["../../outside.jpg", "/tmp/outside.jpg", "..", "sub/1.jpg"])
def test_annotations_do_not_choose_where_a_picture_is_written(server, tmp_path, monkeypatch, name):
    """COCO's file_name and LVIS's coco_url say which picture, not which folder: nothing is fetched, nothing written."""
    monkeypatch.setenv("TREX2_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TREX2_COCO_URL", server.url)
    coco = {"images": [{"id": 1, "file_name": name}], "annotations": [], "categories": []}
    lvis = coco | {"images": [{"id": 1, "coco_url": f"http://x/{name}"}]}
    for path, content in (("coco/annotations/instances_val2017.json", coco), ("lvis/lvis_v1_val.json", lvis)):
        (tmp_path / "data" / path).parent.mkdir(parents=True)
        (tmp_path / "data" / path).write_text(json.dumps(content))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="expected plain file names"):
        download.coco("val2017", ids=[1])
    (tmp_path / "data" / "coco").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="expected a coco_url that ends in"):
        download.lvis("lvis-val", 1)
    assert sorted(tmp_path.rglob("*")) == before
