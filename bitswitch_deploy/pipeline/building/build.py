"""`build`: the engines of a package, on the machine that can build them."""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.engines.bundle import SCRIPT
from bitswitch_deploy.engines.device_facts import DeviceFacts, device_facts
from bitswitch_deploy.engines.dla import check_dla
from bitswitch_deploy.engines.engine_record import BUILD_FOLDER, Recipe, read_record, record_path
from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import EngineBuild, build_engine
from bitswitch_deploy.engines.tensorrt_module import Module, load_module, release_of
from bitswitch_deploy.engines.timing_cache import cache_hash, timing_cache_name, writable_cache_folder
from bitswitch_deploy.errors import OutputError, PackageError, UnavailableError, UsageError
from bitswitch_deploy.package.destination import BUILD_LOCK
from bitswitch_deploy.package.engine_files import graph_files
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.package.manifest import FileEntry, Manifest
from bitswitch_deploy.package.verify import read_manifest
from bitswitch_deploy.pipeline.building.engine_recipe import (
    EngineOptions,
    build_settings,
    check_fp32,
    engine_module,
    engine_profile,
    graph_inputs,
    recipe_of,
    record_of,
)
from bitswitch_deploy.pipeline.building.engine_step import start_build, why_not_here
from bitswitch_deploy.pipeline.building.kept_layers import EngineFacts, facts_of, keep_facts, kept_facts
from bitswitch_deploy.pipeline.graph_files import GraphRole
from bitswitch_deploy.pipeline.package_target import package_target
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.report.build_report import BuildReport, EngineRow
from bitswitch_deploy.target import Target, version_matches


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build. target: None takes the package's. force: build again what is up to date.

    timing_cache: None takes the one of this device in the user's cache folder, or beside the engines where that one
        cannot be written.
    """

    package: Path
    target: str | None = None
    force: bool = False
    options: EngineOptions = field(default_factory=EngineOptions)
    timing_cache: Path | None = None


def build(request: BuildRequest, progress: Progress) -> BuildReport:
    """Build one engine for each graph, and the FP16 reference, into the package's own folder for what is built later.

    Engines that are up to date stay, so a build that was killed goes on with the widths that are missing.

    Raises:
        UnavailableError: this machine cannot build them, or ran out of memory; the message says what is missing.
            Another build runs in this package.
        UsageError: the target has no engines to build, or is not bundled and not named; or an option does not fit.
        GraphError: the builder refuses a graph.
        PackageError: a graph is not the exported one.
        OutputError: the folder or the timing cache cannot be written.
    """
    job = _job(request)
    if job.options.fp32:
        _check_fp32(job)
    with build_lock(job.folder):
        rows = tuple(_engine(job, entry, progress) for entry in job.entries)
    return BuildReport(
        package=str(request.package),
        target=job.target.name,
        builder=f"{job.module} {job.version}",
        device=job.device,
        timing_cache=None if job.timing_cache is None else str(job.timing_cache),
        notes=_notes(job),
        engines=rows,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What every engine of one build needs. entries: graphs, the reference first, then from the widest on.

    options: those of the request; what `--strict` exported has no float16 either.
    """

    request: BuildRequest
    options: EngineOptions
    target: Target
    manifest: Manifest
    entries: tuple[FileEntry, ...]
    module: Module
    version: str
    device: DeviceFacts
    folder: Path
    timing_cache: Path | None


def _job(request: BuildRequest) -> _Job:
    manifest = read_manifest(request.package)
    target = package_target(manifest, request.target)
    _check_engine(manifest, target)
    module = _checked_module(request, target)
    version, device = release_of(str(load_module(module).__version__)), device_facts()
    if request.options.dla:
        check_dla(target, version=version)
    entries = (*manifest.graphs, *manifest.references)
    cache = None
    if module == "tensorrt":
        folder = request.package / (manifest.built_on_device or BUILD_FOLDER)
        default = (writable_cache_folder() or folder) / timing_cache_name(device, version=version)
        cache = request.timing_cache or default
    elif request.timing_cache is not None:
        allowed, do = "none: it has no timing cache", "leave out --timing-cache"
        raise UsageError(where="--timing-cache", got=f"a cache for {module}", allowed=allowed, do=do)
    return _Job(
        request=request,
        options=replace(request.options, fp32=request.options.fp32 or manifest.strict),
        target=target,
        manifest=manifest,
        entries=tuple(sorted(entries, key=lambda entry: (entry.role != "reference", _narrowness(entry)))),
        module=module,
        version=version,
        device=device,
        folder=request.package / (manifest.built_on_device or BUILD_FOLDER),
        timing_cache=cache,
    )


def _check_engine(manifest: Manifest, target: Target) -> None:
    """Refuse graphs that were made for another engine: what came out would take the place of the package's own.

    Raises:
        UsageError: they were.
    """
    made_for = dict(manifest.stack).get("engine", target.engine.name)
    if target.engine.name != made_for:
        raise UsageError(
            where="--target",
            got=f"{target.name}, whose engines {target.engine.name} builds",
            allowed=f"{manifest.target}, or another target for {made_for}, which the graphs of this package are for",
            do="leave it out, or export for that target",
        )


