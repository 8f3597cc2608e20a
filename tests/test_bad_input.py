"""What goes wrong around a lesson: one clear sentence, within seconds, and nothing is left behind."""

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import helpers
import nbformat
import psutil
import pytest
from helpers import nothing_left, until
from natslab import Lab, LabError
from natslab.clusters import server
from natslab.kernels import AsyncKernelManager
from nbclient import NotebookClient

pytestmark = pytest.mark.servers

DEAD = "unix:///nonexistent/docker.sock"


async def refused(cache: Path, seconds: float = 5.0, **how: object) -> str:
    """The sentence with which Lab.start gives up, after a look at the clock and at what is left."""
    began = time.monotonic()
    with pytest.raises(LabError) as caught:
        await Lab.start(lesson=1, **how)
    took = time.monotonic() - began
    assert took < seconds, f"{took:.1f} s"
    assert nothing_left(cache)
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and said[-1] in ".?" and len(said) < 300, said
    return said


def fake_server(folder: Path, version: str, then: str = "exit 0") -> Path:
    """A program that says it is nats-server of this version, and does `then` when it is started."""
    path = folder / "nats-server"
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "nats-server: v{version}"; else {then}; fi\n'
    )
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# The server binary.


async def test_named_server_is_not_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_SERVER", "/nowhere/nats-server")
    said = await refused(cache, kind="embedded")
    assert said.startswith("NATS_SERVER=/nowhere/nats-server is not a nats-server")


