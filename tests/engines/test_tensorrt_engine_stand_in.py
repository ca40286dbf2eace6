"""Feature detection of `tensorrt` releases against a stand-in that records calls. No board has run these paths."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitswitch_deploy.engines.shape_range import ShapeRange
from bitswitch_deploy.engines.tensorrt_config import BuildSettings, flags_of
from bitswitch_deploy.engines.tensorrt_engine import build_engine, inspect_engine
from bitswitch_deploy.errors import GraphError, OutputError, UnavailableError, UsageError
from tests.engines.tensorrt_builder import FLAGS, Record, Severity, install, stand_in


@pytest.fixture
def record() -> Record:
    return Record()


@pytest.fixture(params=list(FLAGS))
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, record: Record) -> str:
    install(monkeypatch, request.param, record)
    return str(request.param)


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch, record: Record) -> Record:
    """JetPack 6.2."""
    install(monkeypatch, "10.3.0", record)
    return record


def _build(**settings: Any) -> Any:
    return build_engine(b"onnx", module="tensorrt", settings=BuildSettings(**settings))


def test_typing_follows_what_the_release_has(version: str, record: Record) -> None:
    build = _build()
    expected = {
        "8.5.2": ("weak", 0b01, ["INT8", "FP16"]),
        "8.6.2": ("weak", 0b01, ["INT8", "FP16"]),
        "10.0.0b6": ("weak", 0b01, ["INT8", "FP16"]),
        "10.3.0": ("weak", 0b01, ["INT8", "FP16"]),
        "10.12.0.36": ("strong", 0b11, []),
        "10.16.2.10": ("strong", 0b11, []),
        "11.4.1.106": ("strong", 0b01, []),
    }
    creation = [call[1] for call in record.calls if call[0] == "network"]
    assert (build.typing, *creation, record.flags()) == expected[version]
    assert (build.plan, build.version, build.module) == (b"plan", version, "tensorrt")


def test_the_progress_monitor_is_used_where_it_exists(version: str, record: Record) -> None:
    fractions: list[float] = []
    build_engine(b"onnx", module="tensorrt", settings=BuildSettings(), progress=fractions.append)
    assert fractions == ([] if version.startswith("8.") else [0.5])
    assert (("step", True) in record.calls) == (not version.startswith("8."))


def test_a_file_is_parsed_where_it_stands(orin: Record, tmp_path: Path) -> None:
    build_engine(tmp_path / "net.onnx", module="tensorrt", settings=BuildSettings())
    assert ("parse_from_file", str(tmp_path / "net.onnx")) in orin.calls
    orin.parser_errors = ["first"]
    with pytest.raises(GraphError, match="the parser refuses the graph"):
        build_engine(tmp_path / "net.onnx", module="tensorrt", settings=BuildSettings())


def test_legacy_flags_come_from_the_target(orin: Record) -> None:
    _build(legacy_flags=("INT8",))
    assert orin.flags() == ["INT8"]


def test_workspace_is_in_bytes_and_optional(orin: Record) -> None:
    _build(workspace_mb=3)
    assert ("workspace", "workspace", 3 * 2**20) in orin.calls
    orin.calls.clear()
    _build()
    assert [call[0] for call in orin.calls] == [
        "plugins",
        "network",
        "parse",
        "flag",
        "flag",
        "build",
        "step",
        "plugins",
    ]


def test_the_profile_reaches_the_builder(orin: Record) -> None:
    orin.shape = (-1, 3)
    shapes = ShapeRange(input="x", minimum=(1, 3), optimum=(2, 3), maximum=(4, 3))
    _build(profile=(shapes,))
    assert ("profile", ("x", (1, 3), (2, 3), (4, 3))) in orin.calls


def test_a_profile_that_the_builder_refuses_is_said(orin: Record) -> None:
    orin.shape, orin.profile_index = (-1, 3), -1
    shapes = ShapeRange(input="x", minimum=(1, 3), optimum=(2, 3), maximum=(4, 3))
    with pytest.raises(GraphError, match=r"engine: tensorrt 10\.3\.0: no engine"):
        _build(profile=(shapes,))


@pytest.mark.parametrize(
    ("content", "reason", "handed_over"),
    [
        (b"of another board", "of another device or TensorRT", [b"of another board", b""]),
        (b"cut sh", "damaged", [b""]),
    ],
)
def test_a_timing_cache_that_is_of_no_use_is_started_again(
    orin: Record, tmp_path: Path, content: bytes, reason: str, handed_over: list[bytes]
) -> None:
    cache = tmp_path / "cache.timing"
    cache.write_bytes(content)
    assert _build(timing_cache=cache).notes == (f"timing cache {cache} is {reason}: not used, started again",)
    assert [call[1] for call in orin.calls if call[0] == "cache"] == handed_over
    assert cache.read_bytes() == b"new cache"


@pytest.mark.parametrize("content", [b"of another board", b"cut sh"])
def test_a_file_that_may_be_something_else_is_not_replaced_by_a_timing_cache(
    orin: Record, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "net.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"net\.safetensors, which is no timing cache"):
        _build(timing_cache=tmp_path / "net.safetensors")
    assert (tmp_path / "net.safetensors").read_bytes() == content
    assert not [call for call in orin.calls if call[0] == "build"]


def test_tf32_is_switched_off_where_float32_is_asked_for(orin: Record) -> None:
    _build(tf32=False)
    assert ("clear", "TF32") in orin.calls
    orin.calls.clear()
    _build()
    assert "clear" not in [call[0] for call in orin.calls]


def test_the_timing_cache_is_read_and_updated(orin: Record, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    _build(timing_cache=cache)
    assert ("cache", b"", False) in orin.calls
    assert cache.read_bytes() == b"new cache"
    _build(timing_cache=cache)
    assert ("cache", b"new cache", False) in orin.calls


def test_an_unreadable_timing_cache_is_refused(orin: Record, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not readable: Is a directory"):
        _build(timing_cache=tmp_path)


def test_a_timing_cache_that_cannot_be_written_costs_no_engine(
    orin: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        _build(timing_cache=tmp_path / "nowhere" / "timing.cache")
    assert not [call for call in orin.calls if call[0] == "build"]

    def full(path: Path, data: bytes) -> None:
        raise OutputError(where=str(path), got="cannot be written: No space left", allowed="", do="")

    monkeypatch.setattr("bitswitch_deploy.engines.tensorrt_engine.replace_file", full)
    cache = tmp_path / "timing.cache"
    build = _build(timing_cache=cache)
    assert build.plan == b"plan"
    assert build.notes == (
        f"timing cache {cache} cannot be written: No space left: the next build measures everything again",
    )


def test_a_failed_build_leaves_the_timing_cache(orin: Record, tmp_path: Path) -> None:
    orin.plan, orin.log = None, [(Severity.ERROR, "layer conv has no implementation")]
    with pytest.raises(GraphError, match=r"tensorrt 10\.3\.0: no engine: layer conv has no implementation"):
        _build(timing_cache=tmp_path / "timing.cache")
    assert not (tmp_path / "timing.cache").exists()


def test_capabilities_are_for_rtx_only(orin: Record) -> None:
    with pytest.raises(UsageError, match="allowed: none: this TensorRT builds for the GPU that it runs on"):
        _build(compute_capabilities=("SM87",))


def test_every_parser_error_is_listed(version: str, record: Record) -> None:
    record.parser_errors = ["first", "second"]
    name = "node 7" if version.startswith("8.") else "conv Conv"
    with pytest.raises(GraphError, match=rf"\(2 errors\): {name}: first; {name}: second"):
        _build()


def test_warnings_are_kept(orin: Record) -> None:
    orin.log = [(Severity.WARNING, "slow layer"), (Severity.WARNING, "slow layer")]
    assert _build().warnings == ("slow layer",)


def test_a_machine_without_gpu_is_said(orin: Record) -> None:
    orin.builder_error = TypeError("pybind11::init(): factory function returned nullptr")
    with pytest.raises(UnavailableError, match=r"no builder: .*nullptr\n  allowed: a machine with a GPU"):
        _build()


CONVOLUTION = {"Name": "conv + relu", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Int8"}]}


def test_layers_are_read_as_json(orin: Record) -> None:
    orin.layers = [CONVOLUTION]
    assert json.loads(inspect_engine(b"plan", module="tensorrt")) == {"Layers": [CONVOLUTION]}
    with pytest.raises(UnavailableError, match="the engine cannot be loaded: not a serialized engine"):
        inspect_engine(b"other", module="tensorrt")


def test_layers_of_a_build_are_read_back_in_detail(version: str, record: Record) -> None:
    record.layers = [CONVOLUTION]
    build = _build()
    assert [(layer.nodes, layer.inputs) for layer in build.layers] == [(("conv", "relu"), ("int8",))]
    assert build.notes == ()
    assert ("build", "detailed", "gpu", -1) in record.calls


def test_an_engine_that_cannot_be_read_back_is_said(orin: Record) -> None:
    orin.plan = b"unreadable"
    build = _build()
    assert build.layers == ()
    assert build.notes == ("layers not read back: the engine cannot be loaded: not a serialized engine",)


def test_dla_runs_what_it_can_and_the_rest_is_listed(version: str, record: Record, monkeypatch: Any) -> None:
    record.dla_cores, record.network = 2, {"conv": True, "q": False, "softmax": False}
    install(monkeypatch, version, record)
    build = _build(dla_core=1)
    assert build.gpu_fallback == ("q", "softmax")
    assert record.flags()[-1] == "GPU_FALLBACK"
    assert ("build", "detailed", "dla", 1) in record.calls


def test_dla_gets_the_batch_in_the_network_before_it_is_asked_what_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs no layer with an open dimension, and a profile closes none in the network."""
    orin = Record(dla_cores=1, network={"conv": True}, shape=(-1, 3))
    install(monkeypatch, "10.3.0", orin)
    build = _build(dla_core=0, profile=(ShapeRange(input="x", minimum=(1, 3), optimum=(1, 3), maximum=(1, 3)),))
    assert build.gpu_fallback == ()
    assert ("asked about", "conv", (1, 3)) in orin.calls
    assert not any(call[0] == "profile" for call in orin.calls)


