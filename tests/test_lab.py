"""What a lesson holds: on a cluster of somebody else, and in its own kernel."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import helpers
import nats
import pytest
from nats.js import JetStreamContext
from natslab import Lab, LabError, until, workers
from natslab.clusters import server
from natslab.clusters.external import External
from natslab.clusters.ready import PROBE

pytestmark = pytest.mark.servers

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
        event = await getattr(lab, verb)(lab.nodes[0])
        assert not event and not event.shown
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
    old = first.address
    second = await Lab.start(kind="embedded", quiet=True)
    assert not first.folder.exists()
    assert old != second.address
    await must_be_closed(first)
    assert len(helpers.processes_in(cache)) == 4
    await first.close(quiet=True)  # an old name for it does no harm
    await second.close(quiet=True)
    await second.close(quiet=True)
    assert helpers.nothing_left(cache)


async def must_be_closed(lab: Lab) -> None:
    """Whoever holds an old name is told so, by everything that would need its cluster."""
    for use in (lambda: lab.options, lambda: lab.address, lambda: lab.spawn(idle, "idle")):
        with pytest.raises(LabError, match=r"^This lab was closed: .* set-up cell"):
            use()
    for ask in (lambda: lab.kill("n1"), lambda: lab.leader_of("S"), lab.view):
        with pytest.raises(LabError, match="This lab was closed"):
            await ask()


async def test_two_starts_at_once_end_in_one_open_lab(cache: Path) -> None:
    before = asyncio.all_tasks()
    start = partial(Lab.start, kind="embedded", quiet=True)
    first, second = await asyncio.gather(start(), start())
    await must_be_closed(first)
    assert helpers.labs_in(cache) == [second.folder]
    assert await second.cluster.unhealthy() == []
    await second.close(quiet=True)
    assert helpers.nothing_left(cache)
    assert asyncio.all_tasks() == before


async def test_a_start_that_waits_for_another_can_be_cancelled(cache: Path) -> None:
    before = asyncio.all_tasks()
    starts = [asyncio.create_task(Lab.start(kind="embedded", quiet=True)) for _ in range(2)]
    await until(lambda: helpers.labs_in(cache), what="the first of two starts")
    starts[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await starts[1]
    lab = await starts[0]
    assert helpers.labs_in(cache) == [lab.folder]
    await lab.close(quiet=True)
    assert asyncio.all_tasks() == before


async def test_a_start_after_a_cancelled_or_refused_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = asyncio.create_task(Lab.start(kind="embedded", quiet=True))
    await until(lambda: helpers.labs_in(cache), what="a start")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    with pytest.raises(LabError, match="choose one of"):
        await Lab.start(kind="nonsense")
    monkeypatch.setattr(Lab, "_starting", True)
    monkeypatch.setattr("natslab.lab.START_PATIENCE", 0.1)
    with pytest.raises(LabError, match="has not ended in 0.1 s: restart the kernel"):
        await Lab.start(kind="embedded")
    monkeypatch.setattr(Lab, "_starting", False)
    lab = await Lab.start(kind="embedded", quiet=True)
    await lab.close(quiet=True)
    assert helpers.nothing_left(cache)


async def test_close_when_the_cluster_is_gone(
    cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    with helpers.shared_cluster(tmp_path_factory.mktemp("elsewhere")) as held:
        monkeypatch.setenv("NATS_URL", ",".join(held["servers"]))
        lab = await Lab.start(lesson=1, quiet=True)
        worker = lab.spawn(idle, "idle")
    begun = time.monotonic()
    await lab.close()
    assert time.monotonic() - begun < 10, "2.5 s on a quiet machine"
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("lab closed, but: No NATS server answers at ")
    assert not worker.alive
    assert helpers.nothing_left(cache)
    await lab.close(quiet=True)  # a second time does no harm
    assert capsys.readouterr().out == ""


async def test_close_goes_on_when_a_step_fails(
    external: dict, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lab = await Lab.start(lesson=1, quiet=True)
    steps = []

    async def fails(self: External) -> None:
        steps.append("mend")
        raise LabError("The nodes stay down.")

    async def ends(self: External) -> None:
        steps.append("close")

    async def lists(self: JetStreamContext) -> list:
        steps.append("delete")
        raise nats.errors.ConnectionClosedError

    monkeypatch.setattr(External, "mend", fails)
    monkeypatch.setattr(External, "close", ends)
    monkeypatch.setattr(JetStreamContext, "streams_info", lists)
    await lab.close()
    assert steps == ["mend", "delete", "close"]
    assert capsys.readouterr().out.splitlines() == [
        "lab closed, but: The nodes stay down.",
        "lab closed, but: The streams of this lesson could not be deleted (nats: connection closed); "
        "its next start on this cluster deletes them.",
    ]
    assert helpers.nothing_left(cache)


async def test_a_start_that_fails_late_gives_the_cluster_back(
    external: dict, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    async def close(self: External) -> None:
        closed.append(self)

    monkeypatch.setattr(External, "close", close)
    with pytest.raises(LabError, match="needs 9 nodes"):
        await Lab.start(nodes=9)
    assert len(closed) == 1, "on compose it holds a lock"
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
        lab.spawn(print, "built-in")


@pytest.mark.parametrize("name", ["a/b", "../a", "a b", "", "ä", "a.b"])
def test_a_worker_has_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(LabError, match="use letters, digits, - and _ only"):
        workers.spawn(tmp_path, idle, name)
    assert not list(tmp_path.iterdir())


async def shuffle(words: list) -> None:
    import logging
    import random

    logging.warning("%s → ü %d", random.choice(words), len(words))


@pytest.mark.parametrize("name", ["random", "logging", "nats", "n1"])
def test_a_worker_shadows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever it is called, in whatever locale, with as many arguments as there are."""
    for variable, value in {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}.items():
        monkeypatch.setenv(variable, value)
    worker = workers.spawn(tmp_path, shuffle, name, ["x"] * 50_000)
    assert worker.process.wait(20) == 0
    assert worker.log.read_text("utf-8") == "WARNING:root:x → ü 50000\n"


