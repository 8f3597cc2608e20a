"""What a notebook holds: a cluster, a place for its processes, and how to leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import nats.aio.client
import nats.errors
from nats.aio.client import Client

from natslab import cells, workers
from natslab.check import patience, until
from natslab.clusters import compose, compose_cli, keeper, ready, server
from natslab.clusters.base import Cluster, Event
from natslab.clusters.connect import connected
from natslab.clusters.embedded import ONE_CLUSTER, Embedded
from natslab.clusters.external import External, urls_of
from natslab.clusters.plan import Joined
from natslab.errors import ELSEWHERE, LabError, usable
from natslab.parameters import refuse_impossible_here
from natslab.paths import CACHE, setting
from natslab.section import Section

if TYPE_CHECKING:
    from natslab.auth import Certificates

KINDS = ("embedded", "compose", "external")
START_PATIENCE = 60.0  # seconds that one start waits for another
REPLACED = (
    "the lab before this one is closed, with its connections: run the cells below again, in order"
)
CLOSED_WITHIN = 2.0  # seconds for a connection that was left open
ROOM = 64 * 2**20  # bytes of disk without which no cluster starts
# A client whose server died may try the dead one first. By default it waits 2 s before it does,
# and strikes a server off its list after 60 attempts; here it waits 0.2 s and keeps on for a minute.
RECONNECT = {"reconnect_time_wait": 0.2, "max_reconnect_attempts": 300}


@dataclass(frozen=True)
class Needs:
    """What only a cluster made for it has: regions joined in some way, TLS and accounts."""

    regions: Mapping[str, int] = field(default_factory=dict)
    joined: Joined = "leaf"
    secure: bool = False

    def __str__(self) -> str:
        words = ["regions"] * bool(self.regions) + ["TLS and accounts"] * self.secure
        return ", ".join(words)


@dataclass(frozen=True)
class Place:
    """A region or an account: `options` and `address` as those of `Lab`, and the nodes there."""

    name: str
    nodes: list[str]
    address: dict[str, Any]
    options: dict[str, Any]


class Lab:
    """A cluster for one lesson.

    `options` goes into `nats.connect(**lab.options)`: a plain dict with the servers, the log-in if
    there is one, how to reconnect (see `RECONNECT`), and an `error_cb` that collects into `errors`
    (without one, nats-py prints a traceback for every asynchronous error). `address` is the part
    of it that can be handed to another process.

    With `regions`, `options` is that of the first region; `regions["eu-west"]` has those of another,
    `links["eu-west"]` is the link by which it hangs on the first. With `secure`, `options` is a log-in
    to the account SHOP over TLS; `accounts["PAY"]` has another, `certificates` the files: a context
    for TLS cannot cross to a process, the path `certificates.ca` can.
    """

    _open: Lab | None = None  # one lab per kernel: running the set-up cell again replaces it
    _starting = False  # one start at a time, too
    instead_of = ""  # the kind of cluster that is there and lacks what this lesson needs

    def __init__(self, cluster: Cluster, claim: keeper.Claim, lesson: int | None) -> None:
        self.cluster = cluster
        self.folder = claim.folder
        self.mark = f"natslab lesson {lesson:02}" if lesson is not None else "natslab"
        self.errors: list[Exception] = []
        self.workers: list[workers.Worker] = []
        self.named: Counter[str] = Counter()  # how many runs of sections have asked for a word
        self._sections: dict[str, Section] = {}
        self._claim = claim
        self._closed = False
        here = self._place("", self.nodes, cluster.options)
        self._address, self._options = here.address, here.options
        self.accounts: dict[str, Place] = {}
        self.certificates: Certificates | None = None
        self.regions = {
            name: self._place(name, nodes, cluster.regions[name])
            for name, nodes in cluster.plan.regions.items()
            if name  # a cluster that is alone has none
        }
        self.links = cluster.links
        if isinstance(cluster, Embedded):
            self.accounts = {
                name: self._place(name, self.nodes, options)
                for name, options in cluster.accounts.items()
            }
            self.certificates = cluster.certificates

    @classmethod
    async def start(
        cls,
        lesson: int | None = None,
        *,
        nodes: int = 1,
        kind: str | None = None,
        regions: Mapping[str, int] | None = None,
        joined: Joined = "leaf",
        secure: bool = False,
        quiet: bool = False,
    ) -> Lab:
        """Get a cluster: the one at $NATS_URL, else the compose cluster if it is up, else a new embedded one.

        `kind` (or $NATSLAB_CLUSTER) asks for one of "embedded", "compose", "external". `regions`, such
        as {"us-east": 3, "eu-west": 3}, asks for several clusters, `joined` by "leaf" links with a
        JetStream domain each or by "gateway"; `secure` for TLS and the accounts SHOP and PAY: both
        are embedded, whatever else is there, but for the two regions of compose, when they are up.
        Streams and buckets that an earlier run of the same `lesson` left on a shared cluster are
        deleted: those whose description is `lab.mark`, no others. Raises LabError, also when the cluster has fewer
        than `nodes` nodes, and when a parameter of the notebook is below the minimum stated there. A
        second start in this kernel waits for the first, and replaces its lab.
        """
        refuse_impossible_here()
        cells.explain_errors()
        with suppress(TimeoutError):
            await until(lambda: not cls._starting, START_PATIENCE)
        if cls._starting:
            raise LabError(
                f"Another Lab.start() of this kernel has not ended in {START_PATIENCE:g} s: "
                "restart the kernel."
            )
        cls._starting = True
        try:
            before = cls._open
            if before is not None:
                await before.close(quiet=True)
            needs = Needs(regions or {}, joined, secure)
            cls._open = lab = await cls._started(lesson, nodes, kind, needs)
        finally:
            cls._starting = False
        if not quiet:
            if before is not None:
                print(REPLACED)
            why = f": the {lab.instead_of} cluster has no {needs}" if lab.instead_of else ""
            print(f"lab ready: {len(lab.nodes)} nodes, JetStream on ({lab.kind}{why})")
            print(f"measured with {await lab._measured_with()}")
        return lab

    @classmethod
    def here(cls) -> Lab:
        """The lab of this kernel. Raises LabError when there is none."""
        if cls._open is None:
            raise LabError("There is no lab: run the set-up cell (lab = await Lab.start(...)).")
        return cls._open

    @classmethod
    async def _started(cls, lesson: int | None, nodes: int, kind: str | None, needs: Needs) -> Lab:
        server.spare_loopback()
        claim, cluster = await _claimed(CACHE / "labs"), None
        try:
            with usable(CACHE):
                kind = kind or setting("NATSLAB_CLUSTER")
                cluster, instead_of = await _cluster(kind, claim.folder, needs, nodes)
            if len(cluster.nodes) < nodes:
                raise LabError(
                    f"This lesson needs {nodes} nodes and this cluster has {len(cluster.nodes)}: "
                    "unset NATS_URL to get an embedded cluster of three."
                )
            lab = cls(cluster, claim, lesson)
            lab.instead_of = instead_of
            await lab._delete_marked()
        except BaseException:
            # An interrupt too: nothing may be left of a cluster that never became ready.
            claim.release()
            if cluster is not None:
                await cluster.close()
            raise
        return lab

    # What a lesson asks.
    @property
    def address(self) -> dict[str, Any]:
        """What another process needs to connect. Raises LabError when the lab is closed."""
        self._require_open()
        return self._address

    @property
    def options(self) -> dict[str, Any]:
        """`address`, and how errors are collected here. Raises LabError when the lab is closed."""
        self._require_open()
        return self._options

    @property
    def everywhere(self) -> list[dict[str, Any]]:
        """`options` of each region; where there are none, those of the cluster."""
        return [place.options for place in self.regions.values()] or [self._options]

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

    def server_at(self, node: str) -> dict[str, Any]:
        """`options` for a connection to this node; to any, where the cluster hides its names.

        Such as `await lab.leader_of(stream)`: elsewhere each request takes one way more.
        """
        known = self.cluster.nodes.get(node)
        return {**self.options, **({"servers": [known.url]} if known else {})}

    def node_of(self, nc: Client) -> str | None:
        """The node that `nc` is connected to; None while it is not connected."""
        if not nc.is_connected or nc.connected_url is None:
            return None
        at = _place(nc.connected_url.geturl())
        return next((n.name for n in self.cluster.nodes.values() if _place(n.url) == at), None)

    async def leader_of(self, stream: str, timeout: float = 15.0, *, region: str = "") -> str:
        """The node that leads `stream` now. Raises TimeoutError when there is none in time.

        `region`, here and in its siblings: where the stream is, by default in the first one.
        """
        return await self._live.leader_of(stream, timeout, self._log_in(region))

    async def move_leader(
        self, stream: str, away_from: str | None, timeout: float = 15.0, *, region: str = ""
    ) -> str:
        """Have another node than `away_from` lead `stream`; see `Cluster.move_leader`."""
        return await self._live.move_leader(stream, away_from, timeout, self._log_in(region))

    async def view(self) -> list[dict[str, Any]]:
        """The live cluster as its monitoring endpoints show it; see `Cluster.view`."""
        return await self._live.view()

    # What a lesson breaks.
    async def kill(self, node: str) -> Event:
        """SIGKILL a node. On a cluster that is not ours: prints why it is skipped, and the event is false."""
        return await self._break("kill", self.cluster.kill, node)

    async def stop(self, node: str) -> Event:
        """SIGTERM a node; skipped like `kill`."""
        return await self._break("stop", self.cluster.stop, node)

    async def pause(self, node: str) -> Event:
        """Freeze a node; skipped like `kill`."""
        return await self._break("pause", self.cluster.pause, node)

    async def resume(self, node: str) -> Event:
        """Let a paused node go on; skipped like `kill`."""
        return await self._break("resume", self.cluster.resume, node)

    async def cut(self, node: str) -> Event:
        """Take a node off the network (compose only); skipped like `kill`."""
        return await self._break("cut", self.cluster.cut, node)

    async def heal(self, node: str) -> Event:
        """Put a node back on the network; skipped like `kill`."""
        return await self._break("heal", self.cluster.heal, node)

    async def restart(self, node: str) -> Event:
        """Start a node again and wait until it has caught up; skipped like `kill`."""
        return await self._break("restart", self.cluster.restart, node)

    async def lame_duck(self, node: str) -> Event:
        """Ask a node to leave politely; skipped like `kill`."""
        return await self._break("lame duck", self.cluster.lame_duck, node)

    async def wait_until_healthy(self, timeout: float = 30.0) -> None:
        """Wait until every node is healthy. Raises LabError when one is not in time."""
        await self._live.wait_until_healthy(timeout)

    async def delete_stream(self, stream: str, timeout: float = 30.0, *, region: str = "") -> None:
        """Delete a stream that this lesson made, and ask again until it is gone.

        `region`: where it is, by default in the first one. For one whose replicas would hold up the
        next restart, or that is made anew. Raises TimeoutError when it is still there after
        `timeout` seconds, LabError when no node answers or when it has another description than
        `mark`: then somebody else made it.
        """
        self._require_open()
        options = self._log_in(region)
        try:
            async with asyncio.timeout(timeout * patience()), connected(options) as nc:
                js = nc.jetstream(timeout=1)
                await ready.refuse_unmarked(js, stream, self.mark)
                await ready.delete(js, stream, looks=1)
                # One node or another has its files for a moment longer (one time in ten, measured):
                # who makes the stream anew at once may be refused (10049). One that was down at that
                # time keeps them for half a minute, which nobody need wait for.
                with suppress(TimeoutError):
                    await until(lambda: not self.cluster.has_files_of(stream, region), 5)
        except TimeoutError:
            raise TimeoutError(f"the stream {stream} is not deleted after {timeout:g} s") from None

    def spawn(
        self, coroutine: Callable[..., Coroutine[Any, Any, Any]], name: str, *args: Any
    ) -> workers.Worker:
        """Run `coroutine(*args)` in a process of its own; see `workers.spawn`."""
        self._require_open()
        worker = workers.spawn(self.folder, coroutine, name, *args)
        self.workers.append(worker)
        return worker

    def write_module(self, name: str) -> None:
        """Make a module for workers of the cells run so far that begin with `# <name>`.

        Of a cell that was changed and run again the newest counts. Raises LabError when there is none.
        """
        self._require_open()
        text = cells.module(name)
        if not text:
            raise LabError(
                f'No cell that begins with "# {name}" was run since the kernel started: run the '
                "cells above this one first."
            )
        with usable(self.folder):
            (self.folder / name).write_text(text, encoding="utf-8")

    async def begin(self, heading: str) -> Section:
        """Begin a run of the section with this heading, from nothing; see `Section`.

        What the run before has left goes first: its tasks and its workers end, and its nodes are
        brought back. Raises LabError when a node does not come back.
        """
        self._require_open()
        before = self._sections.get(heading)
        if before is not None:
            await before.end()
        if self.kind != "external":
            await self.cluster.make_whole()
        cells.runs.begin(heading)
        self._sections[heading] = Section(self, heading)
        return self._sections[heading]

    # How a lesson leaves.
    async def close(self, *, quiet: bool = False) -> None:
        """Delete the streams of this lesson, end its processes and, if it is embedded, the cluster.

        Prints what could not be done, in seconds: the rest is done all the same. A second time, or
        after the next `Lab.start`, it does nothing.
        """
        if Lab._open is self:
            Lab._open = None
        left: list[str] = []
        if not self._closed:
            self._closed = True
            try:
                left += await self._tidy()
            finally:
                await self._give_back()
        for sentence in left:
            print(f"lab closed, but: {sentence}")
        if not (left or quiet):
            print("lab closed, nothing left behind")

    async def _tidy(self) -> list[str]:
        """End sections and connections, mend what a drill broke, delete our streams.

        A sentence for each that did not work.
        """
        left = []
        for step in (self._leave, self.cluster.mend, self._delete_marked):
            try:
                await step()
            except (LabError, OSError) as error:  # OSError: no docker command any more
                left.append(str(error))
        return left

    async def _leave(self) -> None:
        for section in self._sections.values():
            await section.end()
        # An old handle must say at once that it is one, and not look for servers that are gone.
        for nc in _connections_of(self):
            with suppress(TimeoutError, OSError, nats.errors.Error):
                async with asyncio.timeout(CLOSED_WITHIN):
                    await nc.close()

    async def _give_back(self) -> None:
        try:
            await asyncio.to_thread(self._claim.release)
            for worker in self.workers:
                await asyncio.to_thread(worker.process.wait, 10)
        finally:
            workers.forget(self.workers)
            await self.cluster.close()

    @property
    def _live(self) -> Cluster:
        self._require_open()
        return self.cluster

    def _require_open(self) -> None:
        if self._closed:
            raise LabError(
                "This lab was closed: run the notebook again from its set-up cell (lab = await "
                "Lab.start(...))."
            )

    def _log_in(self, region: str) -> dict[str, Any]:
        """`options` of a region, "" is the first. Raises LabError when there is none of this name."""
        if region and region not in self.regions:
            there = ", ".join(self.regions) or "none"
            raise LabError(f"There is no region {region!r}; there are: {there}.")
        return self.regions[region].options if region else self._options

    async def _break(self, verb: str, act: Callable[[str], Awaitable[Event]], node: str) -> Event:
        self._require_open()
        if self.kind == "external":
            print(
                f"skipped: {verb} needs a cluster that this course started, NATS_URL names another"
            )
            return Event(time.monotonic(), verb, node, 0.0, shown=False)
        if node not in self.nodes:
            raise LabError(f"There is no node {node!r}; there are {', '.join(self.nodes)}.")
        return await act(node)

    async def _delete_marked(self) -> None:
        if self.kind == "embedded":
            return  # a private store: nothing from before, nothing for later
        try:
            for options in self.everywhere:
                await ready.delete_those(
                    options, lambda config: config.description == self.mark, 15 * patience()
                )
        except (TimeoutError, nats.errors.Error) as error:
            raise LabError(
                f"The streams of this lesson could not be deleted ({error or 'timeout'}); its next "
                "start on this cluster deletes them."
            ) from None

    async def _measured_with(self) -> str:
        """On what the numbers of a notebook depend."""
        async with connected(self._options) as nc:
            version = nc.connected_server_version
        return (
            f"nats-server {version.major}.{version.minor}.{version.patch}, nats-py {nats.aio.client.__version__}, Python "
            f"{platform.python_version()}, {os.cpu_count()} cores, {date.today():%Y-%m-%d}"
        )

    def _place(self, name: str, nodes: list[str], options: dict[str, Any]) -> Place:
        address = {key: value for key, value in options.items() if key != "tls"} | RECONNECT
        return Place(name, nodes, address, {**options, **RECONNECT, "error_cb": self._on_error})

    async def _on_error(self, error: Exception) -> None:
        self.errors.append(error)


def _connections_of(lab: Lab) -> list[Client]:
    """What a notebook has opened with `options` and not closed: it tells its errors to the lab."""
    clients = [each for each in gc.get_objects() if type(each) is Client]
    return [
        nc for nc in clients if not nc.is_closed and getattr(nc._error_cb, "__self__", None) is lab
    ]


def _place(url: str) -> tuple[str | None, int | None]:
    """Host and port: the same server may be written with or without a log-in."""
    return urlsplit(url).hostname, urlsplit(url).port


async def _claimed(root: Path) -> keeper.Claim:
    """A folder below `root`. Raises LabError when it cannot be had, or has no room."""
    with usable(root):
        await asyncio.to_thread(keeper.reap_dead, root)
        # Not in a thread: an interrupt of its `await` would leave a claim that nobody gives back.
        claim = keeper.claim(root)
    free = shutil.disk_usage(claim.folder).free
    if free < ROOM:
        claim.release()
        raise LabError(
            f"Only {free / 2**20:.0f} MiB are free at {root}, and a cluster needs {ROOM >> 20}: "
            f"make room there, or {ELSEWHERE}."
        )
    return claim


async def _cluster(kind: str | None, folder: Path, needs: Needs, nodes: int) -> tuple[Cluster, str]:
    """The cluster, and the kind of the one that was passed over because it lacks what is needed."""
    if kind not in (None, *KINDS):
        raise LabError(f"NATSLAB_CLUSTER={kind}: choose one of {', '.join(KINDS)}.")
    urls = urls_of(setting("NATS_URL")) if kind in (None, "external") else []
    from_compose = not urls and kind in (None, "compose") and needs == Needs(compose.SIZES)
    if from_compose and await compose.is_up(compose_cli.REGIONS):
        return await compose.Compose.join(compose_cli.REGIONS), ""
    if kind is None:
        kind = "external" if urls else "compose" if await compose.is_up() else "embedded"
    if str(needs) or kind == "embedded":
        regions = needs.regions or ONE_CLUSTER
        made = await Embedded.start(folder, regions, joined=needs.joined, secure=needs.secure)
        return made, "" if kind == "embedded" else kind
    if kind == "compose":
        return await compose.Compose.join(), ""
    if not urls:
        raise LabError("NATSLAB_CLUSTER=external needs NATS_URL=nats://host:4222.")
    creds, ca = setting("NATS_CREDS"), setting("NATS_CA")
    return await External.join(urls, folder, nodes=nodes, creds=creds, ca=ca), ""
