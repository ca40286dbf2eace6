"""Outputs of the graph that are read on: onnxruntime rounds no bias in front of them, and hands out no codes.

QuantizeBias keeps it from the first, ChannelsLast from the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession, Optimisation
from bitswitch_deploy.lowering.approximation import EXACT, USUAL, Approximation
from bitswitch_deploy.lowering.lower import calibrated_tensors, lower
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import Operator
from tests.graph.masters import build, layer, per_channel
from tests.graph.running import operators
from tests.lowering.blocks import images, observed, residual_master
from tests.lowering.lowered import canonical, fast_operators, lowered, profile

Array = np.ndarray[Any, np.dtype[Any]]

X86, ARM = profile("x86-cpu"), profile("arm64-cpu")
CONV = 'Conv <pads = [1, 1, 1, 1]> (x, "a.weight", "a.bias")'
POOL = "MaxPool <kernel_shape = [2, 2]>"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Layer a, what makes the output h, layer b behind `read`."""

    compute: str
    read: str = "h"
    operator: Operator = "Conv"

    @property
    def is_image(self) -> bool:
        return self.operator.startswith("Conv")

    def master(self) -> Master:
        data, out, last = ("n, 4", "n", "MatMul") if not self.is_image else ("n, 4, 6, 6", "n, c, s, t", "Conv")
        weight = {"Conv": "6, 4, 3, 3", "ConvTranspose": "4, 6, 3, 3"}.get(self.operator, "4, 6")
        head = "5, 6, 1, 1" if self.is_image else "6, 5"
        shape = out if self.is_image else "n, c"
        text = f"""
        net (float[{data}] x, float[{weight}] "a.weight", float[6] "a.bias", float[{head}] "b.weight")
            => (float[{shape}] y, float[{shape.replace("c", "d").replace("s", "u").replace("t", "v")}] h)
            <float low = {{0}}, float high = {{3}}> {{ {self.compute} y = {last} ({self.read}, "b.weight") }}"""
        granularity = per_channel(0 if self.operator == "Conv" else 1)
        return build(text, (layer("a", self.operator, granularity), layer("b", last)))  # type: ignore[arg-type]

    def inputs(self) -> Array:
        shape = (10, 4, 6, 6) if self.is_image else (300, 4)
        return np.random.default_rng(11).normal(0.3, 1, shape).astype(np.float32)


ROUNDED = {
    "convolution": Case(compute=f"h = {CONV}"),
    "relu": Case(compute=f"a = {CONV} h = Relu (a)"),
    "in front of a relu": Case(compute=f"h = {CONV} r = Relu (h)", read="r"),
    "clip": Case(compute=f"a = {CONV} h = Clip (a, low, high)"),
    "between relu and clip": Case(compute=f"a = {CONV} h = Relu (a) r = Clip (h, low, high)", read="r"),
    "in front of relu and pooling": Case(compute=f"h = {CONV} r = Relu (h) p = {POOL} (r)", read="p"),
    "read through an identity": Case(compute=f"a = {CONV} h = Relu (a) i = Identity (h)", read="i"),
    "transposed convolution": Case(
        compute='a = ConvTranspose (x, "a.weight", "a.bias") h = Relu (a)', operator="ConvTranspose"
    ),
}
PRODUCTS = {
    "gemm": Case(compute='h = Gemm (x, "a.weight", "a.bias")', operator="Gemm"),
    "gemm, relu": Case(compute='a = Gemm (x, "a.weight", "a.bias") h = Relu (a)', operator="Gemm"),
    "matmul and add": Case(compute='m = MatMul (x, "a.weight") h = Add (m, "a.bias")', operator="MatMul"),
    "matmul, add, relu": Case(
        compute='m = MatMul (x, "a.weight") a = Add (m, "a.bias") h = Relu (a)', operator="MatMul"
    ),
}
FLIP = "Transpose <perm = [0, 1, 3, 2]>"
WITHOUT_BIAS = CONV.replace(', "a.bias"', "")
TRANSPOSED = {
    "transpose": Case(compute=f"h = {CONV} m = {FLIP} (h)", read="m"),
    "relu, transpose": Case(compute=f"a = {CONV} h = Relu (a) m = {FLIP} (h)", read="m"),
    "transpose without bias": Case(compute=f"h = {WITHOUT_BIAS} m = {FLIP} (h)", read="m"),
    "transpose behind a float operator": Case(compute=f"a = {CONV} h = Sigmoid (a) m = {FLIP} (h)", read="m"),
    "identity, transpose, relu": Case(compute=f"h = {CONV} i = Identity (h) m = {FLIP} (i) r = Relu (m)", read="r"),
}
NOT_ROUNDED = {
    "pooled": Case(compute=f"a = {CONV} h = {POOL} (a)"),
    "in front of a pooling": Case(compute=f"h = {CONV} p = {POOL} (h)", read="p"),
    "a copy already": Case(compute=f"a = {CONV} r = Relu (a) h = Identity (r)", read="r"),
    "transposed": Case(compute=f"a = {CONV} h = {FLIP} (a)"),
    "sigmoid": Case(compute=f"a = {CONV} h = Sigmoid (a)"),
}


