"""Engines for people: what was built, what runs in integers, what does not and why it matters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.filesize import decimal

from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.read_back import NodePrecision, ReadBack
from bitswitch_deploy.report.build_report import BuildReport, EngineRow
from bitswitch_deploy.report.page import Page

_COLUMNS = (
    ("engine", False),
    ("state", False),
    ("size", True),
    ("int8", True),
    ("fell back", True),
    ("in float", True),
    ("Q/DQ apart", True),
)
_NO_DATA = "-"
_SHOWN = 3


def print_build(report: BuildReport, page: Page) -> None:
    """Print `report`."""
    page.title(f"Engines of {report.package}")
    page.pairs(_header(report))
    page.section("Layers of each engine")
    page.table(_COLUMNS, [[(cell, "") for cell in _cells(row)] for row in report.engines])
    page.gap()
    page.pairs(_legend(), style="dim")
    notes = [("", note) for note in report.notes] + [note for row in report.engines for note in _notes(row)]
    if notes:
        page.section("Notes")
        page.pairs(_grouped(notes))


def _header(report: BuildReport) -> Iterable[tuple[str, str]]:
    yield "target", report.target
    yield "builder", report.builder
    yield "device", device_text(report.device)
    if report.timing_cache is not None:
        yield "timing cache", report.timing_cache


def device_text(device: DeviceFacts) -> str:
    """A device in words: `aarch64, p3767-0005, SM 8.7, L4T 36.4.3, power mode 15W`."""
    parts = [
        device.arch,
        device.module or ("" if device.sm else "no GPU found"),
        f"SM {device.sm}" if device.sm else "",
        f"L4T {device.l4t}" if device.l4t else "",
        f"power mode {device.power_mode}" if device.power_mode else "",
    ]
    return ", ".join(part for part in parts if part)


def _cells(row: EngineRow) -> Sequence[str]:
    found = row.layers
    counts: Sequence[str] = [_NO_DATA] * 4
    if found is not None:
        numbers = (len(found.int8), len(found.fell_back), len(found.in_float), len(found.unfused))
        counts = [str(number) for number in numbers]
    return (row.label, row.state, decimal(row.size_bytes), *counts)


def _legend() -> Iterable[tuple[str, str]]:
    yield "int8", "convolutions and matrix products that compute in integers"
    yield "fell back", "quantized in the graph, and not in the engine"
    yield (
        "in float",
        "left in float by the graph: pinned and weight-only layers, products of activations, the reference",
    )
    yield "Q/DQ apart", "not taken in by such a layer: in kernels of their own or together with elementwise operators"
    yield _NO_DATA, "not read back: see Notes"


def _notes(row: EngineRow) -> Iterable[tuple[str, str]]:
    found = row.layers
    if found is not None:
        yield from ((row.label, text) for text in _layer_notes(found, is_reference=row.is_reference))
    if row.gpu_fallback:
        yield row.label, f"DLA leaves {len(row.gpu_fallback)} layers to the GPU: {', '.join(row.gpu_fallback)}"
    yield from ((row.label, note) for note in row.notes)
    yield from ((row.label, f"builder: {warning}") for warning in row.warnings)


def _layer_notes(found: ReadBack, *, is_reference: bool) -> Iterable[str]:
    if found.fell_back:
        yield f"fell back: {_nodes(found.fell_back)}"
    if found.in_float and is_reference:
        counts = Counter(node.precision for node in found.in_float)
        yield "in float: " + ", ".join(f"{count} in {precision}" for precision, count in counts.items())
    elif found.in_float:
        yield f"in float: {_nodes(found.in_float)}"
    alone = [each.node for each in found.unfused if each.alone]
    if alone:
        yield f"Q/DQ in kernels of their own: {_some(alone)}"
    merged = [each.node for each in found.unfused if not each.alone]
    if merged:
        yield f"Q/DQ together with elementwise operators: {_some(merged)}"
    if found.unseen:
        yield f"no layer of the engine names {_some(found.unseen)}"


def _some(names: Iterable[str]) -> str:
    """The first few in alphabetical order: widths with the same names then share one note. JSON has all."""
    ordered = sorted(names)
    left = len(ordered) - _SHOWN
    return ", ".join(ordered[:_SHOWN]) + (f" and {left} more" if left > 0 else "")


def _nodes(nodes: Iterable[NodePrecision]) -> str:
    return ", ".join(f"{each.node} ({each.operator}, {each.precision})" for each in nodes)


def _grouped(notes: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    holders: dict[str, list[str]] = {}
    for label, text in notes:
        holders.setdefault(text, []).append(label)
    return [(" ".join(filter(None, labels)), text) for text, labels in holders.items()]
