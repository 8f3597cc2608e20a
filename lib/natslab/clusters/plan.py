"""One table: regions x nodes x security become names, addresses and settings of nats-server.

`plan` does not know where nodes live: `place(name, number)` tells each node's addresses. `local` does
that for processes of this machine, `containers` for compose, `pods` for Kubernetes. The settings
are environment variables, which fill in `infra/nats/`; `Planned.conf` is the file there that a
node starts with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from natslab.errors import LabError

Joined = Literal["leaf", "gateway"]
PORTS = {"client": 4222, "monitor": 8222, "route": 6222, "leaf": 7422, "gateway": 7222}
# The users in `infra/nats/parts/app.conf` and `accounts.conf`: account -> name.
OPEN = {"APP": "app"}
SECURE = {"SHOP": "shop", "PAY": "pay"}
SYSTEM = {"$SYS": "sys"}


@dataclass(frozen=True)
class At:
    """Where one node is: `listen` is the host it binds, `host` the one its neighbours know.

    Ports are those it listens on. `told` (host:port) is what it tells clients, `monitor_url` and
    `store` are where this machine asks it and where it writes.
    """

    listen: str
    host: str
    client: int
    monitor: int
    route: int
    told: str
    monitor_url: str
    store: str
    leaf: int = 0
    gateway: int = 0


@dataclass(frozen=True)
class Tls:
    """Certificate files of the servers; with `verify` a client needs a certificate too."""

    cert: Path | str
    key: Path | str
    ca: Path | str
    verify: bool = False


@dataclass(frozen=True)
class Secure:
    """TLS, and the passwords of the users in `SECURE` and `SYSTEM`, by account."""

    passwords: Mapping[str, str]
    tls: Tls


@dataclass(frozen=True)
class Operator:
    """Signed documents instead of users: see `natslab.auth`. `preload` maps account keys to JWTs."""

    jwt: str
    system_account: str
    preload: Mapping[str, str]


@dataclass(frozen=True)
class Planned:
    """One node: its region ("" if there is but one), where it is, its file and its settings."""

    name: str
    region: str
    at: At
    conf: str
    settings: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """All nodes by name. `hub` is the region that the others hang on by leaf nodes, if they do."""

    nodes: dict[str, Planned]
    regions: dict[str, list[str]] = field(default_factory=dict)
    hub: str = ""


Place = Callable[[str, int], At]
Via = Callable[[str, str], str]


def plan(
    regions: Mapping[str, int],
    place: Place,
    *,
    cluster: str = "natslab",
    joined: Joined = "leaf",
    security: Secure | Operator | None = None,
    via: Via | None = None,
    born_in_order: bool = False,
) -> Plan:
    """Names, addresses and settings of `regions` (name: number of nodes); {"": 3} is one cluster.

    `place(name, number)` is asked once per node, `number` counts from 1 over all of them.
    `via(region, node)` is the address (host:port) under which an outer region reaches `node` of
    the hub, if it is not the node's own. `born_in_order`: no gateways to regions that come later,
    or the first election waits for all of them. Raises LabError for what cannot work.
    """
    _require(regions, joined, security)
    several = len(regions) > 1
    names = {
        region: _names(f"{region}-" if several else "n", size) for region, size in regions.items()
    }
    ats = _places(names, place)
    hub = next(iter(regions)) if several and joined == "leaf" else ""
    nodes = {}
    for number, (region, members) in enumerate(names.items()):
        near = {name: ats[name] for name in members}
        shared = _cluster(near, region if several else cluster, domain=region if hub else "")
        shared |= _security(security)
        if not several:
            kind = ""
        elif region == hub:
            kind = "hub"
        elif hub:
            kind = "region"
            shared |= _remotes(region, {name: ats[name] for name in names[hub]}, security, via)
        else:
            kind = "gateways"
            others = dict(list(names.items())[:number] if born_in_order else names.items())
            shared |= _gateways(region, others, ats)
        for name in members:
            settings = shared | _own(name, ats[name], kind)
            nodes[name] = Planned(name, region, ats[name], _conf(kind, security), settings)
    return Plan(nodes, names, hub)


def _require(
    regions: Mapping[str, int], joined: Joined, security: Secure | Operator | None
) -> None:
    several = len(regions) > 1
    if not regions or min(regions.values()) < 1:
        raise LabError('Say how many nodes each region has: {"us-east": 3, "eu-west": 3}.')
    for region in regions:
        if several and not re.fullmatch(r"[a-z][a-z0-9-]*", region):
            raise LabError(f"A region is called like us-east, not {region!r}.")
    # A cluster of one never elects a leader (503 10008), one of two stands still without the other.
    # Gateways make one group of all regions, which the first has to begin.
    sizes = list(regions.values())
    if min(sizes[:1] if several and joined == "gateway" else sizes) < 3:
        raise LabError(
            "A region needs three nodes for a quorum of its own; "
            "one is enough for those that gateways join to the first."
        )
    if several and isinstance(security, Operator):
        raise LabError("Regions and an operator together are not planned: use accounts with TLS.")


def _names(prefix: str, size: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(1, size + 1)]


def _places(names: Mapping[str, Iterable[str]], place: Place) -> dict[str, At]:
    every = [name for members in names.values() for name in members]
    return {name: place(name, number) for number, name in enumerate(every, 1)}


def _conf(kind: str, security: Secure | Operator | None) -> str:
    """The file in `infra/nats/` that a node starts with."""
    if isinstance(security, Operator):
        return "operator.conf"
    if security:
        return f"secure_{kind}.conf" if kind else "secure.conf"
    return f"{kind or 'nats'}.conf"


def _cluster(near: Mapping[str, At], name: str, domain: str) -> dict[str, str]:
    """What the nodes of one cluster share."""
    routes = ", ".join(f"nats://{at.host}:{at.route}" for at in near.values())
    return {"CLUSTER_NAME": name, "ROUTES": f"[{routes}]", "DOMAIN": quoted(domain)}


def _own(name: str, at: At, kind: str) -> dict[str, str]:
    """What each node has for itself."""
    own = {
        "SERVER_NAME": name,
        "CLIENT_LISTEN": f"{at.listen}:{at.client}",
        "CLIENT_ADVERTISE": at.told,
        "MONITOR_LISTEN": f"{at.listen}:{at.monitor}",
        "ROUTE_LISTEN": f"{at.listen}:{at.route}",
        "STORE_DIR": quoted(at.store),
    }
    if kind == "hub":
        own["LEAF_LISTEN"] = f"{at.listen}:{at.leaf}"
    if kind == "gateways":
        own["GATEWAY_LISTEN"] = f"{at.listen}:{at.gateway}"
        own["GATEWAY_ADVERTISE"] = f"{at.host}:{at.gateway}"
    return own


def _users(security: Secure | Operator | None) -> dict[str, tuple[str, str]]:
    """account -> name and password, for the accounts that regions share."""
    if isinstance(security, Secure):
        return {account: (user, security.passwords[account]) for account, user in SECURE.items()}
    return {account: (user, user) for account, user in OPEN.items()}


def _security(security: Secure | Operator | None) -> dict[str, str]:
    """Who may log in."""
    if isinstance(security, Operator):
        preload = ", ".join(f"{key}: {quoted(jwt)}" for key, jwt in security.preload.items())
        return {
            "OPERATOR": quoted(security.jwt),
            "SYSTEM_ACCOUNT": quoted(security.system_account),
            "PRELOAD": f"{{ {preload} }}",
        }
    if security is None:
        return {}
    passwords = {
        f"{account.lstrip('$')}_PASSWORD": quoted(security.passwords[account])
        for account in SECURE | SYSTEM
    }
    return passwords | {
        "TLS_CERT": quoted(security.tls.cert),
        "TLS_KEY": quoted(security.tls.key),
        "TLS_CA": quoted(security.tls.ca),
        "TLS_VERIFY": str(security.tls.verify).lower(),
    }


def _remotes(
    region: str, hub: Mapping[str, At], security: Secure | Operator | None, via: Via | None
) -> dict[str, str]:
    """Where an outer region finds the hub: one remote per account, each knows every node."""
    where = [via(region, name) if via else f"{at.host}:{at.leaf}" for name, at in hub.items()]
    remotes = []
    for account, (user, password) in _users(security).items():
        urls = ", ".join(
            quoted(f"nats://{quote(user)}:{quote(password, safe='')}@{address}")
            for address in where
        )
        remotes.append(f"{{ urls: [{urls}], account: {account} }}")
    return {"REMOTES": f"[{', '.join(remotes)}]"}


def _gateways(
    region: str, others: Mapping[str, Iterable[str]], ats: Mapping[str, At]
) -> dict[str, str]:
    """Where a cluster finds the others."""
    gateways = []
    for other, names in others.items():
        urls = ", ".join(f'"nats://{ats[name].host}:{ats[name].gateway}"' for name in names)
        gateways.append(f"{{ name: {other}, urls: [{urls}] }}")
    return {"REGION_TAG": quoted(f"region:{region}"), "GATEWAYS": f"[{', '.join(gateways)}]"}


def quoted(value: Path | str) -> str:
    """For the parser of nats-server, which reads a variable like its file; it knows no \\u escapes."""
    return json.dumps(str(value), ensure_ascii=False)


def published(number: int) -> tuple[int, int]:
    """Where the container of a node is found on 127.0.0.1: client port, monitoring port."""
    return 4220 + number, 8220 + number


def container_regions() -> tuple[Plan, dict[str, dict[int, str]]]:
    """The regions of `infra/compose.yaml`, and the doors of the relay between them, which is `wan`."""
    doors: dict[str, dict[int, str]] = {}

    def via(region: str, node: str) -> str:
        behind = doors.setdefault(region, {})
        port = PORTS["leaf"] + len(behind)
        behind[port] = f"{node}:{PORTS['leaf']}"
        return f"wan:{port}"

    return plan({"us-east": 3, "eu-west": 3}, containers(first=11), via=via), doors


# Where nodes live: the three kinds of `place`.
def uses(regions: Mapping[str, int], joined: Joined) -> tuple[str, ...]:
    """What a node of these regions listens for: names of ports."""
    return ("client", "monitor", "route", *([joined] if len(regions) > 1 else []))


def local(ports: Iterable[int], folder: Path, uses: Iterable[str] = PORTS) -> Place:
    """Processes of this machine: every use has a port of its own, every store is in `folder`."""
    free = iter(ports)

    def place(name: str, number: int) -> At:
        own = {use: next(free) for use in uses}
        told, monitor = f"127.0.0.1:{own['client']}", f"http://127.0.0.1:{own['monitor']}"
        store = str(folder / name)
        return At("127.0.0.1", "127.0.0.1", told=told, monitor_url=monitor, store=store, **own)

    return place


def containers(first: int = 1) -> Place:
    """Containers that find each other by name; number 1 is published on 127.0.0.1 at 4221 and 8221."""

    def place(name: str, number: int) -> At:
        client, monitor = published(first - 1 + number)
        told, asked = f"127.0.0.1:{client}", f"http://127.0.0.1:{monitor}"
        return At("0.0.0.0", name, told=told, monitor_url=asked, store="/data", **PORTS)

    return place


def pods(service: str = "nats", namespace: str = "default") -> Place:
    """Pods with a stable name behind the headless `service`: clients are inside the cluster too."""

    def place(name: str, number: int) -> At:
        host = f"{name}.{service}.{namespace}.svc.cluster.local"
        told, asked = f"{host}:{PORTS['client']}", f"http://{host}:{PORTS['monitor']}"
        return At("0.0.0.0", host, told=told, monitor_url=asked, store="/data", **PORTS)

    return place
