"""Run, refresh and index the lessons. The notebooks are the source; nothing is generated from code.

What is derived: the exercises of a lesson (from its solution notebook), the navigation lines, the
table in the README and its pictures. `refresh --check` fails when one of them is out of date.
"""

from __future__ import annotations

import ast
import base64
import copy
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from natslab import flows
from natslab.course import COURSE, Lesson
from natslab.errors import LabError
from natslab.paths import CACHE, NOTEBOOKS, ROOT

CELL_TIMEOUT = 120  # seconds; lessons wait with deadlines of their own, this is the backstop
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
IGNORED = "nbval-ignore-output"
# Its log goes to our terminal: a warning about its transport at every start, a stack at Ctrl-C.
QUIET_KERNEL = ["--log-level=CRITICAL"]
KERNEL_GONE = "the kernel ended before the notebook did: it was stopped, or it ran out of memory"
Notebook = Any  # nbformat.NotebookNode, a dict with attributes


def lessons() -> list[Path]:
    """The lessons that are written, in order."""
    return [path for lesson in COURSE if (path := NOTEBOOKS / lesson.file).exists()]


def solutions() -> list[Path]:
    """Their solution notebooks."""
    return [path for lesson in lessons() if (path := solution_of(lesson)).exists()]


def solution_of(path: Path) -> Path:
    """Where the solutions to the exercises of a lesson are."""
    return path.parent / "solutions" / path.name


def by_number(number: int) -> Path:
    """The notebook of a lesson. Raises LabError when it is not written (yet)."""
    found = [path for path in lessons() if path.name.startswith(f"{number:02}_")]
    if not found:
        have = ", ".join(path.name[:2] for path in lessons())
        raise LabError(f"There is no lesson {number:02}; these are written: {have}.")
    return found[0]


def read(path: Path) -> Notebook:
    """Read a notebook of format 4.5."""
    return nbformat.read(path, as_version=4)


def text_of(notebook: Notebook) -> str:
    """The file content: sorted keys, indent 1, newline at the end."""
    return str(nbformat.writes(notebook)).rstrip("\n") + "\n"


def write(path: Path, notebook: Notebook) -> bool:
    """Write if the content differs; True if it did."""
    text = text_of(notebook)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8")
    return True


def tags(cell: Any) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


# Run.


def parameters(notebook: Notebook, scale: str) -> dict[str, Any]:
    """The constants of the cell tagged `parameters` at another scale.

    A line `n_orders: int = 500  # workshop: 50_000` has the value 50_000 at the scale "workshop".
    """
    cell = next((cell for cell in notebook.cells if "parameters" in tags(cell)), None)
    found: dict[str, Any] = {}
    for line in cell.source.splitlines() if cell else []:
        match = re.match(rf"(\w+).*#.*\b{scale}:\s*([^,\s]+)", line)
        if match:
            found[match[1]] = ast.literal_eval(match[2])
    return found


@dataclass(frozen=True)
class Run:
    """The outcome of one run: seconds, and the error in one line if it failed."""

    path: Path
    seconds: float
    error: str = ""


def run(path: Path, scale: str = "", out: Path | None = None) -> Run:
    """Run a notebook through papermill; the executed copy goes to `out` (default: the cache)."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    out = out or CACHE / "executed" / f"{path.stem}{f'-{scale}' if scale else ''}.ipynb"
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    error = ""
    try:
        papermill.execute_notebook(
            str(path),
            str(out),
            parameters=parameters(read(path), scale) if scale else {},
            cwd=str(path.parent),
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=CELL_TIMEOUT,
            extra_arguments=QUIET_KERNEL,
        )
    except PapermillExecutionError as failure:
        error = f"cell {failure.exec_count}: {failure.ename}: {failure.evalue.strip()}"
    except DeadKernelError:
        raise LabError(f"{path.name}: {KERNEL_GONE}") from None
    return Run(path, time.monotonic() - start, error)


# Refresh.


def refresh(path: Path, *, pictures: bool = False) -> bool:
    """Run a notebook and save it with fresh outputs; True if the file changed.

    When the run prints what the file already shows, the file stays as it is, byte for byte:
    measurements and pictures differ on every run, and a new one says nothing new. `pictures`
    saves them all the same. Raises LabError when a cell fails or writes to stderr.
    """
    saved = read(path)
    fresh = normalised(with_exercises(path, saved))
    unchanged_source = _sources(saved) == _sources(fresh) and _in_order(saved)
    client = NotebookClient(
        fresh,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        extra_arguments=QUIET_KERNEL,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as failure:
        raise LabError(f"{path.name}: {failure.ename}: {failure.evalue}") from None
    except DeadKernelError:
        raise LabError(f"{path.name}: {KERNEL_GONE}") from None
    fresh = normalised(fresh)
    for number, cell in enumerate(_code(fresh)):
        for output in cell.outputs:
            if output.get("name") == "stderr":
                raise LabError(f"{path.name}: code cell {number} writes to stderr: {output.text}")
    if unchanged_source and not pictures and compared(saved) == compared(fresh):
        fresh = normalised(saved)
    return write(path, fresh)


def out_of_date(path: Path) -> str:
    """Why the saved notebook is not what `refresh` and `index` would write, without running it; or ""."""
    saved = read(path)
    if text_of(normalised(saved)) != path.read_text(encoding="utf-8"):
        return "its metadata is not normalised"
    if _sources(with_exercises(path, saved)) != _sources(saved):
        return "its exercises differ from the solution notebook"
    if _sources(with_navigation(path, saved)) != _sources(saved):
        return "its navigation lines are old"
    if not _in_order(saved):
        return "it was not run from top to bottom before it was saved"
    return ""


def _in_order(notebook: Notebook) -> bool:
    """True when every code cell was run, once, from top to bottom."""
    counts = [cell.execution_count for cell in _code(notebook)]
    return counts == list(range(1, len(counts) + 1))


def normalised(notebook: Notebook) -> Notebook:
    """A copy with constant metadata, so that the same run gives the same bytes."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": tags(cell)} if tags(cell) else {})
        cell.source = cell.source.rstrip()
        if cell.cell_type == "code":
            _number_outputs(cell)
    return notebook


