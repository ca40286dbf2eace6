"""How a chart becomes SVG: pygal draws it, and only the marks and their text reach the page.

Why pygal: it is small and pure Python, where Matplotlib, or Altair with its renderer, puts tens of megabytes on every
device; and its SVG is static, with classes that the page's style sheet colours, so that dark mode and print work. Its
own style sheet, scripts, comments and ids stay out of the page: equal values give equal bytes, and no request is made.
No other module imports pygal.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import pygal
from markupsafe import Markup
from pygal.etree import etree
from pygal.style import Style

Spot = tuple[float, float]

_TEXT = 13  # px, as in the style sheet
_STYLE = Style(label_font_size=_TEXT, major_label_font_size=_TEXT, title_font_size=_TEXT, value_font_size=_TEXT)

# lxml, where it happens to be installed, would write other bytes
etree.to_etree()
# pygal's way to find plug-ins for maps warns at every import that follows in Python 3.10 and 3.11: no find_spec
sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, pygal.PluginImportFixer)]

# The style sheet shows one of the two drawings of a chart, so that letters have one size on a phone and on a desk.
_WIDTHS = {"narrow": 360, "wide": 760}  # px
_DRAWN = {"path", "rect", "circle", "text"}
_NO_AXES = {"show_x_labels": False, "show_y_labels": False}


def for_each_screen(draw: Callable[[str], Any], text: str) -> Markup:
    """The drawings of the chart that `draw` makes for the name of a screen; `text` says what it shows."""
    return Markup("\n").join(svg(draw(screen), text) for screen in _WIDTHS)


def xy(screen: str, **options: Any) -> Any:
    """A chart with two axes, and no series yet. options: of pygal."""
    config = _config(
        screen, width=_WIDTHS[screen], margin_right=16, margin_top=8, margin_bottom=8, dots_size=4.5,
        allow_interruptions=True, truncate_label=-1, **options,
    )  # fmt: skip
    return pygal.XY(config)


def outline(corners: Sequence[Spot], name: str, **options: Any) -> Any:
    """A filled line without axes."""
    return pygal.XY(_config(name, **_NO_AXES, show_dots=False, **options)).add("bar", corners)


def bar(value: float, name: str, **options: Any) -> Any:
    """One bar from the left, without axes."""
    return pygal.HorizontalBar(_config(name, **_NO_AXES, **options)).add("bar", [value])


def lines(pairs: Sequence[tuple[Spot, Spot]]) -> list[Spot | None]:
    """Lines of one series: nothing between two of them is a gap."""
    return [spot for pair in pairs for spot in (*pair, None)]


def shortened(label: str, screen: str) -> str:
    """At most 40 % of the width. The end of a label is what tells it from the others."""
    letters = int(0.4 * _WIDTHS[screen] / (0.6 * _TEXT))  # pygal takes a letter for 0.6 of its height
    return label if len(label) <= letters else "…" + label[1 - letters :]


def _config(name: str, **options: Any) -> pygal.Config:
    return pygal.Config(
        classes=("chart", name), style=_STYLE, css=(), js=(), show_legend=False, margin=0, spacing=8,
        value_formatter="{:g}".format, x_value_formatter="{:g}".format, disable_xml_declaration=True, **options,
    )  # fmt: skip


def svg(chart: Any, text: str) -> Markup:
    """The drawing, which `text` describes; each series has its title as its class."""
    titles = [options["title"] for _, options in chart.raw_series]

    def bare(root: Element) -> Element:
        _strip(root, titles)
        root.attrib = {
            "class": " ".join(chart.classes),
            "viewBox": root.attrib["viewBox"],
            "role": "img",
            "aria-label": text,
        }
        return root

    return Markup(chart.add_xml_filter(bare).render())


def _strip(node: Element, titles: Sequence[str]) -> None:
    """Takes away what the page does not need: styles, scripts, comments, backgrounds, empty groups, and so on."""
    for child in list(node):
        kind = child.attrib.pop("class", "")
        if child.tag == "g":
            child.set("class", titles[int(kind.rpartition("-")[2])] if kind.startswith("series") else kind)
            _strip(child, titles)
            is_kept = len(child) > 0 and kind != "tooltip"
        elif child.tag == "title":
            is_kept = node.get("class") == "dots"
        else:
            is_kept = child.tag in _DRAWN and kind != "background" and child.get("r") != "0"
            child.attrib = {name: _rounded(value) for name, value in child.items()}
        if not is_kept:
            node.remove(child)


def _rounded(value: str) -> str:
    return re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
