"""Which engine belongs to a graph of a package, and whether it may be loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from bitswitch_deploy.engines.bundle import BUILD_FOLDER
from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.engine_record import trusted_record
from bitswitch_deploy.errors import CheckFailedError, UnavailableError
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.package.manifest import FileEntry, Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """What is about to load engines: a machine and its TensorRT. trust: load engines without a record as well."""

    device: DeviceFacts
    module: str
    version: str
    trust: bool


def reference_graphs(manifest: Manifest) -> tuple[FileEntry, ...]:
    """The graph of the float network that `build` makes an FP16 engine of; none in older packages."""
    return tuple(each for each in manifest.files if each.role == "reference" and each.path.endswith(".onnx"))


def engine_file(package: Path, manifest: Manifest, graph: FileEntry, loader: Loader) -> Path:
    """The engine of a graph: built on the device, else exported, as the runtime takes it.

    Raises:
        UnavailableError: it is not built, or for another device or TensorRT.
        CheckFailedError: it has no record, without `trust`; or it is not the engine of its record.
    """
    built = package / (manifest.built_on_device or BUILD_FOLDER) / f"{PurePosixPath(graph.path).stem}.engine"
    exported = [entry for entry in manifest.files if entry.role == "engine" and entry.label == graph.label]
    if built.is_file():
        _check_record(built, loader)
        return built
    if exported:
        # the manifest vouches for what is in it, and the record says what it is for
        _check_record(package / exported[0].path, replace(loader, trust=True))
        return package / exported[0].path
    raise UnavailableError(
        where=str(built),
        got=f"the engine of {graph.label} is not built",
        allowed="an engine for each width",
        do=f"build it, on the device or with --device: bitswitch-deploy build {package}",
    )


def _check_record(engine: Path, loader: Loader) -> None:
    record = trusted_record(engine, loader.device, module=loader.module, version=loader.version, trust=loader.trust)
    if record is not None and hash_file(engine) != (record.sha256, record.size_bytes):
        raise CheckFailedError(
            where=str(engine),
            got="it is not the engine that its record describes",
            allowed="the engine as it was built",
            do="build it again: bitswitch-deploy build PACKAGE --force",
        )
