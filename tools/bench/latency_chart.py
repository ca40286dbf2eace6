"""The chart and the table of what latency.py measured, from its JSON. No measurement, no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

Row = Mapping[str, Any]

PEER = "quantize_static"
_BITS = (8, 6, 4, 2)
_WIDTH, _LEFT, _RIGHT, _LINE, _TITLE = 740, 120, 90, 18, 30
# Ratios at the right end of the axis; longer bars end there and say so.
_END, _TICKS = 3.6, (0, 1, 2, 3)
_STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #24292f } .small { font-size: 11px; fill: #57606a }
    .title { font-weight: 600 } .ours { fill: #0969da } .fast { fill: #bf5f00 } .other { fill: #8c959f }
    .grid { stroke: #d0d7de } .one { stroke: #24292f; stroke-width: 1.5 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .small { fill: #9198a1 } .ours { fill: #4493f8 } .fast { fill: #f0883e }
      .other { fill: #6e7681 } .grid { stroke: #3d444d } .one { stroke: #e6edf3 }
    }"""


def chart(rows: Iterable[Row], *, batch: int, threads: int) -> str:
    """An SVG with one group of bars for each network: latency as multiple of quantize_static's."""
    groups = _groups(rows, batch, threads)
    parts, y = [], 56.0
    for network, ratios in groups.items():
        parts.append(f'<text class="title" x="0" y="{y + 12:g}">{escape(network)}</text>')
        y += _TITLE - 8
        for label, ratio, fast in _bars(ratios):
            parts += _bar(y, label, ratio, fast)
            y += _LINE
        y += 12
    axis = []
    for tick in _TICKS:
        kind = "one" if tick == 1 else "grid"
        axis.append(f'<line class="{kind}" x1="{_x(tick):g}" x2="{_x(tick):g}" y1="48" y2="{y:g}"/>')
        name = f"{tick}: {PEER}" if tick == 1 else str(tick)
        axis.append(f'<text class="small" text-anchor="middle" x="{_x(tick):g}" y="{y + 16:g}">{name}</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 24:g}" role="img"'
        f' aria-label="{escape(alt_text(rows, batch=batch, threads=threads), quote=True)}">'
    )
    legend = (
        f'<text x="0" y="16">Latency on onnxruntime, as multiple of {PEER}: shorter is faster</text>'
        f'<rect class="ours" x="{_LEFT}" y="28" width="14" height="10"/>'
        f'<text class="small" x="{_LEFT + 20}" y="37">bitswitch-deploy</text>'
        f'<circle class="fast" cx="{_LEFT + 137}" cy="33" r="5"/>'
        f'<text class="small" x="{_LEFT + 147}" y="37">with all approximations for speed</text>'
        f'<rect class="other" x="{_LEFT + 385}" y="28" width="14" height="10"/>'
        f'<text class="small" x="{_LEFT + 405}" y="37">others</text>'
    )
    return "\n".join([head, f"<style>{_STYLE}\n</style>", legend, *axis, *parts, "</svg>\n"])


def alt_text(rows: Iterable[Row], *, batch: int, threads: int) -> str:
    """What the chart shows, in one sentence."""
    said = []
    for network, ratios in _groups(rows, batch, threads).items():
        ours = [ratios[f"w{bits}"] for bits in _BITS if f"w{bits}" in ratios]
        said.append(f"{network} {_span(ours)} (float32 {ratios['float32']:.2f})")
    what = f"Latency of 8, 6, 4 and 2 bits as multiple of {PEER}, batch {batch}, {_threads(threads)}"
    return f"{what}: {', '.join(said)}"


def table(rows: Iterable[Row], absent: Iterable[Row]) -> str:
    """A Markdown table with one line for each network, batch and number of threads."""
    listed = list(rows)
    missing = {each["network"] for each in absent}
    lines = [
        "| network | batch | threads | 8 bits | 6 bits | 4 bits | 2 bits | the same, fast | float32 | ModelOpt |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for network, batch, threads in dict.fromkeys((row["network"], row["batch"], row["threads"]) for row in listed):
        ratios = _groups(listed, batch, threads)[network]
        fast = _span([ratios[f"w{bits} fast"] for bits in _BITS if f"w{bits} fast" in ratios])
        modelopt = f"{ratios['modelopt']:.2f}" if "modelopt" in ratios else "-" if network in missing else ""
        ours = [f"{ratios[f'w{bits}']:.2f}" for bits in _BITS]
        cells = [network, str(batch), str(threads), *ours, fast, f"{ratios['float32']:.2f}", modelopt]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ranges(rows: Iterable[Row]) -> str:
    """A Markdown table of the least and the greatest ratio of each network, over batches and numbers of threads."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        name = row["candidate"]
        kind = name if not name.startswith("w") else "fast" if name.endswith(" fast") else "ours"
        found.setdefault(row["network"], {}).setdefault(kind, []).append(row["ratio_to_quantize_static"])
    lines = ["| network | 8, 6, 4 and 2 bits | the same, fast | float32 |", "|---|---|---|---|"]
    for network, kinds in found.items():
        cells = [network, *(_span(kinds[kind]) for kind in ("ours", "fast", "float32"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _groups(rows: Iterable[Row], batch: int, threads: int) -> dict[str, dict[str, float]]:
    """Ratio of each candidate, by network."""
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        if (row["batch"], row["threads"]) == (batch, threads):
            groups.setdefault(row["network"], {})[row["candidate"]] = row["ratio_to_quantize_static"]
    return groups


def _bars(ratios: Mapping[str, float]) -> list[tuple[str, float, float | None]]:
    """(label, ratio, ratio of the fast form) of each bar."""
    ours: list[tuple[str, float, float | None]] = [
        (f"{bits} bits", ratios[f"w{bits}"], ratios.get(f"w{bits} fast")) for bits in _BITS if f"w{bits}" in ratios
    ]
    others = [
        (name, ratios[key], None)
        for key, name in (("float32", "float32"), ("modelopt", "ModelOpt int8"))
        if key in ratios
    ]
    return ours + others


def _bar(y: float, label: str, ratio: float, fast: float | None) -> list[str]:
    kind = "ours" if label.endswith("bits") else "other"
    end = _x(min(ratio, _END))
    text = f"{ratio:.2f}" if fast is None else f"{ratio:.2f}, {fast:.2f}"
    if ratio > _END:
        text += " (cut off)"
    # right of the line at 1, which would cross it
    beside = max(end, _x(min(fast or 0.0, _END)) + 6, _x(1)) + 5
    marks = [
        f'<text class="small" text-anchor="end" x="{_LEFT - 8}" y="{y + 12:g}">{label}</text>',
        f'<rect class="{kind}" x="{_LEFT}" y="{y + 3:g}" width="{end - _LEFT:.1f}" height="{_LINE - 6}"/>',
    ]
    if fast is not None:
        marks.append(f'<circle class="fast" cx="{_x(fast):.1f}" cy="{y + _LINE / 2:g}" r="5"/>')
    if ratio > _END:
        return [*marks, f'<text class="small" text-anchor="end" x="{_WIDTH}" y="{y + 12:g}">{text}</text>']
    return [*marks, f'<text class="small" x="{beside:.1f}" y="{y + 12:g}">{text}</text>']


def _x(ratio: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * ratio / _END


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _threads(threads: int) -> str:
    return "one thread" if threads == 1 else f"{threads} threads"
