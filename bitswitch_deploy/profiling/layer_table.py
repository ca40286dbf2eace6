"""The latency table for the search of widths, from what the engine's profiler and the clock say.

Times of single operators are taken in a run of their own, which the profiler slows down; layers.py takes that cost off.
What no quantized layer owns is the overhead of that width, and the table holds the largest one.

    overhead_ms = max over w of  end_to_end_ms(w) - sum over l of layer_ms(l, w)

A uniform width is therefore predicted too high by the difference of overheads, never too low. A mixed assignment is
predicted without the conversions between neighbours of different widths, if they take any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitswitch_deploy.latency_table import LatencyTable, LayerLatency
from bitswitch_deploy.profiling.result import OperatorTime, Residual


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Times that add up: of each layer at each width, and the overhead of each width."""

    layers: tuple[LayerLatency, ...]
    overheads_ms: tuple[tuple[int, float], ...]


def layer_times(
    profiles: Mapping[int, Sequence[OperatorTime]], end_to_end_ms: Mapping[int, float], layers: Sequence[str]
) -> LayerTimes:
    """Spread the time of each width over its layers.

    Args:
        profiles: by width in bits, the time of every node. end_to_end_ms: by width, p50 without profiler.
        layers: the quantized layers of the master, in its order.
    """
    times: dict[str, list[tuple[int, float]]] = {name: [] for name in layers}
    overheads = []
    for bits, nodes in profiles.items():
        for name in layers:
            times[name].append((bits, sum(node.ms for node in nodes if node.layer == name)))
        owned_ms = sum(node.ms for node in nodes if node.layer in times)
        overheads.append((bits, max(0.0, end_to_end_ms[bits] - owned_ms)))
    rows = tuple(LayerLatency(name=name, latency_ms=tuple(values)) for name, values in times.items())
    return LayerTimes(layers=rows, overheads_ms=tuple(overheads))


def predict_ms(table: LatencyTable, widths: Mapping[str, int]) -> float:
    """The latency of an assignment, which names a width of the table for every layer of the table."""
    return table.overhead_ms + sum(dict(layer.latency_ms)[widths[layer.name]] for layer in table.layers)


def residuals(table: LatencyTable, measured: Mapping[str, tuple[Mapping[str, int], float]]) -> tuple[Residual, ...]:
    """How far the sum is from the whole.

    Args:
        measured: by label, the width of each layer and the p50 in ms of the whole network.
    """
    found = []
    for label, (widths, measured_ms) in measured.items():
        if all(widths.get(layer.name) in table.widths for layer in table.layers):
            predicted = predict_ms(table, widths)
            error = predicted / measured_ms - 1
            found.append(Residual(label=label, predicted_ms=predicted, measured_ms=measured_ms, error=error))
    return tuple(found)
