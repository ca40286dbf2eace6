"""Findings of the linter for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bitswitch_deploy.graph.lint.finding import Finding, LintResult
from bitswitch_deploy.report.page import Page

_STYLES = {"error": "bold red", "warning": "yellow"}
# Nodes of one rule that are named; --json names all.
_SHOWN = 5


def print_lint(result: LintResult, page: Page) -> None:
    """Print the findings by rule and mend, errors first."""
    page.title(f"{result.graph}: {_summary(result)}")
    page.paragraph(
        f"looked at {result.quantizers} Q, {result.dequantizers} DQ and {result.weighted} weighted layers, "
        f"{result.quantized_weights} of them with a quantized weight, for {' and '.join(result.engines)}"
    )
    for group in _groups(result.findings):
        _print_rule(page, group)


def _summary(result: LintResult) -> str:
    if not result.findings:
        return "nothing found" if result.quantizers or result.dequantizers else "nothing found, and no Q or DQ in it"
    n_errors = len(result.errors)
    counts = ((n_errors, "error"), (len(result.findings) - n_errors, "warning"))
    return ", ".join(f"{n:,} {word}{'s' * (n != 1)}" for n, word in counts if n)


def _groups(findings: Iterable[Finding]) -> Iterable[list[Finding]]:
    """Findings of one rule with one mend, in the order of the first of each."""
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.rule, finding.allowed, finding.do), []).append(finding)
    return groups.values()


def _print_rule(page: Page, findings: Sequence[Finding]) -> None:
    first = findings[0]
    page.section(f"{first.severity}: {first.rule}  ({', '.join(first.engines)})")
    page.pairs([("allowed", first.allowed), ("do", first.do)])
    nodes = [(f"{finding.operator} {finding.node}", finding.got) for finding in findings[:_SHOWN]]
    page.table(
        (("node", False), ("got", False)),
        [[(node, _STYLES[first.severity]), (got, "")] for node, got in nodes],
    )
    if len(findings) > _SHOWN:
        page.paragraph(f"and {len(findings) - _SHOWN:,} more")
