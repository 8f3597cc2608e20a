"""infra/up.py, run for real on copies of the checkout, so that the checkout's own .venv is safe."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOWHERE = "http://127.0.0.1:9/simple"  # the discard port: nobody listens there
ENSURE = "import sys, up; print(up.ensure(sys.argv[1:]))"


def until(condition, seconds=60.0, what="that"):
    """The first true value of condition(), polled."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f"waited {seconds} s for {what}")


def copy_course(folder):
    leave = shutil.ignore_patterns("*.egg-info", "__pycache__", "build")
    shutil.copytree(ROOT / "infra", folder / "infra", ignore=leave)
    shutil.copytree(ROOT / "lib", folder / "lib", ignore=leave)
    (folder / "notebooks").mkdir()
    empty = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "notebooks" / "00_start_here.ipynb").write_text(json.dumps(empty))
    return folder


def environment(*first_on_path, **more):
    """This process's environment with no environment active and no uv but the given one."""
    env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    path = [p for p in env["PATH"].split(os.pathsep) if not Path(p, "uv").exists()]
    return env | {"PATH": os.pathsep.join([*map(str, first_on_path), *path])} | more


def up(folder, *args, python=sys.executable, env=None):
    command = [python, folder / "infra" / "up.py", *args]
    return subprocess.run(
        command, env=env or environment(), capture_output=True, text=True, timeout=120, check=False
    )


def call(folder, code, *args, python=sys.executable, env=None):
    """A few lines of Python that import up.py as tests/run.py does."""
    code = f"import sys; sys.path.insert(0, {str(folder / 'infra')!r}); {code}"
    command = [python, "-c", code, *args]
    return subprocess.run(
        command, env=env or environment(), capture_output=True, text=True, timeout=120, check=False
    )


def assert_one_sentence(done, *words):
    assert done.returncode == 1, done
    last = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert last.endswith(".")
    for word in words:
        assert word in last, done.stderr


FILES = """
import csv, importlib.util, os, sysconfig
from importlib.metadata import distributions
assert importlib.util.find_spec("natslab")
os.chdir(sysconfig.get_path("purelib"))
names = set()
for package in distributions():
    names.add(package.name)
    for path, *_ in csv.reader(package.read_text("RECORD").splitlines()):
        assert path.endswith(".pyc") or os.path.exists(path), path
print(names >= {"natslab", "jupyterlab", "nats-py", "pandas"})
"""


def is_complete(folder):
    """Whether .venv is stamped, and has every file of every package in it."""
    python = folder / ".venv" / "bin" / "python"
    if not (folder / ".venv" / "natslab.json").exists():
        return False
    done = subprocess.run([python, "-I", "-c", FILES], stdout=subprocess.PIPE, check=False)
    return done.stdout == b"True\n"


def find_old_python():
    """A Python 3.9 that runs."""
    pyenv = sorted(Path("~/.pyenv/versions").expanduser().glob("3.9.*/bin/python"))
    for python in [shutil.which("python3.9"), *pyenv, "/usr/bin/python3"]:
        with contextlib.suppress(OSError, TypeError):
            done = subprocess.run([python, "--version"], capture_output=True, check=False)
            if done.stdout.startswith(b"Python 3.9."):
                return str(python)
    return None


@pytest.fixture(scope="session")
def old_python():
    return find_old_python() or pytest.skip("no Python 3.9 on this machine")


@contextlib.contextmanager
def jupyterlab(folder, *args, python=sys.executable, env=None):
    """up.py until its JupyterLab is ready: the process, what it printed, the address."""
    out = folder / "out.txt"
    with out.open("w") as file:
        command = [python, folder / "infra" / "up.py", "--no-browser", *args]
        process = psutil.Popen(
            command, env=env or environment(), stdout=file, stderr=subprocess.STDOUT
        )
    try:

        def ready():
            assert process.poll() is None, out.read_text()
            return re.search(r"^JupyterLab is ready: (\S+)$", out.read_text(), re.M)

        url = until(ready, 120, "JupyterLab")[1]
        yield process, out, url
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def end(process, number):
    """Send a signal, and see that the process and all that it started are gone; the exit code."""
    family = process.children(recursive=True)
    process.send_signal(number)
    code = process.wait(60)
    until(lambda: not any(p.is_running() for p in family), 10, f"the end of {family}")
    return code


@pytest.fixture(scope="session")
def course(tmp_path_factory):
    """A copy that was set up from nothing, without uv on PATH, by an old Python if there is one.

    The other tests share its environment and its uv.
    """
    folder = copy_course(tmp_path_factory.mktemp("course") / "a course")
    with jupyterlab(folder, python=find_old_python() or sys.executable) as (process, out, _url):
        (folder / "cold.txt").write_text(out.read_text())
        (folder / "cold.code").write_text(str(end(process, signal.SIGTERM)))
    return folder


