"""The notebook tools on a small course of their own: run, refresh, exercises, what is out of date."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import helpers
import nbformat
import pytest
from kernel import kernel
from natslab import LabError, cli, run
from natslab.authoring import compared, exercises, files, index, load, refresh
from natslab.authoring.course import Choice
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

pytestmark = pytest.mark.servers

LESSON, SOLUTION = "01_pub_sub.ipynb", "solutions/01_pub_sub.ipynb"
ANSWER = '# A word.\n# solution: word\nword = "yes"'


def cell(source: str, *tags: str, **more: object) -> nbformat.NotebookNode:
    new = new_markdown_cell if source.startswith("#") and "\n" not in source else new_code_cell
    return new(source, metadata={"tags": list(tags)} if tags else {}, **more)


def point_at(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the tools work on another course than ours."""
    for module in (files, index):
        patch.setattr(module, "NOTEBOOKS", folder)
    patch.setattr(
        index, "choices", lambda: [Choice("to know", "x", "none", 1, "{} times", "n is (.)")]
    )
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
    (folder / "CHOOSER.md").write_text("# Choose\n<!-- choices -->\n<!-- /choices -->\n")
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


def test_refresh_refuses_a_cell_without_end(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "CELL_TIMEOUT", 1)
    (course / SOLUTION).unlink()
    change(course / LESSON, 3, source="import time\ntime.sleep(600)")
    before = (course / LESSON).read_bytes()
    with pytest.raises(LabError, match=f"^{LESSON}: a cell was not done after 1 s"):
        refresh.refresh(course / LESSON)
    assert (course / LESSON).read_bytes() == before


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


