"""Requantize: every code of one scale becomes the same code of another, and padding stays zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from bitswitch_deploy.engines.onnxruntime_engine import Optimisation
from bitswitch_deploy.graph.model_io import export_model, import_model
from bitswitch_deploy.graph.qdq import activation_patterns, refine_activation
from tests.graph.masters import HEADER
from tests.graph.running import initializer, look, operators
from tests.lowering.lowered import INT8_CPU, applied, fast_operators, is_untouched, profile

Array = np.ndarray[Any, np.dtype[Any]]

X86, INT8 = profile("x86-cpu"), profile("arm64-cpu", INT8_CPU)


def parsed(text: str) -> onnx.ModelProto:
    """Read a model whose node names have _ for /, which ONNX text does not allow."""
    model = onnx.parser.parse_model(HEADER + text)
    for node in model.graph.node:
        node.name = node.name.replace("_", "/")
    return model


BOTH: tuple[Optimisation, ...] = ("off", "all")


def chain(
    *,
    first: float = 0.037,
    second: float = 0.1,
    bits: int = 8,
    zero_points: tuple[int, int] = (0, 0),
    low: int = 0,
    container: str = "uint8",
) -> onnx.ModelProto:
    """Give x -> codes `from` -> codes `to`, the latter clipped to `bits` bits -> y."""
    start, end = zero_points
    high = 2**bits - 1
    clip = "c = Clip (to, low, high)" if bits < 8 or low else "c = Identity (to)"
    text = f"""
    net (float[n] x) => (float[n] y)
        <float s = {{{first}}}, {container} z = {{{start}}}, float t = {{{second}}}, {container} w = {{{end}}},
         {container} low = {{{low}}}, {container} high = {{{high}}}> {{
        [from_QuantizeLinear] from = QuantizeLinear (x, s, z)
        [from_DequantizeLinear] d = DequantizeLinear (from, s, z)
        [to_QuantizeLinear] to = QuantizeLinear (d, t, w)
        {clip}
        [to_DequantizeLinear] y = DequantizeLinear (c, t, w)
    }}"""
    return parsed(text if "Clip" in clip else text.replace(clip, "").replace("(c,", "(to,"))


def every_code(scale: float, zero_point: int) -> Array:
    return np.asarray((np.arange(-20, 280) - zero_point) * np.float32(scale), np.float32)


RATIOS = [(0.037, 0.1), (0.1, 0.037), (0.1, 0.05), (0.05, 0.1), (1.0, 3.0), (1.0, 2.0000002), (1e-6, 0.9e-6), (2, 1.5)]


@pytest.mark.parametrize("zero_points", [(0, 0), (128, 128), (128, 0), (0, 128), (7, 93)])
@pytest.mark.parametrize("bits", [8, 7, 6, 5, 4, 3, 2])
def test_same_codes(bits: int, zero_points: tuple[int, int]) -> None:
    for first, second in RATIOS:
        before = chain(first=first, second=second, bits=bits, zero_points=zero_points)
        result = applied("Requantize", before, X86)
        assert (result.modified, result.changes) == (True, [])
        x = every_code(first, zero_points[0])
        expected = look(before, x, "y")
        np.testing.assert_array_equal(look(result.model, x, "y"), expected)
        found = look(result.model, x, "y", optimisation="all")
        steps = np.clip(np.arange(-20, 280), 0, 255) - zero_points[0]
        exact = steps * (np.float64(np.float32(first)) / np.float64(np.float32(second)))
        tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-4
        np.testing.assert_array_equal(found[~tie], expected[~tie], err_msg=f"{first}, {second}")
        step = np.float32(second)
        assert (np.abs(found[tie] - expected[tie]) <= 1.01 * step).all()


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_what_onnxruntime_makes_of_it(bits: int) -> None:
    before = chain(bits=bits)
    after = applied("Requantize", before, X86).model
    assert fast_operators(before, X86).get("QLinearAdd") is None
    found = fast_operators(after, X86)
    # one QuantizeLinear of x, one DequantizeLinear to y, nothing but the addition between them
    assert found == {"QuantizeLinear": 1, "QLinearAdd": 1, "DequantizeLinear": 1}


@pytest.mark.parametrize("bits", [7, 4, 2])
def test_clip_at_the_top_becomes_saturation(bits: int) -> None:
    result = applied("Requantize", chain(bits=bits), X86)
    assert "Clip" not in operators(result.model)
    quantize = next(node for node in result.model.graph.node if node.name == "to/QuantizeLinear")
    assert initializer(result.model, quantize.input[2]) == 255 - (2**bits - 1)


KEPT_CLIPS: dict[str, dict[str, Any]] = {
    "what comes in can be negative": {"zero_points": (128, 0)},
    "codes do not begin at 0": {"low": 1},
    "codes around another zero-point": {"zero_points": (0, 3)},
}


@pytest.mark.parametrize("case", KEPT_CLIPS)
def test_clips_that_stay(case: str) -> None:
    before = chain(bits=4, **KEPT_CLIPS[case])
    result = applied("Requantize", before, X86)
    assert "Clip" in operators(result.model)
    x = every_code(0.037, KEPT_CLIPS[case].get("zero_points", (0, 0))[0])
    for optimisation in BOTH:
        np.testing.assert_array_equal(look(result.model, x, "y", optimisation=optimisation), look(before, x, "y"))


def finer(shift: int, *, bits: int, low: int = 0, clip: bool = True) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Give x -> codes -> y, plain and with the codes shifted."""
    lines = "c = Clip (q, low, high)" if clip else ""
    text = f"""
    net (float[n] x) => (float[n] y)
        <float s = {{0.1}}, uint8 z = {{0}}, uint8 low = {{{low}}}, uint8 high = {{{2**bits - 1}}}> {{
        [a_QuantizeLinear] q = QuantizeLinear (x, s, z)
        {lines}
        [a_DequantizeLinear] y = DequantizeLinear ({"c" if clip else "q"}, s, z)
    }}"""
    plain = parsed(text)
    graph = import_model(plain)
    refine_activation(graph, activation_patterns(graph)[0], shift)
    return plain, export_model(graph, opset=21, ir_version=10)


