"""`up.py --update` and `natslab reset`: the newer course, and every line that the learner wrote."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import natslab.authoring.files
import natslab.cli
import natslab.reset
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "infra"))
from update import merge_notebook  # noqa: E402

pytestmark = pytest.mark.servers

LESSON, OTHER = "notebooks/00_start_here.ipynb", "notebooks/01_pub_sub.ipynb"
SAVED = {"kernelspec": {"name": "python3"}, "language_info": {"name": "python"}}


def cell(id_, source, *, kind="code", printed="", **metadata):
    made = {"id": id_, "cell_type": kind, "metadata": metadata, "source": source.splitlines(True)}
    if kind == "code":
        outputs = [{"output_type": "stream", "name": "stdout", "text": [printed]}]
        made |= {"execution_count": 1, "outputs": outputs if printed else []}
    return made


def notebook(*cells):
    return {"cells": list(cells), "metadata": SAVED, "nbformat": 4, "nbformat_minor": 5}


def sources(book):
    return ["".join(c["source"]) for c in book["cells"]]


BASE = [cell("a", "one\n"), cell("b", "two\n"), cell("c", "three\n")]

# What the learner has, what the newer course has, what comes out, what is said about it.
CASES = {
    "nothing written": (BASE, [cell("a", "ONE")], ["ONE"], []),
    "one cell each": (
        [cell("a", "mine"), *BASE[1:]],
        [*BASE[:2], cell("c", "new")],
        ["mine", "two\n", "new"],
        [],
    ),
    "both the same cell": (
        [BASE[0], cell("b", "mine"), BASE[2]],
        [BASE[0], cell("b", "new"), BASE[2]],
        ["one\n", "mine", "three\n"],
        ['you and the course changed one cell, yours stays: "mine"'],
    ),
    "both in the same way": (
        [BASE[0], cell("b", "new"), BASE[2]],
        [BASE[0], cell("b", "new"), BASE[2]],
        ["one\n", "new", "three\n"],
        [],
    ),
    "new cells of both in one place": (
        [BASE[0], cell("m", "mine"), *BASE[1:]],
        [BASE[0], cell("n", "new"), *BASE[1:]],
        ["one\n", "mine", "new", "two\n", "three\n"],
        [],
    ),
    "new cells of both under one id": (
        [*BASE, cell("x", "mine")],
        [*BASE, cell("x", "new")],
        ["one\n", "two\n", "three\n", "mine"],
        ['you and the course changed one cell, yours stays: "mine"'],
    ),
    "mine comes first": (
        [cell("m", "mine"), *BASE],
        [cell("n", "new"), *BASE],
        ["mine", "new", "one\n", "two\n", "three\n"],
        [],
    ),
    "the course dropped what I changed": (
        [BASE[0], cell("b", "mine"), BASE[2]],
        [BASE[0], BASE[2]],
        ["one\n", "mine", "three\n"],
        ['the course dropped a cell that you changed: "mine"'],
    ),
    "the course dropped what I left alone": (BASE, BASE[1:], ["two\n", "three\n"], []),
    "I deleted what the course left alone": (
        BASE[1:],
        [*BASE, cell("n", "new")],
        ["two\n", "three\n", "new"],
        [],
    ),
    "I deleted what the course changed": (
        BASE[1:],
        [cell("a", "new"), *BASE[1:]],
        ["two\n", "three\n"],
        ['you deleted a cell that is newer now: "new"'],
    ),
    "the course moved cells": (
        [BASE[0], cell("b", "mine"), BASE[2]],
        [BASE[2], BASE[0], BASE[1]],
        ["three\n", "one\n", "mine"],
        [],
    ),
    "I made it a text": (
        [BASE[0], cell("b", "two\n", kind="markdown"), BASE[2]],
        [BASE[0], cell("b", "new"), BASE[2]],
        ["one\n", "two\n", "three\n"],
        ['you and the course changed one cell, yours stays: "two"'],
    ),
    "an editor wrote new ids": (
        [cell("p", "one\n"), cell("q", "mine"), cell("r", "three\n")],
        [cell("a", "ONE"), *BASE[1:]],
        ["ONE", "mine", "three\n"],
        [],
    ),
    "an editor wrote one id twice": (
        [*BASE, cell("c", "mine")],
        [*BASE, cell("n", "new")],
        ["one\n", "two\n", "three\n", "mine", "new"],
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_merged_by_cell(case):
    mine, theirs, expected, said = CASES[case]
    merged, held = merge_notebook(notebook(*BASE), notebook(*mine), notebook(*theirs))
    assert sources(merged) == expected
    assert held == said
    ids = [c["id"] for c in merged["cells"]]
    assert len(set(ids)) == len(ids)


def test_cells_without_ids_are_kept_too():
    """An old editor takes the ids away."""
    mine = [
        {k: v for k, v in c.items() if k != "id"} for c in [BASE[0], cell("b", "mine"), BASE[2]]
    ]
    merged, _ = merge_notebook(
        notebook(*BASE), notebook(*mine), notebook(cell("a", "ONE"), *BASE[1:])
    )
    assert sources(merged) == ["ONE", "mine", "three\n"]
    assert all(c["id"] for c in merged["cells"])


def test_a_cell_that_stays_keeps_what_it_printed():
    mine = notebook(cell("a", "mine", printed="42\n"), cell("b", "two\n", printed="old\n"), BASE[2])
    theirs = notebook(BASE[0], cell("b", "two\n", printed="new\n"), BASE[2])
    merged, _ = merge_notebook(notebook(*BASE), mine, theirs)
    assert merged["cells"][0] == mine["cells"][0]
    assert merged["cells"][1] == theirs["cells"][1]


# ---- the command ---------------------------------------------------------------------------

GIT = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
GIT |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


class Course:
    """An origin, an author's clone and a learner's."""

    def __init__(self, folder):
        self.origin, self.author, self.mine = folder / "o.git", folder / "author", folder / "me"

    def make(self, folder):
        self.git(folder, "init", "--quiet", "--bare", "-b", "main", self.origin)
        self.git(folder, "clone", "--quiet", self.origin, self.author)
        leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / "infra", self.author / "infra", ignore=leave)
        (self.author / "notebooks" / "solutions").mkdir(parents=True)
        shutil.copy(ROOT / ".gitignore", self.author)
        self.save(self.author, LESSON, *BASE)
        self.save(self.author, OTHER, *BASE)
        (self.author / "README.md").write_text("1\n2\n3\n4\n5\n6\n7\n8\n9\n")
        self.publish()
        self.git(folder, "clone", "--quiet", self.origin, self.mine)

    @staticmethod
    def git(folder, *words):
        command = ["git", *map(str, words)]
        env = os.environ | GIT
        return subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True).stdout

    def save(self, where, path, *cells):
        (where / path).write_text(json.dumps(notebook(*cells), indent=1, sort_keys=True) + "\n")

    def publish(self):
        self.git(self.author, "checkout", "--quiet", "-B", "main")
        self.git(self.author, "add", "--all")
        self.git(self.author, "commit", "--quiet", "-m", "newer")
        self.git(self.author, "push", "--quiet", "-u", "origin", "main")

    def update(self):
        command = [sys.executable, self.mine / "infra" / "up.py", "--update"]
        env = os.environ | {"LC_ALL": "C.UTF-8"}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    def sources(self, path):
        return sources(json.loads((self.mine / path).read_text()))

    def changes(self):
        return self.git(self.mine, "status", "--porcelain").decode().splitlines()

    def is_newest(self):
        heads = [self.git(where, "rev-parse", "HEAD") for where in (self.author, self.mine)]
        return heads[0] == heads[1]

    def snapshot(self):
        files = (p for p in self.mine.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return {p: p.read_bytes() for p in files if ".git" not in p.parts}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    Course(folder).make(folder)
    return folder


@pytest.fixture
def course(template, tmp_path):
    folder = shutil.copytree(template, tmp_path / "all", symlinks=True)
    course = Course(folder)
    for clone in (course.author, course.mine):
        course.git(clone, "remote", "set-url", "origin", course.origin)
    return course


@pytest.fixture
def reset(course, monkeypatch, capsys):
    """`natslab reset` in the learner's clone."""
    for module in (natslab.reset, natslab.cli):
        monkeypatch.setattr(module, "ROOT", course.mine)
    for module in (natslab.reset, natslab.authoring.files):
        monkeypatch.setattr(module, "NOTEBOOKS", course.mine / "notebooks")

    def call(number):
        code = natslab.cli.main(["reset", str(number)])
        return subprocess.CompletedProcess("reset", code, *capsys.readouterr())

    return call


