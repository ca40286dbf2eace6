"""How a TensorRT build is configured: precision, memory, GPUs, DLA. No vendor import: the module is handed in.

Every call is guarded by an attribute of the module that is there, see tensorrt_engine.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitswitch_deploy.engines.shape_range import ShapeRange
from bitswitch_deploy.engines.tensorrt_module import release_of
from bitswitch_deploy.errors import UnavailableError, UsageError

Typing = Literal["weak", "strong"]

# From here on NVIDIA deprecates weak typing and both ways exist; before, Q/DQ graphs needed precision flags.
_STRONG_TYPING_SINCE = (10, 12)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """How an engine is built.

    label: names the engine in messages, `w4`.
    workspace_mb: memory that the builder may try tactics in; None leaves the vendor's default.
    compute_capabilities: GPUs to build for, `SM89`; tensorrt_rtx only, empty means any that it supports.
    profile: shapes of the inputs that leave dimensions open.
    legacy_flags: builder flags of weakly typed networks (TensorRT before 10.12), ignored by newer ones.
    tf32: whether float32 layers may be computed in TF32, which has the 10 bits of float16.
    timing_cache: file to read and to update, which makes the next build faster; tensorrt only.
    dla_core: run what it can on this DLA core and the rest on the GPU; None uses the GPU alone.
    limit_s: seconds that the build may take, by default as long as build_on_device.sh gives an engine.
    """

    label: str = "engine"
    workspace_mb: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    profile: tuple[ShapeRange, ...] = ()
    legacy_flags: tuple[str, ...] = ("INT8", "FP16")
    tf32: bool = True
    timing_cache: Path | None = None
    dla_core: int | None = None
    limit_s: float = 120 * 60


def network_typing(trt: Any) -> Typing:
    """How networks of this module decide the types of their layers."""
    if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        return "weak"
    if not hasattr(trt.BuilderFlag, "INT8"):
        return "strong"
    release = tuple(int(part) for part in release_of(str(trt.__version__)).split("."))
    return "strong" if release >= _STRONG_TYPING_SINCE else "weak"


def flags_of(trt: Any, settings: BuildSettings) -> tuple[str, ...]:
    """Names of what decides precision and device of a build, sorted, as they are recorded."""
    flags = {"STRONGLY_TYPED"} if network_typing(trt) == "strong" else set(settings.legacy_flags)
    if settings.dla_core is not None:
        flags.add("GPU_FALLBACK")
    if not settings.tf32:
        flags.add("NO_TF32")
    return tuple(sorted(flags))


def configure(
    trt: Any, builder: Any, config: Any, network: Any, settings: BuildSettings, *, where: str
) -> tuple[str, ...]:
    """Set up `config` for `network`; return the layers that the DLA core of the settings leaves to the GPU.

    Raises:
        UsageError: a setting does not go with the module.
        UnavailableError: there is no such DLA core.
    """
    if settings.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    if network_typing(trt) == "weak":
        for name in settings.legacy_flags:
            config.set_flag(getattr(trt.BuilderFlag, name))
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    # the engine inspector says nothing about types otherwise
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_compute_capabilities(trt, config, settings.compute_capabilities, where)
    if settings.dla_core is None:
        return ()
    return _use_dla(trt, builder, config, network, settings.dla_core, where)


def _use_dla(trt: Any, builder: Any, config: Any, network: Any, core: int, where: str) -> tuple[str, ...]:
    cores = int(getattr(builder, "num_DLA_cores", 0))
    if core >= cores:
        got, do = f"DLA core {core}, and TensorRT finds {cores}", "leave out --dla"
        raise UnavailableError(where=where, got=got, allowed="a DLA core that this machine has", do=do)
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return tuple(str(layer.name) for layer in layers if not config.can_run_on_DLA(layer))


def _set_compute_capabilities(trt: Any, config: Any, names: tuple[str, ...], where: str) -> None:
    if not names:
        return
    if not hasattr(config, "num_compute_capabilities"):
        raise UsageError(
            where=where,
            got=f"compute capabilities {', '.join(names)}",
            allowed="none: this TensorRT builds for the GPU that it runs on",
            do="leave compute_capabilities out, or use tensorrt_rtx",
        )
    known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    for name in names:
        if name not in known:
            do = "correct engine.compute_capabilities of the target"
            raise UsageError(where=where, got=f"compute capability {name!r}", allowed=", ".join(known), do=do)
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            do = "correct engine.compute_capabilities of the target"
            raise UsageError(where=where, got=f"{name} refused", allowed="GPUs that fit together", do=do)