def test_a_dla_core_that_is_not_there_is_refused(orin: Record) -> None:
    with pytest.raises(UnavailableError, match=r"w4: tensorrt 10\.3\.0: DLA core 0, and TensorRT finds 0"):
        _build(dla_core=0, label="w4")


def test_flags_are_recorded_by_name() -> None:
    settings = BuildSettings(dla_core=0)
    assert flags_of(stand_in("8.5.2", Record()), settings) == ("FP16", "GPU_FALLBACK", "INT8")
    precise = BuildSettings(legacy_flags=("INT8",), tf32=False)
    assert flags_of(stand_in("8.5.2", Record()), precise) == ("INT8", "NO_TF32")
    assert flags_of(stand_in("11.4.1.106", Record()), BuildSettings()) == ("STRONGLY_TYPED",)


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ([(Severity.ERROR, "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)")], None),
        (
            [
                (Severity.WARNING, "Skipping tactic 0x1 due to: Requested amount of GPU memory (1 bytes)"),
                (Severity.ERROR, "10: Could not find any implementation for node conv"),
            ],
            None,
        ),
        ([], MemoryError()),
    ],
)
def test_out_of_memory_names_the_width_and_the_flag(orin: Record, log: Any, error: Any) -> None:
    orin.plan, orin.log, orin.build_error = None, log, error
    with pytest.raises(UnavailableError, match=r"w6: tensorrt 10\.3\.0: out of memory; (.|\n)*--workspace MB"):
        _build(label="w6")


