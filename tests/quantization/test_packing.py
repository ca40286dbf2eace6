"""Packed bytes against those that onnx itself writes and reads."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from hypothesis import given, settings

from bitswitch_deploy.quantization import pack_blocks, pack_int2, pack_int4

# bits, signed, ONNX element type
TYPES = [
    (4, True, onnx.TensorProto.INT4),
    (4, False, onnx.TensorProto.UINT4),
    (2, True, onnx.TensorProto.INT2),
    (2, False, onnx.TensorProto.UINT2),
]
PACK: dict[int, Callable[..., np.ndarray]] = {4: pack_int4, 2: pack_int2}


def read_by_onnx(packed: np.ndarray, shape: tuple[int, ...], element_type: int) -> np.ndarray:
    tensor = onnx.helper.make_tensor("t", element_type, shape, packed.tobytes(), raw=True)
    return onnx.numpy_helper.to_array(tensor)


def ends(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


@given(kind=st.sampled_from(TYPES), data=st.data())
@settings(max_examples=200, deadline=None)
def test_onnx_reads_our_bytes_and_writes_the_same(kind: tuple[int, bool, int], data: st.DataObject) -> None:
    bits, signed, element_type = kind
    low, high = ends(bits, signed)
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    dtype = np.int8 if signed else np.uint8
    codes = data.draw(hnp.arrays(dtype, shape, elements=st.integers(low, high)))
    packed = PACK[bits](codes)
    np.testing.assert_array_equal(read_by_onnx(packed, shape, element_type).astype(dtype), codes)
    theirs = onnx.numpy_helper.from_array(codes.astype(onnx.helper.tensor_dtype_to_np_dtype(element_type)))
    assert theirs.data_type == element_type
    assert packed.tobytes() == theirs.raw_data


def test_first_code_in_the_lowest_bits_and_zeros_at_the_end() -> None:
    assert pack_int4(np.array([1, -8, 7], np.int8)).tolist() == [0x81, 0x07]
    assert pack_int2(np.array([1, -2, -1, 0, 1], np.int8)).tolist() == [0b00_11_10_01, 0b00_00_00_01]


def test_arrays_that_are_not_contiguous_pack_in_row_major_order() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    assert pack_int4(codes.T).tolist() == pack_int4(codes.T.copy()).tolist()
    assert pack_int4(codes[:, ::-1]).tolist() == pack_int4(codes[:, ::-1].copy()).tolist()


@pytest.mark.parametrize(("bits", "signed", "element_type"), TYPES)
def test_every_code_fits_and_the_next_does_not(bits: int, signed: bool, element_type: int) -> None:
    low, high = ends(bits, signed)
    dtype = np.int8 if signed else np.uint8
    codes = np.arange(low, high + 1).astype(dtype)
    assert read_by_onnx(PACK[bits](codes), codes.shape, element_type).astype(dtype).tolist() == codes.tolist()
    beyond = [high + 1] if not signed else [low - 1, high + 1]
    for code in beyond:
        with pytest.raises(ValueError, match=rf"codes of {bits} bits are {low}\.\.{high}, got"):
            PACK[bits](np.array([0, code], dtype))


@pytest.mark.parametrize("bits", [4, 2])
def test_other_dtypes_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="codes must be int8 or uint8, got int16"):
        PACK[bits](np.zeros(2, np.int16))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_blocks_are_of_signed_codes(dtype: type) -> None:
    with pytest.raises(ValueError, match=f"codes must be int8, got {np.dtype(dtype)}"):
        pack_blocks(np.zeros((1, 8), dtype), bits=4, block_size=8)


@given(bits=st.sampled_from([2, 4, 8]), block_size=st.sampled_from([8, 16, 32]), data=st.data())
@settings(max_examples=100, deadline=None)
def test_blocks_are_the_same_in_every_order_of_memory(bits: int, block_size: int, data: st.DataObject) -> None:
    low, high = ends(bits, signed=True)
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))
    codes = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(low, high)))
    rows, blocks = shape[0], -(-shape[1] // block_size)
    filled = np.zeros((rows, blocks * block_size), int)
    filled[:, : shape[1]] = codes
    parts = (filled + 2 ** (bits - 1)).reshape(rows, blocks, -1, 8 // bits)
    expected = (parts << (bits * np.arange(8 // bits))).sum(axis=-1)
    for same in (codes, np.asfortranarray(codes), np.repeat(codes, 2, axis=1)[:, ::2], codes[::-1][::-1]):
        np.testing.assert_array_equal(pack_blocks(same, bits=bits, block_size=block_size), expected)