def refused(course, done, *words):
    """One sentence, and nothing was touched."""
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr.strip().splitlines()[-1]


def test_newer_course_over_a_lesson_that_was_only_opened(course):
    """JupyterLab completes the metadata, runs, and saves: a plain `git pull` refuses then."""
    opened = [cell(c["id"], "".join(c["source"]), printed="ran\n", trusted=True) for c in BASE]
    course.save(course.mine, LESSON, *opened)
    course.save(course.author, LESSON, *BASE[:2], cell("c", "new"))
    course.publish()
    done = course.update()
    assert done.returncode == 0, done
    assert "The newer course is here (1 change)." in done.stdout
    assert course.is_newest()
    assert course.changes() == []
    assert course.update().stdout == "This is the newest course already.\n"


def test_every_line_of_the_learner_is_there_afterwards(course):
    mine = course.mine
    course.save(mine, LESSON, cell("a", "mine"), cell("b", "my two"), cell("m", "more"), BASE[2])
    course.save(mine, OTHER, *BASE, cell("m", "a note"))
    lines = "my 1\n2\n3\n4\n5\n6\n7\n8\nmy 9\n"
    (mine / "README.md").write_text(lines)
    (mine / "notebooks" / "notes.txt").write_text("mine alone")
    (mine / "notebooks" / "05_new.ipynb").write_text("my own")
    course.git(mine, "add", "README.md", "notebooks/notes.txt")

    course.save(course.author, LESSON, BASE[0], cell("b", "new two"), cell("c", "new three"))
    (course.author / "README.md").write_text("1\n2\n3\n4\nnew 5\n6\n7\n8\nnew 9\n")
    course.save(course.author, "notebooks/05_new.ipynb", *BASE)
    (course.author / OTHER).unlink()
    course.publish()

    done = course.update()
    assert done.returncode == 0, done
    assert course.is_newest()
    assert course.sources(LESSON) == ["mine", "my two", "more", "new three"]
    assert f'{LESSON}: you and the course changed one cell, yours stays: "my two"' in done.stdout
    assert (mine / "README.md").read_text() == "my 1\n2\n3\n4\nnew 5\n6\n7\n8\nmy 9\n"
    assert "README.md: you and the course changed the same lines, yours stay" in done.stdout
    assert (mine / "notebooks" / "notes.txt").read_text() == "mine alone"
    assert course.sources("notebooks/05_new.ipynb") == ["one\n", "two\n", "three\n"]
    assert (mine / "notebooks" / "05_new.mine.ipynb").read_text() == "my own"
    assert "05_new.ipynb: the newer course has a file of this name" in done.stdout
    assert "yours is kept as 05_new.mine.ipynb" in done.stdout
    assert not (mine / OTHER).exists()
    assert course.sources(OTHER.replace(".ipynb", ".mine.ipynb"))[-1] == "a note"
    kept = course.git(mine, "show", "refs/natslab/before-update:README.md").decode()
    assert kept == lines
    assert not list(mine.rglob("*.new"))
    assert not any(".mine" in line for line in course.changes()), "git ignores them"


