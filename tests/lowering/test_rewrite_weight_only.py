"""RewriteWeightOnly: the master's integers in the form that onnxruntime runs, the numbers of the canonical graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.onnxruntime_engine import save_optimized
from bitswitch_deploy.lowering.approximation import EXACT, Approximation
from bitswitch_deploy.master import Master
from bitswitch_deploy.tensors import PER_TENSOR, Granularity
from tests.graph.masters import build, layer, per_block, per_channel
from tests.graph.running import Array, initializer, run
from tests.lowering.lowered import applied, canonical, is_untouched, lowered, profile
from tests.networks.integer_oracle import derived, stored_codes

X86 = profile("x86-cpu")
SESSION = dict(X86.engine.session)
ROUNDED = frozenset({Approximation.INT8_INPUTS})
# inputs, outputs, scales, inputs in a block: 40 do not fill one, 160 fill one and a part of another
CASES = [(40, 24, "tensor", 64), (40, 24, "channel", 64), (160, 9, "channel", 128), (160, 9, "block", 32)]
FORMS = {"MatMul": (0, 1), "Gemm": (1, 0)}  # axis of inputs, of outputs


def network(operator: str, inputs: int, outputs: int, granularity: Granularity, **changes: str) -> Master:
    """One layer `a` on a float input; a Gemm has a bias and a transposed weight."""
    if operator == "MatMul":
        shape, node, extra = f"{inputs}, {outputs}", 'MatMul (x, "a.weight")', ""
    else:
        attributes = changes.get("attributes", "transB = 1")
        shape, node = f"{outputs}, {inputs}", f'Gemm <{attributes}> (x, "a.weight", "a.bias")'
        extra = f', float[{outputs}] "a.bias"'
    text = f'net (float[n, {inputs}] x, float[{shape}] "a.weight"{extra}) => (float[n, {outputs}] y) {{ y = {node} }}'
    return build(text, (layer("a", operator, granularity, "none"),))  # type: ignore[arg-type]


def granularity(kind: str, operator: str) -> Granularity:
    inputs, outputs = FORMS[operator]
    return {"tensor": PER_TENSOR, "channel": per_channel(outputs), "block": per_block(inputs, 32)}[kind]


def codes_of(master: Master, bits: int) -> Array:
    spec = master.spec
    return np.asarray(
        derived(np.asarray(master.tensors["a.weight"]), from_bits=8, to_bits=bits, rounding=spec.rounding)
    )


def inputs_of(master: Master, n: int = 7) -> Array:
    columns = master.spec.inputs[0].shape[1]
    return np.asarray(np.random.default_rng(3).normal(size=(n, int(columns))), np.float32)


def relative_error(reference: Array, other: Array) -> float:
    return float(np.abs(other - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize("operator", FORMS)
@pytest.mark.parametrize(("inputs", "outputs", "kind", "block_size"), CASES)
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_packed_and_exact(bits: int, inputs: int, outputs: int, kind: str, block_size: int, operator: str) -> None:
    master = network(operator, inputs, outputs, granularity(kind, operator))
    before, after = lowered(master, bits, X86, approximations=EXACT)
    assert after.exact
    stored = stored_codes(after.model, "a.weight", transposed=operator == "Gemm")
    assert np.array_equal(stored, codes_of(master, bits))
    x = inputs_of(master)
    assert relative_error(run(before.model, x), run(after.model, x, optimisation="all", session=SESSION)) < 1e-6
    node = next(each for each in after.model.graph.node if each.op_type == "MatMulNBits")
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    assert attributes["accuracy_level"] == 1
    assert attributes["block_size"] == block_size


@pytest.mark.parametrize("kind", ["tensor", "channel", "block"])
@pytest.mark.parametrize("operator", FORMS)
@pytest.mark.parametrize("bits", [8, 6, 5])
def test_folded_and_exact(bits: int, operator: str, kind: str, tmp_path: Path) -> None:
    master = network(operator, 64, 24, granularity(kind, operator))
    before, after = lowered(master, bits, X86, approximations=EXACT)
    assert after.exact
    assert [change.what for change in after.changes] == [
        f"weights of {bits} bits become float32 when onnxruntime loads the graph"
    ]
    assert np.array_equal(initializer(after.model, "a.weight"), codes_of(master, bits))
    x = inputs_of(master)
    assert np.array_equal(run(before.model, x), run(after.model, x))
    # those of blocks have their name in the master, as nothing is repeated there
    name = f"a.weight.{'scale' if kind == 'block' else 'steps'}"
    assert initializer(after.model, name).size == {"tensor": 1, "channel": 24, "block": 24 * 64 // 32}[kind]
    save_optimized(after.model.SerializeToString(), tmp_path / "o.onnx", session_options=SESSION)
    assert Counter(node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node) == Counter([operator])


@pytest.mark.parametrize("operator", FORMS)
@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_rounded_inputs(bits: int, operator: str) -> None:
    master = network(operator, 160, 24, granularity("channel", operator))
    before, after = lowered(master, bits, X86, approximations=ROUNDED)
    assert [(change.what, change.exact) for change in after.changes] == [
        ("inputs rounded to 8 bits in blocks of 128", False)
    ]
    stored = stored_codes(after.model, "a.weight", transposed=operator == "Gemm")
    assert np.array_equal(stored, codes_of(master, bits))
    x = inputs_of(master)
    exact, rounded = run(before.model, x), run(after.model, x, optimisation="all", session=SESSION)
    # which kernel rounds is the processor's business; some do not
    assert relative_error(exact, rounded) < 0.02


def test_weight_of_two_layers_is_stored_once() -> None:
    text = (
        'net (float[n, 32] x, float[32, 32] "a.weight") => (float[n, 32] y)'
        ' { h = MatMul (x, "a.weight") g = Tanh (h) y = MatMul (g, "a.weight") }'
    )
    master = build(text, (layer("a", "MatMul", PER_TENSOR, "none"),))
    x = inputs_of(master)
    for bits in (8, 4):
        before, after = lowered(master, bits, X86, approximations=EXACT)
        assert sum(np.prod(tensor.dims) for tensor in after.model.graph.initializer if tensor.data_type != 1) <= 1024
        assert relative_error(run(before.model, x), run(after.model, x, optimisation="all", session=SESSION)) < 1e-6


@pytest.mark.parametrize("attributes", ["transB = 1, alpha = 2.0", "transB = 1, beta = 0.5"])
def test_other_factors_are_left_alone(attributes: str) -> None:
    master = network("Gemm", 64, 24, per_channel(0), attributes=attributes)
    before = canonical(master, 4).model
    assert is_untouched(applied("RewriteWeightOnly", before, X86, bits=4), before)


@pytest.mark.parametrize("inputs", [48, 60])
def test_other_blocks_become_floats(inputs: int) -> None:
    master = network("MatMul", inputs, 24, per_block(0, 24))
    before, after = lowered(master, 4, X86, approximations=EXACT)
    x = inputs_of(master)
    assert "MatMulNBits" not in {node.op_type for node in after.model.graph.node}
    assert np.array_equal(run(before.model, x), run(after.model, x))


def test_layers_that_read_codes_are_left_alone() -> None:
    text = 'net (float[n, 32] x, float[32, 8] "a.weight") => (float[n, 8] y) { y = MatMul (x, "a.weight") }'
    before = canonical(build(text, (layer("a", "MatMul", PER_TENSOR, "signed"),)), 4).model
    assert is_untouched(applied("RewriteWeightOnly", before, X86, bits=4), before)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("kind", ["tensor", "inputs", "blocks of outputs"])
def test_weights_that_have_no_one_packed_form_become_floats(kind: str, bits: int) -> None:
    """Read both ways round, or with scales that no sum over inputs can be freed of."""
    both = """net (float[n, 64] x, float[64, 64] "a.weight") => (float[n, 64] y)
        { h = Gemm (x, "a.weight") y = Gemm <transB = 1> (h, "a.weight") }"""
    once = 'net (float[n, 64] x, float[64, 64] "a.weight") => (float[n, 64] y) { y = MatMul (x, "a.weight") }'
    text, operator, scales = {
        "tensor": (both, "Gemm", PER_TENSOR),
        "inputs": (once, "MatMul", per_channel(0)),
        "blocks of outputs": (once, "MatMul", per_block(1, 32)),
    }[kind]
    master = build(text, (layer("a", operator, scales, "none"),))  # type: ignore[arg-type]
    x = inputs_of(master)
    before, after = lowered(master, bits, X86, approximations=EXACT)
    found = after.model
    assert not [node for node in found.graph.node if node.op_type == "MatMulNBits"]
    assert relative_error(run(before.model, x), run(found, x, optimisation="all")) < 1e-5
