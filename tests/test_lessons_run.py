"""Every lesson twice in a row on one shared cluster, the second time at the workshop scale.

Its outputs are not compared here (the strict run does that), its checks hold.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import helpers
import pytest
from natslab.authoring import files
from natslab.paths import CACHE
from natslab.run import run as run_lesson

pytestmark = pytest.mark.lessons

LESSONS = files.lessons()[::-1]  # later ones take longer: begun first, all workers end together
WORKSHOP_SECONDS = 180


def run(lesson: Path, label: str, scale: str = "") -> float:
    """Run a lesson through papermill; how many seconds it took. The executed copy is kept."""
    copy = CACHE / "executed" / f"{lesson.stem}-{label}.ipynb"
    done = run_lesson(lesson, scale, copy)
    assert not done.error, f"{done.error}\n(the run: {copy.relative_to(helpers.ROOT)})"
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
    lesson: Path,
    servers: str,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setenv("NATS_URL", servers)
    monkeypatch.delenv("NATSLAB_CLUSTER", raising=False)
    record_property("shared", run(lesson, "shared"))
    seconds = run(lesson, "shared-workshop", "workshop")
    record_property("workshop", seconds)
    assert seconds < WORKSHOP_SECONDS
