"""Run a coroutine of the notebook in a process of its own, which can be killed."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natslab.errors import LabError

SCRIPT = """\
import asyncio, json, os, sys
sys.path.insert(0, {here!r})

{source}

asyncio.run({name}(*json.loads(sys.argv[1])))
"""


_spawned: list[Worker] = []


def troubles() -> list[str]:
    """One line for each worker that failed by itself, or complains: its name and its last words.

    A worker is out of sight: without this, a typo in its code looks like a wait that never ends.
    """
    found = []
    for worker in _spawned:
        code = worker.process.poll()
        words = worker.log.read_text(errors="replace").split("\n") if worker.log.exists() else []
        last = next((line.strip() for line in reversed(words) if line.strip()), "")
        if (code or 0) > 0 or (code is None and last):
            state = f"ended with exit code {code}" if code else "is running"
            found.append(f"worker {worker.name} {state}: {last or 'it said nothing'}")
    return found


@dataclass
class Worker:
    """A process that runs one coroutine. `log` holds what it printed and its traceback, if any."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def alive(self) -> bool:
        """True until the process has ended."""
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait until the process is gone."""
        self.process.terminate()
        self.process.wait()


def spawn(
    folder: Path, coroutine: Callable[..., Coroutine[Any, Any, Any]], name: str, *args: Any
) -> Worker:
    """Start `coroutine(*args)` in a fresh interpreter; its source is all that crosses over.

    So it must import what it uses, and `args` must be JSON. A fresh process, not a fork: a forked
    event loop shares the sockets of its parent (https://github.com/python/cpython/issues/66285).
    Raises LabError when the source cannot be read.
    """
    try:
        source = textwrap.dedent(inspect.getsource(coroutine))
    except (OSError, TypeError):
        raise LabError(
            f"The source of {coroutine!r} cannot be read: define it in a cell."
        ) from None
    script = folder / f"{name}.py"
    script.write_text(
        SCRIPT.format(here=os.getcwd(), source=source, name=getattr(coroutine, "__name__", ""))
    )
    log = folder / f"{name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(args)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    _spawned.append(Worker(name, process, log))
    return _spawned[-1]
