"""Codes on residual branches: which edges change, in which container, and what onnxruntime makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.optimized_operators import optimized_nodes
from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.canonical import CanonicalGraph
from bitswitch_deploy.lowering.approximation import USUAL, Approximation
from bitswitch_deploy.lowering.lower import LoweredGraph, calibrated_tensors, lower
from bitswitch_deploy.lowering.ranges import TensorRange, best_scale, dividing_scale
from bitswitch_deploy.target import Target
from tests.graph.masters import BATCH_NORM, build, layer
from tests.graph.running import initializer, look, run
from tests.lowering.blocks import images, observed, residual_master
from tests.lowering.lowered import INT8_CPU, applied, canonical, fast_operators, profile

X86, ARM, RTX = profile("x86-cpu"), profile("arm64-cpu"), profile("rtx")
FULL = USUAL | {Approximation.FULL_RESOLUTION, Approximation.FULL_RESOLUTION_SIGNED}


def both(shortcut: str, bits: int, target: Target, **options: Any) -> tuple[CanonicalGraph, LoweredGraph]:
    """Give canonical and lowered graph, the latter with observed ranges."""
    graph = canonical(residual_master(shortcut, **options), bits)
    ranges = observed(graph.model, calibrated_tensors(graph, target))
    return graph, lower(graph, target, ranges=ranges)


def quantizers(model: onnx.ModelProto, tensor: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == tensor]


def readers(model: onnx.ModelProto, tensor: str) -> set[str]:
    return {node.name for node in model.graph.node if tensor in node.input}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("shortcut", "layers"), [("identity", 4), ("moved", 4), ("convolution", 5)])
@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm64"])
@pytest.mark.parametrize("bits", [8, 4])
def test_every_convolution_and_add_becomes_integer(
    bits: int, target: Target, shortcut: str, layers: int, norm: bool
) -> None:
    _, after = both(shortcut, bits, target, norm=norm)
    found = fast_operators(after.model, target)
    rescaled = sum(node.name.endswith((".input/Add", ".fine/Add")) for node in after.model.graph.node)
    # the stem is pinned, and z has no codes behind it; what a layer reads of a residual stream is rescaled
    assert (found.get("QLinearConv"), found.get("QLinearAdd")) == (layers, 2 + rescaled)
    assert found.get("Conv", 0) + found.get("FusedConv", 0) == 2
    assert "Add" not in found


def test_without_it_half_of_them_stay_in_float() -> None:
    graph = canonical(residual_master("convolution"), 4)
    after = lower(graph, X86, ranges={})
    found = fast_operators(after.model, X86)
    assert (found.get("QLinearConv"), found.get("QLinearAdd")) == (2, None)
    assert "QuantizeResidual" not in after.passes


def test_close_to_the_canonical_graph() -> None:
    for shortcut in ("identity", "moved", "convolution"):
        before, after = both(shortcut, 8, X86, norm=True)
        expected = run(before.model, images())
        error = run(after.model, images(), optimisation="all", session=dict(X86.engine.session)) - expected
        assert np.sqrt((error**2).mean() / (expected**2).mean()) < 0.06


def test_no_ranges_change_nothing() -> None:
    before = canonical(residual_master(), 4).model
    result = applied("QuantizeResidual", before, X86)
    assert (result.modified, result.changes) == (False, [])
    assert result.model.SerializeToString() == before.SerializeToString()


def test_nothing_to_quantize_changes_nothing() -> None:
    before = canonical(residual_master(pinned="abcez"), 8).model
    result = applied("QuantizeResidual", before, X86, ranges=observed(before, ("b",)))
    assert (result.modified, result.changes) == (False, [])


def test_a_missing_range() -> None:
    graph = canonical(residual_master(), 4)
    with pytest.raises(GraphError, match="tensor start: no observed range"):
        lower(graph, X86, ranges=observed(graph.model, ("b",)))


def test_it_confesses() -> None:
    _, after = both("identity", 4, X86)
    (change,) = [change for change in after.changes if change.by == "QuantizeResidual"]
    assert (change.where, change.what, change.exact) == (
        "residual branches",
        "6 tensors in calibrated 8-bit codes",
        False,
    )
    assert not after.exact
    assert after.passes[0] == "QuantizeResidual"


# --- which edges ---------------------------------------------------------------------------------------------------


def test_both_inputs_move_all_readers() -> None:
    graph = canonical(residual_master(), 4)
    ranges = observed(graph.model, calibrated_tensors(graph, X86))
    result = applied("QuantizeResidual", graph.model, X86, ranges=ranges)
    assert readers(graph.model, "start") == {"a.input/QuantizeLinear", "add1"}
    assert readers(result.model, "start") == {"start.residual/QuantizeLinear"}
    assert readers(result.model, "start.residual.dequantized") == {"a.input/QuantizeLinear", "add1"}
    assert readers(result.model, "b") == {"b.residual/QuantizeLinear"}
    assert readers(result.model, "b.residual.dequantized") == {"add1"}


def test_skip_input_moves_the_edge_into_the_add_only() -> None:
    graph = canonical(residual_master(), 4)
    ranges = observed(graph.model, calibrated_tensors(graph, RTX))
    result = applied("QuantizeResidual", graph.model, RTX, ranges=ranges)
    assert readers(result.model, "start") == {"a.input/QuantizeLinear", "start.residual.add1/QuantizeLinear"}
    assert readers(result.model, "start.residual.add1.dequantized") == {"add1"}
    assert readers(result.model, "b") == {"add1"}
    assert [change.what for change in result.changes] == ["2 tensors in calibrated 8-bit codes"]


def test_a_graph_output_stays_float() -> None:
    graph = canonical(residual_master(), 4)
    value = onnx.helper.make_tensor_value_info("first", onnx.TensorProto.FLOAT, ["n", 4, 6, 6])
    graph.model.graph.output.append(value)
    ranges = observed(graph.model, calibrated_tensors(graph, X86))
    result = applied("QuantizeResidual", graph.model, X86, ranges=ranges)
    assert [output.name for output in result.model.graph.output] == ["y", "first"]
    assert readers(result.model, "first") == {"first.residual/QuantizeLinear"}


# --- layers that training kept in float ---------------------------------------------------------------------------

IN_THE_MIDDLE = [("identity", "a"), ("identity", "c"), ("moved", "c"), ("convolution", "d")]


def rounded_weights(model: onnx.ModelProto, target: Target) -> list[str]:
    """Layers whose float weight onnxruntime has made codes of; it names these after the layer."""
    nodes = optimized_nodes(model.SerializeToString(), session_options=dict(target.engine.session))
    return [node.name for node in nodes if any("_weight_q" in name for name in node.inputs)]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("shortcut", "pinned"), IN_THE_MIDDLE)
@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm64"])
@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_a_pinned_layer_in_the_middle_stays_in_float(
    bits: int, target: Target, shortcut: str, pinned: str, norm: bool
) -> None:
    _, after = both(shortcut, bits, target, norm=norm, pinned=pinned)
    assert rounded_weights(after.model, target) == []
    assert Approximation.RESIDUAL_CODES in after.approximations
    found = fast_operators(after.model, target)
    # stem, z and the pinned one; what is around them is in integers as before
    assert found.get("Conv", 0) + found.get("FusedConv", 0) == 3
    assert found["QLinearConv"] == (4 if shortcut == "convolution" else 3)
    x = images()
    as_written = run(after.model, x)
    as_run = run(after.model, x, optimisation="all", session=dict(target.engine.session))
    assert np.sqrt(((as_run - as_written) ** 2).mean() / (as_written**2).mean()) < 5e-3


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_a_pinned_layer_with_a_batchnorm_in_the_middle_stays_in_float(bits: int) -> None:
    """onnxruntime makes the BatchNormalization part of the layer, and then finds a Q behind it."""
    norm = "".join(f'float[4] "n.{part}", ' for part in BATCH_NORM)
    text = f"""
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "stem.weight", float[4, 4, 3, 3] "a.weight", {norm}
         float[4, 4, 3, 3] "b.weight", float[5, 4, 1, 1] "z.weight") => (float[n, 5, 6, 6] y) {{
        stem = Conv (x, "stem.weight")
        start = Relu (stem)
        a = Conv <pads = [1, 1, 1, 1]> (start, "a.weight")
        m = BatchNormalization (a, "n.gamma", "n.beta", "n.mean", "n.var")
        ra = Relu (m)
        b = Conv <pads = [1, 1, 1, 1]> (ra, "b.weight")
        sum = Add (b, start)
        r = Relu (sum)
        y = Conv (r, "z.weight")
    }}"""
    layers = (layer("stem", activation="pinned"), layer("a", activation="pinned"), layer("b"), layer("z"))
    graph = canonical(build(text, layers), bits)
    result = lower(graph, X86, ranges=observed(graph.model, calibrated_tensors(graph, X86)))
    assert rounded_weights(result.model, X86) == []
    assert fast_operators(result.model, X86)["QLinearConv"] == 1


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_a_pinned_layer_without_codes_behind_reads_those_of_the_branch(bits: int) -> None:
    """onnxruntime leaves its weight alone, and the Add in front of it needs a Q as its only reader."""
    _, after = both("identity", bits, X86, pinned="z")
    assert readers(after.model, "second") == {"second.residual/QuantizeLinear"}
    assert rounded_weights(after.model, X86) == []


# --- which codes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "low", "high"), [(X86, 0, 255), (ARM, 0, 255), (RTX, 0, 127)], ids=["x86", "arm64", "rtx"]
)
def test_codes_of_a_tensor_behind_a_relu(target: Target, low: int, high: int) -> None:
    graph = canonical(residual_master(), 4)
    ranges = observed(graph.model, calibrated_tensors(graph, target))
    result = applied("QuantizeResidual", graph.model, target, ranges=ranges)
    name = "start.residual" + (".add1" if target is RTX else "")
    scale = initializer(result.model, f"{name}.scale")
    if target is RTX:  # codes for the Add alone
        assert scale == np.float32(best_scale(ranges["start"], low=low, high=high))
    else:
        (quantizer,) = quantizers(graph.model, "start")
        step = initializer(graph.model, quantizer.input[1])
        assert scale == np.float32(dividing_scale(ranges["start"], float(step), low=low, high=high))
    assert initializer(result.model, f"{name}.zero_point").dtype == np.uint8
    limits = {tensor.name: tensor for tensor in result.model.graph.initializer}
    assert (f"{name}.high" in limits) is (high == 127)
    codes = look(result.model, images() * 100, f"{name}.clipped" if high == 127 else f"{name}.codes")
    assert (codes.min(), codes.max()) == (low, high)


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm64"])
def test_a_trained_quantizer_gives_what_it_gave(target: Target) -> None:
    """Its codes of the dequantized residual codes are its codes of the tensor, at every width."""
    for bits in (8, 6, 4, 2):
        graph = canonical(residual_master(), bits)
        ranges = observed(graph.model, calibrated_tensors(graph, target))
        result = applied("QuantizeResidual", graph.model, target, ranges=ranges)
        (quantizer,) = quantizers(graph.model, "start")
        x = images()
        before, after = (look(model, x, quantizer.output[0]) for model in (graph.model, result.model))
        assert before.dtype == after.dtype == np.uint8
        assert (before == after).mean() > 0.9995, bits


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm64"])
def test_codes_of_any_other_tensor(target: Target) -> None:
    graph = canonical(residual_master(), 4)
    ranges = observed(graph.model, calibrated_tensors(graph, target))
    result = applied("QuantizeResidual", graph.model, target, ranges=ranges)
    assert initializer(result.model, "b.residual.zero_point").dtype == np.int8
    assert initializer(result.model, "b.residual.zero_point") == 0
    assert initializer(result.model, "b.residual.scale") == np.float32(best_scale(ranges["b"], low=-128, high=127))


def test_one_container_in_the_end() -> None:
    for target, dtype in ((X86, np.uint8), (ARM, np.uint8), (RTX, np.int8)):
        _, after = both("convolution", 8, target)
        names = {node.input[2] for node in after.model.graph.node if node.op_type == "QuantizeLinear"}
        zeros = [initializer(after.model, name) for name in sorted(names)]
        assert len(zeros) > 5
        assert {zero.dtype for zero in zeros} == {np.dtype(dtype)}
        if target is RTX:
            assert not any(zero.any() for zero in zeros)


def test_codes_pass_through_data_movement_unchanged() -> None:
    graph = canonical(residual_master("moved"), 4)
    assert "side" not in calibrated_tensors(graph, X86)
    ranges = observed(graph.model, calibrated_tensors(graph, X86))
    result = applied("QuantizeResidual", graph.model, X86, ranges=ranges)
    assert initializer(result.model, "side.residual.scale") == initializer(result.model, "first.residual.scale")
    first, side = (look(result.model, images(), f"{name}.residual.codes") for name in ("first", "side"))
    np.testing.assert_array_equal(side[:, 1:], first[:, :3])
    assert not side[:, 0].any()


# --- codes shared with a layer -------------------------------------------------------------------------------------


def with_ranges(bits: int, target: Target, approximations: frozenset[Approximation], reach: float) -> onnx.ModelProto:
    return lowered_with(bits, target, approximations, reach).model


def lowered_with(bits: int, target: Target, approximations: frozenset[Approximation], reach: float) -> LoweredGraph:
    """Branches whose values reach `reach` times as far as the trained codes of what reads them."""
    graph = canonical(residual_master("identity"), bits)
    ranges = dict(observed(graph.model, calibrated_tensors(graph, target)))
    for name in ("start", "first", "second"):
        (quantizer,) = quantizers(graph.model, name)
        top = reach * float(initializer(graph.model, quantizer.input[1])) * (2**bits - 1)
        ranges[name] = TensorRange(minimum=0, maximum=top, values=np.linspace(0, top, 4096, dtype=np.float32))
    return lower(graph, target, ranges=ranges, approximations=approximations)


def rescaled(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if node.name.endswith(".input/Add")]


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm64"])
@pytest.mark.parametrize("bits", [7, 6, 4, 2])
def test_with_full_resolution_a_layer_and_its_branch_have_the_same_codes(bits: int, target: Target) -> None:
    model = with_ranges(bits, target, FULL, 1.0)
    for name, behind in (("start", "a"), ("first", "c"), ("second", "z")):
        own, branch = (initializer(model, f"{each}.scale") for each in (f"{behind}.input", f"{name}.residual"))
        assert own == branch
    assert rescaled(model) == []
    found = fast_operators(model, target)
    assert (found["QLinearConv"], found["QLinearAdd"], found.get("Clip", 0)) == (4, 2, 0)


def test_otherwise_the_branch_has_codes_of_its_own() -> None:
    assert rescaled(with_ranges(4, X86, USUAL, 1.0)) == ["a.input/Add", "c.input/Add", "z.input/Add"]


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm64"])
@pytest.mark.parametrize("bits", [7, 6, 4, 2])
def test_a_branch_that_reaches_further_is_clipped_in_its_own_codes(bits: int, target: Target) -> None:
    """Nothing but z reads the last one: what z would clip is lost there anyway. No steps are refined for a bias."""
    model = with_ranges(bits, target, FULL, 4.0)
    assert rescaled(model) == []
    for name, behind in (("start", "a"), ("first", "c"), ("second", "z")):
        for part in ("scale", "zero_point"):
            assert initializer(model, f"{name}.residual.{part}") == initializer(model, f"{behind}.input.{part}")
    found = fast_operators(model, target)
    assert (found["QLinearConv"], found["QLinearAdd"], found["Clip"]) == (4, 2, 2)
    x = np.random.default_rng(0).normal(size=(9, 4, 6, 6)).astype(np.float32)
    zero = int(initializer(model, "a.input.zero_point"))
    for optimisation in ("off", "all"):
        branch, clipped = (
            look(model, x, name, optimisation=optimisation)
            for name in ("start.residual.codes", "a.input.codes.clipped")
        )
        # a quarter of 255 steps
        np.testing.assert_array_equal(clipped, np.clip(branch, zero, zero + 64))
        assert len(np.unique(clipped)) > 20


@pytest.mark.parametrize("bits", [7, 6, 4, 2])
def test_a_branch_of_few_steps_within_the_trained_range_is_rescaled(bits: int) -> None:
    """255 / 9 are fewer than 32."""
    model = with_ranges(bits, X86, FULL, 9.0)
    assert rescaled(model) == ["a.input/Add", "c.input/Add"]
    assert "Clip" not in fast_operators(model, X86)
    assert rescaled(with_ranges(bits, X86, FULL, 7.9)) == []


def test_int8_codes_are_rescaled() -> None:
    """Behind a Clip on int8 codes onnxruntime would run the convolution in float."""
    target = profile("x86-cpu", INT8_CPU)
    graph = canonical(residual_master("identity"), 4)
    ranges = dict(observed(graph.model, calibrated_tensors(graph, target)))
    for name in ("start", "first", "second"):
        (quantizer,) = quantizers(graph.model, name)
        top = 4.0 * 15 * float(initializer(graph.model, quantizer.input[1]))
        ranges[name] = TensorRange(minimum=0, maximum=top, values=np.linspace(0, top, 4096, dtype=np.float32))
    found = fast_operators(lower(graph, target, ranges=ranges, approximations=FULL).model, target)
    assert found["QLinearConv"] == 4
    assert "Clip" not in found


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_signed_codes_that_are_kept_are_not_refined_for_a_bias(bits: int) -> None:
    """On a branch that is never negative, they are uint8 codes from 0 on; with both options as with this one."""
    text = """
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "stem.weight", float[4, 4, 1, 1] "a.weight", float[4] "a.bias",
         float[4, 4, 1, 1] "z.weight") => (float[n, 4, 6, 6] y) {
        stem = Conv (x, "stem.weight")
        start = Relu (stem)
        a = Conv (start, "a.weight", "a.bias")
        sum = Add (a, start)
        y = Conv (sum, "z.weight")
    }"""
    layers = (layer("stem", activation="pinned"), *(layer(name, activation="signed") for name in "az"))
    graph = canonical(build(text, layers), bits)
    signed = USUAL | {Approximation.FULL_RESOLUTION_SIGNED}
    ranges = dict(observed(graph.model, calibrated_tensors(graph, X86, signed)))
    (quantizer,) = quantizers(graph.model, "start")
    top = 4.0 * float(initializer(graph.model, quantizer.input[1])) * (2 ** (bits - 1) - 1)
    ranges["start"] = TensorRange(minimum=0, maximum=top, values=np.linspace(0, top, 4096, dtype=np.float32))
    for approximations in (signed, FULL):
        found = fast_operators(lower(graph, X86, ranges=ranges, approximations=approximations).model, X86)
        assert (found["Clip"], found["QLinearAdd"]) == (1, 1)


def test_at_8_bits_the_trained_codes_stay() -> None:
    graph = canonical(residual_master("identity"), 8)
    model = with_ranges(8, X86, FULL, 4.0)
    assert rescaled(model) == ["a.input/Add", "c.input/Add"]
    assert initializer(model, "a.input.scale") == initializer(graph.model, "a.input.scale")


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm64"])
@pytest.mark.parametrize("bits", [8, 7, 6, 4, 2])
def test_a_branch_within_the_trained_range_gives_the_layer_its_codes(bits: int, target: Target) -> None:
    """At a third of that range the layer's 256 steps would be three times as coarse as those of the branch."""
    after = lowered_with(bits, target, FULL, 0.3)
    graph = canonical(residual_master("identity"), bits)
    for name, behind in (("start", "a"), ("first", "c"), ("second", "z")):
        own, branch = (initializer(after.model, f"{each}.scale") for each in (f"{behind}.input", f"{name}.residual"))
        assert own == branch
        trained = float(initializer(graph.model, f"{behind}.input.scale")) * (2**bits - 1)
        assert own * 255 == pytest.approx(0.3 * trained, rel=0.01)
    assert rescaled(after.model) == []
    assert fast_operators(after.model, target)["QLinearAdd"] == 2
    assert [each.what for each in after.changes if each.by == "FillContainer"][:1] == [
        "the steps in which they come, within the trained range"
    ]


