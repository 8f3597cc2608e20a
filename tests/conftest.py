"""Fixtures for all tests: a cache of their own, and a lab in it."""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import helpers
import natslab.lab
import pytest
from natslab import Lab
from natslab.clusters import compose_cli
from natslab.clusters.compose_cli import ComposeError

sys.modules["rfc3987_syntax"] = None  # see helpers.LEAN

# Labs with different caches do not know of each other's ports: each pytest worker has its own, and
# so has each pytest that runs beside others without workers.
WORKER = os.environ.get("PYTEST_XDIST_WORKER") or os.environ.get("NATSLAB_WORKER", "gw3")
FIRST = 20_000 + 2_000 * int(WORKER.removeprefix("gw"))
os.environ["NATSLAB_PORTS"] = f"{FIRST}-{FIRST + 1_999}"


# Who uses one of these starts servers.
STARTS_SERVERS = {"lab", "shared", "external"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--turn", type=int, help="only the lessons whose turn it is, as on this day")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what starts servers, skip by name the lessons that have not changed, and keep to the turn."""
    if (day := config.getoption("--turn")) is not None:
        others = [item for item in items if not has_its_turn(item, day)]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)
    unchanged = set(filter(None, os.environ.get("NATSLAB_UNCHANGED", "").split(",")))
    for item in items:
        if STARTS_SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("servers")
        path = getattr(item, "callspec", None) and item.callspec.params.get("path")
        if path and path.stem in unchanged and "test_lessons_" in item.nodeid:
            item.add_marker(pytest.mark.skip("unchanged since its last strict green"))


def has_its_turn(item: pytest.Item, day: int) -> bool:
    """Marked turn(i, n) it runs on every n-th day, unmarked on each."""
    mark = item.get_closest_marker("turn")
    return mark is None or day % mark.args[1] == mark.args[0]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private cache, for this process and its children, so that "nothing is left" can be told.

    No cluster of somebody else is asked for either.
    """
    monkeypatch.setattr(natslab.lab, "CACHE", tmp_path)
    for name in helpers.CLUSTER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
async def lab(cache: Path) -> AsyncIterator[Lab]:
    """An embedded cluster in this process."""
    lab = await Lab.start(kind="embedded", quiet=True)
    yield lab
    await lab.close(quiet=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """A cluster in another process, shared by the tests of a file."""
    with helpers.shared_cluster(tmp_path_factory.mktemp("shared")) as told:
        yield told


@pytest.fixture
def external(shared: dict, cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The shared cluster, named by NATS_URL."""
    monkeypatch.setenv("NATS_URL", shared["servers"][0])
    return shared


@pytest.fixture(scope="module")
def docker_engine() -> None:
    """A Docker engine, and no cluster of a reader on it, whose ports the tests need."""
    try:
        compose_cli.require_engine()
    except ComposeError as error:
        pytest.skip(str(error))
    if compose_cli.status():
        pytest.skip("the compose cluster is up and holds the ports: run `natslab down` first")


@pytest.fixture(scope="module")
def compose(docker_engine: None) -> Iterator[None]:
    """The project's own compose cluster, as a reader has it."""
    compose_cli.up()
    yield
    compose_cli.down()


@pytest.fixture(scope="module")
def regions(docker_engine: None) -> Iterator[None]:
    """The two regions in containers."""
    compose_cli.up(regions=True)
    yield
    compose_cli.down()
