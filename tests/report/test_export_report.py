from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from bitswitch_deploy.report.export_report import ExportReport


def test_a_report_does_not_change(report: ExportReport) -> None:
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'target'"):
        report.target = "rtx"  # type: ignore[misc]
    assert hash(report) == hash(report)