def test_two_layers_of_different_ranges_and_nothing_else() -> None:
    """As the convolution of a block and that of its shortcut: the wider codes, and one Clip for the narrower."""
    text = """
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "stem.weight", float[4, 4, 1, 1] "s.weight",
         float[4, 4, 1, 1] "wide.weight", float[4, 4, 1, 1] "narrow.weight") => (float[n, 4, 6, 6] y) {
        stem = Conv (x, "stem.weight")
        s = Conv (x, "s.weight")
        sum = Add (stem, s)
        r = Relu (sum)
        wide = Conv (r, "wide.weight")
        narrow = Conv (r, "narrow.weight")
        y = Add (wide, narrow)
    }"""
    layers = (layer("stem", activation="signed"), layer("s", activation="signed"), layer("wide"), layer("narrow"))
    tensors = {"wide.input.scale": [0.5] * 4, "narrow.input.scale": [0.25] * 4}
    graph = canonical(build(text, layers, tensors=tensors), 4)
    wanted = calibrated_tensors(graph, X86, FULL)
    ranges = dict(observed(graph.model, wanted))
    for reach, count in ((20.0, 1), (4.0, 1), (3.5, 0)):
        ranges["r"] = TensorRange(minimum=0, maximum=reach, values=np.linspace(0, reach, 4096, dtype=np.float32))
        after = lower(graph, X86, ranges=ranges, approximations=FULL)
        assert rescaled(after.model) == []
        assert fast_operators(after.model, X86).get("Clip", 0) == count, reach
        top = 255 * float(initializer(after.model, "r.residual.scale"))
        assert top == pytest.approx(reach if count == 0 else 7.5, rel=0.01)
        assert initializer(after.model, "narrow.input.scale") == initializer(after.model, "r.residual.scale")
        if count:
            assert initializer(after.model, "narrow.input.high") in (127, 128)
    assert len(rescaled(lower(graph, X86, ranges=ranges).model)) == 2


