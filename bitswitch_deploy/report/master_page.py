"""A master summary for people."""

from __future__ import annotations

from bitswitch_deploy.graph.canonical import CANONICAL_OPSET
from bitswitch_deploy.master.summary import LayerSummary, MasterSummary
from bitswitch_deploy.report.page import Page

_LAYER_COLUMNS = (
    ("layer", False),
    ("operator", False),
    ("weight", False),
    ("scales", True),
    ("codes", True),
    ("input", False),
)
_WIDTH_COLUMNS = (("width", True), ("weights, packed", True), ("top-1", True), ("samples", True), ("data", False))


def print_master(summary: MasterSummary, page: Page) -> None:
    """Print what is in a master."""
    page.title(f"Master of {summary.bits} bits, {summary.n_parameters:,} parameters, {summary.n_quantized:,} in codes")
    exported = "" if summary.opset == CANONICAL_OPSET else f" (this release exports {CANONICAL_OPSET} only)"
    pairs = [
        ("sha256", summary.sha256),
        ("rounding", f"{summary.rounding.value}, unsigned activations in {summary.activation_container}"),
        ("input", "; ".join(f"{value.name} {value.dtype} {list(value.shape)}" for value in summary.inputs)),
        ("output", "; ".join(f"{value.name} {value.dtype} {list(value.shape)}" for value in summary.outputs)),
        ("skeleton", f"opset {summary.opset}{exported}, {summary.skeleton_size_bytes:,} bytes"),
    ]
    page.pairs(pairs)
    page.section("Widths")
    rows = []
    for each in summary.widths:
        size = f"{each.weight_size_bytes:,} bytes"
        measured = [(f"{found.value:.2f} %", f"{found.n:,}", found.dataset) for found in each.accuracy]
        for accuracy in measured or [("-", "-", "not recorded")]:
            rows.append([(cell, "") for cell in (str(each.bits), size, *accuracy)])
    page.table(_WIDTH_COLUMNS, rows)
    page.section("Layers")
    page.table(_LAYER_COLUMNS, [[(cell, "") for cell in _layer_cells(layer)] for layer in summary.layers])
    if summary.provenance:
        page.section("Provenance")
        page.pairs(summary.provenance)


def _layer_cells(layer: LayerSummary) -> tuple[str, ...]:
    codes = "float" if layer.pinned else f"{layer.code_min} .. {layer.code_max}"
    shape = "x".join(map(str, layer.weight_shape))
    return layer.name, layer.operator, shape, str(layer.n_scales), codes, "" if layer.pinned else layer.activation
