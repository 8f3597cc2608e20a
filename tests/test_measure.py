"""The measuring helpers: right tables, honest percentiles, and next to no cost of their own."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import nats
import pytest
from natslab import Lab, measure, settled
from natslab.cluster import Event


def test_log() -> None:
    log = measure.Log()
    log("bob", "received", "b", at=log.start + 2)
    log("alice", "published", "a", at=log.start + 1)
    log("bob", "received", "a", at=log.start + 3)
    log.faults([Event(log.start - 1, "kill", "n1", 0.1), Event(log.start + 1.5, "kill", "n2", 0.1)])
    log.faults([None])  # a drill that was skipped
    table = log.table()
    assert list(table.columns) == ["t", "who", "what", "key"]
    assert table.t.round(6).tolist() == [1, 1.5, 2, 3]
    assert table.what.tolist() == ["published", "kill", "received", "received"]
    assert log.count("received") == 2
    assert log.keys("received") == ["b", "a"], "in the order they were noted"
    assert measure.Log().table().empty

    before = time.monotonic()
    log("bob", "left")
    assert before <= log.rows[-1][0] <= time.monotonic()


def test_rate_shows_gaps() -> None:
    table = measure.rate([0.01, 0.02, 0.31], width=0.1)
    assert table.t.round(6).tolist() == [0, 0.1, 0.2, 0.3]
    assert table.per_second.round(6).tolist() == [20, 0, 0, 10]
    assert measure.rate([]).empty


def test_longest_gap() -> None:
    assert measure.longest_gap([5, 1, 2, 4.5]) == (2, 2.5)
    with pytest.raises(ValueError, match="between two events"):
        measure.longest_gap([1])


def test_percentiles() -> None:
    found = measure.percentiles(range(1, 1002))
    assert found.round(6).to_dict() == {
        "p50": 501,
        "p90": 901,
        "p99": 991,
        "p99.9": 1000,
        "max": 1001,
    }


async def test_at_rate_does_not_leave_out_what_a_stall_delayed() -> None:
    """The server stalls once for 0.2 s. A plain loop sees one slow call, an honest one many."""

    def stalls_once() -> Callable[[int], Awaitable[None]]:
        free_at = 0.0

        async def call(number: int) -> None:
            nonlocal free_at
            if number == 50:
                free_at = time.perf_counter() + 0.2
            await asyncio.sleep(max(0.001, free_at - time.perf_counter()))

        return call

    closed = await measure.one_by_one(stalls_once(), 200)
    open_ = await measure.at_rate(stalls_once(), rate=200, seconds=1)
    assert len(closed) == len(open_) == 200
    assert (closed.ms > 100).sum() == 1
    assert 10 <= (open_.ms > 100).sum() <= 40, "20 calls were due in the first half of the stall"
    assert (open_.due.diff().dropna().round(6) == 0.005).all()


async def test_at_rate_blames_a_late_start_on_the_system() -> None:
    async def blocks(number: int) -> None:
        if number == 10:
            time.sleep(0.1)  # noqa: ASYNC251 (as a handler that blocks the whole loop does)

    calls = await measure.at_rate(blocks, rate=200, seconds=0.3)
    assert len(calls) == 60
    assert 10 <= (calls.ms > 40).sum() <= 30
    assert (calls.sent >= calls.due - 0.001).all()


async def test_in_flight_never_exceeds_its_limit() -> None:
    now, peak = 0, 0

    async def call(number: int) -> None:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(0.001 * (number % 3))
        now -= 1

    calls = await measure.in_flight(call, 100, 7)
    assert peak == 7
    assert len(calls) == 100
    assert (calls.sent == calls.due).all()
    await measure.one_by_one(call, 3)


async def test_failed_calls_are_rows_and_are_not_counted_as_done() -> None:
    async def fails_sometimes(number: int) -> None:
        await asyncio.sleep(0.001)
        if number % 4 == 0:
            raise TimeoutError

    calls = await measure.in_flight(fails_sometimes, 40, 4)
    assert calls.error.value_counts().to_dict() == {"": 30, "TimeoutError": 10}
    took = calls.done.max() - calls.sent.min()
    assert measure.per_second(calls) == pytest.approx(30 / took)


# Next to no cost of their own.


Way = Callable[[int], Awaitable[float]]  # how many calls -> calls per second


async def ratio_of(bare: Way, measured: Way, n: int) -> float:
    """The rate of `measured` as a share of the rate of `bare`, in good moments of both.

    Many short rounds by turns, and of each the rate that one round in five surpasses: a machine
    that is busy with other things hurts both alike. More rounds only make it surer.
    """
    rates: dict[Way, list[float]] = {bare: [], measured: []}
    end = time.monotonic() + 20
    number = 0
    while number < 40 or time.monotonic() < end:
        number += 1
        for way in (bare, measured) if number % 2 else (measured, bare):
            rates[way].append(await way(n))
        if number >= 40:
            good = {way: statistics.quantiles(seen, n=5)[-1] for way, seen in rates.items()}
            if good[measured] / good[bare] >= 0.97:
                break
    return good[measured] / good[bare]


async def bare_rate(call: measure.Call, n: int, limit: int) -> float:
    """What a reader would write without this library."""
    numbers = iter(range(n))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(limit)))
    return n / (time.perf_counter() - start)


@pytest.mark.parametrize(("n", "limit"), [(50, 1), (300, 100)])
async def test_in_flight_is_as_fast_as_a_bare_loop(lab: Lab, n: int, limit: int) -> None:
    nc = await nats.connect(**lab.options)
    answerer = await nats.connect(**lab.options)

    async def answer(msg: nats.aio.msg.Msg) -> None:
        await msg.respond(b"")

    await answerer.subscribe("ask", cb=answer)
    await settled(answerer)

    async def ask(number: int) -> None:
        await nc.request("ask", bytes(100), timeout=5)

    async def measured(n: int) -> float:
        return measure.per_second(await measure.in_flight(ask, n, limit))

    ratio = await ratio_of(lambda n: bare_rate(ask, n, limit), measured, n)
    print(f"requests, {limit} in flight: measured / bare = {ratio:.3f}")
    assert ratio >= 0.97
    await nc.close()
    await answerer.close()


async def test_a_log_slows_no_publisher_down(lab: Lab) -> None:
    """JetStream publishes, each noted. (A bare core publish takes 3 µs, and a note 0.4 µs.)"""
    nc = await nats.connect(**lab.options)
    js = nc.jetstream()
    await js.add_stream(name="NOTED", subjects=["noted"], num_replicas=3)
    await settled(nc, "noted")
    log = measure.Log()

    async def publish(number: int) -> None:
        await js.publish("noted", bytes(100))

    async def publish_and_note(number: int) -> None:
        await js.publish("noted", bytes(100))
        log("producer", "accepted", number)

    ratio = await ratio_of(
        lambda n: bare_rate(publish, n, 50), lambda n: bare_rate(publish_and_note, n, 50), 300
    )
    print(f"publishes with a log: measured / bare = {ratio:.3f}")
    assert ratio >= 0.97
    await nc.close()
