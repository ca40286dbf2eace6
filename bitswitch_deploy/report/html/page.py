"""`report.html`: everything that an export or `blame` has to say, on one page that needs nothing else.

Charts are inline SVG from the template: dots with whiskers and bars need no layout, take their colours from the page
(dark mode, print) and give the same bytes everywhere. A plotting library would weigh 60 MB on every device, and its SVG
changes between releases. The page holds no time, host or path, so the same package has the same bytes.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from rich.filesize import decimal

from bitswitch_deploy.diagnosis.blame_result import BlameResult
from bitswitch_deploy.diagnosis.layer_statistics import InputStatistics, LayerStatistics, WeightStatistics
from bitswitch_deploy.diagnosis.lowering_errors import CutError
from bitswitch_deploy.package.manifest import FileEntry
from bitswitch_deploy.report.blame_page import decibels
from bitswitch_deploy.report.export_report import ExportReport, NotDone, WidthRow
from bitswitch_deploy.search.statistics import wilson
from bitswitch_deploy.validation.dataset import DatasetSummary
from bitswitch_deploy.validation.hops import HopResult

_BARS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class HtmlContent:
    """What the page is made of; what is None or empty has no section.

    parts: (label of the width, number of samples, parts of its lowered graph).
    codes: (label of the width, statistics of its layers).
    """

    title: str
    export: ExportReport | None = None
    blame: BlameResult | None = None
    parts: tuple[tuple[str, int, tuple[CutError, ...]], ...] = ()
    codes: tuple[tuple[str, tuple[LayerStatistics, ...]], ...] = ()
    files: tuple[FileEntry, ...] = ()
    tools: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Accuracy:
    """One dot with its whisker; x in percent of the chart's width."""

    label: str
    hop: str
    top1: float
    low: float
    high: float
    n: int
    agreement: float | None
    verdict: str
    note: str
    x: float = 0.0
    x_low: float = 0.0
    x_high: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bars:
    """A histogram: heights in percent of the highest bar, and the sentence that says what it shows."""

    heights: tuple[float, ...]
    text: str


def render_html(content: HtmlContent) -> str:
    """The page; equal content gives equal text."""
    export = content.export
    rows = export.widths if export is not None else ()
    accuracies, ticks = _scaled([each for row in rows for each in _accuracies(row)])
    return _template().render(
        content=content,
        export=export,
        blame=content.blame,
        dataset=_dataset(content),
        lowered=_lowered(content.blame),
        parts=[(label, n, _by_layer(parts)) for label, n, parts in content.parts],
        accuracies=accuracies,
        ticks=ticks,
        sizes=_sizes(rows),
        notes=[(row.label, change) for row in rows for change in row.changes],
        not_done=_not_done(export),
        codes=[(label, [_histograms(layer) for layer in layers]) for label, layers in content.codes],
        command=shlex.join(content.command),
        decibels=decibels,
        decimal=decimal,
        inf=math.inf,
    )


@cache
def _template() -> Template:
    loader = PackageLoader("bitswitch_deploy.report.html", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")


def _dataset(content: HtmlContent) -> DatasetSummary | None:
    if content.export is not None:
        return content.export.dataset
    return content.blame.dataset if content.blame is not None else None


def _accuracies(row: WidthRow) -> list[_Accuracy]:
    verdicts = {each.hop: each.verdict for each in row.verdicts}
    return [
        _accuracy(row, hop, hop.top1_percent, verdicts.get(hop.hop, ""))
        for hop in row.hops
        if hop.top1_percent is not None and hop.n
    ]


def _accuracy(row: WidthRow, hop: HopResult, top1: float, verdict: str) -> _Accuracy:
    interval = wilson(round(top1 * hop.n / 100), hop.n)
    return _Accuracy(
        label=row.label,
        hop=hop.hop,
        top1=top1,
        low=interval.low,
        high=interval.high,
        n=hop.n,
        agreement=hop.agreement_percent,
        verdict=verdict,
        note=hop.note,
    )


def _scaled(found: Sequence[_Accuracy]) -> tuple[list[_Accuracy], list[tuple[float, str]]]:
    """Places on an axis that ends at whole percents, and its three ticks."""
    if not found:
        return [], []
    start, end = math.floor(min(each.low for each in found)), math.ceil(max(each.high for each in found))

    def place(value: float) -> float:
        return round(100.0 * (value - start) / max(end - start, 1), 2)

    scaled = [replace(each, x=place(each.top1), x_low=place(each.low), x_high=place(each.high)) for each in found]
    return scaled, [(place(value), f"{value:g}") for value in (start, (start + end) / 2, end)]


def _sizes(rows: Sequence[WidthRow]) -> list[tuple[str, str, int, float]]:
    largest = max((row.size_bytes for row in rows), default=1)
    return [(row.label, row.file_name, row.size_bytes, round(100.0 * row.size_bytes / largest, 2)) for row in rows]


def _lowered(blame: BlameResult | None) -> dict[tuple[str, str], float]:
    """SQNR of the input of each layer as the lowered graph runs, by label of the width and layer."""
    widths = blame.widths if blame is not None else ()
    return {
        (width.label, each.layer): each.cumulative.sqnr_db
        for width in widths
        for each in reversed(width.lowered_layers)
        if each.tensor.endswith(".dequantized")
    }


def _by_layer(parts: Sequence[CutError]) -> list[tuple[str, CutError]]:
    """For each layer its worst part."""
    groups: dict[str, list[CutError]] = {}
    for each in parts:
        groups.setdefault(each.layer, []).append(each)
    order = ("exact", "approximate", "fault")
    return [
        (layer, max(own, key=lambda each: (order.index(each.verdict), -each.error.sqnr_db)))
        for layer, own in groups.items()
    ]


def _not_done(export: ExportReport | None) -> tuple[NotDone, ...]:
    return export.not_done if export is not None else ()


def _histograms(layer: LayerStatistics) -> tuple[LayerStatistics, _Bars, _Bars | None]:
    seen = _bars(layer.input) if layer.input is not None else None
    return layer, _bars(layer.weights), seen


def _bars(codes: WeightStatistics | InputStatistics) -> _Bars:
    """At most 32 bars: neighbouring codes share one where there are more."""
    counts = codes.counts
    together = -(-len(counts) // _BARS)
    sums = [sum(counts[start : start + together]) for start in range(0, len(counts), together)]
    top, total = max(sums) or 1, max(sum(counts), 1)
    high = codes.low + len(counts) - 1
    ends = f"{100 * counts[0] / total:.1f} % at {codes.low}, {100 * counts[-1] / total:.1f} % at {high}"
    return _Bars(
        heights=tuple(round(100.0 * each / top, 1) for each in sums), text=f"codes {codes.low} to {high}: {ends}"
    )
