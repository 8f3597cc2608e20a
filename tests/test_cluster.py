"""The embedded cluster: each verb has its effect, and nothing is left behind. Real servers only."""

import asyncio
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import helpers
import nats
import pytest
from nats.js.errors import NotFoundError
from natslab import Lab, LabError, settled, until
from natslab.clusters import base, ports, server
from natslab.clusters.base import Event
from natslab.clusters.connect import connect
from natslab.clusters.ports import reserve_ports

pytestmark = pytest.mark.servers


async def test_start_gives_a_quorum(lab: Lab) -> None:
    assert lab.nodes == ["n1", "n2", "n3"]
    assert await lab.cluster.unhealthy() == []
    view = await lab.view()
    assert [node["up"] for node in view] == [True] * 3
    assert sum(node["meta_leader"] for node in view) == 1

    nc = await nats.connect(**lab.options)
    js = nc.jetstream()
    assert await js.streams_info() == [], "the stream that proved readiness is gone"
    await js.add_stream(name="S", subjects=["s"], num_replicas=3)
    await settled(nc, "s")
    assert (await js.publish("s", b"")).seq == 1
    await nc.close()


async def test_every_verb_has_its_effect(lab: Lab) -> None:
    cluster = lab.cluster

    await lab.pause("n1")
    assert await cluster.is_silent("n1")
    await lab.resume("n1")
    assert await cluster.answers("n1")

    await lab.kill("n2")
    assert cluster.processes["n2"].returncode == -9
    assert await cluster.is_down("n2")
    assert [node["up"] for node in await lab.view()] == [True, False, True]
    await lab.restart("n2")
    await lab.wait_until_healthy(5)

    await lab.stop("n3")
    assert cluster.processes["n3"].returncode == 0, "it ended in good order"
    await lab.restart("n3")

    await lab.lame_duck("n1")
    assert cluster.processes["n1"].returncode == 0
    await lab.restart("n1")
    await lab.restart("n1")  # one that runs is stopped first
    assert await cluster.unhealthy() == []

    verbs = [f"{event.verb} {event.node}" for event in lab.events]
    assert verbs == [
        *("pause n1", "resume n1", "kill n2", "restart n2", "stop n3", "restart n3"),
        *("lame duck n1", "restart n1", "stop n1", "restart n1"),
    ]
    times = [event.at for event in lab.events]
    assert times == sorted(times)
    assert all(0 < event.seconds < 20 for event in lab.events)

    with pytest.raises(LabError, match="needs containers"):
        await lab.cut("n1")
    with pytest.raises(LabError, match="needs containers"):
        await lab.heal("n1")


@pytest.mark.parametrize("verb", ["restart", "stop", "lame_duck", "kill"])
async def test_what_a_paused_node_is_told_reaches_it(lab: Lab, verb: str) -> None:
    await lab.pause("n2")
    began = time.monotonic()
    await getattr(lab, verb)("n2")
    assert time.monotonic() - began < 15, "a signal waits for ever in a frozen process"
    if verb == "restart":
        assert await lab.cluster.unhealthy() == []
        assert [event.verb for event in lab.events] == ["pause", "stop", "restart"]
    else:
        assert lab.cluster.processes["n2"].returncode == (-9 if verb == "kill" else 0)


async def test_a_restart_onto_a_taken_port_ends_at_once(lab: Lab) -> None:
    await lab.kill("n2")
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", urlsplit(lab.cluster.nodes["n2"].url).port)):
        with pytest.raises(LabError, match=r"^restart: .*n2") as caught:
            await lab.restart("n2")
        assert time.monotonic() - began < 10
        assert len(str(caught.value).splitlines()) == 1
        began = time.monotonic()
        with pytest.raises(LabError, match=r"^healthy: .*n2"):
            await lab.wait_until_healthy()
        assert time.monotonic() - began < 5
    await lab.restart("n2")


async def test_a_node_that_does_not_catch_up_says_why(lab: Lab) -> None:
    for node in ("n1", "n2", "n3"):
        await lab.kill(node)
    await lab.cluster._launch("n1")
    await until(lambda: lab.cluster.answers("n1"), 10, "n1")
    with pytest.raises(LabError, match="n1 in 1 s, it says: JetStream"):
        await lab.wait_until_healthy(1)
    await lab.cluster.make_whole()


