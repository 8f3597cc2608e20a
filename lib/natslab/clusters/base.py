"""A cluster and what can happen to it.

`Cluster` holds the verbs: each returns when its effect has been *observed*, within a deadline, and
notes when it happened. Where the nodes live is the business of its three children: `embedded`
(processes of this machine), `compose` (containers) and `external` (somebody else's servers, which
we only talk to).
"""

from __future__ import annotations

import asyncio
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client

from natslab.check import until
from natslab.clusters import ready, server
from natslab.clusters.connect import connect
from natslab.clusters.plan import Plan
from natslab.clusters.ready import START_DEADLINE
from natslab.errors import LabError
from natslab.tasks import to_its_end, together

if TYPE_CHECKING:
    from natslab.clusters.links import Link


@dataclass(frozen=True)
class Node:
    """One server: its name, where clients connect, where its monitoring endpoints are."""

    name: str
    url: str
    monitor: str


def nodes_of(plan: Plan, scheme: str = "nats") -> dict[str, Node]:
    """The nodes of a plan."""
    return {
        name: Node(name, f"{scheme}://{node.at.told}", node.at.monitor_url)
        for name, node in plan.nodes.items()
    }


def servers_of(plan: Plan, nodes: Mapping[str, Node]) -> dict[str, dict[str, Any]]:
    """Region -> the part of the options for `nats.connect` that says where."""
    return {
        region: {"servers": [nodes[name].url for name in names]}
        for region, names in plan.regions.items()
    }


@dataclass(frozen=True)
class Event:
    """A verb whose effect was seen at monotonic time `at`, `seconds` after it was asked for.

    Where a drill is skipped, because the cluster is not ours to break, nothing was `shown`, and the
    event is false: `if killed:` and `check(claim, holds, after=killed)` ask it.
    """

    at: float
    verb: str
    node: str
    seconds: float
    shown: bool = True

    def __bool__(self) -> bool:
        return self.shown


