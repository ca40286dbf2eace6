"""How the engines of a package are built, the same on the host and on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from bitswitch_deploy.engines.bundle import holds_half
from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.engine_record import EngineRecord, Recipe
from bitswitch_deploy.engines.shape_range import ShapeRange, batch_profile, shape_texts
from bitswitch_deploy.engines.tensorrt_config import BuildSettings, flags_of
from bitswitch_deploy.engines.tensorrt_engine import EngineBuild
from bitswitch_deploy.engines.tensorrt_module import Module, load_module, release_of
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.package.files import hash_bytes
from bitswitch_deploy.pipeline.graph_files import GraphRole
from bitswitch_deploy.target import Target

# Engines take every batch size in this range and are tuned for the middle one, the usual one on the edge.
BATCH_RANGE = (1, 1, 32)
# DLA takes static shapes only.
_DLA_BATCH = (1, 1, 1)
MAX_TIMEOUT_MIN = 7 * 24 * 60
_HALF_FLAG = "FP16"
_TOOL = "bitswitch-deploy"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What a user may ask of a build. dla: use DLA core 0.

    fp32: neither float16 nor TF32, which has no more bits, in the quantized engines.

    workspace_mb: None takes the target's limit. timeout_min: for each engine.
    """

    fp32: bool = False
    dla: bool = False
    workspace_mb: int | None = None
    timeout_min: int = 120


def engine_module(target: Target) -> Module:
    """The vendor's module that builds and runs a target's engines.

    Raises:
        ValueError: the target has none.
    """
    if target.engine.name == "onnxruntime":
        raise ValueError("onnxruntime has no engines to build")
    return target.engine.name


def engine_profile(inputs: Sequence[ValueSpec], options: EngineOptions) -> tuple[ShapeRange, ...]:
    """Shapes that engines are built for.

    Raises:
        UsageError: another dimension than the batch is open.
    """
    return batch_profile(inputs, batch=_DLA_BATCH if options.dla else BATCH_RANGE)


def build_settings(
    label: str, role: GraphRole, target: Target, profile: tuple[ShapeRange, ...], options: EngineOptions
) -> BuildSettings:
    """Settings of one engine, without a timing cache. The reference is always float16, whatever `options.fp32` says."""
    flags: tuple[str, ...] = target.engine.builder_flags_legacy
    is_precise = options.fp32 and role != "reference"
    if role == "reference":
        flags = (_HALF_FLAG,)
    elif is_precise:
        flags = tuple(flag for flag in flags if flag != _HALF_FLAG)
    return BuildSettings(
        label=label,
        workspace_mb=target.limits.max_workspace_mb if options.workspace_mb is None else options.workspace_mb,
        compute_capabilities=target.engine.compute_capabilities,
        profile=profile,
        legacy_flags=flags,
        tf32=not is_precise,
        dla_core=0 if options.dla else None,
        limit_s=60 * options.timeout_min,
    )


def check_fp32(model: onnx.ModelProto, *, where: str) -> None:
    """Refuse `--fp32` where the graph itself says float16, which no builder flag can take back.

    A strongly typed network is built as it says, a weakly typed one with such tensors not at all without FP16.

    Raises:
        UsageError: the graph holds float16.
    """
    if holds_half(model.graph):
        raise UsageError(
            where=where,
            got="--fp32 with a graph whose float layers are float16",
            allowed="a package exported with --strict, whose float layers are float32",
            do="leave out --fp32, or export with --strict",
        )


def recipe_of(graph_hashes: tuple[str, ...], module: Module, settings: BuildSettings, device: DeviceFacts) -> Recipe:
    """What decides the bytes of an engine. tensorrt_rtx builds without a device, so none is part of it."""
    trt = load_module(module)
    return Recipe(
        graph_sha256=graph_hashes,
        module=module,
        version=release_of(str(trt.__version__)),
        flags=flags_of(trt, settings),
        shapes=shape_texts(settings.profile),
        workspace_mb=settings.workspace_mb,
        dla_core=settings.dla_core,
        device=device if module == "tensorrt" else None,
        compute_capabilities=settings.compute_capabilities,
    )


def record_of(label: str, build: EngineBuild, recipe: Recipe, timing_cache_sha256: str | None) -> EngineRecord:
    """The record that goes beside an engine."""
    return EngineRecord(
        label=label,
        sha256=hash_bytes(build.plan),
        size_bytes=len(build.plan),
        tool=_TOOL,
        recipe=recipe,
        timing_cache_sha256=timing_cache_sha256,
    )


def graph_inputs(path: Path) -> tuple[ValueSpec, ...]:
    """Inputs of a graph of a package."""
    model = onnx.load(str(path), load_external_data=False)
    kinds = onnx.TensorProto.DataType
    return tuple(
        ValueSpec(
            name=value.name,
            dtype=kinds.Name(value.type.tensor_type.elem_type).lower(),
            shape=tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in model.graph.input
    )
