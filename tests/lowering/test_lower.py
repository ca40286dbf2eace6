"""Whole targets: the pass lists of the bundled profiles, and what they make of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from bitswitch_deploy.catalogue import target_names
from bitswitch_deploy.errors import GraphError, TargetFileError
from bitswitch_deploy.lowering import lower as lower_module
from bitswitch_deploy.lowering.lower import PASSES, LoweredGraph, calibrated_tensors, check_passes, lower
from bitswitch_deploy.lowering.lowering_pass import Change, LoweringPass
from bitswitch_deploy.master import Master
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import Rounding
from tests.graph import slow
from tests.graph.masters import BATCH_NORM, build, layer, per_channel
from tests.graph.running import initializer, run
from tests.lowering.blocks import residual_master
from tests.lowering.lowered import canonical, fast_operators, lowered, profile

STACKS = [profile(name).with_stack(stack.name) for name in target_names() for stack in profile(name).stacks]
GPUS = [stack for stack in STACKS if stack.engine.name != "onnxruntime"]
X86 = profile("x86-cpu")


def name_of(target: Target) -> str:
    return f"{target.name}@{target.stack.name}"


def network(*, weight_only: bool = False, **changes: Any) -> Master:
    """Give pinned stem, BatchNorm, two convolutions with negative gains, pooling, a product, a pinned classifier."""
    norms = [f"{norm}.{part}" for norm in ("n0", "n1", "n2") for part in BATCH_NORM]
    declared = "".join(f'float[6] "{name}", ' for name in norms)
    text = f"""
    net (float[n, 3, 8, 8] x, float[6, 3, 3, 3] "stem.weight", {declared} float[6, 6, 3, 3] "a.weight",
         float[6, 6, 3, 3] "b.weight", float[6, 4] "c.weight", float[4, 5] "head.weight", float[5] "head.bias")
        => (float[n, 5] y) {{
        stem = Conv (x, "stem.weight")
        n0 = BatchNormalization (stem, "n0.gamma", "n0.beta", "n0.mean", "n0.var")
        r0 = Relu (n0)
        a = Conv (r0, "a.weight")
        n1 = BatchNormalization (a, "n1.gamma", "n1.beta", "n1.mean", "n1.var")
        r1 = Relu (n1)
        b = Conv (r1, "b.weight")
        n2 = BatchNormalization (b, "n2.gamma", "n2.beta", "n2.mean", "n2.var")
        r2 = Relu (n2)
        pooled = GlobalAveragePool (r2)
        flat = Flatten (pooled)
        c = MatMul (flat, "c.weight")
        y = Gemm (c, "head.weight", "head.bias")
    }}"""
    layers = (
        layer("stem", activation="pinned"),
        layer("a", granularity=per_channel(0)),
        layer("b", granularity=per_channel(0)),
        layer("c", "MatMul", per_channel(1), "none" if weight_only else "unsigned"),
        layer("head", "Gemm", activation="pinned"),
    )
    tensors = {"n1.gamma": [[1, -1, 2, -0.5, 1, 1]] * 4, "n2.gamma": [[-1, 1, 1, 1, -2, 3]] * 4}
    weights = {f"{each}.weight": np.random.default_rng(1).integers(-127, 128, (6, 6, 3, 3)) for each in "ab"}
    return build(text, layers, switchable=norms, tensors={**tensors, **weights}, **changes)


def images(count: int = 40) -> np.ndarray[Any, Any]:
    return np.random.default_rng(6).normal(0, 1.5, (count, 3, 8, 8)).astype(np.float32)


# --- lists of passes -----------------------------------------------------------------------------------------------


def test_every_pass_of_every_profile_exists() -> None:
    assert len(target_names()) >= 9
    for name in target_names():
        assert set(profile(name).lowering) <= set(PASSES)
        check_passes(profile(name))


def test_every_pass_has_the_name_of_its_file_and_is_used() -> None:
    folder = Path(lower_module.__file__).parent
    for name, each in PASSES.items():
        assert each.__name__ == name
        words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).strip("_")
        assert (folder / f"{words.replace('batch_norm', 'batchnorm')}.py").is_file()
    assert {each for name in target_names() for each in profile(name).lowering} == set(PASSES)


def test_set_opset_comes_last() -> None:
    for name in target_names():
        assert profile(name).lowering[-1] == "SetOpset"


def test_unknown_pass() -> None:
    target = profile("rtx", {"lowering": ["ClampActivations", "FuseEverything", "Hope"]})
    message = r"no pass is named FuseEverything, Hope\n  allowed: QuantizePinned, FoldBatchNorm, QuantizeResidual"
    with pytest.raises(TargetFileError, match=message):
        check_passes(target)
    with pytest.raises(TargetFileError, match=message):
        lower(canonical(network(), 4), target, ranges={})


class Vandalise(LoweringPass):
    def apply(self, graph: gs.Graph) -> bool:
        for node in graph.nodes:
            if node.op == "QuantizeLinear":
                node.inputs.pop()
        return True


def test_the_pass_that_broke_the_graph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, "Vandalise", Vandalise)
    target = profile("x86-cpu", {"lowering": ["FoldBatchNorm", "Vandalise", "SetOpset"]})
    with pytest.raises(GraphError, match=r"^after Vandalise: QuantizeLinear a\.input/QuantizeLinear: no zero-point"):
        lower(canonical(network(), 4), target, ranges={})


def test_rules_of_the_target_are_checked_at_the_end() -> None:
    with pytest.raises(GraphError, match="type uint8"):
        lower(canonical(network(), 4), profile("rtx", {"lowering": ["SetOpset"]}), ranges={})


# --- results -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", STACKS, ids=name_of)
@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_every_stack_runs_and_says_the_same(target: Target, bits: int) -> None:
    before, after = lowered(network(), bits, target)
    assert [(entry.domain, entry.version) for entry in after.model.opset_import] == [("", target.stack.opset)]
    assert after.model.ir_version == target.stack.ir_version
    expected = run(before.model, images())
    found = run(after.model, images())
    # at 8 bits int32 biases of onnxruntime move some codes, and uint8 codes are re-scaled for GPUs
    assert after.exact is (bits < 8)
    if after.exact:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))
    else:
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.8


@pytest.mark.parametrize("target", [target for target in STACKS if target.stack.weight_form == "int8"], ids=name_of)
@pytest.mark.parametrize("bits", [8, 5, 2])
def test_weights_are_the_derived_ones_on_every_target(target: Target, bits: int) -> None:
    master = network(rounding=Rounding.HALF_EVEN)
    _, after = lowered(master, bits, target)
    for name in ("a.weight", "b.weight", "c.weight"):
        expected = slow.derived(master.tensors[name], 8, bits, Rounding.HALF_EVEN)
        np.testing.assert_array_equal(initializer(after.model, name).astype(np.int8), expected)


@pytest.mark.parametrize("target", GPUS, ids=name_of)
def test_gpus_are_exact_at_eight_bits_when_trained_for_int8(target: Target) -> None:
    before, after = lowered(network(activation_container="int8"), 8, target)
    assert after.exact
    np.testing.assert_allclose(run(after.model, images()), run(before.model, images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["x86-cpu", "arm64-cpu"])
@pytest.mark.parametrize("bits", [4, 2])
def test_only_what_has_no_codes_behind_it_runs_in_float(name: str, bits: int) -> None:
    target = profile(name)
    _, after = lowered(network(), bits, target)
    found = fast_operators(after.model, target)
    # a in integers; the stem is pinned, b is read by a pooling in float
    assert found.get("QLinearConv") == 1
    assert found.get("Conv", 0) + found.get("FusedConv", 0) == 2
    assert found.get("MatMulIntegerToFloat") == 1
    assert "BatchNormalization" in {node.op_type for node in after.model.graph.node}  # behind the stem


def test_fused_graph_has_the_codes_of_the_canonical_one() -> None:
    for bits in (4, 3, 2):
        before, after = lowered(network(), bits, X86)
        fast = run(after.model, images(), optimisation="all", session=dict(X86.engine.session))
        expected = run(before.model, images())
        np.testing.assert_allclose(fast, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


def test_names_of_the_passes_that_did_something() -> None:
    assert lowered(network(), 4, X86)[1].passes == ("FoldBatchNorm", "QuantizeBias")
    assert lowered(network(), 4, profile("jetson-orin-nano"))[1].passes == ("ClampActivations", "SetOpset")
    assert lowered(network(), 4, profile("rtx"))[1].passes == ("ClampActivations",)
    assert lowered(network(weight_only=True), 4, profile("rtx"))[1].passes == ("ClampActivations", "PackWeights")
    assert lowered(network(), 4, profile("jetson-xavier-nx"))[1].passes == (
        "ClampActivations",
        "StoreFloatWeights",
        "SetOpset",
    )


def test_order_is_the_profile_s() -> None:
    target = profile("x86-cpu", {"lowering": ["QuantizeBias", "FoldBatchNorm", "SetOpset"]})
    assert lowered(network(), 4, target)[1].passes == ("FoldBatchNorm",)  # no codes behind a BatchNormalization


def test_same_call_same_bytes_and_an_untouched_canonical_graph() -> None:
    for target in (X86, profile("rtx"), profile("jetson-xavier-nx")):
        graph = canonical(network(), 4)
        before = graph.model.SerializeToString()
        first, second = (lower(graph, target, ranges={}).model.SerializeToString() for _ in range(2))
        assert first == second
        assert graph.model.SerializeToString() == before


def test_widths_of_layers_reach_the_passes() -> None:
    master = network(weight_only=True)
    after = lower(canonical(master, 8, c=4), profile("rtx"), ranges={})
    assert "PackWeights" in after.passes
    assert "PackWeights" not in lower(canonical(master, 8), profile("rtx"), ranges={}).passes


def test_exact_is_what_all_changes_say() -> None:
    kept = Change(by="x", where="y", what="z", exact=True)
    moved = Change(by="x", where="y", what="z", exact=False)
    model = canonical(network(), 4).model
    assert LoweredGraph(model=model, passes=(), changes=()).exact
    assert LoweredGraph(model=model, passes=(), changes=(kept, kept)).exact
    assert not LoweredGraph(model=model, passes=(), changes=(kept, moved)).exact


def test_calibrated_tensors() -> None:
    graph = canonical(residual_master("moved"), 4)
    assert calibrated_tensors(graph, X86) == ("b", "start", "first", "main", "second")
    assert calibrated_tensors(graph, profile("rtx")) == ("start", "side")
    assert calibrated_tensors(graph, profile("x86-cpu", {"quantization.residual": "none"})) == ()
    without = [name for name in X86.lowering if name != "QuantizeResidual"]
    assert calibrated_tensors(graph, profile("x86-cpu", {"lowering": without})) == ()


def test_input_codes_are_shifted_where_that_makes_the_bias_exact() -> None:
    """At 6 bits the steps of the weights leave no integer bias for most channels; with inputs times 4 there is one."""
    _, after = lowered(network(), 6, X86)
    finer = [node for node in after.model.graph.node if node.name.endswith(".fine/QuantizeLinear")]
    assert finer
    for node in finer:
        coarse = node.name.replace(".fine/QuantizeLinear", "/QuantizeLinear")
        quantize = next(each for each in after.model.graph.node if each.name == coarse)
        assert initializer(after.model, node.input[1]) * 4 == initializer(after.model, quantize.input[1])
        # codes 0..63 become 3..255: saturation clips them
        assert initializer(after.model, node.input[2]) == 3
    assert after.exact


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_input_codes_are_not_shifted_where_it_is_of_no_use(bits: int) -> None:
    _, after = lowered(network(), bits, X86)
    assert not [node for node in after.model.graph.node if node.name.endswith(".fine/QuantizeLinear")]
