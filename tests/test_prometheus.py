"""A real Prometheus: it scrapes, answers, fires alerts, and is gone with whoever started it."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import helpers
import natslab
import psutil
import pytest
from helpers import labs_in, nothing_left, processes_in
from natslab import LabError, prometheus, until
from natslab.clusters import keeper
from natslab.prometheus import Prometheus, free_port

pytestmark = pytest.mark.servers

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus on PATH: apt install prometheus"
)
HOLDER = """
import asyncio
from natslab.prometheus import Prometheus
asyncio.run(Prometheus.start(["127.0.0.1:1"]))
print("up", flush=True)
input()
"""


@pytest.fixture(autouse=True)
def home(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it keeps its folders, here and in children; no Prometheus of somebody else."""
    monkeypatch.setattr(prometheus, "CACHE", cache)
    monkeypatch.setattr(prometheus, "_given", set())
    monkeypatch.setenv("NATSLAB_CACHE", str(cache))
    monkeypatch.delenv("PROMETHEUS_URL", raising=False)
    return cache


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    """Something to scrape: two services, one of them silent since 1970."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(
                b'stats_last_sample_seconds{service="old"} 1\n'
                b'stats_last_sample_seconds{service="new"} 9e9\n'
            )

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", free_port()), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


async def scraped(prom: Prometheus) -> None:
    async def has_both() -> bool:
        return len(await prom.query("stats_last_sample_seconds")) == 2

    await natslab.until(has_both, timeout=20, what="the first scrape")


@needs_prometheus
async def test_scrapes_answers_and_fires(home: Path, target: str) -> None:
    prom = await Prometheus.start([target])
    try:
        await scraped(prom)
        assert prom.version
        both = (await prom.query("stats_last_sample_seconds")).set_index("service").value
        assert dict(both) == {"old": 1.0, "new": 9e9}
        assert await prom.number("sum(up)") == 1.0
        assert await prom.number("6 * 7") == 42.0
        assert str(await prom.number("no_such_thing")) == "nan"
        with pytest.raises(LabError, match="has 2 results"):
            await prom.number("stats_last_sample_seconds")
        with pytest.raises(LabError, match="parse error"):
            await prom.query("sum(")

        now = await prom.number("time()")
        line = await prom.over_time("up", now - 1, now + 10)
        assert list(line.value.unique()) == [1.0] and line.t.is_monotonic_increasing
        assert (await prom.over_time("no_such_thing", now, now + 1)).empty

        await natslab.until(prom.alerts, timeout=10, what="the alert")
        (alert,) = await prom.alerts()
        assert (alert["alertname"], alert["service"]) == ("ServiceSilent", "old")
        assert alert["state"] == "firing"
    finally:
        prom.close()
    assert nothing_left(home)
    prom.close()  # a second time does no harm


@needs_prometheus
async def test_starting_again_replaces_the_first(home: Path) -> None:
    first = await Prometheus.start(["127.0.0.1:1"])
    second = await Prometheus.start(["127.0.0.1:1"])
    try:
        assert first._process.poll() is not None, "the first has ended"
        assert (await second.query("1")).value.tolist() == [1.0]
        assert len(processes_in(home)) == 2, "a keeper and a Prometheus: once"
        assert len(labs_in(home)) == 1
    finally:
        second.close()
    assert nothing_left(home)


@needs_prometheus
async def test_rules_that_it_refuses_are_told_in_its_words(home: Path) -> None:
    rules = home / "bad.yml"
    rules.write_text("groups: [{name: x, rules: [{alert: A, expr: 'sum('}]}]")
    with pytest.raises(LabError, match=r"(?s)did not start: .*parse error"):
        await Prometheus.start(["127.0.0.1:1"], rules)
    assert nothing_left(home)


@needs_prometheus
async def test_an_interrupted_start_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What "interrupt kernel" does to a cell."""
    monkeypatch.setattr(Prometheus, "_ready", lambda self: asyncio.Event().wait())  # never
    start = asyncio.create_task(Prometheus.start(["127.0.0.1:1"]))
    await natslab.until(lambda: len(processes_in(home)) == 2, what="a keeper and a Prometheus")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert nothing_left(home)


