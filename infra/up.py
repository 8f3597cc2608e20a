#!/usr/bin/env python3
"""Set the course up if needed and open JupyterLab:  python3 infra/up.py

Only the standard library, any Python from 3.9: it runs before the environment exists.
`.venv/natslab.json` says that the environment is ours; it is empty until the environment is
complete, and then says what it was made from. Where it says something else, the environment is
mended. Where it is missing, somebody else made the folder, and we leave it alone.
tests/run.py imports this file:  python = up.ensure(extras=("test",))
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import hashlib
import http.client
import json
import os
import platform
import re
import secrets
import shlex
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
LOCKS = ROOT / "lib" / "lock"  # every package with its hashes; written by infra/lock.py
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"
STAMP = VENV / "natslab.json"
PYTHON = VENV / "bin" / "python"
MINORS = (14, 13, 12)  # the Python 3 versions for which all pinned packages have wheels
FIRST_PAGE = "/lab/tree/notebooks/00_start_here.ipynb"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DISK = r"no space left|disk quota|os error 28"
NETWORK = (
    r"dns error|resolution|failed to resolve|name or service|nodename nor|error sending request"
    r"|connection (refused|reset|error|broken)|to connect|unreachable|timed out"
)
# Nothing is compiled here behind the reader's back; nkeys is plain Python, and only there as source.
WHEELS = ["--only-binary", ":all:", "--no-binary", "nkeys", "--no-build-isolation"]
# What the machine sets for these programs is not for us: other Pythons, other folders, other pages.
# (PYTHONDONTWRITEBYTECODE, set in many containers, has every kernel compile pandas anew: 2 s.)
BANNED = re.compile(r"(PIP_|UV_|PYTHON|JUPYTER|JPY_|IPYTHON|COMPOSE_|VIRTUAL_ENV).*")
# But where packages come from and how to get there is: indexes, mirrors, proxies, certificates.
# What they hand over must have the hashes in lib/lock, so none of them changes what is installed.
SOURCES = re.compile(
    r"(PIP|UV)_((DEFAULT_|EXTRA_|NO_)?INDEX(_.*)?|FIND_LINKS|TRUSTED_HOST|INSECURE_HOST"
    r"|KEYRING_PROVIDER|(CLIENT_)?CERT|SYSTEM_CERTS|NATIVE_TLS|(HTTPS?_|ALL_)?PROXY"
    r"|(\w+_)?TIMEOUT|RETRIES|(NO_)?CACHE_DIR|LINK_MODE|CONFIG_FILE|NO_CONFIG)"
)
QUIET_PIP = ["--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
PRINTING = ("PYTHONIOENCODING", "PYTHONUTF8")  # how a terminal wants its letters


def allowed(name: str) -> bool:
    return name in PRINTING or bool(SOURCES.fullmatch(name)) or not BANNED.fullmatch(name)


# What children get. An empty variable counts as unset; packages in the reader's home are not ours.
CLEAN = {name: value for name, value in os.environ.items() if value and allowed(name)}
CLEAN["PYTHONNOUSERSITE"] = "1"
# A file of the reader's is meant from where this command is given; kernels start elsewhere.
FILES = ("NATS_CREDS", "NATS_CA")
CLEAN.update(
    {name: os.path.abspath(os.path.expanduser(CLEAN[name])) for name in FILES if name in CLEAN}
)
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
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's `&`: children must hear it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    more = {"cwd": ROOT, "env": CLEAN, "stdin": subprocess.DEVNULL, **more}
    return subprocess.Popen([str(word) for word in command], start_new_session=True, **more)


def finish(child: subprocess.Popen, gently: int = signal.SIGTERM, patience: float = 30) -> None:
    """End a child that still runs; an impatient second Ctrl-C must not leave it behind."""
    if child.poll() is not None:
        return  # a Ctrl-C that comes now is the first, and counts
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPS}
    try:
        child.send_signal(gently)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def logged(command: list, lock: int | None = None, **more) -> tuple[bool, list[str]]:
    """Run an installer, showing a line of its output at most once a second; its last lines."""
    # The child holds the lock too: when this process is killed, the next run waits for the child.
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    child = start(command, pass_fds=[lock] if lock else [], **piped, **more)
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
    """The Python of an environment that we did not make and that has this checkout's course.

    An active conda or virtual environment, or a .venv of the reader's.
    """
    for prefix in filter(None, [*map(os.environ.get, ("VIRTUAL_ENV", "CONDA_PREFIX")), VENV]):
        folder = Path(prefix).resolve()
        if folder == VENV.resolve() and is_ours():
            continue  # its stamp decides
        python = folder / "bin" / "python"
        # Compose is asked for where there is none, and only the tests of containers need it.
        origin, missing = ask(python, COURSE, *({*extras} - {"compose"})) or (None, [])
        if not origin or (ROOT / "lib") not in Path(origin).resolve().parents:
            continue
        if missing:
            raise SystemExit(
                f"The environment {folder} lacks {', '.join(missing)}: run\n"
                f"  {python} -m pip install {shlex.join(map(str, lock_files(extras)))}\n"
                "or deactivate it, then run the same command again."
            )
        return python
    return None


def is_ours() -> bool:
    """Whether .venv may be made, mended and made anew by us."""
    with contextlib.suppress(FileNotFoundError):  # gone between two looks
        if VENV.is_dir() and not VENV.is_symlink() and not any(VENV.iterdir()):
            return True
    return STAMP.is_file() or not os.path.lexists(VENV)


def refuse_foreign() -> None:
    if is_ours():
        return
    with locked():  # another run may be making it anew just now
        if is_ours():
            return
        raise SystemExit(
            f"{VENV} was not made by this command, and it lacks the course: rename that folder, "
            "then run the same command again."
        )


# ---- the environment ----------------------------------------------------------------------


def digest() -> str:
    files = [PYPROJECT, *sorted(LOCKS.glob("*.txt"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def lock_files(extras=()) -> list:
    """The words that have an installer install the course's packages, and those of some extras."""
    return [word for name in ("course", *sorted(extras)) for word in ("-r", LOCKS / f"{name}.txt")]


