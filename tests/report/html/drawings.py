"""Drawings of a chart, read again from the SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

Spot = tuple[float, float]


class Drawing:
    """A drawing of a chart, read again."""

    def __init__(self, svg: str) -> None:
        self.root = ElementTree.fromstring(svg)

    def series(self, name: str) -> list[ElementTree.Element]:
        """What is in the groups of a class."""
        groups = [group for group in self.root.iter("g") if name in (group.get("class", ""), self._axis(group))]
        return [mark for group in groups for mark in group.iter()]

    @staticmethod
    def _axis(group: ElementTree.Element) -> str:
        return group.get("class", "").removesuffix(" always_show")

    def dots(self, name: str = "dot") -> dict[str, Spot]:
        """Where each dot is, by what it says."""
        groups = [each for each in self.series(name) if each.get("class") == "dots"]
        found = [(group.findtext("title", ""), group.find("circle")) for group in groups]
        return {title: (number(dot, "cx"), number(dot, "cy")) for title, dot in found if dot is not None}

    def lines(self, name: str) -> list[list[Spot]]:
        return [spots(each) for each in self.series(name) if each.tag == "path"]

    def texts(self, name: str) -> list[str]:
        return [str(each.text) for each in self.series(name) if each.tag == "text"]

    def ticks(self, name: str) -> dict[str, Spot]:
        """The beginning of the guide of each tick, by its text."""
        guides = [(each.find("path"), each.find("text")) for each in self.series(name) if each.get("class") == "guides"]
        return {str(text.text): spots(path)[0] for path, text in guides if path is not None and text is not None}

    def at(self, axis: str, value: float) -> float:
        """Where a value of the x axis stands, between its first and its last tick; three digits are enough."""
        ticks = self.ticks(axis)
        (first, start), *_, (last, end) = ((float(text), spot[0]) for text, spot in ticks.items())
        return round(start + (value - first) / (last - first) * (end - start), 2)


def number(mark: ElementTree.Element | None, name: str) -> float:
    assert mark is not None
    return float(mark.get(name, "nan"))


def spots(path: ElementTree.Element) -> list[Spot]:
    found = [float(each) for each in re.findall(r"-?[\d.]+", path.get("d", ""))]
    return list(zip(found[::2], found[1::2]))


def drawings(text: str, name: str = "wide") -> list[Drawing]:
    """Those for a desk, or of another class, in a page or a part of one."""
    return [Drawing(svg) for svg in re.findall(rf'<svg class="chart {name}".*?</svg>', text)]


def dots(page: str, name: str = "dot") -> list[str]:
    """What the dots of all charts say."""
    return [text for drawing in drawings(page) for text in drawing.dots(name)]
