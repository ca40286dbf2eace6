"""`search --report`: what was chosen, beside the uniform widths, and the front."""

from __future__ import annotations

from collections.abc import Sequence

from bitswitch_deploy.report.html.accuracy import ABOUT_FRONT
from bitswitch_deploy.report.html.charts import Point, plot
from bitswitch_deploy.report.html.document import (
    Block,
    Cell,
    Command,
    Item,
    Paragraph,
    Section,
    Table,
    facts,
    listed,
    number,
    number_columns,
    numbers,
    render_page,
    row,
    words,
)
from bitswitch_deploy.report.search_page import (
    amount,
    dominated_texts,
    drop_facts,
    next_command,
    search_facts,
    search_notes,
    search_title,
)
from bitswitch_deploy.report.search_report import Assigned, Measured, SearchReport

_Tested = tuple[str, Assigned, Measured]


def search_html(report: SearchReport, command: tuple[str, ...] = ()) -> str:
    """The page about a search; equal results give equal text, whatever time they took."""
    left_out = listed(*(Item(strong=widths, text=layers) for widths, layers in dominated_texts(report)))
    metric = "top-1" if report.samples.labelled else "agreement"
    tested = _tested(report)
    why = "Another width costs no more and uses no more of what is budgeted."
    sections = (
        Section(name="front", title="Accuracy against cost", blocks=_front(report, tested, metric)),
        Section(name="test", title="Final test", blocks=_test(report, tested, metric)),
        Section(name="budgets", title="Budgets", blocks=_budgets(report)),
        Section(name="widths", title="Widths", blocks=(_widths(report),)),
        Section(
            name="left-out",
            title="Left out",
            blocks=(Paragraph(text=why, dim=True), *left_out) if left_out else (),
        ),
        Section(name="notes", title="Notes", blocks=listed(*(Item(text=note) for note in search_notes(report)))),
        Section(name="next", title="Next", blocks=(Command(text=next_command(report)),)),
    )
    # the time that it took is no result
    about = [(name, text) for name, text in search_facts(report) if name != "time"]
    drop = tuple((name, Cell(text=text, bad=report.drop_exceeded)) for name, text in drop_facts(report))
    return render_page(title=search_title(report), about=(*drop, *facts(about)), sections=sections, command=command)


def _tested(report: SearchReport) -> list[_Tested]:
    """Every assignment of the final test once, with the name that it has on the page: chosen, uniform, the front."""
    named = [(f"{report.chosen.label}, chosen", report.chosen), *((each.label, each) for each in report.uniform)]
    named += [(f"{each.label} {index}", each) for index, each in enumerate(report.front, 1)]
    first: dict[tuple[tuple[str, int], ...], _Tested] = {}
    for name, each in named:
        if each.test is not None:
            first.setdefault(each.widths, (name, each, each.test))
    return list(first.values())


def _front(report: SearchReport, tested: Sequence[_Tested], metric: str) -> tuple[Block, ...]:
    if not tested:
        return ()
    resource = _resource(report)
    points = [
        Point(
            label=name,
            name=name if each not in report.front or each in (report.chosen, *report.uniform) else "",
            x=dict(each.uses)[resource],
            y=test.right_percent.value,
            y_low=test.right_percent.low,
            y_high=test.right_percent.high,
        )
        for name, each, test in tested
    ]
    drawn = plot(points, x_title=resource, y_title=f"{metric} in %, final test")
    about = "The search saw other samples: what is best in its loss need not be best here."
    return drawn, Paragraph(text=f"{about} {ABOUT_FRONT}", dim=True)


def _resource(report: SearchReport) -> str:
    """The swept resource, or the first one, as `uses` names it."""
    swept = report.swept.partition("<=")[0]
    names = [name for name, _ in report.chosen.uses]
    return next((name for name in names if swept and name.partition("@")[0] == swept.partition("@")[0]), names[0])


def _test(report: SearchReport, tested: Sequence[_Tested], metric: str) -> tuple[Block, ...]:
    resources = [name for name, _ in report.chosen.uses]
    against = [f"against {each}" for each in (report.reference, report.best_uniform or "uniform")]
    columns = (
        *words("assignment"),
        *number_columns(resources),
        *numbers(f"{metric}, from, to"),
        *number_columns(against),
        *numbers("p, search loss"),
        *words("front"),
    )
    table = Table(
        label="Table of the final test",
        caption=f"{metric} in % on {report.samples.n_test:,} samples that the search has not seen",
        columns=columns,
        rows=tuple(_test_row(report, each, resources) for each in tested),
    )
    legend = (
        "Differences are paired, in points; p: exact McNemar test against the best uniform width. "
        "Front: found on the loss of the samples of the search."
    )
    return table, Paragraph(text=legend, dim=True)


def _test_row(report: SearchReport, tested: _Tested, resources: Sequence[str]) -> tuple[Cell, ...]:
    name, each, test = tested
    uses, better = dict(each.uses), test.against_uniform
    return row(
        name,
        *(Cell(text=amount(uses[resource]), value=uses[resource]) for resource in resources),
        number(test.right_percent.value),
        number(test.right_percent.low),
        number(test.right_percent.high),
        number(test.against_reference.points.value, "+.2f"),
        number(better.points.value if better is not None else None, "+.2f"),
        number(better.p_value if better is not None else None, ".2g"),
        number(each.search.loss, ".4f"),
        "yes" if any(each.widths == other.widths for other in report.front) else "no" if report.front else "not swept",
    )


def _budgets(report: SearchReport) -> tuple[Block, ...]:
    if not report.budgets:
        return ()
    rows = tuple(
        row(each.name, *(Cell(text=amount(value), value=value) for value in (each.used, each.limit, each.minimum)))
        for each in report.budgets
    )
    return (Table(label="Budget table", columns=(*words("budget"), *numbers("used, limit, minimum")), rows=rows),)


def _widths(report: SearchReport) -> Table:
    """Bits of each layer: of the chosen assignment, and of each on the front that is not uniform."""
    mixed = [(name, dict(each.widths)) for name, each, _ in _tested(report) if each not in report.uniform]
    shown = mixed or [("chosen", dict(report.chosen.widths))]
    rows = tuple(row(layer, *(str(bits[layer]) for _, bits in shown)) for layer, _ in report.chosen.widths)
    columns = (*words("layer"), *number_columns(name for name, _ in shown))
    return Table(label="Widths of layers", caption="bits", columns=columns, rows=rows)
