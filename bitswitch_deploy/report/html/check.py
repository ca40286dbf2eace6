"""`check --report`: the verdict on every case with its interval and p, what it rests on, and what was not compared."""

from __future__ import annotations

from bitswitch_deploy.gate.judgement import Evidence, Judgement
from bitswitch_deploy.gate.paired_counts import MAX_SAMPLES
from bitswitch_deploy.gate.result import CaseResult, CheckResult
from bitswitch_deploy.report.check_page import bound, check_facts, grouped_notes, headline
from bitswitch_deploy.report.html.charts import Whisker, whiskers
from bitswitch_deploy.report.html.document import (
    Block,
    Cell,
    Item,
    Paragraph,
    Section,
    Table,
    facts,
    listed,
    number,
    numbers,
    render_page,
    row,
    words,
)


def check_html(result: CheckResult, command: tuple[str, ...] = ()) -> str:
    """The page about a check; equal results give equal text, whatever time they took."""
    judged = [
        (each, each.evidence, each.judgement)
        for each in result.cases
        if each.evidence is not None and each.judgement is not None
    ]
    if judged:
        sections: tuple[Section, ...] = (
            Section(name="verdicts", title="Verdicts", blocks=_verdicts(result, judged)),
            Section(name="evidence", title=f"What {result.metric} says", blocks=_evidence(result, judged)),
        )
    else:
        sections = (Section(name="recorded", title="Recorded", blocks=(_recorded(result),)),)
    notes = listed(*(Item(strong=cases, text=note) for cases, note in grouped_notes(result)))
    clean = (Paragraph(text="Nothing: every case of the baseline was compared."),) if judged else ()
    return render_page(
        title=headline(result),
        about=facts(list(check_facts(result))),
        sections=(*sections, Section(name="notes", title="Not compared, changed or too few", blocks=notes or clean)),
        command=command,
    )


_Judged = tuple[CaseResult, Evidence, Judgement]


def _verdicts(result: CheckResult, judged: list[_Judged]) -> tuple[Block, ...]:
    limits = result.limits
    chart = whiskers(
        f"Drop in {result.unit}. Dashed: more than {limits.max_drop:g} fails, {limits.max_drop + limits.effect:g} "
        "is not missed",
        [
            Whisker(label=each.case.label, value=evidence.drop, low=evidence.lower, high=evidence.upper)
            for each, evidence, _ in judged
        ],
        (limits.max_drop, limits.max_drop + limits.effect),
    )
    table = Table(
        label="Verdict table",
        caption=f"{result.metric}, drop in {result.unit}",
        columns=(*words("case, verdict"), *numbers("drop, from, to, p, samples, would tell")),
        rows=tuple(_verdict(*each) for each in judged),
    )
    legend = (
        f"From, to: the drop is in there with {100 * (1 - 2 * limits.alpha):g} % confidence, each case for itself, "
        "approximately. p: of no drop beyond what may be lost, by Holm's rule over all cases; the verdict goes by p. "
        "Would tell: about so many samples, - where the verdict stands."
    )
    return (*chart, table, Paragraph(text=legend, dim=True))


def _verdict(each: CaseResult, evidence: Evidence, judgement: Judgement) -> tuple[Cell, ...]:
    needed = judgement.needed
    return row(
        each.case.label,
        Cell(text=judgement.verdict, bad=judgement.verdict == "regressed"),
        number(evidence.drop, "+.2f"),
        bound(evidence.lower),
        bound(evidence.upper),
        number(judgement.p_value, ".2g"),
        str(evidence.n),
        "-" if needed is None else f"> {MAX_SAMPLES}" if needed > MAX_SAMPLES else str(needed),
    )


def _evidence(result: CheckResult, judged: list[_Judged]) -> tuple[Block, ...]:
    table = Table(
        label="Evidence table",
        caption=f"{result.metric} in {result.unit}; p-values of each case for itself",
        columns=(
            *words("case, hop"),
            *numbers("before, now, worse, better, p of no drop, p of a drop, spread, unseen"),
            *words("method"),
        ),
        rows=tuple(_weighed(each, evidence) for each, evidence, _ in judged),
    )
    limits = result.limits
    legend = (
        f"p of no drop: of samples like these or worse, had it fallen by {limits.max_drop:g} at most. p of a drop: of "
        f"samples like these or better, had it fallen by {limits.max_drop + limits.effect:g} or more. Spread: standard "
        "deviation of what one sample adds to the drop. Unseen: what a sample that is not among these may add."
    )
    return table, Paragraph(text=legend, dim=True)


def _weighed(each: CaseResult, evidence: Evidence) -> tuple[Cell, ...]:
    return row(
        each.case.label,
        each.hop,
        number(evidence.before),
        number(evidence.now),
        str(evidence.lost),
        str(evidence.gained),
        number(evidence.p_drop, ".2g"),
        number(evidence.p_excluded, ".2g"),
        number(evidence.spread),
        number(evidence.unseen),
        evidence.method,
    )


def _recorded(result: CheckResult) -> Table:
    return Table(
        label="Table of what was recorded",
        caption=f"{result.metric} in {result.unit}",
        columns=(*words("case, hop"), *numbers(f"{result.metric}, samples")),
        rows=tuple(row(each.case.label, each.hop, number(each.value), str(each.n)) for each in result.cases),
    )
