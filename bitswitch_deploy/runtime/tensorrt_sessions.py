"""One TensorRT engine per width, loaded beforehand or on demand within a budget of device memory.

Unproven on hardware: see engines/tensorrt_session.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bitswitch_deploy.engines.device_facts import DeviceFacts, device_facts
from bitswitch_deploy.engines.engine_record import EngineRecord, trusted_record
from bitswitch_deploy.engines.tensorrt_module import Module
from bitswitch_deploy.engines.tensorrt_session import TensorRtDevice, TensorRtSession
from bitswitch_deploy.errors import UnavailableError, UsageError
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
    here = _Here(facts=device_facts(), module=module, version=device.version, trust_engines=trust_engines)
    files = _engine_files(package, manifest, here, trust=trust)

    def open_session(label: str) -> Session:
        return TensorRtSession(bytes(files[label].read()), device)

    costs = {label: file.size_bytes for label, file in files.items()}
    budget = sum(costs.values()) if memory_budget_mb is None else memory_budget_mb << 20
    return SessionCache(open_session, costs, budget, unit="bytes of engines")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Here:
    """What engines are compared with."""

    facts: DeviceFacts
    module: Module
    version: str
    trust_engines: bool

    def record(self, engine: Path, *, is_exported: bool) -> EngineRecord | None:
        """The record of an engine that fits here; an exported one is vouched for by the manifest."""
        trust = is_exported or self.trust_engines
        return trusted_record(engine, self.facts, module=self.module, version=self.version, trust=trust)


def _engine_files(package: Path, manifest: Manifest, here: _Here, *, trust: bool) -> dict[str, CheckedFile]:
    exported = {entry.label: entry for entry in manifest.files if entry.role == "engine"}
    files = {}
    for graph in manifest.files:
        if graph.role != "graph":
            continue
        label = graph.label or graph.path
        path = f"{manifest.built_on_device}/{PurePosixPath(graph.path).stem}.engine"
        is_built = manifest.built_on_device is not None and (package / path).is_file()
        # what was built later stands for what was exported, as with another release of TensorRT
        if not is_built and graph.label in exported:
            here.record(package / exported[graph.label].path, is_exported=True)
            files[label] = CheckedFile(package, exported[graph.label], trust=trust)
            continue
        if not is_built:
            raise UnavailableError(
                where=str(package / path),
                got=f"the engine of {label} is not built",
                allowed="an engine for each width",
                do=f"run it on this machine: bitswitch-deploy build {package}",
            )
        files[label] = _built_file(package, path, label, here.record(package / path, is_exported=False), trust=trust)
    return files


def _built_file(package: Path, path: str, label: str, record: EngineRecord | None, *, trust: bool) -> CheckedFile:
    """An engine that was built on this machine, which is in no manifest: its record says what it must be."""
    if record is None:
        size_bytes = (package / path).stat().st_size
        entry = FileEntry(path=path, sha256=_UNKNOWN, size_bytes=size_bytes, role="engine", label=label)
        return CheckedFile(package, entry, trust=True)
    entry = FileEntry(path=path, sha256=record.sha256, size_bytes=record.size_bytes, role="engine", label=label)
    return CheckedFile(package, entry, trust=trust)
