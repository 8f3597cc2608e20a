"""A cluster of three nodes and what can happen to it.

`Cluster` holds the verbs: each returns when its effect has been *observed*, within a deadline, and
notes when it happened. Where the nodes live is the business of its three children: `Embedded`
(processes of this machine, here), `Compose` (containers, `natslab.compose`) and `External`
(somebody else's servers, which we only talk to).
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api
from nats.js.errors import APIError, NotFoundError

from natslab import server
from natslab.check import until
from natslab.errors import LabError

DEFAULT_PORTS = "20000-29999"  # below what Linux and macOS hand out to outgoing connections
START_DEADLINE = 15.0
PROBE = "NATSLAB_PROBE_"  # begins the names of the streams that prove a cluster ready


@dataclass(frozen=True)
class Node:
    """One server: its name, where clients connect, where its monitoring endpoints are."""

    name: str
    url: str
    monitor: str


@dataclass(frozen=True)
class Event:
    """A verb whose effect was seen at monotonic time `at`, `seconds` after it was asked for."""

    at: float
    verb: str
    node: str
    seconds: float


@dataclass
class Cluster(ABC):
    """Nodes, and the verbs on them. Every verb raises LabError when its effect is not seen in time."""

    nodes: dict[str, Node]
    options: dict[str, Any]  # for nats.connect
    events: list[Event] = field(default_factory=list)
    kind: ClassVar[str] = ""

    # What a kind of cluster has to know.
    @abstractmethod
    async def _signal(self, node: str, sig: signal.Signals) -> None: ...

    @abstractmethod
    async def _launch(self, node: str) -> None: ...

    @abstractmethod
    async def close(self) -> None:
        """Give back what this object holds."""

    # The verbs.
    async def kill(self, node: str) -> Event:
        """SIGKILL: the node gets no chance to say goodbye."""
        return await self._do("kill", node, self._signal(node, signal.SIGKILL), self.is_down)

    async def stop(self, node: str) -> Event:
        """SIGTERM: the node hands over its leaderships and exits."""
        return await self._do("stop", node, self._signal(node, signal.SIGTERM), self.is_down)

    async def pause(self, node: str) -> Event:
        """Freeze the node: its connections stay open, and nothing moves on them."""
        return await self._do("pause", node, self._signal(node, signal.SIGSTOP), self.is_silent)

    async def resume(self, node: str) -> Event:
        """Let a paused node go on."""
        return await self._do("resume", node, self._signal(node, signal.SIGCONT), self.answers)

    async def lame_duck(self, node: str) -> Event:
        """Ask the node to leave: it tells its clients to move, hands over, and exits.

        Source: https://docs.nats.io/running-a-nats-service/nats_admin/lame_duck_mode
        """
        return await self._do("lame duck", node, self._signal(node, signal.SIGUSR2), self.is_down)

    async def restart(self, node: str) -> Event:
        """Start the node again (stop it first if it runs) and wait until it has caught up."""
        if not await self.is_down(node):
            await self.stop(node)
        return await self._do("restart", node, self._launch(node), self.is_healthy)

    async def cut(self, node: str) -> Event:
        """Take the node off the network: it runs, and nobody can reach it."""
        raise LabError("A network cut needs containers: python3 infra/up.py --compose")

    async def heal(self, node: str) -> Event:
        """Put a node back on the network."""
        raise LabError("A network cut needs containers: python3 infra/up.py --compose")

    async def wait_until_healthy(self, timeout: float = 30.0) -> None:
        """Wait until every node reports `/healthz` ok: quorum, and its own streams caught up."""
        for node in self.nodes:
            await self._seen("healthy", node, self.is_healthy, timeout)

    # What can be observed.
    async def is_down(self, node: str) -> bool:
        """Nothing listens on the client port."""
        host, port = self.nodes[node].url.removeprefix("nats://").split(":")
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 0.5)
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

    async def unhealthy(self) -> list[str]:
        """The names of the nodes whose `/healthz` is not ok."""
        healthy = await asyncio.gather(*map(self.is_healthy, self.nodes))
        return [node for node, fine in zip(self.nodes, healthy, strict=True) if not fine]

    async def leader_of(self, stream: str, timeout: float = 15.0) -> str:
        """The node that leads `stream` now, waiting for an election if there is none.

        Raises TimeoutError when there is still no leader after `timeout` seconds.
        """
        return await self.move_leader(stream, None, timeout)

    async def move_leader(self, stream: str, away_from: str | None, timeout: float = 15.0) -> str:
        """Have another node than `away_from` lead `stream`; the node that leads it then.

        Asks the leader to step down (`$JS.API.STREAM.LEADER.STEPDOWN`) if it is on `away_from`.
        Raises TimeoutError when there is no other leader after `timeout` seconds.
        """
        nc = await connect(self.options)
        leader = ""

        async def moved() -> bool:
            nonlocal leader
            with suppress(TimeoutError, nats.errors.NoRespondersError, APIError):
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
            await nc.close()

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
        """Create a replicated stream, publish to it through every node, delete it; then let a
        client on each node hear one on every other.

        A node that has just started may not answer yet while its neighbours do, so one proof is
        not enough. Raises LabError when it does not work within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        name = f"{PROBE}{time.time():.0f}_{random.getrandbits(48):x}"
        # In files: a stream in memory that an interrupted proof left would keep a node that lost
        # its copy unhealthy until all the others are back.
        config = api.StreamConfig(
            name=name, subjects=[f"natslab.probe.{name}"], num_replicas=min(3, len(self.nodes))
        )
        servers = self.options["servers"]
        proofs = (self._prove({**self.options, "servers": [s]}, config, end) for s in servers)
        outcomes = await asyncio.gather(*proofs)
        errors = [error for error in outcomes if error]
        # A missing node is for `unhealthy` to tell; without a majority nothing works.
        if 2 * len(errors) >= len(servers):
            raise LabError(await self._not_ready(errors[0]))
        await self._remove_probes(name)
        fine = [server_ for server_, error in zip(servers, outcomes, strict=True) if not error]
        await self._hear_each_other(fine, max(1.0, end - time.monotonic()))

    async def _remove_probes(self, own: str) -> None:
        """Delete our stream, and those that a start which failed could not delete itself."""
        nc = await connect(self.options)
        with suppress(TimeoutError, nats.errors.Error):
            probes = b'{"subject": "natslab.probe.*"}'
            answer = await nc.request("$JS.API.STREAM.NAMES", probes)
            for name in json.loads(answer.data).get("streams") or []:
                made = int(name.removeprefix(PROBE).split("_")[0])
                if name == own or time.time() - made > 2 * START_DEADLINE:
                    with suppress(NotFoundError):  # somebody was faster
                        await nc.jetstream().delete_stream(name)
        await nc.close()

    async def _hear_each_other(self, servers: list[str], timeout: float) -> None:
        """Wait until messages flow from each of these servers to each."""
        clients = [await connect({**self.options, "servers": [server_]}) for server_ in servers]
        subject, heard = f"natslab.ready.{random.getrandbits(48):x}", set()

        def listener(ear: int) -> Callable[[Msg], Awaitable[None]]:
            async def listen(msg: Msg) -> None:
                heard.add((ear, msg.data))

            return listen

        async def all_heard() -> bool:
            for mouth, client in enumerate(clients):
                await client.publish(subject, b"%d" % mouth)
                await client.flush()
            return len(heard) == len(clients) ** 2

        try:
            for ear, client in enumerate(clients):
                await client.subscribe(subject, cb=listener(ear))
            await until(all_heard, timeout)
        except TimeoutError:
            raise LabError(f"The nodes do not hear each other. {self._how_to_mend()}") from None
        finally:
            for client in clients:
                await client.close()

    async def _prove(
        self, options: dict[str, Any], config: api.StreamConfig, end: float
    ) -> Exception | None:
        """The last error when no publish through these servers was acknowledged in time."""
        try:
            nc = await connect(options, max(0.5, min(2.5, end - time.monotonic())))
        except LabError as error:
            return error
        # An early request is never answered; asking again is harmless.
        js = nc.jetstream(timeout=0.2)
        try:
            while True:
                try:
                    await js.add_stream(config)
                    await js.publish(f"natslab.probe.{config.name}", b"")
                    return None
                except (TimeoutError, nats.errors.Error) as error:
                    if time.monotonic() > end:
                        return error
                    await asyncio.sleep(0.02)
        finally:
            await nc.close()

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

    async def _seen(
        self, verb: str, node: str, seen: Callable[[str], Awaitable[bool]], timeout: float
    ) -> None:
        try:
            await until(lambda: seen(node), timeout)
        except TimeoutError:
            raise LabError(f"{verb}: no effect seen on node {node} in {timeout:g} s") from None