def outputs(model: onnx.ModelProto, x: Array, optimisation: Optimisation) -> dict[str, Array]:
    session = OnnxRuntimeSession(
        model.SerializeToString(),
        optimisation=optimisation,
        threads=1,
        session_options=dict(X86.engine.session),
    )
    return dict(session.run_all({"x": x}))


@pytest.mark.parametrize("approximations", [EXACT, USUAL], ids=["exact", "usual"])
@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm64"])
@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("case", [*ROUNDED, *PRODUCTS, *TRANSPOSED, *NOT_ROUNDED])
def test_both_outputs_are_those_of_the_canonical_graph(
    case: str, bits: int, target: Any, approximations: frozenset[Approximation]
) -> None:
    network = {**ROUNDED, **PRODUCTS, **TRANSPOSED, **NOT_ROUNDED}[case]
    before, after = lowered(network.master(), bits, target, approximations=approximations)
    assert after.exact
    x = network.inputs()
    expected = outputs(before.model, x, "off")
    assert list(expected) == ["y", "h"]
    for optimisation in ("off", "all"):
        found = outputs(after.model, x, optimisation)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=2e-6 * float(np.abs(values).max()))


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("case", ROUNDED)
def test_what_is_handed_out_is_a_copy_and_the_layer_is_as_it_was(case: str, bits: int) -> None:
    before, after = lowered(ROUNDED[case].master(), bits, X86, approximations=EXACT)
    (copy,) = [node for node in after.model.graph.node if list(node.output) == ["h"]]
    assert (copy.op_type, [value.name for value in after.model.graph.output]) == ("Identity", ["y", "h"])
    assert "Sub" not in operators(after.model)
    floats = {name: count for name, count in fast_operators(after.model, X86).items() if "Conv" in name}
    # nothing behind has codes; a Relu or Clip in front of the output is part of the convolution as before
    assert sum(floats.values()) == 2
    fused = "h = Relu" in ROUNDED[case].compute or "h = Clip" in ROUNDED[case].compute
    assert ("FusedConv" in floats) is (fused and ROUNDED[case].operator == "Conv")
    assert "Identity" not in operators(before.model) or case == "read through an identity"


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("case", PRODUCTS)
def test_products_run_in_integers(case: str, bits: int) -> None:
    _, after = lowered(PRODUCTS[case].master(), bits, X86, approximations=EXACT)
    found = fast_operators(after.model, X86)
    assert not {"Gemm", "FusedGemm", "MatMul"} & set(found)
    assert found.get("Sub") == 1


@pytest.mark.parametrize("case", NOT_ROUNDED)
def test_where_nothing_is_rounded_nothing_is_copied(case: str) -> None:
    before, after = lowered(NOT_ROUNDED[case].master(), 4, X86, approximations=EXACT)
    assert operators(after.model).count("Identity") == operators(before.model).count("Identity")
    assert "Sub" not in operators(after.model)


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_a_product_whose_bias_cannot_be_taken_out_hands_out_a_copy(bits: int) -> None:
    case = Case(compute='a = Gemm <beta = 0.5> (x, "a.weight", "a.bias") h = Relu (a)', operator="Gemm")
    before, after = lowered(case.master(), bits, X86, approximations=EXACT)
    assert after.exact
    x = case.inputs()
    expected, found = outputs(before.model, x, "off"), outputs(after.model, x, "all")
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=2e-6 * float(np.abs(values).max()))


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm64"])
@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_a_residual_stream_that_is_handed_out_where_it_begins(bits: int, target: Any) -> None:
    """ChannelsLast transposes it there; what is handed out is the float tensor all the same."""
    before = canonical(residual_master(), bits)
    ranges = observed(before.model, calibrated_tensors(before, target))
    plain = fast_operators(lower(before, target, ranges=ranges).model, target)
    before.model.graph.output.append(onnx.helper.make_tensor_value_info("start", onnx.TensorProto.FLOAT, "nchw"))
    after = lower(before, target, ranges=ranges)
    x = images()
    expected, found = outputs(before.model, x, "off")["start"], outputs(after.model, x, "all")["start"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    now = fast_operators(after.model, target)
    for operator in ("QLinearConv", "QLinearAdd"):
        assert now[operator] == plain[operator]
