"""A TensorRT that is not there: builder, parser and inspector of several releases, as stand-ins that record calls."""

from __future__ import annotations

import enum
import json
import os
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

FLAGS = {
    # `__version__` has four numbers since 10.8
    # name: (creation flags, builder flags); the integers are those of the headers, and moved in 11.0
    "8.5.2": ({"EXPLICIT_BATCH": 0}, {"FP16": 0, "INT8": 1, "GPU_FALLBACK": 3, "TF32": 7}),
    "8.6.2": ({"EXPLICIT_BATCH": 0}, {"FP16": 0, "INT8": 1, "GPU_FALLBACK": 3, "TF32": 7}),
    "10.0.0b6": ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, {"FP16": 0, "INT8": 1, "GPU_FALLBACK": 3, "TF32": 7}),
    "10.3.0": ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, {"FP16": 0, "INT8": 1, "GPU_FALLBACK": 3, "TF32": 7}),
    "10.12.0.36": ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, {"FP16": 0, "INT8": 1, "GPU_FALLBACK": 3, "TF32": 7}),
    "10.16.2.10": ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, {"FP16": 0, "INT8": 1, "GPU_FALLBACK": 3, "TF32": 7}),
    "11.4.1.106": ({"STRONGLY_TYPED": 0}, {"REFIT": 0, "GPU_FALLBACK": 1, "TF32": 5}),
}


class Severity(enum.Enum):
    """Names are the vendor's."""

    ERROR = 1
    WARNING = 2
    VERBOSE = 4


@dataclass
class Record:
    """What was called, and how the stand-in answers."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    log: list[tuple[Severity, str]] = field(default_factory=list)
    parser_errors: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = (1, 3)
    input: str = "x"
    plan: bytes | None = b"plan"
    # in this order, for builds that differ
    plans: list[bytes | None] = field(default_factory=list)
    profile_index: int = 0
    builder_error: Exception | None = None
    build_error: BaseException | None = None
    dla_cores: int = 0
    # name of each layer of the network, and whether the DLA runs it
    network: Mapping[str, bool] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)

    def flags(self) -> list[str]:
        return [call[1] for call in self.calls if call[0] == "flag"]


def install(monkeypatch: pytest.MonkeyPatch, version: str, record: Record) -> None:
    """Put the stand-in in the place of `tensorrt`."""
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in(version, record))


def _config(record: Record) -> type:
    class Config:
        progress_monitor = None
        profiling_verbosity = "layer names only"
        default_device_type = "gpu"
        DLA_core = -1

        def set_memory_pool_limit(self, pool: object, size: int) -> None:
            record.calls.append(("workspace", pool, size))

        def set_flag(self, flag: enum.IntEnum) -> None:
            record.calls.append(("flag", flag.name))

        def clear_flag(self, flag: enum.IntEnum) -> None:
            record.calls.append(("clear", flag.name))

        def can_run_on_DLA(self, layer: Any) -> bool:
            record.calls.append(("asked about", layer.name, tuple(layer.input.shape)))
            return record.network[layer.name]

        def create_timing_cache(self, content: bytes) -> bytes | None:
            return None if content == b"cut sh" else content

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            if not isinstance(cache, bytes):
                raise TypeError("set_timing_cache(): incompatible function arguments")
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
        num_DLA_cores = record.dla_cores

        def __init__(self, logger: Any) -> None:
            if record.builder_error is not None:
                raise record.builder_error
            self.logger = logger

        def create_network(self, flags: int) -> types.SimpleNamespace:
            record.calls.append(("network", flags))
            value = types.SimpleNamespace(name=record.input, shape=record.shape)
            layers = [types.SimpleNamespace(name=name, input=value) for name in record.network]
            return types.SimpleNamespace(
                num_inputs=1, get_input=lambda _: value, num_layers=len(layers), get_layer=layers.__getitem__
            )

        def create_builder_config(self) -> object:
            return _config(record)()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: object, config: Any) -> bytes | None:
            record.calls.append(("build", config.profiling_verbosity, config.default_device_type, config.DLA_core))
            for severity, text in record.log:
                self.logger.log(severity, text)
            if record.build_error is not None:
                raise record.build_error
            if config.progress_monitor is not None:
                config.progress_monitor.phase_start("build", None, 2)
                record.calls.append(("step", config.progress_monitor.step_complete("build", 0)))
            return record.plans.pop(0) if record.plans else record.plan

    return Builder


def _parser(record: Record, version: str) -> type:
    class Parser:
        num_errors = property(lambda _: len(record.parser_errors))

        def __init__(self, network: object, logger: object) -> None:
            pass

        def parse(self, model: bytes) -> bool:
            record.calls.append(("parse", model))
            return not record.parser_errors

        def parse_from_file(self, path: bytes) -> bool:
            record.calls.append(("parse_from_file", os.fsdecode(path)))
            return not record.parser_errors

        def get_error(self, index: int) -> types.SimpleNamespace:
            error = types.SimpleNamespace(desc=lambda: record.parser_errors[index], node=lambda: 7)
            if not version.startswith("8."):
                error.node_name, error.node_operator = (lambda: "conv"), (lambda: "Conv")
            return error

    return Parser


def stand_in(version: str, record: Record) -> Any:
    """Make the module of one release."""
    creation, builder = FLAGS[version]
    module: Any = types.ModuleType("tensorrt")
    module.__version__ = version
    module.ILogger = type("ILogger", (), {})
    if not version.startswith("8."):
        module.IProgressMonitor = type("IProgressMonitor", (), {})
    module.NetworkDefinitionCreationFlag, module.BuilderFlag = _flags(creation), _flags(builder)
    module.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
    module.ProfilingVerbosity = types.SimpleNamespace(DETAILED="detailed")
    module.DeviceType = types.SimpleNamespace(DLA="dla")
    module.init_libnvinfer_plugins = lambda logger, namespace: record.calls.append(("plugins", namespace))
    module.Builder, module.OnnxParser = _builder(record), _parser(record, version)
    module.Runtime = lambda logger: types.SimpleNamespace(
        deserialize_cuda_engine=lambda plan: _engine(plan, record, logger)
    )
    module.LayerInformationFormat = types.SimpleNamespace(JSON="json")
    return module


def _flags(members: dict[str, int]) -> Any:
    kind: Any = enum.IntEnum
    return kind("Flag", members)


def _engine(plan: bytes, record: Record, logger: Any) -> types.SimpleNamespace | None:
    if not plan.startswith(b"plan"):
        logger.log(Severity.ERROR, "not a serialized engine")
        return None
    inspector = types.SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": record.layers}))
    return types.SimpleNamespace(create_engine_inspector=lambda: inspector)
