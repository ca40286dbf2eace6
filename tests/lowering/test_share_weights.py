"""Graphs that derive their weights from the master's, beside those that hold them: the same to onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.catalogue import bundled_master, load_target
from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.canonical import CanonicalGraph, canonical_graph
from bitswitch_deploy.lowering.lower import LoweredGraph, lower
from bitswitch_deploy.lowering.share_weights import SharedModel, share_weights
from bitswitch_deploy.master import Master, assemble_master, read_master
from bitswitch_deploy.tensors import Rounding, WidthAssignment
from tests.graph.masters import BATCH_NORM, build, layer, per_channel
from tests.graph.optimised import optimised

TARGET = load_target("x86-cpu").target
FILE = "net.weights"
LAYERS = ("blocks.0.conv1", "blocks.1.conv2")
MIXED = WidthAssignment(default=6, overrides=((LAYERS[0], 2), (LAYERS[1], 8)))
ASSIGNMENTS = (*(WidthAssignment(default=bits) for bits in range(8, 1, -1)), MIXED)


@pytest.fixture(scope="module", params=list(Rounding))
def master(request: pytest.FixtureRequest) -> Master:
    bundled = read_master(bundled_master())
    spec = replace(bundled.spec, rounding=request.param)
    return assemble_master(spec=spec, tensors=bundled.tensors, skeleton=bundled.skeleton)


class Weights:
    """The file that graphs of a folder share, as simple as it can be."""

    name = FILE

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.path.touch()
        self.placed: dict[str, int] = {}
        self.stored: dict[bytes, int] = {}

    def place(self, name: str, tensor: np.ndarray[Any, Any]) -> int:
        if name not in self.placed:
            self.placed[name] = self._append(tensor)
        return self.placed[name]

    def store(self, array: np.ndarray[Any, Any]) -> int:
        content = array.tobytes()
        if content not in self.stored:
            self.stored[content] = self._append(array)
        return self.stored[content]

    def _append(self, array: np.ndarray[Any, Any]) -> int:
        offset = self.path.stat().st_size
        with self.path.open("ab") as file:
            file.write(array.tobytes())
        return offset


def lowered(master: Master, assignment: WidthAssignment) -> tuple[CanonicalGraph, onnx.ModelProto]:
    canonical = canonical_graph(master, assignment)
    return canonical, lower(canonical, TARGET, ranges={}).model


def share(master: Master, canonical: CanonicalGraph, model: onnx.ModelProto, weights: Weights) -> SharedModel:
    bits = {layer.layer.weight: layer.bits for layer in canonical.plan.layers}
    return share_weights(LoweredGraph(model=model, passes=(), changes=()), master, bits, weights)


@pytest.mark.parametrize("assignment", ASSIGNMENTS, ids=lambda each: each.label + str(each.default))
def test_onnxruntime_makes_the_same_graph_of_both_forms(
    master: Master, assignment: WidthAssignment, tmp_path: Path
) -> None:
    canonical, model = lowered(master, assignment)
    own, shared = tmp_path / "own.onnx", tmp_path / "shared.onnx"
    own.write_bytes(model.SerializeToString())
    shared.write_bytes(share(master, canonical, model, Weights(tmp_path)).data)
    onnx.checker.check_model(str(shared), full_check=True)
    assert optimised(shared) == optimised(own)


def test_the_comparison_sees_one_code_of_another_width(tmp_path: Path) -> None:
    master = read_master(bundled_master())
    canonical, model = lowered(master, WidthAssignment(default=4))
    own, shared = tmp_path / "own.onnx", tmp_path / "shared.onnx"
    own.write_bytes(model.SerializeToString())
    weights = Weights(tmp_path)
    shared.write_bytes(share(master, canonical, model, weights).data)
    data = bytearray(weights.path.read_bytes())
    first = int(np.frombuffer(data, np.int8)[0])
    data[0] = (first + 64 if first < 0 else first - 64) % 256
    weights.path.write_bytes(data)
    assert optimised(shared)[0] != optimised(own)[0]
    assert optimised(shared)[1] == optimised(own)[1]


@pytest.mark.parametrize("bits", [8, 6, 3])
def test_what_is_left_without_the_derivation_reads_products_by_the_names_of_the_weights(
    tmp_path: Path, bits: int
) -> None:
    master = read_master(bundled_master())
    canonical, model = lowered(master, WidthAssignment(default=bits))
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    own = tmp_path / "own.onnx"
    own.write_bytes(model.SerializeToString())
    weights = Weights(tmp_path)
    shared = share(master, canonical, model, weights)
    assert 0 < shared.derivation_bytes < len(shared.data)
    rest = onnx.load_model_from_string(shared.data[shared.derivation_bytes :])
    assert not any(node.op_type == "Mul" for node in rest.graph.node)
    names = [layer.layer.weight for layer in canonical.plan.layers]
    multiplied = 0
    for name in names:
        value = constants[name]
        if (factors := shared.tensors[name].factors) is not None:
            multiplied += 1
            offset, shape = factors
            stored = np.frombuffer(weights.path.read_bytes(), np.int8, int(np.prod(shape)), offset).reshape(shape)
            value = (value.astype(np.int32) * stored).astype(np.int8)
        if name in {tensor.name for tensor in rest.graph.initializer}:
            assert (bits, factors) == (8, None)
            continue
        rest.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    assert multiplied
    again = tmp_path / "again.onnx"
    again.write_bytes(rest.SerializeToString())
    assert optimised(again) == optimised(own)


def test_factors_of_codes_that_two_nodes_read_stay_where_they_are(tmp_path: Path) -> None:
    master = read_master(bundled_master())
    canonical, model = lowered(master, WidthAssignment(default=4))
    name = f"{LAYERS[0]}.weight"
    second = onnx.helper.make_node("Cast", [name], ["seen"], to=onnx.TensorProto.INT32)
    model.graph.node.append(second)
    model.graph.output.append(onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.INT32, None))
    own = tmp_path / "own.onnx"
    own.write_bytes(model.SerializeToString())
    shared = share(master, canonical, model, Weights(tmp_path))
    assert shared.tensors[name].factors is None
    assert any(tensor.factors is not None for tensor in shared.tensors.values())
    path = tmp_path / "shared.onnx"
    path.write_bytes(shared.data)
    assert optimised(path) == optimised(own)


def test_the_file_holds_each_tensor_once_and_only_what_is_the_masters(tmp_path: Path) -> None:
    master = read_master(bundled_master())
    weights = Weights(tmp_path)
    both = [share(master, *lowered(master, WidthAssignment(default=bits)), weights) for bits in (8, 4)]
    quantized = {layer.weight for layer in master.spec.layers if not layer.pinned}
    # of the float parameters these have 256 bytes or more
    assert set(weights.placed) == {*quantized, "conv1.weight", "linear.weight"}
    factors = [tensor.factors for shared in both for tensor in shared.tensors.values() if tensor.factors is not None]
    assert factors
    assert {offset for offset, _ in factors} <= set(weights.stored.values())
    # the rest are zero-points of biases
    assert all(set(content) == {0} or len(content) < 256 for content in weights.stored)
    expected = sum(master.tensors[name].nbytes for name in weights.placed)
    assert weights.path.stat().st_size == expected + sum(map(len, weights.stored))


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_a_graph_says_nothing_twice(bits: int, tmp_path: Path) -> None:
    """Factors that layers have in common, scales that are products, and names of nodes that are those of outputs."""
    weights = ", ".join(f'float[64, {inputs}, 1, 1] "{name}.weight"' for name, inputs in zip("abcd", (4, 64, 64, 64)))
    text = f"""net (float[n, 4, 5, 5] x, {weights}, float[64] "b.bias", float[64] "c.bias") => (float[n, 64, h, w] y) {{
        a = Conv (x, "a.weight") r = Relu (a) b = Conv (r, "b.weight", "b.bias") s = Relu (b)
        c = Conv (s, "c.weight", "c.bias") t = Relu (c) y = Conv (t, "d.weight") }}"""
    master = build(text, tuple(layer(name, granularity=per_channel(0)) for name in "abcd"))
    canonical, model = lowered(master, WidthAssignment(default=bits))
    own, shared = tmp_path / "own.onnx", tmp_path / "shared.onnx"
    own.write_bytes(model.SerializeToString())
    made = share(master, canonical, model, Weights(tmp_path))
    shared.write_bytes(made.data)
    assert optimised(shared) == optimised(own)
    derivation, rest = (
        onnx.load_model_from_string(part).graph
        for part in (made.data[: made.derivation_bytes], made.data[made.derivation_bytes :])
    )
    factors = [tensor.factors for tensor in made.tensors.values() if tensor.factors is not None]
    assert (
        sum(tensor.name.startswith("factors.") for tensor in derivation.initializer) == len(set(factors)) < len(factors)
    )
    computed = {name for node in rest.node if node.op_type in ("Cast", "Mul") for name in node.output}
    assert computed >= {f"{name}.weight.bias.codes.scale" for name in "bc"}
    assert computed & {f"{name}.weight.bias.codes" for name in "bc"}
    unnamed = {node.op_type for node in rest.node if not node.name}
    assert unnamed == {"DequantizeLinear", "Cast", "Mul"}
    # those of the layers whose output stays float
    named = {node.name.partition(".")[0] for node in rest.node if node.op_type == "DequantizeLinear" and node.name}
    assert named == {"a", "d"}


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_scales_of_lower_widths_are_the_masters_times_a_power_of_two(bits: int, tmp_path: Path) -> None:
    """Without a BatchNormalization behind them; 64 scales are as many bytes as shared floats have."""
    text = """net (float[n, 4, 5, 5] x, float[64, 4, 3, 3] "a.weight") => (float[n, 64, h, w] y) {
        y = Conv (x, "a.weight") }"""
    master = build(text, (layer("a", granularity=per_channel(0)),))
    canonical, model = lowered(master, WidthAssignment(default=bits))
    own, shared = tmp_path / "own.onnx", tmp_path / "shared.onnx"
    own.write_bytes(model.SerializeToString())
    made = share(master, canonical, model, Weights(tmp_path))
    shared.write_bytes(made.data)
    assert made.tensors["a.weight.scale"].bits == (None if bits == 8 else bits)
    assert optimised(shared) == optimised(own)


def test_a_factor_of_128_stays_in_the_graph(tmp_path: Path) -> None:
    master = read_master(bundled_master())
    canonical, model = lowered(master, WidthAssignment(default=4))
    multiply = next(node for node in model.graph.node if node.op_type == "Mul" and "factors" in node.input[1])
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == multiply.input[1])
    factors = onnx.numpy_helper.to_array(tensor).copy()
    factors.flat[0] = 128
    tensor.CopyFrom(onnx.numpy_helper.from_array(factors, tensor.name))
    own, shared = tmp_path / "own.onnx", tmp_path / "shared.onnx"
    own.write_bytes(model.SerializeToString())
    made = share(master, canonical, model, Weights(tmp_path))
    shared.write_bytes(made.data)
    assert made.tensors[tensor.name.removesuffix(".factors")].factors is None
    assert sum(each.factors is None for each in made.tensors.values()) < len(made.tensors)
    assert optimised(shared) == optimised(own)


def test_floats_that_overflow_on_the_way_are_compared_all_the_same(tmp_path: Path) -> None:
    """A bias of the master that the graph has another one of; pytest makes an error of NumPy's warning."""
    text = """net (float[n, 4, 5, 5] x, float[64, 4, 3, 3] "a.weight", float[64] "a.bias") => (float[n, 64, h, w] y) {
        y = Conv (x, "a.weight", "a.bias") }"""
    bias = np.full(64, np.float32(3e38))
    master = build(text, (layer("a", granularity=per_channel(0)),), tensors={"a.bias": bias})
    canonical, model = lowered(master, WidthAssignment(default=4))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "a.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.arange(64, dtype=np.float32), "a.bias"))
    own, shared = tmp_path / "own.onnx", tmp_path / "shared.onnx"
    own.write_bytes(model.SerializeToString())
    made = share(master, canonical, model, Weights(tmp_path))
    shared.write_bytes(made.data)
    assert "a.bias" not in made.tensors
    assert optimised(shared) == optimised(own)


