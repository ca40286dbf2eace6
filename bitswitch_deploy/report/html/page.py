"""`report.html`: everything that an export or `blame` has to say, on one page that needs nothing else.

The page holds no time, host or path, so the same package has the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bitswitch_deploy.diagnosis.blame_result import BlameResult, WidthBlame
from bitswitch_deploy.diagnosis.layer_statistics import InputStatistics, LayerStatistics, WeightStatistics
from bitswitch_deploy.diagnosis.lowering_errors import CutError
from bitswitch_deploy.diagnosis.output_error import OutputError
from bitswitch_deploy.package.manifest import FileEntry
from bitswitch_deploy.report.blame_page import decibels
from bitswitch_deploy.report.export_report import ExportReport
from bitswitch_deploy.report.html.accuracy import accuracy_section, size_section
from bitswitch_deploy.report.html.charts import histogram
from bitswitch_deploy.report.html.document import (
    Block,
    Cell,
    Column,
    Heading,
    Histograms,
    Item,
    Paragraph,
    Section,
    Table,
    listed,
    number,
    numbers,
    render_page,
    row,
    words,
)

_BARS = 32
_SAME = 1e9


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


def render_html(content: HtmlContent) -> str:
    """The page; equal content gives equal text."""
    export = content.export
    sections = (
        *((accuracy_section(export), size_section(export)) if export is not None else ()),
        Section(name="parts", title="Layers of the lowered graphs", blocks=_parts(content)),
        Section(name="layers", title="Layers", blocks=_layers(content.blame)),
        Section(name="codes", title="Codes", blocks=_codes(content)),
        *((_notes(export, looked=bool(content.parts)),) if export is not None else ()),
        Section(name="files", title="Files", blocks=_files(content.files)),
    )
    return render_page(
        title=content.title, about=_facts(content), sections=sections, command=content.command, tools=content.tools
    )


def _facts(content: HtmlContent) -> tuple[tuple[str, Cell], ...]:
    export, blame = content.export, content.blame
    about, rows = export or blame, []
    if about is not None:
        rows.append(("target", Cell(text=about.target)))
        rows += [("stack", Cell(text=export.stack))] if export is not None else []
        rows.append(("master", Cell(text="sha256", code=about.master_sha256)))
    if blame is not None and blame.changed:
        rows.append(("not as exported", Cell(text=", ".join(blame.changed), bad=True)))
    data = about.dataset if about is not None else None
    if data is None:
        return (*rows, ("data", Cell(text="none: accuracy was not measured")))
    return (*rows, ("data", Cell(text=f"{data.name}, {data.n:,} samples, sha256", code=data.sha256[:12])))


def _parts(content: HtmlContent) -> tuple[Block, ...]:
    if not content.parts:
        return ()
    blocks: list[Block] = [
        Paragraph(
            text="The worst part of each layer, given what the canonical graph computes before it: codes of its input, "
            "weights and bias, codes added behind it. SQNR in dB.",
            dim=True,
        )
    ]
    for label, n, parts in content.parts:
        blocks.append(Heading(text=label))
        blocks.append(
            Table(
                label=f"Parts of the lowered graph at {label}",
                caption=f"{n} samples, evenly spaced",
                columns=(*words("layer, is"), *numbers("SQNR"), *words("what")),
                rows=tuple(
                    row(
                        layer or "input",
                        Cell(text=part.verdict, bad=part.verdict == "fault"),
                        _sqnr(part.error.sqnr_db),
                        part.what,
                    )
                    for layer, part in _by_layer(parts)
                ),
            )
        )
    return tuple(blocks)


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


def _layers(blame: BlameResult | None) -> tuple[Block, ...]:
    if blame is None:
        return ()
    legend = (
        "Alone: only this layer quantized. Up to here: this one and all before it. SQNR in dB, cosine and top-1 in % "
        "at the output, against the network in float. Lowered: SQNR of the input of this layer as the lowered graph "
        "runs, against the canonical graph."
    )
    return (Paragraph(text=legend, dim=True), *(block for width in blame.widths for block in _layers_of(width)))


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


def _codes(content: HtmlContent) -> tuple[Block, ...]:
    return tuple(
        block
        for label, layers in content.codes
        for block in (Heading(text=label), Histograms(figures=tuple(_figure(each) for each in layers)))
    )


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


def _notes(export: ExportReport, *, looked: bool) -> Section:
    changes = [Item(strong=each.label, text=change) for each in export.widths for change in each.changes]
    left = [Item(strong="not done", text=f"{step.what}: {step.why}", command=step.command) for step in export.not_done]
    blocks: list[Block] = []
    if not looked:
        why = (
            "Layers were not looked at: there were no data, or the network is too large to be held twice. "
            "bitswitch-deploy blame PACKAGE --data PATH does it."
        )
        blocks.append(Paragraph(text=why))
    blocks += listed(*changes, *left)
    return Section(name="notes", title="Not exact, or not done", blocks=tuple(blocks) or (Paragraph(text="Nothing."),))


def _files(files: Sequence[FileEntry]) -> tuple[Block, ...]:
    if not files:
        return ()
    columns = (*words("file, role"), *numbers("bytes"), Column(name="sha256"))
    rows = tuple(
        row(each.path, each.role, str(each.size_bytes), Cell(text="", code=each.sha256[:12])) for each in files
    )
    return (Table(label="File table", columns=columns, rows=rows),)
