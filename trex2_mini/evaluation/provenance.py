"""Where a number comes from: which weights, which data, which code. Every result carries these beside its values."""

import hashlib
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from trex2_mini import __version__
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.paths import REPOSITORY


def describe_dataset(dataset: CocoDataset) -> dict:
    """The set's folder, its version where it has one, and its annotation file's SHA-256."""
    info = dataset.coco.get("info")
    return describe_file(dataset.path, info.get("version") if isinstance(info, dict) else None)


def describe_file(path: Path, version: str | None = None) -> dict:
    """The same of any annotation file."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": path.parent.name, "version": version, "annotations_sha256": digest}


def describe_code() -> dict:
    """Versions, and the repository's commit where there is one."""
    versions = {"torch": torch.__version__, "pycocotools": version("pycocotools"), "trex2_mini": __version__}
    return {"versions": versions, "commit": _commit()}


def _commit() -> str | None:
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return git.stdout.strip()
