"""Every chart: one picture of one size, steady to the byte, and the data that it drew."""

import io
import struct
from collections.abc import Callable

import matplotlib.image
import pandas as pd
import pytest
from IPython.display import Image
from matplotlib import colors
from matplotlib.figure import Figure
from matplotlib.text import Text
from natslab import charts, measure
from natslab.authoring.course import course
from natslab.charts import amounts, flow, style

EVENTS = pd.DataFrame(
    [
        (0.0, "alice", "published", 1),
        (0.1, "bob", "received", 1),
        (0.5, "alice", "published", 2),
        (0.9, "bob", "something else", 2),
    ],
    columns=["t", "who", "what", "key"],
)
BUSY = pd.DataFrame(
    [("w1", "done", 0.0, 1.0, "job 1"), ("w2", "failed", 0.5, 0.7, ""), ("w1", "done", 1.0, 2, "")],
    columns=["who", "what", "start", "end", "label"],
)
CALLS = pd.DataFrame(
    {"due": [0, 0.1, 0.2], "sent": [0, 0.1, 0.2], "done": [0.01, 0.4, 0.3], "ms": [10, 300, 100.0]}
).assign(error=["", "TimeoutError", ""])
VIEW = [
    {"name": "n1", "up": True, "clients": ["me", "you"], "leads": ["S"], "meta_leader": True},
    {"name": "n2", "up": True, "clients": [], "leads": [], "meta_leader": False},
    {"name": "n3", "up": False, "clients": [], "leads": [], "meta_leader": False},
]
HEARD = pd.DataFrame([[True, False], [True, True]], index=["a.*", "a.>"], columns=["a.b", "a.b.c"])
FAULTS = [(0.3, "n1 killed"), (0.6, "n1 back")]
TIMES = {"published": [0.1, 0.2, 0.9], "received": [0.2], "lost": []}
SHARES = pd.DataFrame([[0, 9, 1], [400, 0, 2]], ["c-1", "c-7"], ["Mon", "Tue", "Wed"])
GROUPS = pd.DataFrame({"group": [25, 24], "dispatcher": [31, 5.0]}, ["w1", "slow"])

CHARTS: dict[str, Callable[[], object]] = {
    "lines": lambda: charts.lines(
        {name: measure.rate(times) for name, times in TIMES.items()},
        "Title",
        "a second",
        faults=FAULTS,
    ),
    "lines (logarithmic)": lambda: charts.lines(
        {"small": pd.Series([1.0, 9.0], [0.1, 100]), "none": pd.Series(dtype=float)},
        "Title",
        "milliseconds",
        x="kilobytes",
        log=True,
    ),
    "panels": lambda: charts.panels(
        {
            "payments": {"acked": pd.Series([0.0, 40, 90]), "stored": pd.Series([0.0, 0, 90])},
            "seconds": {"lag": pd.Series([0.0, 0, 0]), "none": pd.Series(dtype=float)},
        },
        "Title",
        spans=[(0.5, 1.5, "link cut")],
    ),
    "totals": lambda: charts.totals(TIMES, "Title", faults=FAULTS),
    "lanes": lambda: charts.lanes(
        EVENTS, "Title", faults=FAULTS, arrows=[(0.0, "alice", 0.1, "bob")]
    ),
    "intervals": lambda: charts.intervals(BUSY, "Title", faults=FAULTS),
    "calls": lambda: charts.calls(CALLS, "Title", faults=FAULTS),
    "bars": lambda: charts.bars({"one": 1000.4, "many": 123456}, "Title", "per second"),
    "bars (in groups)": lambda: charts.bars(GROUPS, "Title", "%"),
    "heat": lambda: charts.heat(SHARES, "Title", "events"),
    "latencies": lambda: charts.latencies({"one": [1, 2, 3], "many": range(1, 2000)}, "Title"),
    "spread": lambda: charts.spread(
        {"quick": [1, 2, 0], "none": [], "slow": [3000.0]}, "Title", "ms"
    ),
    "matches": lambda: charts.matches(HEARD, "Title"),
    "topology": lambda: charts.topology(VIEW, "Title"),
}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Image]:
    """What a cell would have displayed."""
    images: list[Image] = []
    monkeypatch.setattr(style, "display", images.append)
    return images


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


def test_none_is_forgotten_here() -> None:
    drawers = {name for name in charts.__all__ if name.islower()}
    assert drawers == {name.split(" ")[0] for name in CHARTS}


