"""A check as JUnit XML, in the elements and attributes that Jenkins, GitLab, GitHub actions and Azure all read.

A case is a test case: `failure` where the run fails for it, `skipped` where there are too few samples to tell.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from bitswitch_deploy.gate.result import CheckResult
from bitswitch_deploy.report.check_page import headline, verdict_text

_SUITE = "bitswitch-deploy check"


def check_to_junit(result: CheckResult) -> bytes:
    """The document, UTF-8; equal results give equal bytes."""
    failed, undecided = result.failed, result.with_verdict("too few samples to tell")
    skipped = [each for each in undecided if each not in failed]
    counts = {"tests": len(result.cases), "failures": len(failed), "errors": 0, "skipped": len(skipped)}
    shared = {name: str(count) for name, count in counts.items()} | {"time": f"{result.seconds:.3f}"}
    root = ET.Element("testsuites", {"name": _SUITE, **{k: v for k, v in shared.items() if k != "skipped"}})
    suite = ET.SubElement(root, "testsuite", {"name": _SUITE, **shared})
    for each in result.cases:
        classname = _plain(f"{each.case.master}.{each.case.target}")
        case = ET.SubElement(suite, "testcase", {"classname": classname, "name": _plain(each.case.width), "time": "0"})
        text = _plain(verdict_text(each, result))
        if each in failed:
            ET.SubElement(case, "failure", {"message": text, "type": "accuracy"}).text = text
        elif each in skipped:
            ET.SubElement(case, "skipped", {"message": text})
        ET.SubElement(case, "system-out").text = _plain("\n".join((text, *each.notes)))
    ET.SubElement(suite, "system-out").text = _plain("\n".join((headline(result), *result.notes)))
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _plain(text: str) -> str:
    """Without the control characters that XML cannot hold, which a file name can."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
