"""The notebook tools on a small course of their own: run, refresh, exercises, what is out of date."""

import shutil
from pathlib import Path

import helpers
import nbformat
import pytest
from natslab import LabError, cli, run
from natslab.authoring import exercises, files, index, refresh
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

LESSON, SOLUTION = "01_pub_sub.ipynb", "solutions/01_pub_sub.ipynb"
ANSWER = '# A word.\n# solution: word\nword = "yes"'


def cell(source: str, *tags: str, **more: object) -> nbformat.NotebookNode:
    new = new_markdown_cell if source.startswith("#") and "\n" not in source else new_code_cell
    return new(source, metadata={"tags": list(tags)} if tags else {}, **more)


def point_at(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the tools work on another course than ours."""
    for module in (files, index):
        patch.setattr(module, "NOTEBOOKS", folder)
    for module in (index, cli):
        patch.setattr(module, "ROOT", folder.parent)
    patch.setattr(run, "CACHE", folder.parent / "cache")


def write_course(folder: Path) -> Path:
    """One lesson and its solutions, as somebody has just written them."""
    (folder / "solutions").mkdir(parents=True)
    lesson = [
        cell("# Publish and subscribe"),
        cell("# nav", "nav"),
        cell("n: int = 2  # workshop: 30", "parameters"),
        cell("import natslab\n\nprint('n is', n)"),
        cell("# exercise", "exercise"),
    ]
    solution = [
        cell("# Solutions"),
        cell("# Task", "exercise"),
        cell(ANSWER, "exercise"),
        cell("if word is not ...:\n    print(word)", "exercise"),
    ]
    files.write(folder / LESSON, new_notebook(cells=lesson))
    files.write(folder / SOLUTION, new_notebook(cells=solution))
    return folder


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same course after refresh and index, made once: each refresh starts a kernel."""
    folder = write_course(tmp_path_factory.mktemp("refreshed") / "notebooks")
    with pytest.MonkeyPatch.context() as patch:
        point_at(folder, patch)
        for path in (folder / SOLUTION, folder / LESSON):
            refresh.refresh(path)
            saved = index.with_navigation(path, files.read(path))
            files.write(path, files.normalised(saved))
    return folder


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A course of one lesson that was just written."""
    point_at(tmp_path / "notebooks", monkeypatch)
    return write_course(tmp_path / "notebooks")


@pytest.fixture
def fresh(refreshed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A course of one lesson that was refreshed and indexed."""
    point_at(tmp_path / "notebooks", monkeypatch)
    return Path(shutil.copytree(refreshed, tmp_path / "notebooks"))


def change(path: Path, number: int, **to: object) -> None:
    """Set attributes of one cell, without tidying anything up."""
    notebook = files.read(path)
    notebook.cells[number].update(to)
    path.write_text(files.text_of(notebook), encoding="utf-8")


def test_parameters() -> None:
    source = (
        "n_jobs: int = 240  # workshop: 1_500\n"
        "rate: float = 0.5  # as fast as a person, workshop: 2.5, conference: 9\n"
        "name: str = 'a'  # workshop: 'b'\n"
        "fixed: int = 3\n"
    )
    notebook = new_notebook(cells=[cell("x = 1"), cell(source, "parameters")])
    assert run.parameters(notebook, "workshop") == {"n_jobs": 1500, "rate": 2.5, "name": "b"}
    assert run.parameters(notebook, "conference") == {"rate": 9}
    assert run.parameters(notebook, "moon") == {}
    assert run.parameters(new_notebook(), "workshop") == {}


def test_starters_come_from_the_solutions(course: Path) -> None:
    lesson = exercises.with_exercises(course / LESSON, files.read(course / LESSON))
    assert [c.source for c in lesson.cells if "exercise" in files.tags(c)] == [
        "# Task",
        "# A word.\nword = ...  # your code here",
        "if word is not ...:\n    print(word)",
    ]
    again = exercises.with_exercises(course / LESSON, lesson)
    assert [c.id for c in again.cells] == [c.id for c in lesson.cells], "cells keep their ids"

    solution = files.read(course / SOLUTION)
    assert exercises.with_exercises(course / SOLUTION, solution) == solution
    bare = new_notebook(cells=[cell("# Publish")])
    with pytest.raises(LabError, match="has no cell tagged `exercise`"):
        exercises.with_exercises(course / LESSON, bare)


def test_normalised_is_idempotent_and_drops_what_changes_by_itself() -> None:
    noisy = new_notebook(
        cells=[
            cell("print(1)\n\n", "main-chart", execution_count=3),
            cell("# Text\n"),
        ],
        metadata={"language_info": {"name": "python", "version": "3.13.0"}, "widgets": {}},
    )
    noisy.cells[0].metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
    noisy.cells[0].outputs = [new_output("execute_result", {"text/plain": "1"}, execution_count=9)]
    once = files.normalised(noisy)
    assert files.text_of(files.normalised(once)) == files.text_of(once)
    assert once.metadata == files.METADATA
    first = once.cells[0]
    assert first.metadata == {"tags": ["main-chart"]}
    assert first.source == "print(1)"
    assert first.outputs[0].execution_count == first.execution_count == 3
    assert noisy.cells[0].source == "print(1)\n\n", "a copy: the original is as it was"


def test_refresh_twice_leaves_the_bytes_alone(fresh: Path) -> None:
    for name in (SOLUTION, LESSON):
        before = (fresh / name).read_bytes()
        assert refresh.refresh(fresh / name) is False
        assert (fresh / name).read_bytes() == before
        assert refresh.out_of_date(fresh / name) == ""
    assert b'"n is 2\\n"' in (fresh / LESSON).read_bytes()


def test_refresh_saves_anew_what_was_not_run_in_order(fresh: Path) -> None:
    path = fresh / LESSON
    notebook = files.read(path)
    for cell in notebook.cells:  # as after a cell was deleted
        if cell.cell_type == "code":
            cell.execution_count += 1
    files.write(path, notebook)
    assert "not run from top to bottom" in refresh.out_of_date(path)
    assert refresh.refresh(path) is True
    assert refresh.out_of_date(path) == ""


def test_refresh_refuses_a_failing_cell_stderr_and_a_dead_kernel(course: Path) -> None:
    path = course / LESSON
    (course / SOLUTION).unlink()
    for source, why in (
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys\nprint('oops', file=sys.stderr)", "code cell 1 writes to stderr: oops"),
        ("import os\nos.kill(os.getpid(), 9)", "the kernel ended before the notebook did"),
    ):
        change(path, 3, source=source)
        before = path.read_bytes()
        with pytest.raises(LabError, match=why):
            refresh.refresh(path)
        assert path.read_bytes() == before
    with pytest.raises(LabError, match="the kernel ended before the notebook did"):
        run.run(path)


@pytest.mark.parametrize(
    ("number", "to", "why"),
    [
        (0, {"metadata": {"collapsed": True}}, "its metadata is not normalised"),
        (0, {"source": "# Title\n\n"}, "its metadata is not normalised"),
        (1, {"source": "no way back"}, "its navigation lines are old"),
        (4, {"source": "# Another task"}, "its exercises differ from the solution notebook"),
        (3, {"execution_count": None}, "it was not run from top to bottom"),
        (3, {"execution_count": 7}, "it was not run from top to bottom"),
    ],
)
def test_what_is_out_of_date(fresh: Path, number: int, to: dict, why: str) -> None:
    change(fresh / LESSON, number, **to)
    assert refresh.out_of_date(fresh / LESSON).startswith(why)


def test_check_tells_each_notebook_that_is_out_of_date(
    fresh: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["refresh", "--check"]) == 0
    change(fresh / SOLUTION, 2, source=ANSWER.replace("A word", "One word"))
    assert cli.main(["refresh", "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"notebooks/{LESSON}: its exercises differ from the solution notebook: "
        "natslab refresh, then natslab index"
    ]


def test_run(fresh: Path, capsys: pytest.CaptureFixture) -> None:
    before = (fresh / LESSON).read_bytes()
    assert cli.main(["run", "1", "--scale", "workshop"]) == 0
    assert capsys.readouterr().out.strip().endswith("s  ok")
    assert (fresh / LESSON).read_bytes() == before, "the lesson itself is left alone"
    (executed,) = (fresh.parent / "cache" / "executed").glob("*.ipynb")
    assert executed.name == "01_pub_sub-workshop.ipynb"
    assert "n is 30" in executed.read_text()

    change(fresh / LESSON, 3, source="from natslab import check\ncheck('one is two', 1 == 2)")
    assert cli.main(["run", "1"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) <= 3 and "CheckFailed: ✘ one is two" in said[0], said


def test_there_is_no_such_lesson(fresh: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["run", "2"]) == 1
    said = capsys.readouterr().err
    assert said == "There is no lesson 02; these are written: 01.\n"


def test_index_is_idempotent(fresh: Path) -> None:
    readme = fresh.parent / "README.md"
    readme.write_text("# Course\n<!-- lessons -->\nold\n<!-- /lessons -->\nthe end\n")
    change(fresh / LESSON, 0, source="# Publish and subscribe\n\n**20 min** · needs: nothing")
    assert readme in index.index()
    text = readme.read_text()
    assert "[Publish and subscribe](notebooks/01_pub_sub.ipynb)" in text
    assert "| 20 |" in text and "planned" in text
    assert text.endswith("<!-- /lessons -->\nthe end\n")
    assert index.index() == []


def test_the_table_in_the_readme_is_whole() -> None:
    text = (helpers.ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- lessons -->")[1].split("<!-- /lessons -->")[0]
    broken = [line for line in table.splitlines() if line and line[0] not in "|#"]
    assert not broken, "a row on two lines ends the table on GitHub"
