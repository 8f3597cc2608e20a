"""Every lesson again: twice in a row on one shared cluster, and at the workshop scale.

Its outputs are not compared here (the strict run does that), its checks hold.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import helpers
import pytest
from natslab import notebooks
from natslab.paths import CACHE

pytestmark = pytest.mark.lessons

LESSONS = notebooks.lessons()
WORKSHOP_SECONDS = 180


def run(lesson: Path, label: str, scale: str = "") -> float:
    """Run a lesson through papermill; how many seconds it took. The executed copy is kept."""
    done = notebooks.run(lesson, scale, CACHE / "executed" / f"{lesson.stem}-{label}.ipynb")
    assert not done.error, (
        f"{done.error}\n(the run is in .cache/executed/{lesson.stem}-{label}.ipynb)"
    )
    return done.seconds


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The cluster that the test command holds for all its workers, or one of our own."""
    if "SHARED_CLUSTER" in os.environ:
        yield os.environ["SHARED_CLUSTER"]
    else:
        with helpers.shared_cluster(tmp_path_factory.mktemp("shared")) as told:
            yield ",".join(told["servers"])


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_twice_on_a_shared_cluster(
    lesson: Path, servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", servers)
    monkeypatch.delenv("NATSLAB_CLUSTER", raising=False)
    run(lesson, "shared-1")
    run(lesson, "shared-2")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_at_the_workshop_scale(lesson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATS_URL", raising=False)
    monkeypatch.setenv("NATSLAB_CLUSTER", "embedded")
    assert run(lesson, "workshop", "workshop") < WORKSHOP_SECONDS