@pytest.mark.parametrize("reach", [0.3, 0.34, 1.0, 4.0])
@pytest.mark.parametrize("bits", [8, 7, 6, 4, 2])
def test_full_resolution_is_named_where_it_makes_a_difference(bits: int, reach: float) -> None:
    """At 8 bits the layer has nothing to refine, but its codes may be those of the branch."""
    wanted = USUAL | {Approximation.FULL_RESOLUTION}
    full, usual = (lowered_with(bits, X86, each, reach) for each in (wanted, USUAL))
    differ = full.model.SerializeToString(deterministic=True) != usual.model.SerializeToString(deterministic=True)
    assert (Approximation.FULL_RESOLUTION in full.approximations) == differ
    assert bits == 8 or differ


def test_around_a_pinned_layer() -> None:
    """What is quantized after training meets an Add like any other layer."""
    text = """
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "stem.weight", float[4, 4, 1, 1] "z.weight")
        => (float[n, 4, 6, 6] y) {
        stem = Conv (x, "stem.weight")
        sum = Add (stem, x)
        y = Conv (sum, "z.weight")
    }"""
    graph = canonical(build(text, (layer("stem", activation="pinned"), layer("z", activation="signed"))), 8)
    wanted = USUAL | {Approximation.PINNED_LAYERS}
    names = calibrated_tensors(graph, X86, wanted)
    assert set(names) == {"x", "stem", "sum"}
    x = images()
    ranges = dict(observed(graph.model, tuple(name for name in names if name != "x")))
    ranges["x"] = TensorRange(minimum=float(x.min()), maximum=float(x.max()), values=x.ravel())
    result = lower(graph, X86, ranges=ranges, approximations=wanted)
    assert {Approximation.PINNED_LAYERS, Approximation.RESIDUAL_CODES} <= result.approximations
    found = fast_operators(result.model, X86)
    assert found["QLinearAdd"] >= 1
    assert found["QLinearConv"] >= 1


