from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bitswitch_deploy.errors import OutputError, UsageError
from bitswitch_deploy.package.destination import check_destination
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.package.verify import read_manifest, verify_package
from bitswitch_deploy.package.writer import PackageWriter


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_package_holds_what_was_written(tmp_path: Path, export: Callable[..., Path]) -> None:
    package = export(tmp_path / "a" / "b" / "package")
    assert verify_package(package).is_ok
    assert (package / "graphs" / "w8.onnx").read_text() == "graph"
    assert _names(package.parent) == ["package"]
    entries = {entry.path: entry for entry in read_manifest(package).files}
    assert (entries["graphs/w8.onnx"].role, entries["graphs/w8.onnx"].label) == ("graph", "w8")
    assert entries["graphs/w8.onnx"].size_bytes == 5
    assert (package / "build.sh").stat().st_mode & stat.S_IXUSR
    assert not (package / "graphs" / "w8.onnx").stat().st_mode & stat.S_IXUSR


def test_two_exports_give_the_same_bytes(tmp_path: Path, export: Callable[..., Path]) -> None:
    first, second = export(tmp_path / "first"), export(tmp_path / "second")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


def test_nothing_is_there_before_the_end(tmp_path: Path, manifest_of: Callable[..., Manifest]) -> None:
    with PackageWriter(tmp_path / "package") as writer:
        writer.write("w8.onnx", b"graph", role="graph")
        assert _names(tmp_path) == [f".package.partial-{os.getpid()}"]
        writer.commit(manifest_of(writer.files))
        assert _names(tmp_path) == ["package"]


def test_files_of_others_are_listed(tmp_path: Path, manifest_of: Callable[..., Manifest]) -> None:
    with PackageWriter(tmp_path / "package") as writer:
        (writer.folder / "w8.onnx").write_bytes(b"graph")
        assert writer.add("w8.onnx", role="graph", label="w8") == writer.files[0]
        (writer.folder / "link").symlink_to("w8.onnx")
        with pytest.raises(FileNotFoundError, match="link is not a plain file"):
            writer.add("link", role="graph")
        (writer.folder / "link").unlink()
        writer.commit(manifest_of(writer.files))
    assert verify_package(tmp_path / "package").is_ok


@pytest.mark.parametrize("path", ["../w8.onnx", "/w8.onnx", "manifest.json", "twice"])
def test_paths_stay_inside_and_are_used_once(tmp_path: Path, path: str) -> None:
    with PackageWriter(tmp_path / "package") as writer:
        writer.write("twice", b"", role="graph")
        with pytest.raises(ValueError, match="is listed already or leaves the package"):
            writer.write(path, b"", role="graph")
        with pytest.raises(ValueError, match="is listed already or leaves the package"):
            writer.add(path, role="graph")


def test_the_manifest_must_list_the_files(tmp_path: Path, manifest_of: Callable[..., Manifest]) -> None:
    with PackageWriter(tmp_path / "package") as writer:
        writer.write("w8.onnx", b"graph", role="graph")
        with pytest.raises(ValueError, match="exactly the files of the writer"):
            writer.commit(manifest_of(()))


def test_leaving_without_commit_discards(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "package") as writer:
        writer.write("w8.onnx", b"graph", role="graph")
    assert _names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_discards_and_passes_on(tmp_path: Path, error: type[BaseException]) -> None:
    def work() -> None:
        with PackageWriter(tmp_path / "package") as writer:
            writer.write("w8.onnx", b"graph", role="graph")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        work()
    assert _names(tmp_path) == []


def test_an_existing_package_needs_force(tmp_path: Path, export: Callable[..., Path]) -> None:
    package = export(tmp_path / "package", "old")
    with pytest.raises(UsageError, match=r"holds a package\n.*\n  do: use --force"):
        export(package, "new")
    assert (package / "graphs" / "w8.onnx").read_text() == "old"
    export(package, "new", force=True)
    assert (package / "graphs" / "w8.onnx").read_text() == "new"
    assert verify_package(package).is_ok
    assert _names(tmp_path) == ["package"]


def test_the_old_package_lives_until_the_new_one_is_complete(tmp_path: Path, export: Callable[..., Path]) -> None:
    package = export(tmp_path / "package", "old")
    with PackageWriter(package, force=True) as writer:
        writer.write("w8.onnx", b"new", role="graph")
        assert verify_package(package).is_ok
    assert (package / "graphs" / "w8.onnx").read_text() == "old"
    assert _names(tmp_path) == ["package"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(KeyboardInterrupt("stop"), KeyboardInterrupt), (OSError(errno.EACCES, "stop"), OutputError)],
)
def test_a_failure_between_the_two_renames_brings_the_old_package_back(
    tmp_path: Path,
    export: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    expected: type[BaseException],
) -> None:
    package = export(tmp_path / "package", "old")
    rename = os.rename

    def fail(source: Path, destination: Path) -> None:
        if ".partial-" in str(source):
            raise error
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(expected, match="stop"):
        export(package, "new", force=True)
    assert (package / "graphs" / "w8.onnx").read_text() == "old"
    assert _names(tmp_path) == ["package"]