def test_tactics_that_do_not_fit_are_no_failure_of_memory(orin: Record) -> None:
    orin.plan = None
    orin.log = [(Severity.WARNING, "tactic needs more than is free: out of memory"), (Severity.ERROR, "bad layer")]
    with pytest.raises(GraphError, match="no engine: bad layer"):
        _build()


def test_too_small_a_workspace_is_said(orin: Record) -> None:
    orin.plan = None
    orin.log = [
        (Severity.WARNING, "Some tactics do not have sufficient workspace memory: increase workspace size"),
        (Severity.ERROR, "Could not find any implementation for node conv"),
    ]
    with pytest.raises(UnavailableError, match="build with more: bitswitch-deploy build PACKAGE --workspace MB"):
        _build(workspace_mb=16)


@pytest.mark.parametrize("release", ["8.6.2", "10.3.0"])
def test_an_interrupt_during_a_build(release: str, tmp_path: Path) -> None:
    """Where steps are announced the build stops at the next one; before, the process ends at once, files untouched."""
    script = f"""
import os, signal, sys, pytest
from pathlib import Path
from tests.engines.tensorrt_builder import Record, install
from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import build_engine
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupting(list):
    def append(self, call):
        if call[0] == "build":
            os.kill(os.getpid(), signal.SIGINT)
        super().append(call)
install(pytest.MonkeyPatch(), {release!r}, Record(calls=Interrupting()))
try:
    build_engine(b"onnx", module="tensorrt", settings=BuildSettings(timing_cache=Path(sys.argv[1])))
except KeyboardInterrupt:
    sys.exit(77)
"""
    cache = tmp_path / "cache"
    result = subprocess.run([sys.executable, "-c", script, str(cache)], check=False, cwd=Path.cwd())
    assert result.returncode == (-signal.SIGINT if release == "8.6.2" else 77)
