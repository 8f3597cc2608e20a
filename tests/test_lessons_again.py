"""What a learner does who does not run a lesson once from top to bottom.

Each exercise is judged again and again in one kernel: the right answer twice, the wrong ones that its
judge must know, an exception, the starter, and the right one once more. Each section is run twice, and
one that breaks something is interrupted, run again, and then each of its cells on its own.
"""

import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import pytest
from kernel import Kernel, Ran, code, kernel, masked, read, saved
from natslab.authoring import files
from natslab.lab import REPLACED

ENV = {"NATSLAB_CLUSTER": "embedded", "NATSLAB_PATIENCE": helpers.PATIENCE}
FOR_GOOD = "nest_asyncio.apply()"  # changes the kernel until it is restarted, as its lesson says
AT_ONCE = 12.0  # seconds in which a cell that cannot work on its own says so


@pytest.fixture(autouse=True)
def noted(path: Path, record_property: helpers.Note) -> Iterator[None]:
    """A lesson that does not pass here is not green."""
    begun = time.monotonic()
    yield
    helpers.note_run(record_property, path, "again", time.monotonic() - begun)


def tagged(cell: Any, tag: str) -> bool:
    return tag in files.tags(cell)


def ok(ran: Ran, cell: Any, place: str) -> None:
    """It printed what is saved, and failed in nothing."""
    assert not ran.error, f"{place}: {ran.error}\n{cell.source}"
    if not tagged(cell, files.IGNORED):
        told = ran.text.removeprefix(f"{REPLACED}\n")  # where a section starts the lab
        assert masked(told) == saved(cell), f"{place}:\n{cell.source}"


# Sections.


def sections(cells: list) -> list[tuple[int, int]]:
    """From where to where each section goes that teaches, the exercises apart."""
    heads = [
        i
        for i, c in enumerate(cells)
        if c.cell_type == "markdown" and re.search(r"^## ", c.source, re.M)
    ]
    heads = heads[: 1 + next(n for n, i in enumerate(heads) if "## Your turn" in cells[i].source)]
    return list(itertools.pairwise(heads))


def is_begun(cells: list, start: int, end: int) -> bool:
    return any("await lab.begin(" in cell.source for cell in cells[start:end])


# Later lessons take longer: begun first, all workers end together.
BEGUN = [p for p in files.lessons()[::-1] if (cells := read(p)) and is_begun(cells, 0, len(cells))]


def by_turns(paths: list[Path], day: int) -> list:
    """On even days the even lessons, or the odd ones."""
    return [
        pytest.param(path, marks=pytest.mark.turn((int(path.stem[:2]) + day) % 2, 2))
        for path in paths
    ]


# A lesson has its sections run on one day, its exercises judged on the next.
@pytest.mark.again
@pytest.mark.parametrize("path", by_turns(BEGUN, 0), ids=lambda path: path.stem)
def test_sections(path: Path) -> None:
    """Each can be run again from its heading; a drill also after an interrupt, and cell by cell."""
    cells, at = read(path), 0
    with kernel(**ENV) as k:
        for start, end in sections(cells):
            go(k, cells, at, start)
            seconds = go(k, cells, start, end)
            if not any(FOR_GOOD in cell.source for cell in cells[start:end]):
                go(k, cells, start, end)
            if is_begun(cells, start, end):
                interrupted(k, cells, start, end, seconds)
                go(k, cells, start, end)
                # The last one first: in order it would be the section once more.
                for place, cell in reversed(list(code(cells, start, end))):
                    on_its_own(k.run(cell.source), cell, place)
                go(k, cells, start, end)
            at = end
        go(k, cells, at, len(cells))


def go(k: Kernel, cells: list, start: int, end: int) -> dict[int, float]:
    """Run these cells; the seconds of each."""
    seconds = {}
    for place, cell in code(cells, start, end):
        ran = k.run(cell.source)
        ok(ran, cell, f"[{place}]")
        seconds[place] = ran.seconds
    return seconds