def has_compose() -> bool:
    for command in (["docker", "compose"], ["docker-compose"]):
        if re.match(r"v?([2-9]|\d\d)\.", output(*command, "version", "--short")):
            return True
    return False


def compose_fits() -> bool:
    """Whether the wheels of Compose run on this machine; as source it is no choice."""
    kind, version = platform.libc_ver()
    new = kind == "glibc" and [*map(int, version.split(".")[:2])] >= [2, 35]
    return new and platform.machine() == "x86_64"


def wanted(extras) -> list[str]:
    """These extras, without what this machine has already or cannot have."""
    needless = "compose" in extras and (has_compose() or not compose_fits())
    return sorted({*extras} - ({"compose"} if needless else set()))


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
        return "update", "is older than lib/pyproject.toml or lib/lock"
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
    source = ["--no-index", "--find-links", offline] if offline else []
    hashed = ["--require-hashes", "--no-deps", *WHEELS, *source]
    steps = [
        [*hashed, "-r", LOCKS / "build.txt"],  # what builds the two that are there as source
        [*hashed, *lock_files(extras)],
        ["--no-deps", "--no-build-isolation", *source, "-e", "./lib"],
    ]
    uv, own = find_uv(), VENV / "bin" / "uv"
    if not uv:
        say("getting uv, the fast installer")
        done, tail = with_pip([[*hashed, "-r", LOCKS / "uv.txt"]], offline, lock)
        if not done and re.search(NETWORK, "\n".join(tail), re.I):
            raise failed(tail, offline)
        uv = own if done else None
    if uv:
        say("installing the course with uv")
        command = [uv, "pip", "install", "--python", PYTHON, *(["--no-config"] if offline else [])]
        done, tail = in_turn(command, steps, lock, CLEAN)
        if done:
            return
        if offline or re.search(DISK, "\n".join(tail), re.I):
            raise failed(tail, offline)
    say("uv did not succeed: installing with pip, which takes a minute or two")
    done, tail = with_pip(steps, offline, lock)
    if not done:
        raise failed(tail, offline)


def in_turn(command: list, steps: list, lock: int, env: dict) -> tuple[bool, list[str]]:
    """An installer's steps, until one fails."""
    done, tail = True, []
    for step in steps:
        done, tail = logged([*command, *step], lock, env=env)
        if not done:
            break
    return done, tail


def with_pip(steps: list, offline: Path | None, lock: int) -> tuple[bool, list[str]]:
    if not output(PYTHON, "-m", "pip", "--version"):  # uv was on the machine when it was made
        logged([PYTHON, "-m", "ensurepip"], lock)
    env = pip_environment(PYTHON, offline)
    return in_turn([PYTHON, "-m", "pip", "install", *QUIET_PIP], steps, lock, env)


def pip_environment(python: Path, offline: Path | None = None) -> dict:
    """Of pip.conf only how to reach the packages: it may as well say `user` or `target`."""
    env = {name: value for name, value in CLEAN.items() if not name.startswith("PIP_")}
    if not offline:
        for line in output(python, "-m", "pip", "config", "list").splitlines():
            key, _, value = line.partition("=")
            name = "PIP_" + key.split(".")[-1].upper().replace("-", "_")
            if SOURCES.fullmatch(name):
                env[name] = " ".join(ast.literal_eval(value).split())
        env.update({name: value for name, value in CLEAN.items() if name.startswith("PIP_")})
    return {**env, "PIP_CONFIG_FILE": os.devnull}


