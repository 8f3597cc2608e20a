"""Run a notebook and save what it printed; and tell which saved notebook is out of date."""

from __future__ import annotations

from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from natslab.authoring import load
from natslab.authoring.compared import compared, measures
from natslab.authoring.exercises import with_exercises
from natslab.authoring.files import (
    Notebook,
    code_cells,
    normalised,
    read,
    sources,
    text_of,
    write,
)
from natslab.authoring.index import with_navigation
from natslab.errors import LabError
from natslab.kernels import QUIET_KERNEL, AsyncKernelManager
from natslab.run import CELL_TIMEOUT, KERNEL_GONE, OUT_OF_TIME


def refresh(path: Path, *, pictures: bool = False, busy: bool = False) -> bool:
    """Run a notebook and save it with fresh outputs; True if the file changed.

    When the run prints what the file already shows, the file stays as it is, byte for byte:
    measurements and pictures differ on every run, and a new one says nothing new. `pictures`
    saves them all the same. What is measured is saved from a quiet machine, unless `busy`. Raises
    LabError when a cell fails or writes to stderr, and when the machine does not get quiet.
    """
    saved = read(path)
    if measures(saved) and not busy:
        load.wait_for_quiet(lambda sentence: print(sentence, flush=True))
    fresh = normalised(with_exercises(path, saved))
    unchanged_source = sources(saved) == sources(fresh) and _in_order(saved)
    client = NotebookClient(
        fresh,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        extra_arguments=QUIET_KERNEL,
        kernel_manager_class=AsyncKernelManager,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as failure:
        raise LabError(f"{path.name}: {failure.ename}: {failure.evalue}") from None
    except CellTimeoutError:
        raise LabError(f"{path.name}: {OUT_OF_TIME.format(CELL_TIMEOUT)}") from None
    except DeadKernelError:
        raise LabError(f"{path.name}: {KERNEL_GONE}") from None
    fresh = normalised(fresh)
    for number, cell in enumerate(code_cells(fresh)):
        for output in cell.outputs:
            if output.get("name") == "stderr":
                raise LabError(f"{path.name}: code cell {number} writes to stderr: {output.text}")
    if unchanged_source and not pictures and compared(saved) == compared(fresh):
        fresh = normalised(saved)
    elif measures(fresh) and not busy:
        load.refuse_busy()
    return write(path, fresh)


def out_of_date(path: Path) -> str:
    """Why the saved notebook is not what `refresh` and `index` would write, without running it; or ""."""
    saved = read(path)
    if text_of(normalised(saved)) != path.read_text(encoding="utf-8"):
        return "its metadata is not normalised"
    if sources(with_exercises(path, saved)) != sources(saved):
        return "its exercises differ from the solution notebook"
    if sources(with_navigation(path, saved)) != sources(saved):
        return "its navigation lines are old"
    if not _in_order(saved):
        return "it was not run from top to bottom before it was saved"
    return ""


def _in_order(notebook: Notebook) -> bool:
    """True when every code cell was run, once, from top to bottom."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return counts == list(range(1, len(counts) + 1))