@dataclass
class Cluster(ABC):
    """Nodes, and the verbs on them. Every verb raises LabError when its effect is not seen in time."""

    nodes: dict[str, Node]
    options: dict[str, Any]  # for nats.connect, to the first region if there are several
    events: list[Event] = field(default_factory=list)
    plan: Plan = field(default_factory=lambda: Plan({}))  # where nobody planned it, of nothing
    regions: dict[str, dict[str, Any]] = field(default_factory=dict)  # in it: name -> options
    links: dict[str, Link] = field(default_factory=dict)  # between them, by the outer one
    kind: ClassVar[str] = ""

    # What a kind of cluster has to know.
    @abstractmethod
    async def _signal(self, node: str, sig: signal.Signals) -> None: ...

    @abstractmethod
    async def _launch(self, node: str) -> None: ...

    async def mend(self) -> None:  # noqa: B027 (most kinds have nothing to mend)
        """Before a lab leaves: make whole again what others go on using. Raises LabError."""

    @abstractmethod
    async def close(self) -> None:
        """Give back what this object holds."""

    def has_files_of(self, stream: str, region: str = "") -> bool:
        """A running node of the region, "" is the first, still has files of this stream.

        False where they are out of reach.
        """
        return False

    # The verbs.
    async def kill(self, node: str) -> Event:
        """SIGKILL: the node gets no chance to say goodbye."""
        return await self._do("kill", node, self._signal(node, signal.SIGKILL), self.is_down)

    async def stop(self, node: str) -> Event:
        """SIGTERM: the node hands over its leaderships and exits; a paused one goes on first."""
        await self._wake(node)
        return await self._do("stop", node, self._signal(node, signal.SIGTERM), self.is_down)

    async def pause(self, node: str) -> Event:
        """Freeze the node: its connections stay open, and nothing moves on them."""
        return await self._do("pause", node, self._signal(node, signal.SIGSTOP), self.is_silent)

    async def resume(self, node: str) -> Event:
        """Let a paused node go on."""
        return await self._do("resume", node, self._signal(node, signal.SIGCONT), self.answers)

    async def lame_duck(self, node: str) -> Event:
        """Ask the node to leave: it tells its clients to move, hands over, and exits.

        A paused one goes on first.
        Source: https://docs.nats.io/running-a-nats-service/nats_admin/lame_duck_mode
        """
        await self._wake(node)
        return await self._do("lame duck", node, self._signal(node, signal.SIGUSR2), self.is_down)

    async def restart(self, node: str) -> Event:
        """Start the node again (stop it first if it runs) and wait until it has caught up."""
        if not await self.is_down(node):
            await self.stop(node)
        return await self._do("restart", node, self._launch(node), self.is_back)

    async def cut(self, node: str) -> Event:
        """Take the node off the network: it runs, and nobody can reach it."""
        raise LabError("A network cut needs containers: python3 infra/up.py --compose")

    async def heal(self, node: str) -> Event:
        """Put a node back on the network."""
        raise LabError("A network cut needs containers: python3 infra/up.py --compose")

    async def wait_until_healthy(self, timeout: float = 30.0) -> None:
        """Wait until every node is back: quorum, its own streams caught up, and counted in."""
        end = time.monotonic() + timeout  # for all of them
        for node in self.nodes:
            left = max(0.1, end - time.monotonic())
            await self._seen("healthy", node, self.is_back, left)

    async def make_whole(self, timeout: float = 30.0) -> None:
        """Bring back what a drill has left frozen or dead, and wait until every node is healthy.

        Every link that is cut or frozen, or that its nodes have lost, is healed then.
        """
        for node in await self.unhealthy():
            if await self.is_down(node):
                await self._launch(node)
            else:
                await self._wake(node)
        await self.wait_until_healthy(timeout)
        await self._heal_links()

    async def _heal_links(self) -> None:
        """Those that are cut or frozen, or have lost a node at an end. A delay stays."""
        for link in self.links.values():
            if not link.up or link.frozen or not await link.is_up():
                await link.heal()

    # What can be observed.
    async def is_down(self, node: str) -> bool:
        """Nothing listens on the client port."""
        at = urlsplit(self.nodes[node].url)
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(at.hostname, at.port), 0.5)
        except (OSError, TimeoutError) as error:
            return not isinstance(error, TimeoutError)
        writer.close()
        return False

    async def answers(self, node: str) -> bool:
        """The monitoring port answers."""
        return await server.ask(f"{self.nodes[node].monitor}/varz", 0.3) is not None

    async def is_silent(self, node: str) -> bool:
        """The monitoring port does not answer within 0.3 s."""
        return not await self.answers(node)

    async def is_healthy(self, node: str) -> bool:
        """`/healthz` is ok: the node sees a meta leader and its streams have caught up."""
        return await server.ask(f"{self.nodes[node].monitor}/healthz", 1.0) is not None

    async def is_back(self, node: str) -> bool:
        """It is healthy, and who leads the cluster counts all healthy nodes in.

        A leader that has just started itself may not have heard of the others yet, though they are
        healthy and elected it: it refuses a new stream then, for want of peers.
        """
        if not await self.is_healthy(node):
            return False
        asked = (server.ask(f"{each.monitor}/jsz", 1.0) for each in self.nodes.values())
        told = [(js or {}).get("meta_cluster", {}) for js in await asyncio.gather(*asked)]
        offline = {
            peer["name"]
            for meta in told
            for peer in meta.get("replicas") or []
            if peer.get("offline")
        }
        return not offline or offline.isdisjoint({*self.nodes} - {*await self.unhealthy()})

    async def unhealthy(self) -> list[str]:
        """The names of the nodes whose `/healthz` is not ok."""
        healthy = await asyncio.gather(*map(self.is_healthy, self.nodes))
        return [node for node, fine in zip(self.nodes, healthy, strict=True) if not fine]

    async def leader_of(
        self, stream: str, timeout: float = 15.0, options: dict[str, Any] | None = None
    ) -> str:
        """The node that leads `stream` now, waiting for an election if there is none.

        `options` for `nats.connect` say where the stream is, by default in the first region. Raises
        TimeoutError when there is still no leader after `timeout` seconds, and LabError when no
        node answers.
        """
        return await self.move_leader(stream, None, timeout, options)

    async def move_leader(
        self,
        stream: str,
        away_from: str | None,
        timeout: float = 15.0,
        options: dict[str, Any] | None = None,
    ) -> str:
        """Have another node than `away_from` lead `stream`; the node that leads it then.

        Asks the leader to step down (`$JS.API.STREAM.LEADER.STEPDOWN`) if it is on `away_from`.
        Raises TimeoutError when there is no other leader after `timeout` seconds, and LabError when
        no node answers.
        """
        nc = await self._connect_to_any(options)
        leader = ""

        async def moved() -> bool:
            nonlocal nc, leader
            if nc.is_closed:  # its node died, and a connection of ours does not move
                nc = await self._connect_to_any(options)
            with suppress(TimeoutError, nats.errors.Error):
                info = await nc.jetstream(timeout=1).stream_info(stream)
                leader = (info.cluster and info.cluster.leader) or ""
                if leader and leader == away_from:
                    await nc.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", b"", timeout=1)
            return leader not in ("", away_from)

        where = f" that is not on {away_from}" if away_from else ""
        try:
            await until(moved, timeout, f"a leader of stream {stream}{where}")
            return leader
        finally:
            await to_its_end(nc.close())

    async def _connect_to_any(self, options: dict[str, Any] | None) -> Client:
        try:
            return await connect(options or self.options)
        except LabError:
            raise LabError(f"No node of the cluster answers. {self._how_to_mend()}") from None

    async def view(self) -> list[dict[str, Any]]:
        """One row per node from its `/varz`, `/connz` and `/jsz`.

        Keys: name, up, clients (names of connected clients), leads (streams it leads),
        meta_leader. A node that does not answer has up=False and empty lists.
        """
        return list(await asyncio.gather(*map(self._view_of, self.nodes.values())))

    async def _view_of(self, node: Node) -> dict[str, Any]:
        paths = ("connz", "jsz?accounts=true&streams=true")
        conns, js = await asyncio.gather(*(server.ask(f"{node.monitor}/{p}", 1.0) for p in paths))
        streams = [
            stream
            for account in (js or {}).get("account_details", [])
            for stream in account.get("stream_detail") or []
        ]
        return {
            "name": node.name,
            "up": conns is not None,
            "clients": sorted(
                c["name"] for c in (conns or {}).get("connections", []) if c.get("name")
            ),
            "leads": sorted(s["name"] for s in streams if s["cluster"].get("leader") == node.name),
            "meta_leader": (js or {}).get("meta_cluster", {}).get("leader") == node.name,
        }

    async def prove_ready(self, timeout: float = START_DEADLINE) -> None:
        """Messages are stored and heard through every node of every region; see `ready.prove`.

        Raises LabError.
        """
        everywhere = self.regions.values() or [self.options]
        try:
            await together(ready.prove(options, timeout) for options in everywhere)
        except ready.NotReady as error:
            raise LabError(await self._not_ready(error)) from None

    async def _not_ready(self, error: Exception) -> str:
        down = await self.unhealthy()
        return (
            f"The cluster has no quorum: {', '.join(down)} of {len(self.nodes)} nodes "
            f"{'is' if len(down) == 1 else 'are'} not healthy. {self._how_to_mend()}"
            if down
            else f"The cluster makes no replicated stream ({error}). {self._how_to_mend()}"
        )

    def _how_to_mend(self) -> str:
        return "Start the missing nodes and run this cell again."

    async def _do(
        self,
        verb: str,
        node: str,
        action: Awaitable[object],
        seen: Callable[[str], Awaitable[bool]],
    ) -> Event:
        asked = time.monotonic()
        await action
        await self._seen(verb, node, seen, 60.0)
        event = Event(time.monotonic(), verb, node, time.monotonic() - asked)
        self.events.append(event)
        return event

    async def _wake(self, node: str) -> None:
        """Before a signal that a frozen process would never see."""
        await self._signal(node, signal.SIGCONT)

    def _hopeless(self, node: str) -> str:
        """Why nothing can be seen on this node any more, as a sentence; '' while there is hope."""
        return ""

    async def _seen(
        self, verb: str, node: str, seen: Callable[[str], Awaitable[bool]], timeout: float
    ) -> None:
        async def arrived() -> bool:
            if await seen(node):
                return True
            why = self._hopeless(node)
            # Looked at again: what ended the hope may have been what we wait for.
            if why and not await seen(node):
                raise LabError(f"{verb}: {why}")
            return bool(why)

        try:
            await until(arrived, timeout)
        except TimeoutError:
            told = await server.complaint(f"{self.nodes[node].monitor}/healthz", 1.0)
            raise LabError(
                f"{verb}: no effect seen on node {node} in {timeout:.3g} s"
                f"{told and f', it says: {told}'}"
            ) from None
