from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.validation import arrays
from bitswitch_deploy.validation.arrays import ArraySource, content_sha256, read_npz
from bitswitch_deploy.validation.samples import DataRequest

Make = Callable[..., DataRequest]
PIXELS = np.array([[[0, 255]], [[10, 20]]], dtype=np.uint8)
READY = np.array([[[[0.5, 1.0]]], [[[2.0, 3.0]]]], dtype=np.float32)
LABELS = np.array([2, 0], dtype=np.int64)


def _saved(folder: Path, **stored: Any) -> Path:
    np.savez(folder / "data.npz", **stored)
    return folder / "data.npz"


def _zipped(folder: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(folder / "data.npz", "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return folder / "data.npz"


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_pixels_are_preprocessed_as_the_master_says(request_for: Make, tmp_path: Path) -> None:
    samples = read_npz(request_for(_saved(tmp_path, x=PIXELS, y=LABELS.astype(np.uint8))))
    # (raw / 10 - 1) / 2
    assert samples.source.read(0, 2).tolist() == [[[[-0.5, 12.25]]], [[[0.0, 0.5]]]]
    assert samples.source.read(1, 2).tolist() == [[[[0.0, 0.5]]]]
    assert samples.y is not None
    assert samples.y.dtype == np.int64
    assert (samples.n, samples.y.tolist(), samples.class_names) == (2, [2, 0], ())


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<i8", "<u4", ">i4"])
def test_integer_type_and_channel_axis_do_not_matter(request_for: Make, tmp_path: Path, dtype: str) -> None:
    plain = read_npz(request_for(_saved(tmp_path, x=PIXELS, y=LABELS)))
    other = read_npz(request_for(_saved(tmp_path, x=PIXELS[..., None].astype(dtype), y=LABELS.astype(dtype))))
    assert other.source.read(0, 2).tolist() == plain.source.read(0, 2).tolist()
    assert other.sha256 == plain.sha256


@pytest.mark.parametrize(("wanted", "stored"), [("int64", "u1"), ("int64", "<i8"), ("int32", ">i8")])
def test_whole_numbers_are_used_as_they_are_where_the_network_reads_them(
    request_for: Make, tmp_path: Path, wanted: str, stored: str
) -> None:
    words = ValueSpec(name="words", dtype=wanted, shape=("n", 3))
    x = np.array([[1, 2, 3], [7, 0, 5]], dtype=stored)
    samples = read_npz(request_for(_saved(tmp_path, x=x, y=LABELS), input_spec=words, preprocessing=None))
    assert samples.source.read(0, 2).dtype == wanted
    assert samples.source.read(0, 2).tolist() == [[1, 2, 3], [7, 0, 5]]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.ones((2, 3), np.float32),
            "'x' is of type float32\n  allowed: whole numbers of type int32, as",
        ),
        (
            np.full((2, 3), 2**31),
            "'x' holds numbers from 2147483648 to 2147483648\n",
        ),
        (np.full((2, 3), -(2**31) - 1), "'x' holds numbers from -2147483649 to -2147483649\n"),
        (np.ones((2, 4), int), r"one sample has shape \[4\]\n  allowed: \[3\]"),
    ],
)
def test_what_is_no_whole_number_of_the_type_is_refused(
    request_for: Make, tmp_path: Path, x: np.ndarray[Any, Any], message: str
) -> None:
    words = ValueSpec(name="words", dtype="int32", shape=("n", 3))
    with pytest.raises(DataError, match=message):
        read_npz(request_for(_saved(tmp_path, x=x), input_spec=words, preprocessing=None))