@pytest.mark.parametrize("low", [0, 1])
@pytest.mark.parametrize(("bits", "shift"), [(bits, shift) for bits in range(2, 8) for shift in (1, 8 - bits)])
def test_finer_steps(bits: int, shift: int, low: int) -> None:
    plain, shifted = finer(shift, bits=bits, low=low)
    result = applied("Requantize", shifted, X86)
    assert result.modified
    found = operators(result.model)
    assert "BitShift" not in found
    assert ("Clip" in found) is bool(low)
    x = np.arange(-40, 300, dtype=np.float32) * np.float32(0.05)
    expected = look(plain, x, "y")
    assert len(np.unique(expected)) == 2**bits - low
    for optimisation in BOTH:
        np.testing.assert_array_equal(look(result.model, x, "y", optimisation=optimisation), expected)
    after = fast_operators(result.model, X86)
    assert after.get("QLinearAdd") == 1
    assert after["QuantizeLinear"] == after["DequantizeLinear"] == 1


@pytest.mark.parametrize("bits", [6, 4])
def test_finer_steps_behind_other_codes(bits: int) -> None:
    """A residual stream into a layer whose input is counted in finer steps: rounded once, to the trained codes."""
    plain = chain(bits=bits)
    graph = import_model(plain)
    refine_activation(graph, activation_patterns(graph)[1], 8 - bits)
    result = applied("Requantize", export_model(graph, opset=21, ir_version=10), X86)
    x = every_code(0.037, 0)
    for optimisation in BOTH:
        np.testing.assert_array_equal(look(result.model, x, "y", optimisation=optimisation), look(plain, x, "y"))
    assert fast_operators(result.model, X86).get("QLinearAdd") == 2
    assert "BitShift" not in operators(result.model)


# --- a zero-point that has moved, under padding ----------------------------------------------------------------------

READERS = {
    "convolution": ("Conv <pads = [1, 1, 1, 1]>", "2, 2, 3, 3", (9, 2, 6, 6)),
    "same": ('Conv <auto_pad = "SAME_LOWER">', "2, 2, 3, 3", (9, 2, 6, 6)),
    "depthwise": ("Conv <pads = [2, 1, 0, 1], group = 2>", "2, 1, 3, 3", (9, 2, 6, 6)),
    "strides": ("Conv <pads = [3, 3, 3, 3], strides = [2, 2]>", "2, 2, 7, 7", (9, 2, 9, 9)),
    "dilations": ("Conv <pads = [2, 2, 2, 2], dilations = [2, 2]>", "2, 2, 3, 3", (9, 2, 6, 6)),
    "1-D": ("Conv <pads = [1, 1]>", "2, 2, 3", (20, 2, 9)),
    "3-D": ("Conv <pads = [1, 1, 1, 1, 1, 1]>", "2, 2, 3, 3, 3", (4, 2, 4, 4, 4)),
    "transposed": ("ConvTranspose <pads = [1, 1, 1, 1], strides = [2, 2]>", "2, 2, 3, 3", (9, 2, 5, 5)),
}


