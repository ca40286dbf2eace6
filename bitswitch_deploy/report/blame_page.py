"""What `blame` found, for people: the suspect, then the layers that lose most."""

from __future__ import annotations

import math

from bitswitch_deploy.diagnosis.blame_result import BlameResult, LayerError, LoweredError, PartError, WidthBlame
from bitswitch_deploy.report.page import Page

SHOWN_LAYERS = 6
_LAYER_COLUMNS = (
    ("layer", False),
    ("bits", True),
    ("alone dB", True),
    ("top-1", True),
    ("up to here dB", True),
    ("top-1", True),
    ("lowered dB", True),
)
_PART_COLUMNS = (("approximate in the lowered graph", False), ("parts", True), ("worst dB", True), ("agree %", True))


def print_blame(result: BlameResult, page: Page, *, shown: int = SHOWN_LAYERS) -> None:
    """Print `result`.

    Args:
        result: what to print. shown: layers of each width, worst first
            to be chosen.
    """
    data = result.dataset
    page.title(f"{result.subject} for {result.target}")
    page.pairs([("data", f"{data.n:,} samples of {data.name} (sha256 {data.sha256[:12]})")])
    if result.changed:
        page.pairs([("not as exported", ", ".join(result.changed))], style="bold red")
    for each in result.widths:
        _print_width(page, each, shown)
    page.gap()
    page.pairs(_LEGEND, style="dim")


_LEGEND = (
    ("alone", "only this layer quantized: SQNR of the network's output against the network in float, and its top-1"),
    ("up to here", "this layer and all before it quantized, the rest in float"),
    ("lowered", "input of this layer as the lowered graph runs, against the canonical graph, all errors before it in"),
    ("agree", "% of samples with the class of the canonical graph, when only this part is the lowered graph's"),
)


def _print_width(page: Page, width: WidthBlame, shown: int) -> None:
    page.section(f"{width.label}: {_top1s(width)}")
    for suspect in width.suspects:
        style = "bold red" if suspect.kind == "fault" else "yellow"
        page.pairs([(suspect.kind, f"{suspect.where}: {suspect.what}"), ("try", suspect.do)], style=style)
    if not width.suspects:
        page.paragraph("no layer stands out, and no part of the lowered graph is at fault")
    lowered = {each.layer: each for each in reversed(width.lowered_layers) if each.tensor.endswith(".dequantized")}
    worst = sorted(width.layers, key=lambda each: each.isolated.sqnr_db)[:shown]
    page.gap()
    rows = [_layer_cells(each, lowered.get(each.layer)) for each in width.layers if each in worst]
    page.table(_LAYER_COLUMNS, [[(cell, "") for cell in row] for row in rows])
    if len(width.layers) > shown:
        page.paragraph(f"{len(width.layers) - shown} more with less error: --all shows them", style="dim")
    _print_parts(page, width)


def _print_parts(page: Page, width: WidthBlame) -> None:
    """Parts of the lowered graph that are not exact, those of one kind in one line."""
    page.gap()
    kinds: dict[str, list[PartError]] = {}
    for each in width.parts:
        if each.part.verdict == "approximate":
            kinds.setdefault(each.part.what, []).append(each)
    rows = [_part_cells(what, parts) for what, parts in kinds.items()]
    if rows:
        page.table(_PART_COLUMNS, [[(cell, "") for cell in row] for row in rows])
    exact = width.n_parts - len(width.parts)
    page.paragraph(f"{exact} of {width.n_parts} parts of the lowered graph are exact", style="dim")


def _top1s(width: WidthBlame) -> str:
    if width.in_float is None or width.canonical.top1_percent is None or width.lowered.top1_percent is None:
        return f"output {decibels(width.canonical.sqnr_db)} dB, lowered {decibels(width.lowered.sqnr_db)} dB"
    hops = (width.in_float, width.canonical.top1_percent, width.lowered.top1_percent)
    return "top-1 in float {:.2f}, canonical {:.2f}, lowered {:.2f}".format(*hops)


def _layer_cells(layer: LayerError, lowered: LoweredError | None) -> tuple[str, ...]:
    return (
        layer.layer,
        str(layer.bits),
        decibels(layer.isolated.sqnr_db),
        _percent(layer.isolated.top1_percent),
        decibels(layer.cumulative.sqnr_db),
        _percent(layer.cumulative.top1_percent),
        "-" if lowered is None else decibels(lowered.cumulative.sqnr_db),
    )


def _part_cells(what: str, parts: list[PartError]) -> tuple[str, ...]:
    agreements = [each.effect.agreement_percent for each in parts if each.effect is not None]
    known = [each for each in agreements if each is not None]
    worst = min(each.part.error.sqnr_db for each in parts)
    return what, str(len(parts)), decibels(worst), _percent(min(known) if known else None)


def decibels(value: float) -> str:
    """A ratio in dB for a table; `same` where there is no error."""
    return "same" if value == math.inf else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
