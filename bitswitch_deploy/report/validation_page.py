"""A validation by itself, for people: one line for each hop of each width."""

from __future__ import annotations

from collections.abc import Sequence

from bitswitch_deploy.report.page import Page
from bitswitch_deploy.validation.hops import HopResult, ValidationResult, Verdict, percent_rounded_down

_COLUMNS = (
    ("width", False),
    ("hop", False),
    ("top-1 %", True),
    ("agree %", True),
    ("max error", True),
    ("verdict", False),
)


def print_validation(result: ValidationResult, verdicts: Sequence[Verdict], page: Page) -> None:
    """Print what was measured and judged.

    Args:
        result: all hops. verdicts: judgements on them.
    """
    page.title(f"{result.dataset.n:,} samples of {result.dataset.name} (sha256 {result.dataset.sha256[:12]})")
    judged = {(verdict.label, verdict.hop): verdict for verdict in verdicts}
    hops = [hop for each in result.widths for hop in each.hops]
    page.table(_COLUMNS, [_cells(hop, judged.get((hop.label, hop.hop))) for hop in hops])
    for kind, title in (("failed", "Failed"), ("not judged", "Not judged")):
        reasons = [
            (f"{verdict.label} {verdict.hop}", verdict.reason) for verdict in verdicts if verdict.verdict == kind
        ]
        if reasons:
            page.section(title)
            page.pairs(reasons)


def _cells(hop: HopResult, verdict: Verdict | None) -> list[tuple[str, str]]:
    failed = verdict is not None and verdict.verdict == "failed"
    texts = (
        hop.label,
        hop.hop,
        _number(hop.top1_percent, "{:.2f}"),
        "-" if hop.agreement_percent is None else percent_rounded_down(hop.agreement_percent),
        _number(hop.max_abs_error, "{:.2g}"),
        verdict.verdict if verdict else "",
    )
    return [(text, "bold red" if failed else "") for text in texts]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
