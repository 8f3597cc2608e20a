#!/usr/bin/env python3
"""Set the course up if needed and open JupyterLab:  python3 infra/up.py

Only the standard library, any Python from 3.9: it runs before the environment exists.
`.venv/natslab.json`, written last, says that the environment is complete and what it was made
from. Where it is missing or says something else, the environment is mended.
tests/run.py imports this file:  python = up.ensure(extras=("test",))
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import webbrowser
from pathlib import Path

try:
    import fcntl
except ImportError:
    raise SystemExit("On Windows the course runs inside WSL: start this command there.") from None

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = ROOT / "lib" / "pyproject.toml"
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"
STAMP = VENV / "natslab.json"
PYTHON = VENV / "bin" / "python"
MINORS = (14, 13, 12)  # the Python 3 versions for which all pinned packages have wheels
FIRST_PAGE = "/lab/tree/00_start_here.ipynb"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DISK = r"no space left|disk quota|os error 28"
NETWORK = (
    r"dns error|resolution|failed to resolve|name or service|nodename nor|error sending request"
    r"|connection (refused|reset|error|broken)|to connect|unreachable|timed out"
)
# What children get: no other Python's library path, and leave to keep compiled packages (many
# containers forbid that, and then every kernel compiles pandas and matplotlib anew: 2 s).
BANNED = ("PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
CLEAN = {name: value for name, value in os.environ.items() if name not in BANNED}
STARTED = time.monotonic()

ABOUT = """
import importlib.util, json, sys
final = sys.version_info.releaselevel == "final"
has_pip = importlib.util.find_spec("ensurepip") is not None
base = getattr(sys, "_base_executable", sys.executable)
print(json.dumps([*sys.version_info[:3], final, has_pip, base]))
"""
COURSE = """
import importlib.util, json, sys
from importlib import metadata
from packaging.requirements import Requirement
missing = []
for need in map(Requirement, metadata.requires("natslab")):
    if not need.marker or any(need.marker.evaluate({"extra": e}) for e in ["", *sys.argv[1:]]):
        try:
            metadata.version(need.name)
        except metadata.PackageNotFoundError:
            missing.append(need.name)
print(json.dumps([importlib.util.find_spec("natslab").origin, missing]))
"""
NEEDS = """
import itertools, json, sys, tomllib
data = tomllib.load(open(sys.argv[1], "rb"))
extras = data["project"]["optional-dependencies"].values()
lists = [data["build-system"]["requires"], data["project"]["dependencies"], *extras]
print(json.dumps([*itertools.chain(*lists), "uv"]))
"""


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.1f} s] {text}", flush=True)


# ---- running other programs ---------------------------------------------------------------


def output(*command: str | Path) -> str:
    """What a command prints; empty when it is not there or fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, env=CLEAN, timeout=30, check=True)
        return done.stdout.decode(errors="replace").strip()
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""


def ask(python: str | Path, code: str, *args: str) -> list | None:
    """The JSON that `code` prints under `python`; None when it fails in any way."""
    try:
        return json.loads(output(python, "-I", "-c", code, *args))
    except ValueError:
        return None


def start(command: list, **more) -> subprocess.Popen:
    """A child in its own session: Ctrl-C reaches only us, and `finish` ends it in good order."""
    more = {"cwd": ROOT, "env": CLEAN, "stdin": subprocess.DEVNULL, **more}
    return subprocess.Popen([str(word) for word in command], start_new_session=True, **more)


