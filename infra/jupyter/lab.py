"""JupyterLab that ends, with its kernels, when whoever started it is gone, however that was."""

import os
import signal
import sys
import threading

# jsonschema would compile a grammar of international addresses, for two seconds. Without it, it does
# not check whether a text is such an address, and nothing here asks.
sys.modules["rfc3987_syntax"] = None

from jupyterlab.labapp import main  # noqa: E402


def watch() -> None:
    """Our standard input is a pipe that up.py holds: it closes even when up.py is killed."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # JupyterLab ends its kernels, and then itself


threading.Thread(target=watch, daemon=True).start()
sys.exit(main())
