from __future__ import annotations

import pytest

from bitswitch_deploy.latency_table import LatencyTable
from bitswitch_deploy.profiling.layer_table import layer_times, predict_ms, residuals
from bitswitch_deploy.profiling.result import OperatorTime


def op(layer: str | None, ms: float) -> OperatorTime:
    return OperatorTime(name=f"{layer}{ms}", operator="Op", layer=layer, ms=ms, share=0.0)


PROFILES = {
    8: [op("a", 1.0), op("a", 0.5), op("b", 2.0), op("pinned", 0.25), op(None, 0.25)],
    4: [op("a", 0.5), op("b", 1.0), op(None, 1.25)],
}
WHOLE = {8: 4.5, 4: 3.0}


def table() -> LatencyTable:
    times = layer_times(PROFILES, WHOLE, ["a", "b"])
    return LatencyTable(
        master_sha256="0" * 64,
        target="x86-cpu",
        engine="onnxruntime",
        engine_version="1",
        device=(),
        batch_size=1,
        threads=1,
        overhead_ms=max(ms for _, ms in times.overheads_ms),
        end_to_end_ms=tuple(WHOLE.items()),
        layers=times.layers,
    )


def test_layers_have_the_sum_of_their_nodes_and_the_rest_is_overhead() -> None:
    times = layer_times(PROFILES, WHOLE, ["a", "b"])
    assert [(layer.name, layer.latency_ms) for layer in times.layers] == [
        ("a", ((8, 1.5), (4, 0.5))),
        ("b", ((8, 2.0), (4, 1.0))),
    ]
    # 4.5 - 3.5 and 3.0 - 1.5: pinned layers, nodes of nobody, and what no node took
    assert times.overheads_ms == ((8, 1.0), (4, 1.5))


def test_a_sum_above_the_whole_leaves_no_overhead() -> None:
    assert layer_times({8: [op("a", 2.0)]}, {8: 1.9}, ["a"]).overheads_ms == ((8, 0.0),)


def test_the_prediction_is_the_overhead_and_the_layers() -> None:
    assert predict_ms(table(), {"a": 8, "b": 8}) == 5.0
    assert predict_ms(table(), {"a": 4, "b": 8}) == 4.0


def test_residuals_are_said_for_all_that_the_table_can_predict() -> None:
    found = residuals(
        table(), {"w8": ({"a": 8, "b": 8}, 4.5), "w6": ({"a": 6, "b": 6}, 4.0), "mixed": ({"a": 4, "b": 8}, 4.2)}
    )
    assert [(each.label, each.predicted_ms) for each in found] == [("w8", 5.0), ("mixed", 4.0)]
    assert [each.error for each in found] == pytest.approx([5.0 / 4.5 - 1, 4.0 / 4.2 - 1])