def test_a_target_that_does_not_fill_containers_shares_nothing() -> None:
    target = replace(X86, lowering=tuple(name for name in X86.lowering if name != "FillContainer"))
    assert len(rescaled(with_ranges(4, target, FULL, 1.0))) == 3


def signed_branch(
    kind: str, bits: int, low: float, high: float, approximations: frozenset[Approximation] = FULL
) -> onnx.ModelProto:
    """Branches without a Relu that layers of this kind read, with values in low..high trained steps."""
    text = """
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "stem.weight", float[4, 4, 1, 1] "a.weight",
         float[4, 4, 1, 1] "z.weight") => (float[n, 4, 6, 6] y) {
        start = Conv (x, "stem.weight")
        a = Conv (start, "a.weight")
        sum = Add (a, start)
        y = Conv (sum, "z.weight")
    }"""
    master = build(text, (layer("stem", activation="pinned"), *(layer(name, activation=kind) for name in "az")))
    graph = canonical(master, bits)
    ranges = dict(observed(graph.model, calibrated_tensors(graph, X86)))
    for name in ("start", "sum"):
        (quantizer,) = quantizers(graph.model, name)
        step = float(initializer(graph.model, quantizer.input[1]))
        values = np.linspace(low * step, high * step, 4096, dtype=np.float32)
        ranges[name] = TensorRange(minimum=low * step, maximum=high * step, values=values)
    return lower(graph, X86, ranges=ranges, approximations=approximations).model