def interrupted(k: Kernel, cells: list, start: int, end: int, seconds: dict[int, float]) -> None:
    """Run the section up to its longest cell, and stop that one halfway."""
    longest = max(seconds, key=seconds.__getitem__)
    go(k, cells, start, longest)
    ran = k.run(cells[longest].source, interrupt_after=seconds[longest] / 2)
    assert ran.seconds < seconds[longest] + AT_ONCE, "an interrupt ends it"
    told = "run the section again from its heading" in ran.shown
    assert told or not ran.error.startswith("CancelledError"), ran


def on_its_own(ran: Ran, cell: Any, place: int) -> None:
    """It works, or says at once, in one sentence, from where to run."""
    assert ran.seconds < AT_ONCE or not ran.error, f"[{place}]: {ran}\n{cell.source}"
    if ran.error:
        assert 'the heading "' in ran.text + ran.error, f"[{place}]: {ran}\n{cell.source}"
    else:
        ok(ran, cell, f"[{place}] on its own")


# Exercises.


def exercises(cells: list) -> list[list]:
    """The cells of each exercise: its text, the answer, the judge, and other answers, right and wrong."""
    starts = [i for i, c in enumerate(cells) if c.cell_type == "markdown" and tagged(c, "exercise")]
    ends = [*starts[1:], len(cells)]
    return [cells[a:b] for a, b in zip(starts, ends, strict=True)]


def raising(answer: str, name: str) -> str:
    """An answer of the same shape that raises at once; '' for a plain value."""
    if re.search(rf"^class {name}\b", answer, re.M):
        return f"class {name}:\n    def __init__(self, *args, **kwargs):\n        raise RuntimeError('boom')"
    found = re.search(rf"^(async )?def {name}\(", answer, re.M)
    if not found:
        return ""
    return f"{found[1] or ''}def {name}(*args, **kwargs):\n    raise RuntimeError('boom')"


JUDGED = [
    path for path in files.solutions()[::-1] if any("await judge(" in c.source for c in read(path))
]


@pytest.mark.again
@pytest.mark.parametrize("path", by_turns(JUDGED, 1), ids=lambda path: path.stem)
def test_judges(path: Path) -> None:
    cells = read(path)
    first = next(i for i, c in enumerate(cells) if tagged(c, "exercise"))
    with kernel(**ENV) as k:
        for place, cell in code(cells, 0, first):
            ok(k.run(cell.source), cell, f"{path.stem}[{place}]")
        for of_one in exercises(cells):
            judged_again_and_again(k, of_one)


def judged_again_and_again(k: Kernel, cells: list) -> None:
    title = cells[0].source.splitlines()[0]
    own = [c for c in cells if c.cell_type == "code" and tagged(c, "exercise")]
    answer = next(c.source for c in own if "# solution: " in c.source)
    name = re.search(r"# solution: (\w+)", answer)[1]
    judges = [c for c in own if c.source != answer]

    def verdict(given: str) -> str:
        told = k.run(given)
        assert not told.error, f"{title}: {told.error}\n{given}"
        runs = [k.run(judge.source) for judge in judges]
        assert not [run.error for run in runs if run.error], f"{title}: {runs}\n{given}"
        text = "".join(run.text for run in runs)
        assert "0x" not in text
        return text

    assert verdict(f"{name} = ...")[0] == "○", f"{title}: the starter"
    assert [verdict(answer)[0], verdict(answer)[0]] == ["✔", "✔"], f"{title}: twice"
    for cell in cells:
        if tagged(cell, "wrong") or tagged(cell, "right"):
            ok(k.run(cell.source), cell, title)
            assert saved(cell)[0] == ("✔" if tagged(cell, "right") else "✘")
    if boom := raising(answer, name):
        told = verdict(boom)
        assert told[0] == "✘" and "RuntimeError: boom" in told, f"{title}: {told}"
    assert verdict(answer)[0] == "✔", f"{title}: after wrong answers: {verdict(answer)}"
