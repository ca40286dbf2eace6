from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.graph.lint.lint import lint
from bitswitch_deploy.graph.lint.reading import read_graph
from bitswitch_deploy.graph.lint.stored_bytes import size_bytes
from tests.graph.lint.graphs import (
    CONV,
    IN,
    LAYER,
    OUT,
    WEIGHT,
    found,
    model,
    nodes,
    optimised_operators,
    pair,
    weight,
    with_zero,
)

MATMUL: dict[str, Any] = {"x": "2, 4", "y": "a, b", "shape": (4, 4)}
TAIL = with_zero(WEIGHT + LAYER + OUT, "i")
PROTO = onnx.TensorProto


@pytest.mark.parametrize("zero", ["h", "uh"])
def test_sixteen_bits_are_unknown_to_tensorrt(zero: str) -> None:
    kind = {"h": "int16", "uh": "uint16"}[zero]
    assert found(model(pair("x", "d", "s", zero) + TAIL), "type-unknown-to-tensorrt") == [("q_d", f"{kind} codes")]


@pytest.mark.parametrize("kind", [PROTO.UINT4, PROTO.INT2, PROTO.UINT2, PROTO.FLOAT8E5M2])
def test_weights_of_types_unknown_to_tensorrt(kind: int) -> None:
    graph = typed(kind)
    assert nodes(graph, "type-unknown-to-tensorrt") == ["dq_wd"]


@pytest.mark.parametrize("kind", [PROTO.INT8, PROTO.INT4, PROTO.FLOAT8E4M3FN, PROTO.FLOAT4E2M1])
def test_weights_of_types_that_tensorrt_has(kind: int) -> None:
    assert not nodes(typed(kind), "type-unknown-to-tensorrt")


def typed(kind: int, opset: int = 25) -> onnx.ModelProto:
    """A MatMul with a weight of another type."""
    graph = model(weight(1, "s1", "z", codes="w") + "y = MatMul (x, wd)", opset=opset, **MATMUL)
    keep = [tensor for tensor in graph.graph.initializer if tensor.name != "w"]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(keep)
    for name, shape in (("w", [4, 4]), ("z", [])):
        values = [0] * int(np.prod(shape, dtype=int))
        graph.graph.initializer.append(onnx.helper.make_tensor(name, kind, shape, values))
    return graph


def test_int32_bias() -> None:
    bias = "[dq_b] bd = DequantizeLinear <axis = 0> (b, sb) c = Conv (d, wd, bd)"
    assert found(model(with_zero(IN + WEIGHT + bias + OUT, "i")), "int32-bias") == [("dq_b", "int32 codes")]
    assert not nodes(model(with_zero(IN + WEIGHT + "c = Conv (d, wd, bias)" + OUT, "i")), "int32-bias")


@pytest.mark.parametrize(
    ("kind", "opset", "needed"),
    [(PROTO.INT4, 19, 21), (PROTO.INT2, 23, 25), (PROTO.FLOAT8E4M3FN, 17, 19), (PROTO.FLOAT4E2M1, 21, 23)],
)
def test_types_newer_than_the_opset(kind: int, opset: int, needed: int) -> None:
    name = PROTO.DataType.Name(kind).lower()
    assert found(typed(kind, opset), "opset-too-old") == [("dq_wd", f"{name} codes at opset {opset}")]
    assert not nodes(typed(kind, needed), "opset-too-old")


def test_other_things_newer_than_the_opset() -> None:
    graph = model(with_zero(CONV, "i"), opset=10)
    assert found(graph, "opset-too-old") == [("dq_wd", "a scale for each index of an axis at opset 10")]
    graph = model("[q] q = QuantizeLinear <output_dtype = 3> (x, s) d = DequantizeLinear (q, s)" + TAIL, opset=19)
    assert found(graph, "opset-too-old") == [("q", "output_dtype at opset 19")]
    blocks = "[dq] wd = DequantizeLinear <axis = 0, block_size = 2> (w, s8, z8) y = MatMul (x, wd)"
    constants = "float[2, 4] s8 = {1,1,1,1,1,1,1,1}, int8[2, 4] z8 = {0,0,0,0,0,0,0,0}"
    graph = model(blocks, opset=20, constants=constants, **MATMUL)
    assert found(graph, "opset-too-old") == [("dq", "block_size at opset 20")]


def test_half_scales_newer_than_the_opset() -> None:
    for opset, broken in ((17, ["q_y", "dq_y"]), (19, [])):
        graph = model(with_zero(CONV, "i"), opset=opset)
        (scale,) = (tensor for tensor in graph.graph.initializer if tensor.name == "s2")
        scale.CopyFrom(onnx.numpy_helper.from_array(np.array(0.5, np.float16), "s2"))
        assert nodes(graph, "opset-too-old") == broken


