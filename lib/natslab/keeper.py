"""Ends what a kernel started, however the kernel ends.

Every lab has a folder (store, logs, worker scripts) and a keeper: a small process that waits for
the end of its standard input. The kernel holds the other end of that pipe, so a normal exit, a
restart and SIGKILL all look the same: the pipe closes, the keeper kills what belongs to the
folder and deletes it. A keeper that was killed itself is made good at the next start, see `reap_dead`.

Run as a script, so that it loads nothing but psutil.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

OWNER = "owner.json"
GONE = (psutil.NoSuchProcess, psutil.ZombieProcess)


def claim(root: Path) -> tuple[Path, subprocess.Popen[bytes]]:
    """A new private folder below `root`, and its keeper. Cleans up after dead kernels first."""
    root.mkdir(parents=True, exist_ok=True)
    reap_dead(root)
    folder = Path(tempfile.mkdtemp(dir=root))
    return folder, adopt(folder, os.getpid())


def release(folder: Path, guard: subprocess.Popen[bytes]) -> None:
    """Let the keeper clean up now, and wait until it has."""
    assert guard.stdin is not None
    guard.stdin.close()
    guard.wait(20)
    if folder.exists():
        reap(folder)  # the keeper itself was killed


def adopt(folder: Path, pid: int) -> subprocess.Popen[bytes]:
    """Note `pid` as the owner of `folder` and start the keeper that outlives it.

    Returns the keeper; closing its stdin makes it clean up and exit.
    """
    owner = {"pid": pid, "started": psutil.Process(pid).create_time()}
    (folder / OWNER).write_text(json.dumps(owner))
    return subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to the kernel's process group must not end the keeper
    )


def owner_lives(folder: Path) -> bool:
    """True while the process that made `folder` runs: same id and same start time."""
    try:
        owner = json.loads((folder / OWNER).read_text())
        started = psutil.Process(owner["pid"]).create_time()
    except FileNotFoundError:
        # The folder is made an instant before its owner is noted.
        return folder.exists() and time.time() - folder.stat().st_mtime < 60
    except GONE:
        return False
    return bool(abs(started - owner["started"]) < 1.0)


def members(folder: Path) -> list[psutil.Process]:
    """The processes that belong to `folder`: a nats-server or a Python worker started with a path in it.

    The folder's name is random and never used again, so the command line identifies its
    processes even after their process ids were reused by others.
    """
    found = []
    inside = str(folder) + os.sep
    for process in psutil.process_iter(["cmdline", "exe", "pid"]):
        command, exe = process.info["cmdline"] or [], Path(process.info["exe"] or "").name
        if exe.startswith(("nats-server", "python")) and any(a.startswith(inside) for a in command):
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
