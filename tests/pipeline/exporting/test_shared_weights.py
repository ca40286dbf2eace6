"""A package whose graphs share one int8 weights file, beside the same package with weights in each graph."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import onnx
import pytest

from bitswitch_deploy.catalogue import bundled_master, sample_set, target_names
from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.master import assemble_master, read_master, write_master
from bitswitch_deploy.model_file import read_model_bytes
from bitswitch_deploy.package.verify import read_manifest, verify_package
from bitswitch_deploy.package.weights_index import WeightsIndex
from bitswitch_deploy.pipeline.progress import Silent
from bitswitch_deploy.pipeline.revalidate import revalidate
from bitswitch_deploy.runtime import RuntimeOptions, load
from bitswitch_deploy.runtime.external_tensors import external_tensors
from bitswitch_deploy.tensors import PER_TENSOR, Granularity, WidthAssignment
from tests.graph.masters import build, layer, per_block, per_channel
from tests.graph.optimised import optimised
from tests.pipeline.conftest import WIDTHS, Exported, export_to

CALIBRATION = Path(__file__).parents[3] / "calibration"
MIXED = WidthAssignment(default=8, overrides=(("blocks.0.conv1", 4), ("blocks.1.conv2", 2)))
ASSIGNMENTS = (*WIDTHS, MIXED)
FAST = (Approximation.PINNED_LAYERS, Approximation.FULL_RESOLUTION, Approximation.FULL_RESOLUTION_SIGNED)
SEVEN = tuple(WidthAssignment(default=bits) for bits in range(8, 1, -1))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_to(tmp_path_factory.mktemp("shared") / "p", "x86-cpu", widths=ASSIGNMENTS, shared_weights=True)


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_to(tmp_path_factory.mktemp("separate") / "p", "x86-cpu", widths=ASSIGNMENTS)


@pytest.fixture(scope="module")
def unpacked(shared: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the same package for other programs, with its graphs as `gunzip` leaves them."""
    folder = tmp_path_factory.mktemp("unpacked") / "p"
    return unpack(shared.package, folder)


def unpack(package: Path, folder: Path) -> Path:
    """Copy a package and let the graphs in the copy be what `gunzip` makes of them."""
    copytree(package, folder)
    subprocess.run(["gunzip", *folder.glob("*.onnx.gz")], check=True)
    return folder


def images() -> np.ndarray:
    """Test images of the digits [n, 1, 8, 8]."""
    samples = sample_set("digits")
    assert samples is not None
    pixels = np.load(samples.test)["x"]
    return np.asarray(pixels.reshape(len(pixels), 1, 8, 8), np.float32)


def test_every_graph_is_the_same_to_onnxruntime(shared: Exported, unpacked: Path, separate: Exported) -> None:
    for ours, own in zip(shared.report.widths, separate.report.widths, strict=True):
        # residual branches are decided before weights are shared
        assert ours.changes == own.changes
        assert ours.file_name == f"{own.file_name}.gz"
        paths = unpacked / own.file_name, separate.package / own.file_name
        assert optimised(paths[0]) == optimised(paths[1])
        outputs = [
            OnnxRuntimeSession(path, optimisation=level, threads=1, session_options={}).run(images())
            for path in (*paths, shared.package / ours.file_name)
            for level in ("all", "off")
        ]
        for optimised_outputs in (outputs[::2], outputs[1::2]):
            assert np.array_equal(optimised_outputs[0], optimised_outputs[1])
            assert np.array_equal(optimised_outputs[0], optimised_outputs[2])


