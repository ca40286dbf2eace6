"""`report.html` of a package: everything that an export has to say, on one page that needs nothing else.

The page holds no time and no host, and no paths but those of commands, so the same export has the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitswitch_deploy.diagnosis.layer_look import LayerLook
from bitswitch_deploy.package.manifest import FileEntry
from bitswitch_deploy.report.export_report import ExportReport, not_judged, notes_of
from bitswitch_deploy.report.html.accuracy import accuracy_section, size_section
from bitswitch_deploy.report.html.document import (
    Block,
    Cell,
    Column,
    Item,
    Paragraph,
    Section,
    Table,
    listed,
    numbers,
    render_page,
    row,
    words,
)
from bitswitch_deploy.report.html.layers import codes_section, parts_section, subject_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportContent:
    """What the page is made of; what is empty has no section."""

    title: str
    report: ExportReport
    looks: tuple[LayerLook, ...] = ()
    files: tuple[FileEntry, ...] = ()
    tools: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()


def export_html(content: ExportContent) -> str:
    """The page; equal content gives equal text."""
    report, looks = content.report, content.looks
    target, *rest = subject_facts(report.target, report.master_sha256, report.dataset)
    sections = (
        accuracy_section(report),
        size_section(report),
        _layers(report),
        parts_section(looks),
        codes_section((look.label, look.statistics) for look in looks),
        _notes(report, looked=bool(looks)),
        Section(name="files", title="Files", blocks=_files(content.files)),
    )
    return render_page(
        title=content.title,
        about=(target, ("stack", Cell(text=report.stack)), *rest),
        sections=sections,
        command=content.command,
        tools=content.tools,
    )


def _layers(export: ExportReport) -> Section:
    """What the engine makes of the layers of each width."""
    rows = tuple(
        row(
            width.label,
            str(width.layers.integer),
            str(width.layers.total),
            Cell(text=", ".join(width.layers.fell_back) or "none", bad=bool(width.layers.fell_back)),
        )
        for width in export.widths
        if width.layers is not None
    )
    columns = (*words("width"), *numbers("in integers, of all"), *words("have a width and run in float"))
    caption = "Convolutions and matrix products of the graph that the engine runs; why others are float is in the notes"
    table = Table(label="Layer table", caption=caption, columns=columns, rows=rows)
    return Section(name="layers", title="Layers in integers", blocks=(table,) if rows else ())


def _notes(export: ExportReport, *, looked: bool) -> Section:
    notes = [Item(strong=labels, text=text) for labels, text in notes_of(export.widths)]
    unjudged = not_judged(verdict for width in export.widths for verdict in width.verdicts)
    notes += [Item(strong=f"{labels} not judged", text=text) for labels, text in unjudged]
    left = [Item(strong="not done", text=f"{step.what}: {step.why}", command=step.command) for step in export.not_done]
    blocks: list[Block] = []
    if not looked:
        why = (
            "Layers were not looked at: there were no data, or the network is too large to be held twice. "
            "bitswitch-deploy blame PACKAGE --data PATH does it."
        )
        blocks.append(Paragraph(text=why))
    blocks += listed(*notes, *left)
    title = "Notes, and what was not done"
    return Section(name="notes", title=title, blocks=tuple(blocks) or (Paragraph(text="Nothing."),))


def _files(files: Sequence[FileEntry]) -> tuple[Block, ...]:
    if not files:
        return ()
    columns = (*words("file, role"), *numbers("bytes"), Column(name="sha256"))
    rows = tuple(
        row(each.path, each.role, str(each.size_bytes), Cell(text="", code=each.sha256[:12])) for each in files
    )
    return (Table(label="File table", columns=columns, rows=rows),)
