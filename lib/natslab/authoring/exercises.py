"""Exercises are written once, in the solution notebook; the lesson gets their starters."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from natslab.authoring.files import Notebook, read, solution_of, tags
from natslab.errors import LabError


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
