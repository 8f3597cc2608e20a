"""Loopback ports that no two labs share."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from natslab.errors import LabError

DEFAULT_PORTS = "20000-29999"  # below what Linux and macOS hand out to outgoing connections


@contextmanager
def reserved_ports(folder: Path, count: int) -> Iterator[list[int]]:
    """`count` loopback ports that nobody listens on and no other lab has claimed.

    The claim is a file in `folder` and lasts as long as the folder: a node that is down keeps its
    port. $NATSLAB_PORTS (`from-to`) names another range. Raises LabError when the range is too full.
    """
    wish = os.environ.get("NATSLAB_PORTS", DEFAULT_PORTS)
    if not re.fullmatch(r"\d+-\d+", wish):
        raise LabError(f"NATSLAB_PORTS={wish} is not a range: write it like {DEFAULT_PORTS}.")
    first, last = map(int, wish.split("-"))
    root = folder.parent
    with (root / "ports.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        claimed = {
            port for claim in root.glob("*/ports.json") for port in json.loads(claim.read_text())
        }
        candidates = [port for port in range(first, last + 1) if port not in claimed]
        random.shuffle(candidates)
        ports: list[int] = []
        for port in candidates:
            if len(ports) == count:
                break
            if is_free(port):
                ports.append(port)
        if len(ports) < count:
            raise LabError(
                f"Only {len(ports)} of {count} ports needed are free in {first}-{last}: close other "
                "lessons, or set NATSLAB_PORTS=from-to to another range."
            )
        (folder / "ports.json").write_text(json.dumps(sorted(ports)))
        yield sorted(ports)


def is_free(port: int) -> bool:
    """Nobody listens there on 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