@pytest.fixture(scope="session")
def with_uv(course, tmp_path_factory):
    """An environment in which uv is on PATH, which makes a set-up faster."""
    tools = tmp_path_factory.mktemp("tools")
    (tools / "uv").symlink_to(course / ".venv" / "bin" / "uv")
    return environment(tools)


def test_cold_set_up_ends_with_jupyterlab(course, old_python):
    lines = (course / "cold.txt").read_text()
    assert re.search(r"^\[ +\d+\.\d s\] making \.venv with Python 3\.1[2-4]", lines, re.M), lines
    assert "installing the course with uv" in lines
    assert is_complete(course)
    assert (course / "cold.code").read_text() == "0", "SIGTERM is a normal end"


def test_warm_start_moves_off_a_taken_port_and_ctrl_c_leaves_nothing(course):
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(socket.socket())
        with contextlib.suppress(OSError):  # whoever has 8888 already does as well
            taken.bind(("127.0.0.1", 8888))
            taken.listen()
        process, out, url = stack.enter_context(jupyterlab(course))
        seconds = re.search(r"\[ *([\d.]+) s\] starting JupyterLab", out.read_text())[1]
        assert float(seconds) < 3
        assert "making" not in out.read_text()
        port, token = re.fullmatch(
            r"http://127\.0\.0\.1:(\d+)/lab/tree/00_start_here\.ipynb\?token=(\w{32,})", url
        ).groups()
        assert int(port) > 8888

        with urllib.request.urlopen(url) as page:
            config = re.search(r'"news": *(\{.*?\})', page.read().decode())[1]
        assert json.loads(config) == {"disabled": True}

        kernels = f"http://127.0.0.1:{port}/api/kernels?token={token}"
        urllib.request.urlopen(kernels, data=b"{}").close()
        until(lambda: len(process.children(recursive=True)) >= 2, 10, "a kernel")
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                assert token not in " ".join(child.cmdline()), "everybody can read command lines"
        assert end(process, signal.SIGINT) == 0
        assert "JupyterLab has ended" in out.read_text()


def test_explicit_port_that_is_taken(course):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_sentence(up(course, "--port", str(port)), f"Port {port} is taken")
    assert_one_sentence(up(course, "--port", "99999"), "Port 99999")


def test_what_must_be_done(course):
    """Every way in which an environment can be unfit is told from a good one."""
    stamp, python = course / ".venv" / "natslab.json", course / ".venv" / "bin" / "python"
    good, target = json.loads(stamp.read_text()), python.readlink()

    def needed(*extras):
        done = call(course, "import json, up; print(json.dumps(up.needed(sys.argv[1:])))", *extras)
        return json.loads(done.stdout)[0]

    try:
        assert needed() == ""
        assert needed("test") == "update"
        for change, what in (
            ({"root": "/elsewhere"}, "make"),
            ({"pyproject": "older"}, "update"),
            ({"python": [3, 11, 7]}, "make"),
            ({"extras": ["compose", "test"]}, ""),
        ):
            stamp.write_text(json.dumps(good | change))
            assert needed() == what, change
        for text in ("", "{", "[]", "{}"):
            stamp.write_text(text)
            assert needed() == "make", text
        stamp.write_text(json.dumps(good))
        python.unlink()
        python.symlink_to("/the/python/that/was/removed")
        assert needed() == "make"
    finally:
        stamp.write_text(json.dumps(good))
        python.unlink()
        python.symlink_to(target)


