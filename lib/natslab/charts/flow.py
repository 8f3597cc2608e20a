"""The picture at the top of each lesson: who sends what to whom. `natslab index` draws them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from natslab.charts.style import BLUE, GREY, INK, RED, STYLE

WIDTH, HEIGHT = 7.2, 2.5


def draw(columns: Sequence[Sequence[str]], arrows: Sequence[Sequence[str]] = ()) -> bytes:
    """Boxes in columns from left to right and arrows between them, as PNG of 864 x 300 pixels.

    A name in parentheses is something in the server (a subject, a stream); one that starts with
    `x ` is dead. Arrows are (from, to, label); one whose label starts with `x ` does not arrive.
    """
    with mpl.rc_context({**STYLE, "figure.figsize": (WIDTH, HEIGHT)}):
        figure = Figure()
        axes = figure.add_subplot()
        axes.axis("off")
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(0, HEIGHT)
        boxes = {name: _box(axes, name, at) for name, at in _spots(columns).items()}
        figure.draw_without_rendering()  # now the boxes know how large they are
        for start, end, label in arrows:
            _arrow(axes, boxes[start], boxes[end], label)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    return png.getvalue()


def _spots(columns: Sequence[Sequence[str]]) -> dict[str, tuple[float, float]]:
    n = len(columns)
    return {
        name: (0.9 + (WIDTH - 1.8) * x / (n - 1), HEIGHT * (1 - (y + 0.5) / len(column)))
        for x, column in enumerate(columns)
        for y, name in enumerate(column)
    }


def _box(axes: Axes, name: str, at: tuple[float, float]) -> Any:
    dead, inside = name.startswith("x "), name.startswith("(")
    return axes.text(
        *at,
        name.removeprefix("x ").strip("()"),
        ha="center",
        va="center",
        color=RED if dead else "white" if inside else INK,
        fontweight="bold" if inside else "normal",
        fontsize=11,
        zorder=3,
        bbox={
            "boxstyle": "round,pad=0.55",
            "fc": BLUE if inside else "white",
            "ec": RED if dead else BLUE,
            "lw": 1.6,
            "ls": "--" if dead else "-",
        },
    )


def _arrow(axes: Axes, start: Any, end: Any, label: str) -> None:
    fails = label.startswith("x ")
    axes.annotate(
        "",
        end.get_position(),
        start.get_position(),
        arrowprops={
            "arrowstyle": "-|>",
            "color": RED if fails else GREY,
            "lw": 1.6,
            "ls": "--" if fails else "-",
            "patchA": start.get_bbox_patch(),  # the line begins and ends at the frames
            "patchB": end.get_bbox_patch(),
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )
    (x1, y1), (x2, y2) = start.get_position(), end.get_position()
    axes.text(
        (x1 + x2) / 2,
        (y1 + y2) / 2 + 0.05,
        label.removeprefix("x "),
        ha="center",
        va="bottom",
        fontsize=9,
        color=RED if fails else INK,
        zorder=4,
        bbox={"fc": "white", "ec": "none", "alpha": 0.85, "pad": 0.8},
    )