def padded(reader: str, bits: int, *, shift: bool) -> onnx.ModelProto:
    """Give codes of x -> codes of a layer with padding -> codes."""
    operator, weight, shape = READERS[reader]
    count = int(np.prod([int(each) for each in weight.split(",")]))
    values = np.random.default_rng(4).integers(-60, 61, count)
    free = ", ".join("abcde"[: len(shape)])
    text = f"""
    net (float[{", ".join(map(str, shape))}] x) => (float[{free}] y)
        <float s = {{0.037}}, uint8 z = {{0}}, float t = {{0.1}}, uint8 low = {{0}}, uint8 high = {{{2**bits - 1}}},
         float u = {{0.05123}}, uint8 m = {{128}}, float v = {{0.01}}, int8 n = {{0}},
         int8[{weight}] k = {{{", ".join(map(str, values))}}}> {{
        [k_DequantizeLinear] kernel = DequantizeLinear (k, v, n)
        [from_QuantizeLinear] from = QuantizeLinear (x, s, z)
        d = DequantizeLinear (from, s, z)
        [to_QuantizeLinear] to = QuantizeLinear (d, t, z)
        c = Clip (to, low, high)
        [to_DequantizeLinear] e = DequantizeLinear (c, t, z)
        f = {operator} (e, kernel)
        [out_QuantizeLinear] o = QuantizeLinear (f, u, m)
        y = DequantizeLinear (o, u, m)
    }}"""
    model = parsed(text)
    if not shift:
        return model
    graph = import_model(model)
    # m stays the zero-point of the output
    pattern = next(each for each in activation_patterns(graph) if each.quantize.name == "to/QuantizeLinear")
    refine_activation(graph, pattern, 8 - bits)
    return export_model(graph, opset=21, ir_version=10)


@pytest.mark.parametrize("shift", [False, True], ids=["", "finer"])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bits", [7, 6, 4, 2])
def test_padding_is_zero_wherever_the_zero_point_is(bits: int, reader: str, shift: bool) -> None:
    before = padded(reader, bits, shift=False)
    result = applied("Requantize", padded(reader, bits, shift=shift), X86)
    assert not {"Clip", "BitShift"} & set(operators(result.model))
    x = np.random.default_rng(8).uniform(0.2, 9, READERS[reader][2]).astype(np.float32)
    expected = look(before, x, "y")
    assert len(np.unique(expected)) > 5
    for optimisation in BOTH:
        found = look(result.model, x, "y", optimisation=optimisation)
        np.testing.assert_array_equal(found, expected, err_msg=optimisation)
    if reader != "transposed":  # onnxruntime has no integer ConvTranspose
        assert fast_operators(result.model, X86).get("QLinearConv") == 1


def test_average_pooling_around_another_zero_point() -> None:
    for attributes in ("", ", count_include_pad = 1", ", ceil_mode = 1"):
        kind = f"AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]{attributes}> (e)"
        before = padded("convolution", 4, shift=False)
        (node,) = [node for node in before.graph.node if node.op_type == "Conv"]
        pool = onnx.parser.parse_graph(f"g (float[9, 2, 6, 6] e) => (float[a, b, c, d] f) {{ f = {kind} }}").node[0]
        node.CopyFrom(pool)
        result = applied("Requantize", before, X86)
        x = np.random.default_rng(8).uniform(0.2, 3, (9, 2, 6, 6)).astype(np.float32)
        expected = look(before, x, "y")
        for optimisation in BOTH:
            found = look(result.model, x, "y", optimisation=optimisation)
            assert (np.abs(found - expected) > 1e-6).mean() < 0.06, (attributes, optimisation)  # ties of means
            assert np.abs(found - expected).max() < 0.0513, (attributes, optimisation)


# --- left alone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    [
        chain(container="int8", bits=4),
        chain(first=0.1, second=0.1),
        chain(first=0.1, second=0.1, zero_points=(128, 128)),
        chain(first=0.1, second=0.1, bits=4),
    ],
    ids=["int8", "same scale", "same scale, zero-point", "same scale, clip"],
)
def test_left_alone(before: onnx.ModelProto) -> None:
    result = applied("Requantize", before, X86)
    assert is_untouched(result, before)


def test_same_scale_around_another_zero_point_is_a_change() -> None:
    before = chain(first=0.1, second=0.1, zero_points=(128, 0))
    result = applied("Requantize", before, X86)
    assert result.modified
    x = every_code(0.1, 128)
    np.testing.assert_array_equal(look(result.model, x, "y", optimisation="all"), look(before, x, "y"))


def test_codes_of_a_float_tensor_are_left_alone() -> None:
    plain, _ = finer(1, bits=4)
    assert not applied("Requantize", plain, X86).modified


def test_unsigned_codes_of_an_int8_target() -> None:
    """Its shifted codes stay in uint8, behind whatever: same numbers."""
    plain, shifted = finer(2, bits=6)
    result = applied("Requantize", shifted, INT8)
    x = np.arange(-40, 300, dtype=np.float32) * np.float32(0.05)
    np.testing.assert_array_equal(look(result.model, x, "y", optimisation="all"), look(plain, x, "y"))
