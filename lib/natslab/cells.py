"""The cells of a notebook: what one that failed says besides its stack, and a module made of some."""

from __future__ import annotations

import asyncio
import linecache
import symtable
import sys
from typing import Any

import nats.errors

from natslab import workers

INTERRUPTED = (
    "CancelledError: this cell was interrupted, or it waited for a task that was cancelled: run the "
    "section again from its heading"
)


class Runs:
    """Which cells have worked since the section around them was begun."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}  # source of a cell -> heading of the section
        self.ran: list[str] = []  # the sources, in their order
        self.new_lab()

    def new_lab(self) -> None:
        """No section is begun, and the cells that worked with the lab before it may fail."""
        self.heading = ""  # of the section that was begun last
        self.sets_up = True  # the cell that runs now

    def begin(self, heading: str) -> None:
        """A run of a section starts from nothing."""
        self.of = {cell: other for cell, other in self.of.items() if other != heading}
        self.heading = heading

    def end_of_cell(self, result: Any) -> None:
        """Called by IPython: a cell that has worked, and fails now, has met its own traces."""
        if result.error_before_exec is not None:
            return  # it was not run
        self.ran.append(result.info.raw_cell)
        if self.sets_up:  # it belongs to no section
            self.sets_up = False
            return
        cell, error = result.info.raw_cell, result.error_in_exec
        told = "heading" in str(error) or isinstance(error, asyncio.CancelledError)
        if error is None and self.heading:
            self.of.setdefault(cell, self.heading)
        elif error is not None and cell in self.of and not told:
            where = f'begin again at the heading "{self.of[cell]}"'
            print(f"This cell was run before, and things have changed: {where}.", file=sys.stderr)


runs = Runs()


def explain_errors() -> None:
    """Where this is a notebook, let failed cells say what to do, from the start of a lab on.

    An interrupted one does so instead of a stack. Below an error of NATS stands what became of the
    workers: one that died answers nobody. A cell that fails when it is run again names its section.
    """
    from IPython.core.getipython import get_ipython

    def show(
        shell: Any, kind: type[BaseException], error: BaseException, tb: Any, tb_offset: Any = None
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            shell._showtraceback(kind, error, [INTERRUPTED])
            return
        for trouble in workers.troubles():
            error.add_note(trouble)
        stack = shell.InteractiveTB.structured_traceback(kind, error, tb, tb_offset=tb_offset)
        shell._showtraceback(kind, error, stack)

    runs.new_lab()
    shell = get_ipython()
    if shell is not None:
        explained = (asyncio.CancelledError, nats.errors.Error)
        shell.set_custom_exc(explained, show)  # type: ignore[no-untyped-call]
        if runs.end_of_cell not in shell.events.callbacks["post_run_cell"]:
            shell.events.register("post_run_cell", runs.end_of_cell)


def module(name: str) -> str:
    """The cells run so far that begin with `# <name>`, as one text; '' when there are none.

    Of a cell that was changed and run again the newest counts: it defines a name of the older one,
    and takes its place.
    """
    newest: list[tuple[set[str], str]] = []
    for cell in _texts():
        if cell.split("\n", 1)[0].strip() == f"# {name}" and (names := defined(cell)):
            shared = [bool(names & others) for others, _ in newest]
            at = shared.index(True) if True in shared else len(newest)
            rest = [old for old, gone in zip(newest, shared, strict=True) if not gone]
            newest = [*rest[:at], (names, cell), *rest[at:]]
    return "\n\n".join(f"{cell.rstrip()}\n" for _, cell in newest)


def _texts() -> list[str]:
    """Every cell that was run, also one that failed, and again each that was run with a lab.

    Python keeps cells for its tracebacks, each text once, where it was first run.
    """
    kept = [entry for entry in linecache.cache.values() if len(entry) == 4]
    cells = [lines for _, changed, lines, _ in kept if changed is None]  # files have a time
    return ["".join(lines) for lines in cells] + runs.ran


def defined(cell: str) -> set[str]:
    """The names that a cell defines or imports; none where Python cannot read it."""
    try:
        symbols = symtable.symtable(cell, "cell", "exec").get_symbols()
    except SyntaxError:
        return set()
    return {each.get_name() for each in symbols if each.is_assigned() or each.is_imported()}
