"""Latency tables of TensorRT engines, from stand-ins that return known times, and the search that takes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.trtexec import LocalTrtexec
from bitswitch_deploy.errors import UnavailableError, UsageError
from bitswitch_deploy.latency_table import LatencyTable, read_latency_table
from bitswitch_deploy.master import read_master
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.pipeline.profiling.trtexec_bench import Board
from bitswitch_deploy.pipeline.searching.problem import budget_rows, layer_groups
from bitswitch_deploy.profiling.result import ProfileResult
from bitswitch_deploy.search.budget import parse_budget
from bitswitch_deploy.search.latency import NS_PER_MS
from bitswitch_deploy.search.resources import Choices
from bitswitch_deploy.tensors import WidthAssignment
from tests.engines import fake_trtexec
from tests.engines.tensorrt_device import install, plan
from tests.pipeline.conftest import export_to
from tests.pipeline.profiling.conftest import MASTER, run, run_on
from tests.profiling.board.machines import JETSON_FILES, X86_FILES, machine
from tests.runtime.conftest import Packages

MakePackage = Callable[[Callable[[int], bytes]], Path]
ORIN = DeviceFacts(arch="aarch64", module="p3767-0005", sm="8.7", l4t="36.4.3", power_mode="25W")

# As TensorRT 8.5 to 10 call them; halves, so that sums are exact. Of none: the input and what two layers share.
KERNELS = {
    "Reformatting CopyNode for Input Tensor 0 to node_Conv_118": (None, 1 / 16),
    "conv1.weight + node_Conv_118 + node_relu": (None, 1 / 8),
    "blocks.0.conv1.input/QuantizeLinear": ("blocks.0.conv1", 1 / 64),
    "blocks.0.conv1.weight + blocks.0.conv2.input/QuantizeLinear + node_Conv_119 + node_relu_1": (
        "blocks.0.conv1",
        1 / 4,
    ),
    "Reformatting CopyNode for Input Tensor 0 to node_Conv_120": ("blocks.0.conv2", 1 / 32),
    "node_Conv_120 + node_add_40 + node_relu_2": ("blocks.0.conv2", 1 / 2),
    "node_Conv_121 + node_relu_3": ("blocks.1.conv1", 1 / 8),
    "node_Conv_123": ("blocks.1.shortcut.conv", 1 / 32),
    "node_Conv_122 + node_add_86 + node_relu_4": ("blocks.1.conv2", 1 / 8),
    "node_Conv_124 + node_relu_5": ("blocks.2.conv1", 1 / 4),
    "node_Conv_125 + node_add_122 + node_relu_6": ("blocks.2.conv2", 1 / 4),
    "node_mean + node_linear": (None, 1 / 16),
}
LAYERS = (
    *("blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "blocks.1.shortcut.conv"),
    *("blocks.2.conv1", "blocks.2.conv2"),
)
WHOLE_MS = {8: 2.5, 4: 2.0}


def of_layers(kernels: Mapping[str, tuple[str | None, float]]) -> dict[str, float]:
    return {layer: sum(ms for owner, ms in kernels.values() if owner == layer) for layer in LAYERS}


def engine(bits: int, times: Mapping[str, float] | None = None, **changes: object) -> bytes:
    """At 4 bits every kernel takes three quarters."""
    scale = 1.0 if bits == 8 else 0.75
    layers = times if times is not None else {name: scale * ms for name, (_, ms) in KERNELS.items()}
    return json.dumps({"ms": WHOLE_MS[bits], "layers": layers, **changes}).encode()


def profiled(
    packages: Packages, package: Path, tmp_path: Path, **changes: object
) -> tuple[ProfileResult, LatencyTable]:
    path, host = tmp_path / "table.json", machine(tmp_path / "board", JETSON_FILES)
    board = Board(trtexec=LocalTrtexec(), facts=ORIN) if changes.get("engine") == "trtexec" else None
    master = packages.own.parent / MASTER
    result = run_on(board, package, host, master=master, trust=True, latency_table=path, **changes)
    return result, read_latency_table(path)


@pytest.fixture
def trtexec_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put trtexec into PATH; give the file with its calls."""
    return fake_trtexec.install(tmp_path / "bin", monkeypatch)


