"""What a reader's machine is like does not steer the lab: proxies, names, encodings, variables, disks."""

import asyncio
import errno
import http.client
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import helpers
import nats
import natslab.lab
import pytest
from helpers import ROOT, nothing_left
from natslab import Lab, LabError, doctor, prometheus, settled, until
from natslab.clusters import keeper, server
from natslab.clusters.ports import DEFAULT_PORTS
from natslab.paths import anchor, setting
from natslab.prometheus import Prometheus

pytestmark = pytest.mark.servers

# A folder as readers have it, and as nobody should.
NAMES = ["Müller Kurs", "課程 Курс", """it's "mine" = $HOME; {x} #1 %41 \\u00e9"""]
PROXY = "http://127.0.0.1:9"  # nobody listens there
NO_UNICODE = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader behind a proxy, who does not except 127.0.0.1 from it."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, PROXY)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "intranet.example")  # what is added to it is undone
    # urllib keeps what it first read of proxies for all later calls of a process.
    monkeypatch.setattr(urllib.request, "_opener", None)


# Proxies.


async def test_drills_are_seen_behind_a_proxy(proxy: None, cache: Path) -> None:
    lab = await Lab.start(kind="embedded", quiet=True)
    try:
        assert [node["up"] for node in await lab.view()] == [True] * 3
        await lab.pause("n1")
        assert [node["up"] for node in await lab.view()] == [False, True, True]
        await lab.resume("n1")
        await lab.kill("n2")
        await lab.restart("n2")
        # A cell asks too, and has not heard of `open_url`.
        url = f"{lab.cluster.nodes['n1'].monitor}/healthz"
        with await asyncio.to_thread(urllib.request.urlopen, url, timeout=5) as page:
            assert page.status == http.client.OK
    finally:
        await lab.close(quiet=True)
    assert os.environ["no_proxy"] == "intranet.example,localhost,127.0.0.1,::1"


def test_without_a_proxy_no_variable_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS it would turn the proxy of the system off."""
    for name in [*os.environ, "no_proxy", "NO_PROXY"]:
        if name.lower().endswith("_proxy"):
            monkeypatch.setenv(name, "")
    server.spare_loopback()
    assert not os.environ["no_proxy"]
    monkeypatch.setenv("http_proxy", PROXY)
    server.spare_loopback()
    server.spare_loopback()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "localhost,127.0.0.1,::1"


class Page(BaseHTTPRequestHandler):
    """Answers everything, as itself or as a proxy for somebody else."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f'{{"asked": "{self.path}"}}'.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def web() -> Iterator[int]:
    """A port where `Page` answers."""
    with HTTPServer(("127.0.0.1", 0), Page) as page:
        threading.Thread(target=page.serve_forever).start()
        try:
            yield page.server_port
        finally:
            page.shutdown()


