"""Charts of amounts: bars, a heat map, values in lanes, and latency by percentile."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping

import matplotlib as mpl
import pandas as pd

from natslab.charts.style import BLUE, STYLE, canvas, label_ends, role, show

MOST_NAMES = 12  # at the rows of a heat map, and below its columns
TICKS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def bars(
    values: Mapping[str, float] | pd.DataFrame, title: str, unit: str, *, form: str = ",.0f"
) -> pd.Series[float] | pd.DataFrame:
    """Horizontal bars with the number at the end of each. Returns the values drawn.

    Of a table each row is a group, and each column a bar in it with a colour of its own. Other bars
    differ in colour only where their name is a role.
    """
    data = values if isinstance(values, pd.DataFrame) else pd.Series(values)
    table = data if isinstance(data, pd.DataFrame) else data.to_frame()
    figure, axes = canvas(title, unit, "")
    n, rows = len(table.columns), range(len(table))
    height = 0.8 / n if n > 1 else 0.6
    for j, column in enumerate(table.columns):
        roles = [role(column, j)] * len(table) if n > 1 else [role(name) for name in table.index]
        drawn = axes.barh(
            [-i + height * ((n - 1) / 2 - j) for i in rows],  # the first row on top
            table[column],
            height,
            color=[colour for colour, _, _ in roles],
            label=column,
        )
        axes.bar_label(drawn, fmt=lambda v: format(v, form), padding=4)
    axes.set_yticks([-i for i in rows], list(table.index))
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,g}"))
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    if n > 1:
        axes.legend(frameon=False)
    show(figure, title)
    return data


def heat(table: pd.DataFrame, title: str, unit: str) -> pd.DataFrame:
    """A heat map: a row and a column of the table for each of its own, darker where there is more.

    The scale is that of the square root, so small amounts beside a large one are seen; nothing is
    white. Neighbours of one name have it once, in their middle; of more than twelve names every
    second, third … is written. Returns the table.
    """
    figure, axes = canvas(title, "", "")
    axes.grid(visible=False)
    shades = mpl.colors.LinearSegmentedColormap.from_list("amount", ["white", BLUE, "#001a2b"])
    most = max(1.0, float(table.to_numpy().max(initial=0)))
    drawn = axes.pcolormesh(
        table.to_numpy(dtype=float),
        cmap=shades,
        norm=mpl.colors.PowerNorm(0.5, 0, most),
        edgecolors="white",
        linewidth=0.5,
    )
    axes.invert_yaxis()  # the first row on top
    axes.tick_params(length=0)
    for names, ticks in ((table.index, axes.set_yticks), (table.columns, axes.set_xticks)):
        spots, start = [], 0
        for name, same in itertools.groupby(map(str, names)):
            end = start + len(list(same))
            spots.append(((start + end) / 2, name))
            start = end
        shown = spots[:: -(-len(spots) // MOST_NAMES) or 1]
        ticks([at for at, _ in shown], [name for _, name in shown])
    for spine in axes.spines.values():
        spine.set_visible(False)
    with mpl.rc_context(STYLE):
        figure.colorbar(drawn, label=unit, pad=0.01)
    show(figure, title)
    return table


def latencies(series: Mapping[str, Iterable[float]], title: str) -> pd.DataFrame:
    """Latency by percentile: {"one at a time": ms, ...}; both axes logarithmic.

    Returns the drawn points: share (of calls that are slower), ms, series. Raises ValueError when
    there is no call at all.
    """
    figure, axes = canvas(title, "share of the calls (p99: 99 of 100 are faster)", "milliseconds")
    drawn = []
    ends = []
    for i, (name, values) in enumerate(series.items()):
        ms = pd.Series(list(values), dtype=float).sort_values(ignore_index=True)
        share = 1 - (pd.Series(range(len(ms))) + 0.5) / len(ms)
        colour, _, dashes = role(name, i)
        axes.plot(share, ms, color=colour, linestyle=dashes)
        if len(ms):
            ends.append((float(share.iloc[-1]), float(ms.iloc[-1]), name, colour))
        drawn.append(pd.DataFrame({"share": share, "ms": ms, "series": name}))
    if not ends:
        raise ValueError("there is no call whose latency could be drawn")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xticks([1 - q for q in TICKS.values()], list(TICKS))
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    label_ends(axes, ends)
    show(figure, title)
    return pd.concat(drawn, ignore_index=True)


def spread(values: Mapping[str, Iterable[float]], title: str, unit: str) -> pd.DataFrame:
    """One dot per value in lanes, on one logarithmic axis, with the median of each lane in words.

    `values` are greater than 0, those that are not are left out. Returns the drawn dots: lane, value.
    """
    lanes = {name: [float(value) for value in each if value > 0] for name, each in values.items()}
    figure, axes = canvas(title, unit, "")
    for place, dots in enumerate(lanes.values()):
        if not dots:
            continue
        # A little up and down, by turns: dots of one value would hide one another.
        heights = [place + 0.09 * (j % 5 - 2) for j in range(len(dots))]
        axes.scatter(dots, heights, color=BLUE, s=18, alpha=0.6, linewidths=0)
        half = statistics.median(dots)
        axes.annotate(
            f"median {half:,.0f}" if half >= 10 else f"median {half:.1f}",
            (1, place),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(lanes)), list(lanes))
    axes.set_ylim(len(lanes) - 0.5, -0.5)  # the first lane on top
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:,g}"))
    axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="y", length=0)
    show(figure, title)
    drawn = [(name, value) for name, dots in lanes.items() for value in dots]
    return pd.DataFrame(drawn, columns=["lane", "value"])
