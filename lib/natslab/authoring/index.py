"""Navigation lines, the table in the README, and the pictures: derived from the notebooks."""

from __future__ import annotations

import base64
import copy
import re
from pathlib import Path

from natslab.authoring.course import Choice, Lesson, choices, course, lesson
from natslab.authoring.files import (
    Notebook,
    code_cells,
    lessons,
    normalised,
    read,
    replace,
    solutions,
    tags,
    write,
)
from natslab.charts import flow
from natslab.errors import LabError
from natslab.paths import NOTEBOOKS, ROOT


def with_navigation(path: Path, notebook: Notebook) -> Notebook:
    """The notebook with its cells tagged `nav` brought up to date."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if "nav" in tags(cell):
            cell.source = _navigation(path)
    return notebook


def _navigation(path: Path) -> str:
    if path.parent.name == "solutions":
        return f"[← back to the lesson](../{path.name})"
    files = [lesson.name for lesson in lessons()]
    i = files.index(path.name)
    before = f"[← {files[i - 1][:2]}]({files[i - 1]}) · " if i else ""
    after = f" · [{files[i + 1][:2]} →]({files[i + 1]})" if i + 1 < len(files) else ""
    return f"{before}[all lessons](../README.md#the-lessons){after}"


def index() -> list[Path]:
    """Bring navigation lines, README table and pictures up to date; returns the files that changed."""
    changed = []
    for path in [*lessons(), *solutions()]:
        if write(path, normalised(with_navigation(path, read(path)))):
            changed.append(path)
    for path in lessons():
        images = {"": main_chart(read(path))}
        if drawn := lesson(int(path.name[:2])).flow:
            images["-flow"] = flow.draw(**drawn)
        for suffix, png in images.items():
            picture = NOTEBOOKS / "img" / f"{path.name[:2]}{suffix}.png"
            if png and replace(picture, png):
                changed.append(picture)
    pages = {ROOT / "README.md": with_table, NOTEBOOKS / "CHOOSER.md": with_choices}
    for page, brought_up_to_date in pages.items():
        if replace(page, brought_up_to_date(page.read_text(encoding="utf-8")).encode()):
            changed.append(page)
    return changed


def main_chart(notebook: Notebook) -> bytes:
    """The picture of the cell tagged `main-chart`, or b""."""
    for cell in code_cells(notebook):
        if "main-chart" in tags(cell):
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
    return b""


def with_table(readme: str) -> str:
    """The README with a new lesson table between its two `lessons` comments."""
    return _between("lessons", readme, _table())


def with_choices(page: str) -> str:
    """The page to choose by with a new table between its two `choices` comments."""
    return _between("choices", page, _choices())


def _between(name: str, page: str, table: str) -> str:
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, _, rest = page.partition(start)
    _, _, tail = rest.partition(end)
    return f"{head}{start}\n{table}\n{end}{tail}"


def _choices() -> str:
    head = "| you need | pattern | what it guarantees | measured there | lesson |\n|---|---|---|---|---|"
    return "\n".join([head, *map(_choice, choices())])


def _choice(row: Choice) -> str:
    path = NOTEBOOKS / lesson(row.lesson).file
    if not path.exists():
        return f"| {row.need} | {row.pattern} | {row.guarantee} | | {row.lesson:02}, planned |"
    link = f"[{row.lesson:02}]({path.name})"
    return f"| {row.need} | {row.pattern} | {row.guarantee} | {cost(row, read(path))} | {link} |"


def cost(row: Choice, notebook: Notebook) -> str:
    """What the pattern costs, with the numbers that the lesson printed. Raises LabError without them."""
    if not row.measured:
        return row.cost
    printed = "\n".join(str(o.get("text", "")) for c in code_cells(notebook) for o in c.outputs)
    found = re.search(row.measured, printed)
    if not found:
        raise LabError(f"course.toml: lesson {row.lesson:02} prints nothing like {row.measured!r}.")
    return row.cost.format(*found.groups())


def _table() -> str:
    parts: dict[str, list[str]] = {}
    for row in course():
        parts.setdefault(row.part, []).append(_row(row))
    head = (
        "| | lesson | question it answers | minutes | what you will see |\n|---|---|---|---|---|\n"
    )
    written = f"{len(lessons())} of {len(course())} are written, the others are planned."
    tables = (f"### {part}\n\n{head}" + "\n".join(rows) for part, rows in parts.items())
    return "\n\n".join([written, *tables])


def _row(lesson: Lesson) -> str:
    path = NOTEBOOKS / lesson.file
    if not path.exists():
        return f"| {lesson.number:02} | {lesson.title} | {lesson.question} | | planned |"
    picture = f"notebooks/img/{lesson.number:02}.png"
    return (
        f"| {lesson.number:02} | [{lesson.title}](notebooks/{lesson.file}) | {lesson.question} "
        f"| {minutes(read(path))} | "
        f'<img src="{picture}" width="220" alt="{_finding(read(path))}"> |'
    )


def minutes(notebook: Notebook) -> int:
    """The reading time in the map of a lesson (`**25 min**`). Raises LabError when it has none."""
    found = re.search(r"\*\*(\d+) min\*\*", notebook.cells[0].source)
    if not found:
        raise LabError("The first cell of a lesson tells its minutes as **NN min**.")
    return int(found[1])


def _finding(notebook: Notebook) -> str:
    """The title of the main chart, as alternative text."""
    for cell in code_cells(notebook):
        if "main-chart" in tags(cell):
            for output in cell.outputs:
                alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
                if alt:
                    return " ".join(str(alt).split()).replace('"', "'").replace("|", "/")
    return "chart"