async def connect(options: dict[str, Any], timeout: float = 2.5) -> Client:
    """A connection that fails within `timeout` seconds, with one sentence, instead of trying for two minutes.

    nats-py tries each server 60 times, 2 s apart, before it gives up on the *first* connection too;
    `allow_reconnect=False` ends that for a refused log-in only, so the number of attempts is bounded
    here as well. Without reconnects one hiccup in the handshake ends it too: try that again. Raises
    LabError.
    """
    where = " ".join(map(shown, options["servers"]))
    last: list[Exception] = []

    async def remember(error: Exception) -> None:
        last.append(error)

    bounded = {
        "allow_reconnect": False,
        "max_reconnect_attempts": max(1, int(timeout / 0.1)),
        "reconnect_time_wait": 0.05,
        "connect_timeout": 1,
        "error_cb": remember,
    }

    def no_log_in(error: Exception) -> bool:
        return "authorization" in f"{error} {last[-1:]}".lower()

    async def persist() -> Client:
        while True:
            try:
                return await nats.connect(**{**options, **bounded})
            except (OSError, nats.errors.Error) as error:
                if isinstance(error, nats.errors.NoServersError) or no_log_in(error):
                    raise
            await asyncio.sleep(0.05)

    try:
        async with asyncio.timeout(timeout):
            return await persist()
    except (TimeoutError, OSError, nats.errors.Error) as error:
        if no_log_in(error):
            raise LabError(
                f"{where} refuses this log-in: check the user in NATS_URL or the file in NATS_CREDS."
            ) from None
        raise LabError(
            f"No NATS server answers at {where}: start it, or unset NATS_URL to get an embedded cluster."
        ) from None


