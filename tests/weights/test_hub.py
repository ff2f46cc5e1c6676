"""Sharing: a folder written by the mixin gives the same detections; pushing is private unless asked otherwise; errors
are ours.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from huggingface_hub import HfApi, hub_mixin
from tiny import TINY, seeded_model, squares

from trex2_mini.checkpoint import CheckpointError
from trex2_mini.detector import Detector
from trex2_mini.weights import hub
from trex2_mini.weights.hub import SharedDetector


@pytest.fixture
def detector():
    return SharedDetector(seeded_model(), TINY, "cpu")


def test_round_trip(detector, tmp_path):
    """from_pretrained, and Detector.load, of a saved folder give the very same boxes and scores."""
    detector.save_pretrained(tmp_path / "shared")
    assert {"config.json", "model.safetensors"} <= {p.name for p in (tmp_path / "shared").iterdir()}
    assert json.loads((tmp_path / "shared" / "config.json").read_text()) == json.loads(TINY.to_json())
    image = squares(0).image
    wanted = detector.detect(image, boxes=[[5, 5, 30, 30]], score_threshold=0)
    assert len(wanted)
    for other in (
        SharedDetector.from_pretrained(tmp_path / "shared", device="cpu"),
        Detector.load(tmp_path / "shared", "cpu"),
    ):
        found = other.detect(image, boxes=[[5, 5, 30, 30]], score_threshold=0)
        np.testing.assert_array_equal(found.boxes, wanted.boxes)
        np.testing.assert_array_equal(found.scores, wanted.scores)


@pytest.mark.parametrize("options, private", [({}, True), ({"private": False}, False)])
def test_push(detector, monkeypatch, options, private):
    """What would be sent: our two files, to a repository that is private by default. The Hub's two calls are recorded,
    not made.
    """
    sent = {}

    def create_repo(self, repo_id, **given):
        sent["private"] = given["private"]
        return type("Made", (), {"repo_id": repo_id})()

    def upload_folder(self, *, folder_path, **given):
        from pathlib import Path

        sent["files"] = {p.name for p in Path(folder_path).iterdir()}
        return "sent"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert detector.push_to_hub("someone/tiny", **options) == "sent"
    assert sent["private"] is private and {"config.json", "model.safetensors"} <= sent["files"]


def test_not_ours(detector, tmp_path):
    """A folder without weights, and a name that is not in the cache, are told clearly; no network is asked."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="missing"):
        SharedDetector.from_pretrained(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="could not be had"):
        SharedDetector.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="expected a folder, or owner/name"):
        SharedDetector.from_pretrained(None)
    detector.save_pretrained(tmp_path / "wrong")
    (tmp_path / "wrong" / "config.json").write_text(TINY.to_json().replace('"dim": 32', '"dim": 33'))
    with pytest.raises(ValueError, match="multiple of 4"):
        SharedDetector.from_pretrained(tmp_path / "wrong")


def test_from_the_cache_and_private(detector, monkeypatch, tmp_path):
    """What was once fetched loads without a network; the token and revision of a private repository reach the Hub's
    client.
    """
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / ("a" * 40)
    detector.save_pretrained(snapshot)
    (tmp_path / "models--someone--tiny" / "refs").mkdir()
    (tmp_path / "models--someone--tiny" / "refs" / "main").write_text("a" * 40)
    found = SharedDetector.from_pretrained("someone/tiny", local_files_only=True, cache_dir=tmp_path, device="cpu")
    assert found.config == TINY
    asked, first = {}, {}
    monkeypatch.setattr(
        hub_mixin, "hf_hub_download", lambda **given: first.update(given) or str(snapshot / "config.json")
    )
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, **given: asked.update(given, repo=repo) or str(snapshot))
    SharedDetector.from_pretrained("someone/private", token="hf_secret", revision="v1")
    assert asked["repo"] == first["repo_id"] == "someone/private"
    assert asked["token"] == first["token"] == "hf_secret" and asked["revision"] == first["revision"] == "v1"
    assert set(asked["allow_patterns"]) == {"config.json", "model.safetensors", "vocabulary.json"}


@pytest.mark.parametrize("name", ["noslash", "a/b/c", "", "/", None])
def test_push_needs_owner_and_name(detector, name):
    with pytest.raises(ValueError, match="owner/name"):
        detector.push_to_hub(name)


def test_push_that_fails(detector, monkeypatch):
    """Whatever the Hub's client raises, the message says what to check."""
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(ValueError, match=r"could not be written.*no route.*hf auth login"):
        detector.push_to_hub("someone/tiny")
