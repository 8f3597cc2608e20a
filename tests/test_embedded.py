"""What befalls a cluster of processes: odd folders, taken ports, frozen nodes, a cancelled start."""

import asyncio
import fcntl
import json
import signal
import socket
import time
from pathlib import Path

import helpers
import nats
import natslab.lab
import pytest
from natslab import Lab, LabError, settled, until
from natslab.clusters import embedded, keeper, ports, server
from natslab.clusters.embedded import Embedded
from natslab.clusters.ports import reserve_ports


@pytest.mark.servers
@pytest.mark.parametrize("name", ["Müller Kurs", "josé", "中文", "it's", 'say "hi"'])
async def test_a_cluster_starts_in_any_folder(
    cache: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natslab.lab, "CACHE", cache / name)
    lab = await Lab.start(kind="embedded", secure=True, quiet=True)
    assert await lab.cluster.unhealthy() == []
    assert (lab.folder / "n1" / "jetstream").is_dir()
    await lab.close(quiet=True)
    assert helpers.nothing_left(cache / name)


async def test_a_cluster_that_is_alone_has_the_accounts_it_had(lab: Lab) -> None:
    """Regions and security bring accounts of their own; saved outputs know those of the base."""
    nc = await nats.connect(**lab.options)
    await nc.jetstream().add_stream(name="S", subjects=["s"])
    await settled(nc, "s")
    ack = await nc.jetstream().publish("s", b"")
    assert ack.domain is None
    jsz = await server.ask(f"{lab.cluster.nodes['n1'].monitor}/jsz?accounts=true")
    assert [account["name"] for account in jsz["account_details"]] == ["$G"]
    connz = await server.ask(f"{lab.cluster.nodes['n1'].monitor}/connz?auth=true")
    # One that has not said yet who it is has none.
    assert {c.get("account", "$G") for c in connz["connections"]} <= {"$G"}
    system = await nats.connect(**{**lab.options, "user": "sys", "password": "sys"})
    answer = json.loads((await system.request("$SYS.REQ.SERVER.PING", b"")).data)
    assert answer["server"]["name"] in lab.nodes
    assert lab.regions == lab.accounts == lab.links == {}
    for client in (nc, system):
        await client.close()


@pytest.mark.servers
async def test_a_region_that_is_alone(cache: Path) -> None:
    lab = await Lab.start(kind="embedded", regions={"us-east": 3}, quiet=True)
    assert lab.nodes == lab.regions["us-east"].nodes == ["n1", "n2", "n3"]
    assert lab.regions["us-east"].address == lab.address
    await lab.close(quiet=True)


async def test_a_paused_node_restarts(lab: Lab) -> None:
    await lab.pause("n2")
    began = time.monotonic()
    await lab.restart("n2")
    assert time.monotonic() - began < 15
    assert lab.cluster.processes["n2"].poll() is None
    assert await lab.cluster.unhealthy() == []


async def test_a_restart_onto_a_taken_port_is_one_sentence(lab: Lab) -> None:
    await lab.kill("n3")
    port = int(lab.cluster.nodes["n3"].url.rsplit(":", 1)[1])
    with socket.create_server(("127.0.0.1", port)):
        began = time.monotonic()
        with pytest.raises(LabError, match=r"Node n3 did not start: .*address already in use"):
            await lab.restart("n3")
        assert time.monotonic() - began < 5
    await lab.restart("n3")
    await lab.wait_until_healthy()


@pytest.mark.servers
@pytest.mark.parametrize("regions", [None, {"us-east": 3, "eu-west": 3}])
async def test_a_cancelled_start_leaves_nothing(
    cache: Path, regions: dict[str, int] | None
) -> None:
    before = asyncio.all_tasks()
    start = asyncio.create_task(Lab.start(kind="embedded", regions=regions, quiet=True))
    await until(lambda: list(cache.glob("labs/*/*.pid")), 10, "a server to run")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    left = [task.get_coro().__qualname__ for task in asyncio.all_tasks() - before]
    # What nats-py was told to end goes through the loop once more; ours is waited for.
    assert [name for name in left if not name.startswith("Client.")] == []
    await until(lambda: asyncio.all_tasks() <= before, 1, "the tasks of the start to end")
    assert helpers.nothing_left(cache)


