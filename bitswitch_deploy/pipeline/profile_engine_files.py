"""Which engine belongs to a graph of a package, and whether it may be loaded."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from bitswitch_deploy.engines.engine_record import read_record
from bitswitch_deploy.errors import CheckFailedError, UnavailableError
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.package.manifest import FileEntry, Manifest


def reference_graphs(manifest: Manifest) -> tuple[FileEntry, ...]:
    """The graph of the float network that `build` makes an FP16 engine of; none in older packages."""
    return tuple(each for each in manifest.files if each.role == "reference" and each.path.endswith(".onnx"))


def engine_file(package: Path, manifest: Manifest, graph: FileEntry, *, trust: bool) -> Path:
    """The engine of a graph, exported or built on this machine.

    Raises:
        UnavailableError: it is not built.
        CheckFailedError: it was not built here, without `trust`.
    """
    exported = [entry for entry in manifest.files if entry.role == "engine" and entry.label == graph.label]
    stem = PurePosixPath(graph.path).stem
    path = package / (exported[0].path if exported else f"{manifest.built_on_device}/{stem}.engine")
    if not path.is_file():
        raise UnavailableError(
            where=str(path),
            got=f"the engine of {graph.label} is not built",
            allowed="an engine for each width",
            do=f"run it on this machine: sh {package}/build_on_device.sh",
        )
    if not exported:
        _check_record(path, trust=trust)
    return path


def _check_record(engine: Path, *, trust: bool) -> None:
    """Refuse an engine that was not built here; whether it is for this device trtexec says itself."""
    record = read_record(engine)
    if record is None and trust:
        return
    if record is None or hash_file(engine) != (record.sha256, record.size_bytes):
        raise CheckFailedError(
            where=str(engine),
            got="no record of it" if record is None else "it is not the engine that its record describes",
            allowed="engines that `bitswitch-deploy build` or build_on_device.sh built on this machine",
            do="build it here, or add --trust: an engine is code that runs on the GPU",
        )
