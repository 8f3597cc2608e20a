"""Lessons on the compose cluster: the same outputs as on an embedded one, and nothing left there."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import helpers
import nats
import pytest
from natslab.authoring import files

# Each with drills that take nodes away from the other.
PAIRS = [(15, 3), (5, 9), (12, 1), (2, 10), (0, 13)]
DRILLS = [0, 2, 3, 6, 9, 11, 12, 15, 16, 19, 23]

NEIGHBOUR = """
import time
from natslab.clusters.turns import Turns

turns = Turns()
while True:
    turns.share_blocking()
    time.sleep(6)  # a long cell
    turns.after_cell()
    time.sleep(0.1)  # longer than the pause between two looks at the lock
"""


def by_turns(cases: list) -> list:
    """One of them a day."""
    return [pytest.param(c, marks=pytest.mark.turn(i, len(cases))) for i, c in enumerate(cases)]


@pytest.mark.compose
@pytest.mark.parametrize("path", files.lessons(), ids=helpers.name_of)
def test_strictly_on_compose(
    compose: None,
    path: Path,
    tmp_path: Path,
    record_property: helpers.Note,
    request: pytest.FixtureRequest,
) -> None:
    seeds = ["nats://127.0.0.1:4221"]
    if "regions=" in path.read_text(encoding="utf-8"):
        request.getfixturevalue("regions")
        seeds = ["nats://127.0.0.1:4231", "nats://127.0.0.1:4234"]
    helpers.compare(path, "compose", tmp_path, record_property, NATSLAB_CLUSTER="compose")
    assert [asyncio.run(streams(seed)) for seed in seeds] == [[] for _ in seeds]


@pytest.mark.pairs
@pytest.mark.parametrize("numbers", by_turns(PAIRS), ids="{0[0]:02} and {0[1]:02} at once".format)
def test_two_lessons_at_once(compose: None, numbers: tuple[int, int], tmp_path: Path) -> None:
    def alone(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        notebook = files.by_number(number)
        helpers.compare(notebook, "pairs", folder, lambda *_: None, NATSLAB_CLUSTER="compose")

    with ThreadPoolExecutor() as pool:
        for run in [pool.submit(alone, number) for number in numbers]:
            run.result()
    assert asyncio.run(streams()) == []


@pytest.mark.pairs
@pytest.mark.parametrize("number", by_turns(DRILLS), ids="{:02}".format)
def test_a_fault_that_waits_for_a_long_cell(compose: None, number: int, tmp_path: Path) -> None:
    """What a drill publishes goes on until after the fault, however long that waits for its turn."""
    with helpers.python("-c", NEIGHBOUR):
        notebook = files.by_number(number)
        helpers.compare(notebook, "pairs", tmp_path, lambda *_: None, NATSLAB_CLUSTER="compose")
    assert asyncio.run(streams()) == []


async def streams(seed: str = "nats://127.0.0.1:4221") -> list[str | None]:
    nc = await nats.connect(seed)
    names = [info.config.name for info in await nc.jetstream().streams_info()]
    await nc.close()
    return names
