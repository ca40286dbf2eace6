"""What the charts of the pages show: values with their intervals, candidates and their front, counts, shares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from markupsafe import Markup

from bitswitch_deploy.report.html.drawing import bar, for_each_screen, lines, outline, shortened, svg, xy

# Names nearer to each other than this share one: parts of the axes.
_NEAR_X, _NEAR_Y = 0.12, 0.06
_STEPS = 4  # of an axis, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart, ready for the page: the SVG for each screen, and the line above it."""

    kind: ClassVar[str] = "chart"
    svg: Markup
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """A value with its interval; a bound that is not finite reaches to the end of the chart."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One candidate: less of x is better, more of y. name: beside it in the plot, empty where it needs none."""

    label: str
    x: float
    y: float
    y_low: float
    y_high: float
    name: str = ""


def whiskers(text: str, rows: Sequence[Whisker], marks: Sequence[float] = ()) -> tuple[Chart, ...]:
    """One line for each of `rows`, all on one axis; no chart where there are none.

    text: what it shows. marks: values that the others are compared with.
    """
    if not rows:
        return ()
    ticks = _ticks([*(each for row in rows for each in (row.value, row.low, row.high)), *marks])
    places = range(len(rows))[::-1]
    top, bottom = len(rows) - 0.5, -0.5
    intervals = [((max(row.low, ticks[0]), y), (min(row.high, ticks[-1]), y)) for row, y in zip(rows, places)]
    dots = [
        {"value": (row.value, y), "tooltip": f"{row.label}: {row.value:.4g} ({row.low:.4g} to {row.high:.4g})"}
        for row, y in zip(rows, places)
    ]

    def draw(screen: str) -> Any:
        labels = [{"value": y, "label": shortened(row.label, screen)} for row, y in zip(rows, places)]
        chart = xy(
            screen,
            height=20 * len(rows) + 34,
            x_labels=ticks,
            range=(bottom, top),
            y_labels=labels,
            show_y_guides=False,
        )
        chart.add("mark", lines([((mark, bottom), (mark, top)) for mark in marks]), show_dots=False)
        chart.add("interval", lines(intervals), show_dots=False)
        chart.add("dot", dots, stroke=False)
        return chart

    return (Chart(svg=for_each_screen(draw, f"{text}; the numbers are in the table"), caption=text),)


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other one is at least as good as in both and better in one, in the order of x.

    It is a front of measured values: what lies a little below it may be no worse, which the intervals show.
    """
    kept = [each for each in points if not any(_beats(other, each) for other in points)]
    return tuple(sorted(kept, key=lambda each: (each.x, each.label)))


def _beats(a: Point, b: Point) -> bool:
    return a.x <= b.x and a.y >= b.y and (a.x, a.y) != (b.x, b.y)


def plot(points: Sequence[Point], *, x_title: str, y_title: str) -> Chart:
    """The chart of `points`, at least one. x starts at 0, so that lengths can be compared; y does not."""
    best = front(points)
    x_ticks = _ticks([0.0, *(each.x for each in points)])
    y_ticks = _ticks([each for point in points for each in (point.y, point.y_low, point.y_high)])
    corners = [(each.x, each.y) for each in best]
    steps = [corner for a, b in pairwise(corners) for corner in (a, (b[0], a[1]))] + corners[-1:]
    intervals = [((each.x, each.y_low), (each.x, each.y_high)) for each in points]
    # a name stands on the side of its dot where there is room
    middle, names = x_ticks[-1] / 2, _shared_names(points, x_ticks[-1], y_ticks[-1] - y_ticks[0])

    def draw(screen: str) -> Any:
        chart = xy(screen, height=300, x_labels=x_ticks, y_labels=y_ticks, x_title=x_title, print_labels=True)
        chart.add("front", steps, show_dots=False)
        chart.add("spread", lines(intervals), show_dots=False)
        chart.add("dot", [_dot(each) for each in points if each in best], stroke=False)
        chart.add("off", [_dot(each) for each in points if each not in best], stroke=False)
        chart.add("left", [_name(each, name) for each, name in names if each.x > middle], stroke=False, dots_size=0)
        chart.add("right", [_name(each, name) for each, name in names if each.x <= middle], stroke=False, dots_size=0)
        return chart

    found = ", ".join(f"{each.label} ({each.y:.2f} at {each.x:.4g})" for each in best)
    text = f"{y_title} against {x_title}. Nothing is better in both than {found}; the numbers are in the table"
    return Chart(svg=for_each_screen(draw, text), caption=y_title)


def _dot(point: Point) -> dict[str, Any]:
    text = f"{point.label}: {point.y:.4g} ({point.y_low:.4g} to {point.y_high:.4g}) at {point.x:.4g}"
    return {"value": (point.x, point.y), "tooltip": text}


def _name(point: Point, name: str) -> dict[str, Any]:
    return {"value": (point.x, point.y), "label": name}


def _shared_names(points: Sequence[Point], width: float, height: float) -> list[tuple[Point, str]]:
    """The points that have a name, and it: where several would cover each other the first one has all names."""
    found: list[tuple[Point, list[str]]] = []
    for point in (each for each in points if each.name):
        for other, names in found:
            if abs(other.x - point.x) < _NEAR_X * width and abs(other.y - point.y) < _NEAR_Y * height:
                names.append(point.name)
                break
        else:
            found.append((point, [point.name]))
    return [(point, ", ".join(dict.fromkeys(names))) for point, names in found]


def histogram(counts: Sequence[int], text: str) -> Markup:
    """A bar for each of `counts`; `text` says what they are."""
    # as one line, up and down: a page may have hundreds of them, and pygal.Bar writes a group of nodes for each bar
    corners = [(x + side, y) for x, y in enumerate(counts) for side, y in ((0, 0), (0, y), (0.85, y), (0.85, 0))]
    return svg(outline(corners, "histogram", width=240, height=44, range=(0, max(*counts, 1))), text)


def share(percent: float, text: str) -> Markup:
    """A bar of so many percent of its place; `text` says it."""
    return svg(bar(percent, "share", width=160, height=10, range=(0, 100)), text)


def in_bytes(sizes: Iterable[int]) -> tuple[float, str]:
    """Bytes in the unit that suits the largest of `sizes`, and its name."""
    exponent = min(3, int(math.log10(max(1, *sizes, 1))) // 3)
    return 1000.0**exponent, ("bytes", "kB", "MB", "GB")[exponent]


def _ticks(values: Sequence[float]) -> list[float]:
    """Around the finite ones of `values`, in steps of 1, 2 or 5 times a power of ten: pygal's go by 4 and 8, too."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    raw = ((high - low) or abs(high) or 1.0) / _STEPS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [round(index * step, 12) for index in range(first, last + 1)]
