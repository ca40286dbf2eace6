"""`build`: the engines of a package, on the machine that can build them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.catalogue import load_target
from bitswitch_deploy.engines.bundle import BUILD_FOLDER
from bitswitch_deploy.engines.shape_range import batch_profile
from bitswitch_deploy.errors import UnavailableError, UsageError
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.package.verify import read_manifest
from bitswitch_deploy.pipeline.engine_step import BATCH_RANGE, build_one, why_not_here
from bitswitch_deploy.pipeline.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """One engine file: the label of its widths, its path, bytes, and the builder with its version."""

    label: str
    path: str
    size_bytes: int
    builder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """All engines of a package."""

    package: str
    engines: tuple[BuiltEngine, ...]


def build(package: Path, *, target: str | None, force: bool, progress: Progress) -> BuildResult:
    """Build one engine for each graph into the package's own folder for what is built later.

    Raises:
        UnavailableError: this machine cannot build them; the message says what is missing.
        UsageError: the target has no engines to build, or an engine exists and `force` is off.
        GraphError: the builder refuses a graph.
    """
    manifest = read_manifest(package)
    profile = load_target(target or f"{manifest.target}@{dict(manifest.stack)['name']}").target
    if profile.engine.name == "onnxruntime":
        raise UsageError(
            where=str(package),
            got=f"a package for {profile.name}, whose graphs onnxruntime runs as they are",
            allowed="a package for a TensorRT target",
            do="nothing needs to be built: load the .onnx files",
        )
    reason = why_not_here(profile, profile.engine.name)
    if reason is not None:
        raise UnavailableError(
            where=str(package),
            got=reason,
            allowed="the target's own board with its TensorRT, or a host that has the engine's package",
            do=f"run it there, or `sh {package}/build_on_device.sh` where only trtexec is installed",
        )
    graphs = [entry for entry in manifest.files if entry.role == "graph"]
    progress.start("building engines", len(graphs))
    engines = []
    for entry in graphs:
        path = package / (manifest.built_on_device or BUILD_FOLDER) / f"{Path(entry.path).stem}.engine"
        if path.exists() and not force:
            raise UsageError(where=str(path), got="it exists", allowed="a new file", do="add --force to build it again")
        graph = package / entry.path
        model = onnx.load(str(graph), load_external_data=False)
        built = build_one(graph, profile, batch_profile(_inputs(model), batch=BATCH_RANGE))
        path.parent.mkdir(exist_ok=True)
        replace_file(path, built.plan)
        engines.append(
            BuiltEngine(
                label=entry.label or "",
                path=str(path),
                size_bytes=len(built.plan),
                builder=f"{built.module} {built.version}",
            )
        )
        progress.advance()
    return BuildResult(package=str(package), engines=tuple(engines))


def _inputs(model: onnx.ModelProto) -> tuple[ValueSpec, ...]:
    return tuple(
        ValueSpec(
            name=value.name,
            dtype=onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower(),
            shape=tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in model.graph.input
    )
