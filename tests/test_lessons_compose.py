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


@pytest.mark.compose
@pytest.mark.parametrize("path", files.lessons(), ids=helpers.name_of)
def test_strictly_on_compose(
    compose: None, path: Path, tmp_path: Path, record_property: helpers.Note
) -> None:
    helpers.compare(path, "compose", tmp_path, record_property, NATSLAB_CLUSTER="compose")
    assert asyncio.run(streams()) == []


@pytest.mark.pairs
@pytest.mark.parametrize(
    "numbers",
    [pytest.param(p, marks=pytest.mark.turn(i, len(PAIRS))) for i, p in enumerate(PAIRS)],
    ids=lambda pair: "{:02} and {:02} at once".format(*pair),
)
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


async def streams() -> list[str | None]:
    nc = await nats.connect("nats://127.0.0.1:4221")
    names = [info.config.name for info in await nc.jetstream().streams_info()]
    await nc.close()
    return names
