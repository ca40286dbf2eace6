"""Write a file so that a killed run leaves either the old one or the new one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bitswitch_deploy.errors import OutputError

_SUFFIX = ".partial"


@contextmanager
def atomic_writer(path: Path, *, executable: bool = False) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends well: same folder, fsync, rename.

    The new file has the permissions of the old one. Of a link the file that it leads to is replaced. A device or a pipe
    is written to as it is, and stays.

    Raises:
        OutputError: the folder is missing, not writable or full, or `path` is no name for a file.
    """
    with _refusing(path):
        if _is_special(path):
            with path.open("wb") as file:
                yield file
        else:
            with _replacing(Path(os.path.realpath(path)), 0o777 if executable else 0o666) as file:
                yield file


def check_writable(path: Path) -> None:
    """Refuse what `atomic_writer` would not write, as far as that can be said without writing.

    Raises:
        OutputError: as `atomic_writer`.
    """
    with _refusing(path):
        place = path if _is_special(path) else Path(os.path.realpath(path)).parent
        if path.is_dir():
            reason = errno.EISDIR
        elif not place.exists():
            reason = errno.ENOENT
        elif place != path and not place.is_dir():
            reason = errno.ENOTDIR
        elif not os.access(place, os.W_OK):
            reason = errno.EACCES
        elif len(os.fsencode(path.name)) > os.pathconf(place, "PC_NAME_MAX"):
            reason = errno.ENAMETOOLONG
        else:
            return
        raise OSError(reason, os.strerror(reason))


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of files that were to take the place of `path`, which none may be writing now.

    Raises:
        OutputError: the folder is missing or not writable.
    """
    with _refusing(path):
        place = Path(os.path.realpath(path))
        for left in place.parent.iterdir():
            if left.name.startswith(_prefix(place)) and left.name.endswith(_SUFFIX):
                left.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    """What names of unfinished files for `path` begin with; its own may be as long as a name can be."""
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}-"


def _is_special(path: Path) -> bool:
    """Whether it is there, and neither a file nor a link to one: a device, a pipe, or a folder, which none can open."""
    return path.exists() and not path.is_file()


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as exc:  # ValueError: a path without a file name or with a NUL byte
        raise OutputError(
            where=str(path),
            got=f"cannot be written: {exc.strerror if isinstance(exc, OSError) and exc.strerror else exc}",
            allowed="a file in an existing, writable folder with enough free space",
            do="create the folder, free disk space or choose another path",
        ) from exc


@contextmanager
def _replacing(path: Path, mode: int) -> Iterator[BinaryIO]:
    # a name that no other thread, process or container has, whose numbers may be the same
    temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}{_SUFFIX}")
    try:
        # os.open applies the umask, as for any other new file
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            _keep_permissions(path, file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _keep_permissions(path: Path, descriptor: int) -> None:
    """Give a new file those of the one that it replaces; what is to be executable stays so."""
    with contextlib.suppress(OSError):  # there is none, or the file system has no permissions
        executable = os.fstat(descriptor).st_mode & 0o111
        os.fchmod(descriptor, stat.S_IMODE(path.stat().st_mode) | executable)


def replace_file(path: Path, data: bytes, *, executable: bool = False) -> None:
    """Put `data` at `path` in one step.

    Raises:
        OutputError: as `atomic_writer`.
    """
    with atomic_writer(path, executable=executable) as file:
        file.write(data)
