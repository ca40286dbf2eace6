"""One TensorRT engine per width, loaded beforehand or on demand within a budget of device memory.

Unproven on hardware: see engines/tensorrt_session.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bitswitch_deploy.engines.device_facts import device_facts
from bitswitch_deploy.engines.tensorrt_module import Module
from bitswitch_deploy.engines.tensorrt_session import TensorRtDevice, TensorRtSession
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.package.engine_files import EngineFile, Loader, engine_file
from bitswitch_deploy.package.manifest import FileEntry, Manifest
from bitswitch_deploy.runtime.checked_file import CheckedFile
from bitswitch_deploy.runtime.session_cache import SessionCache
from bitswitch_deploy.runtime.switcher import Session

# of an engine that the user vouches for
_UNKNOWN = "0" * 64
_MODULES: Mapping[str, Module] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx"}


def tensorrt_sessions(
    package: Path, manifest: Manifest, *, memory_budget_mb: int | None, trust: bool, trust_engines: bool
) -> SessionCache[Session]:
    """Sessions on the engines of a package.

    An engine counts with the bytes of its file, which is about what its weights take on the device; activation memory
    is shared, as large as the largest engine needs, and comes on top of the budget.

    Raises:
        UsageError: the package is for onnxruntime.
        UnavailableError: an engine is not built, or built for another device; TensorRT is not here.
        CheckFailedError: an engine is not as it was exported or built, or, without `trust_engines`, not built by us.
    """
    module = _MODULES.get(dict(manifest.stack).get("engine", ""))
    if module is None:
        raise UsageError(
            where=str(package),
            got=f"a package for {manifest.target}, which has no engines",
            allowed="a package for a TensorRT target",
            do="load it with provider='cpu'",
        )
    device = TensorRtDevice(module)
    loader = Loader(device=device_facts(), module=module, version=device.version, trust=trust_engines)
    files = {
        graph.name: _checked(package, engine_file(package, manifest, graph, loader), trust=trust)
        for graph in manifest.graphs
    }

    def open_session(label: str) -> Session:
        return TensorRtSession(bytes(files[label].read()), device)

    costs = {label: file.size_bytes for label, file in files.items()}
    budget = sum(costs.values()) if memory_budget_mb is None else memory_budget_mb << 20
    return SessionCache(open_session, costs, budget, unit="bytes of engines")


def _checked(package: Path, engine: EngineFile, *, trust: bool) -> CheckedFile:
    """An exported engine is in the manifest; of one that was built on this machine its record says what it must be."""
    if engine.entry is not None:
        return CheckedFile(package, engine.entry, trust=trust)
    if engine.record is None:
        size_bytes = (package / engine.path).stat().st_size
        entry = FileEntry(path=engine.path, sha256=_UNKNOWN, size_bytes=size_bytes, role="engine")
        return CheckedFile(package, entry, trust=True)
    sha256, size_bytes = engine.record.sha256, engine.record.size_bytes
    entry = FileEntry(path=engine.path, sha256=sha256, size_bytes=size_bytes, role="engine")
    return CheckedFile(package, entry, trust=trust)
