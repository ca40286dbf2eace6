"""Accuracy with its intervals, and against what it costs: sections that more than one page has."""

from __future__ import annotations

from collections.abc import Sequence

from rich.filesize import decimal

from bitswitch_deploy.report.export_report import ExportReport, WidthRow
from bitswitch_deploy.report.html.charts import Chart, Point, Whisker, in_bytes, plot, share, whiskers
from bitswitch_deploy.report.html.document import (
    Block,
    Cell,
    Column,
    Paragraph,
    Section,
    Table,
    number,
    numbers,
    row,
    words,
)
from bitswitch_deploy.search.statistics import Interval, wilson
from bitswitch_deploy.validation.hops import HopResult, percent_rounded_down

ABOUT_FRONT = (
    "Filled dots are on the Pareto front: nothing measured is better in both. The thin lines are 95 % intervals of "
    "Wilson; where they overlap, a dot off the front may be as good."
)


def interval(hop: HopResult) -> Interval:
    """Top-1 of a hop that measured it, with its interval of Wilson."""
    return wilson(round((hop.top1_percent or 0.0) * hop.n / 100), hop.n)


def nearest_to_device(width: WidthRow) -> HopResult | None:
    """The last hop of a width that has a top-1: what is known best about what runs."""
    measured = [hop for hop in _measured(width) if hop.hop != "trained"]
    return measured[-1] if measured else None


def accuracy_plot(points: Sequence[tuple[str, float, HopResult]], x_title: str) -> Chart:
    """Top-1 against something, of (label, x, hop); at least one."""
    found = [(label, x, interval(hop)) for label, x, hop in points]
    return plot(
        [
            Point(label=label, name=label, x=x, y=each.value, y_low=each.low, y_high=each.high)
            for label, x, each in found
        ],
        x_title=x_title,
        y_title="top-1 in %",
    )


def accuracy_section(export: ExportReport) -> Section:
    """Top-1 of every hop of every width."""
    found = [(width, hop) for width in export.widths for hop in _measured(width)]
    lines = [(f"{width.label} {hop.hop}", interval(hop)) for width, hop in found]
    chart = whiskers(
        "Top-1 in %, with 95 % intervals",
        [Whisker(label=label, value=each.value, low=each.low, high=each.high) for label, each in lines],
    )
    table = Table(
        label="Accuracy table",
        caption="Top-1 in %, with the 95 % interval of Wilson; agreement with the canonical graph",
        columns=(*words("width, hop"), *numbers("top-1, from, to, samples, agree"), *words("verdict")),
        rows=tuple(_accuracy_row(width, hop) for width, hop in found),
    )
    return Section(name="accuracy", title="Accuracy", blocks=(*chart, table) if found else ())


def _measured(width: WidthRow) -> list[HopResult]:
    return [hop for hop in width.hops if hop.top1_percent is not None and hop.n]


def _accuracy_row(width: WidthRow, hop: HopResult) -> tuple[Cell, ...]:
    verdict = {each.hop: each.verdict for each in width.verdicts}.get(hop.hop)
    own = interval(hop)
    return row(
        width.label,
        hop.hop,
        number(hop.top1_percent),
        number(own.low),
        number(own.high),
        str(hop.n),
        "-" if hop.agreement_percent is None else percent_rounded_down(hop.agreement_percent),
        Cell(text=verdict or "-", bad=verdict == "failed"),
    )


def size_section(export: ExportReport) -> Section:
    """Bytes of every width, and accuracy against them."""
    widths = export.widths
    largest = max((width.size_bytes for width in widths), default=1)
    shares = [round(100.0 * width.size_bytes / largest, 2) for width in widths]
    table = Table(
        label="Size table",
        columns=(*words("width, file"), *numbers("bytes"), Column(name="of the largest", sorts=False)),
        rows=tuple(
            row(
                width.label,
                width.file_name,
                str(width.size_bytes),
                Cell(text="", bar=share(percent, f"{percent} % of the largest")),
            )
            for width, percent in zip(widths, shares)
        ),
    )
    shared: list[Block] = []
    if export.shared_weights:
        text = f"All graphs read their weights from {export.shared_weights}, {decimal(export.shared_bytes)}."
        shared.append(Paragraph(text=text))
    return Section(name="size", title="Size", blocks=(table, *shared, *_against_bytes(export)) if widths else ())


def _against_bytes(export: ExportReport) -> tuple[Block, ...]:
    sizes = {width.label: width.size_bytes + export.shared_bytes for width in export.widths}
    unit, name = in_bytes(sizes.values())
    hops = [(width.label, nearest_to_device(width)) for width in export.widths]
    points = [(label, sizes[label] / unit, hop) for label, hop in hops if hop is not None]
    if not points:
        return ()
    about = "with the shared weights" if export.shared_bytes else "of the graph"
    return (
        accuracy_plot(points, f"{name} {about}"),
        Paragraph(text=f"Top-1 of the last hop that ran. {ABOUT_FRONT}", dim=True),
    )
