"""The runtime cache of TensorRT for RTX: kernels that were compiled for this GPU, kept for the next process.

An RTX engine holds no machine code. Its kernels are compiled (JIT) when a context first runs a shape, which takes
seconds; with a cache only the first process pays for it. TensorRT itself checks what it is handed: a cache of another
GPU, driver or release is refused, and then it starts empty. What a release can do is read off its attributes;
`tensorrt` has none of this. Unproven on hardware: written against the API of 1.7.1, and run by the tests against a
stand-in.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.engines.device_facts import device_facts
from bitswitch_deploy.engines.timing_cache import cache_folder
from bitswitch_deploy.errors import OutputError

_shared: WeakValueDictionary[Any, RuntimeCache] = WeakValueDictionary()
_sharing = threading.Lock()


def runtime_cache_of(trt: Any) -> RuntimeCache | None:
    """The cache of a module, the same one for a whole process: of two, each would write without what the other has.

    None for a module without caches.
    """
    if not hasattr(trt, "IRuntimeCache") or not hasattr(trt.ICudaEngine, "create_runtime_config"):
        return None
    with _sharing:
        cache = _shared.get(trt)
        if cache is None:
            cache = _shared[trt] = RuntimeCache(trt, runtime_cache_path(str(trt.__version__)))
        return cache


def runtime_cache_path(version: str) -> Path | None:
    """The cache of this GPU and release, in the user's cache folder, shared by all packages; None without a home."""
    folder = cache_folder()
    if folder is None:
        return None
    device = device_facts()
    name = f"tensorrt_rtx-{version}-{device.module or device.arch}"
    return folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.runtime"


class RuntimeCache:
    """One cache, for any number of engines and threads.

    Args:
        trt: the module. path: where it is kept; no file is no error, and neither is one that cannot be written, or
            None, which costs the next process what this one paid.
    """

    def __init__(self, trt: Any, path: Path | None) -> None:
        self._trt, self._path = trt, path
        self._cache: Any = None
        self._can_write = True
        self._lock = threading.Lock()

    def config_of(self, engine: Any) -> Any:
        """A runtime configuration of an engine that uses the cache."""
        config = engine.create_runtime_config()
        with self._lock:
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                kept = self._read()
                if kept:
                    # refused where it is of another GPU or release: then it stays empty
                    self._cache.deserialize(kept)
        config.set_runtime_cache(self._cache)
        # else kernels are compiled beside the first runs: what is measured, and kept, would change meanwhile
        config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return config

    def save(self) -> None:
        """Keep what was compiled so far."""
        with self._lock:
            if self._cache is None or self._path is None or not self._can_write:
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(self._path, bytes(self._cache.serialize()))
            except (OSError, OutputError):
                self._can_write = False

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes() if self._path is not None else b""
        except OSError:
            return b""