def test_colour_pixels_become_channels(request_for: Make, tmp_path: Path) -> None:
    how = Preprocessing(colour="RGB", size=(1, 1), divide_by=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    spec = ValueSpec(name="x", dtype="float32", shape=("n", 3, 1, 1))
    path = _saved(tmp_path, x=np.array([[[[1, 2, 3]]]], dtype=np.uint8))
    samples = read_npz(request_for(path, preprocessing=how, input_spec=spec))
    assert samples.source.read(0, 1).tolist() == [[[[1.0]], [[2.0]], [[3.0]]]]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f8"])
def test_floating_samples_are_used_as_they_are(request_for: Make, tmp_path: Path, dtype: str) -> None:
    samples = read_npz(request_for(_saved(tmp_path, x=READY.astype(dtype)), preprocessing=None))
    assert samples.source.read(0, 2).dtype == np.float32
    assert samples.source.read(0, 2).tolist() == READY.tolist()
    assert samples.y is None


def test_fortran_order_is_read_like_any_other(request_for: Make, tmp_path: Path) -> None:
    samples = read_npz(request_for(_saved(tmp_path, x=np.asfortranarray(READY), y=LABELS)))
    assert samples.source.read(0, 2).tolist() == READY.tolist()
    assert samples.sha256 == content_sha256(READY, LABELS)


def test_a_limit_takes_samples_and_labels_together(request_for: Make, grey_npz: Path) -> None:
    samples = read_npz(request_for(grey_npz, limit=2))
    assert samples.y is not None
    assert (samples.n, samples.y.tolist()) == (2, [0, 2])
    # Sample 2 holds the pixels 20, 21.
    assert samples.source.read(1, 2).tolist() == [[[[0.5, np.float32((np.float32(2.1) - 1) / 2)]]]]


def test_the_digest_is_of_the_content_in_order(request_for: Make, tmp_path: Path) -> None:
    expected = hashlib.sha256(
        b"x uint8 [2, 1, 2, 1]\n" + bytes([0, 255, 10, 20]) + b"y int64 [2]\n" + bytes([2, *[0] * 7, *[0] * 8])
    )
    samples = read_npz(request_for(_saved(tmp_path, x=PIXELS, y=LABELS)))
    assert samples.sha256 == expected.hexdigest()
    assert samples.file_sha256 == hashlib.sha256((tmp_path / "data.npz").read_bytes()).hexdigest()
    swapped = read_npz(request_for(_saved(tmp_path, x=PIXELS[::-1], y=LABELS[::-1])))
    assert swapped.sha256 != samples.sha256


def test_a_part_has_a_digest_of_its_own_and_no_file(request_for: Make, grey_npz: Path) -> None:
    whole, part = read_npz(request_for(grey_npz)), read_npz(request_for(grey_npz, limit=2))
    assert whole.file_sha256 is not None
    assert part.file_sha256 is None
    assert part.sha256 != whole.sha256


def test_dense_labels_keep_their_shape(request_for: Make, tmp_path: Path) -> None:
    dense = np.array([[[0, 1]], [[2, 2]]])
    samples = read_npz(request_for(_saved(tmp_path, x=PIXELS, y=dense)))
    assert samples.y is not None
    assert samples.y.tolist() == dense.tolist()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"y": LABELS}, r"no array 'x' \(arrays found: y\)"),
        ({}, r"no array 'x' \(arrays found: none\)"),
        ({"x": np.float32(1)}, r"'x' has shape \[\]"),
        ({"x": PIXELS[:0]}, r"'x' has shape \[0, 1, 2\]\n  allowed: \[n, ...\] with n at least 1"),
        ({"x": PIXELS > 0}, "array 'x' is of type bool"),
        ({"x": PIXELS.astype(str)}, "array 'x' is of type <U3"),
        ({"x": READY.astype(np.complex64)}, "array 'x' is of type complex64"),
        ({"x": np.array([None, {}])}, "array 'x' is of type object\n  allowed: integers or floating point"),
        (
            {"x": PIXELS[:, :, :1]},
            r"'x' has shape \[2, 1, 1\], raw pixels of type uint8\n  allowed: \[n, 1, 2, 1\] \(L\)",
        ),
        ({"x": np.repeat(PIXELS[..., None], 3, axis=3)}, r"'x' has shape \[2, 1, 2, 3\]"),
        ({"x": PIXELS[0]}, r"'x' has shape \[1, 2\]"),
        ({"x": PIXELS.astype(int) + 1}, "'x' holds pixels from 1 to 256\n  allowed: 0 to 255"),
        ({"x": PIXELS.astype(int) - 1}, "'x' holds pixels from -1 to 254"),
        ({"x": READY[..., :1]}, r"one sample has shape \[1, 1, 1\]\n  allowed: \[1, 1, 2\], as input 'x'"),
        ({"x": np.array([READY[0], READY[1] * np.nan])}, "'x' is not finite in 1 of 2 samples, first in sample 1"),
        ({"x": READY.astype(np.float64) * 1e39}, "'x' is not finite in 2 of 2 samples, first in sample 0"),
        ({"x": PIXELS, "y": LABELS.astype(np.float32)}, "'y' is of type float32\n  allowed: integers"),
        ({"x": PIXELS, "y": LABELS[:1]}, r"'y' has shape \[1\] for 2 samples\n  allowed: \[2\]"),
        ({"x": PIXELS, "y": np.int64(1)}, r"'y' has shape \[\] for 2 samples"),
        ({"x": PIXELS, "y": LABELS[:, None]}, r"'y' has shape \[2, 1\] for 2 samples.*\n.*\n.*reshape\(-1\)"),
        ({"x": PIXELS, "y": np.zeros((2, 0), dtype=int)}, r"'y' has shape \[2, 0\]"),
        (
            {"x": PIXELS, "y": np.eye(3, dtype=int)[LABELS]},
            r"'y' has shape \[2, 3\]: one-hot.*\n.*\n.*argmax\(axis=1\)",
        ),
        ({"x": PIXELS, "y": LABELS + 1}, "'y' holds classes from 1 to 3\n  allowed: 0 to 2"),
        ({"x": PIXELS, "y": LABELS - 1}, "'y' holds classes from -1 to 1\n  allowed: 0 to 2"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    request_for: Make, tmp_path: Path, stored: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_npz(request_for(_saved(tmp_path, **stored)))


def test_labels_without_a_number_of_classes_stay_inside_int64(request_for: Make, tmp_path: Path) -> None:
    path = _saved(tmp_path, x=PIXELS, y=np.array([0, 2**63], dtype=np.uint64))
    with pytest.raises(DataError, match="'y' holds classes from 0 to 9223372036854775808"):
        read_npz(request_for(path, classes=None))
    accepted = read_npz(request_for(_saved(tmp_path, x=PIXELS, y=LABELS + 500), classes=None))
    assert accepted.y is not None
    assert accepted.y.tolist() == [502, 500]


def test_pixels_without_a_preprocessing_are_refused(request_for: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the master does not say how to preprocess"):
        read_npz(request_for(_saved(tmp_path, x=PIXELS), preprocessing=None))


def test_a_preprocessing_that_does_not_lead_to_the_input_is_refused(request_for: Make, tmp_path: Path) -> None:
    spec = ValueSpec(name="x", dtype="float32", shape=("n", 3, 1, 2))
    with pytest.raises(DataError, match=r"one sample has shape \[1, 1, 2\]\n  allowed: \[3, 1, 2\]"):
        read_npz(request_for(_saved(tmp_path, x=PIXELS), input_spec=spec))


def test_labels_of_several_classes_each_are_none_of_one(request_for: Make, tmp_path: Path) -> None:
    """They are for metrics of one's own."""
    several = np.array([[1, 0, 1], [0, 1, 0]])
    samples = read_npz(request_for(_saved(tmp_path, x=PIXELS, y=several)))
    assert samples.y is not None
    assert samples.y.tolist() == several.tolist()


@pytest.mark.parametrize(
    ("shape", "damaged"),
    [
        (b"(2, 1, 2), }", b"(2, 1, 2(, }"),
        (b"(2, 1, 2), }", b"(2, 1, 2), ,"),
        (b"(2, 1, 2), }", b"(2, 1, 2,, }"),
        (b"(2, 1, 2), }   ", b"(True, 1, 2), }"),
        (b"'|u1'", b"[ 1 ]"),
    ],
)
def test_a_damaged_header_is_refused(request_for: Make, tmp_path: Path, shape: bytes, damaged: bytes) -> None:
    content = _npy(PIXELS)
    assert shape in content
    assert len(shape) == len(damaged)
    with pytest.raises(DataError, match=r"not readable as NumPy arrays|is of type|claims shape"):
        read_npz(request_for(_zipped(tmp_path, {"x.npy": content.replace(shape, damaged)})))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip"])
def test_a_file_that_is_no_archive_is_refused(request_for: Make, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"data\.npz: not readable as NumPy arrays"):
        read_npz(request_for(tmp_path / "data.npz"))


def test_a_pickle_is_never_loaded(request_for: Make, tmp_path: Path) -> None:
    path = _zipped(tmp_path, {"x.npy": b"\x80\x04cos\nsystem\n"})
    with pytest.raises(DataError, match=r"not readable as NumPy arrays .*magic string"):
        read_npz(request_for(path))


def test_a_second_member_called_x_is_not_read_in_its_place(request_for: Make, tmp_path: Path) -> None:
    path = _zipped(tmp_path, {"x": _npy(READY * 100), "x.npy": _npy(READY)})
    assert read_npz(request_for(path)).source.read(0, 2).tolist() == READY.tolist()


def test_a_header_that_claims_more_than_is_there_allocates_nothing(request_for: Make, tmp_path: Path) -> None:
    content = _npy(PIXELS).replace(b"(2, 1, 2), }" + b" " * 12, b"(2000000000000, 1, 2), }")
    path = _zipped(tmp_path, {"x.npy": content})
    with pytest.raises(DataError, match=r"array 'x' claims shape \[2000000000000, 1, 2\] but holds 4 bytes"):
        read_npz(request_for(path))


def test_a_member_above_the_size_limit_is_refused(
    request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _zipped(tmp_path, {"x.npy": _npy(READY)})
    size = len(_npy(READY))
    monkeypatch.setattr(arrays, "MAX_BYTES", size)
    assert read_npz(request_for(path)).n == 2
    monkeypatch.setattr(arrays, "MAX_BYTES", size - 1)
    with pytest.raises(
        DataError, match=f"array 'x' unpacks to {size} bytes, 1 times its size.*\n  allowed: {size - 1}"
    ):
        read_npz(request_for(path))


def test_a_zip_bomb_is_refused_and_a_small_blank_set_is_not(
    request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _zipped(tmp_path, {"x.npy": _npy(np.zeros((50_000, 1, 2), np.uint8))}, zipfile.ZIP_DEFLATED)
    assert read_npz(request_for(path)).n == 50_000
    monkeypatch.setattr(arrays, "BOMB_BYTES", 100_000)
    with pytest.raises(DataError, match=r"array 'x' unpacks to 100128 bytes, \d{3} times its size in the file"):
        read_npz(request_for(path))
    stored = _zipped(tmp_path, {"x.npy": _npy(np.zeros((50_000, 1, 2), np.uint8))})
    assert read_npz(request_for(stored)).n == 50_000


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_a_data_error_or_still_readable(data: st.DataObject) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=READY, y=LABELS)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    spec = ValueSpec(name="x", dtype="float32", shape=("n", 1, 1, 2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.npz")
        path.write_bytes(content)
        request = DataRequest(path=path, preprocessing=None, input_spec=spec, classes=3, limit=None)
        # Any other exception is a bug.
        with contextlib.suppress(DataError):
            assert np.isfinite(read_npz(request).source.read(0, 2)).all()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8"])
def test_large_arrays_stay_in_the_file(
    request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, dtype: str
) -> None:
    x = np.asarray(np.random.default_rng(0).normal(size=(7, 1, 1, 2)), dtype=dtype, order=order)  # type: ignore[call-overload]
    path = tmp_path / "data.npz"
    np.savez(path, y=np.arange(7) % 3, x=x)
    read = read_npz(request_for(path, preprocessing=None))
    monkeypatch.setattr(arrays, "MAPPED_BYTES", 0)
    mapped = read_npz(request_for(path, preprocessing=None))
    assert np.array_equal(mapped.source.read(2, 6), x[2:6].astype(np.float32))
    assert (mapped.sha256, mapped.file_sha256) == (read.sha256, read.file_sha256)
    if dtype == "<f4":
        assert isinstance(mapped.source, ArraySource)
        assert isinstance(mapped.source.x, np.memmap)
        assert not mapped.source.x.flags.writeable


def test_a_flipped_bit_of_a_mapped_array_is_seen(
    request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((7, 1, 1, 2), np.float32))
    data = bytearray(path.read_bytes())
    data[data.index(b"\n", data.index(b"}")) + 5] ^= 1  # behind the header
    path.write_bytes(data)
    monkeypatch.setattr(arrays, "MAPPED_BYTES", 0)
    with pytest.raises(DataError, match="Bad CRC-32"):
        read_npz(request_for(path, preprocessing=None))


def test_a_compressed_array_is_read_whatever_its_size(
    request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.ones((7, 1, 1, 2), np.float32))
    monkeypatch.setattr(arrays, "MAPPED_BYTES", 0)
    assert read_npz(request_for(path, preprocessing=None)).source.read(0, 7).sum() == 14


def test_a_value_that_is_not_finite_is_found_in_any_block(
    request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 16)
    x = np.zeros((7, 1, 1, 2), np.float32)
    x[[3, 6], 0, 0, 1] = np.nan
    path = tmp_path / "data.npz"
    np.savez(path, x=x)
    with pytest.raises(DataError, match="not finite in 2 of 7 samples, first in sample 3"):
        read_npz(request_for(path, preprocessing=None))
