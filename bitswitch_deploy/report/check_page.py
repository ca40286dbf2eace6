"""A check for people: one line for each case, then what it means."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bitswitch_deploy.gate.judgement import Verdict
from bitswitch_deploy.gate.paired_counts import MAX_SAMPLES
from bitswitch_deploy.gate.result import CaseResult, CheckResult
from bitswitch_deploy.report.page import Page

_STYLES: dict[Verdict, str] = {
    "regressed": "bold red",
    "not shown to regress": "green",
    "too few samples to tell": "yellow",
}
_COLUMNS = (
    ("master", False),
    ("target", False),
    ("width", False),
    ("before", True),
    ("now", True),
    ("drop", True),
    ("between", True),
    ("p", True),
    ("verdict", False),
)


def print_check(result: CheckResult, page: Page) -> None:
    """Print what was found."""
    page.title(headline(result))
    page.pairs(check_facts(result))
    page.section(f"Cases, {result.metric} in {result.unit}")
    if result.updated:
        columns = (*_COLUMNS[:3], (result.metric, True), ("samples", True))
        page.table(columns, [[(text, "") for text in _recorded_cells(each)] for each in result.cases])
    else:
        # the name of the only master would take the room that the verdicts need
        hidden = int(len({each.case.master for each in result.cases}) == 1)
        page.table(_COLUMNS[hidden:], [_cells(each)[hidden:] for each in result.cases])
        page.gap()
        page.pairs(_legend(result))
    notes = grouped_notes(result)
    if notes:
        page.section("Notes")
        page.pairs(notes)


def _legend(result: CheckResult) -> Iterable[tuple[str, str]]:
    confidence = 100 * (1 - 2 * result.limits.alpha)
    yield "between", f"the drop is in there with {confidence:g} % confidence, each case for itself, approximately"
    yield "p", "of no drop beyond max_drop, by Holm's rule over all cases; the verdict goes by p"


def headline(result: CheckResult) -> str:
    """The outcome in one line."""
    if result.updated:
        return f"Recorded a baseline of {_plural(len(result.cases), 'case')}"
    counts = {verdict: len(result.with_verdict(verdict)) for verdict in _STYLES}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)


def verdict_text(each: CaseResult, result: CheckResult) -> str:
    """One case in one sentence."""
    evidence, judgement = each.evidence, each.judgement
    if evidence is None or judgement is None:
        return f"{result.metric} {each.value:.2f} recorded"
    moved = f"{result.metric} {evidence.before:.2f} -> {evidence.now:.2f}, drop {evidence.drop:.2f} {result.unit}"
    samples = f"{evidence.lost:,} samples worse and {evidence.gained:,} better of {evidence.n:,}"
    text = f"{judgement.verdict}: {moved} ({samples}, p = {judgement.p_value:.2g})"
    if judgement.needed is not None:
        text += f"; {samples_text(judgement.needed)} samples would tell"
    return text


def samples_text(needed: int) -> str:
    """How many samples would tell: `about 4,000`, or what no number up to MAX_SAMPLES does."""
    return f"more than {MAX_SAMPLES:,}" if needed > MAX_SAMPLES else f"about {needed:,}"


def grouped_notes(result: CheckResult) -> list[tuple[str, str]]:
    """(cases, note), also about the samples that would tell; cases with the same note share a line."""
    owners: dict[str, list[str]] = {}
    for each in result.cases:
        needed = each.judgement.needed if each.judgement is not None else None
        needs = () if needed is None else (f"{samples_text(needed)} samples would tell; there are {each.n:,}",)
        for note in (*needs, *each.notes):
            owners.setdefault(note, []).append(each.case.label)
    everywhere = len(result.cases)
    notes = [("all" if len(cases) == everywhere else ", ".join(cases), note) for note, cases in owners.items()]
    return [*notes, *(("all", note) for note in result.notes)]


def check_facts(result: CheckResult) -> Iterable[tuple[str, str]]:
    """What was compared, with what and under which limits."""
    limits = result.limits
    data = (f"{name} (sha256 {sha[:12]})" for name, sha in zip(result.dataset, result.dataset_sha256))
    yield "baseline", result.baseline
    yield "data", ", ".join(dict.fromkeys(data))
    yield "host", result.host
    if not result.updated:
        yield (
            "limits",
            f"a drop of more than {limits.max_drop:g} fails; one of {limits.max_drop + limits.effect:g} is not missed "
            f"(alpha {limits.alpha:g} over all cases, power {limits.power:g})",
        )
    computed, all_ = sum(each.computed for each in result.cases), sum(each.n for each in result.cases)
    if computed < all_:
        yield "cache", f"{all_ - computed:,} of {all_:,} outcomes were known"


def _cells(each: CaseResult) -> list[tuple[str, str]]:
    evidence, judgement = each.evidence, each.judgement
    assert evidence is not None
    assert judgement is not None
    texts = (
        each.case.master,
        each.case.target,
        each.case.width,
        f"{evidence.before:.2f}",
        f"{evidence.now:.2f}",
        f"{evidence.drop:+.2f}",
        f"{bound(evidence.lower)}..{bound(evidence.upper)}",
        f"{judgement.p_value:.2g}",
        judgement.verdict,
    )
    return [(text, _STYLES[judgement.verdict] if text is texts[-1] else "") for text in texts]


def bound(value: float) -> str:
    """One end of an interval; `?` where too few samples say nothing."""
    return f"{value:+.2f}" if math.isfinite(value) else "?"


def _recorded_cells(each: CaseResult) -> tuple[str, ...]:
    return each.case.master, each.case.target, each.case.width, f"{each.value:.2f}", f"{each.n:,}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"