@pytest.mark.usefixtures("trtexec_log")
def test_the_table_holds_the_medians_of_trtexec(
    packages: Packages, jetson_package: MakePackage, tmp_path: Path
) -> None:
    result, table = profiled(packages, jetson_package(engine), tmp_path, engine="trtexec")
    times = of_layers(KERNELS)
    assert times["blocks.0.conv1"] == 1 / 4 + 1 / 64
    assert times["blocks.0.conv2"] == 1 / 2 + 1 / 32
    assert {layer.name: layer.latency_ms for layer in table.layers} == {
        name: ((8, ms), (4, 0.75 * ms)) for name, ms in times.items()
    }
    owned = sum(times.values())
    # the larger one of 2.5 - owned and 2.0 - 0.75 owned
    assert table.overhead_ms == 2.5 - owned
    assert (table.engine, table.engine_version, table.target) == ("trtexec", "10.3.0", "jetson-orin-nano")
    assert (table.end_to_end_ms, table.batch_size, table.threads) == (((8, 2.5), (4, 2.0)), 1, None)
    assert table.master_sha256 == read_master(packages.own.parent / MASTER).sha256
    predicted = [table.overhead_ms + owned, table.overhead_ms + 0.75 * owned]
    assert [(each.label, each.predicted_ms, each.measured_ms) for each in result.residuals] == [
        ("w8", predicted[0], 2.5),
        ("w4", predicted[1], 2.0),
    ]
    assert [each.error for each in result.residuals] == pytest.approx([0.0, predicted[1] / 2.0 - 1])


@pytest.mark.usefixtures("trtexec_log")
def test_the_table_says_which_board_in_which_state(
    packages: Packages, jetson_package: MakePackage, tmp_path: Path
) -> None:
    """Nothing of the processor that drives it from here."""
    _, table = profiled(packages, jetson_package(engine), tmp_path, engine="trtexec")
    assert dict(table.device) == {
        "processor": "NVIDIA Jetson Orin Nano Developer Kit",
        "module": "p3767-0005",
        "sm": "8.7",
        "l4t": "36.4.3",
        "power mode": "25W",
        "governor": "schedutil",
        "clocks": "locked",
        "MHz": "17000000.gpu 918, fastest cpu 1344",
    }


@pytest.mark.usefixtures("trtexec_log")
def test_what_the_profiler_costs_is_taken_off_every_kernel(
    packages: Packages, jetson_package: MakePackage, tmp_path: Path
) -> None:
    """1/64 ms too much for each of the twelve, in an engine that takes as long as its kernels."""
    whole = sum(ms for _, ms in KERNELS.values())
    slowed = {name: ms + 1 / 64 for name, (_, ms) in KERNELS.items()}
    package = jetson_package(lambda bits: engine(bits, slowed, ms=whole))
    _, table = profiled(packages, package, tmp_path, engine="trtexec")
    times = {layer.name: dict(layer.latency_ms)[8] for layer in table.layers}
    assert times == pytest.approx(of_layers(KERNELS))
    assert table.overhead_ms == pytest.approx(whole - sum(times.values()))


@pytest.mark.usefixtures("trtexec_log")
def test_kernels_without_names_are_known_by_the_inspector(
    packages: Packages, jetson_package: MakePackage, tmp_path: Path
) -> None:
    """As Myelin has them: the name says nothing, the metadata do."""
    words = {name: [word for word in name.split() if word.startswith(("node_", "blocks."))] for name in KERNELS}
    info = {f"__myl_{index}": nodes for index, nodes in enumerate(words.values())}
    times = {f"__myl_{index}": ms for index, (_, ms) in enumerate(KERNELS.values())}
    package = jetson_package(lambda bits: engine(bits, times, info=info))
    _, table = profiled(packages, package, tmp_path, engine="trtexec")
    assert {layer.name: dict(layer.latency_ms)[8] for layer in table.layers} == of_layers(KERNELS)


