"""The place a package goes to: may it be used, and what did a killed run leave there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from bitswitch_deploy.errors import OutputError, UsageError
from bitswitch_deploy.package.files import all_files, is_plain_file
from bitswitch_deploy.package.manifest import MANIFEST

_log = logging.getLogger(__name__)
BUILD_LOCK = ".lock"  # held in the folder of engines while a build runs, by the script and by `bitswitch-deploy build`
_ANY_SCHEMA = "bitswitch-package/"
_SHOWN_FILES = 5


def check_destination(destination: Path, *, force: bool) -> None:
    """Refuse a destination that holds something; with `force`, something that is not a package.

    Raises:
        UsageError: it exists and may not be replaced.
        OutputError: it cannot be looked at.
    """
    try:
        if not os.path.lexists(destination):
            return
        if not stat.S_ISDIR(destination.lstat().st_mode):
            raise _refusal(destination, "exists and is not a folder", "a new folder", "choose another destination")
        if (got := _is_held(destination)) is not None:
            raise _refusal(destination, got, "a new folder", "name a folder inside it")
        if not any(destination.iterdir()):
            return
    except OSError as exc:
        do = "choose another destination or correct its permissions"
        got = f"cannot be looked at: {exc.strerror}"
        raise OutputError(where=str(destination), got=got, allowed="a new folder", do=do) from exc
    if not is_package(destination):
        allowed, do = "a new folder; --force replaces packages only", "choose another destination"
        raise _refusal(destination, "is not empty and not a package", allowed, do)
    if not force:
        do = "use --force to replace it, or choose another destination"
        raise _refusal(destination, "holds a package", "a new folder", do)


def _is_held(folder: Path) -> str | None:
    """Why another folder cannot take the place of this one, or not for those who are in it; None where it can."""
    if folder.resolve() == Path(os.sep):
        return "is the root folder"
    if os.path.ismount(folder):
        return "is a mount point"
    with contextlib.suppress(OSError):  # the current folder may be gone
        if Path.cwd().is_relative_to(folder.resolve()):
            return "is the current folder, or holds it"
    return None


def check_all_listed(package: Path) -> None:
    """Refuse to replace a package with files that its manifest does not list: engines of a board, notes of its owner.

    Raises:
        UsageError: it has such files; the message names them.
        OSError: a folder cannot be read.
    """
    values = _manifest_values(package)
    if values is None:
        return
    entries = values.get("files")
    # what another release lists may be anything
    listed = [entry.get("path") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    lock = f"{values.get('built_on_device')}/{BUILD_LOCK}"
    unlisted = sorted(set(all_files(package)) - {MANIFEST, lock, *map(str, listed)})
    if _is_locked(package / lock):
        got, allowed = "is in use by a build of its engines", "a package that nobody works on"
        raise _refusal(package, got, allowed, "wait for it, or choose another destination")
    if unlisted:
        names = ", ".join(unlisted[:_SHOWN_FILES])
        more = f" and {len(unlisted) - _SHOWN_FILES} more" if len(unlisted) > _SHOWN_FILES else ""
        allowed = "with --force, a package that holds nothing but what was exported"
        do = "move these files away or delete them (`build` makes engines again), or choose another destination"
        raise _refusal(package, f"holds files that no export wrote: {names}{more}", allowed, do)


def _is_locked(file: Path) -> bool:
    """Whether somebody holds the lock of a file, which need not be there."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def is_package(folder: Path) -> bool:
    """Whether a folder was written by an export of any release: its manifest names our schema."""
    return _manifest_values(folder) is not None


def _manifest_values(folder: Path) -> dict[str, Any] | None:
    if not is_plain_file(folder, MANIFEST):
        return None
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and str(values.get("schema")).startswith(_ANY_SCHEMA) else None


def lock_folder(folder: Path) -> int:
    """Mark a folder as in use until the descriptor that is returned is closed, or the process ends in any way.

    Raises:
        BlockingIOError: it is in use.
        OSError: the folder cannot be opened.
    """
    return _locked(folder)[0]


def _locked(folder: Path) -> tuple[int, bool]:
    """A descriptor of a folder, and whether the file system has a lock to hold by it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError as exc:
        # NFS does not lock folders: there the pid in the name decides alone
        _log.debug("no lock on %s: %s", folder, exc)
        return descriptor, False
    return descriptor, True


def recover(destination: Path) -> None:
    """Remove what killed exports left beside `destination`; put a package back that they had moved aside.

    Raises:
        OSError: the parent folder cannot be read.
    """
    prefixes = {kind: f".{destination.name}.{kind}-" for kind in ("partial", "replaced")}
    with os.scandir(destination.parent) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        for kind, prefix in prefixes.items():
            pid, left = name.removeprefix(prefix), destination.parent / name
            if not name.startswith(prefix) or not pid.isdecimal() or _is_in_use(left, int(pid)):
                continue
            # Another export may clean up at the same time; what stays is tried again by the next one.
            if kind == "partial" or is_package(destination):
                shutil.rmtree(left, ignore_errors=True)
            else:
                # takes the place of an empty folder as well, and of nothing else
                with contextlib.suppress(OSError):
                    os.rename(left, destination)


def check_not_written(destination: Path) -> None:
    """Refuse a destination that another export is writing to: it would be there first.

    Raises:
        UsageError: there is such an export.
        OSError: the parent folder cannot be read.
    """
    prefix = f".{destination.name}.partial-"
    with os.scandir(destination.parent) as entries:
        pids = {
            name.removeprefix(prefix): name for name in (entry.name for entry in entries) if name.startswith(prefix)
        }
    for pid, name in sorted(pids.items()):
        if pid.isdecimal() and _is_in_use(destination.parent / name, int(pid)):
            got, allowed = f"process {pid} is writing it already", "one export at a time"
            raise _refusal(destination, got, allowed, "wait for it, or choose another destination")


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_in_use(folder: Path, pid: int) -> bool:
    try:
        descriptor, is_certain = _locked(folder)
    except OSError:
        return True
    os.close(descriptor)
    # A pid tells little: each container has its own numbers, and a new process often gets the old number. It counts
    # where there are no locks, and while a folder is so new that it may be locked in a moment.
    is_told_by_pid = not is_certain or not any(folder.iterdir())
    return is_told_by_pid and pid != os.getpid() and _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _refusal(destination: Path, got: str, allowed: str, do: str) -> UsageError:
    return UsageError(where=str(destination), got=got, allowed=allowed, do=do)
