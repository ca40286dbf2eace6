"""A package measured again: what it says of itself must hold."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bitswitch_deploy.errors import GraphError, PackageError
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.package.manifest import MANIFEST
from bitswitch_deploy.package.verify import read_manifest
from bitswitch_deploy.pipeline.progress import Silent
from bitswitch_deploy.pipeline.revalidate import Revalidation, revalidate
from tests.pipeline.conftest import WIDTHS, export_to


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_to(tmp_path_factory.mktemp("once") / "package", "x86-cpu", widths=WIDTHS[::2]).package


@pytest.fixture
def package(exported_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported_once, tmp_path / "package")


def again(package: Path) -> Revalidation:
    return revalidate(package, master=None, target=None, data=None, max_drop=1.0, progress=Silent())


def rewrite(package: Path, *, without: tuple[str, ...] = ()) -> None:
    """Give the manifest the hashes that its files have now, and leave out those of some roles."""
    manifest = read_manifest(package)
    hashed = ((each, *hash_file(package / each.path)) for each in manifest.files if each.role not in without)
    files = tuple(replace(each, sha256=sha256, size_bytes=size) for each, sha256, size in hashed)
    (package / MANIFEST).write_text(replace(manifest, files=files).to_json())


def test_a_package_without_graphs_is_refused(package: Path) -> None:
    rewrite(package, without=("graph",))
    with pytest.raises(PackageError, match=r"manifest\.json: names no graphs\n"):
        again(package)


def test_a_graph_of_another_width_is_not_taken_for_this_one(package: Path) -> None:
    shutil.copy(package / "digits-w4.onnx", package / "digits-w8.onnx")
    rewrite(package)
    message = r"digits-w8\.onnx: made as w4 for x86-cpu from master \w{12}\n  allowed: w8 for x86-cpu from"
    with pytest.raises(PackageError, match=message):
        again(package)


def test_a_graph_for_another_target_is_not_taken_for_this_one(package: Path, tmp_path: Path) -> None:
    other = export_to(tmp_path / "other", "arm64-cpu", widths=WIDTHS[:1]).package
    shutil.copy(other / "digits-w8.onnx", package / "digits-w8.onnx")
    rewrite(package)
    with pytest.raises(PackageError, match=r"digits-w8\.onnx: made as w8 for arm64-cpu from master"):
        again(package)


def test_a_graph_that_is_no_onnx_is_an_error_of_the_file(package: Path) -> None:
    (package / "digits-w8.onnx").write_bytes(b"\xff" * 100)
    rewrite(package)
    with pytest.raises(GraphError, match=r"digits-w8\.onnx: no ONNX, or cut short"):
        again(package)
