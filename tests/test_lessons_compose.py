"""Lessons on the compose cluster: the same outputs as on an embedded one, and nothing left there."""

import asyncio
import subprocess
import sys
from pathlib import Path

import failures
import helpers
import nats
import pytest
from natslab.authoring.files import by_number

pytestmark = pytest.mark.compose

LIMIT = 240


def start(number: int, report: Path) -> subprocess.Popen[str]:
    """A strict run of one lesson on the compose cluster."""
    options = ["-c", "tests/pytest.ini", "--rootdir", helpers.ROOT, "--junitxml", report]
    nbval = ["--nbval", "--nbval-current-env"]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", *options, *nbval, by_number(number)],
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
def test_two_lessons_at_once(compose: None, numbers: tuple[int, int], tmp_path: Path) -> None:
    reports = [tmp_path / f"{number}.xml" for number in numbers]
    runs = [start(*lesson) for lesson in zip(numbers, reports, strict=True)]
    try:
        for run, report in zip(runs, reports, strict=True):
            out, _ = run.communicate(timeout=LIMIT)
            if run.returncode:
                told = failures.told(report) if report.exists() else [out[-4000:]]
                pytest.fail("\n".join(told), pytrace=False)
    finally:
        for run in runs:
            run.kill()
    assert asyncio.run(streams()) == []


async def streams() -> list[str | None]:
    nc = await nats.connect("nats://127.0.0.1:4221")
    names = [info.config.name for info in await nc.jetstream().streams_info()]
    await nc.close()
    return names
