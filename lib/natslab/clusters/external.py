"""Somebody else's servers, which we only talk to, and what their owner gave us: addresses, a log-in, a CA."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import ssl
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import nats.errors
from nats.aio.client import Client
from nats.js.errors import APIError

from natslab.clusters import ready, server
from natslab.clusters.base import Cluster, Node
from natslab.clusters.connect import connect, connected, shown
from natslab.errors import LabError

# Seconds for each proof while most nodes answer: then the cluster is not broken, only busy.
TRIES = (1.0, 4.0, 15.0)
HELLO = 2.0  # seconds for a node to let a client in; a frozen one does not
FORMING = 2.0  # seconds for a node that has just started to meet the others
ANSWER = 3.0  # seconds for JetStream to answer through it; without a quorum it does not


@dataclass
class External(Cluster):
    """Servers named by $NATS_URL, log-in from there or $NATS_CREDS. We may talk to them, not break them."""

    kind: ClassVar[str] = "external"

    @classmethod
    async def join(
        cls,
        urls: list[str],
        folder: Path,
        *,
        nodes: int = 1,
        creds: str | None = None,
        ca: str | None = None,
    ) -> External:
        """Check that the servers answer, are new enough and make a replicated stream.

        `urls` as from `urls_of`; `creds` and `ca` are files. Fewer than `nodes` are waited for, 2 s:
        one may just be starting. Takes up to 20 s while most nodes answer, and some 5 s else. Makes
        `ca` the authority that this process and those it starts trust; `folder` is a private place
        for a readable copy of `creds`. Raises LabError.
        """
        if ca:
            trust(ca)
        options = log_in_of(urls)
        if creds:
            options["user_credentials"] = str(readable_creds(creds, folder))
        async with connected(options) as nc:
            await _require_course_features(nc, urls[0])
            told = await _told(nc, options, nodes)
        scheme = urlsplit(options["servers"][0]).scheme
        known, hidden = await _addresses(options, [f"{scheme}://{at}" for at in told])
        options["servers"] = known  # all: the one that was given may be down later
        named = {f"s{i}": Node(f"s{i}", url, "") for i, url in enumerate([*known, *hidden], 1)}
        self = cls(nodes=named, options=options)
        await self.prove_ready()
        return self

    async def prove_ready(self, timeout: float = sum(TRIES)) -> None:
        """Messages are stored and heard; a busy cluster is waited for, a broken one is not.

        A leader that has just lost its followers answers as before for ten seconds or more, so a
        stream is made, and each node is asked. Raises LabError.
        """
        end, why = asyncio.get_running_loop().time() + timeout, ""
        for patience in TRIES:
            asked = asyncio.create_task(self._silent())
            try:
                await ready.prove(self.options, patience, min(3, len(self.nodes)))
                return
            except ready.NotReady as error:
                why, silent = str(error), await asked
            finally:
                asked.cancel()
                await asyncio.wait([asked])
            if 2 * len(silent) >= len(self.nodes):
                raise LabError(
                    f"The cluster has no quorum: JetStream does not answer through {len(silent)} of "
                    f"{len(self.nodes)} nodes ({', '.join(silent)}). {self._how_to_mend()}"
                )
            if asyncio.get_running_loop().time() > end:
                break
        raise LabError(
            f"The cluster makes no replicated stream ({why}), though its nodes answer: wait until it "
            "is less busy and run this cell again."
        )

    async def _silent(self) -> list[str]:
        """The addresses of the nodes through which JetStream does not answer."""

        async def answers(node: Node) -> bool:
            with suppress(LabError, OSError, nats.errors.Error):
                async with connected({**self.options, "servers": [node.url]}, HELLO) as nc:
                    await nc.jetstream(timeout=ANSWER).account_info()
                    return True
            return False

        async with asyncio.TaskGroup() as group:  # when it is cancelled, no task is left
            asked = {node.url: group.create_task(answers(node)) for node in self.nodes.values()}
        return [url for url, task in asked.items() if not task.result()]

    async def _signal(self, node: str, sig: signal.Signals) -> None:
        raise LabError("This cluster is not ours to break (NATS_URL is set).")

    async def _launch(self, node: str) -> None:
        raise LabError("This cluster is not ours to start (NATS_URL is set).")

    async def _connect_to_any(self, options: dict[str, Any] | None) -> Client:
        return await connect(options or self.options)  # its sentence is the right one here

    async def close(self) -> None:
        """Nothing is held: every call connects for itself."""

    async def view(self) -> list[dict[str, Any]]:
        """The nodes by address only: the monitoring ports of an external cluster are unknown."""
        nobody = {"up": True, "clients": [], "leads": [], "meta_leader": False}
        return [{"name": name, **nobody} for name in self.nodes]

    async def is_healthy(self, node: str) -> bool:
        """Not ours to ask: monitoring ports of an external cluster are unknown."""
        return True


async def _require_course_features(nc: Client, url: str) -> None:
    version = server.version_of(str(nc.connected_server_version))
    if version < server.MIN_VERSION:
        raise LabError(
            f"The server at {shown(url)} is {'.'.join(map(str, version))}, the course needs 2.14 or newer."
        )
    try:
        await nc.jetstream(timeout=1).account_info()
    except TimeoutError:
        pass  # busy, or without a quorum: the proof will tell
    except (nats.errors.NoRespondersError, APIError) as error:
        raise LabError(
            f"JetStream does not answer at {shown(url)} ({error}): "
            "it is off for this account, or the cluster has no quorum."
        ) from None


async def _told(nc: Client, options: dict[str, Any], nodes: int) -> list[str]:
    """The addresses of its nodes that the cluster tells; asked again while it is known to have fewer."""
    told: list[str] = nc._server_info.get("connect_urls") or []
    loop = asyncio.get_running_loop()
    end = loop.time() + FORMING
    while max(len(told), len(options["servers"])) < nodes and loop.time() < end:
        await asyncio.sleep(0.1)
        async with connected(options) as again:
            told = again._server_info.get("connect_urls") or []
    return told


async def _addresses(options: dict[str, Any], told: list[str]) -> tuple[list[str], list[str]]:
    """One URL for each server: given ones and those that the cluster tells; then those out of reach.

    A server may be given under another name than the cluster tells (`localhost`, a name in the DNS),
    and tell several addresses (when it listens on 0.0.0.0): the servers themselves say who they are.
    A told address that does not work from here is a node out of reach, unless it is one of a server
    that was given under an address that does, or (by its port) that tells several: one of them may
    be of a network that only its own machine knows, such as Docker's.
    """
    given = options["servers"]
    urls = list(dict.fromkeys([*given, *told]))
    async with asyncio.TaskGroup() as group:
        asked = {url: group.create_task(_id(options, url)) for url in urls}
    ids = {url: task.result() for url, task in asked.items()}
    n_told = Counter(ids[url] for url in told)
    shared = {urlsplit(url).port for url in told if ids[url] and n_told[ids[url]] > 1}
    unknown = [url for url in told if not ids[url] and url not in given]
    hidden = [url for url in unknown if urlsplit(url).port not in shared]
    known: dict[str, str] = {}
    for url in urls:
        if url not in unknown:
            known.setdefault(ids[url] or url, url)
    reached = {ids[url] for url in given if ids[url]} - {ids[url] for url in told}
    return list(known.values()), hidden[len(reached) :]


async def _id(options: dict[str, Any], url: str) -> str:
    """Which server answers at this address; '' when none does."""
    with suppress(LabError):
        async with connected({**options, "servers": [url]}, 1.0) as nc:
            return str(nc._server_info["server_id"])
    return ""


def urls_of(text: str | None) -> list[str]:
    """The servers in a value of $NATS_URL: separated by commas or blanks, perhaps in quotes.

    Each gets its scheme and port: `nats://` and 4222 unless it says another. None or nothing but
    blanks gives an empty list. Raises LabError for what is no address of a server.
    """
    parts = re.split(r"[\s,\"']+", text or "")
    return [_url(part) for part in parts if part]


def _url(text: str) -> str:
    whole = text if "://" in text else f"nats://{text}"
    try:
        url = urlsplit(whole)
        fine = url.scheme in ("nats", "tls") and url.hostname and (url.port or 4222)
    except ValueError:  # a port that is none
        fine = None
    bare = whole.rsplit("@", 1)[-1].split("://")[-1]
    if not fine or (bare.count(":") > 1 and "]" not in bare):
        raise LabError(
            f"NATS_URL={shown(whole)} is not the address of a server: write it like nats://host:4222 "
            "(tls:// with TLS, brackets around IPv6: nats://[::1]:4222)."
        )
    return f"{url.scheme}://{url.netloc.removesuffix(':')}" + (":4222" if not url.port else "")


def log_in_of(urls: list[str]) -> dict[str, Any]:
    """`servers` without a log-in, and the log-in beside them: user and password, or token.

    nats-py uses the log-in in a URL for that server only, so a client that moves to a server it
    was told about would be refused there. Where servers have different log-ins they stay as given.
    """
    parts = [urlsplit(url) for url in urls]
    log_ins = {(part.username, part.password) for part in parts if part.username is not None}
    if len(log_ins) != 1:
        return {"servers": urls}
    ((user, password),) = log_ins
    # In a URL some letters of a password are written as %40 and the like.
    named = (
        {"token": unquote(user)}
        if password is None
        else {"user": unquote(user), "password": unquote(password)}
    )
    bare = [f"{part.scheme}://{part.netloc.rsplit('@', 1)[-1]}" for part in parts]
    return {"servers": bare, **named}


def readable_creds(name: str, folder: Path) -> Path:
    """A copy of a credentials file in `folder` as nats-py can read it.

    nats-py fails on line ends and encodings of Windows with "invalid seed"
    (https://github.com/nats-io/nats.py/issues/704), and only when a server asks for a signature.
    Raises LabError when there is no such file, or no credentials are in it.
    """
    path = Path(name).expanduser()
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise LabError(f"NATS_CREDS={name} {_why(error)}: check the path.") from None
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    text = raw.decode(encoding, errors="replace")
    jwt = re.search(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+", text)
    seed = re.search(r"\bSU[A-Z2-7]{56}\b", text)
    if not (jwt and seed and "NATS USER JWT" in text):
        raise LabError(f"NATS_CREDS={name} is not a credentials file: ask for a new one.")
    copy = folder / "user.creds"
    copy.touch(mode=0o600)
    copy.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt[0]}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed[0]}\n------END USER NKEY SEED------\n"
    )
    return copy


def trust(name: str) -> None:
    """Have this process, and those it starts, trust the certificate authority in a PEM file.

    An SSLContext could be an option of `nats.connect`, but not cross to a worker. So it is
    SSL_CERT_FILE, which every new context reads, that of nats-py included
    (https://docs.openssl.org/3.0/man7/openssl-env/). Raises LabError.
    """
    path = Path(name).expanduser().absolute()
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise LabError(
            f"NATS_CA={name} holds no certificate in PEM form: ask for a new one."
        ) from None
    except OSError as error:
        raise LabError(f"NATS_CA={name} {_why(error)}: check the path.") from None
    os.environ["SSL_CERT_FILE"] = str(path)


def _why(error: OSError) -> str:
    return "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read"
