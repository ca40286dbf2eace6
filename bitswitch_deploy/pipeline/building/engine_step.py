"""From lowered graphs to engines, or to what builds them where they can be built. Nothing is skipped without a word."""

from __future__ import annotations

import importlib.util
import platform
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from bitswitch_deploy.board import board_names
from bitswitch_deploy.catalogue import host_architecture
from bitswitch_deploy.engines.bundle import SCRIPT, write_bundle
from bitswitch_deploy.engines.device_facts import device_facts
from bitswitch_deploy.engines.engine_record import BUILD_FOLDER, record_path
from bitswitch_deploy.engines.read_back import WEIGHTED, read_back
from bitswitch_deploy.engines.shape_range import ShapeRange
from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import EngineBuild, build_engine
from bitswitch_deploy.engines.tensorrt_module import Module, load_module, release_of
from bitswitch_deploy.engines.timing_cache import cache_hash, timing_cache_name, writable_cache_folder
from bitswitch_deploy.errors import UnavailableError
from bitswitch_deploy.graph.external_data import data_name
from bitswitch_deploy.master.spec import MasterSpec
from bitswitch_deploy.package.writer import PackageWriter
from bitswitch_deploy.pipeline.building.engine_recipe import (
    EngineOptions,
    build_settings,
    engine_module,
    engine_profile,
    recipe_of,
    record_of,
)
from bitswitch_deploy.pipeline.building.kept_layers import facts_of, facts_path
from bitswitch_deploy.pipeline.building.layer_arithmetic import layer_arithmetic, shown_names
from bitswitch_deploy.pipeline.graph_files import GraphFile
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.report.export_report import LayerCounts, NotDone
from bitswitch_deploy.target import Target

ENGINE_FOLDER = "engines"
_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutcome:
    """What became of the engines: a text for each width, what was not done, the versions of the tools used.

    layers: for each width what the engine makes of its layers, None where it has not seen the graph.
    built_on_device: folder of the package that `build` or the bundle's script fills later; None without engines.
    """

    texts: tuple[str, ...]
    layers: tuple[LayerCounts | None, ...]
    not_done: tuple[NotDone, ...]
    tools: tuple[tuple[str, str], ...] = ()
    built_on_device: str | None = None


def make_engines(
    writer: PackageWriter,
    graphs: Sequence[GraphFile],
    target: Target,
    spec: MasterSpec,
    options: EngineOptions,
    progress: Progress,
) -> EngineOutcome:
    """Build the engines that can be built on this host into the package, and the bundle for those that cannot.

    spec: of the master.

    Raises:
        GraphError: the engine's parser or builder refuses a graph.
        OutputError: the package cannot be written.
    """
    if target.engine.name == "onnxruntime":
        return _onnxruntime_outcome(writer.folder, graphs, target, spec)
    profile = engine_profile(spec.inputs, options)
    if target.engine.build == "on_device":
        files = tuple((graph.label, graph.role, graph.path) for graph in graphs)
        for name in write_bundle(writer.folder, files, target, profile, fp32=options.fp32):
            writer.add(name, role="bundle")
    reason = why_not_here(target)
    if reason is None:
        return _build_here(writer, graphs, target, profile, options, progress)
    texts = tuple(f"not built here: {reason}" for graph in graphs if graph.role == "graph")
    not_done = _not_done(writer.destination, target, reason)
    layers = (None,) * len(texts)
    return EngineOutcome(texts=texts, layers=layers, not_done=not_done, built_on_device=BUILD_FOLDER)


def _onnxruntime_outcome(folder: Path, graphs: Sequence[GraphFile], target: Target, spec: MasterSpec) -> EngineOutcome:
    found = [_layers_of(folder, graph, target, spec) for graph in graphs]
    layers, texts = tuple(each for each, _ in found), tuple(text for _, text in found)
    if host_architecture() == target.arch:
        return EngineOutcome(texts=texts, layers=layers, not_done=())
    not_done = NotDone(
        what=f"run on {target.arch}",
        why=f"this host is {host_architecture()}: its kernels ran, not the target's",
        command="bitswitch-deploy validate PACKAGE   (on the device)",
    )
    return EngineOutcome(texts=texts, layers=layers, not_done=(not_done,))


def _layers_of(folder: Path, graph: GraphFile, target: Target, spec: MasterSpec) -> tuple[LayerCounts | None, str]:
    if graph.is_large:
        # onnxruntime would hold all weights in memory, some of them as floats
        return None, "onnxruntime: layers not counted, the weights are not loaded here"
    return layer_arithmetic(folder / graph.path, spec.layers, session_options=dict(target.engine.session))


def why_not_here(target: Target, root: Path = Path("/")) -> str | None:
    """Why this host cannot build the target's engines, or None when it can; `root` holds its /proc."""
    if target.engine.build == "on_device":
        built_on = f"{target.title} engines can only be built on the board, and this host is"
        if platform.machine() != target.arch:
            return f"{built_on} {platform.machine()}"
        names = board_names(root)
        if target.detect.compatible and not set(target.detect.compatible) & set(names):
            return f"{built_on} {', '.join(dict.fromkeys(names)) or 'no Jetson'}"
    module = engine_module(target)
    if importlib.util.find_spec(module) is None:
        return f"the Python package {module} is not installed"
    return None


