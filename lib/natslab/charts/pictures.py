"""Pictures of a cluster: who got which subject, and the live topology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd

from natslab.charts.style import BLUE, GREEN, GREY, INK, RED, canvas, show


def matches(table: pd.DataFrame, title: str) -> pd.DataFrame:
    """Which subscription (rows) got which subject (columns): a table of true and false. Returns it."""
    figure, axes = canvas(title, "", "")
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
    show(figure, title)
    return table


def topology(view: Sequence[Mapping[str, Any]], title: str) -> pd.DataFrame:
    """The live cluster from `lab.view()`: nodes, who leads, which client is where. Returns the view."""
    figure, axes = canvas(title, "", "")
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
    show(figure, title)
    return pd.DataFrame(view)
