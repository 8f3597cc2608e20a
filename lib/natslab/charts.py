"""Every chart of the course, in one style.

Each function takes data (never a client), shows a picture of 864 x 360 pixels on white, and
returns the table that it drew, so a cell can check the numbers behind the picture. The title
states the finding. A role (published, lost, ...) has the same colour *and* the same marker or
line style everywhere; the colours are Okabe and Ito's, which people with colour blindness can
tell apart (https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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

TICKS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}

STYLE: dict[Any, Any] = {
    "figure.figsize": (7.2, 3.0),
    "figure.dpi": 120,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 10,
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


# Charts over time.


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
    figure, axes = _canvas(title, x, y)
    ends = []
    for i, (name, values) in enumerate(series.items()):
        colour, marker, dashes = role(name, i)
        few = marker if len(values) <= 12 else None  # the marks of many points would hide the line
        axes.plot(values.index, values, color=colour, linestyle=dashes, marker=few)
        if len(values):
            ends.append((float(values.index[-1]), float(values.iloc[-1]), name, colour))
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:,g}"))
            axis.set_minor_formatter(mpl.ticker.NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    _label_ends(axes, ends)
    _mark_faults(axes, faults)
    _show(figure, title)
    drawn = [pd.DataFrame({"x": v.index, "y": v.to_numpy(), "role": n}) for n, v in series.items()]
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
    figure, axes = _canvas(title, "seconds", unit)
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
    _label_ends(axes, ends)
    _mark_faults(axes, faults)
    _show(figure, title)
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
    figure, axes = _canvas(title, "seconds", "")
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
    _name_lanes(axes, who, faults)
    # Markers repeat all over a lane, so their names stand once, in a row above it.
    if kinds:
        figure.legend(
            loc="outside lower center", ncols=len(kinds), frameon=False, handletextpad=0.2
        )
    _show(figure, title)
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
    figure, axes = _canvas(title, "seconds", "")
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
    _name_lanes(axes, who, faults)
    if table.what.nunique() > 1:
        figure.legend(loc="outside lower center", ncols=table.what.nunique(), frameon=False)
    _show(figure, title)
    return table


def calls(
    table: pd.DataFrame, title: str, *, faults: Sequence[tuple[float, str]] = ()
) -> pd.DataFrame:
    """One dot per call of a load maker (`measure.at_rate`): when it was due, how long it took.

    Calls that failed are crosses, labelled with their error. Returns the table.
    """
    figure, axes = _canvas(title, "seconds", "milliseconds")
    for error, rows in table.groupby("error", sort=True):
        colour, marker, _ = role("failed" if error else "sent")
        size = 60 if error else 12
        axes.scatter(rows.due, rows.ms, color=colour, marker=marker, s=size, linewidths=2)
        if error:
            label = f"{len(rows)} × {error}"
            spot = (float(rows.due.max()), float(rows.ms.max()))
            axes.annotate(label, spot, (9, -4), textcoords="offset points", color=colour)
    axes.set_ylim(0, max(table.ms, default=1) * 1.25)  # room for the names of the faults
    _mark_faults(axes, faults)
    _show(figure, title)
    return table


# Charts of amounts.


def bars(
    values: Mapping[str, float] | pd.DataFrame, title: str, unit: str, *, form: str = ",.0f"
) -> pd.Series[float] | pd.DataFrame:
    """Horizontal bars with the number at the end of each. Returns the values drawn.

    Of a table each row is a group, and each column a bar in it with a colour of its own.
    """
    data = values if isinstance(values, pd.DataFrame) else pd.Series(values)
    table = data if isinstance(data, pd.DataFrame) else data.to_frame()
    figure, axes = _canvas(title, unit, "")
    n, rows = len(table.columns), range(len(table))
    height = 0.8 / n if n > 1 else 0.6
    for j, column in enumerate(table.columns):
        names = [column] * len(table) if n > 1 else table.index
        drawn = axes.barh(
            [-i + height * ((n - 1) / 2 - j) for i in rows],  # the first row on top
            table[column],
            height,
            color=[role(name, j if n > 1 else i)[0] for i, name in enumerate(names)],
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
    _show(figure, title)
    return data


def latencies(series: Mapping[str, Iterable[float]], title: str) -> pd.DataFrame:
    """Latency by percentile: {"one at a time": ms, ...}; both axes logarithmic.

    Returns the drawn points: share (of calls that are slower), ms, series. Raises ValueError when
    there is no call at all.
    """
    figure, axes = _canvas(title, "share of the calls (p99: 99 of 100 are faster)", "milliseconds")
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
    _label_ends(axes, ends)
    _show(figure, title)
    return pd.concat(drawn, ignore_index=True)


# Pictures.


def matches(table: pd.DataFrame, title: str) -> pd.DataFrame:
    """Which subscription (rows) got which subject (columns): a table of true and false. Returns it."""
    figure, axes = _canvas(title, "", "")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for y, (_, row) in enumerate(table.iterrows()):
        for x, hit in enumerate(row):
            axes.add_patch(
                mpl.patches.Rectangle(
                    (x - 0.47, y - 0.42), 0.94, 0.84, color="#d7efe6" if hit else "#f6f8fa"
                )
            )
            axes.text(
                x,
                y,
                "●" if hit else "–",
                ha="center",
                va="center",
                color=GREEN if hit else GREY,
                fontsize=13 if hit else 10,
            )
    axes.set_xlim(-0.5, len(table.columns) - 0.5)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xticks(range(len(table.columns)), table.columns, fontsize=9)
    axes.set_yticks(range(len(table)), table.index, family="DejaVu Sans Mono", fontsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    _show(figure, title)
    return table


def topology(view: Sequence[Mapping[str, Any]], title: str) -> pd.DataFrame:
    """The live cluster from `lab.view()`: nodes, who leads, which client is where. Returns the view."""
    figure, axes = _canvas(title, "", "")
    axes.axis("off")
    n = len(view)
    spot = {node["name"]: (i * 3.0, 0.0) for i, node in enumerate(view)}
    up = [node["name"] for node in view if node["up"]]
    for i, first in enumerate(up):
        for second in up[i + 1 :]:
            apart = abs(spot[first][0] - spot[second][0]) > 3.5
            axes.annotate(
                "",
                spot[second],
                spot[first],
                arrowprops={
                    "arrowstyle": "-",
                    "color": GREY,
                    "lw": 1.4,
                    "connectionstyle": "arc3,rad=-0.28" if apart else "arc3",
                },
                zorder=1,
            )
    for node in view:
        x, y = spot[node["name"]]
        colour = BLUE if node["up"] else RED
        axes.add_patch(
            mpl.patches.Circle(
                (x, y),
                0.62,
                facecolor=colour if node["up"] else "white",
                edgecolor=colour,
                linestyle="-" if node["up"] else "--",
                linewidth=2,
                zorder=2,
            )
        )
        axes.text(
            x,
            y,
            node["name"],
            ha="center",
            va="center",
            color="white" if node["up"] else RED,
            fontweight="bold",
            fontsize=13,
            zorder=3,
        )
        lines = [] if node["up"] else ["down"]
        lines += ["leads the cluster"] if node["meta_leader"] else []
        lines += [f"leads stream {name}" for name in node["leads"]]
        axes.text(x, y - 0.8, "\n".join(lines), ha="center", va="top", color=INK)
        for i, client in enumerate(node["clients"]):
            axes.annotate(
                client,
                (x, y + 0.6),
                (x + (i - (len(node["clients"]) - 1) / 2) * 1.3, 1.75),
                ha="center",
                va="bottom",
                bbox={"boxstyle": "round", "fc": "white", "ec": GREEN, "lw": 1.5},
                arrowprops={"arrowstyle": "-", "color": GREEN, "lw": 1.5},
            )
    axes.set_xlim(-2.2, 3 * (n - 1) + 2.2)
    axes.set_ylim(-1.9, 2.5)
    axes.set_aspect("equal")
    _show(figure, title)
    return pd.DataFrame(view)


# How all of them are made.


def _canvas(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    with mpl.rc_context(STYLE):
        figure = Figure()
        axes = figure.add_subplot()
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    return figure, axes


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each name at the end of its line, moved apart where two would overlap."""
    figure: Any = axes.figure
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


def _name_lanes(axes: Axes, who: Sequence[str], faults: Sequence[tuple[float, str]]) -> None:
    """The lanes from top to bottom, with room above them for the names of the faults."""
    room = 0.1 * min(len(faults), 3) * (len(who) + 1)
    axes.set_yticks(range(len(who)), who[::-1])
    axes.set_ylim(-0.6, len(who) - 0.4 + room)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _mark_faults(axes, faults)


def _mark_faults(axes: Axes, faults: Sequence[tuple[float, str]]) -> None:
    for i, (at, label) in enumerate(faults):
        axes.axvline(at, color=RED, linestyle="--", linewidth=1.4)
        axes.annotate(
            label,
            (at, 1),
            (4, -3 - 13 * (i % 3)),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            color=RED,
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.6},
        )


def _show(figure: Figure, title: str) -> None:
    """Display as PNG of a fixed size. Nothing in the file tells versions or times."""
    with mpl.rc_context(STYLE):
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    display(Image(png.getvalue(), alt=title))  # type: ignore[no-untyped-call]
