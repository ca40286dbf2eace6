"""PackWeights: the right number of bytes, accepted by onnxruntime, the same numbers behind DequantizeLinear."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import build_engine
from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.lowering.approximation import EXPORTED
from bitswitch_deploy.lowering.lower import lower
from bitswitch_deploy.master import Master
from bitswitch_deploy.tensors import PER_TENSOR, Granularity, WidthAssignment
from tests.graph.masters import build, layer, per_block, per_channel
from tests.graph.running import look, needs_current_onnxruntime, run
from tests.lowering.lowered import Applied, applied, canonical, lowered, profile

Array = np.ndarray[Any, np.dtype[Any]]

CONTAINERS = "quantization.weight_containers"
OLD = {"Conv": "int8", "ConvTranspose": "int8", "Gemm": "int8"}
INT4 = profile("rtx")
# opset 25 came with IR version 13
INT2 = profile(
    "x86-cpu",
    {"stack.opset": 25, "stack.ir_version": 13, CONTAINERS: {**OLD, "MatMul": {8: "int8", 4: "int4", 2: "int2"}}},
)


def text(columns: int = 6, rows: int = 5) -> str:
    return (
        f'net (float[n, {rows}] x, float[{rows}, {columns}] "a.weight") => (float[n, {columns}] y)'
        ' { y = MatMul (x, "a.weight") }'
    )


def master_of(granularity: Granularity = PER_TENSOR, columns: int = 6, rows: int = 5) -> Master:
    return build(text(columns, rows), (layer("a", "MatMul", granularity, "none"),))


def packed(master: Master, bits: int, target: Any) -> tuple[onnx.ModelProto, Applied]:
    before = canonical(master, bits).model
    if target is INT2:
        before.opset_import[0].version, before.ir_version = 25, 13
    return before, applied("PackWeights", before, target, bits=bits)


def proto(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


GRANULARITIES = [PER_TENSOR, per_channel(1), per_block(0, 2)]
TYPES = [
    (INT4, 4, "INT4", 2),
    (INT4, 3, "INT4", 2),
    (INT4, 2, "INT4", 2),
    pytest.param(INT2, 2, "INT2", 4, marks=needs_current_onnxruntime),
    pytest.param(INT2, 3, "INT4", 2, marks=needs_current_onnxruntime),
]


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_beside_an_activation_in_codes_are_refused(bits: int) -> None:
    """TensorRT for RTX builds one integer product over all blocks of it."""
    master = build(text(16, 32), (layer("a", "MatMul", per_block(0, 2), activation="signed"),))
    with pytest.raises(GraphError, match=r"scales in blocks of 2(.|\n)*in a master granularity per_channel"):
        lowered(master, bits, INT4)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda each: each.kind)
@pytest.mark.parametrize(("target", "bits", "dtype", "per_byte"), TYPES)
def test_packed(target: Any, bits: int, dtype: str, per_byte: int, granularity: Granularity) -> None:
    before, result = packed(master_of(granularity), bits, target)
    assert result.modified
    assert result.changes == []
    for name, count in (("a.weight", 30), ("a.weight.zero_point", int(np.prod(granularity.scale_shape((5, 6)))))):
        tensor = proto(result.model, name)
        assert tensor.data_type == getattr(onnx.TensorProto, dtype)
        assert len(tensor.raw_data) == -(-count // per_byte)
        assert not tensor.int32_data
    assert tuple(proto(result.model, "a.weight").dims) == (5, 6)
    x = np.eye(5, dtype=np.float32)
    np.testing.assert_array_equal(
        look(result.model, x, "a.weight.dequantized"), look(before, x, "a.weight.dequantized")
    )
    np.testing.assert_array_equal(run(result.model, x), run(before, x))
    saved = onnx.load_from_string(result.model.SerializeToString())
    assert len(proto(saved, "a.weight").raw_data) == -(-30 // per_byte)


def test_order_in_the_byte() -> None:
    """By hand: the first code in the low bits, two's complement, the last byte filled up with zeros."""
    codes = np.array([[1, -1, 7, -8, 0, -2], [3, 5, -7, 2, 6, -3]]) * 16
    master = build(text(6, 2), (layer("a", "MatMul", activation="none"),), tensors={"a.weight": codes})
    _, result = packed(master, 4, INT4)
    assert proto(result.model, "a.weight").raw_data.hex() == "f187e0" + "5329d6"
    codes = np.array([[1, -1, 0, -2, 1, 1]]) * 64
    master = build(text(6, 1), (layer("a", "MatMul", activation="none"),), tensors={"a.weight": codes})
    _, result = packed(master, 2, INT2)
    assert proto(result.model, "a.weight").raw_data.hex() == "8d05"


