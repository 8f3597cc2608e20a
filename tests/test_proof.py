"""The proof itself: a notebook that differs or fails is red, and what is skipped has not changed."""

import sys
from pathlib import Path

import green
import helpers
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

READY = "lab ready: 3 nodes, JetStream on"


def compare(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, saved: str) -> dict:
    """Run a notebook of one cell against what it is said to have printed; what was noted."""
    cell = new_code_cell(
        source, execution_count=1, outputs=[new_output("stream", name="stdout", text=saved)]
    )
    path = folder / "98_small.ipynb"
    nbformat.write(new_notebook(cells=[cell]), path)
    monkeypatch.setattr(helpers, "NOTEBOOKS", folder)
    monkeypatch.setattr(helpers, "CELL_SECONDS", 10)  # a dead kernel is noticed by its silence
    noted: dict[str, object] = {}
    helpers.compare(path, "strict", folder, noted.__setitem__)
    return noted


@pytest.mark.servers
def test_what_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = f"print('{READY} (embedded)')\nprint('median ≈ 3.25 ms')"
    noted = compare(tmp_path, monkeypatch, ran, f"{READY} (compose)\nmedian ≈ 17 ms\n")
    assert (noted["lesson"], noted["kind"], noted["cells"]) == ("98_small", "strict", 1)


@pytest.mark.servers
def test_no_kernel_can_lose_its_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has none: of the kernels that start at once, two may have chosen the same."""
    asks = "import ipykernel as i\nprint(i.get_connection_info(unpack=True)['transport'])"
    compare(tmp_path, monkeypatch, asks, "ipc\n")


@pytest.mark.servers
@pytest.mark.parametrize(
    ("source", "saved", "told"),
    [
        ("print('lost: 1')", "lost: 0\n", "lost: 1"),
        ("from natslab import check\ncheck('none lost', 1 == 2)", "✔ none lost\n", "✘ none lost"),
        pytest.param(
            *("import os\nos._exit(3)", "x\n", "Timeout of 10 seconds"), marks=pytest.mark.nightly
        ),
    ],
    ids=["a count", "a claim", "a dead kernel"],
)
def test_what_may_not(
    source: str, saved: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(pytest.fail.Exception, match=told):
        compare(tmp_path, monkeypatch, source, saved)


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lesson with solutions, and something that all lessons depend on."""
    monkeypatch.setattr(green, "ROOT", tmp_path)
    monkeypatch.setattr(green, "KEPT", tmp_path / ".cache" / "green")
    lesson = tmp_path / "notebooks" / "01_a.ipynb"
    for file in (lesson, lesson.parent / "solutions" / lesson.name, tmp_path / "lib" / "x.py"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("one")
    return lesson


def unchanged(course: Path) -> list[str]:
    return green.unchanged(green.states([course], Path(sys.executable)))


@pytest.mark.parametrize("file", ["01_a.ipynb", "solutions/01_a.ipynb", "../lib/x.py"])
def test_a_lesson_is_unchanged_until_what_it_depends_on_changes(course: Path, file: str) -> None:
    assert unchanged(course) == []
    fine = {"01_a": {"strict": 1.0}, "solutions/01_a": {"strict": 1.0}}
    green.note(green.states([course], Path(sys.executable)), fine)
    assert unchanged(course) == ["01_a"]
    (course.parent / file).write_text("two")
    assert unchanged(course) == []


@pytest.mark.parametrize(
    "rows",
    [
        {"01_a": {"strict": 1.0, "failed": ["strict"]}},
        {"01_a": {"strict": 1.0}, "solutions/01_a": {"strict": 1.0, "failed": ["strict"]}},
        {"01_a": {"strict": 1.0, "shared": 1.0, "failed": ["shared"]}},
    ],
    ids=["red", "its solutions are red", "red on a shared cluster"],
)
def test_what_was_red_is_run_again(course: Path, rows: dict) -> None:
    state = green.states([course], Path(sys.executable))
    green.note(state, {"01_a": {"strict": 1.0}})
    green.note(state, rows)
    assert unchanged(course) == []
    green.note(state, {"01_a": {"shared": 1.0}})  # not compared: nothing is known
    assert unchanged(course) == []
