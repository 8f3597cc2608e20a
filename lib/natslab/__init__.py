"""The helper library of the natslab course: clusters, faults, measuring and drawing.

What you would write in your own service stays in the notebooks. Read on in `lab`.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from natslab.check import check, expect, settled, until
from natslab.errors import CheckFailed, LabError
from natslab.judge import judge
from natslab.lab import Lab
from natslab.margins import record_if_asked

if TYPE_CHECKING:
    from natslab import charts, measure
    from natslab.clusters import server

__all__ = [
    "CheckFailed",
    "Lab",
    "LabError",
    "charts",
    "check",
    "expect",
    "judge",
    "measure",
    "server",
    "settled",
    "until",
]

LATER = {
    "charts": "natslab.charts",
    "measure": "natslab.measure",
    "server": "natslab.clusters.server",
}

record_if_asked()


def __getattr__(name: str) -> ModuleType:
    # pandas and matplotlib take a second to load: only those who measure and draw wait for them.
    if name in LATER:
        return importlib.import_module(LATER[name])
    raise AttributeError(f"module 'natslab' has no attribute {name!r}")
