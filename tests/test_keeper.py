"""Whatever happens to the process that holds a lab, nothing of the lab is left behind."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import helpers
import natslab
import psutil
import pytest
from helpers import labs_in, nothing_left, processes_in, until
from jupyter_client.blocking.client import BlockingKernelClient
from natslab import Lab
from natslab.clusters import keeper, server
from natslab.kernels import KernelManager

pytestmark = pytest.mark.servers

# Two ways to be interrupted in the middle of a start: before and after there are servers.
MOMENTS = {
    "a folder": labs_in,
    "a server": lambda cache: any("nats-server" in line for line in processes_in(cache)),
}


def keepers_of(pid: int) -> list[psutil.Process]:
    return [c for c in psutil.Process(pid).children() if "keeper.py" in " ".join(c.cmdline())]


def test_sigkill_of_the_holder_leaves_nothing(cache: Path) -> None:
    with helpers.shared_cluster(cache, worker=True) as held:
        # The worker has just begun: in the middle of `exec` it has no command line.
        until(lambda: len(processes_in(cache)) == 5, 5, "three servers, a worker, the keeper")
        os.kill(held["pid"], signal.SIGKILL)
        until(lambda: nothing_left(cache), 5, "the keeper to clean up")


def test_sigkill_of_the_keeper_is_made_good_at_the_next_start(cache: Path) -> None:
    with helpers.shared_cluster(cache, worker=True) as held:
        (guard,) = keepers_of(held["pid"])
        guard.kill()
        os.kill(held["pid"], signal.SIGKILL)
        held["process"].wait()
        try:
            until(lambda: len(processes_in(cache)) == 4, 5, "those whom nobody cleans up")
        finally:
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


@pytest.mark.parametrize("blank", [1, 2, 3, 4])
@pytest.mark.parametrize("names", [("environ", "cmdline"), ("environ",)])
def test_one_that_is_starting_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank: int, names: tuple[str, ...]
) -> None:
    """In the middle of `exec` a process shows neither mark nor command line: one look in 250 saw that.

    It may end while we look: after any look, and between the two files that one look reads.
    """
    real, looks = psutil.process_iter, []
    child = subprocess.Popen(["sleep", "60"], env=keeper.environment(tmp_path / "lab"))
    (tmp_path / "lab").mkdir()

    def process_iter(attrs: list[str]) -> Iterator[psutil.Process]:
        looks.append(attrs)
        for process in real(attrs):
            if process.pid == child.pid and len(looks) <= blank:
                process.info |= dict.fromkeys(names, {})
            yield process

    monkeypatch.setattr(psutil, "process_iter", process_iter)
    try:
        keeper.reap(tmp_path / "lab")
        assert child.wait(5) == -signal.SIGKILL
        assert not (tmp_path / "lab").exists()
    finally:
        child.kill()


def test_a_child_that_came_after_the_look_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed may have started one just before."""
    mine = keeper.environment(tmp_path / "lab")
    children = [subprocess.Popen(["sleep", "60"], env=mine)]
    (tmp_path / "lab").mkdir()
    real = psutil.Process.kill

    def kill(process: psutil.Process) -> None:
        if len(children) < 3:
            children.append(subprocess.Popen(["sleep", "60"], env=mine))
        real(process)
        process.wait(5)

    monkeypatch.setattr(psutil.Process, "kill", kill)
    try:
        keeper.reap(tmp_path / "lab")
        assert [child.poll() is None for child in children] == [False] * 3
        assert not (tmp_path / "lab").exists()
    finally:
        for child in children:
            child.kill()


def test_an_owner_lives_as_long_as_it_holds_the_lock(tmp_path: Path) -> None:
    mine = keeper.claim(tmp_path)
    assert keeper.owner_lives(mine.folder)
    (mine.folder / keeper.ALIVE).rename(mine.folder / "hidden")
    assert keeper.owner_lives(mine.folder), "our own lock is not looked at: on NFS that ends it"
    (mine.folder / "hidden").rename(mine.folder / keeper.ALIVE)
    mine.alive.close()  # as when the owner dies
    assert not keeper.owner_lives(mine.folder)
    mine.release()
    assert nothing_left(tmp_path)
    young = tmp_path / "young"
    young.mkdir()
    assert keeper.owner_lives(young), "made an instant ago, its lock comes next"


