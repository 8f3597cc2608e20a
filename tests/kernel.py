"""One kernel, cell by cell: what a reader does who runs a cell again, out of order, or interrupts it."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty

import helpers
from jupyter_client.blocking.client import BlockingKernelClient
from natslab.authoring import compared
from natslab.kernels import QUIET_KERNEL, KernelManager


@dataclass
class Ran:
    """What a cell printed, the error it ended with ('LabError: ...') or '', its seconds, its traceback."""

    text: str
    error: str
    seconds: float
    shown: str = ""


class Kernel:
    """Runs cells one after the other."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client

    def run(self, source: str, interrupt_after: float | None = None) -> Ran:
        """Run a cell to its end, or until it was interrupted after so many seconds."""
        begun, text, error, shown = time.monotonic(), "", "", ""
        asked = self.client.execute(source, stop_on_error=False)
        while True:
            passed = time.monotonic() - begun
            assert passed < helpers.CELL_SECONDS, f"no end after {passed:.0f} s: {source}"
            if interrupt_after is not None and passed > interrupt_after:
                self.manager.interrupt_kernel()
                interrupt_after = None
            try:
                told = self.client.get_iopub_msg(timeout=0.05)
            except Empty:
                continue
            if told["parent_header"].get("msg_id") != asked:
                continue
            content = told["content"]
            if told["msg_type"] == "stream":
                text += content["text"]
            elif told["msg_type"] == "error":
                error = f"{content['ename']}: {content['evalue']}"
                shown = "\n".join(content["traceback"])
            elif content.get("execution_state") == "idle":
                return Ran(text, error, time.monotonic() - begun, shown)


@contextmanager
def kernel(**env: str) -> Iterator[Kernel]:
    """A kernel in the folder of the lessons; it and all it started are gone after the block."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(
        cwd=str(helpers.NOTEBOOKS),
        env=helpers.clean_environment(**env),
        extra_arguments=QUIET_KERNEL,
    )
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def masked(text: str) -> str:
    """What counts when it is compared with what is saved."""
    for pattern, replacement in compared.rules():
        text = re.sub(pattern, replacement, text)
    return text


def saved(cell: dict) -> str:
    """The text that a cell printed when it was saved, masked."""
    return masked("".join("".join(o.get("text", "")) for o in cell.outputs))


def code(cells: list, start: int = 0, end: int | None = None) -> list[tuple[int, dict]]:
    """(place, cell) of the code cells from `start` up to `end`."""
    numbered = list(enumerate(cells))[start:end]
    return [(i, cell) for i, cell in numbered if cell.cell_type == "code"]


def read(path: Path) -> list:
    """The cells of a notebook."""
    from natslab.authoring import files

    return list(files.read(path).cells)