def _checked_module(request: BuildRequest, target: Target) -> Module:
    if target.engine.name == "onnxruntime":
        raise UsageError(
            where=str(request.package),
            got=f"a package for {target.name}, whose graphs onnxruntime runs as they are",
            allowed="a package for a TensorRT target",
            do="nothing needs to be built: load the package with the runtime, or its graphs with onnxruntime",
        )
    reason = why_not_here(target)
    if reason is not None:
        raise UnavailableError(
            where=str(request.package),
            got=reason,
            allowed="the target's own board with its TensorRT, or a host that has the engine's package",
            do=f"run it there, or `sh {shlex.quote(str(request.package / SCRIPT))}` where only trtexec is installed",
        )
    return engine_module(target)


def _notes(job: _Job) -> tuple[str, ...]:
    made_for = job.target.stack.engine_version
    if version_matches(made_for, job.version):
        return ()
    return (f"the graphs were made for {job.target.engine.name} {made_for}, and this is {job.version}",)


def _engine(job: _Job, entry: FileEntry, progress: Progress) -> EngineRow:
    role: GraphRole = "reference" if entry.role == "reference" else "graph"
    label, graph = entry.name, job.request.package / entry.path
    advance = start_build(progress, label)
    hashes = _graph_hashes(job, entry)
    options, model = job.options, onnx.load(str(graph), load_external_data=False)
    settings = build_settings(label, role, job.target, engine_profile(graph_inputs(graph), options), options)
    recipe = recipe_of(hashes, job.module, settings, job.device)
    path = job.folder / f"{Path(entry.path).stem}.engine"
    there = _engine_there(job, entry, path)
    if not job.request.force and _is_current(there, recipe):
        return engine_row(label, role, there, state="up to date", facts=kept_facts(there, model))
    build = _built(job, graph, settings, advance)
    record = record_of(label, build, recipe, cache_hash(job.timing_cache))
    # the record last: an engine without one is built again
    record_path(path).unlink(missing_ok=True)
    replace_file(path, build.plan)
    facts = facts_of(build, model)
    keep_facts(path, facts)
    replace_file(record_path(path), record.to_json().encode())
    return engine_row(label, role, path, state="built", facts=facts)


def _engine_there(job: _Job, entry: FileEntry, built: Path) -> Path:
    """The engine of a graph that is loaded: the one that was built, else the exported one."""
    exported = [each.path for each in job.manifest.files if each.role == "engine" and each.label == entry.label]
    return built if built.is_file() or not exported else job.request.package / exported[0]


def _check_fp32(job: _Job) -> None:
    """Before anything is built."""
    for entry in job.entries:
        if entry.role == "graph":
            _graph_hashes(job, entry)
            model = onnx.load(str(job.request.package / entry.path), load_external_data=False)
            check_fp32(model, where=entry.path)


def _built(job: _Job, graph: Path, settings: BuildSettings, progress: Callable[[float], None]) -> EngineBuild:
    if job.timing_cache is not None:
        _make_folder(job.timing_cache.parent)
        settings = replace(settings, timing_cache=job.timing_cache)
    return build_engine(graph, module=job.module, settings=settings, progress=progress)


def _graph_hashes(job: _Job, entry: FileEntry) -> tuple[str, ...]:
    """Hashes of a graph and its data file, which must be those of the manifest."""
    files = graph_files(job.manifest, entry)
    for each in files:
        path = job.request.package / each.path
        try:
            found = hash_file(path)
        except OSError as exc:
            do, allowed = "export the package again", "the file that was exported"
            raise PackageError(where=str(path), got=f"not readable: {exc.strerror}", allowed=allowed, do=do) from exc
        if found != (each.sha256, each.size_bytes):
            do, allowed = "export the package again", "the file that was exported"
            raise PackageError(where=str(path), got="its hash does not match the manifest", allowed=allowed, do=do)
    return tuple(each.sha256 for each in files)


def _is_current(engine: Path, recipe: Recipe) -> bool:
    """Whether an engine is there, whole, and what this build would make."""
    try:
        record = read_record(engine)
        return (
            record is not None
            and record.recipe == recipe
            and engine.is_file()
            and hash_file(engine) == (record.sha256, record.size_bytes)
        )
    except (PackageError, OSError):
        return False


def engine_row(label: str, role: GraphRole, path: Path, *, state: str, facts: EngineFacts) -> EngineRow:
    """What is reported of an engine file."""
    return EngineRow(
        label=label,
        is_reference=role == "reference",
        path=str(path),
        size_bytes=path.stat().st_size,
        state=state,
        layers=facts.layers,
        gpu_fallback=facts.gpu_fallback,
        warnings=facts.warnings,
        notes=facts.notes,
    )


@contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """One build at a time in a folder; build_on_device.sh takes the same lock. The system frees it with the process.

    Raises:
        UnavailableError: another build runs there.
        OutputError: the folder cannot be written.
    """
    _make_folder(folder)
    try:
        descriptor = os.open(folder / BUILD_LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as exc:
        raise _unwritable(folder, exc) from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        got, do = "another build is running in this package", "wait for it"
        raise UnavailableError(where=str(folder), got=got, allowed="one build at a time", do=do) from exc
    except OSError as exc:
        os.close(descriptor)
        raise _unwritable(folder, exc) from exc
    try:
        yield
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise _unwritable(folder, exc) from exc


def _unwritable(folder: Path, exc: OSError) -> OutputError:
    do = "correct its permissions or free disk space"
    return OutputError(where=str(folder), got=f"cannot be written: {exc.strerror}", allowed="a writable folder", do=do)


def _narrowness(entry: FileEntry) -> tuple[int, str]:
    bits = (entry.label or "").removeprefix("w")
    return (-int(bits) if bits.isdecimal() else 0, entry.label or "")
