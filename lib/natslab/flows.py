"""The picture at the top of each lesson: who sends what to whom. `natslab index` draws them."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from natslab.charts import BLUE, GREY, INK, RED, STYLE

WIDTH, HEIGHT = 7.2, 2.5


@dataclass(frozen=True)
class Flow:
    """Boxes in columns from left to right, and arrows between them.

    A name in parentheses is something in the server (a subject, a stream); one that starts with
    `x ` is dead. Arrows are (from, to, label); one whose label starts with `x ` does not arrive.
    """

    columns: list[list[str]]
    arrows: list[tuple[str, str, str]] = field(default_factory=list)


FLOWS = {
    0: Flow(
        [["your notebook"], ["(n1)", "(n2)", "(n3)"], ["other programs"]],
        [
            ("your notebook", "(n1)", "connected"),
            ("your notebook", "(n2)", "knows"),
            ("your notebook", "(n3)", "knows"),
            ("(n1)", "other programs", ""),
            ("(n2)", "other programs", ""),
            ("(n3)", "other programs", ""),
        ],
    ),
    1: Flow(
        [["shop"], ["(orders.eu.created)"], ["orders.>", "orders.*.created", "x too late"]],
        [
            ("shop", "(orders.eu.created)", "publish"),
            ("(orders.eu.created)", "orders.>", "copy"),
            ("(orders.eu.created)", "orders.*.created", "copy"),
            ("(orders.eu.created)", "x too late", "x "),
        ],
    ),
    2: Flow(
        [
            ["Ada's phone"],
            ["(chat.to.bob)", "(chat.room.kitchen)", "(CHAT_HISTORY)"],
            ["Bob", "Ada's laptop", "Cem, late"],
        ],
        [
            ("Ada's phone", "(chat.to.bob)", "private"),
            ("Ada's phone", "(chat.room.kitchen)", "line"),
            ("(chat.to.bob)", "Bob", "copy"),
            ("(chat.room.kitchen)", "Bob", "copy"),
            ("(chat.room.kitchen)", "Ada's laptop", "copy"),
            ("(chat.room.kitchen)", "(CHAT_HISTORY)", ""),
            ("(CHAT_HISTORY)", "Cem, late", "the past"),
        ],
    ),
    3: Flow(
        [["asker"], ["(price.get)", "(_INBOX.a7…)"], ["desk 1", "desk 2", "desk 3"]],
        [
            ("asker", "(price.get)", "request"),
            ("(price.get)", "desk 2", "one of the group"),
            ("desk 2", "(_INBOX.a7…)", "reply"),
            ("(_INBOX.a7…)", "asker", "answer"),
        ],
    ),
    4: Flow(
        [
            ["shop"],
            ["(search.shard.s0)", "(search.shard.s1)", "(search.shard.s2)"],
            ["s0 a, s0 b", "s1 a, s1 b", "x s2: no replica"],
        ],
        [
            ("shop", "(search.shard.s0)", "scatter"),
            ("shop", "(search.shard.s1)", "scatter"),
            ("shop", "(search.shard.s2)", "x 503: nobody there"),
            ("(search.shard.s0)", "s0 a, s0 b", "one of two"),
            ("(search.shard.s1)", "s1 a, s1 b", "one of two"),
            ("(search.shard.s2)", "x s2: no replica", "x "),
        ],
    ),
    5: Flow(
        [
            ["shop"],
            ["(shop.inventory.stock)", "($SRV.STATS.inventory)"],
            ["x inv-1", "inv-2", "inv-3"],
        ],
        [
            ("shop", "(shop.inventory.stock)", "request"),
            ("shop", "($SRV.STATS.inventory)", "how busy?"),
            ("(shop.inventory.stock)", "x inv-1", "x no answer"),
            ("(shop.inventory.stock)", "inv-2", "to one"),
            ("($SRV.STATS.inventory)", "inv-2", ""),
            ("($SRV.STATS.inventory)", "inv-3", "to all"),
        ],
    ),
    6: Flow(
        [
            ["shop", "billing"],
            ["(logs.shop.info)", "(logs.shop.error)", "(logs.billing.error)"],
            ["logs.txt: logs.*.*", "x second logs.txt", "alarm: logs.*.error"],
        ],
        [
            ("shop", "(logs.shop.info)", ""),
            ("shop", "(logs.shop.error)", "queue, send"),
            ("billing", "(logs.billing.error)", "queue, send"),
            ("(logs.shop.info)", "logs.txt: logs.*.*", "all"),
            ("(logs.shop.error)", "logs.txt: logs.*.*", ""),
            ("(logs.billing.error)", "logs.txt: logs.*.*", ""),
            ("(logs.shop.error)", "x second logs.txt", "x lost"),
            ("(logs.shop.error)", "alarm: logs.*.error", ""),
            ("(logs.billing.error)", "alarm: logs.*.error", "errors"),
        ],
    ),
    7: Flow(
        [["shop"], ["(pdf.jobs.normal)", "(pdf.made)"], ["worker 1", "x worker 2", "worker 3"]],
        [
            ("shop", "(pdf.jobs.normal)", "order"),
            ("(pdf.jobs.normal)", "worker 1", "one of the group"),
            ("(pdf.jobs.normal)", "x worker 2", "x its buffer dies too"),
            ("worker 3", "(pdf.made)", "PDF"),
            ("(pdf.made)", "shop", "result"),
        ],
    ),
    8: Flow(
        [
            ["api-1", "x api-2", "api-3"],
            ["(metrics.*)"],
            ["collector"],
            ["Prometheus", "totals.json"],
        ],
        [
            ("api-1", "(metrics.*)", "counts"),
            ("x api-2", "(metrics.*)", "x silent"),
            ("api-3", "(metrics.*)", "counts"),
            ("(metrics.*)", "collector", "samples"),
            ("Prometheus", "collector", "scrapes"),
            ("collector", "totals.json", "keeps"),
        ],
    ),
    9: Flow(
        [
            ["asker", "writer 1", "writer 2"],
            ["(store.get.key1)", "(SETTINGS ×3)"],
            ["x owner, a dict", "watcher"],
        ],
        [
            ("asker", "(store.get.key1)", "request"),
            ("(store.get.key1)", "x owner, a dict", "x dies with its keys"),
            ("writer 1", "(SETTINGS ×3)", "update 7 → 8"),
            ("writer 2", "(SETTINGS ×3)", "x update 7: refused"),
            ("(SETTINGS ×3)", "watcher", "revision 8"),
        ],
    ),
    10: Flow(
        [["caller"], ["(rpc.bank.charge)"], ["x server 1", "server 2: effect + key"]],
        [
            ("caller", "(rpc.bank.charge)", "key order-17"),
            ("(rpc.bank.charge)", "x server 1", "x first try"),
            ("(rpc.bank.charge)", "server 2: effect + key", "same key again"),
        ],
    ),
    11: Flow(
        [
            ["feed"],
            ["(stocks.AAPL)", "(PRICES: last)"],
            ["fast trader", "slow, newest only", "x frozen trader", "latecomer"],
        ],
        [
            ("feed", "(stocks.AAPL)", "publish"),
            ("(stocks.AAPL)", "(PRICES: last)", ""),
            ("(stocks.AAPL)", "fast trader", "each price"),
            ("(stocks.AAPL)", "slow, newest only", "each, skips"),
            ("(stocks.AAPL)", "x frozen trader", "x cut off"),
            ("(PRICES: last)", "latecomer", "last, then live"),
        ],
    ),
    12: Flow(
        [["service a1", "x service a2"], ["registrars"], ["(SERVICES ×3)"], ["clerks", "client"]],
        [
            ("service a1", "registrars", "register"),
            ("x service a2", "registrars", "x silent"),
            ("registrars", "(SERVICES ×3)", "put"),
            ("(SERVICES ×3)", "clerks", "read"),
            ("(SERVICES ×3)", "client", "watch"),
            ("client", "clerks", "lookup"),
        ],
    ),
    13: Flow(
        [
            ["asker"],
            ["(requests.api)"],
            ["dispatcher"],
            ["w1: 2 free", "w2: 0 free", "x w3: silent"],
        ],
        [
            ("asker", "(requests.api)", "request"),
            ("(requests.api)", "dispatcher", ""),
            ("dispatcher", "w1: 2 free", "most room"),
            ("w2: 0 free", "dispatcher", "slots"),
            ("dispatcher", "x w3: silent", "x "),
        ],
    ),
    15: Flow(
        [["producer"], ["(stream JOBS ×3)"], ["worker 1", "x worker 2", "worker 3"]],
        [
            ("producer", "(stream JOBS ×3)", "publish → PubAck"),
            ("(stream JOBS ×3)", "worker 1", "job → ack"),
            ("(stream JOBS ×3)", "x worker 2", "x job, no ack"),
            ("(stream JOBS ×3)", "worker 3", "the job again → ack"),
        ],
    ),
}


def draw(flow: Flow) -> bytes:
    """The picture as PNG, 864 x 300 pixels."""
    with mpl.rc_context({**STYLE, "figure.figsize": (WIDTH, HEIGHT)}):
        figure = Figure()
        axes = figure.add_subplot()
        axes.axis("off")
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(0, HEIGHT)
        boxes = {name: _box(axes, name, at) for name, at in _spots(flow).items()}
        figure.draw_without_rendering()  # now the boxes know how large they are
        for start, end, label in flow.arrows:
            _arrow(axes, boxes[start], boxes[end], label)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    return png.getvalue()


def _spots(flow: Flow) -> dict[str, tuple[float, float]]:
    n = len(flow.columns)
    return {
        name: (0.9 + (WIDTH - 1.8) * x / (n - 1), HEIGHT * (1 - (y + 0.5) / len(column)))
        for x, column in enumerate(flow.columns)
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
