"""The helper library of the natslab course: clusters, faults, measuring and drawing.

What you would write in your own service stays in the notebooks. Read on in `lab`.
"""

from natslab import charts, measure
from natslab.check import check, exercise, expect, until
from natslab.errors import CheckFailed, LabError
from natslab.lab import Lab

__all__ = [
    "CheckFailed",
    "Lab",
    "LabError",
    "charts",
    "check",
    "exercise",
    "expect",
    "measure",
    "until",
]