def make_venv(minors, lock: int) -> None:
    without_pip = find_uv() is not None  # uv needs none in there, and this saves 3 s
    base, version = find_python(minors, without_pip)
    say(f"making .venv with Python {version}")
    if VENV.is_symlink():
        VENV.unlink()
    elif VENV.exists():
        # In one step: what is half-deleted may have lost its stamp.
        shutil.rmtree(CACHE / "venv-old", ignore_errors=True)
        VENV.rename(CACHE / "venv-old")
    # A Python of the old one that still starts makes the folders anew in which it caches modules.
    VENV.mkdir(exist_ok=True)
    STAMP.touch()  # from here on it is ours, and half-made
    shutil.rmtree(CACHE / "venv-old", ignore_errors=True)  # not before: it takes seconds
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
    printable()
    active = active_environment(extras)
    if active:
        return active
    refuse_foreign()
    extras = wanted(extras)
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
            STAMP.write_text("")  # from here on it is half-made
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
    """Everything that `--offline` needs on machines like this one, in one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    base, version = find_python()
    say(f"filling {folder} for Python {version}, about a minute")
    names = [path.stem for path in LOCKS.glob("*.txt") if path.stem != "compose" or compose_fits()]
    files = [word for name in names for word in ("-r", LOCKS / f"{name}.txt")]
    hashed = ["--require-hashes", "--no-deps", *WHEELS]
    with tempfile.TemporaryDirectory() as temporary:
        done, tail = logged([base, "-m", "venv", temporary])
        python = Path(temporary) / "bin" / "python"
        env = pip_environment(python)
        steps = [["install", *hashed, "-r", LOCKS / "build.txt"]]
        steps += [["download", *hashed, "--dest", folder, *files]]
        for verb, *step in steps if done else []:
            done, tail = logged([python, "-m", "pip", verb, *QUIET_PIP, *step], env=env)
            if not done:
                break
    if not done:
        raise failed(tail)
    sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file()]
    say(f"{folder} holds {len(sizes)} packages, {sum(sizes) / 1e6:.0f} MB")


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
    # Settings, open tabs and history are the course's own: those of other projects stay away.
    own = {
        "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", "")]),
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(CACHE / "jupyter"),
        "JUPYTER_CONFIG_PATH": str(ROOT / "infra" / "jupyter"),
        "JUPYTER_PREFER_ENV_PATH": "1",  # else a kernel of the same name in the home wins
        "IPYTHONDIR": str(CACHE / "ipython"),
    }
    options = {
        "ServerApp.root_dir": ROOT,  # lessons link to the README
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
    if (
        os.environ.get("CODESPACES") == "true"
    ):  # the page comes through GitHub's proxy; the token guards it
        options["ServerApp.allow_origin_pat"] = r"https://[a-z0-9-]+\.app\.github\.dev"
    words = [f"--{name}={value}" for name, value in options.items()]
    command = [python, "-P", ROOT / "infra" / "jupyter" / "lab.py", *words]
    piped = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
    return start(command, env={**CLEAN, **own, **more}, **piped)


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
        child.stdin.close()
    if ready and child.returncode == 0:
        say("JupyterLab has ended")
        return True
    lines = log.read_text(errors="replace").splitlines()[-12:]
    refused = any(f"port {port} is not available" in line for line in lines)
    if not ready and (refused or not is_free(port)):
        return False
    raise SystemExit("\n".join([*lines, f"JupyterLab failed: its last lines are above ({log})."]))


def free_port(first: int = 8888) -> int:
    for port in range(first, first + 200):
        if is_free(port):
            return port
    raise SystemExit(f"No port from {first} to {first + 199} is free: choose one with --port.")


# ---- the command --------------------------------------------------------------------------


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
    add("--update", action="store_true", help="get the newer course, keep what you wrote, and end")
    add("--offline", metavar="DIR", help="install from this folder of wheels, without a network")
    add("--download", metavar="DIR", help="fill a folder for --offline, and end")
    return parser.parse_args()


def run() -> int:
    args = command_line()
    if args.download:
        download(Path(args.download).resolve())
        return 0
    if args.update:
        import update

        return update.update(ROOT)
    refuse_taken(args.port)
    extras = ("compose",) if args.compose else ()
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


def printable() -> None:
    """A terminal that lacks a letter shows a question mark in its place."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test catches it
            stream.reconfigure(errors="replace")


def stop(_number, _frame) -> None:
    raise KeyboardInterrupt


def main() -> int:
    printable()
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
