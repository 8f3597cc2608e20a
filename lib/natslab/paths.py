"""Where things are. The library is installed from the checkout, so the checkout is two folders up."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
COURSE = NOTEBOOKS / "course.toml"
NATS_CONF = ROOT / "infra" / "nats" / "nats.conf"
# Everything the course writes outside the notebooks: stores, logs, executed copies.
CACHE = Path(os.environ.get("NATSLAB_CACHE", ROOT / ".cache"))
