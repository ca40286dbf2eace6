"""What a package says about its own accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.package.manifest import MANIFEST
from bitswitch_deploy.package.verify import read_manifest
from bitswitch_deploy.pipeline.package_results import package_results
from bitswitch_deploy.tensors import WidthAssignment
from tests.pipeline.conftest import export_to


def test_it_is_the_report_of_the_export(tmp_path: Path) -> None:
    exported = export_to(tmp_path / "package", "x86-cpu", widths=(WidthAssignment(default=2),))
    package = exported.package
    results = package_results(package)
    assert results is not None
    (now,), (then,) = results.widths, exported.report.widths
    assert [each.top1_percent for each in now.hops] == [each.top1_percent for each in then.hops]
    (package / "results.json").write_bytes(b"\xff")
    with pytest.raises(PackageError, match=r"results\.json: cannot be read"):
        package_results(package)
    (package / "results.json").unlink()
    with pytest.raises(PackageError, match=r"results\.json: cannot be read"):
        package_results(package)
    manifest = replace(read_manifest(package), results=None)
    (package / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    assert package_results(package) is None
