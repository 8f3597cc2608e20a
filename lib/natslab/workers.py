"""Run a coroutine of the notebook in a process of its own, which can be killed."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natslab.clusters import keeper
from natslab.errors import LabError, usable

SCRIPT = """\
import asyncio, json, os, signal, sys
sys.path.insert(0, {here!r})
# A kernel that was started by `nohup` or with a `&` may ignore these, and its children with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)

{source}

sys.exit(asyncio.run({name}(*json.loads({args!r}))))
"""
NAME = re.compile(r"[A-Za-z0-9_-]+")
PATIENCE = 20.0  # seconds that a worker has to end


_spawned: list[Worker] = []  # by the open lab


def troubles() -> list[str]:
    """One line for each worker of the open lab that failed by itself, or complains: its last words.

    A worker is out of sight: without this, a typo in its code looks like a wait that never ends.
    """
    found = []
    for worker in _spawned:
        code, last = worker.process.poll(), worker._last_words()
        if (code or 0) > 0 or (code is None and last):
            state = f"ended with exit code {code}" if code else "is running"
            found.append(f"worker {worker.name} {state}: {last or 'it said nothing'}")
    return found


def forget(gone: list[Worker]) -> None:
    """Tell no longer of these: their lab is closed."""
    _spawned[:] = [worker for worker in _spawned if worker not in gone]


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

    @property
    def exit_code(self) -> int | None:
        """What it ended with; None while it runs, negative when a signal ended it."""
        return self.process.poll()

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone. Raises LabError when it is not within 20 s."""
        self.process.kill()
        self._wait(PATIENCE, "SIGKILL")

    def stop(self, timeout: float = PATIENCE) -> None:
        """SIGTERM, and wait until the process is gone.

        Raises LabError when it is not within `timeout` seconds; it is killed then.
        """
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)  # a frozen one would never hear of it
        try:
            self._wait(timeout, "SIGTERM and was killed")
        finally:
            self.kill()

    def _wait(self, timeout: float, after: str) -> None:
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(
                f"Worker {self.name} did not end within {timeout:g} s of {after}: "
                f"{self._last_words() or 'it said nothing'}"
            ) from None

    def _last_words(self) -> str:
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:  # its folder is gone
            return ""
        return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")


def spawn(
    folder: Path, coroutine: Callable[..., Coroutine[Any, Any, Any]], name: str, *args: Any
) -> Worker:
    """Start `coroutine(*args)` in a fresh interpreter; its source is all that crosses over.

    So it must import what it uses, and `args` must be JSON; `name` is made of letters, digits, - and _.
    A fresh process, not a fork: a forked event loop shares the sockets of its parent
    (https://github.com/python/cpython/issues/66285). Raises LabError when one of these is not so.
    """
    if not NAME.fullmatch(name):
        raise LabError(f"A worker cannot be called {name!r}: use letters, digits, - and _ only.")
    try:
        source = textwrap.dedent(inspect.getsource(coroutine))
    except (OSError, TypeError):
        raise LabError(
            f"The source of {coroutine!r} cannot be read: define it in a cell."
        ) from None
    try:
        told = json.dumps(args)
    except (TypeError, ValueError) as error:
        raise LabError(
            f"What is handed to worker {name} must be JSON (numbers, texts, lists, dicts): {error}."
        ) from None
    called = getattr(coroutine, "__name__", "")
    # The prefix keeps a worker called `random` from being what others import by that name.
    script, log = folder / f"worker-{name}.py", folder / f"worker-{name}.log"
    with usable(folder):
        script.write_text(
            SCRIPT.format(here=os.getcwd(), source=source, name=called, args=told), encoding="utf-8"
        )
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, str(script)],
                env={**keeper.environment(folder), "PYTHONUTF8": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
    _spawned.append(Worker(name, process, log))
    return _spawned[-1]
