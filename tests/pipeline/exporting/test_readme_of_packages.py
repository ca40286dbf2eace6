"""The page about packages names every file that an export writes, with its role."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bitswitch_deploy.package.files import all_files
from bitswitch_deploy.package.manifest import MANIFEST
from bitswitch_deploy.package.verify import read_manifest
from tests.pipeline.conftest import WIDTHS, Exported, export_to

PAGE = Path(__file__).parents[3] / "bitswitch_deploy" / "package" / "README.md"


def rows() -> dict[str, str]:
    """Give the files of the table and their roles, with the name of the bundled master."""
    found = re.findall(r"^\| `(\S+)` \| ?(\w*) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.replace("NAME", "digits"): role for name, role in found}


def check(package: Path) -> None:
    table = rows()
    roles = {entry.path: entry.role for entry in read_manifest(package).files} | {MANIFEST: ""}
    assert set(all_files(package)) == set(roles)
    for path, role in roles.items():
        assert table[re.sub(r"-(w\d|fp16(?=\.engine))", "-w4", path)] == role


def test_files_of_every_target(exported: Exported) -> None:
    check(exported.package)


@pytest.mark.parametrize("limit", [1 << 10, None])
def test_files_with_shared_weights_and_beside_graphs(
    limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        monkeypatch.setattr("bitswitch_deploy.graph.large_tensors.EMBEDDED_LIMIT_BYTES", limit)
    check(export_to(tmp_path / "p", "x86-cpu", widths=WIDTHS[:2], shared_weights=limit is None).package)
