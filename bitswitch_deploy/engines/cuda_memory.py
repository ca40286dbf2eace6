"""Device memory and a stream through the CUDA runtime library, which is loaded in this file only.

TensorRT's Python API runs engines on addresses but has no way to get them. CUDA's own Python package is not part of
JetPack; its C library is, and eight of its functions are enough. Unproven on hardware: tests run against a stand-in.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any

import numpy as np

from bitswitch_deploy.errors import UnavailableError

_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
# cudaErrorInsufficientDriver, which is what a machine without any driver says, and cudaErrorNoDevice
_NO_DEVICE = (35, 100)
_UNLOADING = 4  # cudaErrorCudartUnloading
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind


class Cuda:
    """One stream and the memory that is used on it. Not for several threads at once.

    Raises:
        UnavailableError: there is no CUDA runtime library, no device, or no memory left.
    """

    def __init__(self) -> None:
        self.stream = 0
        self._library = _load_library()
        self.stream = self._pointer(self._library.cudaStreamCreate)

    def __del__(self) -> None:
        if self.stream:
            stream, self.stream = self.stream, 0
            self._give_back(self._library.cudaStreamDestroy(ctypes.c_void_p(stream)))

    def allocate(self, size_bytes: int) -> int:
        """Address of new device memory, aligned to 256 bytes."""
        return self._pointer(self._library.cudaMalloc, ctypes.c_size_t(size_bytes))

    def free(self, address: int) -> None:
        """Give memory back."""
        self._give_back(self._library.cudaFree(ctypes.c_void_p(address)))

    def to_device(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous array; it must stay until `synchronize`."""
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE)

    def to_host(self, array: np.ndarray, address: int) -> None:
        """Fill a contiguous array; it is complete after `synchronize`."""
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST)

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        self._check(self._library.cudaStreamSynchronize(ctypes.c_void_p(self.stream)))

    def _give_back(self, code: int) -> None:
        """Check a code, unless the process ends and the driver has taken everything back by itself."""
        if code != _UNLOADING:
            self._check(code)

    def _copy(self, target: int, source: int, size_bytes: int, kind: int) -> None:
        self._check(
            self._library.cudaMemcpyAsync(
                ctypes.c_void_p(target),
                ctypes.c_void_p(source),
                ctypes.c_size_t(size_bytes),
                ctypes.c_int(kind),
                ctypes.c_void_p(self.stream),
            )
        )

    def _pointer(self, function: Any, *arguments: Any) -> int:
        result = ctypes.c_void_p()
        self._check(function(ctypes.byref(result), *arguments))
        return int(result.value or 0)

    def _check(self, code: int) -> None:
        if code == 0:
            return
        describe = self._library.cudaGetErrorString
        describe.restype = ctypes.c_char_p
        got = f"error {code}: {(describe(ctypes.c_int(code)) or b'').decode(errors='replace')}"
        if code in _NO_DEVICE:
            allowed, do = "a machine with an NVIDIA GPU and its driver", "run it there, or install or renew the driver"
        else:
            allowed, do = (
                "a GPU with enough free memory",
                "free device memory, lower memory_budget_mb, or check the driver",
            )
        raise UnavailableError(where="CUDA", got=got, allowed=allowed, do=do)


class DeviceBuffer:
    """Device memory that grows to the largest size that was asked for."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self.address, self.size_bytes = cuda, 0, 0

    def __del__(self) -> None:
        self.release()

    def reserve(self, size_bytes: int) -> int:
        """Address of at least so many bytes; what was in the buffer is lost when it grows.

        Raises:
            UnavailableError: there is no memory left; the buffer is then empty.
        """
        if size_bytes > self.size_bytes or not self.address:
            self.release()
            self.address = self._cuda.allocate(max(size_bytes, 1))
            self.size_bytes = size_bytes
        return self.address

    def release(self) -> None:
        """Give the memory back."""
        if self.address:
            address, self.address, self.size_bytes = self.address, 0, 0
            self._cuda.free(address)


def _load_library() -> Any:
    for name in (ctypes.util.find_library("cudart"), *_NAMES):
        try:
            if name is not None:
                return ctypes.CDLL(name)
        except OSError:
            continue
    raise UnavailableError(
        where="CUDA",
        got="no CUDA runtime library (libcudart)",
        allowed="a machine with CUDA",
        do="install the CUDA runtime, or add its folder to LD_LIBRARY_PATH",
    )
