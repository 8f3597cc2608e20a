"""Stop some processes of a test run for a moment, again and again, as a busy host does.

python tests/stalls.py MARK: those that have NATSLAB_RUN=MARK in their environment, except the tests
themselves. A claim must not hang on who is a moment late. Ends when its standard input is closed.
"""

import random
import re
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

STALL, PAUSE = 0.4, (0.5, 1.5)  # seconds
SHARES = (0.2, 0.5, 1.0)  # some, half or all of them are stopped at a time
NOT_THESE = ("pytest", "sys.stdin.readline", "stalls.py")  # the second: a worker of xdist


def of_run(mark: str) -> list[psutil.Process]:
    """The processes of a test run that may be stopped: lessons, workers, servers."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # gone, or not ours to look at
            ours = process.environ().get("NATSLAB_RUN") == mark
            words = " ".join(process.cmdline())
            if ours and not any(word in words for word in NOT_THESE):
                found.append(process)
    return found


def frozen_meanwhile(pid: int) -> bool:
    """True when somebody else has stopped a process that was stopped already (Linux tells it)."""
    with suppress(OSError):
        pending = re.search(r"ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        return bool(pending and int(pending[1], 16) >> (signal.SIGSTOP - 1) & 1)
    return False


def stall(processes: list[psutil.Process], seconds: float) -> None:
    """Stop these together. Those run on that a lesson has not frozen, before or meanwhile."""
    stopped = []
    try:
        for process in processes:
            with suppress(psutil.Error):  # gone
                if process.status() != psutil.STATUS_STOPPED:
                    process.suspend()
                    stopped.append(process)
        time.sleep(seconds)
    finally:
        for process in stopped:
            with suppress(psutil.Error):  # killed while it stood
                if not frozen_meanwhile(process.pid):
                    process.resume()


def main(mark: str) -> None:
    while not select.select([sys.stdin], [], [], random.uniform(*PAUSE))[0]:
        share = random.choice(SHARES)
        stall([process for process in of_run(mark) if random.random() < share], STALL)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # run.py was interrupted; what stood runs again
        main(sys.argv[1])