def test_a_second_copy_never_overwrites_the_first(course):
    for number, name in ((1, "05_new.mine.ipynb"), (2, "05_new.mine-2.ipynb")):
        new = course.mine / "notebooks" / "05_new.ipynb"
        new.write_text(f"broken {number}")
        course.save(course.author, "notebooks/05_new.ipynb", cell("a", f"new {number}"))
        course.publish()
        assert course.update().returncode == 0
        assert (new.parent / name).read_text() == f"broken {number}"
        assert sources(json.loads(new.read_text())) == [f"new {number}"]
    assert (course.mine / "notebooks" / "05_new.mine.ipynb").read_text() == "broken 1"


def test_a_deleted_lesson_comes_back_when_it_is_newer(course):
    (course.mine / LESSON).unlink()
    course.save(course.author, LESSON, cell("a", "new"))
    course.publish()
    assert course.update().returncode == 0
    assert course.sources(LESSON) == ["new"]


def test_refused_in_a_sentence(course, reset):
    course.save(course.mine, LESSON, cell("a", "mine"))
    before = course.snapshot()
    course.save(course.author, LESSON, cell("a", "new"))
    course.publish()

    hidden = course.origin.rename(course.origin.with_name("gone"))
    refused(course, course.update(), "could not be fetched", "check the network")
    hidden.rename(course.origin)

    (course.mine / ".git" / "MERGE_HEAD").write_text("0" * 40)
    refused(course, course.update(), "A merge or a rebase is under way")
    (course.mine / ".git" / "MERGE_HEAD").unlink()

    course.git(course.mine, "checkout", "--quiet", "--detach")
    refused(course, course.update(), "git switch main")
    course.git(course.mine, "checkout", "--quiet", "main")

    aside = (course.mine / ".git").rename(course.mine.parent / "git")
    refused(course, course.update(), "not cloned with git")
    refused(course, reset(0), "not cloned with git")
    aside.rename(course.mine / ".git")

    course.git(course.mine, "commit", "--quiet", "--allow-empty", "-m", "mine")
    refused(course, course.update(), "has commits of your own")
    assert course.snapshot() == before


