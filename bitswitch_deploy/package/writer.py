"""Write a package so that it appears whole or not at all.

Everything goes into `.<name>.partial-<pid>` beside the destination, on the same file system, and one rename ends it.
A killed run leaves that folder, and the next export to the same destination removes it. With `force` the old package
steps aside to `.<name>.replaced-<pid>` for the rename; a run killed between the two renames is undone by the next one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from bitswitch_deploy.engines.deferred_signals import exit_when_terminated
from bitswitch_deploy.errors import BitswitchError, OutputError, UsageError
from bitswitch_deploy.package.destination import (
    check_all_listed,
    check_destination,
    check_not_written,
    fsync_folder,
    lock_folder,
    recover,
)
from bitswitch_deploy.package.files import hash_file, is_plain_file
from bitswitch_deploy.package.manifest import MANIFEST, FileEntry, Manifest, Role, is_inside

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What the renames answer when another export to the same destination was faster: then look again.
_LOST_RACE = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EWOULDBLOCK)
_MAX_SWAPS = 100
_RETRY_SECONDS = 0.01


class PackageWriter:
    """Collects the files of one package; `commit` makes the folder, leaving without it discards everything.

    Args:
        destination: the folder to make; missing parents are made as well.
        force: replace a package that is there. What is not a package, or holds what no export wrote, is never replaced.

    Raises:
        UsageError: the destination exists (on entry and in `commit`), or is being written without `force`.
        OutputError: the place cannot be written, or is full. Everything written so far is removed.
    """

    def __init__(self, destination: Path, *, force: bool = False) -> None:
        # abspath, not resolve: a link in the place of the destination is refused, not followed
        self.destination = Path(os.path.abspath(destination))
        self.folder = self._sibling("partial")
        self._force = force
        self._entries: list[FileEntry] = []
        self._is_made = False
        self._lock: int | None = None
        self._termination = ExitStack()

    def __enter__(self) -> PackageWriter:
        try:
            if self.destination.parent.is_dir():
                recover(self.destination)
            check_destination(self.destination, force=self._force)
            if self._force:
                check_all_listed(self.destination)
            self.destination.parent.mkdir(parents=True, exist_ok=True)
            if self.folder.exists():
                do = "wait for it, or choose another destination"
                got, allowed = "this process is writing it already", "one export at a time"
                raise UsageError(where=str(self.destination), got=got, allowed=allowed, do=do)
            if not self._force:
                check_not_written(self.destination)
            self._termination.enter_context(exit_when_terminated())
            self.folder.mkdir()
            self._is_made = True
            self._lock = lock_folder(self.folder)
        except BaseException as exc:  # a signal as well
            self._close()
            if isinstance(exc, OSError):
                raise self._output_error(exc) from exc
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
        # Others write into `folder` too (onnx, the bundle): their full disk is the same failure.
        if isinstance(error, OSError) and self._is_about_output(error):
            raise self._output_error(error) from error

    def write(
        self, path: str, data: bytes, *, role: Role, label: str | None = None, executable: bool = False
    ) -> FileEntry:
        """Write `data` to `path`, relative to the package, and list it.

        Raises:
            OutputError: the disk is full or does not accept the file.
        """
        entry = self.stream(path, [data], role=role, label=label)
        if executable:
            target = self.folder / path
            target.chmod(target.stat().st_mode | 0o111)
        return entry

    def stream(
        self, path: str, chunks: Iterable[bytes | memoryview], *, role: Role, label: str | None = None
    ) -> FileEntry:
        """As `write`, for data that comes in pieces and is hashed on its way.

        Raises:
            OutputError: as `write`.
        """
        self._check_path(path)
        target = self.folder / path
        digest, size_bytes = hashlib.sha256(), 0
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    size_bytes += file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise self._output_error(exc) from exc
        return self._list(path, digest.hexdigest(), size_bytes, role=role, label=label)

    def add(self, path: str, *, role: Role, label: str | None = None) -> FileEntry:
        """List a file that someone else has written into `folder`.

        Raises:
            OutputError: the file cannot be read back or made durable.
        """
        self._check_path(path)
        if not is_plain_file(self.folder, path):
            raise FileNotFoundError(f"{path} is not a plain file in {self.folder}")
        try:
            with (self.folder / path).open("rb") as file:
                os.fsync(file.fileno())
            sha256, size_bytes = hash_file(self.folder / path)
        except OSError as exc:
            raise self._output_error(exc) from exc
        return self._list(path, sha256, size_bytes, role=role, label=label)

    def _list(self, path: str, sha256: str, size_bytes: int, *, role: Role, label: str | None) -> FileEntry:
        entry = FileEntry(path=path, sha256=sha256, size_bytes=size_bytes, role=role, label=label)
        self._entries.append(entry)
        return entry

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """What was listed so far, by path: the `files` of the manifest."""
        return tuple(sorted(self._entries, key=lambda entry: entry.path))

    def commit(self, manifest: Manifest) -> None:
        """Write the manifest, make everything durable and give the folder its name.

        Raises:
            ValueError: `manifest` does not list `files`.
            UsageError: the destination came into being meanwhile, or is not a package that may be replaced.
            OutputError: the disk is full or does not accept the folder.
        """
        if manifest.files != self.files:
            raise ValueError("the manifest must list exactly the files of the writer")
        try:
            with (self.folder / MANIFEST).open("xb") as file:
                file.write(manifest.to_json().encode())
                file.flush()
                os.fsync(file.fileno())
            for folder, _, _ in os.walk(self.folder):
                fsync_folder(Path(folder))
            self._give_name()
            fsync_folder(self.destination.parent)
        except OSError as exc:
            raise self._output_error(exc) from exc

    def _give_name(self) -> None:
        for _ in range(_MAX_SWAPS):
            check_destination(self.destination, force=self._force)
            try:
                if self._force and self.destination.exists():
                    self._swap()
                else:
                    # takes the place of an empty folder, and of nothing else
                    os.rename(self.folder, self.destination)
            except OSError as exc:
                if exc.errno not in _LOST_RACE:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return
        raise OSError(errno.EBUSY, "other exports keep replacing it", str(self.destination))

    def _swap(self) -> None:
        replaced = self._sibling("replaced")
        lock = lock_folder(self.destination)
        try:
            check_all_listed(self.destination)
            os.rename(self.destination, replaced)
            os.rename(self.folder, self.destination)
        finally:
            if os.path.lexists(self.destination):
                shutil.rmtree(replaced, ignore_errors=True)
            elif replaced.exists():
                os.rename(replaced, self.destination)
            os.close(lock)

    def _sibling(self, kind: str) -> Path:
        return self.destination.parent / f".{self.destination.name}.{kind}-{os.getpid()}"

    def _check_path(self, path: str) -> None:
        taken = {entry.path for entry in self._entries} | {MANIFEST}
        if not is_inside(path) or path in taken:
            raise ValueError(f"{path!r} is listed already or leaves the package")

    def _close(self) -> None:
        if self._is_made:
            # after `commit` there is no such folder
            shutil.rmtree(self.folder, ignore_errors=True)
            self._is_made = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._termination.close()

    def _is_about_output(self, error: OSError) -> bool:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return error.errno in _FULL or any(name.startswith(str(self.folder)) for name in names)

    def _output_error(self, error: OSError) -> BitswitchError:
        if error.errno in _FULL:
            allowed, do = "enough space for the whole package", "free space there, or choose another destination"
        else:
            allowed, do = "a folder that this user can write", "choose another destination or correct its permissions"
        got = f"cannot be written: {error.strerror or error}"
        return OutputError(where=str(self.destination), got=got, allowed=allowed, do=do)
