"""report.html of a package: listed, complete, the same bytes again."""

from __future__ import annotations

from pathlib import Path

from bitswitch_deploy.package.verify import read_manifest, verify_package
from bitswitch_deploy.tensors import WidthAssignment
from tests.pipeline.conftest import export_to


def test_every_package_has_one(tmp_path: Path) -> None:
    widths = (WidthAssignment(default=2),)
    packages = [export_to(tmp_path / name, "x86-cpu", widths=widths).package for name in ("a", "b")]
    (entry,) = [each for each in read_manifest(packages[0]).files if each.role == "report"]
    assert entry.path == "report.html"
    assert verify_package(packages[0]).is_ok
    page, again = ((package / "report.html").read_text(encoding="utf-8") for package in packages)
    assert page == again
    for text in ("blocks.2.conv2", "Inputs of blocks.0.conv1", "32 samples", "digits-w2.onnx"):
        assert text in page
    assert 'class="bad"' not in page