def test_a_failure_on_the_way_leaves_all_as_it_was(course):
    """Where the newer course has a file, the learner has a folder with files: git refuses that."""
    course.save(course.mine, LESSON, cell("a", "mine"))
    (course.mine / "notebooks" / "extra").mkdir()
    (course.mine / "notebooks" / "extra" / "note").write_text("mine")
    before = course.snapshot()
    course.save(course.author, LESSON, cell("a", "new"))
    (course.author / "notebooks" / "extra").write_text("a file")
    course.publish()
    refused(course, course.update(), "all is as it was")
    assert course.snapshot() == before
    assert not course.is_newest()


def test_reset_gives_the_pristine_lesson_and_keeps_the_learners(course, reset):
    lesson, solution = course.mine / LESSON, course.mine / "notebooks/solutions/00_start_here.ipynb"
    pristine = lesson.read_bytes()
    course.save(course.author, "notebooks/solutions/00_start_here.ipynb", *BASE)
    course.publish()
    assert course.update().returncode == 0
    assert "pristine already" in reset(0).stdout
    for number, name in enumerate(("mine", "mine-2"), 1):
        lesson.write_text(f"try {number}")
        solution.write_text(f"solved {number}")
        done = reset(0)
        assert done.returncode == 0, done
        assert f"{LESSON} is pristine again; yours is 00_start_here.{name}.ipynb" in done.stdout
        assert lesson.read_bytes() == solution.read_bytes() == pristine
        assert lesson.with_name(f"00_start_here.{name}.ipynb").read_text() == f"try {number}"
        assert solution.with_name(f"00_start_here.{name}.ipynb").read_text() == f"solved {number}"
    assert lesson.with_name("00_start_here.mine.ipynb").read_text() == "try 1"
    assert course.changes() == []
    lesson.unlink()
    assert reset(0).returncode == 0
    assert lesson.read_bytes() == pristine
    refused(course, reset(14), "Lesson 14 is not written yet")
    refused(course, reset(77), "no lesson 77")
