"""Names, sizes and hashes of files, without following links."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path, PurePosixPath
from typing import IO

_CHUNK_BYTES = 1 << 20


def hash_file(path: Path) -> tuple[str, int]:
    """(sha256, size in bytes) of a file, read in pieces.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hash_stream(file)


def hash_stream(file: IO[bytes]) -> tuple[str, int]:
    """(sha256, size in bytes) of the rest of an open file, read in pieces."""
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def is_plain_file(root: Path, path: str) -> bool:
    """Whether `path` below `root` is a regular file that no symbolic link leads to."""
    current = root
    for part in PurePosixPath(path).parts:
        current = current / part
        if not current.exists() or current.is_symlink():
            return False
    return stat.S_ISREG(current.lstat().st_mode)


def all_files(root: Path, *, left_out: str | None = None) -> list[str]:
    """Paths below `root` of everything that is no folder, links to folders among them; `left_out`: a folder to skip.

    Raises:
        OSError: a folder cannot be read.
    """
    found: list[str] = []
    for folder, folders, files in os.walk(root, onerror=_raise):
        here = Path(folder).relative_to(root)
        links = [name for name in folders if (root / here / name).is_symlink()]
        found.extend((here / name).as_posix() for name in (*files, *links))
        folders[:] = [name for name in folders if (here / name).as_posix() != left_out]
    return found


def _raise(error: OSError) -> None:
    raise error


def hash_bytes(data: bytes) -> str:
    """sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()
