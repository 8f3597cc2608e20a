"""Lessons on the compose cluster: the same outputs as on an embedded one, and nothing left there."""

import asyncio
import subprocess
import sys

import helpers
import nats
import pytest
from natslab.notebooks import by_number

pytestmark = pytest.mark.compose

LIMIT = 240


def start(number: int) -> subprocess.Popen[str]:
    """A strict run of one lesson on the compose cluster."""
    options = ["-c", "tests/pytest.ini", "--rootdir", helpers.ROOT, "-q", "--nbval"]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, "--nbval-current-env", by_number(number)],
        cwd=helpers.ROOT,
        env=helpers.clean_environment(NATSLAB_CLUSTER="compose"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    "numbers",
    [(15, 3), (5, 9), (12, 1)],
    ids=lambda numbers: "{:02} and {:02} at once".format(*numbers),
)
def test_two_lessons_at_once(compose: None, numbers: tuple[int, int]) -> None:
    runs = [start(number) for number in numbers]
    try:
        for run in runs:
            out, _ = run.communicate(timeout=LIMIT)
            assert run.returncode == 0, out[-4000:]
    finally:
        for run in runs:
            run.kill()
    assert asyncio.run(streams()) == []


async def streams() -> list[str | None]:
    nc = await nats.connect("nats://127.0.0.1:4221")
    names = [info.config.name for info in await nc.jetstream().streams_info()]
    await nc.close()
    return names
