"""From lowered graphs to engines, or to what builds them where they can be built. Nothing is skipped without a word."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitswitch_deploy.engines.bundle import BUILD_FOLDER, SCRIPT, write_bundle
from bitswitch_deploy.engines.optimized_operators import optimized_operators
from bitswitch_deploy.engines.shape_range import ShapeRange, batch_profile
from bitswitch_deploy.engines.tensorrt_engine import BuildSettings, EngineBuild, build_engine
from bitswitch_deploy.engines.tensorrt_module import Module
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.package.writer import PackageWriter
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.report.export_report import NotDone
from bitswitch_deploy.target import Target

# Engines take every batch size in this range and are tuned for the middle one, the usual one on the edge.
BATCH_RANGE = (1, 1, 32)
ENGINE_FOLDER = "engines"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFile:
    """One lowered graph of a package: label of its widths, path in the package, bytes with a data file of its own.

    is_large: its weights are not in the graph, and too many to be loaded on this host without being asked to.
    """

    label: str
    path: str
    size_bytes: int
    is_large: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutcome:
    """What became of the engines: a text for each graph, what was not done, the versions of the tools used.

    built_on_device: folder of the package that `build` or the bundle's script fills later; None without engines.
    """

    texts: tuple[str, ...]
    not_done: tuple[NotDone, ...]
    tools: tuple[tuple[str, str], ...] = ()
    built_on_device: str | None = None


def make_engines(
    writer: PackageWriter, graphs: Sequence[GraphFile], target: Target, inputs: Sequence[ValueSpec], progress: Progress
) -> EngineOutcome:
    """Build the engines that can be built on this host into the package, and the bundle for those that cannot.

    Raises:
        GraphError: the engine's parser or builder refuses a graph.
        OutputError: the package cannot be written.
    """
    if target.engine.name == "onnxruntime":
        return _onnxruntime_outcome(writer.folder, graphs, target)
    profile = batch_profile(inputs, batch=BATCH_RANGE)
    if target.engine.build == "on_device":
        pairs = tuple((graph.label, graph.path) for graph in graphs)
        for name in write_bundle(writer.folder, pairs, target, profile):
            writer.add(name, role="bundle")
    reason = why_not_here(target, _module(target))
    if reason is None:
        return _build_here(writer, graphs, target, profile, progress)
    texts = tuple(f"not built here: {reason}" for _ in graphs)
    not_done = _not_done(writer.destination, target, reason)
    return EngineOutcome(texts=texts, not_done=not_done, built_on_device=BUILD_FOLDER)


def _onnxruntime_outcome(folder: Path, graphs: Sequence[GraphFile], target: Target) -> EngineOutcome:
    texts = tuple(_integer_share(folder, graph, target) for graph in graphs)
    if platform.machine() == target.arch:
        return EngineOutcome(texts=texts, not_done=())
    not_done = NotDone(
        what=f"run on {target.arch}",
        why=f"this host is {platform.machine()}: its kernels ran, not the target's",
        command="bitswitch-deploy validate PACKAGE   (on the device)",
    )
    return EngineOutcome(texts=texts, not_done=(not_done,))


def _integer_share(folder: Path, graph: GraphFile, target: Target) -> str:
    """How many convolutions and matrix products onnxruntime runs in integers after its optimisations."""
    if graph.is_large:
        # onnxruntime would hold all weights in memory, some of them as floats
        return "onnxruntime: layers not counted, the weights are not loaded here"
    counts = dict(optimized_operators(folder / graph.path, session_options=dict(target.engine.session)))
    integer = sum(
        n for op, n in counts.items() if op in ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
    )
    floating = sum(
        n for op, n in counts.items() if op in ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul")
    )
    return f"onnxruntime: {integer} of {integer + floating} layers in integers"


def why_not_here(target: Target, module: Module) -> str | None:
    """Why this host cannot build the target's engines, or None when it can."""
    if target.engine.build == "on_device" and platform.machine() != target.arch:
        return f"{target.title} engines can only be built on the board, and this host is {platform.machine()}"
    if importlib.util.find_spec(module) is None:
        return f"the Python package {module} is not installed"
    return None


def _not_done(destination: Path, target: Target, reason: str) -> tuple[NotDone, ...]:
    if target.engine.build == "on_device":
        command = f"scp -r {destination} BOARD: && ssh BOARD sh {destination.name}/{SCRIPT}"
    else:
        command = f"pip install 'bitswitch-deploy[rtx]' && bitswitch-deploy build {destination}"
    return (NotDone(what=f"{target.engine.name} engines", why=reason, command=command),)


def _build_here(
    writer: PackageWriter,
    graphs: Sequence[GraphFile],
    target: Target,
    profile: tuple[ShapeRange, ...],
    progress: Progress,
) -> EngineOutcome:
    progress.start("building engines", len(graphs))
    texts, build = [], None
    for graph in graphs:
        build = build_one(writer.folder / graph.path, target, profile)
        path = f"{ENGINE_FOLDER}/{Path(graph.path).stem}.engine"
        writer.write(path, build.plan, role="engine", label=graph.label)
        texts.append(f"{build.module} {build.version}, {len(build.plan):,} bytes")
        progress.advance()
    tools = ((build.module, build.version),) if build is not None else ()
    return EngineOutcome(texts=tuple(texts), not_done=(), tools=tools, built_on_device=BUILD_FOLDER)


def build_one(graph: Path, target: Target, profile: tuple[ShapeRange, ...]) -> EngineBuild:
    """One engine with the settings of the target.

    Raises:
        GraphError: the parser or builder refuses the graph.
        UnavailableError: the engine's package is not here.
    """
    settings = BuildSettings(
        workspace_mb=target.limits.max_workspace_mb,
        compute_capabilities=target.engine.compute_capabilities,
        profile=profile,
        legacy_flags=target.engine.builder_flags_legacy,
    )
    return build_engine(graph, module=_module(target), settings=settings)


def _module(target: Target) -> Module:
    if target.engine.name == "onnxruntime":
        raise ValueError("onnxruntime has no engines to build")
    return target.engine.name
