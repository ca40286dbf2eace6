"""A package whose graphs share one int8 weights file, beside the same package with weights in each graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bitswitch_deploy.catalogue import bundled_master, sample_set, target_names
from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master import read_master, write_master
from bitswitch_deploy.package.verify import read_manifest, verify_package
from bitswitch_deploy.package.weights_index import WeightsIndex
from bitswitch_deploy.pipeline.progress import Silent
from bitswitch_deploy.pipeline.revalidate import revalidate
from bitswitch_deploy.tensors import WidthAssignment
from tests.graph.masters import build, layer, per_channel
from tests.graph.optimised import optimised
from tests.pipeline.conftest import WIDTHS, Exported, export_to

MIXED = WidthAssignment(default=8, overrides=(("blocks.0.conv1", 4), ("blocks.1.conv2", 2)))
ASSIGNMENTS = (*WIDTHS, MIXED)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_to(tmp_path_factory.mktemp("shared") / "p", "x86-cpu", widths=ASSIGNMENTS, shared_weights=True)


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_to(tmp_path_factory.mktemp("separate") / "p", "x86-cpu", widths=ASSIGNMENTS)


def test_every_graph_is_the_same_to_onnxruntime(shared: Exported, separate: Exported) -> None:
    samples = sample_set("digits")
    assert samples is not None
    images = np.load(samples.test)["x"]
    images = images.reshape(len(images), 1, 8, 8).astype(np.float32)
    for ours, own in zip(shared.report.widths, separate.report.widths, strict=True):
        # residual branches are decided before weights are shared
        assert ours.changes == own.changes
        paths = shared.package / ours.file_name, separate.package / own.file_name
        assert optimised(paths[0]) == optimised(paths[1])
        outputs = [
            OnnxRuntimeSession(path, optimisation=level, threads=1, session_options={}).run(images)
            for path in paths
            for level in ("all", "off")
        ]
        assert np.array_equal(outputs[0], outputs[2])
        assert np.array_equal(outputs[1], outputs[3])


def test_the_weights_are_stored_once_and_are_the_masters(shared: Exported) -> None:
    assert verify_package(shared.package).is_ok
    roles = {entry.role: entry.path for entry in read_manifest(shared.package).files}
    assert roles["weights"] == shared.report.shared_weights == "digits.weights"
    index = WeightsIndex.from_json((shared.package / roles["index"]).read_text(), where=roles["index"])
    stored = (shared.package / index.file).read_bytes()
    assert len(stored) == index.end_bytes == shared.report.shared_bytes
    factors = [each for graph in index.graphs for each in graph.factors]
    needed = sum(each.size_bytes for each in index.tensors) + sum(each.size_bytes for each in factors)
    assert needed <= len(stored) < needed + 64 * (len(index.tensors) + len(factors))
    master = read_master(bundled_master())
    for tensor in index.tensors:
        expected = np.asarray(master.tensors[tensor.name])
        found = np.frombuffer(stored[tensor.offset : tensor.offset + tensor.size_bytes], tensor.dtype)
        assert np.array_equal(found.reshape(tensor.shape), expected)
    for row in shared.report.widths:
        model = onnx.load(str(shared.package / row.file_name), load_external_data=False)
        inline = [tensor for tensor in model.graph.initializer if tensor.raw_data]
        assert max(len(tensor.raw_data) for tensor in inline) < 1024


def test_the_index_says_who_reads_what_at_which_width(shared: Exported) -> None:
    index = WeightsIndex.from_json((shared.package / "digits.weights.json").read_text(), where="index")
    mixed = index.graph("digits-mixed.onnx")
    assert mixed is not None
    widths = dict(zip([tensor.name for tensor in index.tensors], mixed.bits, strict=True))
    assert (widths["blocks.0.conv1.weight"], widths["blocks.1.conv2.weight"]) == (4, 2)
    assert widths["blocks.0.conv2.weight"] == widths["linear.weight"] == 8


def test_such_a_package_can_be_validated_again(shared: Exported) -> None:
    again = revalidate(shared.package, master=None, target=None, data=None, max_drop=1.0, progress=Silent())
    measured = {width.label: [hop.top1_percent for hop in width.hops] for width in again.result.widths}
    assert measured == {row.label: [hop.top1_percent for hop in row.hops] for row in shared.report.widths}


def test_weights_that_are_too_large_for_a_graph_give_the_same_files(
    shared: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitswitch_deploy.graph.large_tensors.EMBEDDED_LIMIT_BYTES", 1 << 10)
    large = export_to(tmp_path / "p", "x86-cpu", widths=ASSIGNMENTS, shared_weights=True)
    assert verify_package(large.package).is_ok
    written = {path.name for path in large.package.iterdir()}
    assert written == {path.name for path in shared.package.iterdir()}
    # the layers of networks of that size are not looked at
    for name in written - {"results.json", "manifest.json", "report.html"}:
        assert (large.package / name).read_bytes() == (shared.package / name).read_bytes()


@pytest.mark.parametrize("target", [name for name in target_names() if not name.endswith("cpu")])
def test_tensorrt_targets_are_refused_before_any_work(target: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="TensorRT accepts no arithmetic between a quantized constant and its"):
        export_to(tmp_path / "p", target, shared_weights=True)
    assert not list(tmp_path.iterdir())


def test_weights_of_float_inputs_are_shared_too(tmp_path: Path) -> None:
    """MatMulNBits holds codes that no graph derives from the master, so these graphs have none."""
    text = 'net (float[n, 64] x, float[64, 96] "a.weight") => (float[n, 96] y) { y = MatMul (x, "a.weight") }'
    write_master(build(text, (layer("a", "MatMul", per_channel(1), "none"),)), tmp_path / "m.safetensors")
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    made = {
        name: export_to(tmp_path / name, "x86-cpu", master=tmp_path / "m.safetensors", shared_weights=name == "shared")
        for name in ("own", "shared")
    }
    for own, shared in zip(made["own"].report.widths, made["shared"].report.widths, strict=True):
        graphs = [made["own"].package / own.file_name, made["shared"].package / shared.file_name]
        options = {"session.qdq_matmulnbits_accuracy_level": "1"}
        results = [
            OnnxRuntimeSession(path, optimisation="all", threads=1, session_options=options).run(x) for path in graphs
        ]
        np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)
        assert b"MatMulNBits" not in graphs[1].read_bytes()
