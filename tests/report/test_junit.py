from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import xmlschema

from bitswitch_deploy.gate.baseline import Case
from bitswitch_deploy.report.junit import check_to_junit
from tests.report.check_results import CASES, check_result

SCHEMA = xmlschema.XMLSchema(str(Path(__file__).with_name("junit.xsd")))


def test_it_is_what_ci_systems_read() -> None:
    SCHEMA.validate(check_to_junit(check_result()).decode())


def test_the_schema_refuses_what_they_do_not() -> None:
    document = check_to_junit(check_result()).decode().replace('failures="1"', 'failures="one"', 1)
    with pytest.raises(xmlschema.XMLSchemaValidationError, match="one"):
        SCHEMA.validate(document)


def test_verdicts_become_failed_passed_and_skipped() -> None:
    root = ET.fromstring(check_to_junit(check_result()))
    suite = root[0]
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "skipped": "1",
    }
    fell, held, unknown = suite.findall("testcase")
    assert [each.get("name") for each in (fell, held, unknown)] == ["w8", "w4", "w2"]
    assert fell.get("classname") == "net.x86-cpu"
    failure, skipped = fell.find("failure"), unknown.find("skipped")
    assert failure is not None
    assert skipped is not None
    assert "top-1 90.00 -> 87.50, drop 2.50 points" in str(failure.text)
    assert "about 4,321 samples would tell" in str(skipped.get("message"))
    assert held.find("failure") is held.find("skipped") is None


def test_where_proof_is_required_too_few_samples_fail() -> None:
    suite = ET.fromstring(check_to_junit(check_result(require_proof=True)))[0]
    assert (suite.get("failures"), suite.get("skipped")) == ("2", "0")


def test_names_that_xml_cannot_hold(tmp_path: Path) -> None:
    strange = replace(CASES[0], case=Case(master="a<b>&\x07'\"", target="t\x00", width="w8"), notes=("\x1b[31m",))
    document = check_to_junit(check_result(cases=(strange,)))
    SCHEMA.validate(document.decode())
    assert ET.fromstring(document)[0][0].get("classname") == "a<b>&?'\".t?"
