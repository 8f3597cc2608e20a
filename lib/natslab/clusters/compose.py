"""The same verbs on the containers of `infra/compose.yaml`, shared by all lessons of this machine."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from typing import Any, ClassVar

from natslab.clusters import server
from natslab.clusters.base import Cluster, Event, Node
from natslab.clusters.compose_cli import PORTS, project, require_engine
from natslab.clusters.turns import Turns
from natslab.errors import LabError

NODES = {
    name: Node(name, f"nats://127.0.0.1:{client}", f"http://127.0.0.1:{monitor}")
    for name, (client, monitor) in PORTS.items()
}


DOCKER_SECONDS = 30.0  # a stop of a container takes 1 to 2 s, all else less


async def is_up() -> bool:
    """True when a node of the compose cluster answers on its published monitoring port."""
    seen = await asyncio.gather(*(server.ask(f"{n.monitor}/varz", 0.5) for n in NODES.values()))
    return any(node and node.get("cluster", {}).get("name") == project() for node in seen)


@dataclass
class Compose(Cluster):
    """The three containers n1, n2, n3."""

    kind: ClassVar[str] = "compose"
    turns: Turns = field(default_factory=Turns)

    @classmethod
    async def join(cls) -> Compose:
        """Use the running compose cluster; start what an interrupted drill left down.

        Nobody drills while we hold a turn, so a node that is down was left so. Raises LabError when
        there is no engine, no cluster, or a node cannot be started.
        """
        await asyncio.to_thread(require_engine)
        if not await is_up():
            raise LabError("The compose cluster is not up: run `natslab up`.")
        self = cls(nodes=NODES, options={"servers": [node.url for node in NODES.values()]})
        try:
            await self.turns.share()
            await self._start_missing()
            await self.prove_ready(timeout=20.0)  # an election takes up to 10 s
        except BaseException:
            self.turns.end()
            raise
        self.turns.each_cell()
        return self

    async def mend(self) -> None:
        """Start what a drill left down, or the next lesson would have to."""
        if self.turns.drilling:
            await self._start_missing()

    async def make_whole(self, timeout: float = 30.0) -> None:
        """Bring back what a drill has left frozen, dead or cut off."""
        await self._start_missing()

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
        if self.turns.drilling and not await self.unhealthy():
            self.turns.over()

    def _how_to_mend(self) -> str:
        return "Start the missing nodes with `natslab up` and run this cell again."


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
