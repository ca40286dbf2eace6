"""A large graph says what the small one says, without holding its weights."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnx_graphsurgeon as gs
import pytest

from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph import large_tensors
from bitswitch_deploy.graph.canonical import CanonicalGraph, canonical_graph
from bitswitch_deploy.graph.external_data import data_chunks, data_name, refer_to_data, runnable
from bitswitch_deploy.graph.large_tensors import DerivedCodes, LargeConstant, StoredFloats
from bitswitch_deploy.graph.model_io import check_file, check_model, import_model
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.tensors import Rounding, WidthAssignment
from tests.graph.masters import build, layer, per_channel

TEXT = """
net (float[n, 48] x, float[48, 40] "a.weight", float[40] "a.bias", float[40, 10] "b.weight", float[10, 300] "c.weight")
    => (float[n, 300] y) {
    first = MatMul (x, "a.weight")
    biased = Add (first, "a.bias")
    rectified = Relu (biased)
    second = MatMul (rectified, "b.weight")
    y = MatMul (second, "c.weight")
}"""
LAYERS = (
    layer("a", "MatMul", per_channel(1), "signed"),
    layer("b", "MatMul"),
    layer("c", "MatMul", activation="pinned"),
)
# a.weight has 1920 bytes, c.weight 12000; b.weight has 400, too few to be worth a file
LARGE = ["a.weight", "c.weight"]


@pytest.fixture(scope="module")
def master() -> Master:
    return build(TEXT, LAYERS)


def canonical(master: Master, bits: int, limit_bytes: int = 0) -> CanonicalGraph:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_tensors, "EMBEDDED_LIMIT_BYTES", limit_bytes)
        return canonical_graph(master, WidthAssignment(default=bits))


@pytest.fixture
def written(master: Master, tmp_path: Path) -> Path:
    """The graph at 4 bits and its data, in files."""
    large = canonical(master, 4)
    path = tmp_path / "net.onnx"
    refer_to_data(large.model, large.large, location=data_name(path.name))
    (tmp_path / data_name(path.name)).write_bytes(b"".join(data_chunks(large.model, large.large)))
    path.write_bytes(large.model.SerializeToString())
    return path


def test_the_limit_decides(master: Master) -> None:
    size_bytes = sum(tensor.nbytes for tensor in master.tensors.values())
    assert sorted(canonical(master, 4, size_bytes - 1).large) == LARGE
    assert not canonical(master, 4, size_bytes).large
    assert not canonical_graph(master, WidthAssignment(default=4)).large


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_with_its_data_it_is_the_same_model(master: Master, bits: int, tmp_path: Path) -> None:
    large, small = canonical(master, bits), canonical_graph(master, WidthAssignment(default=bits))
    with runnable(large.model, large.large) as source:
        assert isinstance(source, Path)
        loaded = onnx.load(str(source))
        x = np.random.default_rng(0).normal(size=(3, 48)).astype(np.float32)
        output = ReferenceSession(source).run(x)
    assert not source.exists()
    for tensor in loaded.graph.initializer:
        tensor.ClearField("data_location")  # DEFAULT; `onnx.load` has put the data in
    assert loaded == small.model
    np.testing.assert_array_equal(output, ReferenceSession(small.model.SerializeToString()).run(x))


def test_a_small_model_runs_as_bytes(master: Master) -> None:
    small = canonical_graph(master, WidthAssignment(default=4))
    with runnable(small.model, small.large) as source:
        assert source == small.model.SerializeToString()


def test_a_serialized_large_model_holds_no_weights(master: Master) -> None:
    large = canonical(master, 4)
    marks = {tensor.name: tensor for tensor in large.model.graph.initializer if tensor.name in LARGE}
    assert sorted(marks) == LARGE
    for mark in marks.values():
        assert mark.data_location == onnx.TensorProto.EXTERNAL
        assert not mark.HasField("raw_data")


def test_marks_come_and_go_with_their_tensors(master: Master) -> None:
    large = canonical(master, 4)
    again = large_tensors.large_tensors(import_model(large.model, large.large))
    assert again == large.large
    assert not large_tensors.large_tensors(import_model(canonical_graph(master, WidthAssignment(default=4)).model))


def test_a_constant_makes_its_values_again_and_keeps_none() -> None:
    codes = np.arange(-128, 128).astype(np.int8).repeat(1 << 12).reshape(16, -1)
    constant = LargeConstant("w", DerivedCodes(codes, from_bits=8, to_bits=4, rounding=Rounding.HALF_UP))
    tracemalloc.start()
    try:
        first = constant.values
        assert tracemalloc.get_traced_memory()[0] >= codes.nbytes
        first[:] = 0  # the caller's own
        del first
        assert tracemalloc.get_traced_memory()[0] < codes.nbytes / 10
    finally:
        tracemalloc.stop()
    assert (tuple(constant.shape), constant.dtype) == (codes.shape, np.int8)
    np.testing.assert_array_equal(constant.values, np.minimum(np.floor(codes / 16 + 0.5), 7))
    with pytest.raises(AttributeError, match="values"):
        constant.values = codes  # type: ignore[misc]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_are_the_whole(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_tensors, "_CHUNK", chunk)
    codes = np.random.default_rng(1).integers(-128, 128, (9, 7, 3), dtype=np.int8)
    derived = DerivedCodes(codes, from_bits=8, to_bits=3, rounding=Rounding.HALF_EVEN)
    chunks = list(derived.chunks())
    assert [each.size for each in chunks[:-1]] == [chunk] * (len(chunks) - 1)
    assert sum(each.nbytes for each in chunks) == derived.size_bytes
    np.testing.assert_array_equal(np.concatenate([each.ravel() for each in chunks]), derived.load().ravel())


def test_floats_are_stored_in_row_major_order() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    stored = StoredFloats(values.T)
    (chunk,) = stored.chunks()
    assert chunk.tobytes() == np.ascontiguousarray(values.T).tobytes()
    assert stored.size_bytes == 48


def test_tensors_begin_at_pages_and_lie_in_the_file(written: Path) -> None:
    model = onnx.load(str(written), load_external_data=False)
    size_bytes = written.with_name("net.onnx.data").stat().st_size
    end = 0
    for tensor in (tensor for tensor in model.graph.initializer if tensor.external_data):
        entry = {each.key: each.value for each in tensor.external_data}
        assert entry["location"] == "net.onnx.data"
        assert int(entry["offset"]) % 4096 == 0
        assert int(entry["offset"]) >= end
        end = int(entry["offset"]) + int(entry["length"])
    assert 0 < end <= size_bytes


# --- the checker


def test_the_checker_takes_a_model_before_its_data_is_written(master: Master) -> None:
    check_model(canonical(master, 4).model, where="here")


def test_the_checker_still_sees_a_wrong_large_model(master: Master) -> None:
    model = canonical(master, 4).model
    mark = next(tensor for tensor in model.graph.initializer if tensor.name == "a.weight")
    mark.dims[0] = 47
    with pytest.raises(GraphError, match="here: not valid ONNX at opset 21"):
        check_model(model, where="here")


def test_the_checker_takes_the_file(written: Path) -> None:
    check_file(written)


def test_the_checker_refuses_a_file_without_its_data(written: Path) -> None:
    written.with_name("net.onnx.data").unlink()
    with pytest.raises(GraphError, match=r"net.onnx: not valid ONNX: (.|\n)*net.onnx.data"):
        check_file(written)


def test_a_shared_weight_is_swapped_everywhere() -> None:
    text = """
    net (float[n, 40] x, float[40, 40] "a.weight") => (float[n, 40] y) {
        first = MatMul (x, "a.weight")
        y = MatMul (first, "a.weight")
    }"""
    large = canonical(build(text, (layer("a", "MatMul", activation="none"),)), 4)
    graph = import_model(large.model, large.large)
    (dequantize,) = (node for node in graph.nodes if node.op == "DequantizeLinear")
    assert isinstance(dequantize.inputs[0], LargeConstant)
    assert [node.op for node in dequantize.outputs[0].outputs] == ["MatMul", "MatMul"]


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    return (tensor for tensor in graph.tensors().values() if isinstance(tensor, gs.Constant))


def test_nothing_large_is_left_in_an_imported_graph(master: Master) -> None:
    large = canonical(master, 2)
    for constant in _constants(import_model(large.model, large.large)):
        assert isinstance(constant, LargeConstant) == (constant.name in LARGE)


@pytest.mark.parametrize("place", ["branch", "both"])
def test_what_a_branch_reads_is_held_in_the_graph(place: str) -> None:
    text = f"""
    net (float[n, 48] x, bool c, float[48, 48] "a.weight", float[48, 48] "b.weight") => (float[n, 48] y) {{
        a = {'MatMul (x, "a.weight")' if place == "both" else "Relu (x)"}
        b = MatMul (a, "b.weight")
        y = If (c) <
            then_branch = t () => (float[n, 48] p) {{ p = MatMul (b, "a.weight") }},
            else_branch = e () => (float[n, 48] q) {{ q = Relu (b) }}
        >
    }}"""
    inputs = (ValueSpec(name="x", dtype="float", shape=("n", 48)), ValueSpec(name="c", dtype="bool", shape=()))
    master = build(text, [layer(name, "MatMul", activation="pinned") for name in "ab"], inputs=inputs)
    large, small = canonical(master, 4), canonical_graph(master, WidthAssignment(default=4))
    assert sorted(large.large) == ["b.weight"]
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 48)).astype(np.float32), "c": np.array(True)}
    (expected,) = onnx.reference.ReferenceEvaluator(small.model).run(None, feeds)
    with runnable(large.model, large.large) as source:
        (found,) = onnx.reference.ReferenceEvaluator(onnx.load(str(source))).run(None, feeds)
    np.testing.assert_array_equal(found, expected)
