"""What a lesson holds: on a cluster of somebody else, and in its own kernel."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import helpers
import nats
import pytest
from nats.js import JetStreamContext
from natslab import Lab, LabError, until
from natslab.clusters import server
from natslab.clusters.ready import PROBE

VERBS = ("kill", "stop", "pause", "resume", "cut", "heal", "restart", "lame_duck")


@pytest.fixture
async def js(external: dict) -> AsyncIterator[JetStreamContext]:
    """JetStream of the shared cluster, and no stream on it."""
    nc = await nats.connect(external["servers"])
    js = nc.jetstream()
    yield js
    for name in await streams(js):
        await js.delete_stream(name)
    await nc.close()


async def streams(js: JetStreamContext) -> list[str]:
    return sorted(info.config.name for info in await js.streams_info())


async def test_external_cluster(external: dict, js: JetStreamContext, cache: Path) -> None:
    lab = await Lab.start(lesson=1, quiet=True)
    assert lab.kind == "external"
    assert len(lab.nodes) == 3, "the server told us of the other two"
    nc = await nats.connect(**lab.options)
    await nc.jetstream().add_stream(name="MINE", num_replicas=3, description=lab.mark)
    assert await lab.leader_of("MINE") in ("n1", "n2", "n3")
    await nc.close()
    await lab.close(quiet=True)
    assert await streams(js) == []
    assert helpers.nothing_left(cache)


async def test_drills_are_skipped_with_one_line(
    external: dict, cache: Path, capsys: pytest.CaptureFixture
) -> None:
    lab = await Lab.start(quiet=True)
    for verb in VERBS:
        assert await getattr(lab, verb)(lab.nodes[0]) is None
        assert capsys.readouterr().out == (
            f"skipped: {verb.replace('_', ' ')} needs a cluster that this course started, NATS_URL names another\n"
        )
    assert lab.events == []
    await lab.close(quiet=True)


async def test_only_marked_streams_are_deleted(
    external: dict, js: JetStreamContext, cache: Path
) -> None:
    await js.add_stream(name="JOBS", subjects=["jobs.>"])  # the name that lesson 15 uses
    await js.add_stream(name="OTHER_LESSON", description="natslab lesson 01")
    await js.add_stream(name="LEFT", description="natslab lesson 15")  # by an interrupted run
    await js.create_key_value(bucket="left", description="natslab lesson 15")

    lab = await Lab.start(lesson=15, quiet=True)
    assert lab.mark == "natslab lesson 15"
    assert await streams(js) == ["JOBS", "OTHER_LESSON"]

    await js.add_stream(name="NEW", description=lab.mark)
    await js.create_key_value(bucket="new", description=lab.mark)
    await lab.close(quiet=True)
    assert await streams(js) == ["JOBS", "OTHER_LESSON"]


async def test_what_a_failed_start_left_is_swept(
    external: dict, js: JetStreamContext, cache: Path
) -> None:
    now = f"{time.time():.0f}"
    for name in (f"{PROBE}1_a", f"{PROBE}{now}_b"):  # a start of long ago, and one that still runs
        await js.add_stream(name=name, subjects=[f"natslab.probe.{name}"])
    lab = await Lab.start(quiet=True)
    assert await streams(js) == [f"{PROBE}{now}_b"]
    await lab.close(quiet=True)


async def test_too_few_nodes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary, _ = server.find_server()
    words = ["-js", "-sd", str(cache / "store"), "--addr", "127.0.0.1", "--port", "-1"]
    words += ["--ports_file_dir", str(cache)]
    single = await asyncio.create_subprocess_exec(binary, *words, stderr=asyncio.subprocess.DEVNULL)
    try:
        monkeypatch.setenv("NATS_URL", helpers.listens_at(cache))
        with pytest.raises(LabError, match="needs 3 nodes and this cluster has 1: unset NATS_URL"):
            await Lab.start(nodes=3)
        lab = await Lab.start(nodes=1, quiet=True)
        assert lab.nodes == ["s1"]
        await lab.close(quiet=True)
        assert helpers.labs_in(cache) == []
    finally:
        single.kill()
        await single.wait()


async def test_the_set_up_cell_run_twice_replaces_the_lab(cache: Path) -> None:
    first = await Lab.start(kind="embedded", quiet=True)
    first.spawn(idle, "idle")
    second = await Lab.start(kind="embedded", quiet=True)
    assert not first.folder.exists()
    assert first.address != second.address
    assert len(helpers.processes_in(cache)) == 4
    await first.close(quiet=True)  # an old name for it does no harm
    await second.close(quiet=True)
    await second.close(quiet=True)
    assert helpers.nothing_left(cache)


async def idle() -> None:
    import asyncio

    await asyncio.Event().wait()


async def speak(options: dict, subject: str) -> None:
    import nats

    nc = await nats.connect(**options)
    await nc.publish(subject, b"hello")
    print("spoken")
    await nc.drain()


async def test_workers(lab: Lab) -> None:
    heard = []

    async def on_message(msg: nats.aio.msg.Msg) -> None:
        heard.append(msg.data)

    nc = await nats.connect(**lab.options)
    await nc.subscribe("spoken", cb=on_message)
    await nc.flush()
    speaker = lab.spawn(speak, "speaker", lab.address, "spoken")
    await until(lambda: not speaker.alive, 15)
    await until(lambda: heard == [b"hello"])
    assert speaker.log.read_text() == "spoken\n"
    await nc.close()

    killed, stopped = lab.spawn(idle, "killed"), lab.spawn(idle, "stopped")
    killed.kill()
    stopped.stop()
    assert (killed.process.returncode, stopped.process.returncode) == (-9, -15)

    with pytest.raises(LabError, match="source of .* cannot be read: define it in a cell"):
        lab.spawn(print, "built in")


async def test_asynchronous_errors_are_collected(lab: Lab, capsys: pytest.CaptureFixture) -> None:
    nc = await nats.connect(**lab.options)
    gate = asyncio.Event()

    async def stuck(msg: nats.aio.msg.Msg) -> None:
        await gate.wait()

    await nc.subscribe("flood", cb=stuck, pending_msgs_limit=1)
    for _ in range(5):
        await nc.publish("flood", b"")
    await until(lambda: lab.errors)
    assert {type(error).__name__ for error in lab.errors} == {"SlowConsumerError"}
    gate.set()
    await nc.close()
    assert capsys.readouterr() == ("", "")


async def test_the_address_can_be_handed_to_another_process(lab: Lab) -> None:
    assert json.loads(json.dumps(lab.address)) == lab.address