def finish(child: subprocess.Popen, gently: int = signal.SIGTERM, patience: float = 30) -> None:
    """End a child that still runs; an impatient second Ctrl-C must not leave it behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPS}
    try:
        if child.poll() is None:
            child.send_signal(gently)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(patience)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def logged(command: list, lock: int | None = None) -> tuple[bool, list[str]]:
    """Run an installer, showing a line of its output at most once a second; its last lines."""
    # The child holds the lock too: when this process is killed, the next run waits for the child.
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    child = start(command, pass_fds=[lock] if lock else [], **piped)
    tail: collections.deque[str] = collections.deque(maxlen=12)
    shown = time.monotonic()
    try:
        for line in child.stdout:
            if line.strip():
                tail.append(line.strip())
                if time.monotonic() > shown + 1:
                    say(f"  {line.strip()[:80]}")
                    shown = time.monotonic()
        return child.wait() == 0, list(tail)
    finally:
        finish(child, patience=5)
        child.stdout.close()


def natslab(python: Path, verb: str) -> int:
    child = start([python, "-m", "natslab", verb])
    try:
        return child.wait()
    finally:
        finish(child, gently=signal.SIGINT)


# ---- finding a Python ---------------------------------------------------------------------


def find_uv() -> str | None:
    """uv on PATH, tried by running it: a pyenv shim can exist and fail."""
    uv = shutil.which("uv")
    return uv if uv and output(uv, "--version") else None


def candidates():
    """Where a Python may be, best first; most of these do not exist."""
    yield sys.executable
    for minor in MINORS:
        for folder in os.get_exec_path():
            yield Path(folder) / f"python3.{minor}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    found = [re.fullmatch(r"3\.(\d+)\.(\d+)", path.name) for path in pyenv.glob("versions/*")]
    for match in sorted(filter(None, found), key=lambda m: [*map(int, m.groups())], reverse=True):
        yield pyenv / "versions" / match[0] / "bin" / "python"
    uv = find_uv()
    if uv:
        yield output(uv, "python", "find", "--system", f">=3.{MINORS[-1]},<3.{MINORS[0] + 1}")


def find_python(minors=MINORS, without_pip: bool = False) -> tuple[str, str]:
    """Path and version of the first Python that runs and can make an environment."""
    poor = ""
    for python in candidates():
        about = ask(python, ABOUT) if python and Path(python).is_file() else None
        if not about or about[0] != 3 or about[1] not in minors or not about[3]:
            continue
        version, has_pip, base = ".".join(map(str, about[:3])), about[4], about[5]
        if has_pip or without_pip:
            return base, version
        poor = poor or (
            f"{base} cannot make an environment: install its venv package (on Debian and Ubuntu: "
            f"apt install python3.{about[1]}-venv), then run the same command again."
        )
    *some, last = [f"3.{minor}" for minor in sorted(minors)]
    names = f"{', '.join(some)} or {last}" if some else last
    raise SystemExit(
        poor
        or f"No Python {names} was found: install one (from python.org, your package manager, "
        f"or with `uv python install {last}`), then run the same command again."
    )


def active_environment(extras=()) -> Path | None:
    """The Python of an active conda or virtual environment that has this checkout's course."""
    for prefix in filter(None, map(os.environ.get, ("VIRTUAL_ENV", "CONDA_PREFIX"))):
        folder = Path(prefix).resolve()
        if folder == VENV:
            continue  # ours: its stamp decides
        python = folder / "bin" / "python"
        origin, missing = ask(python, COURSE, *extras) or (None, [])
        if not origin or (ROOT / "lib") not in Path(origin).resolve().parents:
            continue
        if missing:
            raise SystemExit(
                f"The active environment {folder} lacks {', '.join(missing)}: run\n"
                f"  {python} -m pip install -e '{ROOT / 'lib'}[{','.join(extras)}]'\n"
                "or deactivate it, then run the same command again."
            )
        return python
    return None


# ---- the environment ----------------------------------------------------------------------


def digest() -> str:
    return hashlib.sha256(PYPROJECT.read_bytes()).hexdigest()


def needed(extras=()) -> tuple[str, str]:
    """What must be done to .venv (nothing, "update" or "make"), and why."""
    try:
        stamp = json.loads(STAMP.read_text())
        root, python, pyproject = stamp["root"], stamp["python"], stamp["pyproject"]
        there = set(stamp["extras"])
    except (OSError, ValueError, KeyError, TypeError):
        return "make", "is not complete" if os.path.lexists(VENV) else ""
    about = ask(PYTHON, ABOUT)
    if root != str(ROOT):
        return "make", "was made in another folder"
    if not about or about[:2] != python[:2]:
        return "make", "has lost the Python that it was made from"
    if pyproject != digest():
        return "update", "is older than lib/pyproject.toml"
    if not there.issuperset(extras):
        return "update", f"lacks the packages for {', '.join(sorted(set(extras) - there))}"
    return "", ""


@contextlib.contextmanager
def locked():
    """One set-up at a time."""
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / "up.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is setting up: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def failed(tail: list[str], offline: Path | None = None) -> SystemExit:
    """The last lines of an installer, and one sentence that says what to do."""
    text = "\n".join(tail)
    if re.search(DISK, text, re.I):
        advice = "The disk is full: free about 2 GB and run"
    elif offline:
        advice = f"{offline} lacks something: fill it with `--download` on a machine like this, run"
    elif re.search(NETWORK, text, re.I):
        advice = (
            "The package index is out of reach: use `--offline DIR`, or check the network and run"
        )
    else:
        advice = "The installation failed: mend what is said above and run"
    lines = [f"  | {line[:200]}" for line in tail]
    return SystemExit("\n".join([*lines, f"{advice} the same command again."]))


