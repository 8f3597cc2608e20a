"""The list of lessons, from `notebooks/course.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any

from natslab.paths import COURSE


@dataclass(frozen=True)
class Lesson:
    """One lesson; `slug` is its file name without number and ending."""

    number: int
    slug: str
    title: str
    question: str
    part: str
    flow: dict[str, Any] | None = None  # columns and arrows, see `natslab.charts.flow`

    @property
    def file(self) -> str:
        """The file name below `notebooks/`."""
        return f"{self.number:02}_{self.slug}.ipynb"


@dataclass(frozen=True)
class Choice:
    """One row of the page to choose by; in `cost`, {} stands for what `measured` finds in the lesson."""

    need: str
    pattern: str
    guarantee: str
    lesson: int
    cost: str = ""
    measured: str = ""  # a pattern over what the lesson prints, with a group for each {}


@cache
def choices() -> list[Choice]:
    """The rows of the page to choose by, in order."""
    rows: list[dict[str, Any]] = tomllib.loads(COURSE.read_text(encoding="utf-8"))["choice"]
    return [Choice(**row) for row in rows]


@cache
def course() -> list[Lesson]:
    """All lessons in order, the planned ones too."""
    rows: list[dict[str, Any]] = tomllib.loads(COURSE.read_text(encoding="utf-8"))["lesson"]
    return [Lesson(**row) for row in rows]


def lesson(number: int) -> Lesson:
    """The lesson with this number. Raises KeyError with the valid range when there is none."""
    if not 0 <= number < len(course()):
        raise KeyError(f"there is no lesson {number}; they are 0 to {len(course()) - 1}")
    return course()[number]
