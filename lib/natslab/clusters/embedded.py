"""nats-server processes on this machine: one cluster, or several regions with links between them."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import subprocess
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from natslab.check import until
from natslab.clusters import plan, ready, server
from natslab.clusters.base import Cluster, nodes_of, servers_of
from natslab.clusters.links import Doors, Relay, links_between
from natslab.clusters.plan import Joined, Plan, Secure, Tls
from natslab.clusters.ports import reserve_ports
from natslab.clusters.ready import START_DEADLINE
from natslab.errors import LabError
from natslab.paths import NATS_CONF
from natslab.tasks import together

if TYPE_CHECKING:
    from natslab.auth import Certificates

ONE_CLUSTER = {"": 3}
# The first election of a new cluster needs all votes. When two nodes stand at once nobody wins, and
# the next try is 4 to 9 s away: starting again is faster.
PATIENCE = (1.5, 3.0, START_DEADLINE)
ENDED_WITHIN = 5.0  # seconds after SIGKILL


class NodeEnded(LabError):
    """A node that was to start has ended."""


@dataclass
class Embedded(Cluster):
    """nats-server processes on loopback ports with private stores in `folder`.

    `accounts` holds what `nats.connect` needs for each of them, `options` is that of the first.
    """

    kind: ClassVar[str] = "embedded"
    folder: Path = Path()
    binary: Path = Path()
    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    relay: Relay | None = None
    certificates: Certificates | None = None
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    async def start(
        cls,
        folder: Path,
        regions: Mapping[str, int] = ONE_CLUSTER,
        *,
        joined: Joined = "leaf",
        secure: bool = False,
    ) -> Embedded:
        """Start the nodes of `regions` (name: how many); stores and logs live in `folder`.

        Ready in about a second. `joined`: how regions are; `secure`: TLS, and the accounts SHOP and
        PAY. Raises LabError when there is no server, no free port, or no quorum in time; then, and
        when it is cancelled, it leaves no process.
        """
        binary, _ = await asyncio.to_thread(server.find_server)
        log_ins: dict[str, dict[str, Any]] = {}
        security, files = None, None
        if secure:
            log_ins, security, files = _secure(folder / "tls")
        # Somebody else may have taken a port since we looked: each try has ports of its own.
        for tries_left in (2, 1, 0):
            planned, doors = _planned(folder, regions, joined, security)
            self = cls._of(planned, log_ins, folder, binary)
            self.certificates = files
            try:
                if doors:
                    self._link(doors)
                await self._bring_up()
                return self
            except NodeEnded:
                self._end()
                if not tries_left:
                    raise
                self._forget(self.nodes)
            except BaseException:  # an interrupt too
                self._end()
                raise
        raise AssertionError("the last try returns or raises")

    @classmethod
    def _of(
        cls, planned: Plan, log_ins: Mapping[str, dict[str, Any]], folder: Path, binary: Path
    ) -> Embedded:
        """A cluster that has its plan, and is not started yet."""
        scheme, first = ("tls", next(iter(log_ins.values()))) if log_ins else ("nats", {})
        nodes = nodes_of(planned, scheme)
        servers = servers_of(planned, nodes)
        regions = {region: options | first for region, options in servers.items()}
        home = next(iter(regions.values()))
        return cls(
            nodes=nodes,
            options=home,
            folder=folder,
            binary=binary,
            plan=planned,
            regions=regions,
            accounts={account: {**home, **log_in} for account, log_in in log_ins.items()},
        )

    def _link(self, doors: Doors) -> None:
        """Start the relay that stands between the regions."""
        self.relay = Relay(self.folder, doors)
        self.links = links_between(self.plan, self.regions, self.relay, self.events)

    # How it starts.
    async def _bring_up(self) -> None:
        # Gateways find the regions before them; regions with leaf links do not wait for each other.
        await together(self._raise_region(region) for region in self.plan.regions)
        for link in self.links.values():
            await self._while_all_run(link.stands(), self.nodes)

    async def _raise_region(self, region: str) -> None:
        names = self.plan.regions[region]
        if self.plan.hub not in ("", region):
            await together([self._hub_listens(), self._relay_listens()])
        for patience in PATIENCE:
            for name in names:
                await self._launch(name)
            try:
                await self._prove(region, patience)
                return
            except NodeEnded:
                raise
            except LabError:
                if patience == PATIENCE[-1]:
                    raise
                await asyncio.to_thread(self._kill, names)
                for name in names:
                    shutil.rmtree(self.folder / name, ignore_errors=True)

    async def _hub_listens(self) -> None:
        """A leaf that comes too early tries again a second later."""
        monitors = [self.nodes[node].monitor for node in self.plan.regions[self.plan.hub]]

        async def listens() -> bool:
            # Ok as soon as every port of a node is open; plain /healthz waits for a quorum too.
            asked = (server.ask(f"{url}/healthz?js-server-only=true", 0.3) for url in monitors)
            return None not in await asyncio.gather(*asked)

        with suppress(TimeoutError):  # what is wrong there is told by the hub itself
            await until(listens, PATIENCE[0])

    async def _relay_listens(self) -> None:
        if self.relay is not None:
            try:
                await self.relay.opens()
            except LabError as error:  # perhaps one of its ports was taken
                raise NodeEnded(str(error)) from None

    async def prove_ready(self, timeout: float = START_DEADLINE) -> None:
        """As for every cluster, and in every region; a node that exits ends the wait at once."""
        await together(self._prove(region, timeout) for region in self.plan.regions)

    async def _prove(self, region: str, timeout: float) -> None:
        try:
            proof = ready.prove(self.regions[region], timeout)
            await self._while_all_run(proof, self.plan.regions[region])
        except ready.NotReady as error:
            raise LabError(await self._not_ready(error)) from None

    async def _while_all_run(self, wait: Coroutine[Any, Any, None], nodes: Iterable[str]) -> None:
        """Wait for it, but not for a node that has ended. Raises NodeEnded with its last words."""
        task = asyncio.ensure_future(wait)
        try:
            while not task.done():
                for node in nodes:
                    if why := self._hopeless(node):
                        raise NodeEnded(why)
                await asyncio.wait([task], timeout=0.05)
            await task
        finally:
            task.cancel()
            await asyncio.wait([task])

    # The verbs.
    async def _launch(self, node: str) -> None:
        planned = self.plan.nodes[node]
        conf = NATS_CONF.with_name(planned.conf)
        self.processes[node] = server.launch(self.binary, planned.settings, self.folder, conf)

    async def _signal(self, node: str, sig: signal.Signals) -> None:
        self.processes[node].send_signal(sig)

    async def is_down(self, node: str) -> bool:
        """The process has ended."""
        return self.processes[node].poll() is not None

    def has_files_of(self, stream: str, region: str = "") -> bool:
        """A running node of the region, "" is the first, still has files of this stream."""
        nodes = self.plan.regions[region or next(iter(self.plan.regions))]
        running = (node for node in nodes if self.processes[node].poll() is None)
        return any(
            any((self.folder / node).glob(f"jetstream/*/streams/{stream}")) for node in running
        )

    def _hopeless(self, node: str) -> str:
        """Its process has ended: nothing will be seen on it."""
        if self.processes[node].poll() is None:
            return ""
        return f"Node {node} did not start: {self._last_words(node)}"

    def _last_words(self, node: str) -> str:
        lines: list[str] = []
        with suppress(FileNotFoundError):
            lines = (self.folder / f"{node}.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "its log is empty"

    # How it ends.
    async def close(self) -> None:
        """Forget the processes: the keeper of the folder has ended them.

        Raises LabError when one does not end.
        """
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._kill(self.processes)
        if self.relay is not None:
            self.relay.end()

    def _kill(self, nodes: Iterable[str]) -> None:
        there = {node: self.processes[node] for node in nodes if node in self.processes}
        for process in there.values():
            process.kill()
        for node, process in there.items():
            try:
                process.wait(ENDED_WITHIN)
            except subprocess.TimeoutExpired:
                raise LabError(
                    f"Node {node} does not end (process {process.pid}): the disk under "
                    f"{self.folder} hangs, or a debugger holds it."
                ) from None

    def _forget(self, nodes: Iterable[str]) -> None:
        """Stores of nodes that have ended, and the claim on their ports."""
        for node in nodes:
            shutil.rmtree(self.folder / node, ignore_errors=True)
        (self.folder / "ports.json").unlink(missing_ok=True)


def _planned(
    folder: Path, regions: Mapping[str, int], joined: Joined, security: Secure | None
) -> tuple[Plan, Doors]:
    """A plan with ports of its own, and the doors of the relay between the regions."""
    uses = plan.uses(regions, joined)
    hub_size, *others = regions.values()
    n_doors = hub_size * len(others) if joined == "leaf" else 0
    ports = reserve_ports(folder, sum(regions.values()) * len(uses) + n_doors)
    spare = iter(ports[len(ports) - n_doors :])
    behind: dict[str, dict[int, str]] = {}

    def via(region: str, node: str) -> str:
        port = next(spare)
        behind.setdefault(region, {})[port] = node
        return f"127.0.0.1:{port}"

    planned = plan.plan(
        regions,
        plan.local(ports, folder, uses),
        cluster=f"natslab-{folder.name}",
        joined=joined,
        security=security,
        via=via,
        born_in_order=True,
    )
    doors = {
        region: {port: f"127.0.0.1:{planned.nodes[node].at.leaf}" for port, node in ports.items()}
        for region, ports in behind.items()
    }
    return planned, doors


def _secure(folder: Path) -> tuple[dict[str, dict[str, Any]], Secure, Certificates]:
    """New certificates and passwords: per account what `nats.connect` needs, and for the plan."""
    from natslab import auth  # loads cryptography, which no other lab needs

    files = auth.certificates(folder)
    context = files.context()
    users = plan.SECURE | plan.SYSTEM
    passwords = {account: secrets.token_urlsafe(16) for account in users}
    log_ins = {
        account: {"user": user, "password": passwords[account], "tls": context}
        for account, user in users.items()
    }
    tls = Tls(files.server, files.server_key, files.ca)
    return log_ins, Secure(passwords, tls), files
