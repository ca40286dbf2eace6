"""Quantize and dequantize against ONNX's own operators and a slow element-by-element implementation."""

from __future__ import annotations

import math
from typing import Any, Literal

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx.reference import ReferenceEvaluator

from bitswitch_deploy.quantization import dequantize, quantize
from bitswitch_deploy.tensors import PER_TENSOR, Granularity, code_range

Kind = Literal["per_tensor", "per_channel", "per_block"]

PER_ROW = Granularity(kind="per_channel", axis=0)


def scale_index(index: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """Where the scale of the element at `index` lies."""
    if granularity.axis is None:
        return ()
    if granularity.block_size is None:
        return (index[granularity.axis],)
    changed = list(index)
    changed[granularity.axis] //= granularity.block_size
    return tuple(changed)


def slow_quantize(x: np.ndarray, scale: np.ndarray, bits: int, signed: bool, granularity: Granularity) -> np.ndarray:
    ends = code_range(bits, signed=signed)
    codes = np.empty(x.shape, dtype=np.int64)
    for index in np.ndindex(*x.shape):
        with np.errstate(over="ignore"):
            quotient = float(x[index] / scale[scale_index(index, granularity)])
        codes[index] = min(max(round(min(max(quotient, -1e6), 1e6)), ends.low), ends.high)
    return codes


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Granularity]:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=5))
    kinds: list[Kind] = ["per_tensor", "per_channel", "per_block"]
    kind = draw(st.sampled_from(kinds if shape else kinds[:1]))
    axis = None if kind == "per_tensor" else draw(st.integers(0, len(shape) - 1))
    block_size = draw(st.integers(1, 7)) if kind == "per_block" else None
    granularity = Granularity(kind=kind, axis=axis, block_size=block_size)
    numbers = st.floats(-300, 300, width=32) | st.sampled_from([0.5, 1.5, -0.5, -2.5, math.inf, -math.inf])
    x = draw(hnp.arrays(np.float32, shape, elements=numbers))
    scales = st.floats(2.0**-10, 4.0, width=32) | st.sampled_from([1.0, 2.0**-126])
    scale = draw(hnp.arrays(np.float32, granularity.scale_shape(shape), elements=scales))
    return x, scale, granularity


@given(case=cases(), bits=st.integers(2, 8), signed=st.booleans())
@settings(max_examples=300, deadline=None)
def test_quantize_equals_the_slow_implementation(
    case: tuple[np.ndarray, np.ndarray, Granularity], bits: int, signed: bool
) -> None:
    x, scale, granularity = case
    before = x.copy()
    codes = quantize(x, scale, bits=bits, signed=signed, granularity=granularity)
    assert codes.dtype == (np.int8 if signed else np.uint8)
    np.testing.assert_array_equal(codes, slow_quantize(x, scale, bits, signed, granularity), strict=False)
    np.testing.assert_array_equal(x, before)


@given(case=cases(), signed=st.booleans(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_dequantize_equals_the_slow_implementation(
    case: tuple[np.ndarray, np.ndarray, Granularity], signed: bool, data: st.DataObject
) -> None:
    x, scale, granularity = case
    codes = data.draw(hnp.arrays(np.int8 if signed else np.uint8, x.shape))
    expected = np.empty(x.shape, dtype=np.float32)
    for index in np.ndindex(*x.shape):
        expected[index] = np.float32(codes[index]) * scale[scale_index(index, granularity)]
    real = dequantize(codes, scale, granularity=granularity)
    assert isinstance(real, np.ndarray)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(real, expected)


@given(case=cases(), bits=st.integers(2, 8), signed=st.booleans())
@settings(max_examples=100, deadline=None)
def test_codes_survive_the_way_to_reals_and_back(
    case: tuple[np.ndarray, np.ndarray, Granularity], bits: int, signed: bool
) -> None:
    x, scale, granularity = case
    codes = quantize(x, scale, bits=bits, signed=signed, granularity=granularity)
    real = dequantize(codes, scale, granularity=granularity)
    np.testing.assert_array_equal(quantize(real, scale, bits=bits, signed=signed, granularity=granularity), codes)


def onnx_codes(x: np.ndarray, scale: np.ndarray, element_type: int, granularity: Granularity) -> np.ndarray:
    """Run ONNX QuantizeLinear, then DequantizeLinear with scale 1 to read codes of any type."""
    attributes: dict[str, Any] = {} if granularity.axis is None else {"axis": granularity.axis}
    if granularity.block_size is not None:
        attributes["block_size"] = granularity.block_size
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], output_dtype=element_type, **attributes),
        onnx.helper.make_node("DequantizeLinear", ["q", "one"], ["y"]),
    ]
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
        for name, array in (("x", x), ("scale", scale))
    ]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, x.shape)]
    one = onnx.numpy_helper.from_array(np.array(1, np.float32), "one")
    graph = onnx.helper.make_graph(nodes, "q", inputs, outputs, [one])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    onnx.checker.check_model(model, full_check=True)
    (codes,) = ReferenceEvaluator(model).run(None, {"x": x, "scale": scale})
    return np.asarray(codes)


