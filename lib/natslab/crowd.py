"""Many connections of one process, to see what each costs: for measuring, no service has them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import nats
import psutil
from nats.aio.client import Client
from nats.aio.msg import Msg

from natslab.clusters import server

if TYPE_CHECKING:
    from natslab.lab import Lab


def busy() -> float:
    """Seconds of processor time of the servers that this process has started, so far; 0 of others."""
    servers = [p for p in psutil.Process().children() if "nats-server" in p.name()]
    return float(sum(sum(p.cpu_times()[:2]) for p in servers))


async def memory(lab: Lab) -> int:
    """Bytes that all servers of the lab have in use; a server that does not answer has none."""
    pages = [f"{node.monitor}/varz" for node in lab.cluster.nodes.values()]
    return sum([(await server.ask(page) or {}).get("mem", 0) for page in pages])


class Crowd:
    """Connections made with `options`, each with one subscription: to the `subjects` in turn.

    >>> crowd = Crowd(options, ["tick.S000", "tick.S001"])
    >>> await crowd.grow(200)
    >>> crowd.used()         # what they cost, and what they got
    {'open': 200, 'ticks': 0, 'bytes': 7340032, 'seconds': 0.21}
    """

    def __init__(self, options: Mapping[str, Any], subjects: Iterable[str]) -> None:
        self.options, self.subjects = options, itertools.cycle(subjects)
        self.open: list[Client] = []
        self.ticks = 0
        self.told: list[str] = []  # to error_cb, each once
        self._me = psutil.Process()
        self._before = self._me.memory_info().rss, time.process_time()
        self._bytes = 0

    async def grow(self, wanted: int) -> None:
        """Connect, one after the other, until there are so many. Raises what `nats.connect` raises."""
        while len(self.open) < wanted:
            nc = await nats.connect(**{**self.options, "error_cb": self._on_error})
            self.open.append(nc)
            await nc.subscribe(next(self.subjects), cb=self._on_tick)
        # A subscription may wait in the client's buffer.
        await asyncio.gather(*(nc.flush() for nc in self.open))

    def used(self) -> dict[str, float]:
        """Connections that are open, messages they got, memory and processor time since the start."""
        with suppress(OSError):  # no file is left for a look: as before
            self._bytes = self._me.memory_info().rss - self._before[0]
        seconds = time.process_time() - self._before[1]
        counts = {"open": len(self.open), "ticks": self.ticks}
        return counts | {"bytes": self._bytes, "seconds": seconds}

    async def close(self) -> None:
        """Close them all."""
        await asyncio.gather(*(nc.close() for nc in self.open))

    async def _on_tick(self, _: Msg) -> None:
        self.ticks += 1

    async def _on_error(self, error: Exception) -> None:
        said = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
        if said not in self.told:
            self.told.append(said)
