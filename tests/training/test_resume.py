"""Nothing lost: kill -9 at random moments, full disks, folders that may not be written to. TREX2_KILLS=20 kills more
often (default 3).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
from tiny import NAMES, TINY, squares

from trex2_mini.checkpoint import CheckpointError, read_tensors
from trex2_mini.cli import main
from trex2_mini.training.trainer import Trainer

KILLS = int(os.environ.get("TREX2_KILLS", "3"))
RECIPE = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, steps=20))


def batches(step: int) -> list:
    return [squares(2 * step), squares(2 * step + 1, (64, 96), objects=step % 3)]


def train(folder: Path) -> None:
    """Begin a run, or go on with it; a state is saved in every second step."""
    torch.set_num_threads(1)
    trainer = Trainer(folder, RECIPE, batches, NAMES)
    if trainer.state_path.exists():
        trainer.resume()
    trainer.train(save_every=2, progress=False, workers=0)


def saved_step(folder: Path) -> int | None:
    """Of the last state, read from end to end."""
    path = folder / "state.safetensors"
    return int(read_tensors(path)[1]["step"]) if path.exists() else None


def kill_once(context, folder: Path, longest: float, rng: random.Random, saving: bool) -> dict | None:
    """Train in a process and kill it: after up to `longest` seconds, or `saving`: within a save. None: it was done
    before.
    """
    process = context.Process(target=train, args=(folder,))
    process.start()
    draft = folder / f"state.safetensors.{process.pid}.part"
    began, moment = time.perf_counter(), rng.uniform(0, longest)
    skipped, delay = rng.randrange(3), rng.uniform(0, 0.01)  # saves, seconds
    while process.is_alive() and (saving or time.perf_counter() - began < moment):
        if saving and draft.exists():
            if not skipped:
                time.sleep(delay)
                break
            skipped -= 1
            while process.is_alive() and draft.exists():
                pass
        elif not saving:
            time.sleep(0.001)
    process.kill()
    process.join()
    if process.exitcode == 0:
        return None
    assert process.exitcode == -signal.SIGKILL
    sizes = [path.stat().st_size for path in draft.iterdir()] if draft.exists() else None
    seconds = round(time.perf_counter() - began, 2)
    return {"seconds": seconds, "drafts left (bytes)": sizes, "last good step": saved_step(folder)}


@pytest.mark.slow
def test_killed_at_any_moment_the_run_ends_the_same(tmp_path):
    """kill -9 at KILLS random moments, every second one while a state is being written: weights, moments and checkpoint
    bit for bit.
    """
    context = multiprocessing.get_context("forkserver")  # torch is imported once
    context.set_forkserver_preload(["trex2_mini.training.trainer", "tiny"])

    def finish(folder: Path) -> None:
        process = context.Process(target=train, args=(folder,))
        process.start()
        process.join()
        assert process.exitcode == 0

    finish(tmp_path / "first")  # starts the server
    began = time.perf_counter()
    finish(tmp_path / "whole")
    took = time.perf_counter() - began
    expected = [read_tensors(tmp_path / "whole" / f"{name}.safetensors")[0] for name in ("state", "model")]

    rng, kills, runs, done = random.Random(0), [], [], True
    while len(kills) < KILLS or not done:
        if done:
            runs.append(tmp_path / f"run{len(runs) + 1}")
        if len(kills) == KILLS:
            finish(runs[-1])
        killed = None if len(kills) == KILLS else kill_once(context, runs[-1], took / 2, rng, len(kills) % 2 == 1)
        kills += [killed | {"run": runs[-1].name}] if killed else []
        done = killed is None
    for folder in runs:
        found = [read_tensors(folder / f"{name}.safetensors")[0] for name in ("state", "model")]
        for ours, wanted in zip(found, expected):
            assert ours.keys() == wanted.keys()
            assert [name for name in wanted if not torch.equal(ours[name], wanted[name])] == []
        assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())
        assert [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()] == [20]
    for number, row in enumerate(kills, 1):
        print(f"kill {number:2d}:", ", ".join(f"{key} {value}" for key, value in row.items()))
    print(f"{len(kills)} kills in {len(runs)} runs of {took:.1f} s: all end with the bits of the undisturbed one")
    if KILLS >= 10:
        assert any(row["drafts left (bytes)"] is not None for row in kills), "not one of the kills hit a save"


@contextlib.contextmanager
def largest_file(size: int):
    """Files cannot grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(tmp_path):
    """Training ends with what happened and what is left; the last state is whole, and once there is room the run goes
    on from it.
    """
    trainer = Trainer(tmp_path, RECIPE, batches, NAMES)
    trainer.step = 17
    trainer.save()
    before = trainer.state_path.read_bytes()
    with largest_file(len(before) // 2), pytest.raises(CheckpointError, match="could not be written"):
        trainer.train(save_every=1, progress=False, workers=0)
    assert trainer.state_path.read_bytes() == before and not list(tmp_path.glob("*.part"))
    train(tmp_path)
    assert saved_step(tmp_path) == 20


@contextlib.contextmanager
def ordinary_user():
    """Root may write everywhere; within this block it is somebody else."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)


def test_a_folder_that_may_not_be_written_to(tmp_path, capsys):
    """One clear line, code 1, and the run is as it was; the same for a folder that cannot be made."""
    (tmp_path / "tiny.json").write_text(RECIPE.to_json())
    config = Path(tempfile.mkdtemp()) / "tiny.json"
    folder = config.parent / "run"
    Trainer(folder, RECIPE, batches, NAMES).save()
    config.write_text(RECIPE.to_json())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in (config.parent, folder):
        path.chmod(0o555)
    try:
        for run, extra in ((folder, ["--resume"]), (config.parent / "new", [])):
            with ordinary_user():
                assert main(["train", "--config", str(config), "--run", str(run), *extra]) == 1
            assert "Permission denied" in (shown := capsys.readouterr().err) and str(run) in shown
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    finally:
        for path in (folder, config.parent):
            path.chmod(0o755)


def test_a_log_that_was_cut_off(tmp_path):
    """Killed while it wrote a line: the half line goes, the run goes on."""
    trainer = Trainer(tmp_path, RECIPE, batches, NAMES)
    trainer.step = 19
    trainer.save()
    (tmp_path / "log.jsonl").write_text('{"step": 10, "total": 1.5}\n{"step": 20, "total": 1.4}\n{"step": 3')
    train(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20] and lines[0]["total"] == 1.5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, capsys, number, workers):
    """Ctrl-C and SIGTERM: the step ends, the state is there, one line, the signal's exit status; and it goes on."""
    before = signal.getsignal(number)  # ignored, where the tests run in a shell's background
    trainer = Trainer(tmp_path, TINY, Stopping(number, os.getpid()), NAMES)
    with pytest.raises(SystemExit) as ended:
        trainer.train(save_every=1000, progress=False, workers=workers)
    assert ended.value.code == 128 + number
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith(f"stopped and saved at step {trainer.step} of 25; go on by: ")
    again = Trainer(tmp_path, TINY, Stopping(0, 0), NAMES)
    again.resume()
    assert 0 < again.step == trainer.step < 25
    again.train(progress=False, workers=0)
    assert again.step == 25 and signal.getsignal(number) == before


class Stopping:
    """Squares; with the third step's batch a signal goes to the process that trains."""

    def __init__(self, number: int, process: int):
        self.number, self.process = number, process

    def __call__(self, index: int):
        if index == 2 and self.number:
            os.kill(self.process, self.number)
        return batches(index)


class Noting:
    """Squares, slowly; who makes them notes its number."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, index: int):
        (self.folder / f"{os.getpid()}.maker").touch()
        time.sleep(0.2)
        return batches(index)


def train_with_makers(folder: Path, method: str) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method(method, force=True)
    recipe = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, steps=10_000))
    Trainer(folder, recipe, Noting(folder), NAMES).train(save_every=10_000, progress=False, workers=2)


def runs(process: int) -> bool:
    """A process that is neither gone nor dead and waiting for its parent's look."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_who_makes_pictures_ends_with_a_trainer_that_is_killed(tmp_path, method):
    trainer = multiprocessing.get_context("spawn").Process(target=train_with_makers, args=(tmp_path, method))
    trainer.start()
    end = time.monotonic() + 300
    while len(makers := [int(path.stem) for path in tmp_path.glob("*.maker")]) < 2:
        assert time.monotonic() < end and trainer.is_alive()
        time.sleep(0.1)
    trainer.kill()
    trainer.join()
    end = time.monotonic() + 8
    while any(map(runs, makers)) and time.monotonic() < end:
        time.sleep(0.1)
    left = [maker for maker in makers if runs(maker)]
    for maker in left:
        os.kill(maker, signal.SIGKILL)
    assert len(makers) == 2 and not left