@pytest.mark.parametrize(
    ("bits", "signed", "element_type"),
    [
        (8, True, onnx.TensorProto.INT8),
        (8, False, onnx.TensorProto.UINT8),
        (4, True, onnx.TensorProto.INT4),
        (4, False, onnx.TensorProto.UINT4),
    ],
)
@pytest.mark.parametrize(
    "granularity",
    [
        PER_TENSOR,
        PER_ROW,
        Granularity(kind="per_channel", axis=1),
        Granularity(kind="per_block", axis=1, block_size=4),
        Granularity(kind="per_block", axis=0, block_size=3),
    ],
    ids=lambda granularity: f"{granularity.kind}-{granularity.axis}",
)
def test_codes_equal_onnx_quantize_linear(granularity: Granularity, bits: int, signed: bool, element_type: int) -> None:
    random = np.random.default_rng(11)
    x = random.normal(0, 40, (6, 8)).astype(np.float32)
    x[0, :4] = [0.5, 1.5, -0.5, -1.5]
    scale = np.asarray(random.uniform(0.2, 2, granularity.scale_shape(x.shape)), dtype=np.float32)
    codes = quantize(x, scale, bits=bits, signed=signed, granularity=granularity)
    np.testing.assert_array_equal(codes, onnx_codes(x, scale, element_type, granularity))


def test_ties_go_to_the_even_code() -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], dtype=np.float32)
    codes = quantize(x, np.array(1, np.float32), bits=8, signed=True)
    assert codes.tolist() == [-2, -2, 0, 0, 2, 2]


def test_the_division_is_in_float32() -> None:
    """Found by search: 3.5 and 8.5 times 0.1 divide otherwise in float64, 15.5 times 0.1 by the reciprocal."""
    x, scale = np.array([0.35, 0.85, 1.55], np.float32), np.array(0.1, np.float32)
    assert np.rint(x.astype(np.float64) / float(scale)).tolist() == [3, 9, 15]
    assert np.rint(x * (np.float32(1) / scale)).tolist() == [4, 8, 16]
    assert quantize(x, scale, bits=8, signed=True).tolist() == [4, 8, 15]


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_ends_of_every_range(bits: int) -> None:
    x = np.array([-math.inf, -1e30, 1e30, math.inf], dtype=np.float32)
    one = np.array(1, np.float32)
    top = 2 ** (bits - 1)
    assert quantize(x, one, bits=bits, signed=True).tolist() == [-top, -top, top - 1, top - 1]
    assert quantize(x, one, bits=bits, signed=False).tolist() == [0, 0, 2 * top - 1, 2 * top - 1]


def test_a_last_block_may_be_short() -> None:
    granularity = Granularity(kind="per_block", axis=0, block_size=3)
    codes = np.array([1, 2, 3, 4, 5, 6, 7], dtype=np.int8)
    scale = np.array([1, 10, 100], dtype=np.float32)
    real = dequantize(codes, scale, granularity=granularity)
    assert real.tolist() == [1, 2, 3, 40, 50, 60, 700]
    assert quantize(real, scale, bits=8, signed=True, granularity=granularity).tolist() == codes.tolist()


def test_a_block_larger_than_the_axis_costs_nothing() -> None:
    granularity = Granularity(kind="per_block", axis=1, block_size=2**62)
    scale = np.array([[2], [4]], dtype=np.float32)
    assert dequantize(np.ones((2, 3), np.int8), scale, granularity=granularity).tolist() == [[2] * 3, [4] * 3]


def test_empty_arrays_have_empty_codes() -> None:
    assert quantize(np.empty((0, 3), np.float32), np.array(1, np.float32), bits=4, signed=True).shape == (0, 3)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (np.ones(2, np.float64), "must be float32 of shape"),
        (np.ones(3, np.float32), r"of shape \(2,\), got float32 of shape \(3,\)"),
        (np.ones((), np.float32), r"of shape \(2,\), got float32 of shape \(\)"),
        (np.array([1, 0], np.float32), "finite and positive"),
        (np.array([1, -1], np.float32), "finite and positive"),
        (np.array([1, math.nan], np.float32), "finite and positive"),
        (np.array([1, math.inf], np.float32), "finite and positive"),
    ],
)
def test_a_bad_scale_is_refused_both_ways(scale: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(np.ones((2, 2), np.float32), scale, bits=8, signed=True, granularity=PER_ROW)
    with pytest.raises(ValueError, match=message):
        dequantize(np.ones((2, 2), np.int8), scale, granularity=PER_ROW)


def test_other_bad_arguments_are_refused() -> None:
    one = np.array(1, np.float32)
    with pytest.raises(ValueError, match="x must be float32, got float64"):
        quantize(np.ones(2), one, bits=8, signed=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x holds NaN"):
        quantize(np.array([1, math.nan], np.float32), one, bits=8, signed=True)
    with pytest.raises(ValueError, match="codes must be int8 or uint8, got int32"):
        dequantize(np.ones(2, np.int32), one)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bits must be in 2\.\.8, got 9"):
        quantize(np.ones(2, np.float32), one, bits=9, signed=True)
    with pytest.raises(ValueError, match="axis 3 does not exist"):
        quantize(np.ones(2, np.float32), one, bits=8, signed=True, granularity=Granularity(kind="per_channel", axis=3))
