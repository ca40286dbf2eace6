"""Build TensorRT engines: one code path for `tensorrt` and `tensorrt_rtx`.

What a release can do is read off its attributes, never off enum integers: those moved in 11.0.
Quantization is explicit, by the graph's Q and DQ nodes: no calibrator, no dynamic ranges. From 10.12 on networks are
strongly typed, so the graph's own types decide what runs in float16; before, the builder has flags for it.
Proven on a CPU with TensorRT for RTX 1.7.1. The paths of `tensorrt` 8.5 to 11.4 follow the vendor's headers and run
against a stand-in only: no one has seen them on a board yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitswitch_deploy.atomic_file import check_writable, replace_file
from bitswitch_deploy.engines.build_watch import GRACE_S, BuildWatch
from bitswitch_deploy.engines.deferred_signals import deferred_signals, system_signals
from bitswitch_deploy.engines.engine_layers import EngineLayer, layers_of_json, layers_of_log
from bitswitch_deploy.engines.shape_range import check_profile
from bitswitch_deploy.engines.tensorrt_config import BuildSettings, Typing, configure, network_typing
from bitswitch_deploy.engines.tensorrt_log import (
    LogMessage,
    build_failure,
    check_unsigned_codes,
    errors_of,
    warnings_of,
)
from bitswitch_deploy.engines.tensorrt_module import Module, load_module, recording_logger, register_plugins
from bitswitch_deploy.engines.timing_cache import TIMING_CACHE_SUFFIX, read_timing_cache
from bitswitch_deploy.errors import GraphError, OutputError, UnavailableError, UsageError

Progress = Callable[[float], None]

# The calls exist, do nothing and warn that they are deprecated since 1.2.
_NO_TIMING_CACHE = ("tensorrt_rtx",)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBuild:
    """A serialized engine and what to record about it.

    typing: how layer precisions were decided. layers: of the engine, read back; empty where that was not possible.
    gpu_fallback: layers of the network that the DLA core cannot run. notes: what the user should know.
    """

    plan: bytes
    module: Module
    version: str
    typing: Typing
    warnings: tuple[str, ...]
    layers: tuple[EngineLayer, ...] = ()
    gpu_fallback: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def build_engine(
    model: bytes | Path, *, module: Module, settings: BuildSettings, progress: Progress | None = None
) -> EngineBuild:
    """Build the engine of an ONNX graph, serialized or as a file; `progress` is told the fraction done, 0..1.

    Raises:
        UnavailableError: the module, a GPU or DLA that this build needs, or memory is not here; or it takes too long.
        GraphError: the parser or builder refuses the graph (every parser error is listed), or would read UINT8 as INT8.
        UsageError: a setting does not go with the module or the graph.
        OutputError: the timing cache cannot be read, or not be written, which is seen before the build.
    """
    trt = load_module(module)
    where = f"{settings.label}: {trt.__name__} {trt.__version__}"
    messages: list[LogMessage] = []
    logger = recording_logger(trt, messages)
    builder = _builder(trt, logger, where)
    typing = network_typing(trt)
    register_plugins(trt, logger)
    network = builder.create_network(_creation_flags(trt, typing))
    _parse(trt, network, logger, model, messages, where)
    config = builder.create_builder_config()
    _set_shapes(builder, config, network, settings, messages, where)
    gpu_fallback = configure(trt, builder, config, network, settings, where=where)
    notes = _load_timing_cache(trt, config, settings.timing_cache, where)
    can_stop = hasattr(trt, "IProgressMonitor")
    watch = BuildWatch(settings.limit_s, where=where, grace_s=GRACE_S if can_stop else 0)
    try:
        plan = _built(trt, builder, network, config, progress, watch=watch)
    except MemoryError as exc:  # std::bad_alloc
        messages.append(LogMessage(severity="ERROR", text="out of memory on the host"))
        raise build_failure(messages, where=where) from exc
    if plan is None:
        raise build_failure(messages, where=where)
    notes += _save_timing_cache(config, settings.timing_cache)
    layers, unreadable = _read_back(bytes(plan), module, messages)
    return EngineBuild(
        plan=bytes(plan),
        module=module,
        version=str(trt.__version__),
        typing=typing,
        warnings=warnings_of(messages),
        layers=layers,
        gpu_fallback=gpu_fallback,
        notes=(*notes, *unreadable),
    )


def inspect_engine(plan: bytes, *, module: Module) -> str:
    """Layers of a built engine as the vendor's JSON. Loading an engine takes the GPU that it was built for.

    Raises:
        UnavailableError: the module or the GPU is not here, or the engine is for another GPU or release.
    """
    trt = load_module(module)
    messages: list[LogMessage] = []
    # a variable of its own: the runtime must outlive the engine
    logger = recording_logger(trt, messages)
    register_plugins(trt, logger)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise UnavailableError(
            where=f"{trt.__name__} {trt.__version__}",
            got=f"the engine cannot be loaded: {'; '.join(errors_of(messages))}",
            allowed="the GPU and TensorRT release that the engine was built for",
            do="inspect it on the device; nothing about its layers can be read without that GPU",
        )
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _builder(trt: Any, logger: Any, where: str) -> Any:
    try:
        return trt.Builder(logger)
    except (RuntimeError, TypeError) as exc:
        # pybind11 turns the null pointer of a machine without a GPU into a TypeError
        allowed = "a machine with a GPU that this TensorRT supports"
        do = "build on the device; for RTX GPUs use tensorrt_rtx, which needs none"
        raise UnavailableError(where=where, got=f"no builder: {exc}", allowed=allowed, do=do) from exc


def _creation_flags(trt: Any, typing: Typing) -> int:
    kinds = trt.NetworkDefinitionCreationFlag
    # EXPLICIT_BATCH: needed up to 8.x, ignored in 10, gone in 11
    wanted = [getattr(kinds, "EXPLICIT_BATCH", None), kinds.STRONGLY_TYPED if typing == "strong" else None]
    return sum(1 << int(flag) for flag in wanted if flag is not None)


def _parse(trt: Any, network: Any, logger: Any, model: bytes | Path, messages: list[LogMessage], where: str) -> None:
    parser = trt.OnnxParser(network, logger)
    # external data is found next to a file only; a path is bytes, which need not be text
    if not (parser.parse(model) if isinstance(model, bytes) else parser.parse_from_file(os.fsencode(model))):
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise GraphError(
            where=where,
            got=f"the parser refuses the graph ({len(errors)} errors): " + "; ".join(errors),
            allowed="ONNX that this TensorRT imports",
            do="lower the graph for a TensorRT target, or correct the nodes named here",
        )
    check_unsigned_codes(messages, where=where)


def _parser_error(error: Any) -> str:
    # node_name and node_operator came with 8.6; before there is a number only
    name = error.node_name() if hasattr(error, "node_name") else f"node {error.node()}"
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    return f"{name or 'graph'} {operator}".strip() + f": {error.desc()}"


def _set_shapes(
    builder: Any, config: Any, network: Any, settings: BuildSettings, messages: list[LogMessage], where: str
) -> None:
    """Sizes of open dimensions: a profile; for DLA, which takes no open ones, those of the network itself.

    Before the builder is asked which layers DLA runs, since it runs none with an open dimension.
    """
    profile = settings.profile
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {str(value.name): tuple(None if dim < 0 else int(dim) for dim in value.shape) for value in inputs}
    check_profile(shapes, profile, where=where)
    if settings.dla_core is not None:
        sizes = {entry.input: entry.optimum for entry in profile}
        for value in inputs:
            if str(value.name) in sizes:
                value.shape = sizes[str(value.name)]
        return
    if not profile:
        return
    vendor_profile = builder.create_optimization_profile()
    for entry in profile:
        vendor_profile.set_shape(entry.input, entry.minimum, entry.optimum, entry.maximum)
    if config.add_optimization_profile(vendor_profile) < 0:
        raise build_failure(messages, where=where)


def _built(trt: Any, builder: Any, network: Any, config: Any, progress: Progress | None, *, watch: BuildWatch) -> Any:
    """The plan, or None. A signal ends the build: at the next step where steps are announced, else at once.

    Where they are not, a handler in Python would run after the build, minutes later; the system's own ends the process.
    Nothing is lost by that: files appear whole or not at all, and finished engines are kept.

    Raises:
        UnavailableError: it took longer than it may.
    """
    if not hasattr(trt, "IProgressMonitor"):
        with system_signals(), watch:
            return builder.build_serialized_network(network, config)
    with deferred_signals() as pending, watch:
        _attach_monitor(trt, config, progress, lambda: bool(pending) or watch.is_stop_wanted)
        plan = builder.build_serialized_network(network, config)
    if watch.has_timed_out and plan is None:
        raise watch.timeout()
    return plan


def _attach_monitor(trt: Any, config: Any, progress: Progress | None, is_stop_wanted: Callable[[], bool]) -> None:
    """Report progress and stop when that is wanted."""
    steps: dict[str, int] = {}

    def phase_start(_: object, phase: str, parent: str | None, count: int) -> None:
        if parent is None:
            steps[phase] = count

    def step_complete(_: object, phase: str, step: int) -> bool:
        if progress is not None and phase in steps:
            progress((step + 1) / max(steps[phase], 1))
        return not is_stop_wanted()

    def phase_finish(_: object, phase: str) -> None:
        # the last step of a phase is not announced on its own; a cancelled phase finishes as well
        if progress is not None and phase in steps and not is_stop_wanted():
            progress(1.0)

    methods = {"phase_start": phase_start, "step_complete": step_complete, "phase_finish": phase_finish}
    config.progress_monitor = type("Monitor", (trt.IProgressMonitor,), methods)()


def _load_timing_cache(trt: Any, config: Any, path: Path | None, where: str) -> tuple[str, ...]:
    """Hand the cache to the builder; a note where it cannot use it."""
    if path is None:
        return ()
    if trt.__name__ in _NO_TIMING_CACHE:
        do = "leave the timing cache out"
        raise UsageError(where=where, got=f"timing cache {path}", allowed="none: it has no timing cache", do=do)
    content = read_timing_cache(path)
    check_writable(path)
    # None where it is damaged: trtexec, which takes the same file, may have been killed while it wrote it
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return ()
    if path.suffix != TIMING_CACHE_SUFFIX:
        raise UsageError(
            where="--timing-cache",
            got=f"{path}, which is no timing cache, or of another device or TensorRT",
            allowed=f"a cache of this device, a new file, or one named *{TIMING_CACHE_SUFFIX}, which is started again",
            do="name another file: this one stays as it is",
        )
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    reason = "damaged" if cache is None else "of another device or TensorRT"
    return (f"timing cache {path} is {reason}: not used, started again",)


def _save_timing_cache(config: Any, path: Path | None) -> tuple[str, ...]:
    """Keep what was measured; a note where that fails, because the engine is done."""
    if path is None:
        return ()
    try:
        replace_file(path, bytes(config.get_timing_cache().serialize()))
    except OutputError as exc:
        return (f"timing cache {path} {exc.got}: the next build measures everything again",)
    return ()


def _read_back(
    plan: bytes, module: Module, messages: list[LogMessage]
) -> tuple[tuple[EngineLayer, ...], tuple[str, ...]]:
    """The engine's layers, and a note where they cannot be read.

    The RTX builder lists them in its log, so no GPU is needed; the engine inspector must load the engine.
    """
    listed = layers_of_log(message.text for message in messages)
    if listed:
        return listed, ()
    try:
        return layers_of_json(inspect_engine(plan, module=module), where="engine inspector"), ()
    except (UnavailableError, GraphError) as exc:
        return (), (f"layers not read back: {exc.got}",)
