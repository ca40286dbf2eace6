"""The timing cache: measured tactics that make the next build faster. One for each device, shared by all packages.

What was measured holds for one device, one TensorRT build and one power mode, so these are in its name. A cache of
another device or build is refused by TensorRT itself; the build then starts with an empty one, and says so.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.errors import OutputError

TIMING_CACHE_SUFFIX = ".timing"
_FOLDER = "bitswitch-deploy"


def cache_folder() -> Path | None:
    """Where this tool keeps what makes the next run faster; None for a user without a home folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / _FOLDER
    try:
        return Path.home() / ".cache" / _FOLDER
    except RuntimeError:
        return None


def timing_cache_name(device: DeviceFacts, *, version: str) -> str:
    """The name of the cache of this device; build_on_device.sh composes the same one."""
    parts = ("tensorrt", version, device.module or device.arch, device.power_mode or "")
    return "-".join(_safe(part) for part in parts if part) + TIMING_CACHE_SUFFIX


def writable_cache_folder() -> Path | None:
    """`cache_folder`, made; None where it cannot be written, such as one that is root's after `sudo`."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def read_timing_cache(path: Path) -> bytes:
    """Its content; empty where there is none.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as exc:
        do = "correct its permissions or name another file"
        raise OutputError(where=str(path), got=f"not readable: {exc.strerror}", allowed="a cache file", do=do) from exc


def cache_hash(path: Path | None) -> str | None:
    """sha256 of the cache as it is; None without one."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else None


def _safe(part: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", part)
