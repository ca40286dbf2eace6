"""Whose time it is: on the graphs that onnxruntime really makes, and by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from bitswitch_deploy.engines.onnxruntime_profile import NodeTime
from bitswitch_deploy.engines.optimized_operators import OptimizedNode, graph_nodes, optimized_nodes
from bitswitch_deploy.profiling.layers import LayerName, Ownership, ProfiledRuns, operator_times, owners, typical


def node(name: str, inputs: str, outputs: str, operator: str = "Any") -> OptimizedNode:
    return OptimizedNode(name=name, operator=operator, inputs=tuple(inputs.split()), outputs=tuple(outputs.split()))


def layer(name: str) -> LayerName:
    return LayerName(name=name, weight=f"{name}.weight", is_quantized=True)


def test_a_layer_owns_what_reads_its_weight_in_any_form() -> None:
    nodes = [
        node("a", "x conv1.weight.multiplied", "a"),
        node("b", "y conv1.weight_transposed", "b"),
        node("c", "z conv1.weight", "c"),
        node("d", "z conv1.weights", "d"),
    ]
    assert owners(nodes, [layer("conv1")]) == {"a": "conv1", "b": "conv1", "c": "conv1"}


def test_of_two_names_the_longer_one_is_meant() -> None:
    layers = [layer("block"), LayerName(name="other", weight="block.weight.next", is_quantized=True)]
    assert owners([node("a", "block.weight.next.codes", "a")], layers) == {"a": "other"}


def test_a_network_of_thousands_of_layers() -> None:
    """Names are looked up, not compared with each layer."""
    layers = [layer(f"blocks.{index}.conv") for index in range(3000)]
    nodes = [
        node(f"n{index}", f"x blocks.{index // 3}.conv.weight/Q blocks.{index // 3}.conv.bias", f"y{index}")
        for index in range(9000)
    ]
    assert owners(nodes, layers) == {f"n{index}": f"blocks.{index // 3}.conv" for index in range(9000)}


def test_of_layers_that_share_a_weight_the_first_owns_it() -> None:
    layers = [LayerName(name=name, weight="tied.weight", is_quantized=True) for name in ("embed", "head")]
    assert owners([node("a", "tied.weight.codes", "a")], layers) == {"a": "embed"}


def test_a_layer_owns_the_quantization_of_its_input() -> None:
    nodes = [node("q", "relu s z", "block.1.input.codes"), node("block.10.input/Clip", "relu", "y")]
    assert owners(nodes, [layer("block.1"), layer("block.10")]) == {"q": "block.1", "block.10.input/Clip": "block.10"}


def test_what_follows_a_layer_belongs_to_the_last_one_before_it() -> None:
    """An Add of two branches is the later layer's, in whichever order it reads them; what comes first is nobody's."""
    nodes = [
        node("reorder", "x", "r"),
        node("c1", "r conv1.weight", "c1"),
        node("shortcut", "c1 short.weight", "s"),
        node("c2", "c1 conv2.weight", "c2"),
        node("add", "c2 s", "sum"),
        node("add2", "s c2", "sum2"),
        node("relu", "sum", "y"),
        node("again", "c1", "z"),
    ]
    found = owners(nodes, [layer("conv1"), layer("conv2"), layer("short")])
    assert "reorder" not in found
    assert [found[name] for name in ("shortcut", "add", "add2", "relu", "again")] == [
        "short",
        "conv2",
        "conv2",
        "conv2",
        "conv1",
    ]


def run(**durations_us: float) -> tuple[NodeTime, ...]:
    return tuple(
        NodeTime(name=name, operator="Op", start_us=0.0, duration_us=duration)
        for name, duration in durations_us.items()
    )


def profiled(*runs: tuple[NodeTime, ...], plain_ms: float) -> ProfiledRuns:
    return ProfiledRuns(runs=runs, plain_ms=np.full(8, plain_ms))


def test_the_cost_of_the_profiler_is_taken_off_every_node_alike() -> None:
    """104 and 24 us in the profile, 112 us without: 8 us each."""
    times = operator_times(profiled(run(a=104, b=24), plain_ms=0.112), Ownership(owner_of={"a": "conv"}), p50_ms=0.112)
    assert [(each.name, each.layer) for each in times] == [("a", "conv"), ("b", None)]
    assert [each.ms for each in times] == pytest.approx([0.096, 0.016])


def test_no_node_takes_less_than_nothing() -> None:
    """c is 22 us for the two long nodes; the short one, 10 us, has none left."""
    times = operator_times(profiled(run(a=100, b=24, c=10), plain_ms=0.080), Ownership(owner_of={}), p50_ms=0.080)
    assert [each.ms for each in times] == pytest.approx([0.078, 0.002, 0.0])


def test_times_are_scaled_to_the_p50() -> None:
    times = operator_times(profiled(run(a=60, b=20), plain_ms=0.1), Ownership(owner_of={}), p50_ms=0.2)
    assert [each.ms for each in times] == pytest.approx([0.12, 0.04])
    assert [each.share for each in times] == pytest.approx([0.6, 0.2])


def test_a_node_that_runs_several_times_in_a_run_counts_whole() -> None:
    loop = (*run(body=10), *run(body=14))
    (time,) = operator_times(profiled(loop, loop, plain_ms=1.0), Ownership(owner_of={}), p50_ms=1.0)
    assert time.ms == pytest.approx(0.024)


def test_arithmetic_is_that_of_the_operator_or_what_the_graph_says_of_the_node() -> None:
    names = {"a": "MatMulNBits", "b": "MatMulNBits", "c": "QGemm", "d": "Relu"}
    nodes = tuple(NodeTime(name=name, operator=of, start_us=0.0, duration_us=1) for name, of in names.items())
    ownership = Ownership(owner_of={}, arithmetic={"b": "integer"})
    times = operator_times(profiled(nodes, plain_ms=1.0), ownership, p50_ms=1.0)
    found = {each.name: each.arithmetic for each in times}
    assert found == {"a": "weight-only", "b": "integer", "c": "integer", "d": None}


def test_typical_is_deaf_to_interruptions() -> None:
    assert typical([5.0, 1.0, 3.0, 3.0, 90.0, 80.0, 3.0, 99.0]) == pytest.approx((3 + 3 + 5) / 3)
    assert typical([7.0]) == 7.0


def test_a_convolution_in_blocks_of_channels_is_that_of_the_graph_as_it_was_written() -> None:
    """There its weight is called `reorder`, and it by what it writes, behind a Relu that is fused or not."""
    written = [
        node("c1", "x stem.weight", "c1"),
        node("n1", "c1 mean", "n1"),
        node("r1", "n1", "relu"),
        node("c2", "relu body.weight", "c2"),
        node("a", "c2 relu", "sum"),
    ]
    nodes = [
        node("ReorderInput", "x", "r"),
        node("relu_nchwc", "r reorder", "b1"),
        node("sum_nchwc", "b1 reorder_2 b1", "b2"),
        node("ReorderOutput", "b2", "sum"),
    ]
    layers = [layer("stem"), layer("body")]
    found = owners(nodes, layers, written)
    assert found == {"relu_nchwc": "stem", "sum_nchwc": "body", "ReorderOutput": "body"}
    assert owners(nodes, layers) == {}


def test_onnxruntime_s_blocks_of_channels() -> None:
    """Of 16 channels or so on x86; where it makes none there is nothing to find out."""
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[n, 16, 8, 8] x) => (float[n, 16, 4, 4] y) {
        c1 = Conv (x, a.weight) r1 = Relu (c1) y = Conv (r1, b.weight)
    }""".replace("a.weight", '"a.weight"').replace("b.weight", '"b.weight"')
    model = onnx.parser.parse_model(text)
    for name in ("a.weight", "b.weight"):
        weight = np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    nodes = optimized_nodes(model.SerializeToString(), session_options={})
    found = owners(nodes, [layer("a"), layer("b")], graph_nodes(model.graph))
    assert [found[each.name] for each in nodes if each.operator == "Conv"] == ["a", "b"]
