"""One TensorRT engine per width, loaded beforehand or on demand within a budget of device memory.

Unproven on hardware: see engines/tensorrt_session.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from bitswitch_deploy.engines.tensorrt_module import Module
from bitswitch_deploy.engines.tensorrt_session import TensorRtDevice, TensorRtSession
from bitswitch_deploy.errors import UnavailableError, UsageError
from bitswitch_deploy.package.manifest import FileEntry, Manifest
from bitswitch_deploy.runtime.checked_file import CheckedFile
from bitswitch_deploy.runtime.session_cache import SessionCache
from bitswitch_deploy.runtime.switcher import Session

_MODULES: Mapping[str, Module] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx"}
# Engines that were built on the board are not in the manifest, so there is nothing to compare them with.
_NO_HASH = "0" * 64


def tensorrt_sessions(
    package: Path, manifest: Manifest, *, memory_budget_mb: int | None, trust: bool
) -> SessionCache[Session]:
    """Sessions on the engines of a package.

    An engine counts with the bytes of its file, which is about what its weights take on the device; activation memory
    is shared, as large as the largest engine needs, and comes on top of the budget.

    Raises:
        UsageError: the package is for onnxruntime.
        UnavailableError: an engine is not built, or TensorRT is not here.
        CheckFailedError: an engine is not as it was exported.
    """
    module = _MODULES.get(dict(manifest.stack).get("engine", ""))
    if module is None:
        raise UsageError(
            where=str(package),
            got=f"a package for {manifest.target}, which has no engines",
            allowed="a package for a TensorRT target",
            do="load it with provider='cpu'",
        )
    files = _engine_files(package, manifest, trust=trust)
    device = TensorRtDevice(module)

    def open_session(label: str) -> Session:
        return TensorRtSession(bytes(files[label].read()), device)

    costs = {label: file.size_bytes for label, file in files.items()}
    budget = sum(costs.values()) if memory_budget_mb is None else memory_budget_mb << 20
    return SessionCache(open_session, costs, budget, unit="bytes of engines")


def _engine_files(package: Path, manifest: Manifest, *, trust: bool) -> dict[str, CheckedFile]:
    exported = {entry.label: entry for entry in manifest.files if entry.role == "engine"}
    files = {}
    for graph in manifest.files:
        if graph.role != "graph":
            continue
        label = graph.label or graph.path
        if graph.label in exported:
            files[label] = CheckedFile(package, exported[graph.label], trust=trust)
            continue
        path = f"{manifest.built_on_device}/{PurePosixPath(graph.path).stem}.engine"
        if manifest.built_on_device is None or not (package / path).is_file():
            raise UnavailableError(
                where=str(package / path),
                got=f"the engine of {label} is not built",
                allowed="an engine for each width",
                do=f"run it on this machine: bitswitch-deploy build {package}",
            )
        size_bytes = (package / path).stat().st_size
        entry = FileEntry(path=path, sha256=_NO_HASH, size_bytes=size_bytes, role="engine", label=label)
        files[label] = CheckedFile(package, entry, trust=True)
    return files
