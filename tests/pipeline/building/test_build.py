"""`build` on a board that is not there: a stand-in for TensorRT, real packages, real files."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from bitswitch_deploy.catalogue import load_target
from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.engine_record import BUILD_FOLDER, read_record, record_path
from bitswitch_deploy.engines.shape_range import ShapeRange
from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import build_engine
from bitswitch_deploy.errors import (
    GraphError,
    OutputError,
    PackageError,
    TargetFileError,
    UnavailableError,
    UsageError,
)
from bitswitch_deploy.package.destination import BUILD_LOCK, check_all_listed
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.package.verify import read_manifest, verify_package
from bitswitch_deploy.pipeline.building.build import BuildRequest, build, build_lock
from bitswitch_deploy.pipeline.building.engine_recipe import EngineOptions, build_settings
from bitswitch_deploy.pipeline.building.engine_step import engine_text, why_not_here
from bitswitch_deploy.pipeline.building.kept_layers import facts_path
from bitswitch_deploy.pipeline.progress import Silent
from bitswitch_deploy.report.build_report import BuildReport
from bitswitch_deploy.report.export_report import LayerCounts
from bitswitch_deploy.tensors import WidthAssignment
from tests.engines.tensorrt_builder import Record, Severity, install
from tests.pipeline.conftest import export_to

ORIN = DeviceFacts(arch="aarch64", module="p3701-0005", sm="8.7", l4t="36.4.3", power_mode="MAXN")
LABELS = ["fp16", "w8", "w4"]
CONVOLUTION = {
    "Name": "node_Conv_119 + node_relu_1",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Format/Datatype": "Row major Int8 format"}],
    "Weights": {"Type": "Int8"},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    widths = (WidthAssignment(default=4), WidthAssignment(default=8))
    return export_to(tmp_path_factory.mktemp("jetson") / "p", "jetson-agx-orin@6.2", widths=widths, data=None).package


@pytest.fixture
def package(exported: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", exported, tmp_path / "p"], check=True)
    return tmp_path / "p"


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Record:
    """An AGX Orin with JetPack 6.2."""
    record = Record(shape=(-1, 1, 8, 8), input="input", layers=[CONVOLUTION], dla_cores=2)
    install(monkeypatch, "10.3.0", record)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("bitswitch_deploy.pipeline.building.build.device_facts", lambda: ORIN)
    monkeypatch.setattr("bitswitch_deploy.pipeline.building.build.why_not_here", lambda _: None)
    return record


def built(package: Path, **changes: Any) -> BuildReport:
    return build(BuildRequest(package=package, **changes), Silent())


def states(report: BuildReport) -> list[tuple[str, str]]:
    return [(row.label, row.state) for row in report.engines]


def parsed(record: Record) -> list[str]:
    return [Path(call[1]).name for call in record.calls if call[0] == "parse_from_file"]


def test_every_width_and_the_reference_are_built_on_one_timing_cache(board: Record, package: Path) -> None:
    report = built(package)
    assert states(report) == [(label, "built") for label in LABELS]
    assert parsed(board) == ["digits-fp16.onnx", "digits-w8.onnx", "digits-w4.onnx"]
    assert board.flags() == ["FP16", *2 * ["INT8", "FP16"]]
    shapes = ("profile", ("input", (1, 1, 8, 8), (1, 1, 8, 8), (32, 1, 8, 8)))
    assert board.calls.count(shapes) == 3
    assert board.calls.count(("workspace", "workspace", 4096 << 20)) == 3
    # the second build begins with what the first one measured
    assert [call[1] for call in board.calls if call[0] == "cache"] == [b"", b"new cache", b"new cache"]
    cache = Path(report.timing_cache or "")
    assert cache.name == "tensorrt-10.3.0-p3701_0005-MAXN.timing"
    assert [row.is_reference for row in report.engines] == [True, False, False]
    assert verify_package(package).is_ok


def test_what_export_builds_on_the_board_is_up_to_date(
    board: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built on the same timing cache; the next builder has nothing to do."""
    monkeypatch.setattr("bitswitch_deploy.pipeline.building.engine_step.device_facts", lambda: ORIN)
    monkeypatch.setattr("bitswitch_deploy.pipeline.building.engine_step.why_not_here", lambda _: None)
    widths = (WidthAssignment(default=4), WidthAssignment(default=8))
    package = export_to(tmp_path / "p", "jetson-agx-orin@6.2", widths=widths, data=None).package
    assert [call[1] for call in board.calls if call[0] == "cache"] == [b"", b"new cache", b"new cache"]
    board.calls.clear()
    report = built(package)
    assert states(report) == [(label, "up to date") for label in LABELS]
    assert parsed(board) == []
    found = report.engines[1].layers
    assert found is not None
    assert [node.node for node in found.int8] == ["node_Conv_119"]
    assert (tmp_path / "cache/bitswitch-deploy" / Path(report.timing_cache or "").name).is_file()
    # what was built stands for what was exported
    assert states(built(package, force=True)) == [(label, "built") for label in LABELS]
    assert {Path(row.path).parent.name for row in built(package).engines} == {BUILD_FOLDER}