@pytest.mark.parametrize(
    ("target", "bits", "dtype"), [(INT4, 4, "int4"), pytest.param(INT2, 2, "int2", marks=needs_current_onnxruntime)]
)
def test_odd_last_dimension_stays_int8(target: Any, bits: int, dtype: str) -> None:
    before, result = packed(master_of(columns=7), bits, target)
    assert not result.modified
    assert [(change.by, change.where, change.what, change.exact) for change in result.changes] == [
        ("PackWeights", "a.weight", f"kept in int8: {dtype} needs an even last dimension, got (5, 7)", True)
    ]
    assert proto(result.model, "a.weight").data_type == onnx.TensorProto.INT8
    np.testing.assert_array_equal(
        run(result.model, np.eye(5, dtype=np.float32)), run(before, np.eye(5, dtype=np.float32))
    )


CONVOLUTIONS = profile("x86-cpu", {CONTAINERS: {**OLD, "Conv": {8: "int8", 4: "int4"}, "MatMul": "int8"}})


@pytest.mark.parametrize(("kernel", "kept"), [((6, 4, 3, 3), True), ((6, 3, 3, 2), False)])
def test_the_last_of_four_dimensions_counts(kernel: tuple[int, ...], kept: bool) -> None:
    conv = (
        f'net (float[n, {kernel[1]}, 5, 5] x, float[{", ".join(map(str, kernel))}] "a.weight") => (float[n, 6, h, w] y)'
        ' { y = Conv (x, "a.weight") }'
    )
    _, result = packed(build(conv, (layer("a", activation="none"),)), 4, CONVOLUTIONS)
    assert result.modified is not kept
    assert [change.exact for change in result.changes] == ([True] if kept else [])


@pytest.mark.parametrize("bits", [8, 5])
def test_codes_wider_than_the_narrow_type_stay_int8(bits: int) -> None:
    _, result = packed(master_of(), bits, INT4)
    assert (result.modified, result.changes) == (False, [])


def test_operators_that_the_table_keeps_in_int8() -> None:
    gemm = build(text().replace("MatMul", "Gemm"), (layer("a", "Gemm", activation="none"),))
    _, result = packed(gemm, 4, INT4)
    assert (result.modified, result.changes) == (False, [])
    _, result = packed(master_of(), 4, profile("jetson-thor"))
    assert (result.modified, result.changes) == (False, [])


def test_weight_of_several_nodes_is_packed_once() -> None:
    shared = text(6, 6).replace("y = MatMul (x,", 'm = MatMul (x, "a.weight") y = MatMul (m,')
    before, result = packed(build(shared, (layer("a", "MatMul", activation="none"),)), 4, INT4)
    assert (result.modified, result.changes) == (True, [])
    assert len(proto(result.model, "a.weight").raw_data) == 18
    x = np.eye(6, dtype=np.float32)
    np.testing.assert_array_equal(run(result.model, x), run(before, x))


def test_weights_that_are_not_the_master_s_stay() -> None:
    before = canonical(master_of(), 4).model
    for tensor in before.graph.initializer:
        tensor.name = tensor.name.replace("a.weight", "other")
    for node in before.graph.node:
        node.input[:] = [name.replace("a.weight", "other") for name in node.input]
        node.output[:] = [name.replace("a.weight", "other") for name in node.output]
    assert not applied("PackWeights", before, INT4, bits=4).modified


