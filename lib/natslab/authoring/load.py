"""How busy is this machine, and how fast? What is measured on a busy or a slow one is not saved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from natslab.errors import LabError
from natslab.paths import CACHE

QUIET = 0.10  # of all cores; one spinning process is 0.5 of two cores
SLOW = 0.6  # of the best speed that this machine has shown: its host has other guests too
PATIENCE = 120.0  # seconds
HOW = "end what runs beside it, or save its measurements all the same: natslab refresh --busy"


def busy() -> float:
    """The share of all cores, 0 to 1, that processes used in the last second; we slept meanwhile."""
    return float(psutil.cpu_percent(interval=1.0)) / 100.0


def speed() -> float:
    """How fast Python runs now, as a share of the best that was seen here: the best is kept."""
    file, now = CACHE / "speed", statistics.median(_rounds() for _ in range(9))
    best = now
    with suppress(OSError, ValueError):
        best = max(now, float(file.read_text()))
    if best == now:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{now}")
    return now / best


def _rounds() -> float:
    """Rounds per second of a loop that takes some 20 ms."""
    start = time.perf_counter()
    for _ in range(20):
        sum(range(50_000))
    return 20 / (time.perf_counter() - start)


def trouble() -> str:
    """Why nothing should be measured now; '' on a quiet machine at its usual speed."""
    if (share := busy()) > QUIET:
        return f"{share:.0%} busy"
    if (share := speed()) < SLOW:
        return f"at {share:.0%} of its best speed"
    return ""


def wait_for_quiet(tell: Callable[[str], object]) -> None:
    """Wait until this machine is quiet and fast, telling in a sentence what is wrong.

    Raises LabError when it is not in time.
    """
    deadline = time.monotonic() + PATIENCE
    if why := trouble():
        tell(f"The machine is {why}: waiting up to {PATIENCE:.0f} s until it is quiet.")
    while why:
        if time.monotonic() >= deadline:
            raise LabError(f"The machine is still {why}: {HOW}.")
        why = trouble()
    tell("The machine is quiet enough to measure.")


def refuse_busy() -> None:
    """Raise LabError when this machine is busy or slow now."""
    if why := trouble():
        raise LabError(f"Not saved, the machine is {why} by now: {HOW}.")