def test_what_no_export_wrote_survives_force(
    tmp_path: Path, export: Callable[..., Path], manifest_of: Callable[..., Manifest]
) -> None:
    package = export(tmp_path / "package", "old")
    with PackageWriter(package, force=True) as writer:
        writer.write("w8.onnx", b"new", role="graph")
        # a board builds it while the export runs
        (package / "w8.engine").write_bytes(b"hours of a board")
        with pytest.raises(UsageError, match=r"holds files that no export wrote: w8\.engine\n"):
            writer.commit(manifest_of(writer.files))
    with pytest.raises(UsageError, match=r"holds files that no export wrote: w8\.engine\n"):
        export(package, "new", force=True)
    assert (package / "w8.engine").read_bytes() == b"hours of a board"
    assert (package / "graphs" / "w8.onnx").read_text() == "old"
    assert _names(tmp_path) == ["package"]


@pytest.mark.parametrize("force", [False, True])
def test_an_empty_folder_is_taken(tmp_path: Path, export: Callable[..., Path], force: bool) -> None:
    (tmp_path / "package").mkdir()
    assert verify_package(export(tmp_path / "package", force=force)).is_ok
    assert _names(tmp_path) == ["package"]


def test_a_foreign_folder_survives_force(tmp_path: Path, export: Callable[..., Path]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty and not a package"):
        export(tmp_path, force=True)
    assert _names(tmp_path) == ["thesis.txt"]


def test_a_destination_that_appears_meanwhile_is_kept(
    tmp_path: Path, manifest_of: Callable[..., Manifest], export: Callable[..., Path]
) -> None:
    with PackageWriter(tmp_path / "package") as writer:
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "thesis.txt").write_text("years of work")
        with pytest.raises(UsageError, match="is not empty and not a package"):
            writer.commit(manifest_of(()))
    assert _names(tmp_path) == ["package"]
    assert _names(tmp_path / "package") == ["thesis.txt"]


def test_losing_the_race_does_not_replace(
    tmp_path: Path, manifest_of: Callable[..., Manifest], export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = export(tmp_path / "other", "faster")

    def check_then_lose(destination: Path, *, force: bool) -> None:
        check_destination(destination, force=force)
        if other.exists():
            other.rename(destination)

    with PackageWriter(tmp_path / "package") as writer:
        monkeypatch.setattr("bitswitch_deploy.package.writer.check_destination", check_then_lose)
        with pytest.raises(UsageError, match="holds a package"):
            writer.commit(manifest_of(()))
    assert (tmp_path / "package" / "graphs" / "w8.onnx").read_text() == "faster"
    assert _names(tmp_path) == ["package"]


def test_a_relative_destination_does_not_follow_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest_of: Callable[..., Manifest]
) -> None:
    monkeypatch.chdir(tmp_path)
    with PackageWriter(Path("package")) as writer:
        monkeypatch.chdir("/")
        writer.commit(manifest_of(()))
    assert verify_package(tmp_path / "package").is_ok


# --- places that cannot be written


def _fail_on(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "No space left on device\n  allowed: enough space for the whole package"),
        (errno.EDQUOT, "quota exceeded\n  allowed: enough space for the whole package"),
        (errno.EROFS, "Read-only file system\n  allowed: a folder that this user can write"),
    ],
)
def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Callable[..., Path], code: int, message: str
) -> None:
    _fail_on(monkeypatch, code)
    with pytest.raises(OutputError, match=message):
        export(tmp_path / "package")
    assert _names(tmp_path) == []


def test_a_disk_that_others_fill_is_the_same_failure(tmp_path: Path) -> None:
    def work(error: OSError) -> None:
        with PackageWriter(tmp_path / "package"):
            raise error

    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        work(OSError(errno.ENOSPC, "No space left on device"))
    inside = tmp_path / f".package.partial-{os.getpid()}" / "w8.onnx"
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        work(PermissionError(errno.EACCES, "Permission denied", str(inside)))
    with pytest.raises(PermissionError, match="images"):
        work(PermissionError(errno.EACCES, "Permission denied", "images"))
    assert _names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_full_disk(tmp_path: Path, export: Callable[..., Path]) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no permission to mount")
    try:
        with pytest.raises(OutputError, match="No space left on device"):
            export(tmp_path / "package", "x" * 100_000)
        assert _names(tmp_path) == []
        assert verify_package(export(tmp_path / "package", "x" * 1000)).is_ok
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path, export: Callable[..., Path]) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "package", tmp_path / "file" / "deeper" / "package"):
        with pytest.raises(OutputError, match="allowed: a folder that this user can write"):
            export(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_others_is_refused(tmp_path: Path, export: Callable[..., Path]) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        export(tmp_path / "package")


def test_a_folder_that_refuses_new_names_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Callable[..., Path]
) -> None:
    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(OutputError, match=r"package: cannot be written: Permission denied"):
        export(tmp_path / "package")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_name_that_is_too_long_is_refused(tmp_path: Path, export: Callable[..., Path]) -> None:
    with pytest.raises(OutputError, match="File name too long"):
        export(tmp_path / ("x" * 250))
