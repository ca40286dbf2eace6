"""Where the marks of a chart stand: everything in percent of its width and height, so that it fits any screen.

The template draws them as inline SVG: dots with whiskers and bars need no layout, take their colours from the page
(dark mode, print) and give the same bytes everywhere. A plotting library would weigh 60 MB on every device, and its SVG
changes between releases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

# Points nearer to each other than this share a label: percent of the width and of the height of a plot.
_LABEL_WIDTH, _LABEL_HEIGHT = 12.0, 6.0
_STEPS = 4

Tick = tuple[float, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """A value with its interval; a bound that is not finite reaches to the end of the chart."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedWhisker:
    """The same, in percent of the width."""

    label: str
    x: float
    x_low: float
    x_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Whiskers:
    """One line for each value, on one axis. text: what it shows. marks: values that the others are compared with."""

    kind: ClassVar[str] = "whiskers"
    text: str
    rows: tuple[PlacedWhisker, ...]
    ticks: tuple[Tick, ...]
    marks: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One candidate: less of x is better, more of y. name: beside it in the plot, empty where it needs none."""

    label: str
    x: float
    y: float
    y_low: float
    y_high: float
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPoint:
    """The same in percent of width and height, y from above. text: names of all points that share this label."""

    x: float
    y: float
    y_low: float
    y_high: float
    on_front: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Points, and the steps of their front as lines (x1, y1, x2, y2)."""

    kind: ClassVar[str] = "plot"
    text: str
    x_title: str
    y_title: str
    points: tuple[PlacedPoint, ...]
    steps: tuple[tuple[float, float, float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class _Axis:
    start: float
    step: float
    count: int

    def place(self, value: float) -> float:
        """Percent of the axis, at its ends for what lies outside."""
        share = (value - self.start) / (self.step * self.count)
        return round(100.0 * min(1.0, max(0.0, share)), 2)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        values = [round(self.start + index * self.step, 12) for index in range(self.count + 1)]
        return tuple((self.place(value), f"{value + 0.0:g}") for value in values)


def whiskers(text: str, rows: Sequence[Whisker], marks: Sequence[float] = ()) -> tuple[Whiskers, ...]:
    """The chart of `rows`, none where there are none; `text` says what the marks are."""
    if not rows:
        return ()
    axis = _axis([*(each for row in rows for each in (row.value, row.low, row.high)), *marks])
    placed = tuple(
        PlacedWhisker(label=row.label, x=axis.place(row.value), x_low=axis.place(row.low), x_high=axis.place(row.high))
        for row in rows
    )
    return (Whiskers(text=text, rows=placed, ticks=axis.ticks, marks=tuple(map(axis.place, marks))),)


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other one is at least as good as in both and better in one, in the order of x.

    It is a front of measured values: what lies a little below it may be no worse, which the intervals show.
    """
    kept = [each for each in points if not any(_beats(other, each) for other in points)]
    return tuple(sorted(kept, key=lambda each: (each.x, each.label)))


def _beats(a: Point, b: Point) -> bool:
    return a.x <= b.x and a.y >= b.y and (a.x, a.y) != (b.x, b.y)


def plot(points: Sequence[Point], *, x_title: str, y_title: str) -> Plot:
    """The chart of `points`, at least one. x starts at 0, so that lengths can be compared; y does not."""
    best = front(points)
    x_axis = _axis([0.0, *(each.x for each in points)])
    y_axis = _axis([each for point in points for each in (point.y, point.y_low, point.y_high)])

    def above(value: float) -> float:
        return round(100.0 - y_axis.place(value), 2)

    corners = [(x_axis.place(each.x), above(each.y)) for each in best]
    names = _shared_names([(x_axis.place(each.x), above(each.y), each.name) for each in points])
    placed = tuple(
        PlacedPoint(
            x=x_axis.place(each.x),
            y=above(each.y),
            y_low=above(each.y_low),
            y_high=above(each.y_high),
            on_front=each in best,
            text=name,
        )
        for each, name in zip(points, names)
    )
    found = ", ".join(f"{each.label} ({each.y:.2f} at {each.x:.4g})" for each in best)
    return Plot(
        text=f"{y_title} against {x_title}. Nothing is better in both than {found}; the numbers are in the table",
        x_title=x_title,
        y_title=y_title,
        points=placed,
        steps=tuple(step for (x1, y1), (x2, y2) in pairwise(corners) for step in ((x1, y1, x2, y1), (x2, y1, x2, y2))),
        x_ticks=x_axis.ticks,
        y_ticks=tuple((round(100.0 - place, 2), text) for place, text in y_axis.ticks),
    )


def in_bytes(sizes: Iterable[int]) -> tuple[float, str]:
    """Bytes in the unit that suits the largest of `sizes`, and its name."""
    exponent = min(3, int(math.log10(max(1, *sizes, 1))) // 3)
    return 1000.0**exponent, ("bytes", "kB", "MB", "GB")[exponent]


def _axis(values: Sequence[float]) -> _Axis:
    """Around the finite ones of `values`, in steps of 1, 2 or 5 times a power of ten."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    raw = ((high - low) or abs(high) or 1.0) / _STEPS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    return _Axis(first * step, step, max(1, math.ceil(high / step - 1e-9) - first))


def _shared_names(points: Sequence[tuple[float, float, str]]) -> list[str]:
    """The label of each point (x, y, name): where several would cover each other the first one has all names."""
    texts: list[list[str]] = [[] for _ in points]
    for own, (x, y, name) in enumerate(points):
        near = [
            index
            for index, (other_x, other_y, _) in enumerate(points[:own])
            if texts[index] and abs(other_x - x) < _LABEL_WIDTH and abs(other_y - y) < _LABEL_HEIGHT
        ]
        if name:
            texts[near[0] if near else own].append(name)
    return [", ".join(dict.fromkeys(each)) for each in texts]