def shown(url: str) -> str:
    """A server's address for a message: without the log-in, which is nobody's business."""
    return re.sub(r"//[^/]*@", "//", url)


def _require_creds(path: str) -> None:
    """nats-py opens the file only when a server asks for a signature, and then fails in many ways."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise LabError(f"NATS_CREDS={path} {why}: check the path.") from None
    if "NATS USER JWT" not in text or not re.search(r"\bSU[A-Z2-7]{56}\b", text):
        raise LabError(f"NATS_CREDS={path} is not a credentials file: ask for a new one.")


# Embedded: three processes on this machine.


@dataclass
class Embedded(Cluster):
    """Three nats-server processes on loopback ports with a private store in `folder`."""

    kind: ClassVar[str] = "embedded"
    folder: Path = Path()
    binary: Path = Path()
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    async def start(cls, folder: Path, size: int = 3) -> Embedded:
        """Start `size` nodes whose stores and logs live in `folder`; ready within a second.

        Raises LabError when there is no server, no free port, or no quorum in time.
        """
        binary, _ = server.find_server()
        # The first election of a new cluster needs all votes. When two nodes stand at once nobody
        # wins, and the next try is 4 to 9 s away: starting again is faster. And somebody else may
        # have taken a port since we looked: each try has ports of its own.
        for patience in (1.5, 3.0, START_DEADLINE):
            with reserved_ports(folder, 3 * size) as ports:
                self = cls._planned(folder, binary, ports)
                for name in self.nodes:
                    await self._launch(name)
                try:
                    await self.prove_ready(patience)
                    break
                except LabError:
                    if patience == START_DEADLINE:
                        raise
                    await self._start_over()
        return self

    @classmethod
    def _planned(cls, folder: Path, binary: Path, ports: list[int]) -> Embedded:
        """A cluster that has its ports and settings, and is not started yet."""
        size = len(ports) // 3
        names = [f"n{i}" for i in range(1, size + 1)]
        client, route, monitor = (ports[i * size : (i + 1) * size] for i in range(3))
        self = cls(
            nodes={
                name: Node(name, f"nats://127.0.0.1:{c}", f"http://127.0.0.1:{m}")
                for name, c, m in zip(names, client, monitor, strict=True)
            },
            options={"servers": [f"nats://127.0.0.1:{c}" for c in client]},
            folder=folder,
            binary=binary,
        )
        routes = ", ".join(f"nats://127.0.0.1:{r}" for r in route)
        for i, name in enumerate(names):
            self.settings[name] = {
                "SERVER_NAME": name,
                "CLUSTER_NAME": f"natslab-{folder.name}",
                "CLIENT_LISTEN": f"127.0.0.1:{client[i]}",
                "CLIENT_ADVERTISE": f"127.0.0.1:{client[i]}",
                "MONITOR_LISTEN": f"127.0.0.1:{monitor[i]}",
                "ROUTE_LISTEN": f"127.0.0.1:{route[i]}",
                "ROUTES": f"[{routes}]",
                "STORE_DIR": json.dumps(str(folder / name)),
            }
        return self

    async def _start_over(self) -> None:
        for node, process in self.processes.items():
            process.kill()
            process.wait()
            shutil.rmtree(self.folder / node, ignore_errors=True)
        (self.folder / "ports.json").unlink()

    async def _launch(self, node: str) -> None:
        self.processes[node] = server.launch(self.binary, self.settings[node], self.folder)

    async def _signal(self, node: str, sig: signal.Signals) -> None:
        self.processes[node].send_signal(sig)

    async def is_down(self, node: str) -> bool:
        """The process has ended."""
        return self.processes[node].poll() is not None

    async def prove_ready(self, timeout: float = START_DEADLINE) -> None:
        """As for every cluster, but a node that exits ends the wait at once, with its last words."""
        ready = asyncio.ensure_future(super().prove_ready(timeout))
        while not ready.done():
            for node, process in self.processes.items():
                if process.poll() is not None:
                    ready.cancel()
                    raise LabError(f"Node {node} did not start: {self._last_words(node)}")
            await asyncio.wait([ready], timeout=0.05)
        await ready

    def _last_words(self, node: str) -> str:
        lines = (self.folder / f"{node}.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "its log is empty"

    async def close(self) -> None:
        """Forget the processes: the keeper of the folder has ended them."""
        for process in self.processes.values():
            await asyncio.to_thread(process.wait, 10)


@contextmanager
def reserved_ports(folder: Path, count: int) -> Iterator[list[int]]:
    """`count` loopback ports that nobody listens on and no other lab has claimed.

    The claim is a file in `folder` and lasts as long as the folder: a node that is down keeps its
    port. $NATSLAB_PORTS (`from-to`) names another range. Raises LabError when the range is too full.
    """
    wish = os.environ.get("NATSLAB_PORTS", DEFAULT_PORTS)
    if not re.fullmatch(r"\d+-\d+", wish):
        raise LabError(f"NATSLAB_PORTS={wish} is not a range: write it like {DEFAULT_PORTS}.")
    first, last = map(int, wish.split("-"))
    root = folder.parent
    with (root / "ports.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        claimed = {
            port for claim in root.glob("*/ports.json") for port in json.loads(claim.read_text())
        }
        candidates = [port for port in range(first, last + 1) if port not in claimed]
        random.shuffle(candidates)
        ports: list[int] = []
        for port in candidates:
            if len(ports) == count:
                break
            if _is_free(port):
                ports.append(port)
        if len(ports) < count:
            raise LabError(
                f"Only {len(ports)} of {count} ports needed are free in {first}-{last}: close other "
                "lessons, or set NATSLAB_PORTS=from-to to another range."
            )
        (folder / "ports.json").write_text(json.dumps(sorted(ports)))
        yield sorted(ports)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# External: servers of somebody else.


@dataclass
class External(Cluster):
    """Servers named by $NATS_URL, log-in from $NATS_CREDS. We may talk to them, not break them."""

    kind: ClassVar[str] = "external"

    @classmethod
    async def join(cls, urls: list[str], creds: str | None) -> External:
        """Check within 5 s that the servers answer, are new enough and make a replicated stream.

        Raises LabError.
        """
        options: dict[str, Any] = {"servers": urls}
        if creds:
            _require_creds(creds)
            options["user_credentials"] = creds
        nc = await connect(options)
        try:
            version = server.version_of(str(nc.connected_server_version))
            if version < server.MIN_VERSION:
                raise LabError(
                    f"The server at {shown(urls[0])} is {'.'.join(map(str, version))}, the course needs 2.12 or newer."
                )
            await nc.jetstream(timeout=2).account_info()
            known = [f"{at.hostname}:{at.port}" for at in nc.servers]
        except (TimeoutError, nats.errors.NoRespondersError, APIError) as error:
            raise LabError(
                f"JetStream does not answer at {shown(urls[0])} ({error or 'timeout'}): "
                "it is off for this account, or the cluster has no quorum."
            ) from None
        finally:
            await nc.close()
        nodes = {f"s{i}": Node(f"s{i}", f"nats://{at}", "") for i, at in enumerate(known, 1)}
        self = cls(nodes=nodes, options=options)
        # A leader that has just lost its followers answers as before for ten seconds or more.
        await self.prove_ready(timeout=2.0)
        return self

    async def _signal(self, node: str, sig: signal.Signals) -> None:
        raise LabError("This cluster is not ours to break (NATS_URL is set).")

    async def _launch(self, node: str) -> None:
        raise LabError("This cluster is not ours to start (NATS_URL is set).")

    async def close(self) -> None:
        """Nothing is held: every call connects for itself."""

    async def view(self) -> list[dict[str, Any]]:
        """The nodes by address only: the monitoring ports of an external cluster are unknown."""
        nobody = {"up": True, "clients": [], "leads": [], "meta_leader": False}
        return [{"name": name, **nobody} for name in self.nodes]

    async def is_healthy(self, node: str) -> bool:
        """Not ours to ask: monitoring ports of an external cluster are unknown."""
        return True
