"""From lowered graphs to engines, or to what builds them where they can be built. Nothing is skipped without a word."""

from __future__ import annotations

import importlib.util
import platform
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from bitswitch_deploy.board import board_names
from bitswitch_deploy.engines.bundle import SCRIPT, write_bundle
from bitswitch_deploy.engines.device_facts import device_facts
from bitswitch_deploy.engines.engine_record import BUILD_FOLDER, record_path
from bitswitch_deploy.engines.optimized_operators import optimized_nodes
from bitswitch_deploy.engines.read_back import read_back
from bitswitch_deploy.engines.shape_range import ShapeRange
from bitswitch_deploy.engines.tensorrt_engine import EngineBuild, build_engine
from bitswitch_deploy.graph.external_data import data_name
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.package.writer import PackageWriter
from bitswitch_deploy.pipeline.building.engine_recipe import (
    EngineOptions,
    build_settings,
    engine_module,
    engine_profile,
    recipe_of,
    record_of,
)
from bitswitch_deploy.pipeline.graph_files import GraphFile
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.report.export_report import NotDone
from bitswitch_deploy.target import Target

ENGINE_FOLDER = "engines"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutcome:
    """What became of the engines: a text for each width, what was not done, the versions of the tools used.

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
    profile = engine_profile(inputs, EngineOptions())
    if target.engine.build == "on_device":
        files = tuple((graph.label, graph.role, graph.path) for graph in graphs)
        for name in write_bundle(writer.folder, files, target, profile):
            writer.add(name, role="bundle")
    reason = why_not_here(target)
    if reason is None:
        return _build_here(writer, graphs, target, profile, progress)
    texts = tuple(f"not built here: {reason}" for graph in graphs if graph.role == "graph")
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
    nodes = optimized_nodes(folder / graph.path, session_options=dict(target.engine.session))
    counts = Counter(node.arithmetic for node in nodes if node.arithmetic is not None)
    text = f"onnxruntime: {counts['integer']} of {counts.total()} layers in integers"
    return f"{text}, {counts['weight-only']} weight-only" if counts["weight-only"] else text


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
    progress: Progress,
) -> EngineOutcome:
    progress.start("building engines", len(graphs))
    module, texts = engine_module(target), []
    for graph in graphs:
        settings = build_settings(graph.label, graph.role, target, profile, EngineOptions())
        build = build_engine(writer.folder / graph.path, module=module, settings=settings)
        path = f"{ENGINE_FOLDER}/{Path(graph.path).stem}.engine"
        writer.write(path, build.plan, role="engine", label=graph.label)
        hashes = tuple(entry.sha256 for entry in writer.files if entry.path in (graph.path, data_name(graph.path)))
        record = record_of(graph.label, build, recipe_of(hashes, module, settings, device_facts()), None)
        writer.write(record_path(Path(path)).as_posix(), record.to_json().encode(), role="record", label=graph.label)
        if graph.role == "graph":
            texts.append(engine_text(build, onnx.load(str(writer.folder / graph.path), load_external_data=False)))
        progress.advance()
    tools = ((module, build.version),)
    return EngineOutcome(texts=tuple(texts), not_done=(), tools=tools, built_on_device=BUILD_FOLDER)


def engine_text(build: EngineBuild, model: onnx.ModelProto) -> str:
    """One line about an engine: builder, size, and how much of the graph it computes in integers."""
    text = f"{build.module} {build.version}, {len(build.plan):,} bytes"
    if not build.layers:
        return text
    found = read_back(model, build.layers)
    integer, slow = len(found.int8), len(found.fell_back) + len(found.in_float)
    return f"{text}; {integer} of {integer + slow} layers in int8"
