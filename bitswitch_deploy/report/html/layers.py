"""What the pages of `export` and `blame` share: what they are about, tables of layers, histograms of codes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from bitswitch_deploy.diagnosis.blame_result import WidthBlame
from bitswitch_deploy.diagnosis.layer_look import LayerLook
from bitswitch_deploy.diagnosis.layer_statistics import InputStatistics, LayerStatistics, WeightStatistics
from bitswitch_deploy.diagnosis.lowering_errors import CutError
from bitswitch_deploy.diagnosis.output_error import OutputError
from bitswitch_deploy.report.blame_page import decibels
from bitswitch_deploy.report.html.charts import histogram
from bitswitch_deploy.report.html.document import (
    Block,
    Cell,
    Heading,
    Histograms,
    Item,
    Paragraph,
    Section,
    Table,
    listed,
    number,
    numbers,
    row,
    words,
)
from bitswitch_deploy.validation.dataset import DatasetSummary

_BARS = 32
_SAME = 1e9


def subject_facts(target: str, master_sha256: str, data: DatasetSummary | None) -> tuple[tuple[str, Cell], ...]:
    """Target, master and data of a page."""
    measured = Cell(text="none: accuracy was not measured")
    if data is not None:
        measured = Cell(text=f"{data.name}, {data.n:,} samples, sha256", code=data.sha256[:12])
    return (
        ("target", Cell(text=target)),
        ("master", Cell(text="sha256", code=master_sha256)),
        ("data", measured),
    )


def parts_section(looks: Sequence[LayerLook]) -> Section:
    """The worst part of each layer of lowered graphs; without any, no blocks."""
    legend = Paragraph(
        text="The worst part of each layer, given what the canonical graph computes before it: codes of its input, "
        "weights and bias, codes added behind it. SQNR in dB.",
        dim=True,
    )
    blocks: list[Block] = [legend] if looks else []
    for look in looks:
        table = Table(
            label=f"Parts of the lowered graph at {look.label}",
            caption=f"{look.n} samples, evenly spaced",
            columns=(*words("layer, is"), *numbers("SQNR"), *words("what")),
            rows=tuple(
                row(
                    layer or "input",
                    Cell(text=part.verdict, bad=part.verdict == "fault"),
                    _sqnr(part.error.sqnr_db),
                    part.what,
                )
                for layer, part in _by_layer(look.parts)
            ),
        )
        blocks += [Heading(text=look.label), table]
    return Section(name="parts", title="Layers of the lowered graphs", blocks=tuple(blocks))


def layers_section(widths: Iterable[WidthBlame]) -> Section:
    """What each layer costs, and which of them are suspect."""
    legend = (
        "Alone: only this layer quantized. Up to here: this one and all before it. SQNR in dB, cosine and top-1 in % "
        "at the output, against the network in float. Lowered: SQNR of the input of this layer as the lowered graph "
        "runs, against the canonical graph."
    )
    blocks = (Paragraph(text=legend, dim=True), *(block for width in widths for block in _layers_of(width)))
    return Section(name="layers", title="Layers", blocks=blocks)


def codes_section(layers_of: Iterable[tuple[str, Sequence[LayerStatistics]]]) -> Section:
    """How codes are distributed; pairs of the label of a width and statistics of its layers."""
    blocks = tuple(
        block
        for label, layers in layers_of
        for block in (Heading(text=label), Histograms(figures=tuple(_figure(each) for each in layers)))
    )
    return Section(name="codes", title="Codes", blocks=blocks)


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


def _layers_of(width: WidthBlame) -> list[Block]:
    suspects = [
        Paragraph(strong=f"{each.kind}: {each.where}", text=f"{each.what}. Try: {each.do}.", bad=each.kind == "fault")
        for each in width.suspects
    ]
    clean = Paragraph(text="No layer stands out, and no part of the lowered graph is at fault.")
    blocks: list[Block] = [Heading(text=width.label), *(suspects or [clean]), _layer_table(width)]
    items = (
        Item(
            strong=f"{part.verdict}: {part.tensor}",
            text=f"{decibels(part.error.sqnr_db)} dB: {part.what}",
            bad=part.verdict == "fault",
        )
        for part in (each.part for each in width.parts)
    )
    return [*blocks, *listed(*items)]


def _layer_table(width: WidthBlame) -> Table:
    # as the lowered graph runs: SQNR of the input of each layer
    lowered = {
        each.layer: each.cumulative.sqnr_db
        for each in reversed(width.lowered_layers)
        if each.tensor.endswith(".dequantized")
    }
    return Table(
        label=f"Layers at {width.label}",
        caption=f"{width.n_parts - len(width.parts)} of {width.n_parts} parts of the lowered graph are exact",
        columns=(*words("layer"), *numbers("bits, alone, cosine, top-1, up to here, cosine, top-1, lowered")),
        rows=tuple(
            row(
                each.layer,
                str(each.bits),
                *_error(each.isolated),
                *_error(each.cumulative),
                _sqnr(lowered[each.layer]) if each.layer in lowered else "-",
            )
            for each in width.layers
        ),
    )


def _error(error: OutputError) -> tuple[Cell, ...]:
    return _sqnr(error.sqnr_db), number(error.cosine, ".4f"), number(error.top1_percent)


def _sqnr(value: float) -> Cell:
    return Cell(text=decibels(value), value=_SAME if value == math.inf else round(value, 4))


def _figure(layer: LayerStatistics) -> tuple[str, tuple[Markup, ...]]:
    seen = () if layer.input is None else (_bars(layer.input, f"Inputs of {layer.layer}"),)
    caption = f"{layer.layer}, {layer.bits} bits: weights{', then inputs' if seen else ''}"
    return caption, (_bars(layer.weights, f"Weights of {layer.layer}"), *seen)


def _bars(codes: WeightStatistics | InputStatistics, what: str) -> Markup:
    """At most 32 bars: neighbouring codes share one where there are more."""
    counts = codes.counts
    together = -(-len(counts) // _BARS)
    sums = [sum(counts[start : start + together]) for start in range(0, len(counts), together)]
    total = max(sum(counts), 1)
    high = codes.low + len(counts) - 1
    ends = f"{100 * counts[0] / total:.1f} % at {codes.low}, {100 * counts[-1] / total:.1f} % at {high}"
    return histogram(sums, f"{what}, codes {codes.low} to {high}: {ends}")
