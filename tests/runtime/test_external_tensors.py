"""Tensors that lie beside a graph, found without onnx in graphs that onnx wrote."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.runtime.external_tensors import ExternalTensor, external_tensors

TEXT = '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { y = Relu (x) }'
KINDS = ("float32", "uint8", "int8", "int32", "int64", "float16")


def initializer(name: str, kind: int, dims: tuple[int, ...], **place: object) -> onnx.TensorProto:
    """A tensor in another file where `place` says so."""
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=dims)
    if place:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def model(*tensors: onnx.TensorProto) -> bytes:
    parsed = onnx.parser.parse_model(TEXT)
    parsed.graph.initializer.extend(tensors)
    return bytes(parsed.SerializeToString())


@given(
    name=st.text(max_size=200),
    shape=st.lists(st.integers(0, 2**40), max_size=5),
    offset=st.integers(0, 2**62),
    kind=st.sampled_from(KINDS),
)
def test_what_onnx_wrote_is_found(name: str, shape: list[int], offset: int, kind: str) -> None:
    dims, number = tuple(shape), onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    beside = initializer(name, number, dims, location="net.data", offset=offset, length=7)
    inside = onnx.numpy_helper.from_array(np.arange(300, dtype=np.float32), "inside")
    expected = ExternalTensor(name=name, dtype=kind, shape=dims, location="net.data", offset=offset)
    assert external_tensors(model(inside, beside, inside), where="net.onnx") == (expected,)


def test_values_are_those_of_onnx() -> None:
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    data = bytearray(b"x" * 12 + array.tobytes() + b"y")
    (tensor,) = external_tensors(model(initializer("w", 1, (3, 5), location="d", offset=12)), where="net.onnx")
    np.testing.assert_array_equal(tensor.values(data), array)
    with pytest.raises(ValueError, match="buffer is smaller"):
        tensor.values(data[:-2])


def test_dimensions_may_be_packed() -> None:
    """As writers do that follow the third version of the protobuf language, unlike onnx."""
    tensor = b"\x0a\x03\x03\x80\x02" + initializer("w", 3, (), location="d", offset=4).SerializeToString()
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    (found,) = external_tensors(b"\x3a" + bytes([len(graph)]) + graph, where="net.onnx")
    assert (found.name, found.shape, found.offset) == ("w", (3, 256), 4)


def test_types_that_numpy_lacks_and_tensors_in_the_graph_are_left_out() -> None:
    four_bits = initializer("w", onnx.TensorProto.INT4, (4,), location="d", offset=0)
    assert external_tensors(model(four_bits, initializer("v", 1, (0,))), where="net.onnx") == ()


@pytest.mark.parametrize("cut", [1, 5, 20, 40])
def test_a_graph_that_was_cut_short_is_refused(cut: int) -> None:
    data = model(initializer("w", 1, (3, 5), location="d", offset=12))
    with pytest.raises(PackageError, match=r"net.onnx: its protobuf does not parse\n  allowed: an ONNX graph"):
        external_tensors(data[:-cut], where="net.onnx")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(PackageError):
        external_tensors(data, where="net.onnx")
