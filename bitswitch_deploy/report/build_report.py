"""The result of `build` as frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.read_back import ReadBack


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """One engine: the label of its widths, or that of the FP16 reference.

    state: `built` or `up to date`. layers: what was read back from a built engine; None where that was not possible.
    gpu_fallback: layers that the DLA core leaves to the GPU. warnings: the builder's own. notes: ours.
    """

    label: str
    is_reference: bool
    path: str
    size_bytes: int
    state: str
    layers: ReadBack | None = None
    gpu_fallback: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """All engines of a package, and where they were built. builder: module and version."""

    package: str
    target: str
    builder: str
    device: DeviceFacts
    timing_cache: str | None
    notes: tuple[str, ...]
    engines: tuple[EngineRow, ...]
