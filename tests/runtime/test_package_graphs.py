"""What lies between the tensors of a weights file does not matter: packages whose widths were exported in any order."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from bitswitch_deploy.errors import BitswitchError, CheckFailedError, GraphError, PackageError
from bitswitch_deploy.master import assemble_master, read_master, write_master
from bitswitch_deploy.model_file import compressed
from bitswitch_deploy.package.verify import read_manifest
from bitswitch_deploy.runtime import RuntimeOptions, load
from bitswitch_deploy.runtime.external_tensors import external_tensors
from bitswitch_deploy.runtime.package_graphs import SharedGraphs
from bitswitch_deploy.tensors import Rounding, WidthAssignment
from tests.graph import slow
from tests.graph.masters import build, layer, per_channel
from tests.pipeline.conftest import WIDTHS, export_to
from tests.runtime.conftest import MIXED, Packages


@pytest.fixture(scope="module")
def lowest_first(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Factors of the low widths lie between the tensors here, behind them in an export from the highest width on."""
    folder = tmp_path_factory.mktemp("order") / "package"
    master = packages.shared.parent / "digits.safetensors"
    return export_to(folder, "x86-cpu", master=master, widths=(*WIDTHS[::-1], MIXED), shared_weights=True).package


def test_every_width_answers_as_its_own_file_does(lowest_first: Path, packages: Packages) -> None:
    with load(lowest_first, options=RuntimeOptions(threads=1)) as switcher:
        for label, outputs in packages.outputs.items():
            switcher.switch(label)
            for x, expected in zip(packages.inputs, outputs, strict=True):
                np.testing.assert_array_equal(switcher.run(x[None])[0], expected)


