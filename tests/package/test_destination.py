from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitswitch_deploy.errors import OutputError, UsageError
from bitswitch_deploy.package.destination import (
    check_all_listed,
    check_destination,
    check_not_written,
    fsync_folder,
    is_package,
    lock_folder,
    recover,
)


@pytest.fixture(scope="module")
def dead_pid() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_nothing_and_an_empty_folder_are_free(tmp_path: Path) -> None:
    check_destination(tmp_path / "new", force=False)
    check_destination(tmp_path, force=False)


def test_a_package_is_replaced_with_force_only(tmp_path: Path, export: Callable[..., Path]) -> None:
    package = export(tmp_path / "package")
    assert is_package(package)
    check_destination(package, force=True)
    with pytest.raises(UsageError, match="holds a package\n  allowed: a new folder\n  do: use --force"):
        check_destination(package, force=False)


def test_files_that_no_export_wrote_are_named(tmp_path: Path, export: Callable[..., Path]) -> None:
    package = export(tmp_path / "package")
    (package / "on_device").mkdir()
    check_all_listed(package)
    (package / "on_device" / "w8.engine").write_bytes(b"hours of a board")
    (package / "notes.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"no export wrote: notes\.txt, on_device/w8\.engine\n.*\n  do: move these"):
        check_all_listed(package)


def test_of_many_files_that_no_export_wrote_some_are_named(tmp_path: Path, export: Callable[..., Path]) -> None:
    package = export(tmp_path / "package")
    for index in range(7):
        (package / f"{index}.txt").write_text("")
    with pytest.raises(UsageError, match=r"wrote: 0\.txt, 1\.txt, 2\.txt, 3\.txt, 4\.txt and 2 more\n"):
        check_all_listed(package)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "other/1"}', '{"schema": null}', "[" * 100_000])
def test_a_foreign_folder_is_never_replaced(tmp_path: Path, force: bool, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match="is not empty and not a package"):
        check_destination(tmp_path, force=force)


def test_packages_of_other_releases_count(tmp_path: Path) -> None:
    for files in ("[]", "{}", '["w8.onnx"]'):
        (tmp_path / "manifest.json").write_text(f'{{"schema": "bitswitch-package/9", "files": {files}}}')
        check_destination(tmp_path, force=True)
        check_all_listed(tmp_path)


@pytest.mark.parametrize("force", [False, True])
def test_files_links_and_the_root_are_refused(tmp_path: Path, force: bool, export: Callable[..., Path]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(export(tmp_path / "package"))
    (tmp_path / "broken").symlink_to("nothing")
    for name in ("file", "link", "broken"):
        with pytest.raises(UsageError, match=f"{name}: exists and is not a folder"):
            check_destination(tmp_path / name, force=force)
    with pytest.raises(UsageError, match="is the root folder"):
        check_destination(Path("/"), force=force)


@pytest.mark.parametrize("inside", [".", "a", "a/b"])
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_someone_is_in_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, force: bool, export: Callable[..., Path]
) -> None:
    for place in (tmp_path / "empty", export(tmp_path / "package")):
        (place / inside).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(place / inside)
        for name in (place, Path(os.path.relpath(place))):
            with pytest.raises(
                UsageError, match=r"is the current folder, or holds it\n.*\n  do: name a folder inside it"
            ):
                check_destination(name, force=force)
        check_destination(Path("new"), force=force)


def test_a_mount_point_cannot_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mounted")
    with pytest.raises(UsageError, match=r"mounted: is a mount point\n.*\n  do: name a folder inside it"):
        check_destination(tmp_path / "mounted", force=False)
    check_destination(tmp_path / "mounted" / "new", force=False)


def test_a_place_that_cannot_be_looked_at_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(OutputError, match="cannot be looked at: Permission denied"):
        check_destination(tmp_path, force=False)


