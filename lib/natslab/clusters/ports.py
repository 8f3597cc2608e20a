"""Loopback ports that no two labs share."""

from __future__ import annotations

import fcntl
import json
import random
import re
import socket
from contextlib import suppress
from pathlib import Path

from natslab.errors import LabError
from natslab.paths import setting

DEFAULT_PORTS = "20000-29999"  # below what Linux and macOS hand out to outgoing connections


def reserve_ports(folder: Path, count: int) -> list[int]:
    """`count` loopback ports that nobody listens on and no other lab has claimed.

    The claim is a file in `folder` and lasts as long as the folder: a node that is down keeps its
    port. $NATSLAB_PORTS (`from-to`) names another range. Raises LabError when the range is too full.
    """
    first, last = _wish()
    root = folder.parent
    # The lock is held while claims are read and one is written, no longer: others wait for it.
    with (root / "ports.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        claimed = _claimed(root)
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
        # Renamed when it is whole: nobody ever reads half a claim.
        (folder / "ports.new").write_text(json.dumps(sorted(ports)))
        (folder / "ports.new").rename(folder / "ports.json")
    return sorted(ports)


def _wish() -> tuple[int, int]:
    """The range that $NATSLAB_PORTS asks for; an empty variable counts as unset."""
    wish = setting("NATSLAB_PORTS") or DEFAULT_PORTS
    found = re.fullmatch(r"(\d{1,5})\s*-\s*(\d{1,5})", wish, re.ASCII)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last <= 65535:
        raise LabError(
            f"NATSLAB_PORTS={wish} is not a range of ports: write it like {DEFAULT_PORTS}, "
            "the smaller one first and none above 65535."
        )
    return first, last


def _claimed(root: Path) -> set[int]:
    claimed: set[int] = set()
    for claim in root.glob("*/ports.json"):
        with suppress(FileNotFoundError):  # its lab has ended since we looked
            claimed.update(json.loads(claim.read_text()))
    return claimed


def is_free(port: int) -> bool:
    """Nobody listens there on 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
