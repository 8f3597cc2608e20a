"""The link between two regions, and what a drill can do to it."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import nats.errors
from nats.aio.msg import Msg

from natslab.check import until
from natslab.clusters import keeper, relay, server
from natslab.clusters.base import Event
from natslab.clusters.connect import connected
from natslab.clusters.plan import Plan
from natslab.errors import LabError

SEEN_WITHIN = 20.0  # seconds in which a verb must have its effect
LINKED_WITHIN = 15.0  # seconds until the links between ready regions carry messages
SILENCE = 0.3  # seconds without an answer, above the delay, that count as silence

Doors = Mapping[str, Mapping[int, str]]  # link -> port of the relay -> address it leads to


class Sets(Protocol):
    """A relay that can be told what a link shall be."""

    async def set(self, wish: Mapping[str, Any]) -> None:
        """Send `wish` and wait until it holds. Raises LabError when the relay is gone."""


class Relay:
    """The process that all links of a lab go through; see `relay`."""

    def __init__(self, folder: Path, doors: Doors) -> None:
        """Start it on this machine."""
        table = folder / "links.json"
        table.write_text(json.dumps(doors))
        with (folder / "links.log").open("ab") as log:
            self.process = subprocess.Popen(
                # Without its site: nothing of ours to look for.
                [sys.executable, "-I", "-S", relay.__file__, "127.0.0.1", table],
                env=keeper.environment(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,  # nothing is left in a buffer when the relay dies
                start_new_session=True,  # "interrupt kernel" signals the whole group of the kernel
            )
        self._log = folder / "links.log"
        self._one_at_a_time = asyncio.Lock()
        self._open = False

    async def opens(self) -> None:
        """Wait until all its doors are open. Raises LabError when they cannot be."""
        async with self._one_at_a_time:
            if not self._open:
                await self._answer()
                self._open = True

    async def set(self, wish: Mapping[str, Any]) -> None:
        """Send `wish` and wait until it holds. Raises LabError when the relay is gone."""
        assert self.process.stdin is not None
        async with self._one_at_a_time:
            if self.process.poll() is None:
                with suppress(BrokenPipeError):  # it ends at this moment
                    self.process.stdin.write(json.dumps(wish).encode() + b"\n")
            await self._answer()

    async def _answer(self) -> None:
        assert self.process.stdout is not None
        line = b""
        if not self.process.stdout.closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(SEEN_WITHIN):
                    line = await asyncio.to_thread(self.process.stdout.readline)
        if not line:
            words = [""]
            with suppress(FileNotFoundError):
                words += self._log.read_text(errors="replace").strip().splitlines()
            raise LabError(
                f"The relay between the regions is gone ({words[-1] or 'it said nothing'}): "
                "run the set-up cell again."
            )

    def end(self) -> None:
        """End the process and give its pipes back."""
        self.process.kill()
        self.process.wait(5)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass(frozen=True)
class Side:
    """One end of a link: the options for `nats.connect` there, and node -> monitoring address."""

    region: str
    options: dict[str, Any]
    monitors: dict[str, str]


@dataclass
class Link:
    """The leaf link by which `outer` hangs on `hub`.

    Each verb returns when its effect has been *observed* on both sides and notes an event whose
    node is the name of the link, such as `us-east/eu-west`. Raises LabError when it is not in time.
    """

    hub: Side
    outer: Side
    relay: Sets
    events: list[Event] = field(default_factory=list)
    up: bool = True
    frozen: bool = False
    ms: float = 0.0

    @property
    def name(self) -> str:
        """Both regions."""
        return f"{self.hub.region}/{self.outer.region}"

    async def delay(self, ms: float) -> Event:
        """Let everything take `ms` milliseconds each way, and see that a round trip takes twice that."""
        if not 0 <= ms <= 10_000:
            raise LabError(f"A link is delayed by 0 to 10,000 ms each way, not {ms}.")

        async def slow() -> bool:
            return (await self.round_trip()) * 1000 >= 2 * ms

        return await self._do("delay", slow if self._passes() else None, ms=ms)

    async def cut(self) -> Event:
        """Reset the link and refuse it from now on: both sides know at once."""
        return await self._do("cut", self.is_down, up=False)

    async def freeze(self) -> Event:
        """Let nothing through, and tell nobody: the connections stay open."""
        async with self._asking() as ask:
            if self._passes():
                await until(partial(_answers, ask, 1.0), SEEN_WITHIN, self._what("freeze"))
            patience = SILENCE + 2 * self.ms / 1000

            async def silent() -> bool:
                return not await _answers(ask, patience)

            return await self._do("freeze", silent, frozen=True)

    async def heal(self) -> Event:
        """Undo a cut or a freeze, and see that messages pass both ways. A delay stays."""
        return await self._do("heal", self.is_up, up=True, frozen=False)

    async def reset(self) -> None:
        """Let everything pass at once, whatever was done to it. Raises LabError without a relay."""
        self.up, self.frozen, self.ms = True, False, 0.0
        await self.relay.set(self._wish())

    async def is_up(self) -> bool:
        """`/leafz` of every node of the outer region shows the link, the hub's too, and messages pass."""
        if not await self._shown():
            return False
        try:
            await self.round_trip(1.0 + 2 * self.ms / 1000)
        except LabError:
            return False
        return True

    async def stands(self, timeout: float = LINKED_WITHIN) -> None:
        """Wait until it is up. Raises LabError when it is not in time."""
        try:
            await until(self.is_up, timeout)
        except TimeoutError:
            raise LabError(
                f"The regions are ready, the link {self.name} is not: run this cell again."
            ) from None

    async def is_down(self) -> bool:
        """`/leafz` of no node shows the link."""
        outer, hub = await self._leafs()
        return not any(outer.values()) and not any(hub.values())

    async def round_trip(self, timeout: float = SEEN_WITHIN) -> float:
        """Seconds that a request from the hub to the outer region and its answer take."""
        async with self._asking() as ask:
            what = f"an answer over the link {self.name}"
            try:
                await until(partial(_answers, ask, timeout), timeout, what)
                began = time.monotonic()
                await ask(timeout)
            except (TimeoutError, nats.errors.NoRespondersError):
                raise LabError(f"Waited {timeout:g} s for {what}.") from None
            return time.monotonic() - began

    def is_whole(self) -> bool:
        """Nothing was done to it, or it is undone."""
        return self._passes() and self.ms == 0

    def _passes(self) -> bool:
        return self.up and not self.frozen

    def _what(self, verb: str) -> str:
        return f"{verb}: no effect seen on link {self.name} in {SEEN_WITHIN:g} s"

    async def _do(
        self, verb: str, seen: Callable[[], Awaitable[bool]] | None, **changed: Any
    ) -> Event:
        asked = time.monotonic()
        for name, value in changed.items():
            setattr(self, name, value)
        await self.relay.set(self._wish())
        if seen is not None:
            try:
                await until(seen, SEEN_WITHIN, self._what(verb))
            except TimeoutError:
                raise LabError(self._what(verb)) from None
        event = Event(time.monotonic(), verb, self.name, time.monotonic() - asked)
        self.events.append(event)
        return event

    async def _shown(self) -> bool:
        outer, hub = await self._leafs()
        # A node that does not run has no leaf; one that runs must have its own.
        linked = {name for leafs in hub.values() for name in leafs}
        running = {node for node, leafs in outer.items() if leafs is not None}
        return bool(running) and all(outer[node] for node in running) and running <= linked

    async def _leafs(self) -> tuple[dict[str, list[str] | None], dict[str, set[str]]]:
        """For every outer node the leafs that it has, None when it does not answer; and per node of
        the hub the outer nodes that it has as leafs.
        """
        outer, hub = await asyncio.gather(_leafz(self.outer.monitors), _leafz(self.hub.monitors))
        near = {node: {*(leafs or ())} & {*self.outer.monitors} for node, leafs in hub.items()}
        return outer, near

    def _wish(self) -> dict[str, Any]:
        delay = self.ms / 1000
        return {"link": self.outer.region, "up": self.up, "frozen": self.frozen, "delay": delay}

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[Callable[[float], Awaitable[Msg]]]:
        """A request from the hub that somebody in the outer region answers."""
        subject = f"natslab.link.{random.getrandbits(48):x}"

        async def answer(msg: Msg) -> None:
            await msg.respond(b"")

        async with connected(self.outer.options) as there, connected(self.hub.options) as here:
            await there.subscribe(subject, cb=answer)
            await there.flush()

            async def ask(timeout: float) -> Msg:
                return await here.request(subject, b"", timeout=timeout)

            yield ask


def links_between(
    plan: Plan, regions: Mapping[str, dict[str, Any]], relay: Sets, events: list[Event]
) -> dict[str, Link]:
    """The links of a plan by their outer region. `regions`: name -> options for `nats.connect`."""
    hub, *outer = (
        Side(name, regions[name], {node: plan.nodes[node].at.monitor_url for node in nodes})
        for name, nodes in plan.regions.items()
    )
    return {side.region: Link(hub, side, relay, events) for side in outer}


async def _answers(ask: Callable[[float], Awaitable[Msg]], timeout: float) -> bool:
    try:
        await ask(timeout)
    except (TimeoutError, nats.errors.NoRespondersError):
        return False
    return True


async def _leafz(monitors: Mapping[str, str]) -> dict[str, list[str] | None]:
    """node -> names of the servers it has a leaf connection with; None when it does not answer."""
    asked = await asyncio.gather(*(server.ask(f"{url}/leafz", 1.0) for url in monitors.values()))
    return {
        node: None if leafz is None else [leaf["name"] for leaf in leafz.get("leafs") or []]
        for node, leafz in zip(monitors, asked, strict=True)
    }