def test_the_weights_are_stored_once_and_are_the_masters(shared: Exported) -> None:
    assert verify_package(shared.package).is_ok
    roles = {entry.role: entry.path for entry in read_manifest(shared.package).files}
    assert roles["weights"] == shared.report.shared_weights == "digits.weights"
    index = WeightsIndex.from_json((shared.package / roles["index"]).read_text(), where=roles["index"])
    stored = (shared.package / index.file).read_bytes()
    assert index.end_bytes <= len(stored) == shared.report.shared_bytes
    places = {each.offset: each.size_bytes for each in index.tensors}
    places |= {each.offset: each.size_bytes for graph in index.graphs for each in graph.factors}
    for row in shared.report.widths:
        for read in external_tensors(read_model_bytes(shared.package / row.file_name), where=row.file_name):
            assert places.setdefault(read.offset, read.end_bytes - read.offset) == read.end_bytes - read.offset
    of_master = {tensor.offset for tensor in index.tensors}
    others = [stored[place : place + size] for place, size in places.items() if place not in of_master]
    assert len(set(others)) == len(others) > 1
    needed = sum(places.values())
    assert needed <= len(stored) < needed + 64 * len(places)
    master = read_master(bundled_master())
    for tensor in index.tensors:
        expected = np.asarray(master.tensors[tensor.name])
        found = np.frombuffer(stored[tensor.offset : tensor.offset + tensor.size_bytes], tensor.dtype)
        assert np.array_equal(found.reshape(tensor.shape), expected)
    for row in shared.report.widths:
        model = onnx.load_model_from_string(read_model_bytes(shared.package / row.file_name))
        inline = [tensor.raw_data for tensor in model.graph.initializer if len(set(tensor.raw_data)) > 1]
        assert max(map(len, inline)) <= 256


def test_the_index_says_who_reads_what_at_which_width(shared: Exported) -> None:
    index = WeightsIndex.from_json((shared.package / "digits.weights.json").read_text(), where="index")
    mixed = index.graph("digits-mixed.onnx.gz")
    assert mixed is not None
    widths = dict(zip([tensor.name for tensor in index.tensors], mixed.bits, strict=True))
    assert (widths["blocks.0.conv1.weight"], widths["blocks.1.conv2.weight"]) == (4, 2)
    assert widths["blocks.0.conv2.weight"] == 8  # its codes are multiplied, the classifier's are read as they are
    assert "linear.weight" not in widths


@pytest.mark.parametrize("name", ["digits", "resnet20"])
def test_all_four_widths_take_the_bytes_of_the_8_bit_graph_alone(name: str, tmp_path: Path) -> None:
    """The goal is 1.05. Not compressed, the graphs of such networks are much beside their weights."""
    resnet20 = CALIBRATION / "cifar10" / "resnet20-8642.safetensors"
    master = bundled_master() if name == "digits" else unmeasured(resnet20, tmp_path / "resnet20.safetensors")
    assert shared_share(tmp_path, master=master) <= 1.05


def unmeasured(master: Path, path: Path) -> Path:
    """Write a master without what was measured with it, for a package that is not validated."""
    read = read_master(master)
    spec = replace(read.spec, accuracy=())
    write_master(assemble_master(spec=spec, tensors=read.tensors, skeleton=read.skeleton), path)
    return path


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


MATMUL = 'net (float[n, 64] x, float[64, 96] "a.weight") => (float[n, 96] y) { y = MatMul (x, "a.weight") }'
# 70 inputs fill no whole block
GEMM = 'net (float[n, 70] x, float[96, 70] "a.weight") => (float[n, 96] y) { y = Gemm <transB=1> (x, "a.weight") }'


# blocks of two sizes
TWO = """net (float[n, 64] x, float[64, 96] "a.weight", float[96, 256] "b.weight") => (float[n, 256] y)
    { h = MatMul (x, "a.weight") y = MatMul (h, "b.weight") }"""
WEIGHT_ONLY = {
    "matmul": (MATMUL, (layer("a", "MatMul", per_channel(1), "none"),)),
    "gemm": (GEMM, (layer("a", "Gemm", per_channel(0), "none"),)),
    "two": (TWO, [layer(name, "MatMul", per_channel(1), "none") for name in "ab"]),
    "blocks": (TWO, [layer(name, "MatMul", per_block(0, 32), "none") for name in "ab"]),
    "square": (
        TWO.replace("96", "64").replace("256", "64"),
        [layer(n, "MatMul", per_block(0, 16), "none") for n in "ab"],
    ),
    "gemm, blocks": (GEMM.replace("70", "64"), (layer("a", "Gemm", per_block(1, 32), "none"),)),
    "tensor": (MATMUL, (layer("a", "MatMul", PER_TENSOR, "none"),)),
}


