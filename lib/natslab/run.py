"""Run a lesson from a terminal, at its own scale or another."""

from __future__ import annotations

import ast
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbclient.exceptions import DeadKernelError

from natslab.authoring.files import Notebook, read, tags
from natslab.errors import LabError
from natslab.paths import CACHE

CELL_TIMEOUT = 120  # seconds; lessons wait with deadlines of their own, this is the backstop
# Its log goes to our terminal: a warning about its transport at every start, a stack at Ctrl-C.
QUIET_KERNEL = ["--log-level=CRITICAL"]
KERNEL_GONE = "the kernel ended before the notebook did: it was stopped, or it ran out of memory"


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
