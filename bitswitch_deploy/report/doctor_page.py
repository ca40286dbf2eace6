"""What `doctor` found, for people, and as the text to send in."""

from __future__ import annotations

from bitswitch_deploy.report.build_page import device_text
from bitswitch_deploy.report.doctor_report import DoctorReport
from bitswitch_deploy.report.page import Page


def print_doctor(report: DoctorReport, page: Page) -> None:
    """Print `report`."""
    page.title(f"bitswitch-deploy {report.version}, Python {report.python}, {report.system}")
    page.pairs([("device", device_text(report.device))])
    page.section("Parts")
    columns = (("part", False), ("state", False), ("detail", False), ("for", False))
    page.table(
        columns, [[(cell, "") for cell in (each.name, each.state, each.detail, each.what)] for each in report.findings]
    )
    wanted = [(each.name, each.do) for each in report.findings if each.do]
    if wanted:
        page.section("How to get what is missing")
        page.pairs(wanted)
    if report.trials:
        page.section("Self-test")
        page.pairs(
            (trial.name, f"{'works' if trial.works else 'FAILED'}, {trial.seconds:.1f} s. {trial.detail}".strip())
            for trial in report.trials
        )
        page.gap()
        page.paragraph(
            "This text holds no names of your machine, of you, and no paths: please read it before you send it."
        )
