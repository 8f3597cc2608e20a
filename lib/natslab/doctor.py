"""Is this machine ready? Checks everything a lesson needs, for real, and says what to do."""

from __future__ import annotations

import asyncio
import platform
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile

from natslab.clusters import compose_cli, server
from natslab.errors import LabError, unusable
from natslab.lab import Lab
from natslab.paths import CACHE, ROOT

Finding = tuple[str, str]  # what was found, what to do ("" when all is well)
OPTIONAL = "optional: "


def report() -> int:
    """Print the table; 0 when every lesson can run on this machine, else 1."""
    checks: dict[str, Callable[[], Finding]] = {
        "Python": _python,
        "packages": _packages,
        "nats-server": _server,
        "three-node cluster": _cluster,
        "disk": _disk,
        "Docker engine": _engine,
        "Compose": _compose,
        "Prometheus": _prometheus,
        "browser for tests": _browser,
    }
    bad = 0
    for name, look in checks.items():
        found, advice = _in_words(look)
        needed = advice and not advice.startswith(OPTIONAL)
        bad += bool(needed)
        sign = "✘" if needed else "–" if advice else "✔"
        print(f"{sign} {name:20} {found}" + (f"  → {advice}" if advice else ""), flush=True)
    print("All is well." if not bad else f"{bad} to mend, see → above.")
    return int(bad > 0)


def _in_words(look: Callable[[], Finding]) -> Finding:
    """What `look` finds; a machine that is not sound must not end the report."""
    try:
        return look()
    except LabError as error:
        return "not usable", str(error)
    except OSError as error:
        return "not usable", unusable(CACHE, error)


def _python() -> Finding:
    enough = sys.version_info >= (3, 12)
    return (
        f"{platform.python_version()} at {_short(sys.prefix)}",
        "" if enough else "install Python 3.12+",
    )


def _packages() -> Finding:
    project = tomllib.loads((ROOT / "lib" / "pyproject.toml").read_text("utf-8"))["project"]
    wrong = []
    for line in project["dependencies"]:
        name, _, version = re.sub(r"\[.*?\]", "", line).partition("==")
        try:
            have = metadata.version(name)
        except metadata.PackageNotFoundError:
            have = "missing"
        if have != version:
            wrong.append(f"{name} {have}, wanted {version}")
    count = len(project["dependencies"])
    if wrong:
        return "; ".join(wrong), "run python3 infra/up.py --doctor again; it mends the environment"
    return f"{count} of {count} as pinned, nats-py {metadata.version('nats-py')}", ""


def _server() -> Finding:
    path, version = server.find_server()
    return f"{version} at {_short(path)}", ""


def _cluster() -> Finding:
    return asyncio.run(_drilled()), ""


async def _drilled() -> str:
    """A cluster does here what lessons need: it stores, shows itself, breaks and comes back."""
    start = time.monotonic()
    lab = await Lab.start(kind="embedded", quiet=True)
    try:
        if silent := [node["name"] for node in await lab.view() if not node["up"]]:
            raise LabError(
                f"The monitoring ports of {', '.join(silent)} do not answer: see whether a firewall "
                "or another program stands between this machine and its own 127.0.0.1."
            )
        await lab.wait_until_healthy()
        await lab.kill("n1")
        await lab.restart("n1")
    finally:
        await lab.close(quiet=True)
    took = time.monotonic() - start
    return f"up, replicated publish acknowledged, a kill and a restart seen, gone: {took:.1f} s"


def _disk() -> Finding:
    CACHE.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=CACHE) as file:  # written, not asked: permission and room in one
        file.write(bytes(2**20))
    free = shutil.disk_usage(CACHE).free / 2**30
    return f"{free:.0f} GiB free", "" if free > 1 else "make room: the lessons need up to 1 GiB"


def _engine() -> Finding:
    try:
        compose_cli.require_engine()
    except LabError as error:
        return "not there", f"{OPTIONAL}{error}"
    return "answers", ""


def _compose() -> Finding:
    try:
        return " ".join(map(_short, compose_cli.find_compose())), ""
    except LabError as error:
        return "no Compose v2", f"{OPTIONAL}{error}"


def _prometheus() -> Finding:
    from natslab.prometheus import running  # loads pandas, which takes a second

    found = running() or shutil.which("prometheus")
    if found is None:
        return "not installed", f"{OPTIONAL}lesson 08 shows less; install the package prometheus"
    return found, ""


def _browser() -> Finding:
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if found is None:
        return "no Chromium", f"{OPTIONAL}only the JupyterLab test of tests/run.py uses one"
    return found, ""


def _short(path: str | Path) -> str:
    """A path as seen from the checkout or the home folder: the table may be shown to others."""
    text = str(path).replace(f"{ROOT}/", "")
    return text.replace(f"{Path.home()}/", "~/")