@pytest.fixture(scope="module")
def half_even(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("even")
    master = read_master(packages.shared.parent / "digits.safetensors")
    spec = replace(master.spec, rounding=Rounding.HALF_EVEN)
    path = folder / "digits.safetensors"
    write_master(assemble_master(spec=spec, tensors=master.tensors, skeleton=master.skeleton), path)
    return export_to(folder / "p", "x86-cpu", master=path, widths=WIDTHS, shared_weights=True).package


@pytest.mark.parametrize("label", ["w8", "w6", "w4", "w2"])
def test_values_are_codes_times_factors(lowest_first: Path, half_even: Path, packages: Packages, label: str) -> None:
    bits = int(label[1])
    up, even = Rounding.HALF_UP, Rounding.HALF_EVEN
    for package, rounding in ((lowest_first, up), (packages.shared, up), (half_even, even)):
        manifest = read_manifest(package)
        index = next(entry for entry in manifest.files if entry.role == "index")
        graphs = SharedGraphs(package, manifest, index, trust=False)
        values = graphs.get(label).initializers
        stored = graphs.index
        data = (package / stored.file).read_bytes()
        graph = stored.graph(f"digits-{label}.onnx.gz")
        assert graph is not None
        factors = {place: each for each in graph.factors for place in each.tensors}
        assert {tensor.dtype for tensor in stored.tensors} == {"int8"}
        for place, tensor in enumerate(stored.tensors):
            master = np.frombuffer(data, np.int8, tensor.size_bytes, tensor.offset).reshape(tensor.shape)
            expected = slow.derived(master, 8, bits, rounding)
            if place in factors:
                each = factors[place]
                times = np.frombuffer(data, np.int8, each.size_bytes, each.offset).reshape(each.shape)
                expected = expected.astype(np.int32) * times
            np.testing.assert_array_equal(values[tensor.name], expected)
        linear = read_master(packages.shared.parent / "digits.safetensors").tensors["linear.weight"]
        np.testing.assert_array_equal(values["linear.weight"], linear)


def test_scales_of_a_width_and_what_lies_between_codes(tmp_path: Path) -> None:
    """64 scales have as many bytes as a shared tensor, and two layers without BatchNormalization keep the master's."""
    inputs = 'float[n, 16, 5, 5] x, float[64, 16, 3, 3] "a.weight", float[64, 64, 1, 1] "b.weight", float[64] "b.bias"'
    text = f"""net ({inputs}) => (float[n, 64, h, w] y) {{
        a = Conv (x, "a.weight") r = Relu (a) y = Conv (r, "b.weight", "b.bias") }}"""
    layers = (layer("a", granularity=per_channel(0)), layer("b", granularity=per_channel(0)))
    master = build(text, layers)
    write_master(master, tmp_path / "m.safetensors")
    made = {
        kind: export_to(
            tmp_path / kind, "x86-cpu", master=tmp_path / "m.safetensors", shared_weights=kind == "shared"
        ).package
        for kind in ("shared", "own")
    }
    manifest = read_manifest(made["shared"])
    index = next(entry for entry in manifest.files if entry.role == "index")
    graphs = SharedGraphs(made["shared"], manifest, index, trust=False)
    x = np.random.default_rng(3).normal(size=(2, 16, 5, 5)).astype(np.float32)
    one_thread = RuntimeOptions(threads=1)
    with load(made["shared"], options=one_thread) as shared, load(made["own"], options=one_thread) as own:
        for bits in (8, 6, 4, 2):
            values = graphs.get(f"w{bits}").initializers
            for name in ("a.weight.scale", "b.weight.scale"):
                np.testing.assert_array_equal(values[name], master.tensors[name] * np.float32(2 ** (8 - bits)))
            shared.switch(bits)
            own.switch(bits)
            np.testing.assert_array_equal(shared.run(x), own.run(x))


@pytest.mark.parametrize(("key", "wrong"), [("offset", "9"), ("offset", "-"), ("location", "_")])
def test_a_graph_that_reads_what_its_weights_file_does_not_hold_leaves_the_width(
    packages: Packages, tmp_path: Path, rehash: Callable[[Path, str], None], key: str, wrong: str
) -> None:
    package = tmp_path / "package"
    shutil.copytree(packages.shared, package)
    path = package / "digits-w2.onnx.gz"
    data = gzip.decompress(path.read_bytes())
    (linear,) = (each for each in external_tensors(data, where=path.name) if each.name == "linear.weight")
    value = str(linear.offset) if key == "offset" else linear.location
    before = key.encode() + bytes([0x12, len(value)]) + value.encode()
    place = data.index(before, data.index(b"linear.weight")) + len(before) - len(value)
    changed = wrong + value[1:] if wrong != "9" else "9" * len(value)
    path.write_bytes(compressed(data[:place] + changed.encode() + data[place + len(value) :]))
    rehash(package, path.name)
    with load(package, width=4, options=RuntimeOptions(threads=1)) as switcher:
        with pytest.raises(PackageError, match=r"digits-w2.onnx.gz: tensors that digits.weights does not hold"):
            switcher.switch(2)
        np.testing.assert_array_equal(switcher.run(packages.inputs[:1]), packages.outputs["w4"][:1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-9], "digits-w2.onnx.gz: cut short"),
        (lambda data: gzip.decompress(data), "digits-w2.onnx.gz: gzip cannot unpack it"),
        (
            lambda data: compressed(gzip.decompress(data)[:99]),
            r"digits-w2.onnx.gz: 99 bytes, the first [\d,]+ of which",
        ),
    ],
)
def test_a_compressed_graph_that_is_damaged_leaves_the_width(
    packages: Packages,
    tmp_path: Path,
    rehash: Callable[[Path, str], None],
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    package = tmp_path / "package"
    shutil.copytree(packages.shared, package)
    path = package / "digits-w2.onnx.gz"
    path.write_bytes(damage(path.read_bytes()))
    rehash(package, path.name)
    with load(package, width=4, options=RuntimeOptions(threads=1)) as switcher:
        for _ in range(2):
            with pytest.raises((GraphError, PackageError), match=message):
                switcher.switch(2)
        np.testing.assert_array_equal(switcher.run(packages.inputs[:1]), packages.outputs["w4"][:1])


def test_packages_whose_graphs_are_not_compressed_are_served_as_well(
    packages: Packages, tmp_path: Path, rehash: Callable[[Path, str], None]
) -> None:
    """As they were before graphs were compressed."""
    package = tmp_path / "package"
    shutil.copytree(packages.shared, package)
    for name in ("manifest.json", "digits.weights.json"):
        text = (package / name).read_text()
        assert ".onnx.gz" in text
        (package / name).write_text(text.replace(".onnx.gz", ".onnx"))
    for path in package.glob("*.onnx.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
        rehash(package, path.with_suffix("").name)
    rehash(package, "digits.weights.json")
    assert json.loads((package / "digits.weights.json").read_text())["schema"] == "bitswitch-weights/4"
    with load(package, options=RuntimeOptions(threads=1)) as switcher:
        for label in switcher.widths:
            switcher.switch(label)
            np.testing.assert_array_equal(switcher.run(packages.inputs[:1]), packages.outputs[label][:1])


@pytest.fixture
def data_beside(packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Graphs of a large network: weights of each width in a file beside its graph."""
    monkeypatch.setattr("bitswitch_deploy.graph.large_tensors.EMBEDDED_LIMIT_BYTES", 1 << 10)
    master = packages.shared.parent / "digits.safetensors"
    return export_to(tmp_path / "package", "x86-cpu", master=master, widths=WIDTHS).package


def test_graphs_with_data_beside_them_are_switched_too(data_beside: Path, packages: Packages) -> None:
    with load(data_beside, options=RuntimeOptions(threads=1)) as switcher:
        for bits in (8, 2, 4):
            switcher.switch(bits)
            answer = switcher.run(packages.inputs[:1])
            np.testing.assert_array_equal(answer, packages.outputs[f"w{bits}"][:1])
        (data_beside / "digits-w6.onnx.data").write_bytes(b"short")
        with pytest.raises(CheckFailedError, match=r"digits-w6.onnx.data: cut short to 5 bytes"):
            switcher.switch(6)
        np.testing.assert_array_equal(switcher.run(packages.inputs[:1]), packages.outputs["w4"][:1])
        switcher.switch(8)
        np.testing.assert_array_equal(switcher.run(packages.inputs[:1]), packages.outputs["w8"][:1])


@pytest.mark.parametrize("bits", WIDTHS, ids=lambda each: each.label)
def test_data_that_are_cut_short_while_their_width_serves_change_no_answer(
    data_beside: Path, packages: Packages, bits: WidthAssignment
) -> None:
    """Were the file mapped, reading behind its new end would kill the process, so this has one of its own."""
    code = f"""
import os
import numpy as np
from bitswitch_deploy.runtime import RuntimeOptions, load
x = np.load("x.npy")
with load({str(data_beside)!r}, width={bits.label!r}, options=RuntimeOptions(threads=1)) as switcher:
    os.truncate({str(data_beside / f"digits-{bits.label}.onnx.data")!r}, 1)
    np.save("y.npy", switcher.run(x))
"""
    np.save(data_beside.parent / "x.npy", packages.inputs[:1])
    done = subprocess.run([sys.executable, "-c", code], cwd=data_beside.parent, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_array_equal(np.load(data_beside.parent / "y.npy"), packages.outputs[bits.label][:1])


def _with_a_negative_size(graph: bytes) -> bytes:
    model = onnx.load_model_from_string(graph)
    next(tensor for tensor in model.graph.initializer if tensor.external_data).dims[0] = -1
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("digits-w2.onnx.data", b"short", r"digits-w2.onnx: tensors that digits-w2.onnx.data does not hold"),
        ("digits-w2.onnx", b"\x3a\x07no", r"digits-w2.onnx: its protobuf does not parse"),
        ("digits-w2.onnx", _with_a_negative_size, r"digits-w2.onnx: tensors that digits-w2.onnx.data does not hold"),
    ],
)
def test_a_graph_and_data_that_do_not_fit_leave_the_width(
    data_beside: Path,
    packages: Packages,
    rehash: Callable[[Path, str], None],
    file: str,
    content: bytes | Callable[[bytes], bytes],
    message: str,
) -> None:
    path = data_beside / file
    path.write_bytes(content if isinstance(content, bytes) else content(path.read_bytes()))
    rehash(data_beside, file)
    with load(data_beside, width=4, options=RuntimeOptions(threads=1)) as switcher:
        with pytest.raises(PackageError, match=message):
            switcher.switch(2)
        np.testing.assert_array_equal(switcher.run(packages.inputs[:1]), packages.outputs["w4"][:1])


def test_codes_that_no_width_has_leave_the_last_good_one_in_service(tmp_path: Path) -> None:
    """A byte of a 4-bit master that is none of its codes, which nothing has hashed."""
    text = 'net (float[n, 64] x, float[64, 96] "a.weight") => (float[n, 96] y) { y = MatMul (x, "a.weight") }'
    master = build(text, (layer("a", "MatMul", per_channel(1), "none"),), bits=4, widths=(4, 2))
    write_master(master, tmp_path / "m.safetensors")
    widths = tuple(WidthAssignment(default=bits) for bits in (4, 2))
    changes = {"master": tmp_path / "m.safetensors", "widths": widths, "shared_weights": True}
    package = export_to(tmp_path / "p", "x86-cpu", **changes).package
    x = np.ones((1, 64), np.float32)
    with load(package, options=RuntimeOptions(threads=1, trust_files=True)) as switcher:
        expected = switcher.run(x)
        weights = package / "m.weights"
        times = weights.stat()
        data = bytearray(weights.read_bytes())
        data[3] = 0x7F
        with weights.open("r+b") as file:
            file.write(data)
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(BitswitchError):
            switcher.switch(2)
        assert switcher.width == "w4"
        np.testing.assert_array_equal(switcher.run(x), expected)
    with pytest.raises(PackageError, match="weights that cannot be derived: codes"):
        load(package, width=2, options=RuntimeOptions(threads=1, trust_files=True))
