"""Which lessons need no run, because nothing has changed since they were green.

A lesson's state is a digest of all that its runs depend on. It is kept, in `.cache/green`, when every
run of the lesson and of its solutions was green. Standard library, Python from 3.9.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / ".cache" / "green"
# Besides the notebook and its solutions: what starts, runs and judges them.
COMMON = ("lib/**/*.py", "lib/*.toml", "lib/*.txt", "lib/**/*.cfg", "infra/**/*", "tests/*")
COMMON += ("notebooks/*.py", "notebooks/course.toml")


def states(lessons: list[Path], python: Path) -> dict[str, str]:
    """{'15_at_least_once_queue': digest} of the lessons as they are now, run by this Python."""
    version = subprocess.run([str(python), "-VV"], stdout=subprocess.PIPE, check=True).stdout
    common = hashlib.sha256(version + platform.platform().encode())
    for path in sorted({path for pattern in COMMON for path in ROOT.glob(pattern)}):
        if path.is_file() and path.suffix != ".pyc":
            common.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return {path.stem: _state(path, common) for path in lessons}


def _state(lesson: Path, common: hashlib._Hash) -> str:
    digest = common.copy()
    for path in (lesson, lesson.parent / "solutions" / lesson.name):
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def unchanged(now: dict[str, str]) -> list[str]:
    """The lessons that were green as they are now."""
    return [name for name, state in now.items() if _kept(name) == state]


def _kept(name: str) -> str:
    file = KEPT / name
    return file.read_text() if file.exists() else ""


def note(before: dict[str, str], lessons: dict[str, dict]) -> None:
    """Keep the state of each lesson that was run whole and was green; forget it of those that were not.

    `before` is their state before the runs: what somebody edits meanwhile was not run.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    for name, state in before.items():
        rows = [lessons[key] for key in (name, f"solutions/{name}") if key in lessons]
        if any("failed" in row for row in rows):
            (KEPT / name).unlink(missing_ok=True)
        elif rows and all({"strict", "again"} <= row.keys() for row in rows):
            (KEPT / name).write_text(state)