def test_an_engine_that_cannot_be_built_does_not_cost_the_package(
    board: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitswitch_deploy.pipeline.building.engine_step.why_not_here", lambda _: None)
    board.plans, board.log = [b"plan 4", None], [(Severity.ERROR, "out of memory")]
    widths = (WidthAssignment(default=4), WidthAssignment(default=8))
    exported = export_to(tmp_path / "p", "jetson-agx-orin@6.2", widths=widths, data=None)
    first, second = (row.engine for row in exported.report.widths)
    assert first.startswith("tensorrt 10.3.0, 6 bytes")
    assert second.startswith("not built here: out of memory")
    step = exported.report.not_done[-1]
    assert f"not built here: {step.why}" == second
    assert step.command == f"bitswitch-deploy build {tmp_path / 'p'}"
    manifest = read_manifest(exported.package)
    assert [entry.label for entry in manifest.files if entry.role == "engine"] == ["w4"]
    assert manifest.skipped[-1].reason == step.why


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([CONVOLUTION], "1 of 9 layers in int8, 8 that no layer of the engine names"),
        ([], ""),
    ],
)
def test_the_share_is_one_of_all_layers_of_the_graph(
    board: Record, package: Path, layers: list[dict[str, object]], text: str
) -> None:
    board.layers = layers
    graph = package / "digits-w8.onnx"
    shapes = ShapeRange(input="input", minimum=(1, 1, 8, 8), optimum=(1, 1, 8, 8), maximum=(1, 1, 8, 8))
    build = build_engine(graph, module="tensorrt", settings=BuildSettings(profile=(shapes,)))
    line, counts = engine_text(build, onnx.load(graph))
    assert line == "tensorrt 10.3.0, 4 bytes" + (f"; {text}" if text else "")
    assert counts == (LayerCounts(integer=1, total=9) if layers else None)


def test_minutes_are_given_to_each_engine() -> None:
    target = load_target("jetson-agx-orin").target
    assert build_settings("w8", "graph", target, (), EngineOptions(timeout_min=2)).limit_s == 120


def test_progress_is_told_for_each_engine(board: Record, package: Path) -> None:
    told: list[tuple[str, int]] = []

    class Recording(Silent):
        def start(self, description: str, total: int) -> None:
            told.append((description, total))

        def advance(self, n: int = 1) -> None:
            told.append(("", n))

    build(BuildRequest(package=package), Recording())
    # the stand-in announces the first of two steps
    assert told == [each for label in LABELS for each in ((f"{label}: building the engine", 100), ("", 50))]


def test_what_was_exported_with_strict_is_built_without_float16(board: Record, package: Path) -> None:
    manifest = read_manifest(package)
    (package / "manifest.json").write_text(replace(manifest, strict=True).to_json())
    built(package)
    flags = {label: read_record(package / BUILD_FOLDER / f"digits-{label}.engine") for label in LABELS}
    assert {label: record.recipe.flags for label, record in flags.items() if record is not None} == {
        label: ("FP16",) if label == "fp16" else ("INT8", "NO_TF32") for label in LABELS
    }


