"""Is a cluster ready? Proven, not asked: a message is stored and heard through every node."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.js import api
from nats.js.errors import NotFoundError

from natslab.check import until
from natslab.clusters.connect import connect
from natslab.errors import LabError

START_DEADLINE = 15.0
PROBE = "NATSLAB_PROBE_"  # begins the names of the streams that prove a cluster ready


class NotReady(Exception):
    """The proof did not work; the reason in the words of the client."""


async def prove(options: dict[str, Any], timeout: float = START_DEADLINE) -> None:
    """Create a replicated stream, publish to it through every server, delete it; then let a client
    on each server hear one on every other.

    A node that has just started may not answer yet while its neighbours do, so one proof is not
    enough. Raises NotReady when it does not work within `timeout` seconds.
    """
    end = time.monotonic() + timeout
    servers = options["servers"]
    name = f"{PROBE}{time.time():.0f}_{random.getrandbits(48):x}"
    # In files: a stream in memory that an interrupted proof left would keep a node that lost its
    # copy unhealthy until all the others are back.
    config = api.StreamConfig(
        name=name, subjects=[f"natslab.probe.{name}"], num_replicas=min(3, len(servers))
    )
    proofs = (_store({**options, "servers": [s]}, config, end) for s in servers)
    outcomes = await asyncio.gather(*proofs)
    errors = [error for error in outcomes if error]
    # A missing node is for `unhealthy` to tell; without a majority nothing works.
    if 2 * len(errors) >= len(servers):
        raise NotReady(str(errors[0]))
    await _remove_probes(options, name)
    fine = [server for server, error in zip(servers, outcomes, strict=True) if not error]
    await _hear_each_other(options, fine, max(1.0, end - time.monotonic()))


async def _store(options: dict[str, Any], config: api.StreamConfig, end: float) -> Exception | None:
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


async def _remove_probes(options: dict[str, Any], own: str) -> None:
    """Delete our stream, and those that a start which failed could not delete itself."""
    nc = await connect(options)
    with suppress(TimeoutError, nats.errors.Error):
        probes = b'{"subject": "natslab.probe.*"}'
        answer = await nc.request("$JS.API.STREAM.NAMES", probes)
        for name in json.loads(answer.data).get("streams") or []:
            made = int(name.removeprefix(PROBE).split("_")[0])
            if name == own or time.time() - made > 2 * START_DEADLINE:
                with suppress(NotFoundError):  # somebody was faster
                    await nc.jetstream().delete_stream(name)
    await nc.close()


async def _hear_each_other(options: dict[str, Any], servers: list[str], timeout: float) -> None:
    """Wait until messages flow from each of these servers to each."""
    clients = [await connect({**options, "servers": [server]}) for server in servers]
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
        raise NotReady("the nodes do not hear each other") from None
    finally:
        for client in clients:
            await client.close()
