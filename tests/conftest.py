"""Fixtures for all tests: a cache of their own, and a lab in it."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import helpers
import natslab.lab
import pytest
from natslab import Lab
from natslab.clusters import compose_cli
from natslab.clusters.compose_cli import ComposeError

# Labs with different caches do not know of each other's ports: each pytest worker has its own.
FIRST = 20_000 + 2_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw3").removeprefix("gw"))
os.environ["NATSLAB_PORTS"] = f"{FIRST}-{FIRST + 1_999}"


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
