"""The same verbs on the containers of `infra/compose.yaml`, shared by all lessons of this machine."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from typing import Any, ClassVar

from natslab.clusters import server
from natslab.clusters.base import Cluster, Event, Node
from natslab.clusters.turns import Turns
from natslab.errors import LabError

NAME = "natslab"  # of the compose project, and of the NATS cluster in it
NODES = {
    f"n{i}": Node(f"n{i}", f"nats://127.0.0.1:{4220 + i}", f"http://127.0.0.1:{8220 + i}")
    for i in (1, 2, 3)
}


async def is_up() -> bool:
    """True when a node of the compose cluster answers on its published monitoring port."""
    seen = await asyncio.gather(*(server.ask(f"{n.monitor}/varz", 0.5) for n in NODES.values()))
    return any(node and node.get("cluster", {}).get("name") == NAME for node in seen)


@dataclass
class Compose(Cluster):
    """The three containers n1, n2, n3."""

    kind: ClassVar[str] = "compose"
    turns: Turns = field(default_factory=Turns)

    @classmethod
    async def join(cls) -> Compose:
        """Use the running compose cluster; start a node that an interrupted drill left down.

        Raises LabError when there is no engine, no cluster, or no quorum.
        """
        from natslab.clusters.compose_cli import require_engine

        await asyncio.to_thread(require_engine)
        if not await is_up():
            raise LabError("The compose cluster is not up: run `natslab up`.")
        self = cls(nodes=NODES, options={"servers": [node.url for node in NODES.values()]})
        try:
            await asyncio.to_thread(self.turns.before_cell)
            # An election takes up to 10 s; without a majority of nodes there is none to wait for.
            up = sum(await asyncio.gather(*map(self.answers, self.nodes)))
            await self.prove_ready(timeout=20.0 if 2 * up > len(self.nodes) else 5.0)
            for node in await self.unhealthy():
                await self._launch(node)
            await self.wait_until_healthy()
        except BaseException:
            self.turns.end()
            raise
        self._each_cell("register")
        return self

    async def close(self) -> None:
        """Leave the cluster as it is: whole, or the next lesson would have to mend it."""
        if self.turns._drilling:
            for node in await self.unhealthy():
                await self._launch(node)
            await self.wait_until_healthy()
        self._each_cell("unregister")
        self.turns.end()

    async def cut(self, node: str) -> Event:
        """`docker network disconnect`: the node runs, and nobody can reach it."""
        await self.turns.drill()
        action = docker("network", "disconnect", f"{NAME}_default", container(node))
        return await self._do("cut", node, action, self.is_silent)

    async def heal(self, node: str) -> Event:
        """`docker network connect`, with the alias under which the other nodes look for it."""
        return await self._do("heal", node, self._connect(node), self.is_healthy)

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

    async def _launch(self, node: str) -> None:
        """From whatever state a drill left it in."""
        state = await docker(
            "inspect", "-f", "{{.State.Status}} {{.NetworkSettings.Networks}}", container(node)
        )
        if state.startswith("paused"):
            await docker("unpause", container(node))
        elif not state.startswith("running"):
            await docker("start", container(node))
        if f"{NAME}_default" not in state:
            await self._connect(node)

    async def _connect(self, node: str) -> None:
        await docker("network", "connect", "--alias", node, f"{NAME}_default", container(node))

    async def _seen(self, *args: Any, **kwargs: Any) -> None:
        await super()._seen(*args, **kwargs)
        if self.turns._drilling and not await self.unhealthy():
            self.turns.over()

    def _how_to_mend(self) -> str:
        return "Start the missing nodes with `natslab up` and run this cell again."

    def _each_cell(self, verb: str) -> None:
        """Take a turn for each cell, when this is a notebook."""
        from IPython.core.getipython import get_ipython

        shell = get_ipython()
        if shell is not None:
            getattr(shell.events, verb)("pre_run_cell", self.turns.before_cell)
            getattr(shell.events, verb)("post_run_cell", self.turns.after_cell)


def container(node: str) -> str:
    """The container name that compose gives to a node."""
    return f"{NAME}-{node}-1"


async def docker(*words: str) -> str:
    """Run a docker command and return what it prints. Raises LabError with docker's own last line."""
    process = await asyncio.create_subprocess_exec(
        "docker", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode:
        raise LabError(
            f"docker {' '.join(words)}: {(err.decode().strip().splitlines() or ['no message'])[-1]}"
        )
    return out.decode().strip()