@needs_prometheus
@pytest.mark.parametrize("keeper_too", [False, True], ids=["holder", "holder and keeper"])
def test_sigkill_of_the_holder_leaves_nothing(home: Path, keeper_too: bool) -> None:
    with helpers.python("-c", HOLDER) as holder:
        assert holder.stdout.readline() == "up\n", holder.communicate()[1]
        assert len(processes_in(home)) == 2, "a keeper and a Prometheus"
        if keeper_too:
            children = psutil.Process(holder.pid).children()
            (guard,) = [child for child in children if child.name() != "prometheus"]
            guard.kill()
        os.kill(holder.pid, signal.SIGKILL)
        if keeper_too:
            holder.wait()
            helpers.until(lambda: len(processes_in(home)) == 1, what="a lonely Prometheus")
            keeper.reap_dead(home / "labs")  # what the next start does first
            assert nothing_left(home)
        helpers.until(lambda: nothing_left(home), 5, "the keeper to clean up")


@pytest.fixture
def running(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """One that runs already, as the container does: our two files, a folder for targets shared."""
    folder, address = home / "running", f"127.0.0.1:{free_port()}"
    shutil.copytree(prometheus.CONFIG, folder)
    (home / "prometheus").mkdir()
    (folder / "targets").symlink_to(home / "prometheus")
    flags = ["--config.file", folder / "prometheus.yml", "--storage.tsdb.path", folder / "data"]
    flags += ["--web.listen-address", address, "--log.level", "error"]
    child = subprocess.Popen(["prometheus", *flags])
    monkeypatch.setenv("PROMETHEUS_URL", f"http://{address}/")
    yield child
    child.kill()
    child.wait()


@needs_prometheus
async def test_one_that_runs_already(
    home: Path, running: subprocess.Popen[bytes], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prom = await Prometheus.start([target])
    (file,) = (home / "prometheus").iterdir()
    assert json.loads(file.read_text()) == [{"targets": [target]}]
    await scraped(prom)
    with pytest.raises(LabError, match="has its own rules"):
        await Prometheus.start([target], Path("rules.yml"))
    assert not list((home / "prometheus").iterdir()), "the second start has closed the first"
    assert running.poll() is None, "it is not ours to end"
    assert not labs_in(home)

    running.kill()
    monkeypatch.setattr(prometheus, "START_DEADLINE", 0.1)
    with pytest.raises(LabError, match=f"does not answer .PROMETHEUS_URL={prom.url}"):
        await Prometheus.start([target])
    assert not list((home / "prometheus").iterdir())


async def test_without_one_it_is_said_how_to_get_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(LabError, match="sudo apt install prometheus"):
        await Prometheus.start(["127.0.0.1:1"])
    assert nothing_left(home)


def test_a_free_port_is_free_new_and_in_the_range(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("NATSLAB_PORTS", f"{port}-{port}")
        with pytest.raises(LabError, match="Only 0 of 1 ports"):
            free_port()
    assert free_port() == port
    with pytest.raises(LabError, match="Only 0 of 1 ports"):
        free_port()  # it is given, though nobody listens there yet
    assert nothing_left(home)


@needs_prometheus
async def test_two_starts_at_once_end_in_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is answered, and before it hears that, the second has replaced it."""
    launch, get, launched = Prometheus._launch, Prometheus._get, []

    def launching(self: Prometheus, folder: Path, rules: Path) -> None:
        launch(self, folder, rules)
        launched.append(self)

    async def late(self: Prometheus, path: str) -> dict[str, Any]:
        said = await get(self, path)
        await until(lambda: len(launched) == 2, timeout=15)
        return said

    monkeypatch.setattr(Prometheus, "_launch", launching)
    monkeypatch.setattr(Prometheus, "_get", late)
    starts = [Prometheus.start(["127.0.0.1:1"]) for _ in range(2)]
    outcomes = await asyncio.gather(*starts, return_exceptions=True)
    (refused,) = [one for one in outcomes if isinstance(one, LabError)]
    (prom,) = [one for one in outcomes if isinstance(one, Prometheus)]
    assert str(refused) == "Another Prometheus.start() has replaced this one."
    assert len(processes_in(home)) == 2, "a keeper and a Prometheus: once"
    prom.close()
    assert nothing_left(home)


@pytest.mark.parametrize("url", ["127.0.0.1:9090", "nonsense", "http://", "ftp://host"])
async def test_an_address_that_cannot_work_is_refused_at_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("PROMETHEUS_URL", url)
    with pytest.raises(LabError, match=f"^PROMETHEUS_URL={url} is no address of a Prometheus"):
        await Prometheus.start(["127.0.0.1:1"])
    monkeypatch.setenv("PROMETHEUS_URL", " ")
    assert prometheus.running() is None
