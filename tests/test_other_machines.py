"""What Windows, Macs and other processors ask of the package, as far as it can be seen on this machine (README.md)."""

from __future__ import annotations

import ast
import dataclasses
import json
import multiprocessing
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import write_set
from tiny import NAMES, TINY, picture, seeded_model, squares
from torch.utils._python_dispatch import TorchDispatchMode

from trex2_mini.annotations import export
from trex2_mini.checkpoint import read_tensors, write_tensors
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.scenes.batches import EmojiBatches
from trex2_mini.detector import Detector
from trex2_mini.paths import REPOSITORY
from trex2_mini.processes import usable_device
from trex2_mini.training.batches import DatasetBatches, MixedBatches
from trex2_mini.training.iteration import iteration_losses
from trex2_mini.training.trainer import Trainer

UNIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios"}
UNIX_CALLS = (
    r"\bos\.(?:fork|getuid|geteuid|uname|statvfs|getloadavg|chown|killpg|setsid|symlink|sched_\w+)\b"
    r"|\bsignal\.SIG(?:KILL|HUP)\b"
)


def without_encoding(code: str) -> list[str]:
    """The calls that open a text file in whatever encoding the system prefers."""
    found = []
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        parts = [node for a in call.args if isinstance(a, (ast.Constant, ast.IfExp)) for node in ast.walk(a)]
        literals = [node.value for node in parts if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        owner = getattr(getattr(call.func, "value", None), "id", "")
        if owner in ("av", "tarfile"):  # no text
            continue
        if name == "open":  # of a path, or a class's own open()
            unsure = bool(call.args) and isinstance(call.func, ast.Attribute) and not literals
            text = not unsure and not any("b" in value for value in literals)
        else:  # the function write_text of paths.py knows its encoding
            text = isinstance(call.func, ast.Attribute) and name in ("read_text", "write_text")
        if text and "encoding" not in [k.arg for k in call.keywords] and "utf-8" not in literals:
            found.append(ast.unparse(call))
    return found


def test_calls_without_encoding_are_found():
    bad = ["p.read_text()", "open(p)", "p.open()", "p.open('a')", "p.write_text('x')"]
    good = [
        "p.read_text('utf-8')",
        "open(p, 'rb')",
        "p.open('w', encoding='utf-8')",
        "Image.open(p)",
        "write_text(p, 'x')",
    ]
    assert without_encoding("\n".join(good)) == [] and len(without_encoding("\n".join(bad))) == len(bad)


def test_the_code_is_of_no_one_system():
    """Text is UTF-8 everywhere; nothing that only Unix has is called, or imported for the whole module."""
    problems = []
    for path in sorted((REPOSITORY / "trex2_mini").rglob("*.py")):
        code = path.read_text(encoding="utf-8")
        imports = [node for node in ast.parse(code).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        modules = {a.name for node in imports for a in node.names} | {getattr(node, "module", None) for node in imports}
        calls = re.findall(UNIX_CALLS, code)
        problems += [f"{path.name}: {found}" for found in [*without_encoding(code), *(modules & UNIX_ONLY), *calls]]
    assert not problems


def test_file_names_of_windows(tmp_path):
    """A set that was annotated on Windows opens here; what is written here has names that are safe there."""
    write_set(tmp_path)
    (tmp_path / "images" / "train").mkdir()
    shutil.move(tmp_path / "images" / "0.png", tmp_path / "images" / "train" / "0.png")
    content = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    content["images"][0]["file_name"] = "train\\0.png"
    dataset = CocoDataset(tmp_path / "annotations.json", tmp_path / "images", content)
    assert len(dataset[0].boxes) == 3
    for name in ("..\\a.jpg", "C:a.jpg", "sub\\a.jpg"):
        with pytest.raises(ValueError, match="plain file names"):
            export(tmp_path / "out", {name: (8, 8, None)})


def test_a_file_that_was_read_can_be_replaced(tmp_path):
    """Windows replaces no file that is in use: after reading, nothing maps it."""
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"a": torch.arange(1000.0), "b": torch.tensor(3.0)})
    kept, _ = read_tensors(path)
    assert kept["b"] == 3
    if not Path("/proc/self/maps").exists():
        pytest.skip("mapped files are read from /proc")
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


@pytest.fixture
def spawning():
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_workers_that_are_spawned(tmp_path, spawning, monkeypatch):
    """Windows and macOS start workers anew instead of forking: they make the batches that this process makes."""
    sources = [EmojiBatches(2, short_side=64), DatasetBatches(write_set(tmp_path / "set"), 2, short_side=64)]
    batches, seen = MixedBatches(sources, [0.5, 0.5]), []
    monkeypatch.setattr(Trainer, "_update", lambda trainer, parts: seen.append(parts[0]) or {"total": 0.0})
    config = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, steps=4))
    Trainer(tmp_path / "run", config, batches, batches.names).train(progress=False, workers=1)
    assert len(seen) == 4
    for step, made in enumerate(seen):
        for ours, expected in zip(made, batches(step), strict=True):
            assert ours.image_id == expected.image_id
            np.testing.assert_array_equal(ours.image, expected.image)
            np.testing.assert_array_equal(ours.boxes, expected.boxes)


class NoDouble(TorchDispatchMode):
    """Apple's GPUs have no float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            assert not isinstance(value, torch.Tensor) or value.dtype != torch.float64, f"{function} makes float64"
        return result


def test_no_float64_in_the_model():
    """Detecting by text and by boxes, and a training iteration with all its losses."""
    detector, samples = Detector(seeded_model(), TINY), [squares(0), squares(1)]
    with NoDouble():
        detector.detect(samples[0].image, text=NAMES)
        bank = detector.embed({"square": [(samples[0].image, samples[0].boxes)]})
        detector.detect(samples[1].image, prompts=bank)
        losses = iteration_losses(seeded_model().train(), samples, NAMES, range(len(NAMES)), TINY.train, 1)
        sum(losses.values()).backward()
    with pytest.raises(AssertionError, match="float64"), NoDouble():
        picture(8, 8).double()


def test_devices(monkeypatch):
    """The message says what to use instead."""
    for available in (False, True):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda available=available: available)
        if available:
            assert usable_device("mps").type == "mps"
        else:
            with pytest.raises(ValueError, match=r"no Apple GPU .* take the CPU \(cpu\)"):
                usable_device("mps")
    with pytest.raises(ValueError, match=r"expected cpu, cuda .* or mps"):
        usable_device("tpu")