def install(extras, offline: Path | None, lock: int) -> None:
    """The course into .venv, with uv (ten times faster) or else with pip."""
    course = "./lib" + (f"[{','.join(extras)}]" if extras else "")
    source = ["--no-index", "--find-links", offline] if offline else []
    pip = [PYTHON, "-m", "pip", *(["--isolated"] if offline else []), "install"]
    pip += ["--disable-pip-version-check", "--progress-bar", "off", "--retries", "2", *source]
    uv, own = find_uv(), VENV / "bin" / "uv"
    if not uv:
        say("getting uv, the fast installer")
        need_pip(lock)
        done, tail = logged([*pip, "uv"], lock)
        if not done and re.search(NETWORK, "\n".join(tail), re.I):
            raise failed(tail, offline)
        uv = own if done else None
    if uv:
        say("installing the course with uv")
        index = [*source, "--no-config"] if offline else []
        done, tail = logged([uv, "pip", "install", "--python", PYTHON, *index, "-e", course], lock)
        if done:
            return
        if offline or re.search(DISK, "\n".join(tail), re.I):
            raise failed(tail, offline)
    say("uv did not succeed: installing with pip, which takes about a minute")
    need_pip(lock)
    done, tail = logged([*pip, "-e", course], lock)
    if not done:
        raise failed(tail, offline)


def need_pip(lock: int) -> None:
    """An environment that was made when uv was on the machine has none."""
    if not output(PYTHON, "-m", "pip", "--version"):
        logged([PYTHON, "-m", "ensurepip"], lock)


def make_venv(minors, lock: int) -> None:
    without_pip = find_uv() is not None  # uv needs none in there, and this saves 3 s
    base, version = find_python(minors, without_pip)
    say(f"making .venv with Python {version}")
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)
    options = ["--without-pip"] if without_pip else []
    done, tail = logged([base, "-m", "venv", *options, VENV], lock)
    if not done:
        raise failed(tail)


def wheels_for(folder: Path) -> tuple[int, ...]:
    """The Python versions that a folder of wheels was filled for."""
    names = [path.name for path in folder.glob("*.whl")]
    if not names:
        raise SystemExit(f"{folder} holds no wheels: fill it with `--download DIR` first.")
    tags = collections.Counter(re.findall(r"-cp3(\d+)-cp3\d+-", " ".join(names)))
    return (int(tags.most_common(1)[0][0]),) if tags else MINORS


def ensure(extras=(), offline: str | Path | None = None) -> Path:
    """The Python that has the course and these extras; made or mended if needed."""
    active = active_environment(extras)
    if active:
        return active
    if not needed(extras)[0]:
        return PYTHON
    folder = Path(offline).resolve() if offline else None
    minors = wheels_for(folder) if folder else MINORS
    with locked() as lock:
        what, why = needed(extras)  # again: another run may just have done it
        if not what:
            return PYTHON
        if why:
            say(f".venv {why}: mending it")
        if what == "make":
            make_venv(minors, lock)
        else:
            extras = {*extras, *json.loads(STAMP.read_text())["extras"]}
            STAMP.unlink()  # from here on it is half-made
        install(sorted(extras), folder, lock)
        made_from = {
            "root": str(ROOT),
            "python": ask(PYTHON, ABOUT)[:3],
            "pyproject": digest(),
            "extras": sorted(extras),
        }
        draft = STAMP.with_suffix(".new")
        draft.write_text(json.dumps(made_from))
        draft.replace(STAMP)
        say("the environment is complete")
    return PYTHON


def download(folder: Path) -> None:
    """Everything that `--offline` needs on machines like this one, as wheels in one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    base, version = find_python()
    needs = ask(base, NEEDS, str(PYPROJECT))
    say(f"filling {folder} for Python {version}, about a minute")
    with tempfile.TemporaryDirectory() as temporary:
        done, tail = logged([base, "-m", "venv", temporary])
        if done:
            # Not `pip download`: some packages are only there as source, and are built here.
            pip = [Path(temporary) / "bin" / "python", "-m", "pip", "wheel", "--wheel-dir", folder]
            options = ["--disable-pip-version-check", "--progress-bar", "off"]
            done, tail = logged([*pip, *options, *needs])
    if not done:
        raise failed(tail)
    sizes = [path.stat().st_size for path in folder.glob("*.whl")]
    say(f"{folder} holds {len(sizes)} wheels, {sum(sizes) / 1e6:.0f} MB")


# ---- JupyterLab ---------------------------------------------------------------------------


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does it: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return True
        except (OSError, OverflowError):
            return False


def answers(port: int, token: str) -> bool:
    """Whether our JupyterLab, which knows the token, answers on this port."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        link.request("GET", "/api/status", headers={"Authorization": f"token {token}"})
        return link.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        link.close()


