"""Instruction sets that decide which integer kernels onnxruntime picks (and so which rounding and saturation)."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

# x86: int8 dot products with and without AVX-512; ARM: dot product and matrix product
_KNOWN = ("avx2", "avx512_vnni", "avx_vnni", "asimddp", "i8mm")
_CPUINFO = Path("/proc/cpuinfo")


@cache
def cpu_features(cpuinfo: Path = _CPUINFO) -> tuple[str, ...]:
    """Known features that every core has, in a fixed order; empty where the kernel does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    # "flags" on x86, "Features" on ARM; big and little cores may differ
    fields = [line.partition(":") for line in lines]
    cores = [set(value.split()) for key, _, value in fields if key.strip() in ("flags", "Features")]
    return tuple(name for name in _KNOWN if cores and all(name in core for core in cores))


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
