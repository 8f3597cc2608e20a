"""Kernels that are reached through sockets in the file system, not through TCP ports.

jupyter_client chooses five free ports, and the kernel binds them half a second later. What another
kernel takes meanwhile is missing: the first one dies, or, when it is the port for what cells print,
lives and never answers ("Kernel didn't respond in 60 seconds").
"""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path
from typing import Any

from jupyter_client import manager
from jupyter_client.connect import ConnectionFileMixin
from traitlets import default


class _OverFiles(ConnectionFileMixin):
    @default("transport")
    def _transport_default(self) -> str:
        return "ipc"

    @default("ip")
    def _ip_default(self) -> str:
        # Short: a path to a socket has at most 100 characters or so.
        return f"{tempfile.gettempdir()}/kernel-{secrets.token_hex(6)}"


class KernelManager(_OverFiles, manager.KernelManager):
    """Starts and ends one kernel."""


# Its logs go to our terminal: a stack at Ctrl-C. The second one is of the loop that it runs in.
LOOP_LOG = "__import__('logging').getLogger('tornado.general').disabled = True"
QUIET_KERNEL = ["--log-level=CRITICAL", f"--IPKernelApp.exec_lines={LOOP_LOG}"]


class AsyncKernelManager(_OverFiles, manager.AsyncKernelManager):
    """The same for asyncio."""


def quiet(folder: Path) -> dict[str, Any]:
    """For `papermill.execute_notebook`: a kernel that prints nothing of its own and writes to `folder`."""
    return {
        "kernel_name": "python3",
        "kernel_manager_class": AsyncKernelManager,
        "extra_arguments": [*QUIET_KERNEL, f"--ipython-dir={folder}"],
        "progress_bar": False,
        "language": "python",
        "cwd": str(folder),
    }
