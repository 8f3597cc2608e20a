"""Three nats-server processes on this machine."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from natslab.clusters import server
from natslab.clusters.base import Cluster, Node
from natslab.clusters.ports import reserved_ports
from natslab.clusters.ready import START_DEADLINE
from natslab.errors import LabError


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
