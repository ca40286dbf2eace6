"""One measurement at a time on a machine: two that share a processor or a GPU would both be wrong, and not show it.

The lock is of the machine, not of a package or a user: a file in the folder for temporary files, that the system frees
with the process. `profile --device` with trtexec, which has no process of ours there, takes the same one over ssh.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitswitch_deploy.errors import OutputError, UnavailableError

LOCK_NAME = "bitswitch-deploy-profile.lock"


@contextmanager
def alone_on_this_machine() -> Iterator[None]:
    """Hold the lock of this machine.

    Raises:
        UnavailableError: another profile runs here.
        OutputError: the file cannot be made.
    """
    path = folder() / LOCK_NAME
    try:
        descriptor = _locked(path)
    except BlockingIOError as exc:
        raise is_measuring("this machine") from exc
    except OSError as exc:
        raise OutputError(
            where=str(path),
            got=f"cannot be locked: {exc.strerror}",
            allowed="a folder for temporary files that can be written",
            do="correct its permissions, or name another one in TMPDIR",
        ) from exc
    try:
        yield
    finally:
        os.close(descriptor)


def folder() -> Path:
    """Where the lock is, for every user of a machine alike unless they name another one in TMPDIR."""
    return Path(tempfile.gettempdir())


def is_measuring(machine: str) -> UnavailableError:
    """The refusal: somebody measures there."""
    return UnavailableError(
        where=machine,
        got="another profile is running there",
        allowed="one at a time: each would slow the other down, and both would be wrong",
        do="wait for it, then run the command again",
    )


def _locked(path: Path) -> int:
    """Opened for reading, which is all that a lock takes: the file may be of another user."""
    # O_NONBLOCK: a pipe that somebody has put there would keep everybody waiting for a writer
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        # never on a file that is there: systems refuse O_CREAT on that of another user in a folder for all
        descriptor = os.open(path, flags | os.O_CREAT, 0o644)
        os.fchmod(descriptor, 0o644)  # whatever the umask: the next user must be able to open it
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