def test_what_is_handed_to_a_worker_is_json(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="handed to worker w must be JSON"):
        workers.spawn(tmp_path, shuffle, "w", {1, 2})


async def deaf() -> None:
    import asyncio
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    await asyncio.Event().wait()


def test_a_worker_that_ignores_sigterm_is_killed_in_words(tmp_path: Path) -> None:
    worker = workers.spawn(tmp_path, deaf, "deaf")
    helpers.until(worker.log.read_text, 20, "the worker")
    with pytest.raises(LabError, match="^Worker deaf did not end within 0.2 s of SIGTERM and was"):
        worker.stop(timeout=0.2)
    assert worker.process.returncode == -9


async def polite() -> None:
    import asyncio
    import signal

    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    print("polite", flush=True)
    await asked.wait()


def test_a_frozen_worker_can_be_stopped(tmp_path: Path) -> None:
    worker = workers.spawn(tmp_path, polite, "frozen")
    helpers.until(worker.log.read_text, 20, "the worker")
    worker.process.send_signal(signal.SIGSTOP)
    worker.stop(timeout=10)
    assert worker.process.returncode == 0, "it has ended in good order"


async def ready() -> None:
    import asyncio

    print("ready", flush=True)
    await asyncio.Event().wait()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_hears_signals_that_the_kernel_ignores(tmp_path: Path, sent: int) -> None:
    """As after `nohup`, or with a `&` in a script."""
    before = signal.signal(sent, signal.SIG_IGN)
    try:
        worker = workers.spawn(tmp_path, ready, "ready")
    finally:
        signal.signal(sent, before)
    helpers.until(worker.log.read_text, 20, "the worker")
    worker.process.send_signal(sent)
    try:
        assert worker.process.wait(10) != 0
    finally:
        worker.kill()


async def fails() -> None:
    raise ValueError("a typo")


async def test_troubles_are_those_of_the_open_lab(lab: Lab) -> None:
    failed = lab.spawn(fails, "failed")
    await until(lambda: not failed.alive, 20)
    assert workers.troubles() == ["worker failed ended with exit code 1: ValueError: a typo"]
    await lab.close(quiet=True)
    assert workers.troubles() == []


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
