"""Whatever happens to the process that holds a lab, nothing of the lab is left behind."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import helpers
import natslab
import psutil
import pytest
from helpers import labs_in, nothing_left, processes_in, until
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from natslab import Lab
from natslab.clusters import keeper

# Two ways to be interrupted in the middle of a start: before and after there are servers.
MOMENTS = {
    "a folder": labs_in,
    "a server": lambda cache: any("nats-server" in line for line in processes_in(cache)),
}


def keepers_of(pid: int) -> list[psutil.Process]:
    return [c for c in psutil.Process(pid).children() if "keeper.py" in " ".join(c.cmdline())]


def test_sigkill_of_the_holder_leaves_nothing(cache: Path) -> None:
    with helpers.shared_cluster(cache, worker=True) as held:
        running = processes_in(cache)
        assert len(running) == 5, running  # three servers, a worker, the keeper
        os.kill(held["pid"], signal.SIGKILL)
        until(lambda: nothing_left(cache), 5, "the keeper to clean up")


def test_sigkill_of_the_keeper_is_made_good_at_the_next_start(cache: Path) -> None:
    with helpers.shared_cluster(cache, worker=True) as held:
        (guard,) = keepers_of(held["pid"])
        guard.kill()
        os.kill(held["pid"], signal.SIGKILL)
        held["process"].wait()
        assert len(processes_in(cache)) == 4, "nobody is there to clean up"
        keeper.reap_dead(cache / "labs")
        assert nothing_left(cache)


async def test_sigkill_of_the_keeper_alone(cache: Path) -> None:
    lab = await Lab.start(kind="embedded", quiet=True)
    (guard,) = keepers_of(os.getpid())
    guard.kill()
    guard.wait()
    await lab.close(quiet=True)
    assert nothing_left(cache)


async def test_the_folder_of_a_live_owner_is_not_touched(lab: Lab, cache: Path) -> None:
    with helpers.shared_cluster(cache) as other:
        keeper.reap_dead(cache / "labs")
        assert {str(lab.folder), other["folder"]} == {*map(str, labs_in(cache))}
        assert len(processes_in(cache)) == 8


def test_an_owner_lives_as_long_as_it_holds_the_lock(tmp_path: Path) -> None:
    mine = keeper.claim(tmp_path)
    assert keeper.owner_lives(mine.folder)
    mine.alive.close()  # as when the owner dies
    assert not keeper.owner_lives(mine.folder)
    mine.release()
    assert nothing_left(tmp_path)
    young = tmp_path / "young"
    young.mkdir()
    assert keeper.owner_lives(young), "made an instant ago, its lock comes next"


def test_members_were_started_with_a_path_in_the_folder(tmp_path: Path) -> None:
    """Also in an option, as Prometheus is told; not anywhere, as in the arguments of a neighbour."""
    mine = keeper.claim(tmp_path)
    words = [
        f"{mine.folder}/x",
        f"--x={mine.folder}/x",
        f'["{mine.folder}/x"]',
        f"{mine.folder}x/y",
    ]
    children = [
        subprocess.Popen([sys.executable, "-c", "input()", word], stdin=subprocess.PIPE)
        for word in words
    ]
    try:
        found = {process.pid for process in keeper.members(mine.folder)}
        assert found == {child.pid for child in children[:2]}
        mine.release()
        assert [child.poll() is None for child in children] == [False, False, True, True]
    finally:
        for child in children:
            child.communicate()


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_start_leaves_nothing(cache: Path, moment: str) -> None:
    with helpers.python(helpers.HOLDER, NATSLAB_CACHE=str(cache)) as starting:
        until(lambda: MOMENTS[moment](cache), 10, moment)
        starting.send_signal(signal.SIGINT)
        assert starting.wait(10) != 0
        until(lambda: nothing_left(cache), 5, "the keeper to clean up")


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_cancelled_start_leaves_nothing(cache: Path, moment: str) -> None:
    """What "interrupt kernel" does to a cell. Its error is kept, and so is all that it refers to."""
    start = asyncio.create_task(Lab.start(kind="embedded", quiet=True))
    await natslab.until(lambda: MOMENTS[moment](cache), what=moment)
    start.cancel()
    with pytest.raises(asyncio.CancelledError) as kept:
        await start
    await asyncio.to_thread(until, lambda: nothing_left(cache), 5, "the keeper to clean up")
    assert kept.value


# The same through a real kernel.

START = "from natslab import Lab; lab = await Lab.start(kind='embedded')"


@contextmanager
def kernel(cache: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager = KernelManager()
    manager.start_kernel(env=helpers.clean_environment(NATSLAB_CACHE=str(cache)))
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=30)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_killed_and_a_restarted_kernel(cache: Path) -> None:
    with kernel(cache) as (manager, client):
        reply = client.execute_interactive(START, timeout=30, output_hook=lambda _: None)
        assert reply["content"]["status"] == "ok", reply
        (before,) = labs_in(cache)

        manager.restart_kernel(now=False)
        until(lambda: nothing_left(cache), 10, "the end of the first lab")
        client.wait_for_ready(timeout=30)
        client.execute_interactive(START, timeout=30, output_hook=lambda _: None)
        (after,) = labs_in(cache)
        assert after != before

        os.kill(manager.provisioner.pid, signal.SIGKILL)
        until(lambda: nothing_left(cache), 5, "the end of the second lab")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kernel_interrupted_in_the_middle_of_a_start(cache: Path, moment: str) -> None:
    with kernel(cache) as (manager, client):
        asked = client.execute(START)
        until(lambda: MOMENTS[moment](cache), 20, moment)
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=30)
        while reply["parent_header"]["msg_id"] != asked:  # a late answer to "are you ready"
            reply = client.get_shell_msg(timeout=30)
        assert reply["content"]["status"] == "error", "the start was over before the interrupt"
        until(lambda: nothing_left(cache), 5, "the keeper to clean up")

        # Running the cell again is all it takes.
        reply = client.execute_interactive(START, timeout=30, output_hook=lambda _: None)
        assert reply["content"]["status"] == "ok", reply
    until(lambda: nothing_left(cache), 5, "the end of the lab")
