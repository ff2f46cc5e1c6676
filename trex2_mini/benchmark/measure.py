"""How time and memory are measured.

Time: wall clock, `interleaved`. Memory: a fresh process builds what is measured, sets the kernel's high-water mark of
its resident memory back (/proc/self/clear_refs), makes the call once and reads the mark (VmHWM); Linux only, and on a
GPU torch.cuda's own counter would be needed.
"""

import contextlib
import importlib
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple


def row(
    what: str,
    ours: str,
    value: float,
    reference: str = "",
    other: float | None = None,
    unit: str = "s",
    goal: float | None = None,
    compare: bool = True,
) -> dict:
    """A line of a result, see `run`. compare=False: no ratio, since the reference is of another machine, or not of the
    same kind."""
    ratio = None if other is None or not compare else value / other if unit.endswith("/s") else other / value
    return {
        "what": what, "ours": ours, "value": value, "reference": reference, "reference_value": other,
        "unit": unit, "ratio": ratio, "goal": goal,
    }  # fmt: skip


def interleaved(forms: dict[str, Callable[[], Any]], repeats: int, warm_up: bool = True) -> dict[str, float]:
    """Median seconds of each form: one warm-up each, then `repeats` rounds in which each runs once."""
    for form in forms.values() if warm_up else ():
        form()
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in times.items()}


class Peak(NamedTuple):
    """GiB of resident memory at the peak of a call: above what the process held before it, and of the whole process
    (Python and libraries take about 0.4 of it)."""

    above: float
    whole: float


def peak_memory(function: Callable[..., Callable[[], Any]], *arguments: Any) -> Peak | None:
    """The peak of the call that function(*arguments) returns, in a fresh process. None where the system cannot tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, function, arguments).result()


def _peak(function: Callable[..., Callable[[], Any]], arguments: tuple) -> Peak:
    call = function(*arguments)
    before = gibibytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    call()
    whole = gibibytes("VmHWM")
    return Peak(whole - before, whole)


def gibibytes(key: str, file: str = "status") -> float:
    """A memory figure of this process in /proc/self, such as VmRSS or VmHWM; Linux only."""
    text = Path("/proc/self", file).read_text(encoding="utf-8")
    return int(re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)[1]) / 2**20


@contextlib.contextmanager
def replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    """owner.attribute is `value` for a while."""
    own = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, own)


def timed(function: Callable, name: str, spent: dict[str, float]) -> Callable:
    """The same function; the seconds of its calls are added to spent[name]."""

    def wrapper(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

    return wrapper


def transformers(module: str = "") -> Any:
    """The package transformers, or one of its modules. It is no requirement of trex2_mini: ValueError says how to get
    it."""
    try:
        return importlib.import_module(f"transformers{module}")
    except ImportError as error:
        raise ValueError(
            f"the reference is the package transformers, and it cannot be imported ({error}): pip install"
            ' "transformers>=5,<6"'
        ) from None


def processor() -> str:
    """Its name, as far as the system tells it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine()