def test_records_say_what_was_built(board: Record, package: Path) -> None:
    built(package)
    manifest = {entry.path: entry for entry in read_manifest(package).files}
    for label in LABELS:
        engine = package / BUILD_FOLDER / f"digits-{label}.engine"
        record = read_record(engine)
        assert record is not None
        assert (record.label, record.tool, record.sha256) == (label, "bitswitch-deploy", hash_file(engine)[0])
        assert record.recipe.graph_sha256 == (manifest[f"digits-{label}.onnx"].sha256,)
        assert record.recipe.device == ORIN
        assert record.recipe.flags == (("FP16",) if label == "fp16" else ("FP16", "INT8"))
        assert record.timing_cache_sha256 is not None


def test_layers_are_read_back_and_kept(board: Record, package: Path) -> None:
    board.plans = [b"plan fp16", b"plan 8", b"plan 4"]
    first = built(package).engines[1].layers
    assert first is not None
    assert [node.node for node in first.int8] == ["node_Conv_119"]
    assert built(package).engines[1].layers == first
    kept = package / BUILD_FOLDER / "digits-w8.engine.layers.json"
    kept.write_text("damaged")
    unknown = built(package).engines[1]
    assert (unknown.layers, unknown.notes) == (None, ("layers not known: build it again with --force",))
    # what trtexec wrote is read in its own form
    kept.unlink()
    vendors = package / BUILD_FOLDER / "digits-w8.layers.json"
    vendors.write_text(json.dumps({"Layers": [CONVOLUTION]}))
    assert built(package).engines[1].layers == first
    # what is kept of another engine is not told of this one
    others = (package / BUILD_FOLDER / "digits-w4.engine.layers.json").read_text()
    kept.write_text(others.replace(': "int8"', ': "fp16"'))
    assert built(package).engines[1].layers == first
    built(package, force=True)
    assert (kept.exists(), vendors.exists()) == (True, False)


def test_what_is_up_to_date_stays(board: Record, package: Path) -> None:
    built(package)
    board.calls.clear()
    assert states(built(package)) == [(label, "up to date") for label in LABELS]
    assert parsed(board) == []
    assert states(built(package, force=True)) == [(label, "built") for label in LABELS]


@pytest.mark.parametrize("what", ["engine", "record", "cut record"])
def test_a_damaged_engine_is_built_again(board: Record, package: Path, what: str) -> None:
    built(package)
    engine = package / BUILD_FOLDER / "digits-w8.engine"
    if what == "engine":
        engine.write_bytes(b"plan of something else")
    elif what == "record":
        record_path(engine).unlink()
    else:
        record_path(engine).write_text(record_path(engine).read_text()[:99])
    assert states(built(package)) == [("fp16", "up to date"), ("w8", "built"), ("w4", "up to date")]


@pytest.mark.parametrize(
    "changes",
    [
        {"options": EngineOptions(fp32=True)},
        {"options": EngineOptions(workspace_mb=64)},
        {"options": EngineOptions(dla=True)},
    ],
)
def test_another_recipe_is_another_engine(board: Record, package: Path, changes: dict[str, Any]) -> None:
    built(package)
    report = built(package, **changes)
    reference = "up to date" if changes["options"].fp32 else "built"
    assert states(report) == [("fp16", reference), ("w8", "built"), ("w4", "built")]