async def test_what_ends_the_hope_may_be_what_was_waited_for(lab: Lab, monkeypatch) -> None:
    """A node that ends between the look at it and the look at its process."""
    looks = []

    async def down(node: str) -> bool:
        looks.append(node)
        return len(looks) > 1

    monkeypatch.setattr(lab.cluster, "_hopeless", lambda node: "Node n1 has ended.")
    await lab.cluster._seen("kill", "n1", down, 5)
    assert len(looks) == 2


async def test_no_node_answers_is_one_sentence(lab: Lab) -> None:
    for node in lab.nodes:
        await lab.kill(node)
    for ask in (lab.leader_of("S"), lab.move_leader("S", away_from="n1")):
        began = time.monotonic()
        with pytest.raises(LabError, match=r"^No node of the cluster answers\. Start the missing"):
            await ask
        assert time.monotonic() - began < 5


async def test_who_asks_for_a_leader_may_lose_the_node_that_is_asked(lab: Lab, monkeypatch) -> None:
    asked, real = [], base.connect

    async def recorded(options: dict) -> nats.NATS:
        asked.append(await real(options))
        return asked[-1]

    monkeypatch.setattr(base, "connect", recorded)
    asking = asyncio.create_task(lab.leader_of("NOT_THERE", timeout=3))
    await until(lambda: asked, 2, "the connection")
    first = lab.node_of(asked[0])
    await lab.kill(first)
    with pytest.raises(TimeoutError, match="a leader of stream NOT_THERE"):
        await asking
    assert len(asked) == 2 and all(nc.is_closed for nc in asked)


def test_an_event_that_was_not_shown_is_false() -> None:
    assert Event(0.0, "kill", "n1", 0.0)
    assert not Event(0.0, "kill", "n1", 0.0, shown=False)


async def test_another_node_leads_after_the_leader_was_killed(lab: Lab) -> None:
    nc = await nats.connect(**lab.options)
    js = nc.jetstream()
    await js.add_stream(name="S", subjects=["s"], num_replicas=3)
    await settled(nc, "s")
    await js.publish("s", b"kept")
    before = await lab.leader_of("S")
    assert await lab.move_leader("S", away_from=None) == before
    first = await lab.move_leader("S", away_from=before)
    assert first == await lab.leader_of("S") != before
    await lab.kill(first)
    second = await lab.leader_of("S")
    assert second != first
    assert [node["name"] for node in await lab.view() if "S" in node["leads"]] == [second]
    await lab.restart(first)
    await lab.wait_until_healthy()
    assert (await js.get_msg("S", 1)).data == b"kept"
    assert lab.node_of(nc) in lab.nodes
    for node in lab.nodes:
        there = await nats.connect(**lab.server_at(node))
        assert lab.node_of(there) == node
        await there.close()
    assert lab.server_at("hidden") == lab.options
    here = await nats.connect(**lab.same_server(nc))
    assert lab.node_of(here) == lab.node_of(nc)
    elsewhere = await nats.connect(**lab.other_server(nc))
    assert lab.node_of(elsewhere) not in (lab.node_of(nc), None)
    for other in (here, elsewhere):
        await other.close()
    await nc.close()
    assert lab.node_of(nc) is None


async def test_settled_outlives_the_death_of_the_server(lab: Lab) -> None:
    nc = await nats.connect(**lab.options)
    node = lab.node_of(nc)
    assert node is not None
    await lab.pause(node)
    settling = asyncio.create_task(settled(nc))  # its flush goes to a server that is frozen
    await until(lambda: nc._pongs, what="the flush to be under way")
    await lab.kill(node)
    await settling
    assert lab.node_of(nc) not in (node, None)
    await lab.restart(node)
    await nc.close()


async def test_a_flush_cut_short_leaves_its_connection_deaf(lab: Lab) -> None:
    """As 01 says of nats-py 2.16. When this fails, a newer one has mended it, and 01 need not."""
    node = lab.nodes[0]
    timed_out, cancelled = [await nats.connect(**lab.server_at(node)) for _ in range(2)]
    await lab.pause(node)
    with pytest.raises(nats.errors.FlushTimeoutError):
        await timed_out.flush(timeout=0.05)
    flush = asyncio.create_task(cancelled.flush())
    await until(lambda: cancelled._pongs, what="the flush to be under way")
    flush.cancel()
    await lab.resume(node)
    for nc in (timed_out, cancelled):
        with pytest.raises(nats.errors.TimeoutError):
            await nc.request("$JS.API.INFO", timeout=2)
        assert nc.is_connected, "it does not know"
        await nc.close()