@pytest.mark.parametrize("name", CHARTS)
def test_one_picture_of_one_size_and_steady(name: str, shown: list[Image]) -> None:
    first, second = CHARTS[name](), CHARTS[name]()
    assert len(shown) == 2, "one per call"
    png = shown[0].data
    assert size_of(png) == (864, 360)
    assert png == shown[1].data, "identical data gives identical bytes"
    assert b"Software" not in png and b"tIME" not in png
    assert shown[0].alt == "Title"
    pixels = matplotlib.image.imread(io.BytesIO(png))
    for corner in (pixels[0, 0], pixels[-1, -1]):
        assert (corner[:3] == 1).all(), "white"
    assert pixels.shape[2] == 3 or (pixels[..., 3] == 1).all(), "opaque"
    assert pixels.std() > 0.02, "something is drawn"
    assert len(png) < 60_000
    assert type(first) is type(second)


def test_the_data_that_was_drawn_is_returned(shown: list[Image]) -> None:
    lines = CHARTS["lines"]()
    assert list(lines.columns) == ["x", "y", "role"]
    assert {*lines.role} == {"published", "received"}, "lost has no points"
    panels = CHARTS["panels"]()
    assert list(panels.columns) == ["x", "y", "role", "panel"]
    tops = panels.groupby(["panel", "role"]).y.max().to_dict()
    assert tops == {("payments", "acked"): 90, ("payments", "stored"): 90, ("seconds", "lag"): 0}
    totals = CHARTS["totals"]()
    assert totals.groupby("role").total.max().to_dict() == {
        "published": 3,
        "received": 1,
        "lost": 0,
    }
    assert CHARTS["lanes"]().equals(EVENTS)
    assert CHARTS["intervals"]().equals(BUSY)
    assert CHARTS["calls"]().equals(CALLS)
    assert CHARTS["bars"]().to_dict() == {"one": 1000.4, "many": 123456}
    assert CHARTS["bars (in groups)"]().equals(GROUPS)
    assert CHARTS["heat"]().equals(SHARES)
    latencies = CHARTS["latencies"]()
    assert latencies.series.value_counts().to_dict() == {"one": 3, "many": 1999}
    assert CHARTS["matches"]().equals(HEARD)
    assert CHARTS["topology"]().name.tolist() == ["n1", "n2", "n3"]


def test_lanes_in_a_given_order_leave_the_others_out(shown: list[Image]) -> None:
    assert charts.lanes(EVENTS, "Title", order=["bob"]).who.tolist() == ["bob", "bob"]


def test_a_heat_map_names_at_most_twelve_rows_and_columns(
    shown: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: figures.append(self) or savefig(self, *a, **k)
    )
    charts.heat(pd.DataFrame([range(28)] * 12), "Title", "events")
    axes = figures[0].axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [str(i) for i in range(12)]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [str(i) for i in range(0, 28, 3)]
    top, first = axes.get_ylim()[1], axes.get_yticks()[0]
    assert top < first, "the first row is on top"
    charts.heat(pd.DataFrame([[1, 2, 3]], columns=["Mon", "Mon", "Tue"]), "Title", "events")
    named = figures[1].axes[0]
    assert list(named.get_xticks()) == [1.0, 2.5], "in the middle of neighbours of one name"


def test_series_that_can_be_read_only_once(shown: list[Image]) -> None:
    totals = charts.totals({"published": (t / 10 for t in range(5))}, "Title")
    assert totals.total.max() == 5
    latencies = charts.latencies({"one": (t / 10 for t in range(1, 5))}, "Title")
    assert len(latencies) == 4


@pytest.mark.filterwarnings("error")  # a warning would be red text in a lesson
@pytest.mark.parametrize(
    "draw",
    [
        lambda: charts.lines({"published": measure.rate([])}, "Title", "a second"),
        lambda: charts.totals({"published": []}, "Title"),
        lambda: charts.lanes(EVENTS[:0], "Title"),
        lambda: charts.intervals(BUSY[:0], "Title"),
        lambda: charts.calls(CALLS[:0], "Title"),
        lambda: charts.bars({"none": 0}, "Title", "per second"),
        lambda: charts.heat(SHARES[:0], "Title", "events"),
        lambda: charts.heat(SHARES * 0, "Title", "events"),
    ],
    ids=["lines", "totals", "lanes", "intervals", "calls", "bars", "heat", "heat of zeros"],
)
def test_nothing_to_draw_is_an_empty_chart(draw: Callable[[], object], shown: list[Image]) -> None:
    draw()
    assert [size_of(image.data) for image in shown] == [(864, 360)]


