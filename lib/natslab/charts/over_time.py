"""Charts over time: values, totals, lanes, intervals, calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes

from natslab.charts.style import (
    GREY,
    PALE,
    RED,
    canvas,
    canvases,
    label_ends,
    mark_faults,
    name_lanes,
    role,
    show,
)


def lines(
    series: Mapping[str, pd.Series[float]],
    title: str,
    y: str,
    *,
    x: str = "seconds",
    log: bool = False,
    faults: Sequence[tuple[float, str]] = (),
) -> pd.DataFrame:
    """Values over x by role: {"published": series}, where the index of a series is its x.

    `y` and `x` name the axes and their units; `log` makes both logarithmic. `faults` are
    (x, label) and are drawn as dashed vertical lines. Returns the drawn points: x, y, role.
    """
    figure, axes = canvas(title, x, y)
    ends = _plot(axes, series)
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:,g}"))
            axis.set_minor_formatter(mpl.ticker.NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    label_ends(axes, ends)
    mark_faults(axes, faults)
    show(figure, title)
    return _points(series)


def _plot(
    axes: Axes, series: Mapping[str, pd.Series[float]]
) -> list[tuple[float, float, str, str]]:
    """A line for each role; their ends, for `label_ends`."""
    ends = []
    for i, (name, values) in enumerate(series.items()):
        colour, marker, dashes = role(name, i)
        few = marker if len(values) <= 12 else None  # the marks of many points would hide the line
        axes.plot(values.index, values, color=colour, linestyle=dashes, marker=few)
        if len(values):
            ends.append((float(values.index[-1]), float(values.iloc[-1]), name, colour))
    return ends


def _points(series: Mapping[str, pd.Series[float]]) -> pd.DataFrame:
    drawn = [pd.DataFrame({"x": v.index, "y": v.to_numpy(), "role": n}) for n, v in series.items()]
    return pd.concat(drawn, ignore_index=True)


def panels(
    series: Mapping[str, Mapping[str, pd.Series[float]]],
    title: str,
    *,
    x: str = "seconds",
    spans: Sequence[tuple[float, float, str]] = (),
) -> pd.DataFrame:
    """Panels one above the other with one x: {name of y: {role: series}}, each as in `lines`.

    `spans` are (from, to, label): what is shaded in all panels, and named in the first. Returns the
    drawn points: x, y, role, panel.
    """
    figure, several = canvases(title, x, list(series))
    for axes, roles in zip(several, series.values(), strict=True):
        ends = _plot(axes, roles)
        axes.set_ylim(bottom=-0.05 * axes.get_ylim()[1])  # a line at 0 is seen above the axis
        for start, end, label in spans:
            axes.axvspan(start, end, color=PALE, alpha=0.6, linewidth=0, zorder=0)
            if axes is several[0]:
                axes.annotate(
                    label,
                    (start, 1),
                    (4, -3),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    va="top",
                    color=RED,
                )
        label_ends(axes, ends)
    figure.align_ylabels()
    show(figure, title)
    drawn = [_points(roles).assign(panel=panel) for panel, roles in series.items()]
    return pd.concat(drawn, ignore_index=True)


def totals(
    series: Mapping[str, Iterable[float]],
    title: str,
    *,
    faults: Sequence[tuple[float, str]] = (),
    unit: str = "messages so far",
) -> pd.DataFrame:
    """Counts that only grow, by role: {"published": times, "received": times}, times in seconds.

    Returns the drawn points: t, total, role.
    """
    figure, axes = canvas(title, "seconds", unit)
    drawn = []
    ends = []
    in_order = {name: sorted(times) for name, times in series.items()}
    last = max((times[-1] for times in in_order.values() if times), default=0.0)
    for i, (name, ordered) in enumerate(in_order.items()):
        colour, _, dashes = role(name, i)
        table = pd.DataFrame({"t": [0.0, *ordered], "total": range(len(ordered) + 1)})
        steps = pd.concat([table, pd.DataFrame({"t": [last], "total": [len(ordered)]})])
        axes.step(steps.t, steps.total, where="post", color=colour, linestyle=dashes)
        ends.append((last, float(len(ordered)), f"{name} {len(ordered):,}", colour))
        drawn.append(table.assign(role=name))
    axes.set_ylim(bottom=0)
    label_ends(axes, ends)
    mark_faults(axes, faults)
    show(figure, title)
    return pd.concat(drawn, ignore_index=True)


def lanes(
    table: pd.DataFrame,
    title: str,
    *,
    order: Sequence[str] | None = None,
    faults: Sequence[tuple[float, str]] = (),
    arrows: Sequence[tuple[float, str, float, str]] = (),
) -> pd.DataFrame:
    """Swim lanes: one line per `who`, one marker per event, from a `measure.Log` table.

    `arrows` are (t, who, t, who): a message on its way. Returns the rows that it drew.
    """
    who = list(order or dict.fromkeys(table.who))
    height = {name: len(who) - 1 - i for i, name in enumerate(who)}
    drawn = table[table.who.isin(who)]
    figure, axes = canvas(title, "seconds", "")
    axes.grid(visible=False)
    for name in who:
        axes.axhline(height[name], color=PALE, linewidth=1)
    for t1, from_, t2, to in arrows:
        axes.annotate(
            "",
            (t2, height[to]),
            (t1, height[from_]),
            arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1, "shrinkA": 4, "shrinkB": 4},
        )
    kinds = list(dict.fromkeys(drawn.what))
    for i, what in enumerate(kinds):
        rows = drawn[drawn.what == what]
        colour, marker, _ = role(what, i)
        axes.scatter(
            rows.t, rows.who.map(height), color=colour, marker=marker, s=42, label=what, zorder=3
        )
    name_lanes(axes, who, faults)
    # Markers repeat all over a lane, so their names stand once, in a row above it.
    if kinds:
        figure.legend(
            loc="outside lower center", ncols=len(kinds), frameon=False, handletextpad=0.2
        )
    show(figure, title)
    return drawn


def intervals(
    table: pd.DataFrame,
    title: str,
    *,
    faults: Sequence[tuple[float, str]] = (),
) -> pd.DataFrame:
    """Bars from `start` to `end` in lanes `who`, coloured by `what`: who was busy when.

    `table` has the columns who, what, start, end and, if you like, label. Returns it.
    """
    who = list(dict.fromkeys(table.who))
    figure, axes = canvas(title, "seconds", "")
    axes.grid(visible=False)
    for i, (what, rows) in enumerate(table.groupby("what", sort=False)):
        colour, _, _ = role(str(what), i)
        axes.barh(
            [len(who) - 1 - who.index(name) for name in rows.who],
            rows.end - rows.start,
            left=rows.start,
            height=0.62,
            color=colour,
            edgecolor="white",
            linewidth=0.8,
            hatch="//" if colour == RED else None,
            label=str(what),
        )
    for row in table.itertuples():
        if getattr(row, "label", ""):
            axes.annotate(
                str(row.label),
                ((row.start + row.end) / 2, len(who) - 1 - who.index(row.who)),
                ha="center",
                va="center",
                color="white",
                fontweight="bold",
            )
    axes.set_xlim(left=min(0, table.start.min()) if len(table) else 0)
    name_lanes(axes, who, faults)
    if table.what.nunique() > 1:
        figure.legend(loc="outside lower center", ncols=table.what.nunique(), frameon=False)
    show(figure, title)
    return table


def calls(
    table: pd.DataFrame, title: str, *, faults: Sequence[tuple[float, str]] = ()
) -> pd.DataFrame:
    """One dot per call of a load maker (`measure.at_rate`): when it was due, how long it took.

    Calls that failed are crosses, labelled with their error. Returns the table.
    """
    figure, axes = canvas(title, "seconds", "milliseconds")
    for error, rows in table.groupby("error", sort=True):
        colour, marker, _ = role("failed" if error else "sent")
        size = 60 if error else 12
        axes.scatter(rows.due, rows.ms, color=colour, marker=marker, s=size, linewidths=2)
        if error:
            label = f"{len(rows)} × {error}"
            spot = (float(rows.due.max()), float(rows.ms.max()))
            axes.annotate(label, spot, (9, -4), textcoords="offset points", color=colour)
    axes.set_ylim(0, max(table.ms, default=1) * 1.25)  # room for the names of the faults
    mark_faults(axes, faults)
    show(figure, title)
    return table