def test_several_layers_in_one_are_refused_before_they_are_timed(
    packages: Packages, jetson_package: MakePackage, tmp_path: Path, trtexec_log: Path
) -> None:
    foreign = "{ForeignNode[blocks.0.conv1.input/QuantizeLinear...node_relu_2]}"
    kept = {name: ms for name, (owner, ms) in KERNELS.items() if owner not in ("blocks.0.conv1", "blocks.0.conv2")}
    package = jetson_package(lambda bits: engine(bits, None if bits == 8 else {**kept, foreign: 0.5}))
    message = (
        r"--latency-table, w4: no time of their own: blocks.0.conv1, blocks.0.conv2 in "
        r"\{ForeignNode\[blocks.0.conv1.input/QuantizeLinear\.\.\.node_relu_2\]\}\n  allowed: an engine that computes"
    )
    with pytest.raises(UnavailableError, match=message):
        profiled(packages, package, tmp_path, engine="trtexec")
    assert not (tmp_path / "table.json").exists()
    # one look at each engine
    assert trtexec_log.read_text().count("--exportProfile") == 2
    assert trtexec_log.read_text().count("--exportTimes") == 2
    # without a table its time is shown as what it is
    result = run(package, machine(tmp_path / "board", {}), master=None, engine="trtexec", trust=True)
    assert (foreign, None, 0.5) in [(node.name, node.layer, node.ms) for node in result.candidates[1].layers]


@pytest.mark.usefixtures("trtexec_log")
def test_a_layer_that_the_engine_does_not_name_is_refused(
    packages: Packages, jetson_package: MakePackage, tmp_path: Path
) -> None:
    times = {name: ms for name, (owner, ms) in KERNELS.items() if owner != "blocks.2.conv2"}
    package = jetson_package(lambda bits: engine(bits, times))
    with pytest.raises(UnavailableError, match=r"w8: no time of their own: blocks.2.conv2, which no layer of the"):
        profiled(packages, package, tmp_path, engine="trtexec")


@pytest.mark.usefixtures("trtexec_log")
def test_times_of_another_engine_are_no_times_of_the_target(
    packages: Packages, jetson_package: MakePackage, tmp_path: Path
) -> None:
    """The search would take what this processor needs for what the board needs."""
    message = (
        r"--latency-table: the engine onnxruntime, and jetson-orin-nano runs in tensorrt\n"
        r"  allowed: times of jetson-orin-nano, in tensorrt or trtexec\n"
    )
    with pytest.raises(UsageError, match=message):
        profiled(packages, jetson_package(engine), tmp_path, engine="onnxruntime")
    message = r"the engine trtexec, and x86-cpu runs in onnxruntime\n  allowed: times of x86-cpu, in onnxruntime\n"
    with pytest.raises(UsageError, match=message):
        profiled(packages, packages.own, tmp_path, engine="trtexec")


