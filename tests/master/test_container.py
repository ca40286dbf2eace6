"""Files that are no safetensors file, or a damaged one, are refused before anything in them is used."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bitswitch_deploy.errors import MasterError, OutputError
from bitswitch_deploy.master import container
from bitswitch_deploy.master.container import MAX_HEADER_BYTES, read_container, write_container
from tests.master.files import write_file
from tests.master.tiny import Array

TENSORS: dict[str, Array] = {
    "scalar": np.array(2.5, np.float32),
    "odd": np.arange(-3, 4, dtype=np.int8),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bytes": np.arange(5, dtype=np.uint8),
}
HEADER_ENTRY = {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}


def with_header(header: bytes | dict[str, object], data: bytes = b"\x01\x02\x03\x04") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(MasterError, match=message):
        read_container(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    sha256 = write_container(path, {"b": "2", "a": "1"}, TENSORS)
    stored = read_container(path)
    assert stored.sha256 == sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert stored.metadata == {"a": "1", "b": "2"}
    assert sorted(stored.tensors) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert stored.tensors[name].dtype == tensor.dtype
        assert stored.tensors[name].shape == tensor.shape
        np.testing.assert_array_equal(stored.tensors[name], tensor)


def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path: Path) -> None:
    write_container(tmp_path / "ours", {"key": "value"}, TENSORS)
    for name, tensor in load_file(tmp_path / "ours").items():
        np.testing.assert_array_equal(tensor, TENSORS[name])
    with safe_open(tmp_path / "ours", framework="np") as file:
        assert file.metadata() == {"key": "value"}
    save_file(TENSORS, tmp_path / "theirs", metadata={"key": "value"})
    stored = read_container(tmp_path / "theirs")
    assert stored.metadata == {"key": "value"}
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(stored.tensors[name], tensor)


def test_equal_contents_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    write_container(tmp_path / "one", {"a": "1", "b": "2"}, TENSORS)
    write_container(tmp_path / "two", {"b": "2", "a": "1"}, dict(reversed(TENSORS.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tensors_are_aligned_read_only_views_of_the_file(tmp_path: Path) -> None:
    large = {**TENSORS, "large": np.zeros(2**24, np.int8)}
    write_container(tmp_path / "file", {}, large)
    tracemalloc.start()
    try:
        stored = read_container(tmp_path / "file")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    for tensor in stored.tensors.values():
        assert tensor.flags.aligned
        assert not tensor.flags.writeable


@pytest.mark.parametrize("length", range(8))
def test_tensors_are_aligned_whatever_the_length_of_the_header(length: int, tmp_path: Path) -> None:
    write_container(tmp_path / "file", {"text": "x" * length}, TENSORS)
    for tensor in read_container(tmp_path / "file").tensors.values():
        assert tensor.flags.aligned


def test_arrays_that_are_not_contiguous_are_written_in_row_major_order(tmp_path: Path) -> None:
    matrix = np.arange(6, dtype=np.int8).reshape(2, 3)
    write_container(tmp_path / "file", {}, {"t": matrix.T, "r": matrix[:, ::-1]})
    stored = read_container(tmp_path / "file")
    assert stored.tensors["t"].tolist() == matrix.T.tolist()
    assert stored.tensors["r"].tolist() == matrix[:, ::-1].tolist()


def test_missing_file_directory_empty_file_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(MasterError, match=r"none\.safetensors: no such file\n.*\n  do: check the path"):
        read_container(tmp_path / "none.safetensors")
    with pytest.raises(MasterError, match=r": a directory\n.*\n  do: name the \.safetensors file in it"):
        read_container(tmp_path)
    with pytest.raises(MasterError, match=r"cannot be read"):
        read_container(tmp_path / "a\0b")
    with pytest.raises(MasterError, match=r"cannot be read"):
        read_container(tmp_path / ("x" * 5000))
    refused(tmp_path / "empty", b"", "an empty file")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MasterError, match="not a regular file"):
        read_container(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04\x14\x00\x08\x08" + b"\0" * 50, "a zip archive"),
        *((pickle.dumps({"weight": [1, 2, 3]}, protocol), "a pickle") for protocol in (2, 3, 4, 5)),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", r"a \.npy array"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "an HDF5 file"),
        (b"GGUF\x03\0\0\0" + b"\0" * 20, "a GGUF file"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0", "a gzip archive"),
        (b"\x08\x0a\x12\x07pytorch: more", "perhaps an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b'{"format": "bitswitch-master"}', "JSON text"),
        (b"<!DOCTYPE html><html></html>", "HTML or XML text"),
    ],
)
def test_other_files_are_recognised(content: bytes, what: str, tmp_path: Path) -> None:
    refused(tmp_path / "file", content, rf"not a master but {what}.*\n.*\n  do: .* pickles are never opened")


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    text = json.dumps({"t": HEADER_ENTRY}).encode()
    path = tmp_path / "file"
    path.write_bytes(with_header(text.ljust(0x280), b"\x01\x02\x03\x04"))
    content = path.read_bytes()
    assert content.startswith(b"\x80\x02")
    assert read_container(path).tensors["t"].tolist() == [1, 2, 3, 4]
    refused(path, content[:300], "cut short: header of 640 bytes in a file of 300")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = write_file(tmp_path / "file").read_bytes()
    for size in range(1, len(content), 13):
        refused(tmp_path / "short", content[:size], "cut short|not a valid safetensors file")
    refused(tmp_path / "short", content[:-1], "not a valid safetensors file")
    refused(tmp_path / "long", content + b"\0", "not a valid safetensors file")


def test_a_header_that_claims_too_much_is_refused_without_allocating(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        for size in (10**6, MAX_HEADER_BYTES + 1, 2**40, 2**63, 2**64 - 1):
            refused(tmp_path / "file", size.to_bytes(8, "little") + b'{"a":1}', "cut short: header of")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**18


def test_a_huge_header_is_refused_although_it_is_there(tmp_path: Path) -> None:
    text = json.dumps({"t": HEADER_ENTRY}).encode()
    refused(tmp_path / "file", with_header(text.ljust(MAX_HEADER_BYTES + 1)), f"more than {MAX_HEADER_BYTES}")
    (tmp_path / "file").write_bytes(with_header(text.ljust(MAX_HEADER_BYTES)))
    assert read_container(tmp_path / "file").tensors["t"].size == 4


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{" + b"\xff" * 9, "the header is not UTF-8 text"),
        (b"{}garbage", "Extra data"),
        (b"[1, 2, 3]", "its header is not JSON"),
        (b"not JSON at all", "its header is not JSON"),
        (
            b'{"t":' + json.dumps(HEADER_ENTRY).encode() + b',"t":' + json.dumps(HEADER_ENTRY).encode() + b"}",
            "'t' is given twice",
        ),
        (b'{"t": {"dtype": "I8", "shape": [4], "shape": [4], "data_offsets": [0, 4]}}', "'shape' is given twice"),
        ({"t": {**HEADER_ENTRY, "dtype": "F64"}}, "not a valid safetensors file"),
        ({"t": {**HEADER_ENTRY, "dtype": "X9"}}, "not a valid safetensors file"),
        ({"t": {**HEADER_ENTRY, "dtype": "BOOL"}}, r"tensor 't': dtype BOOL\n  allowed: F32, I8, U8"),
        ({"t": {**HEADER_ENTRY, "dtype": "I16", "shape": [2]}}, "tensor 't': dtype I16"),
        ({"t": {**HEADER_ENTRY, "dtype": "BF16", "shape": [2]}}, "tensor 't': dtype BF16"),
        ({"t": {**HEADER_ENTRY, "shape": [-4]}}, "not a valid safetensors file"),
        ({"t": {**HEADER_ENTRY, "shape": [2**62, 8]}}, "not a valid safetensors file"),
        ({"t": {**HEADER_ENTRY, "shape": [5]}}, "not a valid safetensors file"),
        ({"t": {**HEADER_ENTRY, "shape": "4"}}, "not a valid safetensors file"),
        ({"t": {**HEADER_ENTRY, "data_offsets": [0, 2**60]}}, "not a valid safetensors file"),
        ({"t": {**HEADER_ENTRY, "data_offsets": [4, 0]}}, "not a valid safetensors file"),
        ({"t": {**HEADER_ENTRY, "data_offsets": [1, 5]}}, "not a valid safetensors file"),
        ({"t": HEADER_ENTRY, "u": HEADER_ENTRY}, "not a valid safetensors file"),
        ({"t": HEADER_ENTRY, "__metadata__": {"a": 1}}, "not a valid safetensors file"),
        (
            {"t": HEADER_ENTRY, "e": {"dtype": "F32", "shape": [0, 3], "data_offsets": [4, 4]}},
            "tensor 'e': no elements",
        ),
        ({}, "not a valid safetensors file"),
    ],
    ids=range(22),
)
def test_bad_headers_are_refused(header: bytes | dict[str, object], message: str, tmp_path: Path) -> None:
    refused(tmp_path / "file", with_header(header), message)


@pytest.mark.parametrize("name", ["t", "other"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small").write_bytes(with_header({"t": HEADER_ENTRY}))
    write_container(tmp_path / "large", {}, {name: np.zeros(10_000, np.int8)})
    monkeypatch.setattr(container, "safe_open", lambda _path, framework: safe_open(tmp_path / "large", framework))
    with pytest.raises(MasterError, match="changed while it was read"):
        read_container(tmp_path / "small")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(with_header({"t": HEADER_ENTRY}))

    def denied(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # file modes do not stop the superuser, who may run the tests
    with pytest.raises(MasterError, match="Permission denied"):
        read_container(path)


@pytest.mark.parametrize("target", ["no/such/folder/file", ".", "folder", "a\0b"])
def test_a_place_that_takes_no_file_is_an_output_error(target: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_container(tmp_path / target, {}, TENSORS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
    assert not list((tmp_path / "folder").iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        write_container(path, {}, TENSORS)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_usual_mode_and_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_container(path, {}, TENSORS)
    (tmp_path / "usual").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    assert sorted(read_container(path).tensors) == sorted(TENSORS)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "usual"]
