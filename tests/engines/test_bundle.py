from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from bitswitch_deploy.engines.bundle import SCRIPT, holds_half, write_bundle
from bitswitch_deploy.engines.shape_range import ShapeRange
from bitswitch_deploy.errors import GraphError, OutputError, UsageError
from bitswitch_deploy.target import Target

BATCHES = ShapeRange(input="x", minimum=(1, 3, 8, 8), optimum=(2, 3, 8, 8), maximum=(4, 3, 8, 8))


@pytest.fixture
def folder(tmp_path: Path, qdq_conv: Callable[..., bytes]) -> Path:
    """Two graphs with an open batch."""
    for label in ("w8", "w4"):
        (tmp_path / f"{label}.onnx").write_bytes(qdq_conv(batch="N"))
    return tmp_path


def test_the_same_package_gives_the_same_script(folder: Path, target_with: Callable[..., Target]) -> None:
    graphs = (("w8", "graph", "w8.onnx"), ("w4", "graph", "w4.onnx"))
    assert write_bundle(folder, graphs, target_with(), (BATCHES,)) == (SCRIPT,)
    first = (folder / SCRIPT).read_bytes()
    write_bundle(folder, graphs, target_with(), (BATCHES,))
    assert (folder / SCRIPT).read_bytes() == first
    assert str(folder).encode() not in first
    assert hashlib.sha256((folder / "w8.onnx").read_bytes()).hexdigest().encode() in first


@pytest.mark.parametrize("engine", [{"name": "tensorrt", "build": "host", "builder_flags_legacy": ["INT8"]}])
def test_other_targets_have_no_bundle(
    tmp_path: Path, engine: dict[str, object], target_with: Callable[..., Target]
) -> None:
    with pytest.raises(UsageError, match="target jetson-test: tensorrt engines, built: host"):
        write_bundle(tmp_path, (), target_with(engine=engine), ())


def test_other_engines_have_no_bundle(tmp_path: Path, target_with: Callable[..., Target]) -> None:
    target = target_with()
    target = replace(target, engine=replace(target.engine, name="onnxruntime"))
    with pytest.raises(UsageError, match="target jetson-test: onnxruntime engines"):
        write_bundle(tmp_path, (), target, ())


@pytest.mark.parametrize("name", ["w8;rm", "../w8", "a/../w8", "-w8", "", "w 8", "$w8"])
def test_names_are_words_of_the_script(folder: Path, target_with: Callable[..., Target], name: str) -> None:
    with pytest.raises(UsageError, match="bundle: name "):
        write_bundle(folder, ((name, "graph", "w8.onnx"),), target_with(), (BATCHES,))
    with pytest.raises(UsageError, match="bundle: name "):
        write_bundle(folder, (("w8", "graph", name),), target_with(), (BATCHES,))


def test_a_profile_that_does_not_fit_is_refused(folder: Path, target_with: Callable[..., Target]) -> None:
    with pytest.raises(UsageError, match=r"w8\.onnx: input 'x' has open dimensions"):
        write_bundle(folder, (("w8", "graph", "w8.onnx"),), target_with(), ())


def test_unreadable_graphs_are_refused(folder: Path, target_with: Callable[..., Target]) -> None:
    (folder / "bad.onnx").write_bytes(b"not a graph")
    for name in ("bad.onnx", "nothing.onnx"):
        with pytest.raises(GraphError, match=f"{name}: not readable"):
            write_bundle(folder, (("w8", "graph", name),), target_with(), ())


def test_an_input_name_that_trtexec_cannot_take_is_refused(
    folder: Path, target_with: Callable[..., Target], qdq_conv: Callable[..., bytes]
) -> None:
    data = qdq_conv(batch="N").replace(b"\n\x01x", b"\n\x01,")
    (folder / "comma.onnx").write_bytes(data)
    with pytest.raises(GraphError, match=r"comma\.onnx: input name ','"):
        write_bundle(folder, (("w8", "graph", "comma.onnx"),), target_with(), ())


def test_a_folder_that_cannot_be_written_is_said(folder: Path, target_with: Callable[..., Target]) -> None:
    (folder / SCRIPT).mkdir()
    with pytest.raises(OutputError, match="cannot be written: Is a directory"):
        write_bundle(folder, (("w8", "graph", "w8.onnx"),), target_with(), (BATCHES,))


def test_the_hash_of_a_data_file_is_listed(
    tmp_path: Path, target_with: Callable[..., Target], qdq_conv: Callable[..., bytes]
) -> None:
    (tmp_path / "w8.onnx").write_bytes(qdq_conv())
    (tmp_path / "w8.onnx.data").write_bytes(b"weights")
    write_bundle(tmp_path, (("w8", "graph", "w8.onnx"),), target_with(), ())
    assert f" w8.onnx.data {hashlib.sha256(b'weights').hexdigest()}" in (tmp_path / SCRIPT).read_text()


@pytest.mark.parametrize(
    ("node", "expected"),
    [("y = Cast <to = 10> (x)", True), ("y = Cast <to = 1> (x)", False), ("y = Relu (x)", False)],
)
def test_float16_may_be_in_casts_alone(node: str, expected: bool) -> None:
    """As around a product of two activations."""
    text = f'<ir_version: 10, opset_import: ["" : 21]> net (float[1] x) => (float[1] y) {{ {node} }}'
    assert holds_half(onnx.parser.parse_model(text).graph) is expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("<10.8", "<100800"), (">=11.4.1", ">=110401"), (">=8.5,<9", ">=80500,<90000"), ("10.3", ">=100300,<100400")],
)
def test_version_rules_become_numbers(
    tmp_path: Path, target_with: Callable[..., Target], rule: str, expected: str
) -> None:
    target = target_with(device={"dla_cores": 1, "dla_tensorrt": [rule]})
    write_bundle(tmp_path, (), target, ())
    assert f"dla_rules='{expected}'\n" in (tmp_path / SCRIPT).read_text()