async def test_a_connection_hears_after_a_flush_that_nobody_waited_for(lab: Lab) -> None:
    """Of a client that does not outlive one that is cancelled, or answered when its time is out."""
    nc = await nats.connect(**lab.options)
    for steps in range(12):  # each where another step of it is under way
        settling = asyncio.create_task(settled(nc))
        for _ in range(steps):
            await asyncio.sleep(0)
        settling.cancel()
        await asyncio.wait([settling])
        assert await nc.jetstream().account_info(), f"deaf after {steps} steps"

    node = lab.node_of(nc)
    assert node is not None
    await lab.pause(node)
    settling = asyncio.create_task(settled(nc))
    await asyncio.wait([settling], timeout=2.5)  # more than it gives one flush
    await lab.resume(node)
    await settling
    assert await nc.jetstream().account_info()
    await nc.close()


async def test_a_node_is_back_when_the_leader_counts_it_in(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured beside three lessons: a leader that had just started refused a stream, "peer offline"."""
    (leader,) = [node["name"] for node in await lab.view() if node["meta_leader"]]
    first, second = (node for node in lab.nodes if node != leader)
    await lab.stop(second)
    ask = server.ask

    async def offline() -> set[str]:
        told = await ask(f"{lab.cluster.nodes[leader].monitor}/jsz", 1.0)
        return {peer["name"] for peer in told["meta_cluster"]["replicas"] if peer.get("offline")}

    await until(offline, 15, "the leader to miss it")
    assert await offline() == {second}
    assert await lab.cluster.is_back(first)  # one that is dead keeps nobody waiting
    await lab.restart(second)
    assert not await offline()

    async def not_heard_of_it_yet(url: str, timeout: float) -> dict | None:
        told = await ask(url, timeout)
        for peer in (told or {}).get("meta_cluster", {}).get("replicas") or []:
            peer["offline"] = peer["name"] == second
        return told

    monkeypatch.setattr(server, "ask", not_heard_of_it_yet)
    assert await lab.cluster.is_healthy(second)
    assert not await lab.cluster.is_back(second)


async def test_a_stream_is_deleted_though_requests_are_not_answered(lab: Lab) -> None:
    nc = await nats.connect(**lab.options)
    js = nc.jetstream()
    await js.add_stream(name="S", subjects=["s"], num_replicas=3, description=lab.mark)
    # The one that is left leads the cluster: it tells a second request that there is no such stream.
    (leader,) = [node["name"] for node in await lab.view() if node["meta_leader"]]
    frozen = [node for node in lab.nodes if node != leader]
    for node in frozen:
        await lab.pause(node)
    deleting = asyncio.create_task(lab.delete_stream("S", timeout=60))
    with pytest.raises(TimeoutError, match="S is not deleted after 3 s"):  # there is no quorum
        await lab.delete_stream("S", timeout=3)
    assert not deleting.done()
    for node in frozen:
        await lab.resume(node)
    await deleting
    with pytest.raises(NotFoundError):
        await js.stream_info("S")
    await lab.delete_stream("S")  # it is not there: all is well
    for _ in range(20):  # no node has its files any more, in the moment that it comes back
        await js.add_stream(name="S", subjects=["s"], num_replicas=3, description=lab.mark)
        await until(lambda: lab.cluster.has_files_of("S"), 5, "the files")
        await lab.delete_stream("S")
        assert not lab.cluster.has_files_of("S")
    await nc.close()


async def test_a_stream_that_somebody_else_made_is_not_deleted(lab: Lab) -> None:
    """Lessons have names that people use: ORDERS, PAYMENTS, LOGS."""
    nc = await nats.connect(**lab.options)
    js = nc.jetstream()
    for described in (None, "orders of the shop"):
        await js.add_stream(name="THEIRS", subjects=["theirs"], description=described)
        with pytest.raises(LabError, match="THEIRS on this cluster is not of this lesson"):
            await lab.delete_stream("THEIRS")
        assert (await js.stream_info("THEIRS")).config.description == described
        await js.delete_stream("THEIRS")
    await nc.close()


async def test_nobody_leads_a_stream_that_is_not_there(lab: Lab) -> None:
    with pytest.raises(TimeoutError, match="a leader of stream NOT_THERE"):
        await lab.leader_of("NOT_THERE", timeout=0.3)
    with pytest.raises(TimeoutError, match="a leader of stream NOT_THERE"):
        await lab.move_leader("NOT_THERE", away_from="n1", timeout=0.3)


def test_ports_reserved_twice_never_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few ports that a second claim would hit those of the first.
    monkeypatch.setenv("NATSLAB_PORTS", "29000-29024")
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    first = reserve_ports(folders[0], 9)
    second = reserve_ports(folders[1], 9)
    assert len({*first, *second}) == 18
    with pytest.raises(LabError, match=r"of 9 ports needed are free in 29000-29024: close other"):
        reserve_ports(folders[2], 9)
    assert not (folders[2] / "ports.json").exists()
    shutil.rmtree(folders[0])  # the claim lasts as long as its folder
    third = reserve_ports(folders[2], 9)
    assert not {*third} & {*second}


async def test_a_port_taken_at_the_last_moment_is_replaced(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATSLAB_PORTS", "29100-29109")  # one more than three nodes need
    monkeypatch.setattr(ports.random, "shuffle", lambda ports: None)
    looks = []

    def is_free(port: int) -> bool:
        looks.append(port)
        return len(looks) <= 9 or real(port)

    real = ports.is_free
    monkeypatch.setattr(ports, "is_free", is_free)
    with socket.create_server(("127.0.0.1", 29100)):  # after the first nine looks, as it were
        lab = await Lab.start(kind="embedded", quiet=True)
        assert looks[:9] == list(range(29100, 29109)) and len(looks) > 9
        assert all(":29100" not in node.url for node in lab.cluster.nodes.values())
        await lab.close(quiet=True)


def test_a_port_that_is_used_is_not_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("NATSLAB_PORTS", f"{port}-{port}")
        with pytest.raises(LabError, match="Only 0 of 1 ports"):
            reserve_ports(tmp_path / "a", 1)


async def test_two_labs_at_once(lab: Lab, cache: Path) -> None:
    with helpers.shared_cluster(cache) as other:
        assert not {*other["servers"]} & {*lab.address["servers"]}
        nc = await nats.connect(**lab.options)
        there = await nats.connect(other["servers"][0])
        await nc.jetstream().add_stream(name="SAME", subjects=["same"], num_replicas=3)
        await there.jetstream().add_stream(name="SAME", subjects=["same"], num_replicas=3)
        await settled(nc, "same")
        await nc.jetstream().publish("same", b"here")
        info = await there.jetstream().stream_info("SAME")
        assert info.state.messages == 0, "they know nothing of each other"
        await nc.close()
        await there.close()
    assert [str(folder) for folder in helpers.labs_in(cache)] == [str(lab.folder)]


async def test_nothing_is_left_after_close(cache: Path, capsys: pytest.CaptureFixture) -> None:
    lab = await Lab.start(kind="embedded")
    assert len(helpers.processes_in(cache)) == 4, "three servers and a keeper"
    await lab.close()
    assert helpers.nothing_left(cache)
    ready, measured, closed = capsys.readouterr().out.splitlines()
    assert ready == "lab ready: 3 nodes, JetStream on (embedded)"
    told = r"measured with nats-server 2\.\d+\.\d+, nats-py \S+, Python 3\.\S+, \d+ cores, \d{4}-\d\d-\d\d"
    assert re.fullmatch(told, measured)
    assert closed == "lab closed, nothing left behind"


def test_versions() -> None:
    assert server.version_of("nats-server: v2.15.0-beta") == (2, 15, 0)
    assert server.version_of("bash: not found") == ()
    path, version = server.find_server()
    assert os.access(path, os.X_OK)
    assert server.version_of(version) >= server.MIN_VERSION


async def test_the_store_is_private_to_the_lab(lab: Lab) -> None:
    folders = [Path(json.loads(n.settings["STORE_DIR"])) for n in lab.cluster.plan.nodes.values()]
    assert {folder.parent for folder in folders} == {lab.folder}
    assert lab.folder.stat().st_mode & 0o077 == 0, "nobody else can read it"


async def test_a_hiccup_in_the_first_handshake_is_tried_again(lab: Lab) -> None:
    """A door in front of a real server that is shut in the face of the first who comes."""
    real, came = urlsplit(lab.options["servers"][0]), []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer)
        if len(came) == 1:
            writer.close()
        else:
            inner = await asyncio.open_connection(real.hostname, real.port)
            await asyncio.gather(copy(reader, inner[1]), copy(inner[0], writer))

    async with await asyncio.start_server(door, "127.0.0.1", 0) as outside:
        port = outside.sockets[0].getsockname()[1]
        nc = await connect({"servers": [f"nats://127.0.0.1:{port}"]})
        assert nc.is_connected and len(came) == 2
        await nc.close()
