"""Several processes of torchrun: which one this is, and joining the others; and the device that each works on."""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def process() -> tuple[int, int]:
    """(which process this is, how many there are)."""
    running = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if running else (0, 1)


@contextlib.contextmanager
def one_of_many(device: str = "cpu") -> Iterator[bool]:
    """Joins the processes of torchrun, if it started this one, for as long as the block lasts; true in the first
    process.

    Each process of a machine gets a GPU of its own, where there are any: "cuda" means that one. device: what the
    tensors that are exchanged lie on; those on a GPU go by nccl, others by gloo.
    """
    started = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if started:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    try:
        yield process()[0] == 0
    finally:
        if started:
            dist.destroy_process_group()


def replicated(module: nn.Module) -> nn.Module:
    """The module, whose gradients are from now on the means over all processes; alone, the module as it is.

    Every forward pass has to use every parameter that is trained (DistributedDataParallel waits for their gradients).
    """
    if process()[1] == 1:
        return module
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # until torch 2.13
    return DistributedDataParallel(module, **{buffers: False})


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that gets Ctrl-C's and SIGTERM's number when one comes, instead of an end at once; a second one ends."""
    asked: list[int] = []
    before = {}

    def note(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note) or signal.SIG_DFL
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals_to_parent(_: int = 0) -> None:
    """For the processes that make pictures: they end with the one that trains, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel, os.getppid()), daemon=True).start()


def _end_with(sentinel: int, parent: int) -> None:
    """Ends this process once its parent is gone, which a SIGKILL tells nobody of. A fork that came later holds the
    sentinel open on some systems; there the parent's number changes.
    """
    while not multiprocessing.connection.wait([sentinel], timeout=1) and os.getppid() == parent:
        pass
    os._exit(1)


def usable_device(device: str | torch.device) -> torch.device:
    """The device of that name. Raises ValueError for one that torch does not know, or a GPU where there is none."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"unknown device {device!r}; expected cpu, cuda (NVIDIA) or mps (Apple)")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"no GPU was found for device {device!r}; take the CPU (cpu, slow), or look at nvidia-smi")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"no Apple GPU was found for device {device!r}; take the CPU (cpu)")
    return found
