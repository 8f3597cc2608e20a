"""Run a lesson from a terminal, at its own scale or another."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbclient.exceptions import CellTimeoutError, DeadKernelError

from natslab.authoring.files import read, tags
from natslab.errors import LabError, usable
from natslab.kernels import QUIET_KERNEL, AsyncKernelManager
from natslab.parameters import at_scale, refuse_impossible, stated, typed
from natslab.paths import CACHE

CELL_TIMEOUT = 120  # seconds; lessons wait with deadlines of their own, this is the backstop
KERNEL_GONE = "the kernel ended before the notebook did: it was stopped, or it ran out of memory"
OUT_OF_TIME = "a cell was not done after {} s, the rest was not run"


def wanted(path: Path, scale: str, words: Iterable[str] = ()) -> dict[str, Any]:
    """The values of parameters to run a lesson with: those of the scale, and over them `words`.

    Words are as in `typed`: `["n_jobs=6"]`. Raises LabError for a scale or a parameter that the
    lesson does not have, and for a value below the minimum that it states.
    """
    cell = next((str(c.source) for c in read(path).cells if "parameters" in tags(c)), "")
    known = stated(cell)
    try:
        values = at_scale(known, scale) | typed(known, words)
        refuse_impossible([cell], values)
    except LabError as error:
        raise LabError(f"{path.stem}: {error}") from None
    return values


@dataclass(frozen=True)
class Run:
    """The outcome of one run: seconds, and the error in one line if it failed."""

    path: Path
    seconds: float
    error: str = ""


def run(
    path: Path,
    scale: str = "",
    out: Path | None = None,
    words: Iterable[str] = (),
) -> Run:
    """Run a notebook through papermill; the executed copy goes to `out` (default: the cache).

    `words` set parameters, and what is refused is told in a LabError, as in `wanted`. What goes
    wrong in the lesson is told in `error`: a cell, a cell without end, a kernel that died.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    values = wanted(path, scale, words)
    out = out or CACHE / "executed" / f"{path.stem}{f'-{scale}' if scale else ''}.ipynb"
    with usable(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch()
    start = time.monotonic()
    error = ""
    try:
        papermill.execute_notebook(
            str(path),
            str(out),
            parameters=values,
            cwd=str(path.parent),
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=CELL_TIMEOUT,
            extra_arguments=QUIET_KERNEL,
            kernel_manager_class=AsyncKernelManager,
        )
    except PapermillExecutionError as failure:
        error = f"cell {failure.exec_count}: {failure.ename}: {failure.evalue.strip()}"
    except CellTimeoutError:
        error = OUT_OF_TIME.format(CELL_TIMEOUT)
    except DeadKernelError:
        error = KERNEL_GONE
    return Run(path, time.monotonic() - start, error)
