"""The result of a search for people: what was chosen, beside the uniform widths, and the front as a picture."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import groupby

from bitswitch_deploy.report.page import Page
from bitswitch_deploy.report.search_report import Assigned, Measured, SearchReport
from bitswitch_deploy.search.latency import TableCheck
from bitswitch_deploy.search.statistics import Comparison, Interval

_BAR = 24
# Heads of columns that must leave room for numbers.
_NARROW = {"latency_p50_ms": "p50 ms", "avg_weight_bits": "weight bits", "avg_bits": "avg bits", "agreement": "same"}
_METHODS = {
    "cross_entropy": "loss of each layer at each width, measured",
    "divergence": "divergence of each layer at each width from the highest width, measured",
    "hessian_trace": "Hessian trace times squared error, from a file",
}


def print_search(report: SearchReport, page: Page) -> None:
    """Print a search."""
    metric = "top-1" if report.samples.labelled else "agreement"
    page.title(search_title(report))
    page.pairs(drop_facts(report), style="bold red" if report.drop_exceeded else "green")
    page.pairs(search_facts(report))
    if report.budgets:
        page.section("Budgets")
        page.table(
            (("budget", False), ("used", True), ("limit", True), ("minimum", True)),
            [
                [(each.name, ""), *((amount(value), "") for value in (each.used, each.limit, each.minimum))]
                for each in report.budgets
            ],
        )
    page.section(f"Final test, {metric} in % on {report.samples.n_test:,} samples that the search has not seen")
    others = [each for each in report.uniform if each.widths != report.chosen.widths]
    _print_table(page, report, [report.chosen, *others], metric)
    if report.front:
        page.section(f"Front over {report.swept}, dear to cheap, with points lost against the highest width")
        _print_front(page, report)
    page.section("Widths")
    page.pairs(_runs(report.chosen.widths))
    if report.dominated:
        page.section("Left out: another width costs no more and uses no more of what is budgeted")
        page.pairs(dominated_texts(report))
    notes = search_notes(report)
    if notes:
        page.section("Notes")
        for note in notes:
            page.paragraph(f"- {note}")
    page.section("Next")
    page.command(next_command(report))


def next_command(report: SearchReport) -> str:
    """What exports the chosen assignment."""
    words = {"--master": report.master_path, "--mixed": report.output, "--data": report.data_path}
    named = " ".join(f"{flag} {shlex.quote(value)}" for flag, value in words.items() if value)
    return f"bitswitch-deploy export --target NAME {named}"


def search_title(report: SearchReport) -> str:
    """The outcome in one line."""
    exceeded = ", which loses more than --max-drop" if report.drop_exceeded else ""
    return f"Searched {len(report.chosen.widths)} layers: {report.chosen.label} written to {report.output}{exceeded}"


def drop_facts(report: SearchReport) -> list[tuple[str, str]]:
    """What the final test says of the limit of the drop; nothing where there is none."""
    if report.max_drop is None:
        return []
    drop = report.drop
    if report.drop_exceeded:
        verdict = "EXCEEDED"
    else:
        verdict = "kept" if drop.high <= report.max_drop else "kept, though the interval reaches beyond it"
    lost = f"{drop.value:.2f} points ({drop.low:+.2f} .. {drop.high:+.2f}) against {report.reference} in the final test"
    return [("drop", f"{lost}, limit {report.max_drop:g}: {verdict}")]


def search_facts(report: SearchReport) -> list[tuple[str, str]]:
    """What was searched, how, and for how long."""
    samples = report.samples
    correlation = report.rank_correlation
    statistics = "fitted to each assignment" if report.reestimated else "the master's, as exported"
    drawn = "of each class the same number, as far as it has them" if samples.labelled else "by chance"
    master = f"{report.master_path} (sha256 {report.master_sha256[:12]})"
    if report.reestimated:  # the hash is that of the master it was made from
        master = f"sha256 {report.master_sha256[:12]}; with the statistics of this assignment: {report.master_path}"
    facts = [
        ("master", master),
        ("searched on", f"{samples.n_search:,} samples of {samples.name}, {drawn}"),
        ("costs", f"{_METHODS[report.method]}, on {report.n_costs:,} samples"),
        ("BatchNorm statistics", statistics),
        ("candidates", f"{report.n_candidates} measured, {report.refine_moves} improving moves"),
        ("time", f"{report.seconds:.0f} s"),
    ]
    if correlation is not None:
        facts.insert(5, ("prediction", f"rank correlation with what was measured: {correlation:.2f}"))
    if samples.left_out:
        facts.insert(2, ("tested on", f"{samples.n_test:,}; {samples.left_out:,} left out, the search has seen them"))
    return facts


def _print_table(page: Page, report: SearchReport, rows: Sequence[Assigned], metric: str) -> None:
    """One resource only, the first budget's or average bits: with more of them numbers do not fit 80 columns."""
    resource = rows[0].uses[0][0].partition("@")[0]
    columns = [("", False), (_NARROW.get(resource, resource), True), (_NARROW.get(metric, metric), True)]
    columns += [("95 %", True)]
    columns += [(f"against {each}", True) for each in (report.reference, report.best_uniform or "uniform")]
    cells = []
    for index, each in enumerate(rows):
        test = each.test
        if test is None:
            continue
        style = "bold" if index == 0 else ""
        texts = [f"{each.label}{' *' if index == 0 else ''}", _short(each.uses[0][1])]
        texts += [f"{test.right_percent.value:.2f}", f"{test.right_percent.low:.1f} .. {test.right_percent.high:.1f}"]
        texts += [_points(test.against_reference.points), *_against(test)]
        cells.append([(text, style) for text in texts])
    page.table([*columns, ("p", True)], cells)
    page.paragraph("*  chosen; differences are paired, in points, with 95 % intervals; p: exact McNemar test")


