"""Feature detection of `tensorrt` releases against a stand-in that records calls. No board has run these paths."""

from __future__ import annotations

import enum
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from bitswitch_deploy.engines.shape_range import ShapeRange
from bitswitch_deploy.engines.tensorrt_engine import BuildSettings, build_engine, inspect_engine
from bitswitch_deploy.errors import GraphError, OutputError, UnavailableError, UsageError

FLAGS = {
    # name: (creation flags, builder flags); the integers are those of the headers, and moved in 11.0
    "8.6.2": ({"EXPLICIT_BATCH": 0}, {"FP16": 0, "INT8": 1}),
    "10.3.0": ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, {"FP16": 0, "INT8": 1}),
    "10.12.0": ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, {"FP16": 0, "INT8": 1}),
    "10.16.2": ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, {"FP16": 0, "INT8": 1}),
    "11.4.1": ({"STRONGLY_TYPED": 0}, {"REFIT": 0}),
}


class Severity(enum.Enum):
    """Names are the vendor's."""

    ERROR = 1
    WARNING = 2


class Record:
    """What was called, and how the stand-in answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.log: list[tuple[Severity, str]] = []
        self.parser_errors: list[str] = []
        self.shape = (1, 3)
        self.plan: bytes | None = b"plan"
        self.profile_index = 0
        self.builder_error: Exception | None = None


def _config(record: Record) -> type:
    class Config:
        progress_monitor = None

        def set_memory_pool_limit(self, pool: object, size: int) -> None:
            record.calls.append(("workspace", pool, size))

        def set_flag(self, flag: enum.IntEnum) -> None:
            record.calls.append(("flag", flag.name))

        def create_timing_cache(self, content: bytes) -> bytes:
            return content

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            record.calls.append(("cache", cache, ignore_mismatch))
            return cache != b"of another board"

        def get_timing_cache(self) -> types.SimpleNamespace:
            return types.SimpleNamespace(serialize=lambda: b"new cache")

        def add_optimization_profile(self, profile: list[Any]) -> int:
            record.calls.append(("profile", *profile))
            return record.profile_index

    return Config


def _builder(record: Record) -> type:
    class Profile(list):  # type: ignore[type-arg]
        def set_shape(self, *shapes: object) -> None:
            self.append(shapes)

    class Builder:
        def __init__(self, logger: Any) -> None:
            if record.builder_error is not None:
                raise record.builder_error
            self.logger = logger

        def create_network(self, flags: int) -> types.SimpleNamespace:
            record.calls.append(("network", flags))
            value = types.SimpleNamespace(name="x", shape=record.shape)
            return types.SimpleNamespace(num_inputs=1, get_input=lambda _: value)

        def create_builder_config(self) -> object:
            return _config(record)()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: object, config: Any) -> bytes | None:
            for severity, text in record.log:
                self.logger.log(severity, text)
            if config.progress_monitor is not None:
                config.progress_monitor.phase_start("build", None, 2)
                record.calls.append(("step", config.progress_monitor.step_complete("build", 0)))
            return record.plan

    return Builder


def _parser(record: Record, version: str) -> type:
    class Parser:
        num_errors = property(lambda _: len(record.parser_errors))

        def __init__(self, network: object, logger: object) -> None:
            pass

        def parse(self, model: bytes) -> bool:
            record.calls.append(("parse", model))
            return not record.parser_errors

        def parse_from_file(self, path: str) -> bool:
            record.calls.append(("parse_from_file", path))
            return not record.parser_errors

        def get_error(self, index: int) -> types.SimpleNamespace:
            error = types.SimpleNamespace(desc=lambda: record.parser_errors[index], node=lambda: 7)
            if not version.startswith("8."):
                error.node_name, error.node_operator = (lambda: "conv"), (lambda: "Conv")
            return error

    return Parser


def _stand_in(version: str, record: Record) -> Any:
    creation, builder = FLAGS[version]
    module: Any = types.ModuleType("tensorrt")
    module.__version__ = version
    module.ILogger = type("ILogger", (), {})
    if not version.startswith("8."):
        module.IProgressMonitor = type("IProgressMonitor", (), {})
    module.NetworkDefinitionCreationFlag, module.BuilderFlag = _flags(creation), _flags(builder)
    module.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
    module.Builder, module.OnnxParser = _builder(record), _parser(record, version)
    module.Runtime = lambda _: types.SimpleNamespace(deserialize_cuda_engine=lambda plan: _engine(plan))
    module.LayerInformationFormat = types.SimpleNamespace(JSON="json")
    return module


def _flags(members: dict[str, int]) -> Any:
    kind: Any = enum.IntEnum
    return kind("Flag", members)


def _engine(plan: bytes) -> types.SimpleNamespace | None:
    inspector = types.SimpleNamespace(get_engine_information=lambda form: f"{form} of {plan.decode()}")
    return types.SimpleNamespace(create_engine_inspector=lambda: inspector) if plan == b"plan" else None


@pytest.fixture
def record() -> Record:
    return Record()


@pytest.fixture(params=list(FLAGS))
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, record: Record) -> str:
    monkeypatch.setitem(sys.modules, "tensorrt", _stand_in(request.param, record))
    return str(request.param)


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch, record: Record) -> Record:
    """JetPack 6.2."""
    monkeypatch.setitem(sys.modules, "tensorrt", _stand_in("10.3.0", record))
    return record


def _build(**settings: Any) -> Any:
    return build_engine(b"onnx", module="tensorrt", settings=BuildSettings(**settings))


def test_typing_follows_what_the_release_has(version: str, record: Record) -> None:
    build = _build()
    expected = {
        "8.6.2": ("weak", 0b01, ["INT8", "FP16"]),
        "10.3.0": ("weak", 0b01, ["INT8", "FP16"]),
        "10.12.0": ("strong", 0b11, []),
        "10.16.2": ("strong", 0b11, []),
        "11.4.1": ("strong", 0b01, []),
    }
    creation = [call[1] for call in record.calls if call[0] == "network"]
    flags = [call[1] for call in record.calls if call[0] == "flag"]
    assert (build.typing, *creation, flags) == expected[version]
    assert (build.plan, build.version, build.module) == (b"plan", version, "tensorrt")


def test_the_progress_monitor_is_used_where_it_exists(version: str, record: Record) -> None:
    fractions: list[float] = []
    build_engine(b"onnx", module="tensorrt", settings=BuildSettings(), progress=fractions.append)
    assert fractions == ([] if version == "8.6.2" else [0.5])
    assert (("step", True) in record.calls) == (version != "8.6.2")


def test_a_file_is_parsed_where_it_stands(orin: Record, tmp_path: Path) -> None:
    build_engine(tmp_path / "net.onnx", module="tensorrt", settings=BuildSettings())
    assert ("parse_from_file", str(tmp_path / "net.onnx")) in orin.calls
    orin.parser_errors = ["first"]
    with pytest.raises(GraphError, match="the parser refuses the graph"):
        build_engine(tmp_path / "net.onnx", module="tensorrt", settings=BuildSettings())


def test_legacy_flags_come_from_the_target(orin: Record) -> None:
    _build(legacy_flags=("INT8",))
    assert [call for call in orin.calls if call[0] == "flag"] == [("flag", "INT8")]


def test_workspace_is_in_bytes_and_optional(orin: Record) -> None:
    _build(workspace_mb=3)
    assert ("workspace", "workspace", 3 * 2**20) in orin.calls
    orin.calls.clear()
    _build()
    assert [call[0] for call in orin.calls] == ["network", "parse", "flag", "flag", "step"]


def test_the_profile_reaches_the_builder(orin: Record) -> None:
    orin.shape = (-1, 3)
    shapes = ShapeRange(input="x", minimum=(1, 3), optimum=(2, 3), maximum=(4, 3))
    _build(profile=(shapes,))
    assert ("profile", ("x", (1, 3), (2, 3), (4, 3))) in orin.calls


def test_a_profile_that_the_builder_refuses_is_said(orin: Record) -> None:
    orin.shape, orin.profile_index = (-1, 3), -1
    shapes = ShapeRange(input="x", minimum=(1, 3), optimum=(2, 3), maximum=(4, 3))
    with pytest.raises(GraphError, match="TensorRT engine: no engine"):
        _build(profile=(shapes,))


def test_a_timing_cache_of_another_board_is_started_again(orin: Record, tmp_path: Path) -> None:
    (tmp_path / "timing.cache").write_bytes(b"of another board")
    _build(timing_cache=tmp_path / "timing.cache")
    assert [call[1] for call in orin.calls if call[0] == "cache"] == [b"of another board", b""]
    assert (tmp_path / "timing.cache").read_bytes() == b"new cache"


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
    name = "node 7" if version == "8.6.2" else "conv Conv"
    with pytest.raises(GraphError, match=rf"\(2 errors\): {name}: first; {name}: second"):
        _build()


def test_warnings_are_kept(orin: Record) -> None:
    orin.log = [(Severity.WARNING, "slow layer"), (Severity.WARNING, "slow layer")]
    assert _build().warnings == ("slow layer",)


def test_a_machine_without_gpu_is_said(orin: Record) -> None:
    orin.builder_error = TypeError("pybind11::init(): factory function returned nullptr")
    with pytest.raises(UnavailableError, match=r"no builder: .*nullptr\n  allowed: a machine with a GPU"):
        _build()


def test_layers_are_read_as_json(orin: Record) -> None:
    assert inspect_engine(b"plan", module="tensorrt") == "json of plan"
    with pytest.raises(UnavailableError, match="the engine cannot be loaded"):
        inspect_engine(b"other", module="tensorrt")
