from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.engine_layers import EngineLayer, Precision
from bitswitch_deploy.engines.read_back import NodePrecision, UnfusedQuantizer, read_back
from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import build_engine

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[1, 4] x) => (float[1, 4] y) <float s = {0.1}, int8 z = {0}> {
    [w_dq] w = DequantizeLinear (codes, s, z)
    [q] c = QuantizeLinear (x, s, z)
    [dq] d = DequantizeLinear (c, s, z)
    [product] m = MatMul (d, w)
    [relu] r = Relu (m)
    [q2] c2 = QuantizeLinear (r, s, z)
    [dq2] d2 = DequantizeLinear (c2, s, z)
    [last] y = MatMul (d2, plain)
}"""


def graph(text: str = TEXT) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    for name, dtype in (("codes", np.int8), ("plain", np.float32)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((4, 4), dtype), name))
    return model


MODEL = graph()


def layer(*nodes: str, reads: Precision = "fp16", weights: tuple[Precision, ...] = (), name: str = "k") -> EngineLayer:
    return EngineLayer(name=name, kind="", nodes=nodes, inputs=(reads,), outputs=("fp16",), weights=weights)


def test_a_fused_integer_layer() -> None:
    found = read_back(
        MODEL, [layer("product", "w_dq", "dq", "relu", "q2", reads="int8"), layer("last", "dq2"), layer("q")]
    )
    assert found.int8 == (NodePrecision(node="product", operator="MatMul", precision="int8"),)
    assert found.fell_back == ()
    assert found.in_float == (NodePrecision(node="last", operator="MatMul", precision="fp16"),)
    assert found.unfused == (UnfusedQuantizer(node="q", operator="QuantizeLinear", layer="k", alone=True),)
    assert found.unseen == ()
    assert found.engine_layers == 3


def test_a_layer_that_fell_back_is_named_with_its_type() -> None:
    found = read_back(MODEL, [layer("product", reads="fp32")])
    assert found.fell_back == (NodePrecision(node="product", operator="MatMul", precision="fp32"),)
    assert found.int8 == ()


def test_quantizers_in_elementwise_kernels_are_told_apart_from_lonely_ones() -> None:
    found = read_back(MODEL, [layer("relu", "q2", name="merged"), layer("dq2", "q", name="lonely")])
    assert [(each.node, each.layer, each.alone) for each in found.unfused] == [
        ("q", "lonely", True),
        ("q2", "merged", False),
        ("dq2", "lonely", True),
    ]
    # the quantizer of a weight is folded when the engine is built, so it is not asked for
    assert found.unseen == ("product", "last", "dq")


def test_of_several_layers_of_a_node_the_one_with_weights_counts() -> None:
    found = read_back(MODEL, [layer("product"), layer("product", reads="int8", weights=("int8",))])
    assert [each.node for each in found.int8] == ["product"]


@pytest.mark.parametrize("constants", [("fp32", "int8"), ("int8", "fp32")])
def test_a_layer_that_only_prepares_weights_does_not_count(constants: tuple[Precision, ...]) -> None:
    """Whatever the order of its constants: a constant says nothing about the arithmetic."""
    prepares = EngineLayer(
        name="a", kind="kgen", nodes=("w_dq", "product"), inputs=(), outputs=("fp32",), weights=constants
    )
    found = read_back(MODEL, [prepares, layer("product", "dq", reads="fp32")])
    assert [(each.node, each.precision) for each in found.fell_back] == [("product", "fp32")]
    assert [each.precision for each in read_back(MODEL, [prepares]).fell_back] == ["other"]


@pytest.mark.parametrize(
    "moving", ["Identity (d)", "Transpose <perm = [0, 1]> (d)", "Reshape (d, shape)", "Flatten (d)"]
)
def test_a_layer_behind_what_only_moves_codes_is_a_quantized_one(moving: str) -> None:
    text = TEXT.replace("int8 z = {0}", "int8 z = {0}, int64[2] shape = {1, 4}")
    text = text.replace("[product] m = MatMul (d, w)", f"p = {moving}\n q = Identity (p)\n [product] m = MatMul (q, w)")
    found = read_back(graph(text), [layer("product", reads="int8"), layer("last")])
    assert [each.node for each in found.int8] == ["product"]
    assert [each.node for each in found.in_float] == ["last"]


def test_float_weights_behind_quantizers_are_quantized_layers() -> None:
    """TensorRT 8 gets its weights as float, Q, DQ."""
    text = TEXT.replace("[w_dq] w = Deq", "[w_q] k = QuantizeLinear (plain, s, z)\n [w_dq] w = Deq").replace(
        "(codes, s, z)", "(k, s, z)"
    )
    found = read_back(graph(text), [layer("product", reads="int8")])
    assert [each.node for each in found.int8] == ["product"]
    assert "w_q" not in found.unseen


@pytest.mark.parametrize(("batch", "capability"), [("1", "SM86"), ("1", "SM120")])
def test_a_real_engine_is_read_back_without_a_gpu(qdq_conv: Callable[..., bytes], batch: str, capability: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    data = qdq_conv(batch=batch)
    settings = BuildSettings(compute_capabilities=(capability,))
    build = build_engine(data, module="tensorrt_rtx", settings=settings)
    found = read_back(onnx.load_from_string(data), build.layers)
    assert [(each.node, each.precision) for each in found.int8] == [("conv", "int8")]
    assert (found.fell_back, found.in_float, found.unseen) == ((), (), ())
    assert [each.node for each in found.unfused] == ["activation_q"]
