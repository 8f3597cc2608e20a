"""Where things are, and what the reader's environment says.

The library is installed from the checkout, so the checkout is two folders up.
"""

from __future__ import annotations

import os
from pathlib import Path


def setting(name: str) -> str | None:
    """The environment variable `name` without blanks around it; None when it is unset or empty."""
    return os.environ.get(name, "").strip() or None


def anchor() -> None:
    """Files that the environment names are meant from the current folder; kernels start elsewhere."""
    for name in ("NATS_CREDS", "NATS_CA"):
        if named := setting(name):
            os.environ[name] = str(Path(named).expanduser().absolute())


ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
COURSE = NOTEBOOKS / "course.toml"
NATS_CONF = ROOT / "infra" / "nats" / "nats.conf"
# Everything the course writes outside the notebooks: stores, logs, executed copies.
CACHE = Path(setting("NATSLAB_CACHE") or ROOT / ".cache").expanduser().absolute()
