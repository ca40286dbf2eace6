from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.report.export_report import ExportReport
from bitswitch_deploy.report.json import SCHEMA, report_from_json, report_to_json


def _refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


def _read(report: ExportReport) -> Any:
    return json.loads(report_to_json(report), parse_constant=_refuse)


def test_keys_are_the_fields_in_their_order_after_the_schema(report: ExportReport) -> None:
    tree = _read(report)
    assert list(tree) == ["schema", *(field.name for field in fields(report))]
    assert tree["schema"] == SCHEMA == "bitswitch-report/1"
    assert list(tree["widths"][0]) == [field.name for field in fields(report.widths[0])]
    assert list(tree["widths"][0]["hops"][0]) == [field.name for field in fields(report.widths[0].hops[0])]


def test_values_come_back(report: ExportReport) -> None:
    tree = _read(report)
    assert (tree["target"], tree["seconds"], tree["package_path"]) == ("jetson-agx-orin", 7.43, "/runs/deploy-orin")
    assert tree["dataset"] == {
        "name": "cifar10-sample",
        "sha256": "9b1c" * 16,
        "n": 1000,
        "labelled": True,
        "file_sha256": None,
        "class_names": [],
    }
    assert tree["not_done"] == [
        {
            "what": "TensorRT engines",
            "why": "only the board can build them",
            "command": report.not_done[0].command,
        }
    ]
    lowered = tree["widths"][1]["hops"][2]
    assert (lowered["hop"], lowered["top1_percent"], lowered["sqnr_db"], lowered["n"]) == (
        "lowered",
        88.89,
        38.25,
        1000,
    )
    engine = tree["widths"][1]["hops"][3]
    assert (engine["top1_percent"], engine["n"], engine["note"]) == (None, 0, "not run: no TensorRT here")
    assert tree["widths"][0]["verdicts"][2]["verdict"] == "not judged"


def test_equal_reports_give_equal_texts_that_survive_a_round_trip(report: ExportReport) -> None:
    text = report_to_json(report)
    assert text == report_to_json(replace(report))
    assert text == json.dumps(json.loads(text), indent=2) + "\n"


def test_without_data(report: ExportReport) -> None:
    assert _read(replace(report, dataset=None))["dataset"] is None


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_finite_become_null(report: ExportReport, value: float) -> None:
    row = report.widths[0]
    hop = replace(row.hops[2], sqnr_db=value, max_abs_error=0.0)
    tree = _read(replace(report, widths=(replace(row, hops=(hop,)),), seconds=value))
    assert tree["seconds"] is None
    assert tree["widths"][0]["hops"][0]["sqnr_db"] is None
    assert tree["widths"][0]["hops"][0]["max_abs_error"] == 0.0


def test_any_text_is_ascii(report: ExportReport) -> None:
    text = report_to_json(replace(report, package_path="/läufe/\udcff\x1b"))
    assert text.isascii()
    assert json.loads(text)["package_path"] == "/läufe/\udcff\x1b"


def test_a_report_that_was_written_reads_back(report: ExportReport) -> None:
    assert report_from_json(report_to_json(report), where="results.json") == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "bitswitch-report/9"}, "results.json: schema"),
        ({"widths": [{"label": "w8"}]}, "no key"),
        ({"more": 1}, "unknown key"),
        ({"seconds": "long"}, "seconds"),
    ],
)
def test_results_of_another_kind_are_refused(report: ExportReport, change: dict[str, object], message: str) -> None:
    text = json.dumps(_read(report) | change)
    with pytest.raises(PackageError, match=message):
        report_from_json(text, where="results.json")


def test_results_that_are_no_json_are_refused() -> None:
    with pytest.raises(PackageError, match="one JSON object"):
        report_from_json("{", where="results.json")