def test_a_weight_that_is_named_like_a_value_keeps_its_name(tmp_path: Path) -> None:
    """`uint8.15` is also what the ends of two Clips at 4 bits would be called."""
    inputs = 'float[n, 4, 5, 5] x, float[8, 4, 3, 3] "uint8.15", float[8, 8, 3, 3] "b.weight"'
    text = f"""net ({inputs}) => (float[n, 8, h, w] y) {{
        a = Conv (x, "uint8.15") r = Relu (a) y = Conv (r, "b.weight") }}"""
    first = replace(layer("a", granularity=per_channel(0)), weight="uint8.15")
    master = build(text, (first, layer("b", granularity=per_channel(0))))
    canonical, model = lowered(master, WidthAssignment(default=4))
    own, shared = tmp_path / "own.onnx", tmp_path / "shared.onnx"
    own.write_bytes(model.SerializeToString())
    shared.write_bytes(share(master, canonical, model, Weights(tmp_path)).data)
    assert optimised(shared) == optimised(own)


def test_a_graph_that_can_have_no_functions_is_refused(tmp_path: Path) -> None:
    master = read_master(bundled_master())
    canonical, model = lowered(master, WidthAssignment(default=4))
    model.ir_version = 7
    with pytest.raises(GraphError, match="a graph of IR version 7"):
        share(master, canonical, model, Weights(tmp_path))


