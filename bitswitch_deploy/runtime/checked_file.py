"""Files of a package that were checked once, and are the same ones whenever they are read later."""

from __future__ import annotations

import os
from pathlib import Path

from bitswitch_deploy.errors import CheckFailedError
from bitswitch_deploy.package.files import hash_file, is_plain_file
from bitswitch_deploy.package.manifest import FileEntry

_DO = "copy or export the package again, then load it again"


class CheckedFile:
    """A file of the manifest. Later reads fail where it is not the file that was checked.

    Files are read, never mapped: a file that is cut short while it is mapped kills the process.

    Args:
        package: the folder.
        entry: of the manifest.
        trust: never hash it; its size is compared all the same.

    Raises:
        CheckFailedError: the file is missing, no plain file, or not what the manifest says.
    """

    def __init__(self, package: Path, entry: FileEntry, *, trust: bool) -> None:
        self.path = package / entry.path
        self.size_bytes = entry.size_bytes
        self._sha256 = None if trust else entry.sha256
        try:
            if not is_plain_file(package, entry.path):
                raise self._failure("missing, or not a plain file", "the file that was exported")
            found = os.stat(self.path)
            self._state, self._changed_ns = _state(found), found.st_ctime_ns
            if found.st_size != entry.size_bytes:
                raise self._failure(f"{found.st_size:,} bytes", f"{entry.size_bytes:,} bytes, says the manifest")
            if not self._has_hash():
                raise self._failure("its hash does not match the manifest", f"sha256 {entry.sha256}")
        except OSError as exc:
            raise self._failure(f"not readable: {exc.strerror}", "a readable file") from exc

    def check(self) -> None:
        """Make sure that the file is still the one that was checked, by what the file system says.

        Raises:
            CheckFailedError: it was replaced, written to, cut short or removed.
        """
        try:
            self._compare(os.stat(self.path))
        except OSError as exc:
            raise self._unreadable(exc) from exc

    def read(self) -> bytearray:
        """Read all of it.

        Raises:
            CheckFailedError: as `check`.
        """
        data = bytearray(self.size_bytes)
        self.read_into(memoryview(data))
        return data

    def read_into(self, buffer: memoryview) -> None:
        """Fill the buffer from the start of the file.

        Raises:
            CheckFailedError: as `check`.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                self._compare(os.fstat(file.fileno()))
                done = 0
                # one call reads at most 2 GiB
                while done < len(buffer):
                    count = file.readinto(buffer[done:])
                    if not count:
                        raise self._failure(f"ends at byte {done:,}", f"{self.size_bytes:,} bytes")
                    done += count
                self._compare(os.fstat(file.fileno()))  # nobody wrote to it meanwhile
        except OSError as exc:
            raise self._unreadable(exc) from exc

    def _compare(self, found: os.stat_result) -> None:
        if _state(found) == self._state and (found.st_ctime_ns == self._changed_ns or self._has_hash()):
            self._changed_ns = found.st_ctime_ns
            return
        got = f"cut short to {found.st_size:,} bytes" if found.st_size < self.size_bytes else "replaced or written to"
        raise self._failure(f"{got} since it was loaded", f"the file of {self.size_bytes:,} bytes that was loaded")

    def _has_hash(self) -> bool:
        """Whether the content is that of the manifest. Looked at again where the file system tells of a change that is
        none of time and size: other permissions, or a writer that set the time back.
        """
        return self._sha256 is None or hash_file(self.path)[0] == self._sha256

    def _unreadable(self, exc: OSError) -> CheckFailedError:
        return self._failure(f"not readable any more: {exc.strerror}", "the file that was loaded")

    def _failure(self, got: str, allowed: str) -> CheckFailedError:
        return CheckFailedError(where=str(self.path), got=got, allowed=allowed, do=_DO)


def _state(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
