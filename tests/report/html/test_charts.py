"""What is drawn, read from the SVG: marks at their values, what they say, and nothing but marks."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from bitswitch_deploy.report.html.charts import (
    Chart,
    Point,
    Whisker,
    front,
    histogram,
    in_bytes,
    plot,
    share,
    whiskers,
)
from tests.report.html.drawings import Drawing, drawings, number


def point(label: str, x: float, y: float) -> Point:
    return Point(label=label, name=label, x=x, y=y, y_low=y - 1, y_high=y + 1)


# b is beaten by a, d by c; e costs most and is best; f ties with c in both, g is as dear as c and worse
POINTS = (
    point("a", 1, 80),
    point("b", 2, 79),
    point("c", 3, 90),
    point("d", 4, 90),
    point("e", 6, 91),
    point("f", 3, 90),
    point("g", 3, 85),
)


def both(chart: Chart) -> list[Drawing]:
    """The one for phones and the one for desks."""
    found = [*drawings(chart.svg, "narrow"), *drawings(chart.svg, "wide")]
    assert [each.root.get("viewBox", "").split()[2] for each in found] == ["360", "760"]
    return found


def test_the_front_by_hand() -> None:
    assert [each.label for each in front(POINTS)] == ["a", "c", "f", "e"]
    assert [each.label for each in front(POINTS[::-1])] == ["a", "c", "f", "e"]
    assert [each.label for each in front(POINTS[:1])] == ["a"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_plot_has_its_dots_at_their_values_and_its_front_through_them(index: int) -> None:
    drawing = both(plot(POINTS[:3], x_title="ms & more", y_title="top-1 in %"))[index]
    x, y = drawing.ticks("axis x"), drawing.ticks("axis y")
    assert list(x) == ["0", "1", "2", "3"]
    # 78 to 91 in steps of 5
    assert list(y) == ["75", "80", "85", "90", "95"]
    assert y["75"][1] > y["80"][1] > y["95"][1]
    best, others = drawing.dots("dot"), drawing.dots("off")
    assert list(best) == ["a: 80 (79 to 81) at 1", "c: 90 (89 to 91) at 3"]
    a, c = best.values()
    assert a == pytest.approx((x["1"][0], y["80"][1]), abs=0.02)
    assert c == pytest.approx((x["3"][0], y["90"][1]), abs=0.02)
    assert list(others) == ["b: 79 (78 to 80) at 2"]
    assert others["b: 79 (78 to 80) at 2"][0] == pytest.approx(x["2"][0], abs=0.02)
    # along to the next one of the front, then up
    (steps,) = drawing.lines("front")
    assert steps == [pytest.approx(spot, abs=0.02) for spot in (a, (c[0], a[1]), c)]
    # one percent to either side, a fifth of the distance of two ticks
    fifth = (y["75"][1] - y["80"][1]) / 5
    for spread, dot in zip(drawing.lines("spread"), (a, *others.values(), c)):
        assert spread == [pytest.approx((dot[0], dot[1] + side * fifth), abs=0.05) for side in (1, -1)]
    assert drawing.texts("titles") == ["ms & more"]


def test_a_plot_says_what_it_shows() -> None:
    chart = plot(POINTS[:3], x_title="ms", y_title="top-1 in %")
    assert chart.caption == "top-1 in %"
    for drawing in both(chart):
        assert drawing.root.get("role") == "img"
        assert "Nothing is better in both than a (80.00 at 1), c (90.00 at 3)" in drawing.root.get("aria-label", "")


def test_names_stand_where_there_is_room_and_those_that_would_cover_each_other_together() -> None:
    chart = plot([point("a", 10, 90), point("b", 10.1, 90), point("c", 2, 90)], x_title="x", y_title="y")
    for drawing in both(chart):
        assert (drawing.texts("left"), drawing.texts("right")) == (["a, b"], ["c"])
        assert len(drawing.dots() | drawing.dots("off")) == len(list(drawing.root.iter("circle"))) == 3


def test_a_front_of_one_has_no_line() -> None:
    assert both(plot([point("a", 0, 0)], x_title="x", y_title="y"))[0].lines("front") == []


@pytest.mark.parametrize("index", [0, 1])
def test_whiskers_go_from_low_to_high_around_their_values_and_a_bound_without_end_to_the_end(index: int) -> None:
    rows = [Whisker(label="a", value=0.5, low=-math.inf, high=1), Whisker(label="b", value=0.25, low=0.2, high=0.4)]
    (chart,) = whiskers("drop", rows, (0.25, 0.75))
    drawing = both(chart)[index]
    x = {float(text): spot[0] for text, spot in drawing.ticks("axis x").items()}
    assert list(x) == [0.2, 0.4, 0.6, 0.8, 1]

    def at(value: float) -> float:
        return x[0.2] + (value - 0.2) / 0.8 * (x[1] - x[0.2])

    dots = drawing.dots()
    assert list(dots) == ["a: 0.5 (-inf to 1)", "b: 0.25 (0.2 to 0.4)"]
    (x_a, y_a), (x_b, y_b) = dots.values()
    assert [x_a, x_b] == pytest.approx([at(0.5), at(0.25)], abs=0.02)
    assert y_a < y_b
    assert drawing.lines("interval") == [
        [pytest.approx((at(low), y), abs=0.02), pytest.approx((at(high), y), abs=0.02)]
        for low, high, y in ((0.2, 1, y_a), (0.2, 0.4, y_b))
    ]
    marks = drawing.lines("mark")
    assert [line[0][0] for line in marks] == pytest.approx([at(0.25), at(0.75)], abs=0.02)
    for line in marks:
        assert line[0][0] == line[1][0]
        assert min(line[0][1], line[1][1]) < y_a < y_b < max(line[0][1], line[1][1])
    assert drawing.texts("axis y") == ["a", "b"]
    assert chart.caption == "drop"


def test_no_rows_no_chart() -> None:
    assert whiskers("nothing", []) == ()


@pytest.mark.parametrize("value", [0, -3, 1e-9])
def test_one_value_has_an_axis(value: float) -> None:
    (chart,) = whiskers("one", [Whisker(label="a", value=value, low=value, high=value)])
    for drawing in both(chart):
        ((x, _),) = drawing.dots().values()
        first, *_, last = [spot[0] for spot in drawing.ticks("axis x").values()]
        assert first - 0.01 <= x <= last + 0.01


def test_a_long_label_leaves_room_and_shows_its_end() -> None:
    label = "a-network-with-quite-a-long-name jetson-agx-orin w8"
    (chart,) = whiskers("one", [Whisker(label=label, value=1, low=0, high=2)])
    narrow, wide = both(chart)
    (short,), (longer,) = narrow.texts("axis y"), wide.texts("axis y")
    assert label.endswith(short[1:])
    assert label.endswith(longer[1:])
    assert short[0] == longer[0] == "…"
    assert len(short) < len(longer) < len(label)
    assert list(narrow.dots()) == [f"{label}: 1 (0 to 2)"]


def test_a_histogram_has_bars_as_high_as_their_counts() -> None:
    (outline,) = Drawing(histogram([0, 5, 10], "three")).lines("bar")
    bars = [outline[start : start + 4] for start in range(0, 12, 4)]
    floor = outline[0][1]
    for (left, low), (left_up, high), (right_up, high_too), (right, low_too) in bars:
        assert (left, low, high) == (left_up, low_too, high_too)
        assert (right_up, low) == (right, floor)
    heights = [floor - bar[1][1] for bar in bars]
    assert heights[0] == 0
    assert heights[2] == pytest.approx(2 * heights[1], abs=0.02)
    assert heights[2] > 40
    lefts = [spot[0] for spot in outline]
    assert lefts == sorted(lefts)
    (flat,) = Drawing(histogram([0, 0], "none")).lines("bar")
    assert len({y for _, y in flat}) == 1


def test_a_share_is_a_bar_of_that_length() -> None:
    (half,), (whole,) = (list(Drawing(share(percent, "so much")).root.iter("rect")) for percent in (50, 100))
    assert number(whole, "width") == pytest.approx(2 * number(half, "width"), abs=0.02)
    assert number(whole, "width") > 150


def test_whoever_imports_the_charts_imports_others_without_a_warning() -> None:
    code = "import bitswitch_deploy.report.html.charts, importlib.util as i; assert i.find_spec('not_there') is None"
    outcome = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")


HOSTILE = "<script>alert(1)</script>\"'& {{ id }}"


def test_a_drawing_is_marks_and_text_only_the_same_every_time() -> None:
    def draw() -> Markup:
        row = Whisker(label=HOSTILE, value=1, low=0, high=2)
        candidate = Point(label=HOSTILE, name=HOSTILE, x=1, y=1, y_low=0, y_high=2)
        chart = plot([candidate], x_title=HOSTILE, y_title=HOSTILE)
        return Markup("\n").join(
            (whiskers(HOSTILE, [row])[0].svg, chart.svg, histogram([1, 2], HOSTILE), share(1, HOSTILE))
        )

    svg = draw()
    assert svg == draw()
    roots = [ElementTree.fromstring(each) for each in svg.splitlines()]
    assert {each.tag for root in roots for each in root.iter()} == {
        *("svg", "g", "path", "circle", "rect", "text", "title")
    }
    # colours, size and text size are the page's; an id would have to be unique on it
    names = {name for root in roots for each in root.iter() for name in each.attrib}
    assert names.isdisjoint({"style", "fill", "stroke", "id", "href", "onload", "xmlns"})
    assert {root.get("aria-label", "").partition(";")[0][:20] for root in roots} == {HOSTILE[:20]}
    assert all(root.get("width") is None for root in roots)
    assert not re.search(r"<script|<!--|https?:|\d{4}-\d{2}-\d{2}", svg)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((0,), (1, "bytes")),
        ((999,), (1, "bytes")),
        ((1000, 5), (1e3, "kB")),
        ((57_700,), (1e3, "kB")),
        ((5_000_000,), (1e6, "MB")),
        ((10**13,), (1e9, "GB")),
        ((), (1, "bytes")),
    ],
)
def test_bytes_in_a_unit_that_suits(sizes: tuple[int, ...], expected: tuple[float, str]) -> None:
    assert in_bytes(sizes) == expected
