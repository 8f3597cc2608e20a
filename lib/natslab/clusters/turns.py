"""Who may run cells, and who may break nodes, on one shared cluster."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import stat
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from natslab.errors import LabError

PATIENCE = 90.0  # seconds a cell waits for the drill of another lesson
PAUSE = 0.02  # between two looks at the lock
STOPPED = "Stopped while another lesson was breaking nodes, so this cell has not run: run it again."


class Turns:
    """Who may run cells, and who may break nodes, on one cluster.

    Every cell of every lesson holds a shared lock while it runs; a drill holds it exclusively from
    the first fault until all nodes are healthy again. So no lesson measures while another breaks
    the cluster under it, and two drills never take the quorum together. The lock is a `flock`: it
    ends with its process.
    """

    def __init__(self, cluster: str = "compose") -> None:
        # To read and write: over NFS an exclusive lock needs it.
        self._file: IO[str] = lock_file(cluster).open("r+")
        self.drilling = False
        self._shell: Any = None  # of IPython, when this is a notebook

    async def drill(self) -> None:
        """Wait for the running cells of other lessons, and keep them from starting new ones."""
        if self.drilling:
            return
        end = time.monotonic() + PATIENCE
        try:
            # Not in a thread, which would go on and take the lock after this wait was cancelled.
            while not self._took(fcntl.LOCK_EX):
                _require_patience(end)
                await asyncio.sleep(PAUSE)
            self.drilling = True
        finally:
            if not self.drilling:
                self._took(fcntl.LOCK_SH)  # asking for more has given up what the cell held

    def over(self) -> None:
        """The cluster is whole again: back to sharing."""
        self.drilling = False
        fcntl.flock(self._file, fcntl.LOCK_SH)

    async def share(self) -> None:
        """Wait until no other lesson is drilling."""
        end = time.monotonic() + PATIENCE
        while not self._shares():
            _require_patience(end)
            await asyncio.sleep(PAUSE)

    def share_blocking(self) -> None:
        """The same where nothing can be awaited."""
        end = time.monotonic() + PATIENCE
        while not self._shares():
            _require_patience(end)
            time.sleep(PAUSE)

    def each_cell(self) -> None:
        """From now on each cell of this notebook waits for its turn; one that gets none is not run.

        A cell with an `await` waits in the event loop: meanwhile its connections learn of the server
        that the other lesson killed, and what the cell then asks does not go down with it.
        """
        from IPython.core.getipython import get_ipython

        shell: Any = get_ipython()
        self._shell = shell
        if shell is None:
            return
        run = shell.run_cell_async

        @functools.wraps(run)
        async def in_turn(cell: str, **how: Any) -> Any:
            read = {key: how.get(key) for key in ("transformed_cell", "preprocessing_exc_tuple")}
            try:
                if how.get("silent"):
                    pass  # not a cell: a front end asks for something
                elif shell.should_run_async(cell, **read):
                    await self.share()
                else:
                    self.share_blocking()
            except LabError:
                how["preprocessing_exc_tuple"] = sys.exc_info()  # shown in place of running it
            except (asyncio.CancelledError, KeyboardInterrupt):
                how["preprocessing_exc_tuple"] = LabError, LabError(STOPPED), None
            return await run(cell, **how)

        shell.run_cell_async = in_turn
        shell.events.register("post_run_cell", self.after_cell)

    def after_cell(self, *_: Any) -> None:
        """Between cells a lesson holds nobody up, unless it left the cluster broken."""
        if not self.drilling:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def end(self) -> None:
        """Give the lock back for good."""
        if self._shell is not None:
            del self._shell.run_cell_async
            self._shell.events.unregister("post_run_cell", self.after_cell)
        self._file.close()

    def _shares(self) -> bool:
        return self.drilling or self._took(fcntl.LOCK_SH)

    def _took(self, how: int) -> bool:
        try:
            fcntl.flock(self._file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def lock_file(cluster: str = "compose") -> Path:
    """One for each cluster and user of this machine, as is the cluster: two checkouts share it.

    In a folder that nobody else can write to, so it cannot be a link to somewhere. Raises LabError
    when that name is taken by somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"natslab-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    seen = folder.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid():
        raise LabError(
            f"{folder} is not a folder of yours: remove it, or set TMPDIR to another place."
        )
    folder.chmod(0o700)
    file = folder / f"{cluster}.lock"
    file.touch(mode=0o600)
    return file


def _require_patience(end: float) -> None:
    if time.monotonic() > end:
        raise LabError(
            f"Another lesson has held the compose cluster for {PATIENCE:g} s: "
            "restart or close its kernel."
        )
