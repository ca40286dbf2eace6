"""Models in files that gzip has compressed."""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.engines.optimized_operators import optimized_operators
from bitswitch_deploy.errors import GraphError, InputFileError
from bitswitch_deploy.graph.lint.reading import read_model
from bitswitch_deploy.graph.model_io import check_file
from bitswitch_deploy.model_file import compressed, model_bytes, read_model_bytes

MODEL = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) { y = Add (x, w) }'
)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Give a graph whose one weight lies beside it."""
    path = tmp_path / "net" / "net.onnx"
    path.parent.mkdir()
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w"))
    onnx.save_model(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    return path


@pytest.fixture
def packed(plain: Path) -> Path:
    path = plain.with_name("packed.onnx.gz")
    path.write_bytes(compressed(plain.read_bytes()))
    return path


def test_any_gunzip_gives_the_model_back(plain: Path, packed: Path) -> None:
    data = plain.read_bytes()
    assert read_model_bytes(packed) == gzip.decompress(packed.read_bytes()) == read_model_bytes(plain) == data
    subprocess.run(["gunzip", "--keep", packed], check=True)
    assert packed.with_suffix("").read_bytes() == data


def test_the_same_model_gives_the_same_bytes_without_a_time() -> None:
    data = MODEL.SerializeToString() * 9
    assert compressed(data) == compressed(data)
    assert compressed(data)[:10] == bytes.fromhex("1f8b 08 00 00000000 02 ff")


@pytest.mark.parametrize("place", ["elsewhere", "beside it"])
def test_external_data_are_found_beside_a_compressed_graph(
    packed: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(packed.parent if place == "beside it" else "/")
    path = Path(packed.name) if place == "beside it" else packed
    session = OnnxRuntimeSession(path, optimisation="all", threads=1, session_options={})
    np.testing.assert_array_equal(session.run(np.ones(3, np.float32)), [2, 3, 4])
    assert optimized_operators(path, session_options={}) == (("Add", 1),)
    assert read_model(path).graph.node[0].op_type == "Add"


def test_a_folder_that_is_not_utf8(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = packed.parent.rename(packed.parents[1] / os.fsdecode(b"caf\xe9"))
    monkeypatch.chdir(folder)
    session = OnnxRuntimeSession(Path(packed.name), optimisation="all", threads=1, session_options={})
    np.testing.assert_array_equal(session.run(np.ones(3, np.float32)), [2, 3, 4])
    check_file(Path(packed.name))
    with pytest.raises(InputFileError, match="not UTF-8"):
        OnnxRuntimeSession(folder / packed.name, optimisation="all", threads=1, session_options={})
    with pytest.raises(GraphError, match="not UTF-8"):
        check_file(folder / packed.name)


def test_the_checker_sees_external_data_of_a_compressed_graph(packed: Path) -> None:
    before = set(packed.parent.iterdir())
    check_file(packed)
    assert set(packed.parent.iterdir()) == before
    packed.with_name("net.data").unlink()
    with pytest.raises(GraphError, match=r"packed.onnx.gz: not valid ONNX"):
        check_file(packed)
    with pytest.raises(GraphError, match=r"packed.onnx.gz: w: external data in 'net.data': No such file"):
        read_model(packed)
    with pytest.raises(GraphError, match=r"packed.onnx.gz: onnxruntime .* refuses it"):
        OnnxRuntimeSession(packed, optimisation="all", threads=1, session_options={})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (compressed(bytes(1000))[:-1], "cut short"),
        (compressed(bytes(1000)) + b"more", "bytes behind its end"),
        (b"\x08\x07 a graph", "gzip cannot unpack it: .*incorrect header"),
        (compressed(bytes(1000))[:-8] + bytes(8), "gzip cannot unpack it: .*incorrect data check"),
        (compressed(bytes(5001)), "it unpacks to more than 2 GiB"),
    ],
)
def test_damaged_files_are_refused(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitswitch_deploy.model_file._MAX_MODEL_BYTES", 5000)
    path = tmp_path / "net.onnx.gz"
    path.write_bytes(content)
    with pytest.raises(GraphError, match=f"net.onnx.gz: {message}"):
        read_model_bytes(path)
    with pytest.raises(GraphError, match=f"net.onnx.gz: {message}"):
        OnnxRuntimeSession(path, optimisation="all", threads=1, session_options={})
    assert model_bytes(compressed(bytes(5000)), path) == bytes(5000)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for name in ("net.onnx", "net.onnx.gz"):
        with pytest.raises(GraphError, match=f"{name}: not readable: No such file"):
            read_model_bytes(tmp_path / name)
        os.mkdir(tmp_path / name)
        with pytest.raises(GraphError, match=f"{name}: not readable: Is a directory"):
            read_model_bytes(tmp_path / name)
