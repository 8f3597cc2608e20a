"""Record what happened and when; make load; turn both into tables.

Times are `time.monotonic()`: on Linux and macOS it is one clock for all processes of a machine, so
a worker process can stamp an event and the notebook can draw it on its own axis.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from nats.aio.client import Client
from nats.aio.msg import Msg

from natslab.check import settled, until
from natslab.clusters.base import Event
from natslab.tasks import by_itself, together

Call = Callable[[int], Awaitable[Any]]  # the number of the call -> what to do

QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


@dataclass(frozen=True)
class Heard:
    """A message that came at monotonic time `at`."""

    at: float
    subject: str
    data: bytes
    headers: dict[str, str]

    @property
    def text(self) -> str:
        """The data as text; what is not UTF-8 in it shows as �."""
        return self.data.decode(errors="replace")


async def heard(nc: Client, subject: str) -> list[Heard]:
    """A list that grows with what comes on `subject`, for as long as `nc` is open.

    For what workers say about themselves, who is ready and what is done:

    >>> ready = await measure.heard(nc, "price.ready")
    >>> await until(lambda: len(ready) == 3, timeout=15, what="three desks")
    """
    came: list[Heard] = []

    async def note(msg: Msg) -> None:
        came.append(Heard(time.monotonic(), msg.subject, msg.data, dict(msg.headers or {})))

    await nc.subscribe(subject, cb=note)
    await settled(nc)
    return came


@dataclass(frozen=True)
class Stored:
    """A message as a stream has it. Two are equal if these three are."""

    sequence: int
    subject: str
    data: bytes


async def stored(nc: Client, stream: str, timeout: float = 30.0) -> list[Stored]:
    """All that `stream` has now, in order; by a consumer that is gone afterwards.

    Raises TimeoutError when the last message has not come within `timeout` seconds.
    """
    js, rows, done = nc.jetstream(), list[Stored](), asyncio.Event()
    state = (await js.stream_info(stream)).state

    async def note(msg: Msg) -> None:
        rows.append(Stored(msg.metadata.sequence.stream, msg.subject, msg.data))
        # Not when nothing is pending: a replica that has just come back does not know what it lacks.
        if rows[-1].sequence >= state.last_seq or len(rows) >= state.messages:
            done.set()

    if state.messages == 0:
        return rows
    sub = await js.subscribe(">", stream=stream, ordered_consumer=True, cb=note)
    try:
        await until(done.is_set, timeout, f"the last message of {stream}")
    finally:
        await sub.unsubscribe()
    return [row for row in rows if row.sequence <= state.last_seq]


class Log:
    """What happened, who did it, to which message, and when: one row per event.

    >>> log = measure.Log()
    >>> log("alice", "published", "order 7")
    >>> log.table()          # columns: t (seconds since the log began), who, what, key
    """

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.rows: list[tuple[float, str, str, Any]] = []

    def __call__(self, who: str, what: str, key: Any = None, at: float | None = None) -> None:
        """Note an event now, or `at` a monotonic time."""
        self.rows.append((time.monotonic() if at is None else at, who, what, key))

    def faults(self, events: Iterable[Event | None]) -> None:
        """Add what a lab did to its nodes (`lab.events`).

        Left out are events before the log began, and drills that were skipped: those are false.
        """
        for event in events:
            if event and event.at >= self.start:
                self(event.node, event.verb, None, event.at)

    def table(self) -> pd.DataFrame:
        """All rows in order of time, t in seconds since the log began."""
        table = pd.DataFrame(self.rows, columns=["t", "who", "what", "key"])
        return table.assign(t=table.t - self.start).sort_values("t", ignore_index=True)

    def count(self, what: str) -> int:
        """How many events of this kind there are."""
        return sum(row[2] == what for row in self.rows)

    def keys(self, what: str) -> list[Any]:
        """The keys of the events of this kind, in the order they were noted."""
        return [row[3] for row in self.rows if row[2] == what]


def rate(times: Iterable[float], width: float = 0.1) -> pd.Series[float]:
    """Events per second in windows of `width` seconds, by the second at which a window starts.

    Windows without events are there with 0: a gap must be seen. The first window starts at 0, or
    earlier when there are events before 0: every event is counted.
    """
    slots = (pd.Series(list(times), dtype=float) // width).astype(int)
    counts = slots.value_counts()
    first = min(0, int(counts.index.min())) if len(counts) else 0
    last = int(counts.index.max()) if len(counts) else -1
    full = counts.reindex(range(first, last + 1), fill_value=0)
    return pd.Series(full.to_numpy() / width, full.index * width)


def longest_gap(times: Iterable[float]) -> tuple[float, float]:
    """(start, length) in seconds of the longest time between two neighbouring events.

    Raises ValueError when there are fewer than two.
    """
    ordered = sorted(times)
    if len(ordered) < 2:
        raise ValueError("a gap lies between two events; there are fewer")
    length, start = max((b - a, a) for a, b in zip(ordered, ordered[1:], strict=False))
    return start, length


def percentiles(ms: Iterable[float]) -> pd.Series[float]:
    """p50, p90, p99, p99.9 and the maximum of latencies, in the unit that they came in."""
    values = pd.Series(list(ms), dtype=float)
    return pd.Series({name: values.quantile(q) for name, q in QUANTILES.items()})


def per_second(calls: pd.DataFrame) -> float:
    """Completed calls per second of a table made by one of the load makers below."""
    good = calls[calls.error == ""]
    return len(good) / float(calls.done.max() - calls.sent.min())


async def throughput(call: Call, n: int, limit: int = 1) -> float:
    """Calls per second of `n` calls, up to `limit` under way at once: the rate of a bare loop.

    For calls of a few microseconds, a core publish for one: it reads the clock twice in all. On two
    cores, 4,000 publishes of 100 B were 1 % slower with it than in a `for` loop, and 3 to 8 % with
    `one_by_one`, which notes when each was done (`tests/bench_measure.py`). Raises what a call raises.
    An interrupt waits for the calls under way: nats-py 2.16 does not outlive a `flush` cut short.
    """
    numbers = iter(range(n))

    async def caller() -> tuple[float, float]:
        start = time.perf_counter()
        for number in numbers:
            await call(number)
        # Before the event loop takes over: it sends what the client has buffered.
        return start, time.perf_counter()

    calls = by_itself(together(caller() for _ in range(limit)))
    try:
        await asyncio.wait([calls])
    finally:
        deque(numbers, maxlen=0)  # an interrupt leaves nothing to call
        await asyncio.wait([calls], timeout=5)
        calls.cancel()
    spans = await calls
    return n / (max(end for _, end in spans) - min(start for start, _ in spans))


async def by_turns[Way](
    rate: Callable[[Way], Awaitable[float]], ways: Iterable[Way], rounds: int = 3
) -> dict[Way, float]:
    """The best rate of each way, of `rounds` that were measured by turns.

    So all ways meet the same machine, and a moment in which it does something else counts for none.
    """
    best = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for way in best:
            best[way] = max(best[way], await rate(way))
    return best


async def one_by_one(call: Call, n: int) -> pd.DataFrame:
    """Await `call(0)`, then `call(1)` … `call(n - 1)`: what a plain loop does. Columns as `at_rate`."""
    return await in_flight(call, n, 1)


async def in_flight(call: Call, n: int, limit: int) -> pd.DataFrame:
    """Make `n` calls with up to `limit` under way at once. Columns as `at_rate`.

    A closed loop: it sends the next call when one comes back, so a slow system is asked less. Where
    only the rate is asked for, `throughput` costs less.
    """
    rows: list[tuple[float, float, float, str]] = []
    numbers = iter(range(n))

    async def caller() -> None:
        clock = time.perf_counter
        # One look at the clock ends a call and begins the next: nothing lies between the two.
        times = [clock()]
        note = times.append
        errors: dict[int, str] = {}
        for number in numbers:
            try:
                await call(number)
            except Exception as failure:  # it is the measurement: see the column `error`
                errors[len(times) - 1] = type(failure).__name__
            note(clock())
        for i, (sent, done) in enumerate(itertools.pairwise(times)):
            rows.append((sent, sent, done, errors.get(i, "")))

    await together(caller() for _ in range(limit))
    return _calls(rows)


async def at_rate(call: Call, rate: float, seconds: float) -> pd.DataFrame:
    """Start `rate` calls per second for `seconds`, however slow the answers are.

    Columns: due, sent, done (seconds since the start), ms, error (name of the exception or "").
    `ms` runs from the time a call was *due*: when the system stalls, the calls that should have
    been sent meanwhile count as slow too. A loop that waits for each answer leaves them out and
    reports a stall as one slow call ("coordinated omission", Gil Tene, HdrHistogram).
    """
    rows: list[tuple[float, float, float, str]] = []
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            due = start + number / rate
            wait = due - time.perf_counter()
            # A loop behind its schedule still lets the answers in.
            await asyncio.sleep(max(0.0, wait))
            group.create_task(_noted(call, number, due, time.perf_counter(), rows))
    return _calls(rows)


async def _noted(
    call: Call, number: int, due: float, sent: float, rows: list[tuple[float, float, float, str]]
) -> None:
    error = ""
    try:
        await call(number)
    except Exception as failure:  # whatever it is, it is the measurement: see the column `error`
        error = type(failure).__name__
    rows.append((due, sent, time.perf_counter(), error))


def _calls(rows: list[tuple[float, float, float, str]]) -> pd.DataFrame:
    calls = pd.DataFrame(rows, columns=["due", "sent", "done", "error"])
    start = calls.due.min()
    calls = calls.assign(ms=(calls.done - calls.due) * 1000.0)
    calls[["due", "sent", "done"]] -= start
    return calls[["due", "sent", "done", "ms", "error"]].sort_values("due", ignore_index=True)
