"""Stop some processes of a test run for a moment, again and again, as a busy host does.

python tests/stalls.py MARK: those that have NATSLAB_RUN=MARK in their environment, except the tests
themselves. A claim must not hang on who is a moment late. Ends when its standard input is closed.

One fault it has: a process that a lesson freezes while it is stopped here goes on too early.
"""

import random
import select
import sys
import time

import psutil

STALL, PAUSE = 0.4, (0.3, 0.8)  # seconds
SHARES = (0.2, 0.5, 1.0)  # some, half or all of them are stopped at a time
NOT_THESE = ("pytest", "sys.stdin.readline")  # the second one is how xdist starts its workers


def of_run(mark: str) -> list[psutil.Process]:
    """The processes of a test run that may be stopped: lessons, workers, servers."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = (
                process.environ().get("NATSLAB_RUN") == mark and process.pid != psutil.Process().pid
            )
            words = " ".join(process.cmdline())
            if ours and not any(word in words for word in NOT_THESE):
                found.append(process)
        except psutil.Error:
            continue  # gone, or not ours to look at
    return found


def stall(processes: list[psutil.Process], seconds: float) -> None:
    """Stop these together. All that ran before run again after it, whatever happens meanwhile."""
    stopped = []
    try:
        for process in processes:
            try:
                if process.status() != psutil.STATUS_STOPPED:  # a lesson has frozen that one
                    process.suspend()
                    stopped.append(process)
            except psutil.Error:
                continue  # gone
        time.sleep(seconds)
    finally:
        for process in stopped:
            try:
                process.resume()
            except psutil.Error:
                continue  # killed while it stood


def main(mark: str) -> None:
    while not select.select([sys.stdin], [], [], random.uniform(*PAUSE))[0]:
        share = random.choice(SHARES)
        stall([process for process in of_run(mark) if random.random() < share], STALL)


if __name__ == "__main__":
    main(sys.argv[1])