def test_codes_that_are_not_the_masters_are_refused(tmp_path: Path) -> None:
    master = read_master(bundled_master())
    canonical, model = lowered(master, WidthAssignment(default=4))
    name = f"{LAYERS[0]}.weight"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    codes = onnx.numpy_helper.to_array(tensor).copy()
    codes.flat[5] ^= 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(codes, name))
    with pytest.raises(GraphError, match=f"weight {name}: codes that are not the master's at 4 bits"):
        share(master, canonical, model, Weights(tmp_path))


def test_packed_codes_stay_in_the_graph(tmp_path: Path) -> None:
    master = read_master(bundled_master())
    canonical, model = lowered(master, WidthAssignment(default=4))
    name = f"{LAYERS[0]}.weight"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.data_type = onnx.TensorProto.INT4
    shared = share(master, canonical, model, Weights(tmp_path))
    assert name not in shared.tensors
    kept = onnx.load_model_from_string(shared.data).graph.initializer
    assert any(each.name == name and each.raw_data for each in kept)


@pytest.mark.parametrize("lowest", [-127, -128])
def test_scales_that_differ_from_the_masters_in_their_sign_alone_are_not_shared(lowest: int, tmp_path: Path) -> None:
    """256 scales are as many bytes as shared floats have, and gains of 1 and -1 leave their sizes what they were.

    A code of -128 makes the scale of a channel with a negative gain negative.
    """
    norm = ", ".join(f'"n.{each}"' for each in BATCH_NORM)
    inputs = ", ".join(f'float[256] "n.{each}"' for each in BATCH_NORM)
    text = f"""net (float[n, 4, 5, 5] x, float[256, 4, 3, 3] "a.weight", {inputs}) => (float[n, 256, h, w] y) {{
        a = Conv (x, "a.weight") b = BatchNormalization <epsilon: float = 0.0> (a, {norm}) y = Relu (b) }}"""
    gains = np.where(np.arange(256) % 3, 1, -1)
    codes = np.random.default_rng(2).integers(-127, 128, (256, 4, 3, 3))
    codes[3:90, 0, 0, 0] = lowest
    tensors = {"a.weight": codes, "n.gamma": gains, "n.var": np.ones(256)}
    master = build(text, (layer("a", granularity=per_channel(0)),), tensors=tensors)
    canonical, model = lowered(master, WidthAssignment(default=8))
    own, shared = tmp_path / "own.onnx", tmp_path / "shared.onnx"
    own.write_bytes(model.SerializeToString())
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert (constants["a.weight.scale"] < 0).any() == (lowest == -128)
    made = share(master, canonical, model, Weights(tmp_path))
    shared.write_bytes(made.data)
    assert ("a.weight.scale" in made.tensors) == (lowest == -127)
    assert optimised(shared) == optimised(own)
