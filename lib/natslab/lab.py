"""What a notebook holds: a cluster, a place for its processes, and how to leave nothing behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nats.aio.client import Client
from nats.js.errors import APIError, NotFoundError

from natslab import workers
from natslab.clusters import compose, keeper
from natslab.clusters.base import Cluster, Event
from natslab.clusters.connect import connect
from natslab.clusters.embedded import Embedded
from natslab.clusters.external import External
from natslab.errors import LabError
from natslab.paths import CACHE

KINDS = ("embedded", "compose", "external")
# A client whose server died may try the dead one first. By default it waits 2 s before it does,
# and strikes a server off its list after 60 attempts; here it waits 0.2 s and keeps on for a minute.
RECONNECT = {"reconnect_time_wait": 0.2, "max_reconnect_attempts": 300}


class Lab:
    """A cluster for one lesson.

    `options` goes into `nats.connect(**lab.options)`: a plain dict with the servers, the log-in if
    there is one, how to reconnect (see `RECONNECT`), and an `error_cb` that collects into `errors`
    (without one, nats-py prints a traceback for every asynchronous error). `address` is the part
    of it that can be handed to another process.
    """

    _open: Lab | None = None  # one lab per kernel: running the set-up cell again replaces it

    def __init__(self, cluster: Cluster, claim: keeper.Claim, lesson: int | None) -> None:
        self.cluster = cluster
        self.folder = claim.folder
        self.mark = f"natslab lesson {lesson:02}" if lesson is not None else "natslab"
        self.errors: list[Exception] = []
        self.address: dict[str, Any] = {**cluster.options, **RECONNECT}
        self.options: dict[str, Any] = {**self.address, "error_cb": self._on_error}
        self.workers: list[workers.Worker] = []
        self._claim = claim

    @classmethod
    async def start(
        cls,
        lesson: int | None = None,
        *,
        nodes: int = 1,
        kind: str | None = None,
        quiet: bool = False,
    ) -> Lab:
        """Get a cluster: the one at $NATS_URL, else the compose cluster if it is up, else a new embedded one.

        `kind` (or $NATSLAB_CLUSTER) asks for one of "embedded", "compose", "external". Streams and
        buckets that an earlier run of the same `lesson` left on a shared cluster are deleted: those
        whose description is `lab.mark`, no others. Raises LabError, also when the cluster has fewer
        than `nodes` nodes.
        """
        if cls._open is not None:
            await cls._open.close(quiet=True)
        # Not in a thread: an interrupt of its `await` would leave a claim that nobody gives back.
        claim = keeper.claim(CACHE / "labs")
        try:
            cluster = await _cluster(kind or os.environ.get("NATSLAB_CLUSTER"), claim.folder)
            if len(cluster.nodes) < nodes:
                raise LabError(
                    f"This lesson needs {nodes} nodes and this cluster has {len(cluster.nodes)}: "
                    "unset NATS_URL to get an embedded cluster of three."
                )
            lab = cls(cluster, claim, lesson)
            await lab._delete_marked()
        except BaseException:
            # An interrupt too: nothing may be left of a cluster that never became ready.
            claim.release()
            raise
        cls._open = lab
        if not quiet:
            print(f"lab ready: {len(lab.nodes)} nodes, JetStream on")
        return lab

    # What a lesson asks.
    @property
    def kind(self) -> str:
        """ "embedded", "compose" or "external"."""
        return self.cluster.kind

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes."""
        return list(self.cluster.nodes)

    @property
    def events(self) -> list[Event]:
        """What was done to the nodes, and when its effect was seen."""
        return self.cluster.events

    def same_server(self, nc: Client) -> dict[str, Any]:
        """`options` for a connection to the server that `nc` is on now.

        In a cluster a server learns of a subscription made on another one a moment later, and
        `flush` does not wait for that. Two connections to one server spare you the moment.
        """
        assert nc.connected_url is not None
        return {**self.options, "servers": [nc.connected_url.geturl()]}

    def other_server(self, nc: Client) -> dict[str, Any]:
        """`options` for a connection to a server that `nc` is not on; to the same if it is the only one."""
        here = self.same_server(nc)["servers"]
        elsewhere = [url for url in self.options["servers"] if _place(url) != _place(here[0])]
        return {**self.options, "servers": elsewhere or here}

    def node_of(self, nc: Client) -> str | None:
        """The node that `nc` is connected to; None while it is not connected."""
        if not nc.is_connected or nc.connected_url is None:
            return None
        at = _place(nc.connected_url.geturl())
        return next((n.name for n in self.cluster.nodes.values() if _place(n.url) == at), None)

    async def leader_of(self, stream: str, timeout: float = 15.0) -> str:
        """The node that leads `stream` now. Raises TimeoutError when there is none in time."""
        return await self.cluster.leader_of(stream, timeout)

    async def move_leader(self, stream: str, away_from: str | None, timeout: float = 15.0) -> str:
        """Have another node than `away_from` lead `stream`; see `Cluster.move_leader`."""
        return await self.cluster.move_leader(stream, away_from, timeout)

    async def view(self) -> list[dict[str, Any]]:
        """The live cluster as its monitoring endpoints show it; see `Cluster.view`."""
        return await self.cluster.view()

    # What a lesson breaks.
    async def kill(self, node: str) -> Event | None:
        """SIGKILL a node. On a cluster that is not ours: prints why it is skipped, returns None."""
        return await self._break("kill", self.cluster.kill, node)

    async def stop(self, node: str) -> Event | None:
        """SIGTERM a node; skipped like `kill`."""
        return await self._break("stop", self.cluster.stop, node)

    async def pause(self, node: str) -> Event | None:
        """Freeze a node; skipped like `kill`."""
        return await self._break("pause", self.cluster.pause, node)

    async def resume(self, node: str) -> Event | None:
        """Let a paused node go on; skipped like `kill`."""
        return await self._break("resume", self.cluster.resume, node)

    async def cut(self, node: str) -> Event | None:
        """Take a node off the network (compose only); skipped like `kill`."""
        return await self._break("cut", self.cluster.cut, node)

    async def heal(self, node: str) -> Event | None:
        """Put a node back on the network; skipped like `kill`."""
        return await self._break("heal", self.cluster.heal, node)

    async def restart(self, node: str) -> Event | None:
        """Start a node again and wait until it has caught up; skipped like `kill`."""
        return await self._break("restart", self.cluster.restart, node)

    async def lame_duck(self, node: str) -> Event | None:
        """Ask a node to leave politely; skipped like `kill`."""
        return await self._break("lame duck", self.cluster.lame_duck, node)

    async def wait_until_healthy(self, timeout: float = 30.0) -> None:
        """Wait until every node is healthy. Raises LabError when one is not in time."""
        await self.cluster.wait_until_healthy(timeout)

    def spawn(
        self, coroutine: Callable[..., Coroutine[Any, Any, Any]], name: str, *args: Any
    ) -> workers.Worker:
        """Run `coroutine(*args)` in a process of its own; see `workers.spawn`."""
        worker = workers.spawn(self.folder, coroutine, name, *args)
        self.workers.append(worker)
        return worker

    # How a lesson leaves.
    async def close(self, *, quiet: bool = False) -> None:
        """Delete the streams of this lesson, end its processes and, if it is embedded, the cluster."""
        if Lab._open is self:
            Lab._open = None
        if self.folder.exists():
            await self._delete_marked()
            await asyncio.to_thread(self._claim.release)
            for worker in self.workers:
                worker.process.wait(10)
            await self.cluster.close()
        if not quiet:
            print("lab closed, nothing left behind")

    async def _break(
        self, verb: str, act: Callable[[str], Awaitable[Event]], node: str
    ) -> Event | None:
        if self.kind == "external":
            print(
                f"skipped: {verb} needs a cluster that this course started, NATS_URL names another"
            )
            return None
        if node not in self.nodes:
            raise LabError(f"There is no node {node!r}; there are {', '.join(self.nodes)}.")
        return await act(node)

    async def _delete_marked(self) -> None:
        if self.kind == "embedded":
            return  # a private store: nothing from before, nothing for later
        nc = await connect(self.options)
        try:
            js = nc.jetstream(timeout=5)
            for info in await js.streams_info():
                if info.config.description == self.mark and info.config.name:
                    with suppress(NotFoundError):  # somebody was faster
                        await js.delete_stream(info.config.name)
        except (TimeoutError, APIError) as error:
            raise LabError(f"The streams of this lesson could not be listed: {error}") from None
        finally:
            await nc.close()

    async def _on_error(self, error: Exception) -> None:
        self.errors.append(error)


def _place(url: str) -> tuple[str | None, int | None]:
    """Host and port: the same server may be written with or without a log-in."""
    return urlsplit(url).hostname, urlsplit(url).port


async def _cluster(kind: str | None, folder: Path) -> Cluster:
    url = os.environ.get("NATS_URL")
    if kind not in (None, *KINDS):
        raise LabError(f"NATSLAB_CLUSTER={kind}: choose one of {', '.join(KINDS)}.")
    if kind == "external" or (kind is None and url):
        if not url:
            raise LabError("NATSLAB_CLUSTER=external needs NATS_URL=nats://host:4222.")
        return await External.join(url.split(","), os.environ.get("NATS_CREDS"))
    if kind == "compose" or (kind is None and await compose.is_up()):
        return await compose.Compose.join()
    return await Embedded.start(folder)