@pytest.mark.parametrize("asked", [frozenset(), frozenset({Approximation.INT8_INPUTS})], ids=["floats", "rounded"])
@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_layers_with_float_inputs_are_the_same_as_in_graphs_of_their_own(
    name: str, asked: frozenset[Approximation], tmp_path: Path
) -> None:
    """The graph packs the codes of MatMulNBits itself, the runtime does it sooner."""
    master = build(*WEIGHT_ONLY[name])
    write_master(master, tmp_path / "m.safetensors")
    inputs = 70 if name == "gemm" else 64
    x = np.random.default_rng(0).normal(size=(5, inputs)).astype(np.float32)
    changes = {"master": tmp_path / "m.safetensors", "approximations": asked, "widths": SEVEN}
    made = {
        name: export_to(tmp_path / name, "x86-cpu", shared_weights=name == "shared", **changes)
        for name in ("own", "shared")
    }
    plain = unpack(made["shared"].package, tmp_path / "plain")
    codes = master.tensors["a.weight"].tobytes()
    assert codes in (plain / "m.weights").read_bytes()
    with load(made["shared"].package, options=RuntimeOptions(threads=1)) as switcher:
        for own, shared in zip(made["own"].report.widths, made["shared"].report.widths, strict=True):
            graphs = [made["own"].package / own.file_name, plain / own.file_name]
            assert shared.file_name == f"{own.file_name}.gz"
            assert optimised(graphs[0]) == optimised(graphs[1])
            assert own.bits is not None
            assert (b"MatMulNBits" in graphs[1].read_bytes()) == (own.bits <= 4 or bool(asked))
            initializers = onnx.load(graphs[1], load_external_data=False).graph.initializer
            assert max((len(each.raw_data) for each in initializers), default=0) < len(codes) // 4
            assert shared.changes == own.changes
            expected = OnnxRuntimeSession(graphs[0], optimisation="all", threads=1, session_options={}).run(x)
            switcher.switch(own.label)
            np.testing.assert_array_equal(switcher.run(x), expected)


@pytest.mark.parametrize(
    ("granularity", "asked"),
    [(per_channel(1), ()), (per_block(0, 32), ()), (PER_TENSOR, ()), (per_block(0, 128), (Approximation.INT8_INPUTS,))],
)
def test_weights_beside_floats_take_the_bytes_of_the_8_bit_graph_alone(
    granularity: Granularity, asked: tuple[Approximation, ...], tmp_path: Path
) -> None:
    text = 'net (float[n, 512] x, float[512, 512] "a.weight") => (float[n, 512] y) { y = MatMul (x, "a.weight") }'
    write_master(build(text, (layer("a", "MatMul", granularity, "none"),)), tmp_path / "m.safetensors")
    changes = {"master": tmp_path / "m.safetensors", "approximations": frozenset(asked)}
    assert shared_share(tmp_path, **changes) <= 1.05


