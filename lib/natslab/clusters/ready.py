"""Is a cluster ready? Proven, not asked: a message is stored and heard through every node."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError, ServiceUnavailableError

from natslab.check import until
from natslab.clusters.connect import connected
from natslab.errors import LabError
from natslab.tasks import to_its_end

START_DEADLINE = 15.0
PROBE = "NATSLAB_PROBE_"  # begins the names of the streams that prove a cluster ready


class NotReady(Exception):
    """The proof did not work; the reason in the words of the client."""


async def prove(
    options: dict[str, Any], timeout: float = START_DEADLINE, replicas: int | None = None
) -> None:
    """Create a replicated stream, publish to it through every server, delete it; then let a client
    on each server hear one on every other.

    A node that has just started may not answer yet while its neighbours do, so one proof is not
    enough. `replicas`: of that stream, by default one on each server, three at most. Raises NotReady
    when it does not work within `timeout` seconds. However it ends, also cancelled, it leaves no
    connection, no task and (where the servers still answer) no stream.
    """
    end = time.monotonic() + timeout
    servers = options["servers"]
    name = f"{PROBE}{time.time():.0f}_{random.getrandbits(48):x}"
    # In files: a stream in memory that an interrupted proof left would keep a node that lost its
    # copy unhealthy until all the others are back.
    config = api.StreamConfig(
        name=name, subjects=[f"natslab.probe.{name}"], num_replicas=replicas or min(3, len(servers))
    )
    looks = 5  # a request of ours may still be on its way, and make the stream again
    try:
        async with asyncio.TaskGroup() as group:  # it waits for all, also when it is cancelled
            proofs = [
                group.create_task(_store({**options, "servers": [server]}, config, end))
                for server in servers
            ]
        outcomes = [proof.result() for proof in proofs]
        errors = [error for error in outcomes if error]
        if all(isinstance(error, LabError) for error in errors):
            looks = 1  # all were answered: a node that let no client in was asked for nothing
    finally:
        await to_its_end(_remove_probes(options, name, looks))
    # A missing node is for `unhealthy` to tell; without a majority nothing works.
    if 2 * len(errors) >= len(servers):
        raise NotReady(str(errors[0]))
    fine = [server for server, error in zip(servers, outcomes, strict=True) if not error]
    await _hear_each_other(options, fine, max(1.0, end - time.monotonic()))


async def _store(options: dict[str, Any], config: api.StreamConfig, end: float) -> Exception | None:
    """The last error when no publish through these servers was acknowledged in time."""
    try:
        async with connected(options, max(0.5, min(2.5, end - time.monotonic()))) as nc:
            # An early request is never answered; asking again is harmless.
            js = nc.jetstream(timeout=0.2)
            while True:
                try:
                    await js.add_stream(config)
                    await js.publish(f"natslab.probe.{config.name}", b"")
                    return None
                except (OSError, nats.errors.Error) as error:  # TimeoutError is an OSError
                    if time.monotonic() > end or nc.is_closed:
                        return error
                    await asyncio.sleep(0.02)
    except LabError as error:
        return error


async def _remove_probes(options: dict[str, Any], own: str, looks: int) -> None:
    """Delete our stream, and those that a start which failed could not delete itself."""
    with suppress(LabError, TimeoutError, nats.errors.Error):
        async with asyncio.timeout(4.0), connected(options, 1.0) as nc:
            js = nc.jetstream(timeout=0.5)
            await delete(js, own, looks)
            answer = await nc.request("$JS.API.STREAM.NAMES", b'{"subject": "natslab.probe.*"}')
            for name in json.loads(answer.data).get("streams") or []:
                made = int(name.removeprefix(PROBE).split("_")[0])
                if time.time() - made > 2 * START_DEADLINE:
                    await delete(js, name, 1)  # or somebody was faster


async def delete(js: JetStreamContext, name: str, looks: int) -> None:
    """Delete a stream until it was not there in `looks` looks, 0.2 s apart.

    A request to delete a stream that is just being made may never be answered, and one to make it
    may come after: then it is asked again. While a request waits for its quorum, another is told
    "not found" (measured: nats-server 2.15); only the stream's info tells that it is gone.
    """
    while True:
        try:
            with suppress(NotFoundError):
                await js.delete_stream(name)
            await js.stream_info(name)
        except NotFoundError:
            looks -= 1
            if looks < 1:
                return
        except (TimeoutError, ServiceUnavailableError):
            pass  # not answered (nats-py's own is one, too), or there is no leader just now
        await asyncio.sleep(0.2)


async def refuse_unmarked(js: JetStreamContext, name: str, mark: str) -> None:
    """Raise LabError when there is a stream of this name whose description is not `mark`.

    Asks until it is told: a stream without a leader does not answer.
    """
    while True:
        with suppress(TimeoutError, ServiceUnavailableError):
            try:
                described = (await js.stream_info(name)).config.description
            except NotFoundError:
                return
            if described == mark:
                return
            raise LabError(
                f"The stream {name} on this cluster is not of this lesson, which leaves it as it is. "
                "Use another cluster or account, or none: without NATS_URL the lesson starts its own."
            )
        await asyncio.sleep(0.2)


async def delete_those(
    options: dict[str, Any], unwanted: Callable[[api.StreamConfig], bool], timeout: float
) -> None:
    """Delete each stream with an `unwanted(config)`; asks again for what is not answered.

    Raises TimeoutError when they are still there after `timeout` seconds, and LabError when no node
    answers.
    """
    async with asyncio.timeout(timeout), connected(options) as nc:
        while True:
            # The server itself waits four seconds for a stream that does not tell of itself.
            with suppress(nats.errors.TimeoutError, ServiceUnavailableError):
                infos = await nc.jetstream(timeout=5).streams_info()
                break
            await asyncio.sleep(0.2)
        for config in (info.config for info in infos):
            if config.name and unwanted(config):
                await delete(nc.jetstream(timeout=1), config.name, looks=1)


async def _hear_each_other(options: dict[str, Any], servers: list[str], timeout: float) -> None:
    """Wait until messages flow from each of these servers to each."""
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
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(connected({**options, "servers": [server]}))
                for server in servers
            ]
            for ear, client in enumerate(clients):
                await client.subscribe(subject, cb=listener(ear))
            await until(all_heard, timeout)
    except (LabError, TimeoutError, nats.errors.Error):
        raise NotReady("the nodes do not hear each other") from None
