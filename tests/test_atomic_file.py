from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from bitswitch_deploy.atomic_file import atomic_writer, check_writable, remove_unfinished, replace_file
from bitswitch_deploy.errors import OutputError


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for data in (b"old", b"new"):
        replace_file(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_every_name_that_a_folder_takes_can_be_written(tmp_path: Path) -> None:
    replace_file(tmp_path / ("a" * 255), b"data")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"data"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "plain", b"")
        replace_file(tmp_path / "script", b"", executable=True)
    finally:
        os.umask(before)
    assert (tmp_path / "plain").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "script").stat().st_mode & 0o777 == 0o750


def test_what_is_replaced_leaves_its_permissions(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", b"old")
    (tmp_path / "file").chmod(0o600)
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    before = os.umask(0o022)
    try:
        replace_file(tmp_path / "file", b"script", executable=True)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o711


def test_two_writers_of_one_file_do_not_write_into_each_other(tmp_path: Path) -> None:
    """Threads of a process, and processes of two containers, have one number."""
    with atomic_writer(tmp_path / "file") as first:
        first.write(b"one")
        with atomic_writer(tmp_path / "file") as second:
            second.write(b"another")
        assert (tmp_path / "file").read_bytes() == b"another"
    assert (tmp_path / "file").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "file", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="file: cannot be written: No space left on device"):
        replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path: Path) -> None:
    writers = [atomic_writer(tmp_path / name) for name in ("file", "file", "other")]
    files = [writer.__enter__() for writer in writers]
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    remove_unfinished(tmp_path / "link")
    assert len(os.listdir(tmp_path)) == 3  # file, link, and what is written of the other
    for file in files:
        file.close()
    remove_unfinished(tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nothing/file: cannot be written: No such file or directory"):
        replace_file(tmp_path / "nothing" / "file", b"")


def test_what_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to(Path("folder", "file"))
    (tmp_path / "new").symlink_to(Path("folder", "other"))
    for name in ("link", "new"):
        replace_file(tmp_path / name, b"new")
        assert (tmp_path / name).is_symlink()
    assert sorted(os.listdir(tmp_path / "folder")) == ["file", "other"]
    assert {path.read_bytes() for path in (tmp_path / "folder").iterdir()} == {b"new"}


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    replace_file(tmp_path / "pipe", b"data")
    reader.join(timeout=10)
    assert read == [b"data"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_device_that_refuses_is_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "device").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="device: cannot be written: No space left on device"):
        replace_file(tmp_path / "device", b"data")
    assert (tmp_path / "device").is_symlink()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: Is a directory"):
        replace_file(tmp_path, b"data")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "Is a directory"),
        ("link to nothing/file", "No such file or directory"),
        ("missing/file", "No such file or directory"),
        ("file/file", "Not a directory"),
        ("a\0b", "embedded null byte"),
        ("a" * 256, "File name too long"),
    ],
)
def test_what_cannot_be_written_is_refused_beforehand_too(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link to nothing").symlink_to("nothing")
    for attempt in (check_writable, lambda path: replace_file(path, b"")):
        with pytest.raises(OutputError, match=f"cannot be written: .*{reason}"):
            attempt(tmp_path / name)


def test_what_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    for path in (tmp_path / "file", tmp_path / "new", tmp_path / ("a" * 255), Path("/dev/null")):
        check_writable(path)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else_is_refused_beforehand(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        check_writable(tmp_path / "file")
