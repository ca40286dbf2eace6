"""A check for GitHub Actions: a summary in Markdown for the page of the run, and annotations by workflow commands."""

from __future__ import annotations

from bitswitch_deploy.gate.result import CheckResult
from bitswitch_deploy.report.check_page import grouped_notes, headline, samples_text, verdict_text

_MARKS = {
    "regressed": ":x:",
    "not shown to regress": ":white_check_mark:",
    "too few samples to tell": ":grey_question:",
}


def step_summary(result: CheckResult) -> str:
    """Markdown: a heading, a table of the cases, the notes."""
    lines = [f"### bitswitch-deploy check: {headline(result)}", ""]
    if result.updated:
        lines += [f"| case | {_cell(result.metric)} |", "|---|---:|"]
        lines += [f"| {_cell(each.case.label)} | {each.value:.2f} |" for each in result.cases]
    else:
        lines += ["| case | before | now | drop | p | verdict |", "|---|---:|---:|---:|---:|---|"]
        lines += [_row(result, index) for index in range(len(result.cases))]
    lines += ["", *(f"- {_cell(owners)}: {_cell(note)}" for owners, note in grouped_notes(result))]
    return "\n".join(lines).rstrip() + "\n"


def annotation_lines(result: CheckResult) -> tuple[str, ...]:
    """Workflow commands: `::error` for each case that fails the run, `::warning` where nothing can be told."""
    undecided = result.with_verdict("too few samples to tell")
    levels = [("error", each) for each in result.failed]
    levels += [("warning", each) for each in undecided if each not in result.failed]
    return tuple(
        f"::{level} title={_escaped(each.case.label, property_too=True)}::{_escaped(verdict_text(each, result))}"
        for level, each in levels
    )


def _row(result: CheckResult, index: int) -> str:
    each = result.cases[index]
    evidence, judgement = each.evidence, each.judgement
    if evidence is None or judgement is None:
        return f"| {_cell(each.case.label)} | | {each.value:.2f} | | | |"
    verdict = f"{_MARKS[judgement.verdict]} {judgement.verdict}"
    if judgement.needed is not None:
        verdict += f" ({samples_text(judgement.needed)} would)"
    numbers = f"{evidence.before:.2f} | {evidence.now:.2f} | {evidence.drop:+.2f} | {judgement.p_value:.2g}"
    return f"| {_cell(each.case.label)} | {numbers} | {verdict} |"


def _cell(text: str) -> str:
    """Text that ends no cell and begins no markup."""
    plain = "".join(char if char.isprintable() else "?" for char in text)
    return "".join(f"\\{char}" if char in "|\\`*_<>[]" else char for char in plain)


def _escaped(text: str, *, property_too: bool = False) -> str:
    """As the runner's toolkit escapes data; in properties the separators as well."""
    pairs = [("%", "%25"), ("\r", "%0D"), ("\n", "%0A")] + [(":", "%3A"), (",", "%2C")] * property_too
    for char, code in pairs:
        text = text.replace(char, code)
    return text
