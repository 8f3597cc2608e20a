"""How each worker of the lessons is started and asked: for each cell tagged `service`, one case.

`args` follow the options for the connection. Bad messages are thrown at the subjects in `poison`.
`good` is a request that is answered after them; a worker of a stream has `works` instead, and its
streams are made by `prepare`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.js.client import JetStreamContext


@dataclass(frozen=True)
class Case:
    """One worker."""

    lesson: int
    worker: str
    args: tuple[Any, ...] = ()
    poison: tuple[str, ...] = ()
    good: tuple[str, bytes] | None = None
    prepare: Callable[[JetStreamContext], Awaitable[None]] | None = None
    works: Callable[[Client], Awaitable[bool]] | None = None
    consumer: tuple[str, str] | None = None  # (stream, durable) that the worker fetches from

    def __str__(self) -> str:
        return f"{self.lesson:02}-{self.worker}"


async def trader_has_seen(nc: Client) -> bool:
    report = await nc.subscribe("stocks.seen.crowd")
    try:
        for _ in range(20):
            await nc.publish("stocks.AAPL", json.dumps({"at": time.monotonic()}).encode())
            if json.loads((await report.next_msg(timeout=1)).data):
                return True
    except TimeoutError:
        pass
    await report.unsubscribe()
    return False


CASES = [
    Case(3, "working_desk", ("d", "price.work"), ("price.work",), ("price.work", b"0")),
    Case(3, "freezing_desk", ("price.frozen",), ("price.frozen",), ("price.frozen", b"AAPL")),
    Case(
        *(4, "replica", ("search", "s0", "a", ["red lamp"])),
        ("search.shard.s0", "search.replica.s0.a"),
        ("search.shard.s0", b"lamp"),
    ),
    Case(
        *(5, "instance", ("inv-1", "inventory"), ("shop.inventory.stock",)),
        ("shop.inventory.stock", b"lamp"),
    ),
    Case(
        *(9, "owner", ("owner", "store")),
        ("store.set.bad", "store.incr.bad", "store.get.bad", "store.odd.bad"),
        ("store.set.good", b"0"),
    ),
    Case(
        *(11, "feed", ("stocks", ["AAPL", "MSFT"], 50.0)),
        ("stocks.last.AAPL", "stocks.last.NOPE"),
        ("stocks.last.AAPL", b""),
    ),
    Case(
        *(11, "traders", ("stocks", "crowd", ["AAPL", "*"], 0), ("stocks.AAPL",)),
        works=trader_has_seen,
    ),
]