def _number_outputs(cell: Any) -> None:
    for output in cell.outputs:
        if "execution_count" in output:
            output.execution_count = cell.execution_count


def compared(notebook: Notebook) -> list[list[Any]]:
    """What nbval compares: per code cell its text outputs, nothing for cells that are measurements."""
    kept = []
    for cell in _code(notebook):
        outputs = [] if IGNORED in tags(cell) else cell.outputs
        kept.append([_text_part(output) for output in outputs])
    return kept


def _text_part(output: Any) -> Any:
    data = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
    return [output.output_type, output.get("text", ""), data]


def _code(notebook: Notebook) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _sources(notebook: Notebook) -> list[tuple[str, str, list[str]]]:
    return [(cell.cell_type, cell.source, tags(cell)) for cell in notebook.cells]


# Exercises: written once, in the solution notebook.


def with_exercises(path: Path, notebook: Notebook) -> Notebook:
    """The lesson with the cells tagged `exercise` taken from its solution notebook.

    In a code cell there, everything from a line `# solution: name` on is the answer; the lesson
    has `name = ...  # your code here` instead.
    """
    notebook = copy.deepcopy(notebook)
    source = solution_of(path)
    if path.parent.name == "solutions" or not source.exists():
        return notebook
    at = next((i for i, cell in enumerate(notebook.cells) if "exercise" in tags(cell)), None)
    if at is None:
        raise LabError(f"{path.name} has no cell tagged `exercise` to put the exercises in.")
    old = {cell.source: cell for cell in notebook.cells if "exercise" in tags(cell)}
    rest = [cell for cell in notebook.cells if "exercise" not in tags(cell)]
    starters = [_starter(cell) for cell in read(source).cells if "exercise" in tags(cell)]
    notebook.cells = rest[:at] + [old.get(cell.source, cell) for cell in starters] + rest[at:]
    return notebook


def _starter(cell: Any) -> Any:
    cell = copy.deepcopy(cell)
    if cell.cell_type == "code":
        cell.source = re.sub(
            r"# solution: (\w+)\n.*", r"\1 = ...  # your code here", cell.source, flags=re.DOTALL
        )
        cell.outputs, cell.execution_count = [], None
    return cell


# Index: navigation lines, the table in the README, its pictures.


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
        if (number := int(path.name[:2])) in flows.FLOWS:
            images["-flow"] = flows.draw(flows.FLOWS[number])
        for suffix, png in images.items():
            picture = NOTEBOOKS / "img" / f"{path.name[:2]}{suffix}.png"
            if png and not (picture.exists() and picture.read_bytes() == png):
                picture.parent.mkdir(exist_ok=True)
                picture.write_bytes(png)
                changed.append(picture)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if with_table(text) != text:
        readme.write_text(with_table(text), encoding="utf-8")
        changed.append(readme)
    return changed


def main_chart(notebook: Notebook) -> bytes:
    """The picture of the cell tagged `main-chart`, or b""."""
    for cell in _code(notebook):
        if "main-chart" in tags(cell):
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
    return b""


def with_table(readme: str) -> str:
    """The README with a new lesson table between its two `lessons` comments."""
    start, end = "<!-- lessons -->", "<!-- /lessons -->"
    head, _, rest = readme.partition(start)
    _, _, tail = rest.partition(end)
    return f"{head}{start}\n{_table()}\n{end}{tail}"


def _table() -> str:
    parts: dict[str, list[str]] = {}
    for lesson in COURSE:
        parts.setdefault(lesson.part, []).append(_row(lesson))
    head = (
        "| | lesson | question it answers | minutes | what you will see |\n|---|---|---|---|---|\n"
    )
    return "\n\n".join(f"### {part}\n\n{head}" + "\n".join(rows) for part, rows in parts.items())


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
    for cell in _code(notebook):
        if "main-chart" in tags(cell):
            for output in cell.outputs:
                alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
                if alt:
                    return " ".join(str(alt).split()).replace('"', "'").replace("|", "/")
    return "chart"
