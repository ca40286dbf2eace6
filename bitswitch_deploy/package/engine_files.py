"""Which engine belongs to a graph of a package, and whether it may be loaded."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.engine_record import BUILD_FOLDER, EngineRecord, trusted_record
from bitswitch_deploy.errors import UnavailableError
from bitswitch_deploy.package.manifest import FileEntry, Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """What is about to load engines: a machine and its TensorRT. trust: load engines without a record as well."""

    device: DeviceFacts
    module: str
    version: str
    trust: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFile:
    """The engine of a graph, at `path` in the package.

    entry: what the manifest says of it; None where it was built later. record: None where it has none.
    """

    path: str
    entry: FileEntry | None
    record: EngineRecord | None


def engine_file(package: Path, manifest: Manifest, graph: FileEntry, loader: Loader) -> EngineFile:
    """The engine of a graph: built on the device, else exported.

    Whether the file is the one of its entry and record is the caller's to check while it reads it.

    Raises:
        UnavailableError: it is not built, or of another graph, or for another device or TensorRT.
        CheckFailedError: it has no record, without `trust`; the manifest vouches for what is in it.
        PackageError: its record is not readable.
    """
    built = f"{manifest.built_on_device or BUILD_FOLDER}/{PurePosixPath(graph.path).stem}.engine"
    if (package / built).is_file():
        # what was built later stands for what was exported, as with another release of TensorRT
        record = _record(package / built, loader, trust=loader.trust)
        if record is not None:
            _check_graph(record, package / built, manifest, graph)
        return EngineFile(path=built, entry=None, record=record)
    for entry in manifest.files:
        if entry.role == "engine" and entry.label == graph.label:
            return EngineFile(path=entry.path, entry=entry, record=_record(package / entry.path, loader, trust=True))
    raise UnavailableError(
        where=str(package / built),
        got=f"the engine of {graph.name} is not built",
        allowed="an engine for each width",
        do=f"build it on the machine that runs it, or with --device: {_build_command(package)}",
    )


def graph_files(manifest: Manifest, graph: FileEntry) -> tuple[FileEntry, ...]:
    """A graph and the file beside it that has its weights, if there is one: what an engine is built from, by path."""
    data = f"{graph.path}.data"
    return tuple(sorted((each for each in manifest.files if each.path in (graph.path, data)), key=lambda e: e.path))


def _check_graph(record: EngineRecord, engine: Path, manifest: Manifest, graph: FileEntry) -> None:
    """Refuse what is left of an older graph where a newer package was copied over it, or where a build failed."""
    if record.recipe.graph_sha256 != tuple(each.sha256 for each in graph_files(manifest, graph)):
        raise UnavailableError(
            where=str(engine),
            got=f"an engine of another graph than {graph.path}",
            allowed="an engine of the graph in this package",
            do=f"build it again: {_build_command(engine.parents[1])}, or with trtexec: sh PACKAGE/build_on_device.sh",
        )


def _build_command(package: Path) -> str:
    return f"bitswitch-deploy build {shlex.quote(str(package))}"


def _record(engine: Path, loader: Loader, *, trust: bool) -> EngineRecord | None:
    return trusted_record(engine, loader.device, module=loader.module, version=loader.version, trust=trust)
