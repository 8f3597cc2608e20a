"""Every worker of the lessons survives what a production service meets, and ends well.

The cells tagged `service` are lifted out of their notebooks and run as a reader would run them.
"""

import asyncio
import json
import linecache
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import helpers
import nats
import nats.errors
import psutil
import pytest
from nats.js.api import PubAck
from natslab import Lab, measure, settled, until
from natslab.authoring import files
from natslab.clusters import server
from natslab.workers import Worker
from services import BAD, CASES, Case

SECONDS = 15.0  # in which a worker is up, or has ended


def lifted(lesson: int) -> dict[str, object]:
    """The workers of a lesson by name."""
    names: dict[str, object] = {}
    for number, cell in enumerate(files.read(files.by_number(lesson)).cells):
        if "service" in files.tags(cell):
            file = f"<lesson {lesson}, cell {number}>"
            lines = [f"{line}\n" for line in cell.source.splitlines()]
            linecache.cache[file] = (len(cell.source), None, lines, file)  # for inspect.getsource
            exec(compile(cell.source, file, "exec"), names)  # noqa: S102
    return {name: f for name, f in names.items() if asyncio.iscoroutinefunction(f)}


def test_each_worker_has_a_case() -> None:
    there = {
        (int(path.name[:2]), name)
        for path in files.lessons()
        for name in lifted(int(path.name[:2]))
    }
    assert there == {(case.lesson, case.worker) for case in CASES}


@asynccontextmanager
async def at_work(case: Case, lab: Lab, nc: nats.NATS, **options: object) -> AsyncIterator[Worker]:
    """The worker of a case, when it does what it is for."""
    before = await connections(lab)
    if case.prepare:
        with suppress(nats.js.errors.BadRequestError):  # it is there from the run before
            await case.prepare(nc.jetstream())
    args = [a.format(folder=lab.folder) if isinstance(a, str) else a for a in case.args]
    worker = lab.spawn(lifted(case.lesson)[case.worker], "w", {**lab.address, **options}, *args)
    try:
        if case.good or case.works:
            await until(lambda: works(case, nc), SECONDS, "the worker to work")
        else:
            await until(lambda: has_more(lab, before), SECONDS, "the worker to connect")
        yield worker
    finally:
        worker.kill()


async def works(case: Case, nc: nats.NATS) -> bool:
    if case.works:
        return await case.works(nc)
    assert case.good
    try:
        answer = await nc.request(*case.good, timeout=1)
    except (TimeoutError, nats.errors.NoRespondersError):
        return False
    return "Nats-Service-Error" not in (answer.headers or {})


async def connections(lab: Lab) -> dict[tuple[str, int], str]:
    """(server id, connection id) of all clients, and the monitor of their server."""
    found = {}
    for node in lab.cluster.nodes.values():
        told = await server.ask(f"{node.monitor}/connz", 1.0) or {}
        found |= {(told["server_id"], c["cid"]): node.monitor for c in told.get("connections", [])}
    return found


async def has_more(lab: Lab, before: dict) -> bool:
    return bool((await connections(lab)).keys() - before.keys())


async def ended(worker: Worker) -> int:
    await until(lambda: not worker.alive, SECONDS, f"{worker.name} to end")
    assert worker.exit_code is not None
    return worker.exit_code


