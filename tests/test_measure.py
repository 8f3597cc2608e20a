"""The measuring helpers: right tables, honest percentiles, and next to no cost of their own."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import nats
import pytest
from natslab import Lab, measure, settled
from natslab.clusters.base import Event


def test_log() -> None:
    log = measure.Log()
    log("bob", "received", "b", at=log.start + 2)
    log("alice", "published", "a", at=log.start + 1)
    log("bob", "received", "a", at=log.start + 3)
    log.faults([Event(log.start - 1, "kill", "n1", 0.1), Event(log.start + 1.5, "kill", "n2", 0.1)])
    skipped = Event(log.start + 1.6, "kill", "n3", 0.0, shown=False)
    log.faults([None, skipped])  # drills that were skipped
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
    assert table.index.to_numpy().round(6).tolist() == [0, 0.1, 0.2, 0.3]
    assert table.round(6).tolist() == [20, 0, 0, 10]
    assert measure.rate([]).empty


def test_rate_counts_every_event() -> None:
    table = measure.rate([-0.25, 0.05], width=0.1)
    assert table.index.to_numpy().round(6).tolist() == [-0.3, -0.2, -0.1, 0]
    assert table.round(6).tolist() == [10, 0, 0, 10]
    assert (table * 0.1).sum() == pytest.approx(2)


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
    # The machine may stall a call or two of its own.
    assert 1 <= (closed.ms > 100).sum() <= 4
    assert 10 <= (open_.ms > 100).sum() <= 60, "20 calls were due in the first half of the stall"
    assert (open_.due.diff().dropna().round(6) == 0.005).all()


async def test_at_rate_blames_a_late_start_on_the_system() -> None:
    async def blocks(number: int) -> None:
        if number == 10:
            time.sleep(0.1)  # noqa: ASYNC251 (as a handler that blocks the whole loop does)

    calls = await measure.at_rate(blocks, rate=200, seconds=0.3)
    assert len(calls) == 60
    assert 10 <= (calls.ms > 40).sum() <= 45
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


async def test_one_after_the_other_a_call_begins_when_the_one_before_is_done() -> None:
    async def call(number: int) -> None:
        await asyncio.sleep(0.2 if number == 5 else 0)

    calls = await measure.one_by_one(call, 10)
    assert list(calls.columns) == ["due", "sent", "done", "ms", "error"]
    assert calls.sent[0] == 0
    assert calls.sent[1:].tolist() == calls.done[:-1].tolist()
    assert calls.ms.tolist() == pytest.approx(((calls.done - calls.sent) * 1000).tolist())
    assert calls.ms.idxmax() == 5 and calls.ms[5] >= 200
    assert (await measure.one_by_one(call, 0)).empty


async def test_throughput_counts_calls_and_hides_no_error() -> None:
    now, peak, numbers = 0, 0, []

    async def call(number: int) -> None:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        numbers.append(number)
        await asyncio.sleep(0.01)
        now -= 1

    start = time.perf_counter()
    rate = await measure.throughput(call, 20, 5)
    took = time.perf_counter() - start
    assert peak == 5 and sorted(numbers) == list(range(20))
    assert 20 / took <= rate <= 20 / (4 * 0.01)

    before = asyncio.all_tasks()

    async def fails(number: int) -> None:
        await asyncio.sleep(0.01)
        if number == 3:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await measure.throughput(fails, 100, 5)
    assert asyncio.all_tasks() == before, "nobody goes on"


async def test_throughput_lets_the_calls_under_way_end() -> None:
    begun, ended = [], []

    async def call(number: int) -> None:
        begun.append(number)
        await asyncio.sleep(0.05)
        ended.append(number)

    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.12):
            await measure.throughput(call, 1_000, 2)
    assert ended == begun == list(range(6))
    assert asyncio.all_tasks() == before


async def test_a_stall_counts_against_none_of_those_that_take_turns() -> None:
    rates, asked = {"slow": [1.0, 2.0, 3.0], "fast": [9.0, 0.1, 8.0]}, []

    async def rate(way: str) -> float:
        asked.append(way)
        return rates[way][asked.count(way) - 1]

    assert await measure.by_turns(rate, rates) == {"slow": 3.0, "fast": 9.0}
    assert asked == ["slow", "fast"] * 3


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
#
# The throughput of a measured loop, as a share of that of the bare loop, must be 0.97 or more. On a
# busy machine two runs of the *same* loop differ by more than that. So the cost of measuring is
# taken from calls that do nothing, thousands of which fit between two disturbances, and compared
# with the fastest real call that was ever seen, which makes the share smaller, not larger.


async def nothing(number: int) -> None:
    pass


async def bare(call: measure.Call, n: int, limit: int) -> float:
    """Seconds per call of what a reader would write without this library."""
    numbers = iter(range(n))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(limit)))
    return (time.perf_counter() - start) / n


async def measured(call: measure.Call, n: int, limit: int) -> float:
    """Seconds per call as the load maker reports them."""
    return 1 / measure.per_second(await measure.in_flight(call, n, limit))


async def counted(call: measure.Call, n: int, limit: int) -> float:
    """Seconds per call by the load maker that only counts."""
    return 1 / await measure.throughput(call, n, limit)


async def fastest(way: Callable[..., Awaitable[float]], *args: object, rounds: int) -> float:
    return min([await way(*args) for _ in range(rounds)])


def share(what: str, cost: float, real: float) -> float:
    ratio = real / (real + cost)
    print(f"{what}: {1e6 * cost:.2f} of {1e6 * real:.0f} µs, measured / bare = {ratio:.3f}")
    return ratio


@pytest.mark.parametrize("limit", [1, 100])
async def test_in_flight_is_as_fast_as_a_bare_loop(lab: Lab, limit: int) -> None:
    nc = await nats.connect(**lab.options)
    answerer = await nats.connect(**lab.same_server(nc))  # another one would learn of it later

    async def answer(msg: nats.aio.msg.Msg) -> None:
        await msg.respond(b"")

    await answerer.subscribe("ask", cb=answer)
    await settled(answerer)

    async def ask(number: int) -> None:
        await nc.request("ask", bytes(100), timeout=5)

    real = await fastest(bare, ask, 5 * limit, limit, rounds=30)
    cost = await fastest(measured, nothing, 1000, 1, rounds=100)
    cost -= await fastest(bare, nothing, 1000, 1, rounds=100)
    assert share(f"requests, {limit} in flight", cost, real) >= 0.97
    await nc.close()
    await answerer.close()


async def test_a_publish_loop_is_as_fast_when_it_is_measured(lab: Lab) -> None:
    """4,000 publishes of 100 B: under 5 % slower than a bare loop. `bench_measure.py` has pairs of both."""
    nc = await nats.connect(**lab.options)

    async def publish(number: int) -> None:
        await nc.publish("nobody.listens", bytes(100))

    real = 1.0
    for _ in range(30):
        real = min(real, await bare(publish, 4000, 1))
        await nc.flush()
    cost = await fastest(counted, nothing, 4000, 1, rounds=50)
    cost -= await fastest(bare, nothing, 4000, 1, rounds=50)
    assert share("publishes, counted", cost, real) >= 0.95
    cost = await fastest(measured, nothing, 4000, 1, rounds=50)
    cost -= await fastest(bare, nothing, 4000, 1, rounds=50)
    assert share("publishes, each noted", cost, real) >= 0.87, "0.80 with a coroutine per call"
    await nc.close()


async def test_a_log_slows_no_publisher_down(lab: Lab) -> None:
    """Publishes to a stream, each noted. (A bare core publish takes 3 µs: count those, do not log.)"""
    nc = await nats.connect(**lab.options)
    js = nc.jetstream()
    await js.add_stream(name="NOTED", subjects=["noted"], num_replicas=3)
    await settled(nc, "noted")

    async def publish(number: int) -> None:
        await js.publish("noted", bytes(100))

    async def note(number: int) -> None:
        log("producer", "accepted", number)

    log = measure.Log()
    real = await fastest(bare, publish, 500, 50, rounds=20)
    cost = await fastest(bare, note, 1000, 1, rounds=100)
    cost -= await fastest(bare, nothing, 1000, 1, rounds=100)
    assert share("publishes to a stream", cost, real) >= 0.97
    assert len(log.rows) == 100_000
    await nc.close()
