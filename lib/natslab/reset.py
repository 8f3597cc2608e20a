"""The pristine lesson again, with the learner's kept beside it."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

from natslab.authoring.course import course
from natslab.authoring.files import by_number, replace, solution_of
from natslab.errors import LabError
from natslab.paths import NOTEBOOKS, ROOT


def reset(number: int) -> dict[Path, Path]:
    """Give a lesson and its solutions back as the course has them.

    Returns the copy that was kept of each file that differed: `15_x.mine.ipynb`, then
    `15_x.mine-2.ipynb`; git ignores them. Raises LabError without git, or when there is no such
    lesson.
    """
    planned = {lesson.number: NOTEBOOKS / lesson.file for lesson in course()}
    lesson = planned.get(number) or by_number(number)  # which says that there is none
    pristine = {path: _pristine(path) for path in (lesson, solution_of(lesson))}
    if pristine[lesson] is None:
        raise LabError(f"Lesson {number:02} is not written yet.")
    kept = {}
    for path, content in pristine.items():
        if content is None or (path.exists() and path.read_bytes() == content):
            continue
        if path.exists():
            kept[path] = _kept_beside(path)
        replace(path, content)
    return kept


def _pristine(path: Path) -> bytes | None:
    """The file as the newest commit here has it; None when it has none."""
    # A repository around a course that was unpacked into it knows nothing of it.
    if not (ROOT / ".git").exists():
        raise LabError(
            "This folder was not cloned with git, so the pristine lesson is not here: "
            "download the course again, and take it from there."
        )
    if not shutil.which("git"):
        raise LabError("This needs git: install it, then run the same command again.")
    name = path.relative_to(ROOT).as_posix()
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"LC_ALL": "C"}
    shown = subprocess.run(
        ["git", "cat-file", "--filters", f"HEAD:{name}"], cwd=ROOT, env=env, capture_output=True
    )
    if (
        shown.returncode
        and b"does not exist" not in shown.stderr
        and b"exists on" not in shown.stderr
    ):
        why = shown.stderr.decode(errors="replace").strip()
        raise LabError(f"git cannot read this folder ({why}): `git status` here says more.")
    return None if shown.returncode else shown.stdout


def _kept_beside(path: Path) -> Path:
    """A copy beside a file, never over another."""
    for number in itertools.count(1):
        mark = "mine" if number == 1 else f"mine-{number}"
        copy = path.with_name(f"{path.stem}.{mark}{path.suffix}")
        if not copy.exists():
            shutil.copy2(path, copy)
            return copy
    raise AssertionError("there is always one more number")
