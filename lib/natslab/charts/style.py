"""One style for all charts: colours and marks of the roles, the canvas, the names at lines and faults."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)
INK, GREY, PALE = "#24292f", "#6e7781", "#d0d7de"

# role: (colour, marker, line style)
ROLES: dict[str, tuple[str, str, Any]] = {
    "published": (BLUE, "o", "-"),
    "sent": (BLUE, "o", "-"),
    "delivered": (GREEN, "s", "--"),
    "received": (GREEN, "s", "--"),
    "processed": (GREEN, "s", "--"),
    "done": (GREEN, "s", "--"),
    "acked": (GREEN, "P", "--"),
    "stored": (SKY, "d", "-"),
    "started": (SKY, ">", "-"),
    "redelivered": (ORANGE, "^", "-."),
    "duplicate": (ORANGE, "^", "-."),
    "retried": (ORANGE, "^", "-."),
    "lost": (RED, "x", ":"),
    "dropped": (RED, "x", ":"),
    "failed": (RED, "x", ":"),
    "timed out": (RED, "x", ":"),
    "waiting": (PURPLE, "v", (0, (3, 1, 1, 1))),
}
SPARE = [
    (BLUE, "o", "-"),
    (RED, "s", "--"),
    (GREEN, "^", "-."),
    (PURPLE, "D", ":"),
    (INK, "v", "-"),
]

STYLE: dict[Any, Any] = {
    "figure.figsize": (7.2, 3.0),
    "figure.dpi": 120,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 10,
    "text.parse_math": False,  # NATS names begin with $: $SRV.PING, $JS.API
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 2,
    "lines.markersize": 6,
}


def role(name: str, position: int = 0) -> tuple[str, str, Any]:
    """(colour, marker, line style) of a role; a name without one gets the spare at `position`."""
    return ROLES.get(name, SPARE[position % len(SPARE)])


def canvas(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """An empty chart with its title and the names of its axes."""
    with mpl.rc_context(STYLE):
        figure = Figure()
        axes = figure.add_subplot()
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    return figure, axes


def canvases(title: str, x: str, ys: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Empty charts one above the other, one for each y, with one title and one x."""
    with mpl.rc_context(STYLE):
        figure = Figure()
        several = figure.subplots(len(ys), sharex=True, squeeze=False)[:, 0]
        several[0].set_title(title)
        several[-1].set_xlabel(x)
        for axes, y in zip(several, ys, strict=True):
            axes.set_ylabel(y)
    return figure, list(several)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each name at the end of its line, moved apart where two would overlap."""
    figure: Any = axes.figure
    with mpl.rc_context(STYLE):
        _as_written(figure)
        figure.draw_without_rendering()
    # Two labels are 17 px apart or more. Crowded at the top they give way downwards, and upwards
    # at the bottom, so none leaves the picture.
    spots = [axes.transData.transform((x, y))[1] for x, y, _, _ in ends]
    middle = axes.transAxes.transform((0, 0.5))[1]
    way = -1 if spots and sum(spots) / len(spots) > middle else 1
    free = {}
    edge = None
    for i in sorted(range(len(ends)), key=lambda i: (way * spots[i], i)):
        edge = spots[i] if edge is None else way * max(way * spots[i], way * edge + 17)
        free[i] = edge
    for i, (x, y, name, colour) in enumerate(ends):
        axes.annotate(
            name,
            (x, y),
            (7, (free[i] - spots[i]) * 72 / figure.dpi),
            textcoords="offset points",
            va="center",
            color=colour if colour not in (ORANGE, SKY) else INK,
            fontweight="bold",
            annotation_clip=False,
        )


def name_lanes(axes: Axes, who: Sequence[str], faults: Sequence[tuple[float, str]]) -> None:
    """The lanes from top to bottom, with room above them for the names of the faults."""
    room = 0.1 * min(len(faults), 3) * (len(who) + 1)
    axes.set_yticks(range(len(who)), who[::-1])
    axes.set_ylim(-0.6, len(who) - 0.4 + room)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    mark_faults(axes, faults)


def mark_faults(axes: Axes, faults: Sequence[tuple[float, str]]) -> None:
    """A dashed line at each (x, label) that ends at its name: it crosses no name above it."""
    points = 216 * 0.75  # the canvas, and what titles and names leave of it to the axes
    for i, (at, label) in enumerate(faults):
        below = 13 * (i % 3)
        axes.axvline(at, 0, 1 - below / points, color=RED, linestyle="--", linewidth=1.4)
        axes.annotate(
            label,
            (at, 1),
            (4, -3 - below),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            color=RED,
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.6},
        )


def _as_written(figure: Figure) -> None:
    """No text is a formula, whichever settings held when it was made."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)


def show(figure: Figure, title: str) -> None:
    """Display as PNG of a fixed size. Nothing in the file tells versions or times."""
    with mpl.rc_context(STYLE):
        _as_written(figure)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    display(Image(png.getvalue(), alt=title))  # type: ignore[no-untyped-call]
