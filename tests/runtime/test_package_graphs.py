"""What lies between the tensors of a weights file does not matter: packages whose widths were exported in any order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.errors import CheckFailedError, PackageError
from bitswitch_deploy.master import assemble_master, read_master, write_master
from bitswitch_deploy.package.verify import read_manifest
from bitswitch_deploy.runtime import RuntimeOptions, load
from bitswitch_deploy.runtime.package_graphs import SharedGraphs
from bitswitch_deploy.tensors import Rounding, WidthAssignment
from tests.graph import slow
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
        graph = stored.graph(f"digits-{label}.onnx")
        assert graph is not None
        factors = {each.tensor: each for each in graph.factors}
        for place, tensor in enumerate(stored.tensors):
            master = np.frombuffer(
                data, tensor.dtype, tensor.size_bytes // np.dtype(tensor.dtype).itemsize, tensor.offset
            )
            expected = master.reshape(tensor.shape)
            if tensor.dtype == "int8":
                expected = slow.derived(expected, 8, bits, rounding)
            if place in factors:
                each = factors[place]
                times = np.frombuffer(data, np.int32, each.size_bytes // 4, each.offset).reshape(each.shape)
                expected = expected * times
            np.testing.assert_array_equal(values[tensor.name], expected)


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


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("digits-w2.onnx.data", b"short", r"digits-w2.onnx: tensors that digits-w2.onnx.data does not hold"),
        ("digits-w2.onnx", b"\x3a\x07no", r"digits-w2.onnx: its protobuf does not parse"),
    ],
)
def test_a_graph_and_data_that_do_not_fit_leave_the_width(
    data_beside: Path,
    packages: Packages,
    rehash: Callable[[Path, str], None],
    file: str,
    content: bytes,
    message: str,
) -> None:
    (data_beside / file).write_bytes(content)
    rehash(data_beside, file)
    with load(data_beside, width=4, options=RuntimeOptions(threads=1)) as switcher:
        with pytest.raises(PackageError, match=message):
            switcher.switch(2)
        np.testing.assert_array_equal(switcher.run(packages.inputs[:1]), packages.outputs["w4"][:1])
