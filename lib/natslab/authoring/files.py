"""The notebooks as files: which there are, how they are read and written, what is in them."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import nbformat

from natslab.authoring.course import course
from natslab.errors import LabError
from natslab.paths import NOTEBOOKS

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
IGNORED = "nbval-ignore-output"
Notebook = Any  # nbformat.NotebookNode, a dict with attributes


def lessons() -> list[Path]:
    """The lessons that are written, in order."""
    return [path for lesson in course() if (path := NOTEBOOKS / lesson.file).exists()]


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
    return replace(path, text_of(notebook).encode())


def replace(path: Path, content: bytes) -> bool:
    """Give a file this content in one step: an interrupt leaves the old one. True if it differed.

    Raises LabError when the file cannot be written.
    """
    path = path.resolve()  # a link stays a link
    if path.exists() and path.read_bytes() == content:
        return False
    try:
        path.parent.mkdir(exist_ok=True)
        _replace(path, content)
    except OSError as error:
        why = f"{path} cannot be written ({error.strerror})"
        raise LabError(f"{why}: mend its rights, or make room on its disk.") from None
    return True


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        if path.exists():
            shutil.copymode(path, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def tags(cell: Any) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


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


def code_cells(notebook: Notebook) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def sources(notebook: Notebook) -> list[tuple[str, str, list[str]]]:
    return [(cell.cell_type, cell.source, tags(cell)) for cell in notebook.cells]
