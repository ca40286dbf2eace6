"""Exports with weights in a file of their own: a synthetic transformer in several files, and the real digits."""

from __future__ import annotations

import gc
import hashlib
import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph import large_tensors
from bitswitch_deploy.graph.external_data import refer_to_data
from bitswitch_deploy.graph.large_tensors import LargeTensor
from bitswitch_deploy.master import read_master
from bitswitch_deploy.package.verify import read_manifest, verify_package
from bitswitch_deploy.tensors import WidthAssignment
from tests.pipeline.conftest import Exported, export_to
from tools.bench.export_large import Shape, write_synthetic

SHAPE = Shape(dim=256, blocks=5)
PACKED = "rtx, weight-only"
WIDE = Shape(dim=640, blocks=4)
# what each target makes of the 4-bit codes: bytes of one weight, opset
TARGETS = {"x86-cpu": (1.0, 21), "jetson": (1.0, 17), "jetson-orin-nano@5.1": (4.0, 17), "rtx": (1.0, 21)}
TARGETS[PACKED] = (0.5, 21)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A master of four million weights in four files and more."""
    assert SHAPE.weights == 3_932_160
    index = tmp_path_factory.mktemp("synthetic") / "synthetic.safetensors.index.json"
    write_synthetic(index, SHAPE, shard_size_bytes=1 << 20)
    assert len(list(index.parent.glob("*.safetensors"))) >= 4
    return index


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fewer and larger layers: next to their weights the graph is small."""
    index = tmp_path_factory.mktemp("wide") / "wide.safetensors.index.json"
    write_synthetic(index, WIDE, shard_size_bytes=1 << 22)
    return index


def export_large(package: Path, target: str, **changes: object) -> Exported:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_tensors, "EMBEDDED_LIMIT_BYTES", 0)
        # engines of this host are another test's matter
        patch.setattr("bitswitch_deploy.pipeline.building.engine_step.why_not_here", lambda *_: "left out in this test")
        return export_to(package, target, **changes)


@dataclass(frozen=True)
class Case:
    target: str
    bits: int
    exported: Exported

    @property
    def graph(self) -> Path:
        return self.exported.package / f"synthetic-w{self.bits}.onnx"