def test_interrupted_moved_and_changed(tmp_path, with_uv):
    folder = copy_course(tmp_path / "first")
    packages = folder / ".venv" / "lib"
    stamp = folder / ".venv" / "natslab.json"

    def interrupt(number):
        """Break a set-up off while packages are being written."""
        command = [sys.executable, folder / "infra" / "up.py", "--no-browser"]
        process = psutil.Popen(command, env=with_uv, text=True, stderr=subprocess.PIPE)
        until(lambda: any(packages.glob("*/*/*.dist-info")), 60, "the first package")
        family = process.children(recursive=True)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert not stamp.exists(), "the set-up was over before the signal came"
        shutil.rmtree(packages.parent) if number == signal.SIGINT else None
        return process.returncode, said, family

    code, said, family = interrupt(signal.SIGINT)
    assert (code, said.strip()) == (130, "stopped; run the same command again to go on")
    assert not any(p.is_running() for p in family)

    interrupt(signal.SIGKILL)
    done = call(folder, ENSURE, env=with_uv)
    assert ".venv is not complete: mending it" in done.stdout, done
    assert is_complete(folder)

    # Moved, and then set up by two runs at once.
    folder = folder.rename(tmp_path / "second")
    command = [sys.executable, "-c", f"import sys; sys.path[0] = 'infra'; {ENSURE}"]
    pipes = {"env": with_uv, "cwd": folder, "text": True, "stdout": subprocess.PIPE}
    pair = [subprocess.Popen(command, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert sum("was made in another folder: mending it" in text for text in said) == 1
    assert all(text.endswith(f"{folder}/.venv/bin/python\n") for text in said)
    assert is_complete(folder)

    # Other dependencies and one more extra: brought up to date in place, and then left alone.
    with (folder / "lib" / "pyproject.toml").open("a") as file:
        file.write("# a change\n")
    done = call(folder, ENSURE, "compose", env=with_uv)
    assert "is older than lib/pyproject.toml: mending it" in done.stdout, done
    assert "making" not in done.stdout
    assert json.loads((folder / ".venv" / "natslab.json").read_text())["extras"] == ["compose"]
    assert call(folder, ENSURE, env=with_uv).stdout == f"{folder}/.venv/bin/python\n"


def test_failing_shims_on_path_are_passed_over(course, tmp_path, old_python):
    for name in ("python3.14", "python3.13", "uv"):
        shim = tmp_path / name
        shim.write_text("#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")
        shim.chmod(0o755)
    good = Path(sys.executable).resolve()
    (tmp_path / "python3.12").symlink_to(good)
    env = environment() | {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    env.pop("PYENV_ROOT", None)
    done = call(course, "import up; print(up.find_python()[0])", python=old_python, env=env)
    assert Path(done.stdout.strip()).resolve() == good, done


def test_no_python_found(tmp_path, old_python):
    folder = copy_course(tmp_path / "course")
    env = environment() | {"PATH": "/nowhere", "HOME": str(tmp_path)}
    env.pop("PYENV_ROOT", None)
    done = up(folder, "--doctor", python=old_python, env=env)
    assert_one_sentence(done, "No Python 3.12, 3.13 or 3.14 was found", "install one")


def test_active_environment_with_the_course_is_used_as_it_is(course, tmp_path, with_uv):
    folder, active = copy_course(tmp_path / "course"), tmp_path / "active"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", active], check=True)
    python = active / "bin" / "python"
    # The packages are lent by the shared environment; the course is installed from this copy.
    (lent,) = (course / ".venv" / "lib").glob("python3*/site-packages")
    (own,) = (active / "lib").glob("python3*/site-packages")
    (own / "lent.pth").write_text(f"{lent}\n")

    # Before the course is in it, an active environment is ignored.
    done = call(course, ENSURE, env=environment(CONDA_PREFIX=str(active)))
    assert done.stdout == f"{course}/.venv/bin/python\n", done

    uv = course / ".venv" / "bin" / "uv"
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--python", python]
    subprocess.run([*install, "-e", folder / "lib"], check=True)
    for variable in ("CONDA_PREFIX", "VIRTUAL_ENV"):
        done = call(folder, ENSURE, env=environment(**{variable: str(active)}))
        assert done.stdout == f"{python}\n", done
    assert not (folder / ".venv").exists()

    # It has the course of another checkout.
    done = call(course, ENSURE, env=environment(VIRTUAL_ENV=str(active)))
    assert done.stdout == f"{course}/.venv/bin/python\n", done

    done = call(folder, ENSURE, "test", env=environment(CONDA_PREFIX=str(active)))
    assert done.returncode == 1
    assert "lacks" in done.stderr and "pytest-xdist" in done.stderr
    assert f"{python} -m pip install" in done.stderr
    assert not (folder / ".venv").exists()


def test_offline_folder_that_lacks_something(tmp_path, with_uv):
    folder, wheels = copy_course(tmp_path / "course"), tmp_path / "wheels"
    wheels.mkdir()
    done = up(folder, "--doctor", "--offline", str(wheels), env=with_uv)
    assert_one_sentence(done, f"{wheels} holds no wheels")
    assert not (folder / ".venv").exists()
    (wheels / "lonely-1.0-py3-none-any.whl").touch()
    done = up(folder, "--doctor", "--offline", str(wheels), env=with_uv)
    assert_one_sentence(done, f"{wheels} lacks something", "--download")


def test_no_network(tmp_path):
    folder = copy_course(tmp_path / "course")
    env = environment(UV_NO_CONFIG="1", UV_DEFAULT_INDEX=NOWHERE, PIP_INDEX_URL=NOWHERE)
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
    done = up(folder, "--doctor", env=env)
    assert_one_sentence(done, "The package index is out of reach", "--offline DIR")
    assert not (folder / ".venv" / "natslab.json").exists()
