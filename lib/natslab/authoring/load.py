"""How busy is this machine? What is measured on a busy one is not saved."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from natslab.errors import LabError

QUIET = 0.10  # of all cores; one spinning process is 0.5 of two cores
PATIENCE = 120.0  # seconds
HOW = "end what runs beside it, or save its measurements all the same: natslab refresh --busy"


def busy() -> float:
    """The share of all cores, 0 to 1, that processes used in the last second; we slept meanwhile."""
    return float(psutil.cpu_percent(interval=1.0)) / 100.0


def wait_for_quiet(tell: Callable[[str], object]) -> None:
    """Wait until this machine is quiet, telling in a sentence how busy it is.

    Raises LabError when it is not quiet in time.
    """
    deadline = time.monotonic() + PATIENCE
    share = busy()
    if share > QUIET:
        tell(f"The machine is {share:.0%} busy: waiting up to {PATIENCE:.0f} s until it is quiet.")
    while share > QUIET:
        if time.monotonic() >= deadline:
            raise LabError(f"The machine is still {share:.0%} busy: {HOW}.")
        share = busy()
    tell(f"The machine is {share:.0%} busy: quiet enough to measure.")


def refuse_busy() -> None:
    """Raise LabError when this machine is busy now."""
    if (share := busy()) > QUIET:
        raise LabError(f"Not saved, the machine became {share:.0%} busy meanwhile: {HOW}.")
