"""Ends what a kernel started, however the kernel ends.

Every lab has a folder (store, logs, worker scripts) and a keeper: a small process that waits for
the end of its standard input; so has every Prometheus. The kernel holds the other end of that
pipe, so a normal exit, a restart and SIGKILL all look the same: the pipe closes, the keeper kills
what belongs to the folder and deletes it. A keeper that was killed itself is made good at the next
start, see `reap_dead`.

Run as a script, so that it loads nothing but psutil.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

ALIVE = "alive"  # a file in the folder, locked for as long as the owner lives
GONE = (psutil.NoSuchProcess, psutil.ZombieProcess)


@dataclass
class Claim:
    """A private folder, held by this process: `release` gives it back."""

    folder: Path
    alive: IO[str]
    keeper: subprocess.Popen[bytes]

    def release(self) -> None:
        """Let the keeper clean up now, and wait until it has."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        self.keeper.wait(20)
        self.alive.close()
        if self.folder.exists():
            reap(self.folder)  # the keeper itself was killed


def claim(root: Path) -> Claim:
    """A new private folder below `root`, and its keeper. Cleans up after dead kernels first."""
    root.mkdir(parents=True, exist_ok=True)
    reap_dead(root)
    folder = Path(tempfile.mkdtemp(dir=root))
    # The lock is taken before the file has its name: nobody can see it unlocked.
    alive = (folder / "new").open("w")
    fcntl.flock(alive, fcntl.LOCK_EX)
    (folder / "new").rename(folder / ALIVE)
    keeper = subprocess.Popen(
        [sys.executable, "-P", __file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to the kernel's process group must not end the keeper
    )
    return Claim(folder, alive, keeper)


def owner_lives(folder: Path) -> bool:
    """True while the process that made `folder` runs.

    It holds a lock on a file there, which the operating system takes back when it ends; unlike a
    process id with a start time, that survives a clock that is set while it runs.
    """
    try:
        with (folder / ALIVE).open() as alive:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        # The folder is there an instant before the lock.
        return folder.exists() and time.time() - folder.stat().st_mtime < 60
    return False


def members(folder: Path) -> list[psutil.Process]:
    """The processes that belong to `folder`: servers and Python workers started with a path in it.

    The folder's name is random and never used again, so the command line identifies its
    processes even after their process ids were reused by others.
    """
    found = []
    inside = f"={folder}{os.sep}"  # some are told /folder/x, some --option=/folder/x
    for process in psutil.process_iter(["cmdline", "exe", "pid"]):
        command, exe = process.info["cmdline"] or [], Path(process.info["exe"] or "").name
        ours = exe.startswith(("nats-server", "prometheus", "python"))
        if ours and any(inside in f"={word}" for word in command):
            found.append(process)
    return found


def reap(folder: Path, deadline: float = 10.0) -> None:
    """Kill every process that belongs to `folder` and delete it."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        left = [p for p in members(folder) if _kill(p)]
        if not left:
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                return
        time.sleep(0.01)


def reap_dead(root: Path) -> None:
    """Clean up after kernels whose keeper was killed too, or whose machine went down."""
    for folder in root.glob("*/"):
        if not owner_lives(folder):
            reap(folder)


def _kill(process: psutil.Process) -> bool:
    """Kill; True while the process is still there (a zombie is not)."""
    try:
        process.kill()
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except GONE:
        return False


if __name__ == "__main__":
    sys.stdin.buffer.read()  # returns when the kernel is gone
    reap(Path(sys.argv[1]))