def test_recovery_removes_what_dead_exports_left(tmp_path: Path, dead_pid: int) -> None:
    kept = [
        ".p.partial-x",
        ".p.partial-",
        ".other.partial-1",
        "p.partial-1",
        ".p.partial",
    ]
    # the number of a process that lives was another one's in another container
    for name in (*kept, *(f".p.partial-{pid}" for pid in (dead_pid, os.getpid(), os.getppid(), "9" * 30))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    recover(tmp_path / "p")
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_processes_of_other_users_are_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", denied)
    (tmp_path / ".p.partial-1").mkdir()
    recover(tmp_path / "p")
    assert os.listdir(tmp_path) == [".p.partial-1"]


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_number_counts_without_locks_and_until_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(9, "Bad file descriptor")

    if not has_locks:
        monkeypatch.setattr("fcntl.flock", unsupported)
    new, older = tmp_path / f".p.partial-{os.getppid()}", tmp_path / ".p.partial-1"
    new.mkdir()
    older.mkdir()
    (older / "file").write_text("")
    recover(tmp_path / "p")
    assert (new.exists(), older.exists()) == (True, not has_locks)


def test_a_destination_that_is_being_written_is_refused(tmp_path: Path, dead_pid: int) -> None:
    for name in (".p.partial-x", f".p.partial-{dead_pid}", ".q.partial-1", ".p.replaced-1"):
        (tmp_path / name).mkdir()
    check_not_written(tmp_path / "p")
    lock = lock_folder(tmp_path / f".p.partial-{dead_pid}")
    with pytest.raises(UsageError, match=f"p: process {dead_pid} is writing it already"):
        check_not_written(tmp_path / "p")
    os.close(lock)


def test_recovery_leaves_what_is_locked(tmp_path: Path, dead_pid: int) -> None:
    # the pid of an export in another container means nothing here
    folder = tmp_path / f".p.partial-{dead_pid}"
    folder.mkdir()
    lock = lock_folder(folder)
    recover(tmp_path / "p")
    assert folder.exists()
    os.close(lock)
    recover(tmp_path / "p")
    assert not folder.exists()


@pytest.mark.parametrize("is_there", [False, True])
def test_recovery_puts_a_replaced_package_back(
    tmp_path: Path, dead_pid: int, export: Callable[..., Path], is_there: bool
) -> None:
    export(tmp_path / "p").rename(tmp_path / f".p.replaced-{dead_pid}")
    if is_there:
        (tmp_path / "p").mkdir()
    recover(tmp_path / "p")
    assert os.listdir(tmp_path) == ["p"]
    assert is_package(tmp_path / "p")


def test_recovery_removes_a_replaced_package_behind_a_new_one(
    tmp_path: Path, dead_pid: int, export: Callable[..., Path]
) -> None:
    export(tmp_path / "p", "old").rename(tmp_path / f".p.replaced-{dead_pid}")
    export(tmp_path / "q", "new").rename(tmp_path / "p")
    recover(tmp_path / "p")
    assert os.listdir(tmp_path) == ["p"]
    assert (tmp_path / "p" / "graphs" / "w8.onnx").read_text() == "new"


def test_recovery_keeps_a_replaced_package_beside_what_is_none(
    tmp_path: Path, dead_pid: int, export: Callable[..., Path]
) -> None:
    replaced = export(tmp_path / "p").rename(tmp_path / f".p.replaced-{dead_pid}")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "notes.txt").write_text("mine")
    recover(tmp_path / "p")
    assert is_package(replaced)
    assert os.listdir(tmp_path / "p") == ["notes.txt"]


def test_a_folder_is_locked_once(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    with pytest.raises(BlockingIOError, match="temporarily unavailable"):
        lock_folder(tmp_path)
    os.close(lock)
    os.close(lock_folder(tmp_path))


def test_a_file_system_without_locks_is_tolerated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", unsupported)
    os.close(lock_folder(tmp_path))


def test_fsync_takes_a_folder(tmp_path: Path) -> None:
    fsync_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        fsync_folder(tmp_path / "nothing")
