"""Who may run cells, and who may break nodes, on one shared cluster."""

from __future__ import annotations

import asyncio
import fcntl
import time
from typing import IO, Any

from natslab.errors import LabError
from natslab.paths import CACHE

PATIENCE = 90.0  # seconds a cell waits for the drill of another lesson


class Turns:
    """Who may run cells, and who may break nodes, on one cluster.

    Every cell of every lesson holds a shared lock while it runs; a drill holds it exclusively from
    the first fault until all nodes are healthy again. So no lesson measures while another breaks
    the cluster under it, and two drills never take the quorum together. The lock is a `flock`: it
    ends with its process.
    """

    def __init__(self) -> None:
        CACHE.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = (CACHE / "compose.lock").open("w")
        self._drilling = False

    async def drill(self) -> None:
        """Wait for the running cells of other lessons, and keep them from starting new ones."""
        if not self._drilling:
            await asyncio.to_thread(self._take, fcntl.LOCK_EX)
            self._drilling = True

    def over(self) -> None:
        """The cluster is whole again: back to sharing."""
        self._drilling = False
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def before_cell(self, *_: Any) -> None:
        """Wait until no other lesson is drilling."""
        if not self._drilling:
            self._take(fcntl.LOCK_SH)

    def after_cell(self, *_: Any) -> None:
        """Between cells a lesson holds nobody up, unless it left the cluster broken."""
        if not self._drilling:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def end(self) -> None:
        """Give the lock back for good."""
        self._file.close()

    def _take(self, how: int) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(self._file, how | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise LabError(
                        f"Another lesson has held the compose cluster for {PATIENCE:g} s: "
                        "restart or close its kernel."
                    ) from None
                time.sleep(0.02)
