"""Build TensorRT engines: one code path for `tensorrt` and `tensorrt_rtx`.

What a release can do is read off its attributes, never off enum integers: those moved in 11.0 (notes 0.6, 2.5).
Proven on a CPU with TensorRT for RTX 1.7.1. The paths of `tensorrt` 8.6, 10.x and 11.x follow the vendor's headers and
run against a stand-in only: no one has seen them on a board yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.engines.deferred_signals import deferred_signals
from bitswitch_deploy.engines.shape_range import ShapeRange, check_profile
from bitswitch_deploy.engines.tensorrt_log import (
    LogMessage,
    build_failure,
    check_unsigned_codes,
    errors_of,
    warnings_of,
)
from bitswitch_deploy.engines.tensorrt_module import Module, load_module, recording_logger
from bitswitch_deploy.errors import GraphError, OutputError, UnavailableError, UsageError

Progress = Callable[[float], None]

_WHERE = "TensorRT engine"
# The calls exist, do nothing and warn that they are deprecated since 1.2.
_NO_TIMING_CACHE = ("tensorrt_rtx",)
# From here on NVIDIA deprecates weak typing and both ways exist; before, Q/DQ graphs needed precision flags.
_STRONG_TYPING_SINCE = (10, 12)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """How an engine is built.

    workspace_mb: memory that the builder may try tactics in; None leaves the vendor's default.
    compute_capabilities: GPUs to build for, `SM89`; tensorrt_rtx only, empty means any that it supports.
    profile: shapes of the inputs that leave dimensions open.
    legacy_flags: builder flags of weakly typed networks (TensorRT before 10.12), ignored by newer ones.
    timing_cache: file to read and to update, which makes the next build faster; tensorrt only.
    """

    workspace_mb: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    profile: tuple[ShapeRange, ...] = ()
    legacy_flags: tuple[str, ...] = ("INT8", "FP16")
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBuild:
    """A serialized engine and what to record about it. typing: how layer precisions were decided."""

    plan: bytes
    module: Module
    version: str
    typing: Literal["weak", "strong"]
    warnings: tuple[str, ...]


def build_engine(
    model: bytes | Path, *, module: Module, settings: BuildSettings, progress: Progress | None = None
) -> EngineBuild:
    """Build the engine of an ONNX graph, serialized or as a file; `progress` is told the fraction done, 0..1.

    Raises:
        UnavailableError: the module, or a GPU that this build needs, is not here.
        GraphError: the parser or builder refuses the graph (every parser error is listed), or would read UINT8 as INT8.
        UsageError: a setting does not go with the module or the graph.
        OutputError: the timing cache cannot be written.
    """
    trt = load_module(module)
    messages: list[LogMessage] = []
    logger = recording_logger(trt, messages)
    builder = _builder(trt, logger)
    typing = _typing(trt)
    network = builder.create_network(_creation_flags(trt, typing))
    _parse(trt, network, logger, model, messages)
    config = builder.create_builder_config()
    _configure(trt, config, settings, typing)
    _add_profile(builder, config, network, settings.profile, messages)
    with deferred_signals() as pending:
        _attach_monitor(trt, config, progress, pending)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise build_failure(messages, where=_where(trt))
    _save_timing_cache(config, settings.timing_cache)
    return EngineBuild(
        plan=bytes(plan), module=module, version=str(trt.__version__), typing=typing, warnings=warnings_of(messages)
    )


def inspect_engine(plan: bytes, *, module: Module) -> str:
    """Layers of a built engine as the vendor's JSON. Loading an engine takes the GPU that it was built for.

    Raises:
        UnavailableError: the module or the GPU is not here, or the engine is for another GPU or release.
    """
    trt = load_module(module)
    messages: list[LogMessage] = []
    # a variable of its own: the runtime must outlive the engine
    runtime = trt.Runtime(recording_logger(trt, messages))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise UnavailableError(
            where=_where(trt),
            got=f"the engine cannot be loaded: {'; '.join(errors_of(messages))}",
            allowed="the GPU and TensorRT release that the engine was built for",
            do="inspect it on the device; nothing about its layers can be read without that GPU",
        )
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _where(trt: Any) -> str:
    return f"{trt.__name__} {trt.__version__}"


def _builder(trt: Any, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except (RuntimeError, TypeError) as exc:
        # pybind11 turns the null pointer of a machine without a GPU into a TypeError
        allowed = "a machine with a GPU that this TensorRT supports"
        do = "build on the device; for RTX GPUs use tensorrt_rtx, which needs none"
        raise UnavailableError(where=_where(trt), got=f"no builder: {exc}", allowed=allowed, do=do) from exc


def _typing(trt: Any) -> Literal["weak", "strong"]:
    if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        return "weak"
    if not hasattr(trt.BuilderFlag, "INT8"):
        return "strong"
    release = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
    return "strong" if release >= _STRONG_TYPING_SINCE else "weak"


def _creation_flags(trt: Any, typing: Literal["weak", "strong"]) -> int:
    kinds = trt.NetworkDefinitionCreationFlag
    # EXPLICIT_BATCH: needed up to 8.x, ignored in 10, gone in 11
    wanted = [getattr(kinds, "EXPLICIT_BATCH", None), kinds.STRONGLY_TYPED if typing == "strong" else None]
    return sum(1 << int(flag) for flag in wanted if flag is not None)


def _parse(trt: Any, network: Any, logger: Any, model: bytes | Path, messages: list[LogMessage]) -> None:
    parser = trt.OnnxParser(network, logger)
    # external data is found next to a file only
    if not (parser.parse(model) if isinstance(model, bytes) else parser.parse_from_file(str(model))):
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise GraphError(
            where=_where(trt),
            got=f"the parser refuses the graph ({len(errors)} errors): " + "; ".join(errors),
            allowed="ONNX that this TensorRT imports",
            do="lower the graph for a TensorRT target, or correct the nodes named here",
        )
    check_unsigned_codes(messages, where=_where(trt))


def _parser_error(error: Any) -> str:
    # node_name and node_operator came with 8.6; before there is a number only
    name = error.node_name() if hasattr(error, "node_name") else f"node {error.node()}"
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    return f"{name or 'graph'} {operator}".strip() + f": {error.desc()}"


def _configure(trt: Any, config: Any, settings: BuildSettings, typing: str) -> None:
    if settings.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    if typing == "weak":
        for name in settings.legacy_flags:
            config.set_flag(getattr(trt.BuilderFlag, name))
    _set_compute_capabilities(trt, config, settings.compute_capabilities)
    _load_timing_cache(trt, config, settings.timing_cache)


def _set_compute_capabilities(trt: Any, config: Any, names: tuple[str, ...]) -> None:
    if not names:
        return
    if not hasattr(config, "num_compute_capabilities"):
        raise UsageError(
            where=_where(trt),
            got=f"compute capabilities {', '.join(names)}",
            allowed="none: this TensorRT builds for the GPU that it runs on",
            do="leave compute_capabilities out, or use tensorrt_rtx",
        )
    known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    for name in names:
        if name not in known:
            do = "correct engine.compute_capabilities of the target"
            raise UsageError(where=_where(trt), got=f"compute capability {name!r}", allowed=", ".join(known), do=do)
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            do = "correct engine.compute_capabilities of the target"
            raise UsageError(where=_where(trt), got=f"{name} refused", allowed="GPUs that fit together", do=do)


def _add_profile(
    builder: Any, config: Any, network: Any, profile: tuple[ShapeRange, ...], messages: list[LogMessage]
) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {str(value.name): tuple(None if dim < 0 else int(dim) for dim in value.shape) for value in inputs}
    check_profile(shapes, profile, where=_WHERE)
    if not profile:
        return
    vendor_profile = builder.create_optimization_profile()
    for entry in profile:
        vendor_profile.set_shape(entry.input, entry.minimum, entry.optimum, entry.maximum)
    if config.add_optimization_profile(vendor_profile) < 0:
        raise build_failure(messages, where=_WHERE)


def _attach_monitor(trt: Any, config: Any, progress: Progress | None, pending: list[int]) -> None:
    """Report progress and stop at a pending signal, where the release has IProgressMonitor (8.6 has not)."""
    if not hasattr(trt, "IProgressMonitor"):
        return
    steps: dict[str, int] = {}

    def phase_start(_: object, phase: str, parent: str | None, count: int) -> None:
        if parent is None:
            steps[phase] = count

    def step_complete(_: object, phase: str, step: int) -> bool:
        if progress is not None and phase in steps:
            progress((step + 1) / max(steps[phase], 1))
        return not pending

    def phase_finish(_: object, phase: str) -> None:
        # the last step of a phase is not announced on its own; a cancelled phase finishes as well
        if progress is not None and phase in steps and not pending:
            progress(1.0)

    methods = {"phase_start": phase_start, "step_complete": step_complete, "phase_finish": phase_finish}
    config.progress_monitor = type("Monitor", (trt.IProgressMonitor,), methods)()


def _load_timing_cache(trt: Any, config: Any, path: Path | None) -> None:
    if path is None:
        return
    if trt.__name__ in _NO_TIMING_CACHE:
        do = "leave the timing cache out"
        raise UsageError(where=_where(trt), got=f"timing cache {path}", allowed="none: it has no timing cache", do=do)
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as exc:
        do = "correct its permissions or name another file"
        raise OutputError(where=str(path), got=f"not readable: {exc.strerror}", allowed="a cache file", do=do) from exc
    # A cache of another device or release is of no use here: start again; the vendor's warning is reported.
    if not config.set_timing_cache(config.create_timing_cache(content), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _save_timing_cache(config: Any, path: Path | None) -> None:
    if path is not None:
        replace_file(path, bytes(config.get_timing_cache().serialize()))