def open_browser(url: str) -> None:
    screen = any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    if screen or not sys.platform.startswith("linux"):  # else a text browser would take over
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def jupyterlab(python: Path, port: int, token: str, log, more: dict) -> subprocess.Popen:
    # The token is in the environment because everybody can read command lines. The folder of
    # the environment leads PATH, so `!natslab` in a cell and a terminal find the same course.
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
    # Our defaults (no question about news in front of lesson 00) come before the machine's.
    defaults = [str(ROOT / "infra" / "jupyter"), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    config = os.pathsep.join(filter(None, defaults))
    environment = {**CLEAN, "PATH": path, "JUPYTER_TOKEN": token, "JUPYTER_CONFIG_PATH": config}
    environment.update(more)
    options = {
        "ServerApp.root_dir": ROOT / "notebooks",
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.open_browser": False,
        "ServerApp.log_level": "WARN",
        "LabApp.log_level": "WARN",
        "LabApp.default_url": FIRST_PAGE,
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    if os.geteuid() == 0:
        options["ServerApp.allow_root"] = True  # containers
    words = [f"--{name}={value}" for name, value in options.items()]
    command = [python, "-m", "jupyterlab", *words]
    return start(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def wait_until_ready(child: subprocess.Popen, port: int, token: str) -> bool:
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        if answers(port, token):
            return True
        time.sleep(0.05)
    return False


def serve(python: Path, port: int, browser: bool, more: dict) -> bool:
    """JupyterLab until it is ended; False when another program was faster to take the port."""
    token = secrets.token_hex(24)
    url = f"http://127.0.0.1:{port}{FIRST_PAGE}?token={token}"
    CACHE.mkdir(exist_ok=True)
    log = CACHE / f"jupyterlab-{port}.log"
    say(f"starting JupyterLab on port {port}")
    with open(log, "wb") as file:
        child = jupyterlab(python, port, token, file, more)
    ready = False
    try:
        ready = wait_until_ready(child, port, token)
        if ready:
            print(f"JupyterLab is ready: {url}", flush=True)
            say("Ctrl-C here ends it")
            if browser:
                open_browser(url)
            child.wait()
    except KeyboardInterrupt:
        finish(child)
        child.returncode, ready = 0, True
    finally:
        finish(child)
    if ready and child.returncode == 0:
        say("JupyterLab has ended")
        return True
    if not ready and not is_free(port):
        return False
    lines = log.read_text(errors="replace").splitlines()[-12:]
    raise SystemExit("\n".join([*lines, f"JupyterLab failed: its last lines are above ({log})."]))


def free_port(first: int = 8888) -> int:
    for port in range(first, first + 200):
        if is_free(port):
            return port
    raise SystemExit(f"No port from {first} to {first + 199} is free: choose one with --port.")


# ---- the command --------------------------------------------------------------------------


def has_compose() -> bool:
    for command in (["docker", "compose"], ["docker-compose"]):
        if re.match(r"v?([2-9]|\d\d)\.", output(*command, "version", "--short")):
            return True
    return False


def refuse_taken(port: int | None) -> None:
    if port is not None and not is_free(port):
        raise SystemExit(f"Port {port} is taken or not allowed: choose another --port, or none.")


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="up.py", description="Set the course up if needed and open JupyterLab."
    )
    add = parser.add_argument
    add("--no-browser", action="store_true", help="only print the address")
    add("--port", type=int, help="this port (otherwise the first free one from 8888 upward)")
    add("--compose", action="store_true", help="start the cluster in containers and use it")
    add("--doctor", action="store_true", help="check everything, open nothing")
    add("--offline", metavar="DIR", help="install from this folder of wheels, without a network")
    add("--download", metavar="DIR", help="fill a folder for --offline, and end")
    return parser.parse_args()


def run() -> int:
    args = command_line()
    if args.download:
        download(Path(args.download).resolve())
        return 0
    refuse_taken(args.port)
    extras = ("compose",) if args.compose and not has_compose() else ()
    python = ensure(extras, args.offline)
    say(f"using {python}")
    if args.doctor:
        return natslab(python, "doctor")
    more = {}
    if args.compose:
        code = natslab(python, "up")
        if code:
            return code
        more = {"NATSLAB_CLUSTER": "compose"}
    while not serve(python, args.port or free_port(), not args.no_browser, more):
        refuse_taken(args.port)
    if args.compose:
        say(f"the cluster in containers stays up; `{python} -m natslab down` ends it")
    return 0


def stop(_number, _frame) -> None:
    raise KeyboardInterrupt


def main() -> int:
    for number in STOPS:
        # A shell's `&` ignores SIGINT, and we must end on it; nohup ignores SIGHUP, and means it.
        if number == signal.SIGINT or signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)
    try:
        return run()
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise SystemExit(
            f"{error.strerror or error}{where}: put that right, then run the same command again."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