@pytest.mark.parametrize("asked", [{Approximation.PINNED_LAYERS}, {*FAST}])
def test_pinned_layers_lie_in_the_file_once(asked: set[Approximation], tmp_path: Path) -> None:
    """The last layer has most of the weights of this network."""
    text = """net (float[n, 3, 8, 8] x, float[16, 3, 3, 3] "a.weight", float[16, 16, 3, 3] "b.weight",
        float[256, 256] "c.weight", float[256, 1024] "d.weight") => (float[n, 1024] y) { g = Conv (x, "a.weight")
        r = Relu (g) h = Conv (r, "b.weight") s = Relu (h) f = Flatten (s) c = Gemm <transB = 1> (f, "c.weight")
        e = Relu (c) y = MatMul (e, "d.weight") }"""
    layers = [
        layer("a", activation="pinned"),
        layer("b", "Conv", per_channel(0)),
        layer("c", "Gemm", per_channel(0)),
        layer("d", "MatMul", activation="pinned"),
    ]
    write_master(build(text, layers), tmp_path / "m.safetensors")
    noise = tmp_path / "noise.npz"
    np.savez(noise, x=np.random.default_rng(5).normal(size=(64, 3, 8, 8)).astype(np.float32))
    changes = {"master": tmp_path / "m.safetensors", "approximations": frozenset(asked), "calibration": noise}
    assert shared_share(tmp_path, **changes, min_agreement=1e-6) <= 1.05
    index = WeightsIndex.from_json((tmp_path / "shared" / "m.weights.json").read_text(), where="index")
    assert "d.weight" not in [tensor.name for tensor in index.tensors]


def shared_share(folder: Path, **changes: object) -> float:
    """Give the bytes of graphs, weights and index with shared weights, in those of the 8-bit graph alone."""
    made = {
        kind: export_to(folder / kind, "x86-cpu", shared_weights=kind == "shared", **changes).package
        for kind in ("shared", "own")
    }
    needed = [entry for entry in read_manifest(made["shared"]).files if entry.role in ("graph", "weights", "index")]
    assert len(needed) == len(WIDTHS) + 2
    (alone,) = made["own"].glob("*-w8.onnx")
    return sum(entry.size_bytes for entry in needed) / alone.stat().st_size


def with_negative_gains(path: Path) -> Path:
    """Write the bundled master with every third gain behind a quantized layer negative."""
    bundled = read_master(bundled_master())
    tensors = {name: np.array(tensor) for name, tensor in bundled.tensors.items()}
    for name, tensor in tensors.items():
        if name.startswith("blocks.") and name.endswith((".bn1.weight", ".bn2.weight", ".bn.weight")):
            tensor[:, ::3] *= -1
    # what it says of its accuracy is no longer true
    spec = replace(bundled.spec, accuracy=())
    write_master(assemble_master(spec=spec, tensors=tensors, skeleton=bundled.skeleton), path)
    return path


@pytest.mark.parametrize("target", ["x86-cpu", "arm64-cpu"])
def test_negative_gains_leave_both_forms_the_same(target: str, tmp_path: Path) -> None:
    """At 8 bits channels that hold -128 get negative scales, everywhere else codes are multiplied by -1."""
    master = with_negative_gains(tmp_path / "digits.safetensors")
    kinds = {"shared": True, "own": False}
    made = {
        kind: export_to(tmp_path / kind, target, master=master, widths=ASSIGNMENTS, shared_weights=shared)
        for kind, shared in kinds.items()
    }
    plain = unpack(made["shared"].package, tmp_path / "plain")
    x, one_thread = images(), RuntimeOptions(threads=1)
    with load(made["shared"].package, options=one_thread) as switcher:
        for row in made["own"].report.widths:
            own, shared = made["own"].package / row.file_name, plain / row.file_name
            scales = [
                onnx.numpy_helper.to_array(tensor)
                for tensor in onnx.load(str(own)).graph.initializer
                if tensor.name.endswith(".weight.scale")
            ]
            # of the mixture, the layers of 8 bits
            assert any((scale < 0).any() for scale in scales) == (row.label in ("w8", "mixed"))
            assert any("signs flipped" in change for change in row.changes)
            assert optimised(shared) == optimised(own)
            expected = OnnxRuntimeSession(own, optimisation="all", threads=1, session_options={}).run(x)
            assert len(np.unique(expected.argmax(axis=1))) > 1
            found = OnnxRuntimeSession(shared, optimisation="all", threads=1, session_options={}).run(x)
            np.testing.assert_array_equal(found, expected)
            switcher.switch(row.label)
            np.testing.assert_array_equal(switcher.run(x), expected)
