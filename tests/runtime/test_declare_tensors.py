"""Our few lines of the protobuf wire format, read back by onnx."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitswitch_deploy.runtime.declare_tensors import DeclaredTensor, declare_tensors

SIZES = st.integers(min_value=0, max_value=2**40)


@given(
    name=st.text(min_size=1, max_size=200),
    shape=st.lists(SIZES, max_size=5),
    offset=SIZES,
    dtype=st.sampled_from(["int8", "uint8", "float32"]),
)
def test_onnx_reads_what_was_declared(name: str, shape: list[int], offset: int, dtype: str) -> None:
    stored = DeclaredTensor(name=name, dtype=dtype, shape=tuple(shape), offset=offset)  # type: ignore[arg-type]
    (tensor,) = onnx.load_model_from_string(declare_tensors([stored], location="net.weights")).graph.initializer
    expected = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    assert (tensor.name, list(tensor.dims), tensor.data_type) == (name, shape, expected)
    assert tensor.data_location == onnx.TensorProto.EXTERNAL
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    place = {entry.key: entry.value for entry in tensor.external_data}
    assert place == {"location": "net.weights", "offset": str(offset), "length": str(size_bytes)}


def test_the_declarations_merge_with_the_graph_behind_them(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (int8[2] x) => (int8[2] y) { y = Min(x, w) }"""
    model = onnx.parser.parse_model(text)
    stored = DeclaredTensor(name="w", dtype="int8", shape=(2,), offset=1)
    path = tmp_path / "graph.onnx"
    path.write_bytes(declare_tensors([stored], location="w.bin") + model.SerializeToString())
    (tmp_path / "w.bin").write_bytes(bytes([0, 3, 5]))
    merged = onnx.load(str(path))
    onnx.checker.check_model(merged, full_check=True)
    assert [node.op_type for node in merged.graph.node] == ["Min"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(merged.graph.initializer[0]), [3, 5])


@pytest.mark.parametrize("count", [0, 3])
def test_any_number_can_be_declared(count: int) -> None:
    tensors = [DeclaredTensor(name=f"t{index}", dtype="int8", shape=(index,), offset=0) for index in range(count)]
    declared = onnx.load_model_from_string(declare_tensors(tensors, location="w")).graph.initializer
    assert [tensor.name for tensor in declared] == [tensor.name for tensor in tensors]
