"""Every run of every notebook is one test, in processes of its own.

`strict` compares each cell's output with what is saved, `shared` and `workshop` run a lesson on a
cluster that it shares with others, at its own scale and at the one of a workshop; there its checks
hold. The runs on compose are in `test_lessons_compose`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import helpers
import pytest
from natslab.authoring import files
from natslab.paths import CACHE
from natslab.run import run as run_lesson

# Later lessons take longer: begun first, all workers end together.
LESSONS = files.lessons()[::-1]
NOTEBOOKS = [*LESSONS, *files.solutions()]
WORKSHOP_SECONDS = 180
TURNS = 3  # every day another third of the lessons is run on the shared cluster


@pytest.mark.strict
@pytest.mark.parametrize("path", NOTEBOOKS, ids=helpers.name_of)
def test_strictly(path: Path, tmp_path: Path, record_property: helpers.Note) -> None:
    helpers.compare(path, "strict", tmp_path, record_property, NATSLAB_CLUSTER="embedded")


@pytest.mark.shared
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.turn(i % TURNS, TURNS)) for i, p in enumerate(LESSONS)],
    ids=helpers.name_of,
)
def test_on_a_shared_cluster(path: Path, servers: str, record_property: helpers.Note) -> None:
    run(path, "shared", servers, record_property)


@pytest.mark.workshop
@pytest.mark.parametrize("path", LESSONS, ids=helpers.name_of)
def test_at_the_workshop_scale(path: Path, servers: str, record_property: helpers.Note) -> None:
    assert run(path, "workshop", servers, record_property) < WORKSHOP_SECONDS


def run(path: Path, kind: str, servers: str, note: helpers.Note) -> float:
    """Run a lesson through papermill; how many seconds it took. The executed copy is kept."""
    copy = CACHE / "executed" / f"{path.stem}-{kind}.ipynb"
    with helpers.environment(NATS_URL=servers, NATSLAB_PATIENCE=helpers.PATIENCE):
        done = run_lesson(path, "workshop" if kind == "workshop" else "", copy)
    helpers.note_run(note, path, kind, done.seconds)
    if done.error:
        pytest.fail(f"{done.error}\n(the run: {copy.relative_to(helpers.ROOT)})", pytrace=False)
    return done.seconds


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The cluster that the test command holds for all its workers, or one of our own."""
    if "SHARED_CLUSTER" in os.environ:
        yield os.environ["SHARED_CLUSTER"]
    else:
        with helpers.shared_cluster(tmp_path_factory.mktemp("shared")) as told:
            yield ",".join(told["servers"])
