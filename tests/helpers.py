"""What several test files need: waiting, looking for what is left, a cluster held by another process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
HOLDER = ROOT / "tests" / "shared_cluster.py"
# What may point a lesson at a cluster of somebody else.
CLUSTER_VARIABLES = ("NATS_URL", "NATS_CREDS", "NATSLAB_CLUSTER", "NATS_SERVER")


def until[T](seen: Callable[[], T], seconds: float = 10.0, what: str = "that") -> T:
    """The first true value of seen(), polled."""
    deadline = time.monotonic() + seconds
    while not (value := seen()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.005)
    return value


def processes_in(folder: Path) -> list[str]:
    """The command lines of the processes that were started with a path in `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(folder) in w for w in words):
            found.append(" ".join(words))
    return found


def labs_in(cache: Path) -> list[Path]:
    """The folders of labs below a cache."""
    return list((cache / "labs").glob("*/"))


def nothing_left(cache: Path) -> bool:
    """No process and no folder of any lab below this cache."""
    return not processes_in(cache) and not labs_in(cache)


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without any wish for a certain cluster, and with `more`."""
    env = {name: v for name, v in os.environ.items() if name not in CLUSTER_VARIABLES}
    return env | more


def listens_at(folder: Path) -> str:
    """The address of a server that was told to write its ports file into `folder`."""
    (ports,) = until(lambda: list(folder.glob("*.ports")), 10, "the ports file of a server")
    return until(lambda: ports.read_text() and json.loads(ports.read_text()))["nats"][0]


@contextmanager
def python(*words: str | Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A Python child with pipes, in a session of its own; killed at the end if it still runs."""
    child = subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=clean_environment(**more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@contextmanager
def shared_cluster(cache: Path, *, worker: bool = False) -> Iterator[dict[str, Any]]:
    """A cluster held by another process, for as long as the block lasts.

    Yields what that process told: pid, folder, servers, monitors.
    """
    with python(HOLDER, *(["--worker"] if worker else []), NATSLAB_CACHE=str(cache)) as holder:
        line = holder.stdout.readline()
        assert line, holder.communicate()[1]
        yield json.loads(line) | {"process": holder}
        if holder.poll() is None:
            holder.communicate(timeout=30)  # closes its standard input: it closes the lab