def test_codes_with_factors_stay_int8() -> None:
    norms = ", ".join(f'float[6] "n.{part}"' for part in ("gamma", "beta", "mean", "var"))
    conv = (
        f'net (float[n, 4, 5, 5] x, float[6, 4, 2, 2] "a.weight", {norms}) => (float[n, 6, 4, 4] y)'
        ' { a = Conv (x, "a.weight") y = BatchNormalization (a, "n.gamma", "n.beta", "n.mean", "n.var") }'
    )
    for gamma, kept in ((-1.0, True), (1.0, False)):
        master = build(conv, (layer("a", activation="none"),), tensors={"n.gamma": np.full((6,), gamma)})
        before, after = lowered(master, 4, CONVOLUTIONS)
        assert proto(after.model, "a.weight").data_type == (onnx.TensorProto.INT8 if kept else onnx.TensorProto.INT4)
        said = [(change.what, change.exact) for change in after.changes if change.by == "PackWeights"]
        what = "kept in int8: its signs or steps were changed, which int4 cannot hold"
        assert said == ([(what, True)] if kept else [])
        assert ("PackWeights" in after.passes) is not kept
        x = np.random.default_rng(0).normal(1, 1, (5, 4, 5, 5)).astype(np.float32)
        np.testing.assert_allclose(run(after.model, x), run(before.model, x), rtol=1e-5, atol=1e-4)


def test_whole_target() -> None:
    before, after = lowered(master_of(per_channel(1)), 4, INT4)
    assert after.passes == ("PackWeights",)
    assert after.exact
    x = np.eye(5, dtype=np.float32)
    np.testing.assert_array_equal(run(after.model, x), run(before.model, x))


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1)], ids=lambda each: each.kind)
@pytest.mark.parametrize(
    ("rows", "size"), [(256, 128), (128, 64), (192, 64), (96, 32), (32, 16), (16, None), (40, None)]
)
def test_scales_are_said_for_each_block_of_inputs(rows: int, size: int | None, granularity: Granularity) -> None:
    before, result = packed(master_of(granularity, rows=rows), 4, INT4)
    assert (result.modified, result.changes) == (True, [])
    (dequantize,) = [node for node in result.model.graph.node if node.op_type == "DequantizeLinear"]
    attributes = {each.name: each.i for each in dequantize.attribute}
    assert attributes.get("block_size") == size
    shape = granularity.scale_shape((rows, 6)) if size is None else (rows // size, 6)
    assert tuple(proto(result.model, "a.weight.scale").dims) == shape
    assert tuple(proto(result.model, "a.weight.zero_point").dims) == shape
    x = np.eye(rows, dtype=np.float32)
    np.testing.assert_array_equal(run(result.model, x), run(before, x))


@pytest.mark.parametrize("rows", [256, 128, 64, 48])
@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1)], ids=lambda each: each.kind)
def test_an_engine_multiplies_by_packed_weights_as_they_are(granularity: Granularity, rows: int) -> None:
    """It makes no float matrix of them in front of the product."""
    pytest.importorskip("tensorrt_rtx")
    after = lower(
        canonical_graph(master_of(granularity, columns=64, rows=rows), WidthAssignment(default=4)),
        INT4,
        ranges={},
        approximations=EXPORTED,
    )
    after.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 16
    settings = BuildSettings(compute_capabilities=("SM89",))
    layers = build_engine(after.model.SerializeToString(), module="tensorrt_rtx", settings=settings).layers
    # the kernel may read the float32 input of the network itself
    assert [bool(each.inputs) for each in layers if "int4" in each.weights] == [True]


@pytest.mark.parametrize("columns", [6, None])
def test_behind_codes_they_stay_int8(columns: int | None) -> None:
    """An engine would make int8 of them in each run."""
    shape, result_shape = ("6", "n") if columns is None else (f"6, {columns}", f"n, {columns}")
    net = (
        f'net (float[n, 6] x, float[{shape}] "a.weight") => (float[{result_shape}] y) {{ y = MatMul (x, "a.weight") }}'
    )
    _, result = packed(build(net, (layer("a", "MatMul", activation="signed"),)), 4, INT4)
    assert (result.modified, result.changes) == (False, [])
    assert proto(result.model, "a.weight").data_type == onnx.TensorProto.INT8
