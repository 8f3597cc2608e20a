"""A connection that fails in seconds and in words, and the log-in that it needs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client

from natslab.errors import LabError


async def connect(options: dict[str, Any], timeout: float = 2.5) -> Client:
    """A connection that fails within `timeout` seconds, with one sentence, instead of trying for two minutes.

    nats-py tries each server 60 times, 2 s apart, before it gives up on the *first* connection too;
    `allow_reconnect=False` ends that for a refused log-in only, so the number of attempts is bounded
    here as well. Without reconnects one hiccup in the handshake ends it too: try that again. Raises
    LabError.
    """
    where = " ".join(map(shown, options["servers"]))
    last: list[Exception] = []

    async def remember(error: Exception) -> None:
        last.append(error)

    bounded = {
        "allow_reconnect": False,
        "max_reconnect_attempts": max(1, int(timeout / 0.1)),
        "reconnect_time_wait": 0.05,
        "connect_timeout": 1,
        "error_cb": remember,
    }

    def no_log_in(error: Exception) -> bool:
        return "authorization" in f"{error} {last[-1:]}".lower()

    async def persist() -> Client:
        while True:
            try:
                return await nats.connect(**{**options, **bounded})
            except (OSError, nats.errors.Error) as error:
                if isinstance(error, nats.errors.NoServersError) or no_log_in(error):
                    raise
            await asyncio.sleep(0.05)

    try:
        async with asyncio.timeout(timeout):
            return await persist()
    except (TimeoutError, OSError, nats.errors.Error) as error:
        if no_log_in(error):
            raise LabError(
                f"{where} refuses this log-in: check the user in NATS_URL or the file in NATS_CREDS."
            ) from None
        raise LabError(
            f"No NATS server answers at {where}: start it, or unset NATS_URL to get an embedded cluster."
        ) from None


def shown(url: str) -> str:
    """A server's address for a message: without the log-in, which is nobody's business."""
    return re.sub(r"//[^/]*@", "//", url)


def require_creds(path: str) -> None:
    """nats-py opens the file only when a server asks for a signature, and then fails in many ways."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise LabError(f"NATS_CREDS={path} {why}: check the path.") from None
    if "NATS USER JWT" not in text or not re.search(r"\bSU[A-Z2-7]{56}\b", text):
        raise LabError(f"NATS_CREDS={path} is not a credentials file: ask for a new one.")
