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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

MARK = "NATSLAB_LAB"  # in the environment of what belongs to a folder, and of its children
ALIVE = "alive"  # a file in the folder, locked for as long as the owner lives
# Where Python is found is the reader's choice; how it behaves is not: `PYTHONINSPECT` would keep a
# worker from ending, `PYTHONIOENCODING` from printing, `PYTHONOPTIMIZE` takes its asserts away.
WHERE_PYTHON_IS = {
    *("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "PYTHONPLATLIBDIR"),
    *("PYTHONEXECUTABLE", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"),
}


@dataclass(eq=False)
class Claim:
    """A private folder, held by this process: `release` gives it back."""

    folder: Path
    alive: IO[str]
    keeper: subprocess.Popen[bytes]

    def release(self) -> None:
        """Let the keeper clean up now, and wait until it has."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        if self not in _held:
            return  # given back before, or by a forked child: it is its parent's
        try:
            self.keeper.wait(20)
            if self.folder.exists():
                reap(self.folder)  # the keeper itself was killed
        finally:
            self.alive.close()
            _held.discard(self)


_held: set[Claim] = set()  # by this process


def _forget_in_child() -> None:
    """A forked child must not keep our folders alive: it holds copies of the pipe and of the lock."""
    for claim in _held:
        assert claim.keeper.stdin is not None
        claim.keeper.stdin.close()
        claim.alive.close()
        claim.keeper.returncode = 0  # not its child: nothing to wait for
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def claim(root: Path) -> Claim:
    """A new private folder below `root`, and its keeper. Raises OSError when `root` is no place for one."""
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=root))
    alive: IO[str] | None = None
    try:
        # The lock is taken before the file has its name: nobody can see it unlocked.
        alive = (folder / "new").open("w")
        fcntl.flock(alive, fcntl.LOCK_EX)
        (folder / "new").rename(folder / ALIVE)
        keeper = subprocess.Popen(
            [sys.executable, "-P", __file__, str(folder)],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the kernel's process group must not end the keeper
        )
    except BaseException:  # an interrupt too
        if alive is not None:
            alive.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    held = Claim(folder, alive, keeper)
    _held.add(held)
    return held


def environment(folder: Path) -> dict[str, str]:
    """The environment for a process that belongs to `folder`: ours, with the mark by which it is found."""
    return {**_environment(), MARK: str(folder)}


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name != MARK and (not name.startswith("PYTHON") or name in WHERE_PYTHON_IS)
    }


def owner_lives(folder: Path) -> bool:
    """True while the process that made `folder` runs.

    It holds a lock on a file there, which the operating system takes back when it ends; unlike a
    process id with a start time, that survives a clock that is set while it runs.
    """
    if any(held.folder == folder and not held.alive.closed for held in _held):
        return True  # on NFS, looking at a lock of our own would give it back
    try:
        with (folder / ALIVE).open("r+") as alive:  # NFS locks only what may be written
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True  # or it is the folder of another user, who cleans up for himself
    except FileNotFoundError:
        # The folder is there an instant before the lock.
        with suppress(FileNotFoundError):
            return time.time() - folder.stat().st_mtime < 60
    return False


def members(folder: Path) -> tuple[list[psutil.Process], bool]:
    """The processes that belong to `folder`: those with our mark, whatever their executable is called.

    The folder's name is random and never used again, so it identifies them even after process ids
    were reused by others; the rest of the path may be spelt in two ways. Where the environment of
    a process cannot be read (a server with capabilities), a path in the folder on its command line
    is as good.

    And True while some process is in the middle of `exec`, and so may be one: for some ms it has
    no environment and no command line. One and the same look must tell: what is blank now may have
    its command line in the next. Only their memory tells such processes from kernel threads, and
    only their age from those that have no environment. (The age is up to a second too high: the
    kernel tells the time of the boot in whole seconds.)
    """
    found, starting = [], False
    inside = f"={folder}{os.sep}"  # some are told /folder/x, some --option=/folder/x
    for process in psutil.process_iter(["environ", "cmdline", "create_time", "memory_info"]):
        info = process.info
        told, command, memory = info["environ"], info["cmdline"] or [], info["memory_info"]
        if told:
            ours = Path(told.get(MARK, "")).name == folder.name
        else:
            ours = any(inside in f"={word}" for word in command)
            young = time.time() - (info["create_time"] or 0) < 2
            blank = told is not None or not command  # None: we may not read it
            starting |= bool(blank and young and memory and memory.vms)
        if ours and process.pid != os.getpid():
            found.append(process)
    return found, starting


def reap(folder: Path, deadline: float = 10.0) -> None:
    """Kill every process that belongs to `folder` and, when a look finds none, delete it."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        found, starting = members(folder)
        # Who was killed may have had a child since the look: another look.
        if not any([_kill(process) for process in found]) and not starting:
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
    """Kill; False when that is not allowed: a process of another user is not ours."""
    try:
        process.kill()
    except psutil.AccessDenied:
        return False
    except psutil.NoSuchProcess:
        pass  # it ended by itself
    return True


if __name__ == "__main__":
    sys.stdin.buffer.read()  # returns when the kernel is gone
    reap(Path(sys.argv[1]))
