"""Memory that is free in this process, back to the system. No application needs it elsewhere than under glibc."""

from __future__ import annotations

import ctypes

_KEEP_NOTHING = 0


def return_free_memory() -> None:
    """Let glibc give back what it holds for later; nothing where the C library is another one.

    onnxruntime needs several times a graph's size while it opens it. glibc keeps such memory once it has seen blocks of
    that size come and go (mallopt(3), M_MMAP_THRESHOLD), so a process that switches grows to twice its sessions.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library of this process
        return
    trim(_KEEP_NOTHING)