def test_a_logarithm_of_nothing(shown: list[Image]) -> None:
    with pytest.raises(ValueError, match="there is no call"):
        charts.latencies({"one": []}, "Title")
    both = charts.latencies({"one": [], "two": [1.0]}, "Title")
    assert both.series.tolist() == ["two"]


def test_a_role_looks_the_same_everywhere() -> None:
    assert style.role("published", 0) == style.role("published", 3)
    spares = [style.role("new", position) for position in range(5)]
    assert len(set(spares)) == 5
    for name, (colour, marker, line) in style.ROLES.items():
        for other in style.ROLES.values():
            if colour == other[0]:
                assert (marker, line) == other[1:] or marker != other[1], name


# Names of NATS begin with $, which is no formula.

DOLLARS = "$SRV.PING answers sooner than $JS.API.INFO"
WORDS = pd.Series([1.0, 2], [0, 1])
TWO = {DOLLARS: WORDS, "$KV.A_$B": WORDS + 1}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "draw",
    [
        lambda: charts.lines(TWO, DOLLARS, "$KV.A_$B", x="$KV.A_$B", faults=[(0, "$KV.A_$B")]),
        lambda: charts.totals(TWO, DOLLARS, unit="$KV.A_$B"),
        lambda: charts.lanes(EVENTS.assign(who="$KV.A_$B", what="$A_$B"), DOLLARS),
        lambda: charts.intervals(BUSY.assign(who="$KV.A_$B", label="$A_$B"), DOLLARS),
        lambda: charts.calls(CALLS.assign(error="$KV.A_$B"), DOLLARS, faults=[(0, "$A_$B")]),
        lambda: charts.bars({DOLLARS: 1, "$KV.A_$B": 2}, DOLLARS, "$A_$B"),
        lambda: charts.bars(pd.DataFrame({"$A_$B": [1], "$C_$D": [2]}, ["$E_$F"]), DOLLARS, "a"),
        lambda: charts.heat(SHARES.set_axis(["$A_$B", "$C_$D"]), DOLLARS, "$E_$F"),
        lambda: charts.latencies({"$KV.A_$B": [1, 2], DOLLARS: [3, 4]}, DOLLARS),
        lambda: charts.matches(HEARD.set_axis(["$A_$B", "$KV.>"]), DOLLARS),
        lambda: charts.topology([{**VIEW[0], "leads": ["$KV.A_$B", "$A"]}], DOLLARS),
    ],
    ids=["lines", "totals", "lanes", "intervals", "calls", "bars", "groups", "heat"]
    + ["latencies", "matches", "topology"],
)
def test_dollars_are_drawn_as_written(
    draw: Callable[[], object], shown: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: figures.append(self) or savefig(self, *a, **k)
    )
    draw()
    texts = figures[0].findobj(Text)
    assert any(text.get_text() == DOLLARS for text in texts), "the title"
    assert not any(text.get_parse_math() for text in texts)
    (image,) = shown
    assert size_of(image.data) == (864, 360)


def test_dollars_in_the_flow_picture() -> None:
    with_dollars = flow.draw([["client"], ["($KV.A_$B)"]], [["client", "($KV.A_$B)", "$A_$B"]])
    assert size_of(with_dollars) == (864, 300)


# A colour means something.


def colours_of(figure: Figure) -> list[list[str]]:
    return [
        [colors.to_hex(bar.get_facecolor()).upper() for bar in c] for c in figure.axes[0].containers
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"one": 1, "two": 2, "three": 3}, [[style.BLUE] * 3]),
        ({"one": 1, "lost": 2, "received": 3}, [[style.BLUE, style.RED, style.GREEN]]),
        (GROUPS, [[style.BLUE] * 2, [style.RED] * 2]),
    ],
    ids=["names", "roles", "groups"],
)
def test_bars_of_one_kind_have_one_colour(
    values: object, expected: list, shown: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(amounts, "show", lambda figure, title: figures.append(figure))
    charts.bars(values, "Title", "a second")
    assert colours_of(figures[0]) == expected


@pytest.mark.parametrize("number", [row.number for row in course() if row.flow])
def test_flow_pictures(number: int) -> None:
    picture = course()[number].flow
    png = flow.draw(**picture)
    assert size_of(png) == (864, 300)
    assert png == flow.draw(**picture)