def test_run_with_a_parameter(fresh: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["run", "1", "--scale", "workshop", "-p", "n=7"]) == 0
    capsys.readouterr()
    (executed,) = (fresh.parent / "cache" / "executed").glob("*.ipynb")
    assert "n is 7" in executed.read_text(), "it goes over the scale"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scale", "worksop"], "There is no scale 'worksop'; there is: workshop."),
        (["--scale", "work("], "There is no scale 'work('; there is: workshop."),
        (["-p", "m=1"], "There is no parameter 'm'; there is: n."),
        (["-p", "n"], "'n' is no parameter: write name=value."),
        (["-p", "n=x"], "n is a whole number, and 'x' is not."),
        (
            ["-p", "n=1"],
            "n is 1, this lesson needs at least 2: change it in the first code cell and run from there.",
        ),
    ],
)
def test_run_refuses_what_cannot_be_before_it_starts(
    course: Path, words: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    change(course / LESSON, 2, source="n: int = 2  # workshop: 30, at least 2")
    assert cli.main(["run", *words]) == 1
    assert capsys.readouterr() == ("", f"01_pub_sub: {said}\n")
    assert not (course.parent / "cache").exists()


@pytest.mark.nightly
def test_a_lesson_that_goes_wrong_is_a_line_and_the_next_one_goes_on(
    course: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "CELL_TIMEOUT", 2)
    for name, source in (
        ("02_chat.ipynb", "import time\ntime.sleep(600)"),
        ("03_request_reply.ipynb", "import os\nos.kill(os.getpid(), 9)"),
        ("04_scatter_gather.ipynb", "1 / 0"),
        ("05_micro.ipynb", "print('fine')"),
    ):
        files.write(course / name, new_notebook(cells=[cell(source)]))
    assert cli.main(["run"]) == 1
    said = capsys.readouterr()
    assert said.err == ""
    outcomes = [line.split(" s  ")[1] for line in said.out.splitlines()]
    assert outcomes == [
        "ok",
        "a cell was not done after 2 s, the rest was not run",
        "the kernel ended before the notebook did: it was stopped, or it ran out of memory",
        "cell 1: ZeroDivisionError: division by zero",
        "ok",
    ]


def test_stopped_by_the_reader(
    course: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", stopped)
    monkeypatch.setattr(refresh, "refresh", stopped)
    for command in ("run", "refresh"):
        assert cli.main([command]) == 1
        assert capsys.readouterr() == ("", "stopped\n")


def test_a_write_that_is_interrupted_leaves_the_old_file(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (fresh / LESSON).read_bytes()
    write_bytes = Path.write_bytes

    def half(path: Path, content: bytes) -> None:
        write_bytes(path, content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    monkeypatch.setattr(Path, "write_text", half)
    notebook = files.read(fresh / LESSON)
    notebook.cells[0].source = "# Another"
    for target in (fresh / LESSON, fresh / "02_chat.ipynb"):
        with pytest.raises(KeyboardInterrupt):
            files.write(target, notebook)
    assert (fresh / LESSON).read_bytes() == before
    assert {path.name for path in fresh.iterdir()} == {LESSON, "solutions", "CHOOSER.md"}, (
        "nothing is left over"
    )

    readme = fresh.parent / "README.md"
    write_bytes(readme, b"<!-- lessons --><!-- /lessons -->")
    change_map = files.read(fresh / LESSON)
    change_map.cells[0].source = "# Publish\n\n**20 min**"
    write_bytes(fresh / LESSON, files.text_of(change_map).encode())
    monkeypatch.setattr(index, "write", lambda *_: False)
    monkeypatch.setattr(index, "main_chart", lambda _: b"")
    monkeypatch.setattr(index.flow, "draw", lambda **_: b"")
    with pytest.raises(KeyboardInterrupt):
        index.index()
    assert readme.read_bytes() == b"<!-- lessons --><!-- /lessons -->"


def test_a_file_keeps_its_rights_and_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    assert files.replace(link, b"new") is True
    assert files.replace(link, b"new") is False
    assert link.is_symlink() and real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


# How busy the machine is.


def readings(*shares: float) -> load.Callable[[], float]:
    left = list(shares)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine at its usual speed."""
    monkeypatch.setattr(load, "speed", lambda: 1.0)


def test_a_slow_host_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing runs here, and yet Python is slower than it was: the best of all times is kept."""
    monkeypatch.setattr(load, "CACHE", tmp_path / "new")
    monkeypatch.setattr(load, "busy", lambda: 0.0)
    for rounds, share in ((100.0, 1.0), (60.0, 0.6), (200.0, 1.0), (100.0, 0.5)):
        monkeypatch.setattr(load, "_rounds", lambda rounds=rounds: rounds)
        assert load.speed() == share
    with pytest.raises(LabError, match=r"^Not saved, the machine is at 50% of its best speed"):
        load.refuse_busy()
    (tmp_path / "new" / "speed").write_text("no number")
    assert load.speed() == 1.0


def test_waiting_for_a_quiet_machine(monkeypatch: pytest.MonkeyPatch, fast: None) -> None:
    said: list[str] = []
    monkeypatch.setattr(load, "busy", readings(0.03))
    load.wait_for_quiet(said.append)
    assert said == ["The machine is quiet enough to measure."]
    said.clear()
    monkeypatch.setattr(load, "busy", readings(0.53, 0.4, 0.02))
    load.wait_for_quiet(said.append)
    assert said == [
        "The machine is 53% busy: waiting up to 120 s until it is quiet.",
        "The machine is quiet enough to measure.",
    ]
    monkeypatch.setattr(load, "busy", readings(0.5, 0.6))
    monkeypatch.setattr(load, "PATIENCE", 0)
    with pytest.raises(
        LabError, match=r"^The machine is still 50% busy: .* natslab refresh --busy"
    ):
        load.wait_for_quiet(said.append)


def test_a_machine_that_became_busy(monkeypatch: pytest.MonkeyPatch, fast: None) -> None:
    monkeypatch.setattr(load, "busy", readings(0.1, 0.5))
    load.refuse_busy()
    with pytest.raises(LabError, match=r"^Not saved, the machine is 50% busy by now: "):
        load.refuse_busy()


def test_a_process_that_spins_is_seen() -> None:
    with helpers.python("-c", "print(flush=True)\nwhile True: pass") as spinning:
        assert spinning.stdout.readline() == "\n"
        share = max(load.busy() for _ in range(3))
        cores = os.cpu_count() or 1
        assert share > 0.6 / cores, "one of the cores is taken"
        if cores <= 4:
            with pytest.raises(LabError, match="the machine is .* busy"):
                load.refuse_busy()


def test_refresh_saves_measurements_from_a_quiet_machine_only(
    course: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, fast: None
) -> None:
    path = course / LESSON
    (course / SOLUTION).unlink()
    change(path, 3, source="print(0.1 + 0.2)", metadata={"tags": ["nbval-ignore-output"]})
    before = path.read_bytes()

    monkeypatch.setattr(load, "PATIENCE", 0)
    for shares, why in (([0.7], "is still 70% busy"), ([0.01, 0.4], "is 40% busy by now")):
        monkeypatch.setattr(load, "busy", readings(*shares))
        assert cli.main(["refresh", "1"]) == 1
        assert why in capsys.readouterr().err
        assert path.read_bytes() == before

    monkeypatch.setattr(load, "busy", readings(0.9))
    assert cli.main(["refresh", "1", "--busy"]) == 0
    assert "0.30000000000000004" in path.read_text()
    after = path.read_bytes()
    monkeypatch.setattr(load, "busy", readings(0.01, 0.9))
    assert cli.main(["refresh", "1"]) == 0, "nothing new is saved, so the machine may be busy now"
    assert path.read_bytes() == after


def test_what_measures() -> None:
    picture = new_output("display_data", {"image/png": "aGk="})
    text = new_output("stream", text="1\n")
    mark = new_output("stream", text="≈ 12,345 per second\n")
    for tagged, outputs, expected in (
        ([], [], False),
        ([], [text], False),
        ([], [picture], True),
        ([], [text, mark], True),
        (["nbval-ignore-output"], [], True),
    ):
        notebook = new_notebook(cells=[cell("1", *tagged, outputs=outputs), cell("# Text")])
        assert compared.measures(notebook) is expected


# What is compared.

SAME = [
    (
        "lab ready: 3 nodes, JetStream on (embedded)\nmore\n",
        "lab ready: 3 nodes, JetStream on (compose)\nmore\n",
    ),
    ("lab ready: 1 node, JetStream on (external)", "lab ready: 1 node, JetStream on"),
    (
        "lab ready: 3 nodes, JetStream on\nmeasured with nats-server 2.15.0, 2 cores, 2026-11-28\n",
        "lab ready: 3 nodes, JetStream on\nmeasured with nats-server 2.16.1, 8 cores, 2027-01-02\n",
    ),
    ("≈ 12,345 per second, True", "≈ 9.5 per second, True"),
    ("p99 ≈3 ms\n", "p99 ≈ 412 ms\n"),
    ("≈      3 a\n≈ 34,567 a\n", "≈ 12,345 a\n≈      6 a\n"),
    ("drift ≈ -0.5 s", "drift ≈ 0.25 s"),
]
OTHER = [
    ("lab ready: 3 nodes, JetStream on (embedded)", "lab ready: 5 nodes, JetStream on (embedded)"),
    ("lab ready: 3 nodes, JetStream on (embedded)", "lab ready: 3 nodes (embedded)"),
    ("≈ 12 ms", "≈ 12 s"),
    ("≈ 12 ms: True", "≈ 13 ms: False"),
    ("12 lost", "13 lost"),
    ("≈ 12 of 13", "≈ 12 of 14"),
    ("≈ 12", "≈ many"),
]


@pytest.mark.parametrize(
    ("one", "two", "same"), [*((*p, True) for p in SAME), *((*p, False) for p in OTHER)]
)
def test_which_outputs_count_as_the_same(one: str, two: str, same: bool) -> None:
    def shown(text: str) -> nbformat.NotebookNode:
        outputs = [
            new_output("stream", text=text),
            new_output("execute_result", {"text/plain": text}),
        ]
        return new_notebook(cells=[cell("1", outputs=outputs)])

    assert (compared.compared(shown(one)) == compared.compared(shown(two))) is same


def test_nbval_compares_alike(tmp_path: Path) -> None:
    """It reads the same rules from the same file, and finds each of the pairs as we do."""
    cells = [
        cell(
            f"print({fresh!r}, end='')",
            execution_count=1,
            outputs=[new_output("stream", text=old)],
        )
        for old, fresh in SAME + OTHER
    ]
    path = tmp_path / "pairs.ipynb"
    files.write(path, files.normalised(new_notebook(cells=cells)))
    done = subprocess.run(
        [sys.executable, "-c", helpers.PYTEST, "--nbval", "--nbval-sanitize-with", compared.RULES]
        + ["-rf", "-q", "-p", "no:cacheprovider", "--color=no", "--rootdir", tmp_path, path],
        capture_output=True,
        text=True,
        env=helpers.clean_environment(),
        cwd=tmp_path,
        timeout=120,
    )
    failed = {int(number) for number in re.findall(r"^FAILED \S+::Cell (\d+)", done.stdout, re.M)}
    assert failed == {*range(len(SAME), len(cells))}, done.stdout


def test_a_place_that_cannot_be_written_is_a_sentence(
    course: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (course.parent / "cache").write_text("a file, no folder")
    assert cli.main(["run", "1"]) == 1
    said = capsys.readouterr().err
    assert "cache/executed (Not a directory" in said and "set NATSLAB_CACHE" in said, said
    assert len(said.splitlines()) == 1

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LabError, match=r"cannot be written \(No space left on device\): "):
        files.write(course / LESSON, new_notebook())
    assert {path.name for path in course.iterdir()} == {LESSON, "solutions", "CHOOSER.md"}


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
    row = "| to know | x | none | 2 times | [01](01_pub_sub.ipynb) |"
    assert row in (fresh / "CHOOSER.md").read_text()
    assert index.index() == []


def test_a_cost_that_no_lesson_prints(fresh: Path) -> None:
    row = Choice("to know", "x", "none", 1, "{} ms", r"median ≈ (\d+)")
    with pytest.raises(LabError, match="lesson 01 prints nothing like"):
        index.cost(row, files.read(fresh / LESSON))


def test_the_table_in_the_readme_is_whole() -> None:
    text = (helpers.ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- lessons -->")[1].split("<!-- /lessons -->")[0]
    written, *rows = table.strip().splitlines()
    assert re.fullmatch(r"\d+ of 29 are written, the others are planned.", written)
    broken = [line for line in rows if line and line[0] not in "|#"]
    assert not broken, "a row on two lines ends the table on GitHub"


def test_a_cell_that_fails_when_it_is_run_again_names_its_section() -> None:
    with kernel(NATSLAB_CLUSTER="embedded") as k:
        for source in (
            "from natslab import Lab\nlab = await Lab.start()\nleft = [2]",
            "run = await lab.begin('Break it')",
            "print(4 / left.pop())",
        ):
            assert not k.run(source).error
        told = 'begin again at the heading "Break it"'
        again, new = k.run("print(4 / left.pop())"), k.run("left.pop()")
        assert again.error.startswith("IndexError") and told in again.text
        assert new.error.startswith("IndexError") and told not in new.text
        assert told not in k.run("left.pop()").text, "it never worked: the mistake is in the cell"
        assert not k.run("run = await lab.begin('Break it')").error
        once_more = k.run("print(4 / left.pop())")
        assert once_more.error and told not in once_more.text, "not yet run in this run"
        start = "lab = await Lab.start(nodes=size)"
        assert not k.run("size = 3").error and not k.run(start).error and not k.run(start).error
        assert not k.run("run = await lab.begin('Break it')\nrun.port = 4222").error
        assert not k.run("print(run.port)").error
        assert not k.run(start).error
        assert not k.run("del run").error
        assert told in k.run("print(run.port)").text, "it worked with the lab before"
        k.run("size = 99")
        refused = k.run(start)
        assert refused.error.startswith("LabError") and told not in refused.text
        assert k.run("await lab.close()").error == ""


def test_an_error_of_nats_tells_of_a_worker_that_died() -> None:
    """Who asks it sees that nobody answers, and not why."""
    with kernel(NATSLAB_CLUSTER="embedded") as k:
        for source in (
            "import nats\nfrom natslab import Lab, until\nlab = await Lab.start()",
            "nc = await nats.connect(**lab.options)",
            "async def typo(options):\n    raise ValueError('no such card')",
            "worker = lab.spawn(typo, 'desk', lab.address)",
            "await until(lambda: not worker.alive, 20, what='the desk to die')",
        ):
            assert not k.run(source).error
        assert "desk ended with exit code 1" not in k.run("1 / 0").shown
        shown = k.run("await nc.request('desk.ask', b'')").shown
        assert "NoRespondersError" in shown
        assert "worker desk ended with exit code 1" in shown and "no such card" in shown
        assert k.run("await nc.close(); await lab.close()").error == ""


def test_a_module_holds_the_newest_version_of_each_cell() -> None:
    with kernel(NATSLAB_CLUSTER="embedded") as k:
        k.run("from natslab import Lab\nlab = await Lab.start()\nimport sys")
        nothing_yet = k.run("lab.write_module('shop.py')")
        assert nothing_yet.error.startswith('LabError: No cell that begins with "# shop.py"')
        cells = (
            "# shop.py\nfrom math import sqrt",
            "# shop.py\ndef price(n):\n    return sqroot(n)\n\n\nsqroot(4)",  # a typo: it fails
            "# shop.py\ndef total(n) return price(n)",  # no Python
            "# shop.py\ndef total(n):\n    return price(n) + cent",
            "# shop.py\ndef price(n):\n    return sqrt(n)",
            "# shop.py\ndef price(number):  # changed once more\n    return sqrt(number)",
            "# shop.py\ncent = 0.01",
            "# other.py\nraise SystemExit",
        )
        for cell in cells:
            k.run(cell)
        k.run("lab.write_module('shop.py')\nsys.path.append(str(lab.folder))\nimport shop")
        again = "lab.write_module('shop.py')\nprint(shop.total(9), open(shop.__file__).read())"
        ran = k.run(again)
        wanted = "\n\n\n".join(cells[i] for i in (0, 5, 3, 6))
        assert (ran.text, ran.error) == (f"3.01 {wanted}\n\n", "")
        k.run(cells[4])  # the change is undone
        k.run(cells[0])  # and this is run again, and stays the first
        ran = k.run(again)
        wanted = "\n\n\n".join(cells[i] for i in (0, 4, 3, 6))
        assert (ran.text, ran.error) == (f"3.01 {wanted}\n\n", "")
        assert k.run("await lab.close()").error == ""