async def test_named_server_is_too_old(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_SERVER", str(fake_server(tmp_path, "2.9.10")))
    said = await refused(cache, kind="embedded")
    assert "is 2.9.10, the course needs 2.14 or newer: unset NATS_SERVER" in said


@pytest.mark.parametrize("version", ["2.9.10", "2.99.0"])
def test_the_server_of_the_course_wins_over_one_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """The saved outputs are those of its version."""
    other = fake_server(tmp_path, version)
    monkeypatch.setenv("NATS_SERVER", " ")  # empty: unset
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path, _ = server.find_server()
    assert path == Path(server._from_wheel()) != other


def test_a_server_on_path_serves_where_there_is_no_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_SERVER", "")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(server, "_from_wheel", lambda: None)
    other = fake_server(tmp_path, "2.14.0")
    assert server.find_server() == (other, "2.14.0")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("NATS_SERVER", "nats-server")  # a word that the PATH knows
    assert server.find_server() == (other, "2.14.0")


async def test_no_server_at_all(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_server(tmp_path, "2.9.10")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(server, "_from_wheel", lambda: None)
    said = await refused(cache, kind="embedded")
    assert "2.9.10, too old" in said and "run `python3 infra/up.py`" in said


async def test_server_that_ends_at_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = fake_server(tmp_path, "2.15.0", then="echo cannot open the store; exit 1")
    monkeypatch.setenv("NATS_SERVER", str(dying))
    began = time.monotonic()
    with pytest.raises(LabError, match="Node n. did not start: cannot open the store"):
        await Lab.start(kind="embedded")
    assert time.monotonic() - began < 3
    assert nothing_left(cache)


# What was asked for.


async def test_port_range_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_port() as port:
        monkeypatch.setenv("NATSLAB_PORTS", f"{port}-{port}")
        said = await refused(cache, kind="embedded")
    assert said.startswith(f"Only 0 of 9 ports needed are free in {port}-{port}: close other")


async def test_nonsense(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATSLAB_PORTS", "many")
    assert "NATSLAB_PORTS=many is not a range" in await refused(cache, kind="embedded")
    monkeypatch.setenv("NATSLAB_CLUSTER", "nonsense")
    said = await refused(cache)
    assert said == "NATSLAB_CLUSTER=nonsense: choose one of embedded, compose, external."
    monkeypatch.setenv("NATSLAB_CLUSTER", "external")
    assert "needs NATS_URL=" in await refused(cache)


async def test_compose_without_an_engine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("docker"):
        monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("DOCKER_HOST", DEAD)
    monkeypatch.setenv("NATSLAB_CLUSTER", "compose")
    said = await refused(cache)
    assert "engine is not running" in said or "docker command was not found" in said


# A cluster of somebody else.


async def test_dead_port(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"nats://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("NATS_URL", url)
    said = await refused(cache)
    assert said.startswith(f"No NATS server answers at {url}: start it, or unset NATS_URL")


async def test_silent_port(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_port() as port:
        monkeypatch.setenv("NATS_URL", f"nats://127.0.0.1:{port}")
        assert "No NATS server answers" in await refused(cache)


async def test_not_a_url(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("nats://no.such.host.invalid:4222", "nonsense", "nats://127.0.0.1:port"):
        monkeypatch.setenv("NATS_URL", url)
        assert url in await refused(cache), url


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """A server with a password, from its own small configuration: its address."""
    conf = tmp_path / "guarded.conf"
    conf.write_text(f"""
        listen: 127.0.0.1:-1
        ports_file_dir: {tmp_path}
        jetstream {{ store_dir: {tmp_path}/store }}
        authorization {{ user: ana, password: secret }}
    """)
    binary, _ = server.find_server()
    process = psutil.Popen([binary, "-c", conf, "-l", tmp_path / "guarded.log"])
    try:
        yield helpers.listens_at(tmp_path).removeprefix("nats://")
    finally:
        process.kill()
        process.wait()


async def test_wrong_log_in(
    guarded: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"  # the server itself runs in tmp_path
    cache.mkdir()
    monkeypatch.setattr("natslab.lab.CACHE", cache)
    for user in ("ana:wrong@", "eve:secret@", ""):
        monkeypatch.setenv("NATS_URL", f"nats://{user}{guarded}")
        said = await refused(cache)
        assert "refuses this log-in: check the user in NATS_URL or the file in NATS_CREDS" in said
        assert "secret" not in said and "wrong" not in said, "a password has no place in a message"
    monkeypatch.setenv("NATS_URL", f"nats://ana:secret@{guarded}")
    lab = await Lab.start(quiet=True)
    await lab.close(quiet=True)
    assert nothing_left(cache)


async def test_no_jetstream(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    binary, _ = server.find_server()
    plain = psutil.Popen([binary, "-a", "127.0.0.1", "-p", str(port), "-l", os.devnull])
    try:
        until(partial(answers, port), 10, "the server")
        monkeypatch.setenv("NATS_URL", f"nats://127.0.0.1:{port}")
        assert "JetStream does not answer" in await refused(cache)
    finally:
        plain.kill()
        plain.wait()


async def test_creds_that_are_not_there(
    external: dict, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_CREDS", "/nowhere/me.creds")
    said = await refused(cache)
    assert said == "NATS_CREDS=/nowhere/me.creds does not exist: check the path."
    monkeypatch.setenv("NATS_CREDS", str(tmp_path))
    assert "cannot be read" in await refused(cache)
    (tmp_path / "bad.creds").write_text("nothing of use")
    monkeypatch.setenv("NATS_CREDS", str(tmp_path / "bad.creds"))
    assert "is not a credentials file" in await refused(cache)


@pytest.mark.parametrize("leader", ["dies", "survives"])
async def test_two_of_three_nodes_dead(
    cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, leader
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with helpers.shared_cluster(elsewhere) as held:
        leads = (await server.ask(f"{held['monitors'][0]}/jsz"))["meta_cluster"]["leader"]
        nodes = sorted(["n1", "n2", "n3"], key=lambda node: node == leads)
        kill_nodes(Path(held["folder"]), nodes[1:] if leader == "dies" else nodes[:2])
        monkeypatch.setenv("NATS_URL", ",".join(held["servers"]))
        said = await refused(
            cache, 10.0, nodes=3
        )  # "some 5 s", when nobody else wants the processor
        assert "no quorum" in said or "makes no replicated stream" in said


def kill_nodes(folder: Path, nodes: list[str]) -> None:
    for node in nodes:
        process = psutil.Process(int((folder / f"{node}.pid").read_text()))
        process.kill()
        until(lambda p=process: not p.is_running() or p.status() == psutil.STATUS_ZOMBIE)


# How a reader sees it, and Ctrl-C.


def test_a_lesson_shows_the_sentence_and_no_stack(cache: Path) -> None:
    cells = ["from natslab import Lab, check", "lab = await Lab.start()", "check('true', 1 == 2)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    url = f"nats://127.0.0.1:{closed_port()}"
    env = helpers.clean_environment(NATSLAB_CACHE=str(cache), NATS_URL=url)
    NotebookClient(notebook, allow_errors=True, kernel_manager_class=AsyncKernelManager).execute(
        env=env
    )
    (start,), (check,) = notebook.cells[1].outputs, notebook.cells[2].outputs
    assert start.traceback == [f"LabError: {start.evalue}"]
    assert url in start.evalue and len(start.evalue.splitlines()) == 1
    assert check.traceback == [f"CheckFailed: {check.evalue}"]
    assert nothing_left(cache)


@pytest.mark.parametrize("words", [["doctor"], ["run", "1"]], ids=" ".join)
def test_ctrl_c_on_the_command_line(cache: Path, words: list[str]) -> None:
    command = ["-m", "natslab", *words]
    env = {"NATSLAB_CACHE": str(cache), "NATSLAB_CLUSTER": "embedded"}
    with helpers.python(*command, **env) as child:
        until(lambda: "nats-server" in " ".join(helpers.processes_in(cache)), 30, "a server")
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=15)
    assert child.returncode == 1
    assert said.strip().splitlines()[-1] == "stopped"
    assert "Traceback" not in said
    until(lambda: nothing_left(cache), 5, "the keeper to clean up")


@pytest.mark.parametrize("where", ["dead port", "silent port"])
def test_ctrl_c_while_a_start_waits(cache: Path, where: str) -> None:
    with silent_port() as silent:
        port = silent if where == "silent port" else closed_port()
        script = "import asyncio; from natslab import Lab; asyncio.run(Lab.start())"
        env = {"NATSLAB_CACHE": str(cache), "NATS_URL": f"nats://127.0.0.1:{port}"}
        with helpers.python("-c", script, **env) as child:
            until(lambda: "keeper.py" in " ".join(helpers.processes_in(cache)), 10, "the keeper")
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=5)
    assert said.strip().splitlines()[-1] == "KeyboardInterrupt"
    until(lambda: nothing_left(cache), 5, "the keeper to clean up")