def test_another_device_is_another_engine(board: Record, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(package)
    other = DeviceFacts(arch="aarch64", module="p3701-0005", sm="8.7", l4t="36.4.4", power_mode="MAXN")
    monkeypatch.setattr("bitswitch_deploy.pipeline.building.build.device_facts", lambda: other)
    assert states(built(package)) == [(label, "built") for label in LABELS]


def test_fp32_spares_the_reference(board: Record, package: Path) -> None:
    built(package, options=EngineOptions(fp32=True))
    assert board.flags() == ["FP16", "INT8", "INT8"]
    assert board.calls.count(("clear", "TF32")) == 2


def test_dla_is_static_and_lists_what_falls_back(board: Record, package: Path) -> None:
    board.network = {"conv": True, "q": False}
    board.log = [(Severity.WARNING, "slow \x1b[1mlayer")]
    report = built(package, options=EngineOptions(dla=True))
    assert [row.gpu_fallback for row in report.engines] == [("q",)] * 3
    # and when they are up to date
    again = built(package, options=EngineOptions(dla=True))
    assert [(row.state, row.gpu_fallback, row.warnings) for row in again.engines] == [
        ("up to date", ("q",), ("slow \x1b[1mlayer",))
    ] * 3
    assert ("asked about", "q", (1, 1, 8, 8)) in board.calls


def test_dla_is_refused_where_this_tensorrt_has_none(
    board: Record, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.16.2.10", board)
    with pytest.raises(UnavailableError, match=r"--dla: TensorRT 10\.16\.2 does not drive the DLA cores"):
        built(package, options=EngineOptions(dla=True))


def test_another_tensorrt_than_the_graphs_were_made_for_is_said(
    board: Record, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert built(package).notes == ()
    install(monkeypatch, "8.6.2", board)
    assert built(package).notes == ("the graphs were made for tensorrt 10.3.0, and this is 8.6.2",)


@pytest.mark.parametrize(
    ("version", "release"),
    [("10.16.2.10", "10.16.2"), ("10.0.0b6", "10.0.0"), ("8.6.2", "8.6.2")],
)
def test_the_release_is_named_as_trtexec_names_it(
    board: Record, package: Path, monkeypatch: pytest.MonkeyPatch, version: str, release: str
) -> None:
    """Whose banner has three numbers: else neither builder would know the other's engines or timing cache."""
    install(monkeypatch, version, board)
    report = built(package)
    assert report.notes == (f"the graphs were made for tensorrt 10.3.0, and this is {release}",)
    assert Path(report.timing_cache or "").name == f"tensorrt-{release}-p3701_0005-MAXN.timing"
    record = read_record(package / BUILD_FOLDER / "digits-w8.engine")
    assert record is not None
    assert record.recipe.version == release
    assert states(built(package)) == [(label, "up to date") for label in LABELS]


def test_out_of_memory_names_the_width_and_the_next_run_goes_on(board: Record, package: Path) -> None:
    board.plans = [b"plan fp16", b"plan 8", None]
    board.log = [(Severity.ERROR, "out of memory")]
    with pytest.raises(UnavailableError, match=r"w4: tensorrt 10\.3\.0: out of memory; (.|\n)*--workspace MB"):
        built(package)
    board.log = []
    assert states(built(package)) == [("fp16", "up to date"), ("w8", "up to date"), ("w4", "built")]


def test_a_graph_that_the_builder_refuses_leaves_the_others(board: Record, package: Path) -> None:
    board.plans = [b"plan fp16", None]
    board.log = [(Severity.ERROR, "conv has no implementation")]
    with pytest.raises(GraphError, match=r"w8: tensorrt 10\.3\.0: no engine: conv has no implementation"):
        built(package)
    assert (package / BUILD_FOLDER / "digits-fp16.engine").exists()
    assert not (package / BUILD_FOLDER / "digits-w8.engine").exists()


def test_two_builds_at_once_are_refused(board: Record, package: Path) -> None:
    (package / BUILD_FOLDER).mkdir()
    with (package / BUILD_FOLDER / BUILD_LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match="another build is running in this package"):
            built(package)
    built(package)


def test_a_killed_build_goes_on(exported: Path, package: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal, sys, pytest
from pathlib import Path
from tests.engines.tensorrt_builder import Record, install
from tests.pipeline.building.test_build import ORIN, built
class Dying(list):
    def append(self, call):
        if call[0] == "parse_from_file" and "w8" in call[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        super().append(call)
patch = pytest.MonkeyPatch()
install(patch, "10.3.0", Record(calls=Dying(), shape=(-1, 1, 8, 8), input="input"))
patch.setattr("bitswitch_deploy.pipeline.building.build.device_facts", lambda: ORIN)
patch.setattr("bitswitch_deploy.pipeline.building.build.why_not_here", lambda _: None)
built(Path({str(package)!r}), timing_cache=Path({str(tmp_path / "cache")!r}))
"""
    result = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path.cwd())
    assert result.returncode == -signal.SIGKILL
    patch = pytest.MonkeyPatch()
    with patch.context():
        record = Record(shape=(-1, 1, 8, 8), input="input")
        install(patch, "10.3.0", record)
        patch.setattr("bitswitch_deploy.pipeline.building.build.device_facts", lambda: ORIN)
        patch.setattr("bitswitch_deploy.pipeline.building.build.why_not_here", lambda _: None)
        report = built(package, timing_cache=tmp_path / "cache")
    patch.undo()
    assert states(report) == [("fp16", "up to date"), ("w8", "built"), ("w4", "built")]


def test_without_a_cache_folder_the_timing_cache_is_beside_the_engines(
    board: Record, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    cache = package / BUILD_FOLDER / "tensorrt-10.3.0-p3701_0005-MAXN.timing"
    assert built(package).timing_cache == str(cache)
    assert cache.read_bytes() == b"new cache"


def test_a_timing_cache_of_another_device_is_said(board: Record, package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "other.timing"
    cache.write_bytes(b"of another board")
    first, *others = built(package, timing_cache=cache).engines
    assert first.notes == (f"timing cache {cache} is of another device or TensorRT: not used, started again",)
    assert [row.notes for row in others] == [(), ()]
    assert cache.read_bytes() == b"new cache"


def test_a_graph_that_is_not_the_exported_one_is_refused(board: Record, package: Path) -> None:
    with (package / "digits-w8.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(PackageError, match=r"digits-w8\.onnx: its hash does not match the manifest"):
        built(package)
    (package / "digits-w8.onnx").unlink()
    with pytest.raises(PackageError, match=r"digits-w8\.onnx: not readable: No such file"):
        built(package)


def test_a_place_that_cannot_be_written_is_said(board: Record, package: Path) -> None:
    (package / BUILD_FOLDER).write_text("a file in its place")
    with pytest.raises(OutputError, match="cannot be written: File exists"):
        built(package)


def test_packages_without_a_reference_build_as_well(board: Record, package: Path) -> None:
    """Those of older releases."""
    manifest = package / "manifest.json"
    document = json.loads(manifest.read_text())
    document["files"] = [entry for entry in document["files"] if entry["role"] != "reference"]
    manifest.write_text(json.dumps(document))
    assert [row.label for row in built(package).engines] == ["w8", "w4"]


def test_an_unknown_target_is_refused(board: Record, package: Path) -> None:
    with pytest.raises(TargetFileError, match="there is no such file"):
        built(package, target="./nothing.yaml")


def test_a_target_of_another_engine_is_refused(board: Record, package: Path) -> None:
    built(package)
    engine = package / BUILD_FOLDER / "digits-w8.engine"
    before = engine.read_bytes()
    with pytest.raises(UsageError, match=r"--target: rtx, whose engines tensorrt_rtx builds\n.*target for tensorrt,"):
        built(package, target="rtx", force=True)
    assert engine.read_bytes() == before


def test_a_package_that_was_built_can_be_exported_again_and_not_meanwhile(board: Record, package: Path) -> None:
    with build_lock(package / BUILD_FOLDER), pytest.raises(UsageError, match="is in use by a build of its engines"):
        check_all_listed(package)
    check_all_listed(package)


def test_a_path_need_not_be_text(board: Record, package: Path) -> None:
    odd = package.rename(package.with_name("p\udce4ck"))
    assert states(built(odd)) == [(label, "built") for label in LABELS]


def test_what_trtexec_left_to_the_gpu_is_told(board: Record, package: Path) -> None:
    """By the script, which keeps what the log says."""
    built(package)
    engine = package / BUILD_FOLDER / "digits-w8.engine"
    facts_path(engine).unlink()
    engine.with_suffix(".layers.json").write_text(json.dumps({"Layers": [CONVOLUTION]}))
    engine.with_suffix(".gpu-fallback.txt").write_text("layer a: falling back to GPU\nlayer b: falling back to GPU\n")
    (row,) = [row for row in built(package).engines if row.label == "w8"]
    assert (row.state, row.gpu_fallback) == (
        "up to date",
        ("layer a: falling back to GPU", "layer b: falling back to GPU"),
    )


def test_why_a_board_is_not_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_target("jetson-agx-orin").target
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "this host is no Jetson" in (why_not_here(target, tmp_path) or "")
    (tmp_path / "proc" / "device-tree").mkdir(parents=True)
    compatible = tmp_path / "proc" / "device-tree" / "compatible"
    compatible.write_bytes(b"nvidia,p2888-0001\0nvidia,tegra194\0")
    assert "this host is p2888-0001, tegra194" in (why_not_here(target, tmp_path) or "")
    compatible.write_bytes(b"nvidia,p3701-0005\0nvidia,tegra234\0")
    install(monkeypatch, "10.3.0", Record())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert why_not_here(target, tmp_path) is None