def _not_done(destination: Path, target: Target, reason: str) -> tuple[NotDone, ...]:
    if target.engine.build == "on_device":
        # two shells read the path on the board: this one, and the one there
        script = shlex.quote(shlex.quote(f"{destination.name}/{SCRIPT}"))
        command = f"scp -r {shlex.quote(str(destination))} BOARD: && ssh BOARD sh {script}"
    else:
        command = f"pip install 'bitswitch-deploy[rtx]' && bitswitch-deploy build {shlex.quote(str(destination))}"
    return (NotDone(what=f"{target.engine.name} engines", why=reason, command=command),)


def _build_here(
    writer: PackageWriter,
    graphs: Sequence[GraphFile],
    target: Target,
    profile: tuple[ShapeRange, ...],
    options: EngineOptions,
    progress: Progress,
) -> EngineOutcome:
    """An engine for each graph, until one cannot be built here: the package and the engines that are done stay."""
    module, texts = engine_module(target), []
    layers: list[LayerCounts | None] = []
    tools: tuple[tuple[str, str], ...] = ()
    reason: str | None = None
    for graph in graphs:
        if reason is None:
            settings = build_settings(graph.label, graph.role, target, profile, options)
            try:
                build = _build_into(writer, graph, module, settings, start_build(progress, graph.label))
                model = onnx.load(str(writer.folder / graph.path), load_external_data=False)
                text, counts = engine_text(build, model)
                tools = ((module, build.version),)
            except UnavailableError as exc:
                reason = exc.got
        if reason is not None:
            text, counts = f"not built here: {reason}", None
        if graph.role == "graph":
            texts.append(text)
            layers.append(counts)
    not_done: tuple[NotDone, ...] = ()
    if reason is not None:
        command = f"bitswitch-deploy build {shlex.quote(str(writer.destination))}"
        not_done = (NotDone(what=f"{target.engine.name} engines", why=reason, command=command),)
    return EngineOutcome(
        texts=tuple(texts), layers=tuple(layers), not_done=not_done, tools=tools, built_on_device=BUILD_FOLDER
    )


def _build_into(
    writer: PackageWriter, graph: GraphFile, module: Module, settings: BuildSettings, progress: Callable[[float], None]
) -> EngineBuild:
    """One engine with its record and what is known of it, on the timing cache of this device where it has one."""
    device, cache, folder = device_facts(), None, writable_cache_folder()
    if module == "tensorrt" and folder is not None:
        cache = folder / timing_cache_name(device, version=release_of(str(load_module(module).__version__)))
    file = writer.folder / graph.path
    build = build_engine(file, module=module, settings=replace(settings, timing_cache=cache), progress=progress)
    engine = Path(f"{ENGINE_FOLDER}/{Path(graph.path).stem}.engine")
    writer.write(engine.as_posix(), build.plan, role="engine", label=graph.label)
    hashes = tuple(entry.sha256 for entry in writer.files if entry.path in (graph.path, data_name(graph.path)))
    record = record_of(graph.label, build, recipe_of(hashes, module, settings, device), cache_hash(cache))
    facts = facts_of(build, onnx.load(str(file), load_external_data=False))
    for path, text in ((record_path(engine), record.to_json()), (facts_path(engine), facts.to_json())):
        writer.write(path.as_posix(), text.encode(), role="record", label=graph.label)
    return build


def start_build(progress: Progress, label: str) -> Callable[[float], None]:
    """Tell that an engine is being built; what is returned takes the fraction that is done, 0..1."""
    progress.start(f"{label}: building the engine", _STEPS)
    done = 0

    def advance(fraction: float) -> None:
        nonlocal done
        step = int(fraction * _STEPS)
        if step > done:
            progress.advance(step - done)
            done = step

    return advance


def engine_text(build: EngineBuild, model: onnx.ModelProto) -> tuple[str, LayerCounts | None]:
    """One line about an engine: builder, size, and how much of the graph it computes in integers; that in numbers."""
    text = f"{build.module} {build.version}, {len(build.plan):,} bytes"
    if not build.layers:
        return text, None
    found = read_back(model, build.layers)
    total = sum(node.op_type in WEIGHTED for node in model.graph.node)
    unnamed = total - len(found.int8) - len(found.fell_back) - len(found.in_float)
    text = f"{text}; {len(found.int8)} of {total} layers in int8"
    counts = LayerCounts(integer=len(found.int8), total=total, fell_back=tuple(each.node for each in found.fell_back))
    if unnamed:
        text = f"{text}, {unnamed} that no layer of the engine names"
    if counts.fell_back:
        text = f"{text}; in codes in the graph and float in the engine: {shown_names(counts.fell_back)}"
    return text, counts