async def test_only_this_machine_is_asked_directly(
    proxy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web() as port:
        for host in ("127.0.0.1", "localhost"):
            assert await server.ask(f"http://{host}:{port}/varz") == {"asked": "/varz"}
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies it knew
        far = "http://nats.example:8222/varz"
        assert await server.ask(far) == {"asked": far}, "the way out is the reader's"


async def test_half_an_answer_is_none() -> None:
    """A node that is killed while it answers."""

    async def cut_short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        writer.close()

    async with await asyncio.start_server(cut_short, "127.0.0.1", 0) as door:
        port = door.sockets[0].getsockname()[1]
        assert await server.ask(f"http://127.0.0.1:{port}/varz") is None


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on PATH")
async def test_prometheus_behind_a_proxy_in_a_folder_with_any_name(
    proxy: None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = cache / NAMES[0]
    monkeypatch.setattr(prometheus, "CACHE", home)
    monkeypatch.delenv("PROMETHEUS_URL", raising=False)
    with web() as port:
        prom = await Prometheus.start([f"127.0.0.1:{port}"])
        try:

            async def scraped() -> bool:
                return len(await prom.query("scrape_duration_seconds")) == 1

            await until(scraped, 20, "a scrape")
        finally:
            prom.close()
    assert nothing_left(home)


# Names.


async def greet(options: dict) -> None:
    import nats

    nc = await nats.connect(**options)
    await nc.publish("greet", "→ ü".encode())
    print("→ ü", flush=True)
    await nc.drain()


@pytest.mark.parametrize("name", NAMES)
async def test_a_lab_in_a_folder_with_any_name(
    cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    home = cache / name
    monkeypatch.setattr(natslab.lab, "CACHE", home)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    lab = await Lab.start(kind="embedded", quiet=True)
    try:
        nc = await nats.connect(**lab.options)
        heard = await nc.subscribe("greet")
        await nc.jetstream().add_stream(name="S", subjects=["s"], num_replicas=3)
        await settled(nc, "s")
        await nc.jetstream().publish("s", b"")
        worker = lab.spawn(greet, "greeter", lab.address)
        assert (await heard.next_msg(timeout=20)).data == "→ ü".encode()
        await until(lambda: not worker.alive, 10)
        assert worker.log.read_text("utf-8") == "→ ü\n"
        await nc.close()
        await lab.kill("n1")
        await lab.restart("n1")
    finally:
        await lab.close(quiet=True)
    assert nothing_left(home)


def test_the_doctor_is_content_with_a_strange_but_sound_machine(tmp_path: Path) -> None:
    """A checkout below such a folder, behind a proxy, on a terminal that knows no ✔."""
    course = tmp_path / NAMES[0]
    for part in ("lib", "infra"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / part, course / part, ignore=ignore)
    env = {"PYTHONPATH": str(course / "lib"), "PYTHONIOENCODING": "ascii", "http_proxy": PROXY}
    env |= {"no_proxy": "", "NATSLAB_CACHE": "", "NATS_SERVER": "", "PROMETHEUS_URL": ""}
    with helpers.python("-m", "natslab", "doctor", **env) as child:
        out, err = child.communicate(timeout=90)
    assert (child.returncode, err) == (0, ""), out + err
    assert out.splitlines()[-1] == "All is well."
    assert "? three-node cluster   up, replicated publish acknowledged, a kill and a restart" in out
    assert nothing_left(course / ".cache")


# Encodings.

REPORT = r"""
import sys
from natslab import cli, doctor, errors
text = "\u2192 M\u00fcller \u8ab2 \udcff"
for name in ("_packages", "_server", "_cluster", "_disk", "_engine", "_compose", "_prometheus"):
    setattr(doctor, name, lambda: (text, ""))
code = cli.main(["doctor"])
def fails():
    raise errors.LabError(text)
doctor.report = fails
sys.exit(code + cli.main(["doctor"]))
"""


@pytest.mark.parametrize("env", NO_UNICODE, ids=str)
def test_the_command_line_prints_in_any_encoding(env: dict[str, str]) -> None:
    words = [sys.executable, "-c", REPORT]
    done = subprocess.run(
        words, env=helpers.clean_environment(**env), capture_output=True, timeout=60
    )
    assert done.returncode == 1, done
    assert done.stdout.splitlines()[-1] == b"All is well."
    assert done.stderr.startswith(b"? M") and b"Traceback" not in done.stderr


# Disks.


def disk(error: int) -> OSError:
    return OSError(error, os.strerror(error), "/somewhere/file")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("where", ["a folder", "a log"])
async def test_a_full_disk_is_one_sentence(
    cache: Path, monkeypatch: pytest.MonkeyPatch, number: int, where: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise disk(number)

    if where == "a folder":
        monkeypatch.setattr(keeper.tempfile, "mkdtemp", full)
    else:
        monkeypatch.setattr(server, "launch", full)
    with pytest.raises(LabError) as caught:
        await Lab.start(kind="embedded")
    assert str(caught.value).endswith(
        " is full: make room there, or set NATSLAB_CACHE to a folder on a local disk where you may write."
    )
    assert str(cache) in str(caught.value)
    assert nothing_left(cache)


async def test_hardly_any_room_is_told_before_a_server_starts(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        natslab.lab.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 9 << 20)
    )
    with pytest.raises(
        LabError, match=r"^Only 9 MiB are free at .*labs, and a cluster needs 64: make"
    ):
        await Lab.start(kind="embedded")
    assert nothing_left(cache)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A disk of its own for a test. Skips it where nobody may mount one."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_file_where_the_cache_should_be(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "file").touch()
    monkeypatch.setattr(natslab.lab, "CACHE", cache / "file")
    monkeypatch.setattr(prometheus, "CACHE", cache / "file")
    said = r"^The course cannot write to .*file/labs \(.*\): set NATSLAB_CACHE to a folder"
    with pytest.raises(LabError, match=said):
        await Lab.start(kind="embedded")
    with pytest.raises(LabError, match=said):
        prometheus.free_port()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("ro", "? disk                 not usable  ? The course cannot write to "),
        ("size=64k", "? disk                 not usable  ? The disk of "),
    ],
)
def test_the_doctor_on_a_disk_that_is_of_no_use(tmp_path: Path, options: str, words: str) -> None:
    with mounted(tmp_path / "disk", options) as home:
        env = {"NATSLAB_CACHE": str(home / "cache"), "PYTHONIOENCODING": "ascii"}
        with helpers.python("-m", "natslab", "doctor", **env) as child:
            out, err = child.communicate(timeout=60)
        assert (child.returncode, err) == (1, ""), out + err
        assert words in out
        assert "? three-node cluster   not usable" in out
        assert out.count("set NATSLAB_CACHE to a folder") == 2
        assert nothing_left(home / "cache")


# The doctor tells what lessons would stumble over.


def test_the_doctor_sees_that_monitoring_ports_do_not_answer(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(server, "ask", nothing)
    found, advice = doctor._in_words(doctor._cluster)
    assert found == "not usable"
    assert advice.startswith("The monitoring ports of n1, n2, n3 do not answer")
    assert nothing_left(cache)


# Variables.


@pytest.mark.parametrize("value", ["", " ", "\t"])
async def test_an_empty_variable_counts_as_unset(
    cache: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    names = ("NATSLAB_CLUSTER", "NATSLAB_PORTS", "NATS_SERVER", "NATS_URL", "NATS_CREDS", "NATS_CA")
    for name in names:
        monkeypatch.setenv(name, value)
        assert setting(name) is None
    monkeypatch.setattr(natslab.lab.compose, "is_up", compose_is_down)
    lab = await Lab.start(quiet=True)
    assert lab.kind == "embedded"
    first, last = map(int, DEFAULT_PORTS.split("-"))
    at = {int(url.rsplit(":", 1)[1]) for url in lab.options["servers"]}
    assert all(first <= port <= last for port in at)
    await lab.close(quiet=True)


async def compose_is_down() -> bool:
    return False


@pytest.mark.parametrize(
    ("value", "cache"),
    [("", ROOT / ".cache"), ("here", Path("/tmp/here")), ("~/there", Path.home() / "there")],
)
def test_where_the_cache_is(value: str, cache: Path) -> None:
    words = [sys.executable, "-c", "from natslab.paths import CACHE; print(CACHE)"]
    env = helpers.clean_environment(NATSLAB_CACHE=value)
    told = subprocess.run(words, env=env, cwd="/tmp", capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(cache)


def test_a_file_is_meant_from_where_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels start in `notebooks`, so a path from here would lead nowhere there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NATS_CREDS", "me.creds")
    monkeypatch.setenv("NATS_CA", "")
    anchor()
    assert os.environ["NATS_CREDS"] == str(tmp_path / "me.creds")
    assert setting("NATS_CA") is None


def test_what_python_is_told_does_not_reach_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Python is found stays; how it behaves is ours."""
    for name in ("INSPECT", "OPTIMIZE", "WARNINGS", "IOENCODING", "ASYNCIODEBUG", "VERBOSE"):
        monkeypatch.setenv(f"PYTHON{name}", "1")
    monkeypatch.setenv("PYTHONPATH", "/where/packages/are")
    monkeypatch.setenv("NATSLAB_LAB", "/another/lab")  # this kernel is itself a child of one
    told = keeper.environment(tmp_path / "lab")
    assert {name for name in told if name.startswith("PYTHON")} == {"PYTHONPATH"} | {
        name for name in os.environ if name in keeper.WHERE_PYTHON_IS
    }
    assert told["NATSLAB_LAB"] == str(tmp_path / "lab")
    assert told["PATH"] == os.environ["PATH"]
