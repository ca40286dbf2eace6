"""What a package says about its own accuracy."""

from __future__ import annotations

from pathlib import Path

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.package.verify import read_manifest
from bitswitch_deploy.report.export_report import ExportReport
from bitswitch_deploy.report.json import report_from_json


def package_results(package: Path) -> ExportReport | None:
    """The report of the export, from the results file of the manifest; None where it names none.

    Raises:
        PackageError: the manifest or the results cannot be read, or are of another schema.
    """
    results = read_manifest(package).results
    if results is None:
        return None
    path = package / results
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise PackageError(
            where=str(path),
            got=f"cannot be read: {exc}",
            allowed="the results of an export",
            do="export the package again, or copy it again",
        ) from exc
    return report_from_json(text, where=str(path))