def test_the_python_package_of_tensorrt_makes_the_same_table(
    packages: Packages, jetson_package: MakePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the stand-in's kernels only the proportions are known: the whole is wall time of this machine."""
    device = install(monkeypatch, "10.3.0")
    device.layers = tuple((f"k{index}", 1e-6 * ms) for index, (_, ms) in enumerate(KERNELS.values()))
    device.inspected = [
        {"Name": f"k{index}", "Metadata": "".join(f"[ONNX Layer: {word}]" for word in name.split() if "node_" in word)}
        for index, name in enumerate(KERNELS)
    ]
    device.inspected[2]["Metadata"] = "[ONNX Layer: blocks.0.conv1.input/QuantizeLinear]"
    package = jetson_package(lambda bits: plan(float(bits), scratch=64))
    result, table = profiled(packages, package, tmp_path)
    assert (table.engine, table.engine_version, table.widths) == ("tensorrt", "10.3.0", (8, 4))
    for bits in (8, 4):
        times = np.asarray([dict(layer.latency_ms)[bits] for layer in table.layers])
        expected = np.asarray(list(of_layers(KERNELS).values()))
        assert times / times.sum() == pytest.approx(expected / expected.sum())
        assert 0 < times.sum() < dict(table.end_to_end_ms)[bits]
    assert min(each.error for each in result.residuals) == pytest.approx(0.0)


def test_an_rtx_gpu_and_its_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that the export built, each replaced by one that the stand-in runs; a kernel for each convolution."""
    pytest.importorskip("tensorrt_rtx")
    widths = tuple(WidthAssignment(default=bits) for bits in (8, 4))
    package = export_to(tmp_path / "package", "rtx", widths=widths).package
    document = json.loads((package / "manifest.json").read_text())
    for entry in document["files"]:
        path = package / entry["path"]
        if entry["role"] == "engine":
            path.write_bytes(plan(1.0))
        elif path.name.endswith(".layers.json"):
            sha256, _ = hash_file(path.with_name(path.name.removesuffix(".layers.json")))
            path.write_text(json.dumps(json.loads(path.read_text()) | {"engine_sha256": sha256}))
        elif entry["role"] == "record":
            sha256, size = hash_file(path.with_suffix(""))
            path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": sha256, "size_bytes": size}))
        if entry["role"] in ("engine", "record"):
            entry["sha256"], entry["size_bytes"] = hash_file(path)
    (package / "manifest.json").write_text(json.dumps(document))
    device = install(monkeypatch, "1.7.1.116", "tensorrt_rtx")
    device.layers = tuple((f"node_Conv_{number}_myl0_{number}", 1e-6) for number in range(118, 126))
    monkeypatch.setattr(
        "bitswitch_deploy.pipeline.profiling.tensorrt_bench.device_facts",
        lambda: DeviceFacts(arch="x86_64", module="NVIDIA GeForce RTX 4090", sm="8.9"),
    )
    smi = {"nvidia-smi": "0, NVIDIA GeForce RTX 4090, 570.86.10, 2520, 3105, 41, 60.25, 0x0000000000000000"}
    host = machine(tmp_path / "host", X86_FILES, smi)
    run(package, host, master=None, latency_table=tmp_path / "table.json")
    table = read_latency_table(tmp_path / "table.json")
    assert (table.engine, table.engine_version, table.target) == ("tensorrt_rtx", "1.7.1.116", "rtx")
    for _, times in ((layer.name, dict(layer.latency_ms)) for layer in table.layers):
        assert times == pytest.approx(dict(table.layers[0].latency_ms))
        assert min(times.values()) > 0
    facts = dict(table.device)
    assert (facts["module"], facts["sm"], facts["driver"]) == ("NVIDIA GeForce RTX 4090", "8.9", "570.86.10")
    assert facts["MHz"] == "fastest cpu 4500, GPU 0 2520"
    assert "clocks" not in facts


@pytest.mark.usefixtures("trtexec_log")
@pytest.mark.parametrize("name", ["jetson-orin-nano", "jetson"])
def test_the_search_adds_it_up(packages: Packages, jetson_package: MakePackage, tmp_path: Path, name: str) -> None:
    """`jetson` is the Orin Nano where this is no board."""
    _, table = profiled(packages, jetson_package(engine), tmp_path, engine="trtexec")
    master = read_master(packages.own.parent / MASTER)
    groups = layer_groups(master, ())
    budgeted = budget_rows(
        master,
        Choices(groups=groups, widths=((8, 4),) * len(groups)),
        (parse_budget(f"latency_p50_ms<=2.25@{name}"),),
        [tmp_path / "table.json"],
        np.zeros((1, 1, 8, 8), np.float32),
    )
    row = budgeted.rows[0]
    assert (row.cap, row.base) == (2_250_000, math.ceil(table.overhead_ms * NS_PER_MS))
    assert row.use == tuple(
        (math.ceil(ms * NS_PER_MS), math.ceil(0.75 * ms * NS_PER_MS)) for ms in of_layers(KERNELS).values()
    )
    (check,) = budgeted.checks
    assert check.margin_ns == 0
    assert dict(check.errors_percent)[8] == pytest.approx(0.0)