@pytest.fixture
async def nc(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[nats.NATS]:
    """A connection; the workers find service.py as they do in a lesson."""
    monkeypatch.chdir(helpers.NOTEBOOKS)
    nc = await nats.connect(**lab.options)
    yield nc
    await nc.close()


AT_ONCE = 6.0  # seconds: an idle worker looks again twice a second; a drain gives up after ten
each = pytest.mark.parametrize("case", CASES, ids=str)


@each
async def test_bad_messages_do_no_harm_and_sigterm_ends_it(
    case: Case, lab: Lab, nc: nats.NATS
) -> None:
    async with at_work(case, lab, nc) as worker:
        for subject in case.poison:
            for body in BAD:
                await nc.publish(subject, body)
                await nc.publish(subject, body, reply=nc.new_inbox())
        await nc.flush()
        if case.good or case.works:
            await until(lambda: works(case, nc), SECONDS, "the worker to work on")
        assert worker.alive, worker.log.read_text()
        worker.process.terminate()
        asked = time.monotonic()
        assert await ended(worker) == 0, worker.log.read_text()
        assert time.monotonic() - asked < AT_ONCE, "what was it waiting for?"


@each
async def test_it_ends_when_its_connection_is_closed_for_good(
    case: Case, lab: Lab, nc: nats.NATS
) -> None:
    mine = await connections(lab)
    async with at_work(case, lab, nc, allow_reconnect=False) as worker:
        theirs = (await connections(lab)).keys() - mine.keys()
        system = await nats.connect(**lab.options, user="sys", password="sys")  # noqa: S106
        for server_id, cid in theirs:
            kick = json.dumps({"cid": cid}).encode()
            await system.request(f"$SYS.REQ.SERVER.{server_id}.KICK", kick, timeout=2)
        await system.close()
        assert await ended(worker) > 0, worker.log.read_text()


@pytest.mark.parametrize("case", [c for c in CASES if c.bucket], ids=str)
async def test_it_looks_again_for_a_bucket_that_does_not_answer(
    case: Case, lab: Lab, nc: nats.NATS
) -> None:
    """A request to JetStream may stay unanswered, as when the leader of the bucket is just gone."""
    assert case.prepare
    await case.prepare(nc.jetstream())
    leader = await lab.leader_of(f"KV_{case.bucket}")
    others = [node.url for name, node in lab.cluster.nodes.items() if name != leader]
    await lab.pause(leader)
    thaw = asyncio.create_task(thawed(lab, leader, 8.0))  # nats-py waits for 5 s
    async with at_work(replace(case, prepare=None), lab, nc, servers=others):
        await thaw


async def thawed(lab: Lab, node: str, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await lab.resume(node)


async def test_a_clerk_that_gets_no_answer_says_nothing_and_asks_again(
    lab: Lab, nc: nats.NATS
) -> None:
    """Its silent bucket is no error of the lookup: who asks gets the list when it is back."""
    (clerk,) = (case for case in CASES if (case.lesson, case.worker) == (12, "clerk"))
    bucket = await nc.jetstream().create_key_value(bucket="SERVICES_silent", direct=True)
    await bucket.put("serviceA.a1", b"here")
    leader = await lab.leader_of("KV_SERVICES_silent")
    others = [node.url for name, node in lab.cluster.nodes.items() if name != leader]
    asker = await nats.connect(**{**lab.options, "servers": others})
    case = replace(clerk, args=("silent",), good=("silent.lookup.serviceA", b""), prepare=None)
    async with at_work(case, lab, asker, servers=others):
        await lab.pause(leader)
        silent = [asker.request(*case.good, timeout=0.8) for _ in range(5)]
        told = await asyncio.gather(*silent, return_exceptions=True)
        await lab.resume(leader)
        assert all(isinstance(answer, TimeoutError) for answer in told), told
        await until(lambda: works(case, asker), SECONDS, "the list")
    await asker.close()


@pytest.mark.parametrize("case", [c for c in CASES if c.consumer], ids=str)
async def test_it_does_not_spin_without_its_consumer(case: Case, lab: Lab, nc: nats.NATS) -> None:
    async with at_work(case, lab, nc) as worker:
        await nc.jetstream().delete_consumer(*case.consumer)
        process = psutil.Process(worker.process.pid)
        with suppress(psutil.NoSuchProcess):  # to end is as good
            before = sum(process.cpu_times()[:2])
            await asyncio.sleep(2)  # a measurement, not a wait
            assert sum(process.cpu_times()[:2]) - before < 0.6
        if not worker.alive:
            assert worker.exit_code


# service.py itself.


async def served(options: dict, subject: str) -> int:
    import asyncio

    from service import Service

    service = Service("served", deadline=0.5, grace=1.0)
    await service.connect(**options)

    async def handle(msg):
        word = msg.data.decode()
        if word == "cancelled":
            await cancelled()
        if word == "stuck":
            await asyncio.Event().wait()
        if word in loops:
            service.spawn(loops[word]())
        return b"x" * 2_000_000 if word == "huge" else word.upper().encode()

    async def fails():
        raise KeyError("a loop")

    async def cancelled():
        task = asyncio.create_task(asyncio.sleep(9))
        asyncio.get_running_loop().call_later(0.05, task.cancel)
        await task

    loops = {"loop": fails, "lost": cancelled}
    await service.answer(subject, handle)
    return await service.run()


@pytest.fixture
async def worker(lab: Lab, nc: nats.NATS) -> Worker:
    worker = lab.spawn(served, "served", lab.address, "served")
    await until(lambda: works(Case(0, "", good=("served", b"a")), nc), SECONDS, "the worker")
    return worker


async def test_each_failure_is_told_and_gives_its_slot_back(worker: Worker, nc: nats.NATS) -> None:
    """It has one slot: without it nothing after the first failure would be answered."""
    told = {}
    for word in (b"cancelled", b"stuck", b"huge", b"\xff", b"fine"):
        msg = await nc.request("served", word, timeout=5)
        told[word] = msg.data.decode() or msg.headers["Nats-Service-Error"]
    assert told == {
        b"cancelled": "cancelled",
        b"stuck": "TimeoutError",
        b"huge": "MaxPayloadError",
        b"\xff": "UnicodeDecodeError",
        b"fine": "FINE",
    }


@pytest.mark.parametrize(
    ("word", "told"), [(b"loop", "KeyError('a loop')"), (b"lost", "CancelledError()")]
)
async def test_a_task_that_fails_ends_the_service(
    worker: Worker, nc: nats.NATS, word: bytes, told: str
) -> None:
    assert (await nc.request("served", word, timeout=2)).data == word.upper()
    assert await ended(worker) == 1
    assert f"ended by {told}" in worker.log.read_text()


async def pulls(options: dict) -> int:
    import asyncio

    from service import Service

    service = Service("pulls", grace=30.0)
    nc = await service.connect(**options)
    sub = await nc.jetstream().pull_subscribe_bind("w", "PULLED")

    async def work():
        try:
            async with asyncio.timeout(0.2):
                await sub.fetch(1, timeout=20)
        except TimeoutError:
            await nc.publish("pulled", b"for a pull that nobody waits for any more")
            await nc.flush()
        raise KeyError("amount")

    service.spawn(work())
    return await service.run()


async def test_a_worker_that_pulls_and_fails_ends_at_once_and_says_why(
    lab: Lab, nc: nats.NATS
) -> None:
    """A drain would wait for what it has pulled and nobody reads: 30 s, all of its grace."""
    js = nc.jetstream()
    await js.add_stream(name="PULLED", subjects=["pulled"])
    await js.add_consumer("PULLED", durable_name="w")
    await settled(nc, "pulled", consumers=["PULLED.w"])
    worker = lab.spawn(pulls, "pulls", lab.address)
    assert await ended(worker) == 1
    assert worker.log.read_text().splitlines()[-1].endswith("ended by KeyError('amount')")


async def idle(options: dict) -> int:
    from service import Service

    service = Service("idle", grace=1.0)
    nc = await service.connect(**options)
    await nc.subscribe("idle.ask")  # what `nc.request` has, too: a subscription of the connection
    await nc.publish("idle.ready")
    return await service.run()


async def test_a_frozen_server_does_not_hold_up_the_end(lab: Lab, nc: nats.NATS) -> None:
    """nats-py's drain does not end when it is cancelled: it waits for the server, 10 s more."""
    ready = await measure.heard(nc, "idle.ready")
    other = next(node for node in lab.nodes if node != lab.node_of(nc))
    there = {**lab.address, "servers": lab.server_at(other)["servers"]}
    worker = lab.spawn(idle, "idle", there)
    await until(lambda: ready, SECONDS, "the worker")
    await lab.pause(other)
    worker.process.terminate()
    before = time.monotonic()
    assert await ended(worker) == 1
    assert time.monotonic() - before < 6, "it has one second"
    await lab.resume(other)


async def test_what_is_not_done_in_time_is_cancelled(worker: Worker, nc: nats.NATS) -> None:
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    for _ in range(20):
        await nc.publish("served", b"stuck", reply=inbox)
    await answers.next_msg(timeout=SECONDS)  # so they have come, through whichever server
    worker.process.terminate()
    assert await ended(worker) == 1, "20 times half a second is more than one second"


async def test_retry(
    lab: Lab, nc: nats.NATS, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(helpers.NOTEBOOKS)
    from service import retry

    caplog.set_level(logging.WARNING)
    calls: list[float] = []
    loop = asyncio.get_running_loop()

    async def nobody() -> None:
        calls.append(loop.time())
        await nc.request("nobody", b"", timeout=1)

    with pytest.raises(nats.errors.NoRespondersError):
        await retry(nc, nobody, nats.errors.NoRespondersError, deadline=1.0)
    assert 3 <= len(calls) <= 10
    pauses = [b - a for a, b in zip(calls, calls[1:], strict=False)]
    assert pauses[-1] > 2 * pauses[0], "they grow"
    for bad in (lambda: nc.publish("a b", b""), lambda: nc.publish("a", b"x" * 2_000_000)):
        calls.clear()

        async def once(bad=bad) -> None:
            calls.append(0)
            await bad()

        with pytest.raises(nats.errors.Error):
            await retry(nc, once, nats.errors.NoRespondersError, TimeoutError)
        assert len(calls) == 1, "what can never succeed comes out at once"


def taught(lesson: int, name: str) -> Callable[..., Awaitable[PubAck]]:
    """A coroutine function as a lesson writes it."""
    cells = [c.source for c in files.read(files.by_number(lesson)).cells if c.cell_type == "code"]
    imports = next(cell.partition("\n\nlab = ")[0] for cell in cells if cell.startswith("import "))
    (written,) = (cell for cell in cells if f"async def {name}(" in cell)
    names: dict[str, Any] = {}
    exec(f"{imports}\n{written}", names)  # noqa: S102
    return names[name]


@pytest.mark.parametrize(("lesson", "name"), [(2, "post"), (15, "publish")])
async def test_a_copy_that_meets_the_first_one_is_tried_again(
    lesson: int, name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first one waits for its quorum, the stream refuses the second: error 10158."""
    monkeypatch.syspath_prepend(helpers.NOTEBOOKS)
    clients = [await nats.connect(**{**lab.options, "servers": s}) for s in lab.options["servers"]]
    await clients[0].jetstream().add_stream(name="LINES", subjects=["lines"], num_replicas=3)
    leader = await lab.leader_of("LINES")
    (nc,) = (client for client in clients if lab.node_of(client) == leader)
    sender = nc if lesson == 15 else nc.jetstream()
    heard: list[bytes] = []

    async def spy(msg: nats.aio.msg.Msg) -> None:
        heard.append(msg.data)

    await nc.subscribe("_INBOX.>", cb=spy)
    others = [await lab.pause(node) for node in lab.nodes if node != leader]
    posting = asyncio.create_task(taught(lesson, name)(sender, "lines", b"tea?", "line-1"))
    await until(lambda: any(b"10158" in data for data in heard), 10, "the refusal")
    for paused in others:
        await lab.resume(paused.node)
    assert (await posting).seq == 1
    for client in clients:
        await client.close()


def test_lesson_03_shows_the_whole_file() -> None:
    """Its fences, one after the other, are service.py without what stands before the class."""
    source = Path(helpers.NOTEBOOKS / "service.py").read_text(encoding="utf-8")
    prose = "\n".join(
        c.source for c in files.read(files.by_number(3)).cells if c.cell_type == "markdown"
    )
    shown = prose.split("```python\n")[1:]
    parts = [part.partition("\n```")[0].strip() for part in shown]
    whole = source[source.index("class Service:") :]
    assert [part in whole for part in parts] == [True] * len(parts)
    assert "".join("".join(parts).split()) == "".join(whole.split()), "nothing is left out"