def test_members_carry_our_mark_whatever_they_are_called(tmp_path: Path) -> None:
    """Not a neighbour, not somebody who only looks at a file in the folder."""
    (tmp_path / "link").symlink_to(tmp_path)
    mine = keeper.claim(tmp_path)
    marked = keeper.environment(mine.folder)
    spelt = marked | {keeper.MARK: str(tmp_path / "link" / mine.folder.name)}
    neighbour = marked | {keeper.MARK: f"{mine.folder}x"}
    shell = ["sh", "-c", "read line; exit", "sh"]
    children = [
        subprocess.Popen([*command, word], env=env, stdin=subprocess.PIPE)
        for command, word, env in (
            ([sys.executable, "-c", "input()"], "", marked),
            (shell, "", marked),
            (shell, "", spelt),
            (shell, f"--x={mine.folder}/x", {}),  # an environment that tells nothing
            (shell, "", neighbour),
            (shell, f"{mine.folder}/x", dict(os.environ)),
        )
    ]
    try:
        # Between fork and exec a child is still a copy of its parent.
        until(lambda: len(keeper.members(mine.folder)[0]) == 4, 5, "four members")
        found = {process.pid for process in keeper.members(mine.folder)[0]}
        assert found == {child.pid for child in children[:4]}
        mine.release()
        assert [child.poll() is None for child in children] == [False] * 4 + [True] * 2
    finally:
        for child in children:
            child.communicate()


def test_a_folder_stays_while_a_member_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lab"
    folder.mkdir()
    with helpers.python("-c", "input()", NATSLAB_LAB=str(folder)):
        monkeypatch.setattr(keeper, "_kill", lambda process: True)  # it cannot be killed
        keeper.reap(folder, deadline=0.2)
        assert folder.exists(), "without it nobody would find the member again"
        monkeypatch.undo()
        keeper.reap(folder)
    assert not folder.exists()


def test_a_folder_that_vanishes_or_is_of_another_user_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: True)  # it was there a moment ago
    assert not keeper.owner_lives(tmp_path / "gone")
    monkeypatch.undo()

    def denied(*_: object) -> None:
        raise PermissionError

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / keeper.ALIVE).touch()
    assert not keeper.owner_lives(tmp_path / "other")
    monkeypatch.setattr(Path, "open", denied)
    assert keeper.owner_lives(tmp_path / "other")


@pytest.mark.parametrize("name", ["natsd", "nats server"])
def test_a_server_under_another_name(cache: Path, tmp_path: Path, name: str) -> None:
    binary = tmp_path / name
    shutil.copy(server.find_server()[0], binary)
    env = {"NATSLAB_CACHE": str(cache / "cache"), "NATS_SERVER": str(binary)}
    with helpers.python(helpers.HOLDER, **env) as holder:
        assert holder.stdout.readline(), holder.communicate()[1]
        assert sum(str(binary) in line for line in processes_in(cache)) == 3
        os.kill(holder.pid, signal.SIGKILL)
        until(lambda: nothing_left(cache / "cache"), 5, "the keeper to clean up")


FORKING = """
import asyncio, os, sys, time
from natslab import Lab
async def main():
    lab = await Lab.start(kind="embedded", quiet=True)
    if os.fork() == 0:
        if "close" in sys.argv:
            lab._claim.release()
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@pytest.mark.parametrize("word", ["", "close"])
def test_a_forked_child_does_not_keep_the_cluster(cache: Path, word: str) -> None:
    """Nor end it: what is its parent's stays so. `multiprocessing` forks on Linux until Python 3.14."""
    with helpers.python("-c", FORKING, word, NATSLAB_CACHE=str(cache)) as holder:
        line = holder.stdout.readline()
        assert line, holder.communicate()[1]
        child = psutil.Process(int(line))
        try:
            assert len(processes_in(cache)) == 4, "the servers and the keeper are the parent's"
            os.kill(holder.pid, signal.SIGKILL)
            until(lambda: nothing_left(cache), 5, "the keeper to clean up")
            assert child.is_running(), "it lives, and holds nothing"
        finally:
            child.kill()


def test_looking_for_members_is_fast(tmp_path: Path) -> None:
    keeper.members(tmp_path)
    count, begun = len(psutil.pids()), time.monotonic()
    keeper.members(tmp_path)
    assert (time.monotonic() - begun) / count < 0.005, "a tenth of a millisecond on a quiet machine"


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
        # What comes right behind an error, a kernel may drop: not here.
        asked = client.execute(START, stop_on_error=False)
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