@pytest.mark.servers
async def test_a_first_election_that_splits_is_started_over(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first proof fails, as it does when two nodes stand at once."""
    real, tries = embedded.ready.prove, []

    async def prove(options: dict, timeout: float) -> None:
        tries.append(timeout)
        if len(tries) == 1:
            raise embedded.ready.NotReady("nobody won")
        await real(options, timeout)

    monkeypatch.setattr(embedded.ready, "prove", prove)
    lab = await Lab.start(kind="embedded", quiet=True)
    assert tries[:2] == [1.5, 3.0]
    assert await lab.cluster.unhealthy() == []
    assert len(helpers.processes_in(cache)) == 4, "three servers and a keeper"
    await lab.close(quiet=True)


@pytest.mark.servers
async def test_starts_at_once_do_not_wait_for_each_other(cache: Path) -> None:
    """Nobody holds the lock on the ports while servers start."""
    claim = keeper.claim(cache / "labs")
    lock = (cache / "labs" / "ports.lock").open("w")
    start = asyncio.create_task(Embedded.start(claim.folder))
    await until(lambda: list(claim.folder.glob("*.pid")), 10, "a server to run")
    assert not start.done()
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.close()
    cluster = await start
    await asyncio.to_thread(claim.release)
    await cluster.close()


@pytest.mark.servers
async def test_close_ends_what_the_keeper_has_not(cache: Path) -> None:
    claim = keeper.claim(cache / "labs")
    cluster = await Embedded.start(claim.folder)
    processes = list(cluster.processes.values())
    processes[0].send_signal(signal.SIGSTOP)
    await cluster.close()
    assert [process.returncode for process in processes] == [-9] * 3
    await asyncio.to_thread(claim.release)


async def test_a_process_that_does_not_end_is_one_sentence(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck:
        pid = 4711

        def kill(self) -> None:
            pass

        def wait(self, timeout: float) -> None:
            raise embedded.subprocess.TimeoutExpired("nats-server", timeout)

    with monkeypatch.context() as patched:
        patched.setitem(lab.cluster.processes, "n2", Stuck())
        with pytest.raises(LabError, match=r"Node n2 does not end \(process 4711\)"):
            lab.cluster._kill(["n2"])


# Ports.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "labs" / "mine").mkdir(parents=True)
    return tmp_path / "labs" / "mine"


@pytest.mark.parametrize(
    "wish", ["65530-70000", "20010-20000", "0-100", "-1-5", "1-2-3", "20000", "a-b", "²0000-30000"]
)
def test_a_range_that_is_none_is_refused(
    folder: Path, wish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATSLAB_PORTS", wish)
    with pytest.raises(LabError, match=f"NATSLAB_PORTS={wish} is not a range of ports: write it"):
        reserve_ports(folder, 1)


@pytest.mark.parametrize("wish", ["", "  "])
def test_an_empty_range_counts_as_unset(
    folder: Path, wish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATSLAB_PORTS", wish)
    (port,) = reserve_ports(folder, 1)
    assert 20_000 <= port <= 29_999


def test_blanks_in_a_range(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATSLAB_PORTS", " 29200 - 29209 ")
    assert set(reserve_ports(folder, 5)) <= set(range(29200, 29210))


def test_a_claim_that_vanishes_between_look_and_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "other").mkdir()
    claim = folder.parent / "other" / "ports.json"
    claim.write_text("[1]")
    real = Path.glob

    def glob(self: Path, pattern: str) -> list[Path]:
        found = list(real(self, pattern))
        assert claim in found
        claim.unlink()
        return found

    monkeypatch.setattr(Path, "glob", glob)
    assert len(reserve_ports(folder, 3)) == 3


def test_a_claim_is_never_half_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at any moment finds no claim or a whole one."""
    seen = []

    def write_text(self: Path, text: str) -> None:
        real(self, "")
        seen.append((folder / "ports.json").exists())
        real(self, text)

    real = Path.write_text
    monkeypatch.setattr(ports.Path, "write_text", write_text)
    reserved = reserve_ports(folder, 3)
    assert seen == [False]
    assert json.loads((folder / "ports.json").read_text()) == reserved


def test_a_server_has_time_zones_where_the_machine_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "SYSTEM_ZONES", tmp_path)
    assert server.time_zones() == {}, "the machine has its own"
    monkeypatch.setattr(server, "SYSTEM_ZONES", tmp_path / "none")
    assert Path(server.time_zones()["ZONEINFO"], "Asia/Tokyo").is_file()
