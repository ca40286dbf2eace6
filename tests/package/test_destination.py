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


def test_the_current_folder_is_no_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Callable[..., Path]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    check_destination(Path(), force=False)
    monkeypatch.chdir(export(tmp_path / "package"))
    with pytest.raises(UsageError, match="holds a package"):
        check_destination(Path(), force=False)


def test_a_place_that_cannot_be_looked_at_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(OutputError, match="cannot be looked at: Permission denied"):
        check_destination(tmp_path, force=False)


def test_recovery_removes_what_dead_exports_left(tmp_path: Path, dead_pid: int) -> None:
    kept = [
        f".p.partial-{os.getppid()}",
        ".p.partial-x",
        ".p.partial-",
        ".other.partial-1",
        "p.partial-1",
        ".p.partial",
    ]
    for name in (*kept, f".p.partial-{dead_pid}", f".p.partial-{os.getpid()}", f".p.partial-{'9' * 30}"):
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


def test_recovery_puts_a_replaced_package_back(tmp_path: Path, dead_pid: int, export: Callable[..., Path]) -> None:
    export(tmp_path / "p").rename(tmp_path / f".p.replaced-{dead_pid}")
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
