"""A connection that fails in seconds and in words, and leaves nothing open when it does."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats.errors
from nats.aio.client import Client

from natslab.errors import LabError
from natslab.tasks import to_its_end

# asyncio warns at the end of every TLS connection of nats-py, on the reader's screen: no harm in it.
logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in record.getMessage())


async def connect(options: dict[str, Any], timeout: float = 2.5) -> Client:
    """A connection that fails within `timeout` seconds, with one sentence, instead of trying for two minutes.

    nats-py tries each server 60 times, 2 s apart, before it gives up on the *first* connection too;
    with `allow_reconnect=False` it gives up at the first handshake that fails, whoever else there is.
    So the servers are asked by turns here, one at a time, in an order by chance. Raises LabError.
    """
    where = " ".join(map(shown, options["servers"]))
    last: list[Exception] = []

    async def remember(error: Exception) -> None:
        last.append(error)

    servers = random.sample(options["servers"], len(options["servers"]))
    bounded = {
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0.01,
        # A frozen server accepts and is silent: each has its share, so that a living one has its turn.
        "connect_timeout": min(1.0, timeout / (len(servers) + 1)),
        "error_cb": remember,
    }

    def no_log_in(error: Exception) -> bool:
        return "authorization" in f"{error} {last[-1:]}".lower()

    def for_good(error: Exception) -> bool:
        return isinstance(error, ssl.SSLCertVerificationError) or no_log_in(error)

    async def persist() -> Client:
        refusals_left = len(servers) * max(1, int(timeout / 0.1))  # nobody listens there
        for server in itertools.cycle(servers):
            try:
                return await _opened({**options, **bounded, "servers": [server]})
            except (OSError, nats.errors.Error) as error:
                refusals_left -= isinstance(error, nats.errors.NoServersError)
                if for_good(error) or not refusals_left:
                    raise
            await asyncio.sleep(0.05 / len(servers))
        raise AssertionError("there is always a next one")

    try:
        async with asyncio.timeout(timeout):
            return await persist()
    except ssl.SSLCertVerificationError as error:
        raise LabError(
            f"{where} shows a certificate that is not trusted here ({error.verify_message}): name "
            "the file of the authority that signed it in NATS_CA."
        ) from None
    except (TimeoutError, OSError, nats.errors.Error) as error:
        if no_log_in(error):
            raise LabError(
                f"{where} refuses this log-in: check the user in NATS_URL or the file in NATS_CREDS."
            ) from None
        raise LabError(
            f"No NATS server answers at {where}: start it, or unset NATS_URL to get an embedded cluster."
        ) from None


@asynccontextmanager
async def connected(options: dict[str, Any], timeout: float = 2.5) -> AsyncIterator[Client]:
    """`connect` for the length of a block."""
    nc = await connect(options, timeout)
    try:
        yield nc
    finally:
        await to_its_end(nc.close())  # nats-py does not go on with a close that was cancelled


async def _opened(options: dict[str, Any]) -> Client:
    """`nats.connect`, which leaves its socket open when the handshake fails or is cancelled."""
    nc = Client()
    try:
        await nc.connect(**options)
    except BaseException:
        # Not nc.close(): it waits for the other side, which may have caused all this by its silence.
        if nc._transport is not None:
            nc._transport.close()  # type: ignore[no-untyped-call]
        raise
    return nc


def shown(url: str) -> str:
    """A server's address for a message: without the log-in, which is nobody's business."""
    return re.sub(r"//.*@", "//", url)