@pytest.fixture(scope="module", params=[*((name, 4) for name in TARGETS), ("x86-cpu", 8), ("x86-cpu", 2)], ids=str)
def case(request: pytest.FixtureRequest, synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    target, bits = request.param
    if target == PACKED:
        synthetic = tmp_path_factory.mktemp("packed") / synthetic.name
        write_synthetic(synthetic, replace(SHAPE, weight_only=True), shard_size_bytes=1 << 20)
    package = tmp_path_factory.mktemp("large") / "package"
    widths = (WidthAssignment(default=bits),)
    return Case(target, bits, export_large(package, target.partition(",")[0], master=synthetic, widths=widths))


def double_rounding(codes: NDArray[np.int8], bits: int) -> NDArray[np.float64]:
    """Half-even in float64, where all of it is exact."""
    return np.asarray(np.clip(np.rint(codes / 2.0 ** (8 - bits)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))


def stored_codes(tensor: onnx.TensorProto, data: bytes, scale: NDArray[np.float32]) -> NDArray[np.float64]:
    """The integers of an external tensor, taken from the file by hand."""
    entry = {each.key: each.value for each in tensor.external_data}
    raw = data[int(entry["offset"]) :][: int(entry["length"])]
    if tensor.data_type == onnx.TensorProto.INT8:
        codes = np.frombuffer(raw, np.int8).astype(np.float64)
    elif tensor.data_type == onnx.TensorProto.INT4:
        packed = np.frombuffer(raw, np.uint8)
        nibbles = np.stack([packed & 15, packed >> 4], axis=1).ravel().astype(np.int16)
        codes = (nibbles - 16 * (nibbles > 7)).astype(np.float64)
    else:
        assert tensor.data_type == onnx.TensorProto.FLOAT
        floats = np.frombuffer(raw, np.float32).reshape(list(tensor.dims))
        return np.asarray(floats / scale, np.float64)
    return codes.reshape(list(tensor.dims))


def test_every_external_weight_is_the_double_rounding_of_the_master(case: Case, synthetic: Path) -> None:
    master = read_master(synthetic)
    model = onnx.load(str(case.graph), load_external_data=False)
    data = case.graph.with_name(f"{case.graph.name}.data").read_bytes()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    n_bytes = 0
    for each in master.spec.layers:
        codes = np.asarray(master.tensors[each.weight])
        steps = np.asarray(master.tensors[each.weight_scale]) * np.float32(2 ** (8 - case.bits))
        found = stored_codes(tensors[each.weight], data, steps)
        np.testing.assert_allclose(found, double_rounding(codes, case.bits), rtol=0, atol=1e-5, err_msg=each.name)
        bias = f"{each.name}.bias"
        np.testing.assert_array_equal(stored_codes(tensors[bias], data, np.ones(1, np.float32)), master.tensors[bias])
        n_bytes += int({item.key: item.value for item in tensors[each.weight].external_data}["length"])
    assert n_bytes == SHAPE.weights * TARGETS[case.target][0]


def test_the_graph_file_is_small_and_valid(case: Case) -> None:
    assert case.graph.stat().st_size < 200_000
    onnx.checker.check_model(str(case.graph), full_check=True)
    model = onnx.load(str(case.graph), load_external_data=False)
    assert model.opset_import[0].version == TARGETS[case.target][1]


def test_onnxruntime_runs_the_file(case: Case) -> None:
    x = np.random.default_rng(3).normal(size=(2, 16, SHAPE.dim)).astype(np.float32)
    exact = {"session.qdq_matmulnbits_accuracy_level": "1"}  # or it rounds the inputs of packed products
    outputs = [
        OnnxRuntimeSession(case.graph, optimisation=level, threads=1, session_options=exact).run(x)
        for level in ("off", "all")
    ]
    assert np.isfinite(outputs[0]).all()
    assert outputs[0].std() > 0.5
    np.testing.assert_allclose(outputs[0], outputs[1], atol=0.05 * float(outputs[0].std()), rtol=0)


def test_the_package_lists_both_files_with_their_hashes(case: Case) -> None:
    package = case.exported.package
    assert verify_package(package).is_ok
    entries = {entry.path: entry for entry in read_manifest(package).files}
    data = entries[f"{case.graph.name}.data"]
    assert (data.role, data.label, entries[case.graph.name].role) == ("weights", f"w{case.bits}", "graph")
    for path in (case.graph.name, data.path):
        assert entries[path].sha256 == hashlib.sha256((package / path).read_bytes()).hexdigest()
        assert entries[path].size_bytes == (package / path).stat().st_size
    (row,) = case.exported.report.widths
    assert row.size_bytes == data.size_bytes + entries[case.graph.name].size_bytes


def test_what_was_not_done_is_said(case: Case) -> None:
    report = case.exported.report
    assert report.not_done[0].what == "validation"
    assert report.not_done[0].why.startswith("no data")
    if case.target == "x86-cpu":
        assert report.widths[0].engine == "onnxruntime: layers not counted, the weights are not loaded here"
    skipped = json.loads((case.exported.package / "manifest.json").read_text())["skipped"]
    assert skipped[0]["step"] == "validation"


def test_a_file_that_the_checker_refuses_is_not_delivered(
    synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misplace(model: onnx.ModelProto, large: Mapping[str, LargeTensor], *, location: str) -> None:
        refer_to_data(model, large, location="elsewhere.data")

    monkeypatch.setattr("bitswitch_deploy.pipeline.graph_files.refer_to_data", misplace)
    with pytest.raises(GraphError, match=r"synthetic-w4.onnx: not valid ONNX: (.|\n)*elsewhere.data"):
        export_large(tmp_path / "package", "x86-cpu", master=synthetic, widths=(WidthAssignment(default=4),))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["x86-cpu", "jetson"])
def test_an_export_holds_a_layer_at_a_time(target: str, wide: Path, tmp_path: Path) -> None:
    widths = (WidthAssignment(default=4),)
    export_large(tmp_path / "first", target, master=wide, widths=widths)  # imports and caches
    gc.collect()
    tracemalloc.start()
    try:
        export_large(tmp_path / "second", target, master=wide, widths=widths)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # up to six million bytes of graphs, which hold cycles and wait for their collection, and some copies of one layer
    assert peak < WIDE.weights


@pytest.mark.parametrize("target", ["x86-cpu", "jetson"])
def test_a_large_export_is_validated_like_a_small_one(target: str, tmp_path: Path) -> None:
    widths = (WidthAssignment(default=4),)
    small = export_to(tmp_path / "small", target, widths=widths)
    large = export_large(tmp_path / "large", target, widths=widths)
    assert (tmp_path / "large" / "digits-w4.onnx.data").is_file()
    assert not list((tmp_path / "small").glob("*.data"))
    (expected,), (row,) = small.report.widths, large.report.widths
    assert (row.hops, row.verdicts, row.changes, row.exact) == (
        expected.hops,
        expected.verdicts,
        expected.changes,
        expected.exact,
    )
    loaded = onnx.load(str(tmp_path / "large" / "digits-w4.onnx"))
    for tensor in loaded.graph.initializer:
        tensor.ClearField("data_location")
    assert loaded == onnx.load(str(tmp_path / "small" / "digits-w4.onnx"))
