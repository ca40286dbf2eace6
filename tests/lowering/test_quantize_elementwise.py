"""Codes between layers: which operators compute with them, what onnxruntime runs, and how far the results move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.optimized_operators import optimized_operators
from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.canonical import CanonicalGraph
from bitswitch_deploy.lowering.approximation import USUAL, Approximation
from bitswitch_deploy.lowering.lower import LoweredGraph, calibrated_tensors, has_elementwise, lower
from bitswitch_deploy.lowering.ranges import TensorRange
from bitswitch_deploy.master import Master
from bitswitch_deploy.target import Target
from tests.graph.masters import build, layer
from tests.graph.running import look, run
from tests.lowering.blocks import images, observed
from tests.lowering.lowered import canonical, fast_operators, profile

X86, ARM = profile("x86-cpu"), profile("arm64-cpu")
ELEMENTWISE = Approximation.ELEMENTWISE_CODES
FULL = USUAL | {Approximation.FULL_RESOLUTION, Approximation.FULL_RESOLUTION_SIGNED}

# between the convolution that makes a [n, 4, 6, 6] and what reads m; `end` is y = Conv (m, "z.weight") where m has
# another number of channels, "wide" if 8
SILU = "s = Sigmoid (a) m = Mul (a, s)"
BODIES = {
    "silu": SILU,
    "hard-swish": "m = HardSwish (a)",
    "leaky-relu": "l = LeakyRelu <alpha = 0.1> (a) k = Sigmoid (l) m = Add (k, l)",
    "gate": "r = Relu (a) p = ReduceMean <keepdims = 1> (r, plane) g = HardSigmoid (p) m = Mul (r, g)",
    "another-gate": "p = GlobalAveragePool (a) g = HardSigmoid <alpha = 0.1, beta = 0.4> (p) m = Mul (a, g)",
    "split": f"{SILU.replace('m =', 'q =')} u, v = Split <axis = 1, num_outputs = 2> (q) w = Add (u, v)"
    " m = Concat <axis = 1> (u, w)",
    "pools": "r = Relu (a) u = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r)"
    " v = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (u) w = Add (u, v) m = Add (r, w)",
    "upsampled": 'q = HardSwish (a) u = Resize <mode = "nearest"> (q, , twice)'
    " p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (u) m = Add (q, p)",
    "clipped": "s = Sigmoid (a) t = Mul (a, s) c = Clip (t, zero, six) m = Add (c, a)",
}


def network(body: str, *, tail: str = 'y = Conv (m, "z.weight")', activation: str = "signed") -> Master:
    text = f"""
    net (float[n, 4, 6, 6] x, float[4, 4, 3, 3] "a.weight", float[3, 4, 1, 1] "z.weight") => (float[n, c, h, w] y)
        <int64[2] plane = {{2, 3}}, int64[1] channels = {{1}}, float[4] twice = {{1, 1, 2, 2}}, float zero = {{0}},
         float six = {{6}}, int64[1] second = {{2}}, int64[5] five = {{0, 2, 2, 6, 6}}, int64[4] four = {{0, 4, 6, 6}},
         int64[8] frame = {{0, 0, 1, 1, 0, 0, 1, 1}}, float nine = {{9}}, float minus = {{-9}},
         float[8] roi = {{0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5}}> {{
        a = Conv <pads = [1, 1, 1, 1]> (x, "a.weight")
        {body}
        {tail}
    }}"""
    weights = [("a", "signed")] + ([("z", activation)] if '"z.weight"' in tail else [])
    if len(weights) == 1:
        text = text.replace(', float[3, 4, 1, 1] "z.weight"', "")
    return build(text, [layer(name, activation=kind) for name, kind in weights])


def both(
    master: Master, bits: int, target: Target, approximations: frozenset[Approximation] = USUAL
) -> tuple[CanonicalGraph, LoweredGraph]:
    """Give canonical and lowered graph, the latter with observed ranges."""
    graph = canonical(master, bits)
    ranges = observed(graph.model, calibrated_tensors(graph, target, approximations))
    return graph, lower(graph, target, ranges=ranges, approximations=approximations)


def floats(model: onnx.ModelProto, target: Target) -> set[str]:
    """Give the operators between the first and the last layer that compute with floats."""
    integer = ("QLinear", "NhwcMaxPool", "Clip", "Split", "Resize", "Transpose", "QuantizeLinear", "DequantizeLinear")
    return {each for each in fast_operators(model, target) if not each.startswith(integer)}


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm64"])
@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_everything_computes_with_codes(body: str, bits: int, target: Target) -> None:
    graph, after = both(network(body), bits, target)
    assert ELEMENTWISE in after.approximations
    # the last layer has no codes behind it, and its weight is dequantized
    assert floats(after.model, target) <= {"Conv", "FusedConv"}
    found = fast_operators(after.model, target)
    assert (found["QLinearConv"], found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1, 2)
    ranges = observed(graph.model, calibrated_tensors(graph, target, USUAL - {ELEMENTWISE}))
    without = lower(graph, target, ranges=ranges, approximations=USUAL - {ELEMENTWISE})
    assert len(floats(without.model, target)) > len(floats(after.model, target))


@pytest.mark.parametrize("approximations", [USUAL, FULL], ids=["usual", "full"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_results_hardly_move(body: str, bits: int, approximations: frozenset[Approximation]) -> None:
    """What the last layer reads has the error of its own rounding and that of a few roundings to 8 bits."""
    graph, after = both(network(body), bits, X86, approximations)
    x = images(64)
    exact, rounded = look(graph.model, x, "m"), look(graph.model, x, "z.input.dequantized")
    (last,) = (node for node in after.model.graph.node if node.op_type == "Conv" and node.output[0] == "y")
    found = look(after.model, x, last.input[0])
    inside = np.abs(exact) < np.abs(rounded).max()
    size = np.abs(exact[inside]).mean()
    # with full resolution branches share the clipped range that the layer was trained with
    factor = 1.75 if approximations is FULL else 1.0
    allowed = factor * np.abs(rounded - exact)[inside].mean() + 0.03 * size
    assert np.abs(found - exact)[inside].mean() < allowed


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_onnxruntime_computes_what_the_graph_says(bits: int) -> None:
    for body in BODIES.values():
        _, after = both(network(body), bits, X86)
        plain, fused = (run(after.model, images(), optimisation=each) for each in ("off", "all"))
        close = np.isclose(plain, fused, atol=1e-4 * np.abs(plain).max())
        # a rounding tie of one operator is a step of the next layer
        assert close.mean() > 0.97, body


def test_sole_reader_gets_its_own_codes_at_once() -> None:
    """The product is rounded once, to the codes that were trained."""
    _, after = both(network(SILU), 8, X86)
    (quantize,) = (node for node in after.model.graph.node if node.input[0] == "m")
    assert quantize.name == "z.input/QuantizeLinear"


def test_bounded_results_need_no_range() -> None:
    graph = canonical(network(SILU), 8)
    assert calibrated_tensors(graph, X86) == ("a",)
    after = lower(graph, X86, ranges=observed(graph.model, ("a",)))
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in after.model.graph.initializer}
    assert constants["s.between.scale"] == np.float32(1 / 255)
    assert constants["s.between.zero_point"] == 0


def test_zero_point_follows_the_range() -> None:
    """SiLU is never below -0.28: half of all codes would be wasted on the negative side."""
    graph = canonical(network("s = Sigmoid (a) q = Mul (a, s) k = Add (q, q) m = Add (q, k)"), 8)
    ranges = observed(graph.model, calibrated_tensors(graph, X86))
    after = lower(graph, X86, ranges=ranges)
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in after.model.graph.initializer}
    low, high = ranges["q"].minimum, ranges["q"].maximum
    assert low < 0 < high
    assert constants["q.between.zero_point"] == round(-low * 255 / (high - low))
    assert constants["q.between.zero_point"] < 40


@pytest.mark.parametrize("approximations", [USUAL, FULL], ids=["usual", "full"])
def test_moved_tensors_keep_their_codes(approximations: frozenset[Approximation]) -> None:
    _, after = both(network(BODIES["split"]), 4, X86, approximations)
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in after.model.graph.initializer}
    for part in ("scale", "zero_point"):
        assert constants[f"u.between.{part}"] == constants[f"v.between.{part}"] == constants[f"q.between.{part}"]
    assert optimized_operators(after.model.SerializeToString(), session_options={})


def test_several_quantized_readers() -> None:
    text = f"""
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "a.weight", float[4, 4, 1, 1] "b.weight", float[4, 4, 1, 1] "c.weight")
        => (float[n, 4, 6, 6] y, float[n, 4, 6, 6] z) {{
        a = Conv (x, "a.weight")
        {SILU}
        y = Conv (m, "b.weight")
        z = Conv (m, "c.weight")
    }}"""
    _, after = both(build(text, [layer(name, activation="signed") for name in "abc"]), 8, X86)
    found = fast_operators(after.model, X86)
    assert (found["QLinearMul"], found["QLinearSigmoid"], found["QuantizeLinear"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("body", "tail"),
    [
        (SILU, "y = Identity (m)"),
        ("s = Sigmoid (a)", "y = Mul (a, s)"),
        ("h = HardSwish (a)", "y = Concat <axis = 1> (h, h)"),
        ("s = Sigmoid (a) m = Neg (s)", 'y = Conv (m, "z.weight")'),
        ("s = Sigmoid (x) m = Mul (s, x)", 'k = Add (m, a) e = Erf (k) y = Conv (e, "z.weight")'),
        ('m = Resize <mode = "linear"> (a, , twice)', 'y = Conv (m, "z.weight")'),
        ("m = Tanh (a)", 'y = Conv (m, "z.weight")'),
        ("p = ReduceMean <keepdims = 1> (a, channels) m = Expand (p, shape)", 'y = Conv (m, "z.weight")'),
    ],
)
def test_left_alone(body: str, tail: str) -> None:
    """What the network hands out, what reads floats, and what has no kernel."""
    graph = canonical(network(body if "shape" not in body else "shape = Shape (a) " + body, tail=tail), 8)
    assert not has_elementwise(graph, X86, USUAL)
    ranges = observed(graph.model, calibrated_tensors(graph, X86))
    found, without = (
        onnx.printer.to_text(lower(graph, X86, ranges=ranges, approximations=each).model)
        for each in (USUAL, USUAL - {ELEMENTWISE})
    )
    assert found == without


def test_without_codes_in_front_there_are_none_between() -> None:
    graph = canonical(network(SILU), 8)
    only = frozenset({ELEMENTWISE})
    assert not has_elementwise(graph, X86, only)
    assert calibrated_tensors(graph, X86, only) == ()


@pytest.mark.parametrize("name", ["rtx", "jetson-orin-nano", "jetson-thor"])
def test_tensorrt_fuses_them_itself(name: str) -> None:
    graph = canonical(network(SILU), 8)
    assert not has_elementwise(graph, profile(name), USUAL)


def test_layers_in_float_go_on_reading_floats() -> None:
    """onnxruntime would round the weight of a float layer between codes."""
    text = f"""
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "a.weight", float[4, 4, 1, 1] "b.weight", float[4, 4, 1, 1] "c.weight",
         float[4, 4, 1, 1] "d.weight") => (float[n, 4, 6, 6] y, float[n, 4, 6, 6] z) {{
        a = Conv (x, "a.weight")
        {SILU}
        b = Conv (m, "b.weight")
        y = Conv (b, "c.weight")
        k = Add (m, m)
        z = Conv (k, "d.weight")
    }}"""
    kinds = {"a": "signed", "b": "pinned", "c": "signed", "d": "signed"}
    _, after = both(build(text, [layer(name, activation=kind) for name, kind in kinds.items()]), 8, X86)
    (pinned,) = (node for node in after.model.graph.node if "b.weight" in node.input)
    (double,) = (node for node in after.model.graph.node if node.op_type == "Add" and node.output[0] == "k")
    assert pinned.input[0] == "m"
    assert double.input[0] != "m"


def test_missing_range() -> None:
    graph = canonical(network(BODIES["leaky-relu"]), 8)
    ranges = observed(graph.model, calibrated_tensors(graph, X86))
    del ranges["l"]
    with pytest.raises(GraphError, match="tensor l: no observed range"):
        lower(graph, X86, ranges=ranges)


PRODUCT = "s = Sigmoid (a) q = Mul (a, s)"
POOL = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
# what was wrong once, or looks like it
UNUSUAL = {
    "moved, then Relu": f"{PRODUCT} u = MaxPool {POOL} (q) r = Relu (u) m = Add (r, q)",
    "split, then Relu": f"{PRODUCT} u, v = Split <axis = 1, num_outputs = 2> (q) r = Relu (u)"
    " m = Concat <axis = 1> (r, v)",
    "Clip, then moved": f"b = Add (a, a) s = Add (a, b) c = Clip (s, zero, six) p = MaxPool {POOL} (c) g = Sigmoid (p)"
    " m = Mul (p, g)",
    "mean of five dimensions": "r = Relu (a) u = Reshape (r, five) p = ReduceMean <keepdims = 1> (u, plane)"
    " g = Sigmoid (p) w = Mul (u, g) m = Reshape (w, four)",
    "mean of a squeezed plane": "r = Relu (a) u = Unsqueeze (r, second) p = ReduceMean <keepdims = 1> (u, plane)"
    " g = Sigmoid (p) w = Mul (u, g) m = Squeeze (w, second)",
    "mean without its dimensions": "r = Relu (a) p = ReduceMean <keepdims = 0> (r, plane) u = Unsqueeze (p, plane)"
    " g = Sigmoid (u) m = Mul (r, g)",
    "mean of a constant": "k = Constant <value = float[1, 1, 2, 2] {1, 2, 3, 4}> ()"
    " p = ReduceMean <keepdims = 1> (k, plane) q = Mul (a, p) m = Relu (q)",
    "dilated pool": f"{PRODUCT} p = AveragePool <kernel_shape = [2, 2], dilations = [2, 2]> (q) g = Sigmoid (p)"
    " m = Mul (p, g)",
    "pool over its frame": f"{PRODUCT} p = AveragePool <kernel_shape = [4, 4], strides = [3, 3], pads = [1, 1, 1, 1],"
    " count_include_pad = 1, ceil_mode = 1> (q) g = Sigmoid (p) m = Mul (p, g)",
    "frame of another value": "r = Relu (a) p = Pad (r, frame, minus) k = Sigmoid (p) h = Add (p, k) m = Add (h, p)",
    "frame beyond the codes": "s = Sigmoid (a) t = Mul (s, s) p = Pad (t, frame, nine) k = Sigmoid (p) m = Mul (p, k)",
    "frame of zeros": f"{PRODUCT} p = Pad (q, frame) k = Sigmoid (p) m = Mul (p, k)",
    "crop beyond the image": 's = Sigmoid (a) t = Mul (s, s) p = Resize <mode = "nearest", extrapolation_value = 9.0,'
    ' coordinate_transformation_mode = "tf_crop_and_resize"> (t, roi, twice) k = Sigmoid (p) m = Mul (p, k)',
    "computed shape": f"{PRODUCT} z = Shape (a) u = Reshape (q, z) k = Sigmoid (u) m = Mul (u, k)",
    "Clip beside another reader": f"{PRODUCT} c = Clip (q, zero, six) k = Sigmoid (c) h = Mul (c, k) m = Add (h, q)",
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("body", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_networks_compute_what_they_did(body: str, bits: int) -> None:
    """About as near to the canonical graph as without these codes, whether onnxruntime optimises or not."""
    master = network(body)
    errors = {}
    for name, approximations in (("with", USUAL), ("without", USUAL - {ELEMENTWISE})):
        graph, after = both(master, bits, X86, approximations)
        expected = run(graph.model, images())
        for optimisation in ("off", "all"):
            found = run(after.model, images(), optimisation=optimisation)
            errors[name, optimisation] = np.abs(found - expected).mean() / np.abs(expected).mean()
    for optimisation in ("off", "all"):
        assert errors["with", optimisation] < errors["without", optimisation] + 0.03


def test_indices_are_no_codes() -> None:
    body = f"{PRODUCT} u, i = MaxPool <kernel_shape = [1, 1]> (q) f = Cast <to = 1> (i) e = Tanh (f) k = Sigmoid (u)"
    _, after = both(network(f"{body} w = Mul (u, k) m = Add (w, e)"), 8, X86)
    assert run(after.model, images(), optimisation="all").shape == (20, 3, 6, 6)


def test_a_second_output_that_is_handed_out() -> None:
    """Of a Split no part computes with codes then: what the user reads is what it was."""
    text = f"""
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "a.weight", float[3, 2, 1, 1] "z.weight")
        => (float[n, 3, 6, 6] y, float[n, 2, 6, 6] v) {{
        a = Conv (x, "a.weight")
        {PRODUCT}
        u, v = Split <axis = 1, num_outputs = 2> (q)
        y = Conv (u, "z.weight")
    }}"""
    graph, after = both(build(text, [layer(name, activation="signed") for name in "az"]), 8, X86)
    assert not has_elementwise(graph, X86, USUAL)
    assert "q.between" not in str(after.model)


@pytest.mark.parametrize("behind", ["v = Relu (q)", "v = Clip (q, zero, six)", "r = Identity (q) v = Relu (r)"])
def test_what_is_handed_out_behind_a_clip(behind: str) -> None:
    text = f"""
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "a.weight", float[3, 4, 1, 1] "z.weight")
        => (float[n, 3, 6, 6] y, float[n, 4, 6, 6] v) <float zero = {{0}}, float six = {{6}}> {{
        a = Conv (x, "a.weight")
        {PRODUCT}
        {behind}
        y = Conv (q, "z.weight")
    }}"""
    graph = canonical(build(text, [layer(name, activation="signed") for name in "az"]), 8)
    assert not has_elementwise(graph, X86, USUAL)


def test_a_branch_that_reads_a_result() -> None:
    """What stands in an If is of another graph."""
    text = f"""
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "a.weight", float[2, 4, 1, 1] "z.weight") => (float[n, 2, 6, 6] y)
        <float zero = {{0}}> {{
        top = ReduceMax <keepdims = 0> (x)
        c = Greater (top, zero)
        a = Conv (x, "a.weight")
        {PRODUCT}
        q2 = Concat <axis = 1> (q, q)
        h, g = Split <axis = 1, num_outputs = 2> (q2)
        e, f = Split <axis = 1, num_outputs = 2> (g)
        t = If (c) <then_branch = then () => (t1) {{ r1 = Relu (e) t1 = Mul (r1, r1) }},
                    else_branch = other () => (t2) {{ t2 = Identity (f) }}>
        z0 = Conv (h, "z.weight")
        y = Add (z0, t)
    }}"""
    graph = canonical(build(text, [layer(name, activation="signed") for name in "az"]), 8)
    names = calibrated_tensors(graph, X86)
    seen = TensorRange(minimum=-1.0, maximum=1.0, values=np.linspace(-1, 1, 9, dtype=np.float32))
    after = lower(graph, X86, ranges=dict.fromkeys(names, seen))
    assert ELEMENTWISE in after.approximations


def test_networks_that_part_and_meet_again_and_again() -> None:
    """Ways double at every step; the plan does not go each of them."""
    steps = "".join(
        f" u{i} = MaxPool <kernel_shape = [1, 1]> (t{i}) v{i} = Identity (t{i}) t{i + 1} = Add (u{i}, v{i})"
        for i in range(60)
    )
    graph = canonical(network(f"{PRODUCT} t0 = Identity (q) {steps} m = Sigmoid (t60)"), 8)
    assert len(calibrated_tensors(graph, X86)) > 60


def test_targets_of_signed_codes_without_zero_point() -> None:
    """As for residual branches, their engines fuse such operators; so an exotic profile is left alone."""
    target = profile("x86-cpu", {"quantization.activation": {"dtype": "int8", "zero_point": 0}})
    assert not has_elementwise(canonical(network(SILU), 8), target, USUAL)


@pytest.mark.parametrize("end", [-np.inf, np.nan])
def test_ranges_that_are_not_finite(end: float) -> None:
    graph = canonical(network(BODIES["leaky-relu"]), 8)
    ranges = observed(graph.model, calibrated_tensors(graph, X86))
    ranges["l"] = replace(ranges["l"], minimum=float(end))
    with pytest.raises(GraphError, match=r"tensor l: an observed range of (-inf|nan) to"):
        lower(graph, X86, ranges=ranges)
