"""Where marks stand, by hand."""

from __future__ import annotations

import math

import pytest

from bitswitch_deploy.report.html.charts import Point, Whisker, front, in_bytes, plot, whiskers


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


def test_the_front_by_hand() -> None:
    assert [each.label for each in front(POINTS)] == ["a", "c", "f", "e"]
    assert [each.label for each in front(POINTS[::-1])] == ["a", "c", "f", "e"]
    assert [each.label for each in front(POINTS[:1])] == ["a"]


def test_a_plot_by_hand() -> None:
    drawn = plot(POINTS[:3], x_title="ms", y_title="top-1 in %")
    # x: 0 to 3 in steps of 1; y: 78 to 91 in steps of 5, so 75 to 95
    assert drawn.x_ticks == ((0, "0"), (33.33, "1"), (66.67, "2"), (100, "3"))
    assert drawn.y_ticks == ((100, "75"), (75, "80"), (50, "85"), (25, "90"), (0, "95"))
    assert [(each.x, each.y, each.on_front) for each in drawn.points] == [
        (33.33, 75, True),
        (66.67, 80, False),
        (100, 25, True),
    ]
    assert (drawn.points[0].y_low, drawn.points[0].y_high) == (80, 70)
    # along to the next one of the front, then up
    assert drawn.steps == ((33.33, 75, 100, 75), (100, 75, 100, 25))
    assert "Nothing is better in both than a (80.00 at 1), c (90.00 at 3)" in drawn.text


def test_names_that_would_cover_each_other_are_written_once() -> None:
    drawn = plot([point("a", 10, 90), point("b", 10.1, 90), point("c", 2, 90)], x_title="x", y_title="y")
    assert [each.text for each in drawn.points] == ["a, b", "", "c"]


def test_whiskers_and_their_marks() -> None:
    (chart,) = whiskers("drop", [Whisker(label="a", value=0.5, low=-math.inf, high=1)], (0.0,))
    assert [text for _, text in chart.ticks] == ["0", "0.5", "1"]
    assert [(each.x, each.x_low, each.x_high) for each in chart.rows] == [(50, 0, 100)]
    assert chart.marks == (0,)
    assert whiskers("nothing", []) == ()


def test_one_value_has_an_axis() -> None:
    (chart,) = whiskers("one", [Whisker(label="a", value=0, low=0, high=0)])
    assert len(chart.ticks) == 2
    assert chart.rows[0].x == 0


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