def _against(test: Measured) -> tuple[str, str]:
    comparison: Comparison | None = test.against_uniform
    return ("-", "-") if comparison is None else (_points(comparison.points), f"{comparison.p_value:.2g}")


def _points(interval: Interval) -> str:
    """The wider side: where few samples differ the interval reaches a little farther towards zero and beyond."""
    return f"{interval.value:+.2f} +-{max(interval.high - interval.value, interval.value - interval.low):.2f}"


def _print_front(page: Page, report: SearchReport) -> None:
    name = report.swept.partition("<=")[0]
    gains = [each.test.against_reference.points.value if each.test else 0.0 for each in report.front]
    drops = [0.0 - gain for gain in gains]  # -gain would print -0.00
    most = max(*drops, 1e-9) if drops else 1.0
    rows = []
    for each, drop in zip(report.front, drops):
        use = next(value for key, value in each.uses if key.partition("@")[0] == name)
        bar = "#" * max(0, round(_BAR * drop / most))
        chosen = each.widths == report.chosen.widths
        style = "bold" if chosen else ""
        cells = (f"{each.label}{' *' if chosen else ''}", _short(use), f"{each.search.loss:.4f}", f"{drop:.2f}", bar)
        rows.append([(cell, style) for cell in cells])
    columns = (("", False), (name, True), ("search loss", True), ("points lost", True), ("", False))
    page.table(columns, rows)


def _runs(widths: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
    """Layers of each width, widest first."""
    ordered = sorted(widths, key=lambda each: -each[1])
    return [
        (f"{bits} bits", ", ".join(name for name, _ in layers))
        for bits, layers in groupby(ordered, lambda each: each[1])
    ]


def dominated_texts(report: SearchReport) -> list[tuple[str, str]]:
    """(width and what is better, layers) of the choices that were left out."""
    pairs: dict[tuple[int, int], list[str]] = {}
    for each in report.dominated:
        pairs.setdefault((each.width, each.by), []).append(each.group)
    total = len(report.chosen.widths)
    return [
        (
            f"{width} bits, by {by}",
            f"{len(names)} of {total} layers: {', '.join(names[:4])}{', ...' * (len(names) > 4)}",
        )
        for (width, by), names in sorted(pairs.items(), reverse=True)
    ]


def search_notes(report: SearchReport) -> list[str]:
    """What the numbers need beside them."""
    notes = []
    for check in report.table_checks:
        worst = max(check.errors_percent, key=lambda error: abs(error[1]))
        bits = ",".join(str(width) for width, _ in check.errors_percent)
        predicted = dict(report.chosen.uses)[f"latency_p50_ms@{check.target}"]
        notes += [f"latency table of {check.target}: UNSTABLE, {reason}" for reason in check.unstable]
        notes.append(
            f"latency table of {check.target}, {_measured_with(check)}: {predicted:.4g} ms predicted for "
            f"{report.chosen.label}. The layers add up to {worst[1]:+.1f} % of the whole at w{worst[0]}, the worst "
            f"uniform width; {check.margin_ns / 1e6:.3g} ms are added to every prediction. "
            f"Before relying on it, measure it: `export` with `--bits {bits}` beside `--mixed`, then `bitswitch-deploy "
            "profile PACKAGE --latency-table NEW` shows each width, mixed too, beside what the new table predicts"
        )
        if check.n_alike:
            notes.append(
                f"latency table of {check.target}: times of one layer that are within {check.noise_percent:g} % or a "
                f"microsecond of each other count as one, their mean, as do {check.n_alike} of {check.n_times}: such a "
                "difference is noise, and no width is chosen for it"
            )
    return [*notes, *report.notes]


def _measured_with(check: TableCheck) -> str:
    threads = "" if check.threads is None else f" and {check.threads} thread{'s' * (check.threads != 1)}"
    return f"measured with batches of {check.batch_size}{threads}"


def amount(value: float) -> str:
    """An amount of any resource."""
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _short(value: float) -> str:
    """An amount in a few characters, with the suffixes of --budget: 14.29M."""
    for suffix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.4g}"
