"""Publish many messages as one batch, in the raw protocol: for measuring only.

nats-py 2.16 has no call for either kind. Both give up at the first gap or error, and none of them
tries again: a client library for production has more to do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import NoRespondersError
from nats.js.errors import APIError

MOST = 1_000  # messages of an atomic batch
FLOW = 500  # messages of a fast batch to each answer of the server; two answers may be missing


def _answer(data: bytes) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(data or b"{}")
    if "error" in told:
        APIError.from_error(told["error"])  # raises
    return told


async def atomic(nc: Client, subject: str, payloads: Sequence[bytes]) -> int:
    """Store all payloads or none in one stream (`allow_atomic`), at most 1,000; how many these are.

    Its state is in headers (ADR-50). Raises APIError of the server, 10176 when one of them is missing,
    and TimeoutError: then nobody knows.
    """
    if not 1 <= len(payloads) <= MOST:
        raise ValueError(f"{len(payloads)} messages: an atomic batch has 1 to {MOST:,}")
    batch, told = nc.new_inbox().rpartition(".")[2], {}
    for number, data in enumerate(payloads, 1):
        headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
        if number == len(payloads):
            headers["Nats-Batch-Commit"] = "1"
        if 1 < number < len(payloads):
            await nc.publish(subject, data, headers=headers)
        else:
            told = _answer((await nc.request(subject, data, timeout=5, headers=headers)).data)
    return int(told["count"])


async def fast(nc: Client, subject: str, payloads: Sequence[bytes]) -> int:
    """Store payloads one by one in one stream (`allow_batched`), at least two; how many were stored.

    Its state is in the reply subject, and the server answers every so many messages. Raises
    RuntimeError at a gap, APIError of the server, TimeoutError when it is silent.
    """
    if len(payloads) < 2:
        raise ValueError("a fast batch has two messages or more")
    inbox, acked = nc.new_inbox(), -1
    sub = await nc.subscribe(f"{inbox}.b.>")
    try:
        for number, data in enumerate(payloads, 1):
            # Start, commit with the last one, append.
            what = 0 if number == 1 else 2 if number == len(payloads) else 1
            reply = f"{inbox}.b.{FLOW}.fail.{number}.{what}.$FI"
            await nc.publish(subject, data, reply=reply)
            while acked < 0 or (what == 1 and number - acked >= 2 * FLOW):
                acked = max(acked, (await _next(sub)).get("seq", 0))
        while "count" not in (told := await _next(sub)):
            pass
    finally:
        await sub.unsubscribe()
    return int(told["count"])


async def _next(sub: Subscription) -> dict[str, Any]:
    msg = await sub.next_msg(timeout=5)
    if (msg.headers or {}).get("Status") == "503":
        raise NoRespondersError
    told = _answer(msg.data)
    if told.get("type") in ("gap", "err"):
        raise RuntimeError(f"the batch has a hole: {told}")
    return told
