"""Files: good ones with and without external data, and everything that a user may hand in by mistake."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.lint.lint import lint
from bitswitch_deploy.graph.lint.reading import read_graph
from tests.graph.lint.graphs import CONV, model, pair, with_zero


def saved(graph: onnx.ModelProto, folder: Path, *, external: bool = False) -> Path:
    path = folder / "net.onnx"
    onnx.save_model(graph, path, save_as_external_data=external, location="net.data", size_threshold=0)
    return path


def raw(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same with values as raw data, the only ones that can be external."""
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    return graph


def test_a_file(tmp_path: Path) -> None:
    result = lint(read_graph(saved(model(with_zero(CONV, "i")), tmp_path)), engines=("tensorrt",))
    assert not result.findings
    assert (result.nodes, result.quantizers, result.dequantizers, result.weighted) == (6, 2, 3, 1)
    assert result.graph == str(tmp_path / "net.onnx")


def test_scales_in_external_data_are_read(tmp_path: Path) -> None:
    graph = raw(model(pair("x", "y", "bad", "i"), constants="float bad = {-0.5}"))
    result = lint(read_graph(saved(graph, tmp_path, external=True)))
    assert (tmp_path / "net.data").exists()
    assert [finding.got for finding in result.errors] == ["-0.5 as a scale"] * 2


def test_weights_in_external_data_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(raw(model(with_zero(CONV, "i"))), tmp_path, external=True)
    loaded = []
    load = onnx.external_data_helper.load_external_data_for_tensor

    def recorded(tensor: onnx.TensorProto, base_dir: str) -> None:
        loaded.append(tensor.name)
        load(tensor, base_dir)

    monkeypatch.setattr(onnx.external_data_helper, "load_external_data_for_tensor", recorded)
    lint(read_graph(path))
    assert "w" not in loaded
    assert len(loaded) == len(set(loaded))


@pytest.mark.parametrize(
    "damage", ["missing", "short", "short, no length", "outside", "elsewhere", "number", "negative"]
)
def test_external_data_that_are_not_there(tmp_path: Path, damage: str) -> None:
    path = saved(raw(model(with_zero(CONV, "i"))), tmp_path, external=True)
    data = tmp_path / "net.data"
    graph = onnx.load(path, load_external_data=False)
    entries = {entry.key: entry for entry in graph.graph.initializer[-1].external_data}
    message = {
        "missing": r"net.onnx: s: external data in 'net.data': No such file",
        "short": r"net.onnx: \w+: bytes \d+ .. \d+ of 'net.data', which has 10",
        "short, no length": r"net.onnx: sw: bytes 0 .. 16 of 'net.data', which has 10",
        "outside": r"net.onnx: w: external data in '\.\./net.data'\n  allowed: a file in the folder of the model",
        "elsewhere": r"net.onnx: w: external data in '/etc/hostname'\n  allowed: a file in the folder",
        "number": r"net.onnx: w: external data that cannot be read: .*many",
        "negative": r"net.onnx: w: external data that cannot be read: .*-1",
    }[damage]
    if damage == "missing":
        data.unlink()
    elif damage.startswith("short"):
        data.write_bytes(data.read_bytes()[:10])
        if damage.endswith("no length"):
            for tensor in graph.graph.initializer:
                del tensor.external_data[1:]
    elif damage in ("outside", "elsewhere"):
        entries["location"].value = "../net.data" if damage == "outside" else "/etc/hostname"
    else:
        entries["offset"].value = "many" if damage == "number" else "-1"
    if damage not in ("missing", "short"):
        path.write_bytes(graph.SerializeToString())
    with pytest.raises(GraphError, match=message):
        read_graph(path)


def test_external_data_with_keys_that_are_no_text(tmp_path: Path) -> None:
    path = saved(raw(model(with_zero(CONV, "i"))), tmp_path, external=True)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"offset", b"\xffffset").replace(b"length", b"lenght"))
    with pytest.raises(GraphError, match="external data that cannot be read"):
        read_graph(path)


def test_external_data_of_a_constant_node(tmp_path: Path) -> None:
    graph = model("k = Constant <value = float {1}> ()" + pair("x", "y", "k", "i"))
    value = graph.graph.node[0].attribute[0].t
    value.CopyFrom(onnx.numpy_helper.from_array(np.ones((), np.float32)))
    onnx.external_data_helper.set_external_data(value, "gone.data")
    value.data_location = onnx.TensorProto.EXTERNAL
    path = tmp_path / "net.onnx"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(GraphError, match=r"external data in 'gone.data': No such file"):
        read_graph(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no ONNX model: it has no graph or no opset"),
        (b"not a model at all", "no ONNX, or cut short: its protobuf does not parse"),
        (b"\x00" * 100, "no ONNX, or cut short"),
        (b'{"irVersion": "10"}', "no ONNX, or cut short"),
        (b"PK\x03\x04 a zip file", "no ONNX"),
    ],
)
def test_files_that_are_no_onnx(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphError, match=message):
        read_graph(path)


def test_a_model_without_opset(tmp_path: Path) -> None:
    graph = model(with_zero(CONV, "i"))
    del graph.opset_import[:]
    path = tmp_path / "net.onnx"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(GraphError, match="no ONNX model: it has no graph or no opset"):
        read_graph(path)


def test_a_file_cut_anywhere_is_refused_or_read_as_far_as_it_goes(tmp_path: Path) -> None:
    content = model(with_zero(CONV, "i")).SerializeToString()
    path = tmp_path / "net.onnx"
    refused = 0
    for length in range(0, len(content), max(1, len(content) // 200)):
        path.write_bytes(content[:length])
        try:
            lint(read_graph(path))
        except GraphError:
            refused += 1
    assert refused >= 199


def test_bytes_changed_at_random_never_end_in_another_error(tmp_path: Path) -> None:
    content = bytearray(model(with_zero(CONV, "i")).SerializeToString())
    rng = np.random.default_rng(5)
    path = tmp_path / "net.onnx"
    for _ in range(400):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with suppress(GraphError):
            lint(read_graph(path))


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"net.onnx: not readable: No such file"):
        read_graph(tmp_path / "net.onnx")
    with pytest.raises(GraphError, match="not readable: Is a directory"):
        read_graph(tmp_path)
