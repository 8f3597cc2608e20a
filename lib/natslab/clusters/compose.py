"""The same verbs on the containers of `infra/compose.yaml`, shared by all lessons of this machine."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

from natslab.clusters import server
from natslab.clusters.base import Cluster, Event, nodes_of, servers_of
from natslab.clusters.compose_cli import CLUSTER, REGIONS, WAN, project, require_engine
from natslab.clusters.links import links_between
from natslab.clusters.plan import Plan
from natslab.clusters.turns import Turns
from natslab.errors import LabError

NODES = nodes_of(CLUSTER)
SIZES = {region: len(nodes) for region, nodes in REGIONS.regions.items()}

DOCKER_SECONDS = 30.0  # a stop of a container takes 1 to 2 s, all else less
RELAY_SECONDS = 10.0  # to be told what a link shall be: 0.1 s


async def is_up(planned: Plan = CLUSTER) -> bool:
    """True when a node of the compose cluster, or of its regions, answers on its monitoring port."""
    clusters = {*planned.regions} if planned.hub else {project()}
    nodes = nodes_of(planned).values()
    seen = await asyncio.gather(*(server.ask(f"{node.monitor}/varz", 0.5) for node in nodes))
    return any(node and node.get("cluster", {}).get("name") in clusters for node in seen)


@dataclass
class Compose(Cluster):
    """The three containers n1, n2, n3, or those of two regions and the relay between them."""

    kind: ClassVar[str] = "compose"
    turns: Turns = field(default_factory=Turns)

    @classmethod
    async def join(cls, planned: Plan = CLUSTER) -> Compose:
        """Use the running compose cluster or `REGIONS`; start what an interrupted drill left down.

        Nobody drills while we hold a turn, so a node that is down was left so. Raises LabError when
        there is no engine, no cluster, or a node cannot be started.
        """
        await asyncio.to_thread(require_engine)
        if not await is_up(planned):
            raise LabError(f"The compose cluster is not up: run `{_up(planned)}`.")
        nodes = nodes_of(planned)
        regions = servers_of(planned, nodes)
        home = next(iter(regions.values()))
        turns = Turns("regions" if planned.hub else "compose")
        self = cls(nodes=nodes, options=home, turns=turns, plan=planned, regions=regions)
        if planned.hub:
            self.links = links_between(planned, regions, Wan(turns), self.events)
        try:
            await self.turns.share()
            await self._start_missing()
            await self.prove_ready(timeout=20.0)  # an election takes up to 10 s
            for link in self.links.values():  # an interrupted lesson may have left it in any state
                await link.reset()
                await link.stands()
            if self.turns.drilling:
                self.turns.over()
        except BaseException:
            self.turns.end()
            raise
        self.turns.each_cell()
        return self

    async def mend(self) -> None:
        """Start what a drill left down, or the next lesson would have to."""
        if self.turns.drilling:
            await self._start_missing()
            for link in self.links.values():
                await link.reset()

    async def make_whole(self, timeout: float = 30.0) -> None:
        """Bring back what a drill has left frozen, dead or cut off, and heal the links."""
        await self._start_missing()
        await self._heal_links()

    async def _start_missing(self) -> None:
        for node in await self.unhealthy():
            await self._launch(node)
        await self.wait_until_healthy()

    async def close(self) -> None:
        """Leave the cluster to the others."""
        self.turns.end()

    async def cut(self, node: str) -> Event:
        """`docker network disconnect`: the node runs, and nobody can reach it."""
        await self.turns.drill()
        action = docker("network", "disconnect", network(), container(node))
        return await self._do("cut", node, action, self.is_silent)

    async def heal(self, node: str) -> Event:
        """`docker network connect`, with the alias under which the other nodes look for it."""
        return await self._do("heal", node, self._connect(node), self.is_back)

    async def pause(self, node: str) -> Event:
        """Freeze the container."""
        await self.turns.drill()
        return await self._do("pause", node, docker("pause", container(node)), self.is_silent)

    async def resume(self, node: str) -> Event:
        """Let a paused container go on."""
        return await self._do("resume", node, docker("unpause", container(node)), self.answers)

    async def _signal(self, node: str, sig: signal.Signals) -> None:
        await self.turns.drill()
        await docker("kill", "--signal", sig.name, container(node))

    async def _wake(self, node: str) -> None:
        if await docker("inspect", "-f", "{{.State.Paused}}", container(node)) == "true":
            await docker("unpause", container(node))

    async def _launch(self, node: str) -> None:
        """From whatever state a drill left it in."""
        state = await docker(
            "inspect", "-f", "{{.State.Status}} {{.NetworkSettings.Networks}}", container(node)
        )
        if state.startswith("paused"):
            await docker("unpause", container(node))
        elif not state.startswith("running"):
            await docker("start", container(node))
        if network() not in state:
            await self._connect(node)

    async def _connect(self, node: str) -> None:
        await docker("network", "connect", "--alias", node, network(), container(node))

    async def _seen(self, *args: Any, **kwargs: Any) -> None:
        await super()._seen(*args, **kwargs)
        whole = all(link.is_whole() for link in self.links.values())
        if self.turns.drilling and whole and not await self.unhealthy():
            self.turns.over()

    def _how_to_mend(self) -> str:
        return f"Start the missing nodes with `{_up(self.plan)}` and run this cell again."


def _up(planned: Plan) -> str:
    return "natslab up --regions" if planned.hub else "natslab up"


@dataclass
class Wan:
    """The relay between the regions: a container that is told on its standard input.

    What a link shall be holds for everybody, so whoever says it takes the turn for a drill.
    """

    turns: Turns

    async def set(self, wish: Mapping[str, Any]) -> None:
        """Send `wish` and wait until it holds. Raises LabError when the relay is gone."""
        await self.turns.drill()
        attach = await asyncio.create_subprocess_exec(
            *("docker", "attach", "--sig-proxy=false", container(WAN)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert attach.stdin is not None and attach.stdout is not None
        said = b""
        try:
            # ConnectionError: it ended at once, for there is no such container.
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(RELAY_SECONDS):
                    attach.stdin.write(json.dumps(wish).encode() + b"\n")
                    said = await attach.stdout.readline()
        finally:
            with suppress(ProcessLookupError):
                attach.kill()
            await attach.wait()
        if not said:
            raise LabError(
                "The relay between the regions does not answer: run `natslab up --regions`."
            )


def container(node: str) -> str:
    """The container name that compose gives to a node."""
    return f"{project()}-{node}-1"


def network() -> str:
    """The network that compose makes for the nodes."""
    return f"{project()}_default"


async def docker(*words: str) -> str:
    """Run a docker command and return what it prints.

    Raises LabError with docker's own last line, and when it has not done it within 30 s.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "docker", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError:
        raise LabError("The docker command is gone: install Docker again.") from None
    try:
        async with asyncio.timeout(DOCKER_SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        raise LabError(
            f"docker {' '.join(words)}: not done within {DOCKER_SECONDS:g} s: restart Docker."
        ) from None
    finally:
        if process.returncode is None:  # too slow, or cancelled
            process.kill()
            await process.communicate()
    if process.returncode:
        if "No such" in err.decode():
            raise LabError(f"The container {words[-1]} is not there: run `natslab up`.")
        raise LabError(
            f"docker {' '.join(words)}: {(err.decode().strip().splitlines() or ['no message'])[-1]}"
        )
    return out.decode().strip()
