"""The proof itself: a notebook that differs or fails is red, and what is skipped has not changed."""

import contextlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import green
import helpers
import nbformat
import psutil
import pytest
import run
import stalls
from nbformat.v4 import new_code_cell, new_notebook, new_output

GREEN = {"strict": 1.0, "again": 1.0}
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
    fine = {"01_a": dict(GREEN), "solutions/01_a": dict(GREEN)}
    green.note(green.states([course], Path(sys.executable)), fine)
    assert unchanged(course) == ["01_a"]
    (course.parent / file).write_text("two")
    assert unchanged(course) == []


@pytest.mark.parametrize(
    "rows",
    [
        {"01_a": {**GREEN, "failed": ["strict"]}},
        {"01_a": {**GREEN, "failed": ["again"]}},
        {"01_a": GREEN, "solutions/01_a": {**GREEN, "failed": ["strict"]}},
        {"01_a": {**GREEN, "shared": 1.0, "failed": ["shared"]}},
    ],
    ids=["red", "red the second time", "its solutions are red", "red on a shared cluster"],
)
def test_what_was_red_is_run_again(course: Path, rows: dict) -> None:
    state = green.states([course], Path(sys.executable))
    green.note(state, {"01_a": dict(GREEN)})
    assert unchanged(course) == ["01_a"]
    green.note(state, rows)
    assert unchanged(course) == []
    green.note(state, {"01_a": {"strict": 1.0, "shared": 1.0}})  # not its sections: not enough
    assert unchanged(course) == []


def test_each_test_is_run_by_some_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that no step names is never red."""
    steps: list[tuple[str, ...]] = []
    suite = run.Suite(Path(sys.executable), verbose=False, unchanged=[])
    monkeypatch.setattr(suite, "pytest", lambda name, *words, **env: steps.append(words))
    monkeypatch.setattr(suite, "step", lambda *words, **more: True)
    monkeypatch.setattr(suite, "run", lambda *words, **env: (0, ""))
    monkeypatch.setattr(
        run, "shared_cluster", lambda suite: contextlib.nullcontext({"servers": []})
    )
    monkeypatch.setattr(run.shutil, "which", lambda name: name)
    run.everything(suite, run.written(), all_=True)
    in_steps = [test for words in steps for test in collected(*words)]
    assert len(in_steps) > len(steps)
    assert sorted(in_steps) == sorted(collected("tests")), "each one, and once"


def collected(*words: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "--rootdir", helpers.ROOT]
    command += [*words, "-n", "0", "--collect-only", "-q"]
    told = subprocess.run(command, cwd=helpers.ROOT, stdout=subprocess.PIPE, text=True)
    return [line for line in told.stdout.splitlines() if "::" in line]


def test_what_was_stalled_runs_on() -> None:
    """Some of a run stand still for a moment, the tests and those of others never."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours, others = (
        psutil.Popen(sleeper, env={**os.environ, "NATSLAB_RUN": mark}) for mark in ("1a", "1b")
    )
    stalling = subprocess.Popen(
        [sys.executable, "tests/stalls.py", "1a"], cwd=helpers.ROOT, stdin=subprocess.PIPE
    )
    try:
        stood = set()
        end = time.monotonic() + 20
        while ours.pid not in stood and time.monotonic() < end:
            stood |= {p.pid for p in (ours, others) if p.status() == psutil.STATUS_STOPPED}
            time.sleep(0.02)
        assert stood == {ours.pid}
        stalling.communicate(timeout=10)
        assert stalling.returncode == 0
        assert ours.status() != psutil.STATUS_STOPPED
    finally:
        for process in (ours, others, stalling):
            process.kill()
            process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of pending signals")
def test_what_a_lesson_freezes_during_a_stall_stays_frozen() -> None:
    sleeper = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with ThreadPoolExecutor() as pool:
            stalled = pool.submit(stalls.stall, [sleeper], 0.5)
            while sleeper.status() != psutil.STATUS_STOPPED and not stalled.done():
                time.sleep(0.01)
            sleeper.suspend()
            stalled.result()
        assert sleeper.status() == psutil.STATUS_STOPPED
    finally:
        sleeper.kill()
        sleeper.wait()
