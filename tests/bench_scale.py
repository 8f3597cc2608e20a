"""What lessons 20 and 23 rest on, in numbers: run by hand, `python tests/bench_scale.py [part …]`.

Parts are record, fan_out, connections, regions and promotion; without a name all are run. Two
ratios have a gate, and the exit code is 1 when one is missed; the rest is told beside what is good.
"""

import asyncio
import itertools
import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass

import nats
from nats.js.api import ExternalStream, StreamSource
from nats.js.errors import NoStreamResponseError
from natslab import Lab, batches, measure, settled, until

SIZE, MANY_MESSAGES = bytes(100), 20_000
CROWD = 1_000  # connections that one process holds for the fan-out
MANY, PROCESSES = 5_000, 4


@dataclass(frozen=True)
class Row:
    """One line of the table. `ok` is None where there is no gate."""

    what: str
    value: str
    wanted: str
    ok: bool | None = None


# ---- recording -----------------------------------------------------------------------------


async def record() -> list[Row]:
    """Messages of 100 B a second into a stream with three replicas: the best of three rounds."""
    lab = await Lab.start(kind="embedded", quiet=True)
    nc = await nats.connect(**lab.options)
    js = nc.jetstream()
    await js.add_stream(
        name="BENCH", subjects=["bench"], num_replicas=3, allow_atomic=True, allow_batched=True
    )
    await settled(nc, "bench")

    async def publish(_: int) -> None:
        await js.publish("bench", SIZE)

    async def batch(_: int) -> None:
        await batches.atomic(nc, "bench", [SIZE] * batches.MOST)

    async def flood(_: int) -> None:
        await batches.fast(nc, "bench", [SIZE] * MANY_MESSAGES)

    # What to call, how often, how many at once, and how many messages one call stores.
    ways = {
        "await each": (publish, 2_000, 1, 1),
        "1,000 in flight": (publish, MANY_MESSAGES, 1_000, 1),
        "atomic batches of 1,000": (batch, MANY_MESSAGES // batches.MOST, 1, batches.MOST),
        "fast batch": (flood, 1, 1, MANY_MESSAGES),
    }

    async def rate(way: str) -> float:
        call, n, limit, stores = ways[way]
        calls = await measure.throughput(call, n, limit)
        await js.purge_stream("BENCH")
        return stores * calls

    rates = await measure.by_turns(rate, ways)
    await nc.close()
    await lab.close(quiet=True)
    best = max(rates, key=rates.__getitem__)
    ratio = rates[best] / rates["await each"]
    told = [Row(f"record on R3, {way}", f"{rates[way]:,.0f} a second", "") for way in ways]
    return [*told, Row(f"{best} / await each", f"{ratio:.1f}", "at least 15", ratio >= 15)]


# ---- many connections ----------------------------------------------------------------------


async def fan_out() -> list[Row]:
    """Each of 100 messages to 1,000 connections, counted only, or with its delay noted as well."""
    spare_files()
    lab = await Lab.start(kind="embedded", quiet=True)
    nc = await nats.connect(**lab.options)
    came, delays, notes = itertools.count(1), [], False
    heard = 0

    async def on_tick(msg) -> None:
        nonlocal heard
        heard = next(came)
        if notes:
            delays.append(time.monotonic() - float(msg.data))

    crowd = [
        client
        for _ in range(CROWD // 100)
        for client in await asyncio.gather(*(nats.connect(**lab.options) for _ in range(100)))
    ]
    for client in crowd:
        await client.subscribe("tick", cb=on_tick)
    await asyncio.gather(*map(settled, crowd))

    async def rate(noted: bool) -> float:
        nonlocal notes
        notes, goal = noted, heard + 100 * CROWD
        began = time.perf_counter()
        for _ in range(100):
            await nc.publish("tick", b"%f" % time.monotonic())
            await nc.flush()
        await until(lambda: heard >= goal, 60, what="all deliveries")
        return 100 * CROWD / (time.perf_counter() - began)

    rates = await measure.by_turns(rate, (False, True), rounds=5)
    for client in [nc, *crowd]:
        await client.close()
    await lab.close(quiet=True)
    ratio = rates[True] / rates[False]
    told = f"{rates[True]:,.0f} and {rates[False]:,.0f} deliveries a second"
    return [
        Row("fan-out to 1,000 connections, delays noted and not", told, ""),
        Row("noted / not noted", f"{ratio:.2f}", "at least 0.8", ratio >= 0.8),
    ]


async def hold(options: dict, n: int, subject: str) -> None:
    """In a process of its own: `n` connections, and what they cost."""
    import asyncio
    import json
    import resource
    import time

    import nats
    from natslab.crowd import Crowd

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    nc = await nats.connect(**options)
    go = await nc.subscribe(f"{subject}.go")
    await nc.flush()
    await nc.publish(f"{subject}.ready", b"")
    await go.next_msg(timeout=60)
    began, crowd = time.monotonic(), Crowd(options, [f"{subject}.tick"])
    await crowd.grow(n)
    told = {"began": began, "done": time.monotonic(), "kib": crowd.used()["bytes"] / 1024 / n}
    await nc.publish(f"{subject}.done", json.dumps(told).encode())
    await nc.flush()
    await asyncio.Event().wait()


async def connections() -> list[Row]:
    """5,000 connections from four processes: seconds until the last one is made, and memory."""
    spare_files()
    lab = await Lab.start(kind="embedded", quiet=True)
    nc = await nats.connect(**lab.options)
    ready, done = await measure.heard(nc, "held.ready"), await measure.heard(nc, "held.done")
    for number in range(PROCESSES):
        lab.spawn(hold, f"holder-{number}", lab.address, MANY // PROCESSES, "held")
    await until(lambda: len(ready) == PROCESSES, 30, what="the processes")
    await nc.publish("held.go", b"")
    await until(lambda: len(done) == PROCESSES, 120, what="all connections")
    told = [json.loads(each.data) for each in done]
    seconds = max(one["done"] for one in told) - min(one["began"] for one in told)
    kib = statistics.mean(one["kib"] for one in told)
    await nc.close()
    await lab.close(quiet=True)
    return [
        Row(f"{MANY:,} connections made", f"{seconds:.1f} s", "10 s is good"),
        Row("memory of one in its client", f"{kib:.0f} KiB", "60 KiB is good"),
    ]


def spare_files() -> None:
    """As many open files as this machine allows: a connection is one, here and in its server."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# ---- regions -------------------------------------------------------------------------------


async def regions() -> list[Row]:
    """Two regions of three nodes: from nothing to a link that carries messages."""
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        lab = await Lab.start(kind="embedded", regions={"us-east": 3, "eu-west": 3}, quiet=True)
        seconds.append(time.perf_counter() - began)
        await lab.close(quiet=True)
    told = f"{statistics.median(seconds):.1f} s, the slowest {max(seconds):.1f} s"
    return [Row("a region pair ready, median of 10", told, "2.5 s is good")]


async def promotion() -> list[Row]:
    """us-east is killed: from the update of the mirror in eu-west to its first PubAck."""
    seconds = []
    for _ in range(5):
        lab = await Lab.start(kind="embedded", regions={"us-east": 3, "eu-west": 3}, quiet=True)
        us, eu = [await nats.connect(**place.options) for place in lab.regions.values()]
        await us.jetstream().add_stream(name="PAY", subjects=["pay"], num_replicas=3)
        await settled(us, "pay")
        origin = StreamSource(name="PAY", external=ExternalStream(api="$JS.us-east.API"))
        js = eu.jetstream()
        await js.add_stream(name="PAY", mirror=origin, num_replicas=3)
        await us.jetstream().publish("pay", b"")

        async def copied() -> bool:
            return (await js.stream_info("PAY")).state.messages == 1  # noqa: B023 (awaited here)

        await until(copied, 20, what="the copy")
        await us.close()
        await asyncio.gather(*(lab.kill(node) for node in lab.regions["us-east"].nodes))
        began = time.perf_counter()
        config = (await js.stream_info("PAY")).config
        await js.update_stream(config.evolve(mirror=None, subjects=["pay"]))
        while True:
            try:
                await js.publish("pay", b"", timeout=1)
                break
            except NoStreamResponseError:
                await asyncio.sleep(0.001)
        seconds.append(time.perf_counter() - began)
        await eu.close()
        await lab.close(quiet=True)
    told = f"{statistics.median(seconds):.3f} s, the slowest {max(seconds):.3f} s"
    return [Row("a mirror promoted: first ack, median of 5", told, "0.1 s is good")]


PARTS = {part.__name__: part for part in (record, fan_out, connections, regions, promotion)}


async def main(parts: list[str]) -> int:
    missed = False
    for part in parts or PARTS:
        for row in await PARTS[part]():
            verdict = "" if row.ok is None else "  ok" if row.ok else "  MISSED"
            print(f"{row.what:52} {row.value:45} {row.wanted}{verdict}", flush=True)
            missed |= row.ok is False
    return int(missed)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