def test_operators_of_com_microsoft_are_not_bound_to_the_opset() -> None:
    body = "q = com.microsoft.QuantizeLinear (x, s, h) d = com.microsoft.DequantizeLinear (q, s, h)" + TAIL
    graph = model(body, opset=17)
    assert not nodes(graph, "opset-too-old")
    assert nodes(graph, "type-unknown-to-tensorrt") == ["QuantizeLinear_0"]


@pytest.mark.parametrize("n_bytes", [7, 16])
def test_stored_bytes_that_do_not_fit(n_bytes: int) -> None:
    graph = model(weight(1, zero="in", codes="n") + "y = MatMul (x, wd)", **MATMUL)
    (codes,) = (tensor for tensor in graph.graph.initializer if tensor.name == "n")
    codes.ClearField("int32_data")
    codes.raw_data = bytes(8)
    assert not nodes(graph, "byte-count")
    codes.raw_data = bytes(n_bytes)
    assert found(graph, "byte-count") == [("dq_wd", f"{n_bytes} bytes in n, int4 [4, 4]")]
    codes.ClearField("raw_data")
    codes.int32_data.extend([0] * n_bytes)
    assert found(graph, "byte-count") == [("dq_wd", f"{n_bytes} bytes in n, int4 [4, 4]")]


@pytest.mark.parametrize(
    ("kind", "entries", "n_bytes"),
    [
        (PROTO.INT8, 15, 15),
        (PROTO.FLOAT, 15, 60),
        (PROTO.FLOAT16, 17, 34),
        (PROTO.DOUBLE, 15, 120),
        (PROTO.FLOAT, 0, 0),
    ],
)
def test_elements_that_are_missing_or_too_many(
    kind: onnx.TensorProto.DataType, entries: int, n_bytes: int, tmp_path: Path
) -> None:
    graph = model("[dq_w] wd = DequantizeLinear (w, s1, i) [dq_s] y = DequantizeLinear (i, f)", **MATMUL)
    (constant,) = (tensor for tensor in graph.graph.initializer if tensor.name == ("w" if kind == PROTO.INT8 else "f"))
    for count in (16, entries):
        constant.CopyFrom(onnx.TensorProto(name=constant.name, data_type=kind, dims=[4, 4]))
        field = {PROTO.FLOAT: "float_data", PROTO.DOUBLE: "double_data"}.get(kind, "int32_data")
        getattr(constant, field).extend([1] * count)
        said = [got for _, got in found(graph, "byte-count")]
        name = PROTO.DataType.Name(kind).lower()
        assert said == ([] if count == 16 else [f"{n_bytes} bytes in {constant.name}, {name} [4, 4]"])
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        optimised_operators(graph, tmp_path)


def test_external_data_of_another_length(tmp_path: Path) -> None:
    """int4 codes that are not packed."""
    graph = model(weight(1, zero="in", codes="n") + "y = MatMul (x, wd)", **MATMUL)
    (codes,) = (tensor for tensor in graph.graph.initializer if tensor.name == "n")
    for length, said in ((8, []), (16, ["16 bytes in n, int4 [4, 4]"])):
        codes.ClearField("int32_data")
        codes.raw_data = bytes(length)
        path = tmp_path / f"{length}.onnx"
        onnx.external_data_helper.set_external_data(codes, f"{length}.data", length=length)
        (tmp_path / f"{length}.data").write_bytes(bytes(length))
        codes.ClearField("raw_data")
        path.write_bytes(graph.SerializeToString())
        assert [each.got for each in lint(read_graph(path)).findings if each.rule == "byte-count"] == said


@pytest.mark.parametrize(
    ("kind", "shape", "size"),
    [
        (PROTO.INT8, (3, 5), 15),
        (PROTO.FLOAT, (3, 5), 60),
        (PROTO.INT4, (3, 5), 8),
        (PROTO.UINT2, (3, 3), 3),
        (PROTO.FLOAT16, (), 2),
        (PROTO.INT4, (0,), 0),
        (PROTO.BFLOAT16, (3,), 6),
        (PROTO.STRING, (3,), None),
        (PROTO.UNDEFINED, (3,), None),
    ],
)
def test_size_of_a_constant(kind: int, shape: tuple[int, ...], size: int | None) -> None:
    assert size_bytes(onnx.TensorProto(data_type=kind, dims=shape)) == size


def test_int4_rows_that_end_inside_a_byte() -> None:
    graph = model(weight(1, zero="in", codes="n") + "y = MatMul (x, wd)", **MATMUL | {"shape": (4, 3)})
    assert found(graph, "odd-int4-row") == [("dq_wd", "int4 codes of shape [4, 3]")]
    assert not nodes(model(weight(1, zero="in", codes="n") + "y = MatMul (x, wd)", **MATMUL), "odd-int4-row")
