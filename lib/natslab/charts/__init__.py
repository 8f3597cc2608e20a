"""Every chart of the course, in one style.

Each function takes data (never a client), shows a picture of 864 x 360 pixels on white, and
returns the table that it drew, so a cell can check the numbers behind the picture. The title
states the finding. A role (published, lost, ...) has the same colour *and* the same marker or
line style everywhere; the colours are Okabe and Ito's, which people with colour blindness can
tell apart (https://jfly.uni-koeln.de/color/).
"""

from natslab.charts.amounts import bars, heat, latencies, spread
from natslab.charts.over_time import calls, intervals, lanes, lines, panels, totals
from natslab.charts.pictures import matches, topology
from natslab.charts.style import SPARE, STYLE

__all__ = [
    "SPARE",
    "STYLE",
    "bars",
    "calls",
    "heat",
    "intervals",
    "lanes",
    "latencies",
    "lines",
    "matches",
    "panels",
    "spread",
    "topology",
    "totals",
]