@pytest.mark.parametrize("bits", [6, 4, 2])
def test_signed_codes_are_shared_where_they_reach_as_far_as_the_branch(bits: int) -> None:
    half = 2 ** (bits - 1)
    assert rescaled(signed_branch("signed", bits, -half, half - 1)) == []
    only_unsigned = USUAL | {Approximation.FULL_RESOLUTION}
    assert len(rescaled(signed_branch("signed", bits, -half, half - 1, only_unsigned))) == 2
    # at 8 bits nothing has to be refined
    assert rescaled(signed_branch("signed", 8, -128, 127, only_unsigned)) == []


# unsigned codes lack what is negative; those of 2 bits, -2..1, are half as long on one side as on the other
@pytest.mark.parametrize(
    ("kind", "bits", "reach"), [("unsigned", 8, 255), ("unsigned", 4, 15), ("unsigned", 2, 3), ("signed", 2, 2)]
)
def test_codes_that_lack_a_side_of_the_branch_are_not_shared(kind: str, bits: int, reach: float) -> None:
    model = signed_branch(kind, bits, -reach, reach)
    assert rescaled(model) == (["a.input/Add"] if bits == 8 else [])
    assert fast_operators(model, X86).get("Clip", 0) == (bits < 8)
    if bits < 8:
        assert initializer(model, "a.input.zero_point") == 128
        assert initializer(model, "a.input.low") == (128 if kind == "unsigned" else 0)
    assert initializer(model, "start.residual.zero_point") == 128
    # nothing but a layer reads the sum: it lacks that side anyway
    assert initializer(model, "sum.residual.zero_point") == initializer(model, "z.input.zero_point")
    assert initializer(model, "sum.residual.scale") == initializer(model, "z.input.scale")
