from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.package import verify
from bitswitch_deploy.package.verify import VerifyResult, read_manifest, verify_package


def _states(result: VerifyResult) -> list[tuple[str, str]]:
    return [(file.path, file.state) for file in result.files]


@pytest.fixture
def package(tmp_path: Path, export: Callable[..., Path]) -> Path:
    return export(tmp_path / "package")


def test_an_untouched_package_is_ok(package: Path) -> None:
    result = verify_package(package)
    assert _states(result) == [("build.sh", "ok"), ("graphs/w8.onnx", "ok")]
    assert result.is_ok
    assert result.manifest == read_manifest(package)


def test_each_difference_is_named(package: Path) -> None:
    (package / "build.sh").unlink()
    (package / "graphs" / "w8.onnx").write_bytes(b"grapH")
    (package / "graphs" / "w4.onnx").write_bytes(b"")
    (package / "link").symlink_to("graphs")
    result = verify_package(package)
    assert _states(result) == [
        ("build.sh", "missing"),
        ("graphs/w8.onnx", "changed"),
        ("graphs/w4.onnx", "unexpected"),
        ("link", "unexpected"),
    ]
    assert not result.is_ok


@pytest.mark.parametrize("content", [b"graph+", b"grap", b""])
def test_another_size_is_a_change(package: Path, content: bytes) -> None:
    (package / "graphs" / "w8.onnx").write_bytes(content)
    assert ("graphs/w8.onnx", "changed") in _states(verify_package(package))


def test_a_manifest_with_another_size_is_a_change(package: Path) -> None:
    text = (package / "manifest.json").read_text()
    (package / "manifest.json").write_text(text.replace('"size_bytes": 5', '"size_bytes": 6'))
    assert ("graphs/w8.onnx", "changed") in _states(verify_package(package))


def test_a_link_to_the_same_content_is_a_change(package: Path, tmp_path: Path) -> None:
    (package / "graphs" / "w8.onnx").rename(tmp_path / "elsewhere")
    (package / "graphs" / "w8.onnx").symlink_to(tmp_path / "elsewhere")
    assert _states(verify_package(package)) == [("build.sh", "ok"), ("graphs/w8.onnx", "changed")]


def test_a_linked_folder_is_a_change(package: Path, tmp_path: Path) -> None:
    (package / "graphs").rename(tmp_path / "elsewhere")
    (package / "graphs").symlink_to(tmp_path / "elsewhere")
    assert _states(verify_package(package)) == [
        ("build.sh", "ok"),
        ("graphs/w8.onnx", "changed"),
        ("graphs", "unexpected"),
    ]


def test_a_broken_link_is_a_change(package: Path) -> None:
    (package / "build.sh").unlink()
    (package / "build.sh").symlink_to("nothing")
    assert ("build.sh", "changed") in _states(verify_package(package))


def test_what_the_board_built_is_left_out(package: Path) -> None:
    (package / "on_device").mkdir()
    (package / "on_device" / "w8.plan").write_bytes(b"plan")
    assert verify_package(package).is_ok
    (package / "graphs" / "on_device").mkdir()
    (package / "graphs" / "on_device" / "w8.plan").write_bytes(b"plan")
    assert _states(verify_package(package))[-1] == ("graphs/on_device/w8.plan", "unexpected")


def test_a_file_is_no_package(package: Path) -> None:
    with pytest.raises(PackageError, match=r"package/manifest\.json: is not a folder\n"):
        read_manifest(package / "manifest.json")


def test_a_folder_without_manifest_is_no_package(package: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"nothing: the folder does not exist"):
        verify_package(tmp_path / "nothing")
    (package / "manifest.json").rename(package / "other.json")
    with pytest.raises(PackageError, match=r"manifest\.json: not there, or not a plain file"):
        read_manifest(package)
    (package / "manifest.json").symlink_to("other.json")
    with pytest.raises(PackageError, match=r"manifest\.json: not there, or not a plain file"):
        read_manifest(package)


def test_a_damaged_manifest_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(PackageError, match=r"manifest\.json: not readable"):
        verify_package(package)
    (package / "manifest.json").write_text("{")
    with pytest.raises(PackageError, match=r"manifest\.json: .*\n  allowed: one JSON object"):
        verify_package(package)
    monkeypatch.setattr(verify, "_MAX_MANIFEST_BYTES", 100)
    (package / "manifest.json").write_text("{" * 101)
    with pytest.raises(PackageError, match=r"manifest\.json: larger than"):
        verify_package(package)


def test_an_unreadable_file_is_not_called_changed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> tuple[str, int]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(verify, "hash_file", denied)
    with pytest.raises(PackageError, match=r"build\.sh: not readable: Permission denied"):
        verify_package(package)


def test_an_unreadable_folder_is_said(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(_: Path, onerror: Callable[[OSError], None]) -> list[object]:
        onerror(PermissionError(13, "Permission denied", "graphs"))
        return []

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(PackageError, match=r"not readable: .*Permission denied"):
        verify_package(package)
