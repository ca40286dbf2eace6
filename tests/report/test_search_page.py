"""The page of a search: what was chosen, its intervals, what was left out, the front, and how to go on."""

from __future__ import annotations

import io

from bitswitch_deploy.report.search_page import print_search
from bitswitch_deploy.report.search_report import Assigned, BudgetUse, Measured, Samples, SearchReport
from bitswitch_deploy.search.dominance import Dominated
from bitswitch_deploy.search.resources import TableCheck
from bitswitch_deploy.search.statistics import Comparison, Interval


def comparison(points: float) -> Comparison:
    return Comparison(
        points=Interval(value=points, low=points - 0.4, high=points + 0.4),
        loss=Interval(value=0, low=0, high=0),
        p_value=0.031,
        n=100,
    )


def assigned(label: str, bits: float, drop: float, *, uniform: float | None = None) -> Assigned:
    measured = Measured(
        n=100,
        loss=drop / 10,
        right_percent=Interval(value=90 - drop, low=85, high=95),
        against_reference=comparison(-drop),
        against_uniform=None if uniform is None else comparison(uniform),
    )
    widths = (("a", int(bits)), ("b", int(bits) + 2))
    uses = (("avg_bits", bits), ("latency_p50_ms@rtx", 1.5))
    return Assigned(label=label, widths=widths, uses=uses, predicted_cost=0.1, search=measured, test=measured)


def report() -> SearchReport:
    chosen = assigned("mixed", 3, 1.25, uniform=2.5)
    return SearchReport(
        master_path="m [4].safetensors",
        master_sha256="a" * 64,
        output="widths.json",
        samples=Samples(name="set", labelled=True, n_search=64, search_sha256="b" * 64, n_test=100, left_out=7),
        budgets=(BudgetUse(name="avg_bits<=4", used=3, limit=4, minimum=2),),
        max_drop=None,
        reestimated=False,
        method="cross_entropy",
        n_costs=64,
        chosen=chosen,
        best_uniform="w2",
        uniform=(assigned("w8", 8, 0), assigned("w2", 2, 3.75)),
        front=(assigned("w8", 8, 0), chosen),
        swept="avg_bits<=4",
        n_candidates=12,
        refine_moves=1,
        rank_correlation=0.93,
        dominated=(Dominated(group="a", width=6, by=8), Dominated(group="b", width=6, by=8)),
        table_checks=(TableCheck(target="rtx", errors_percent=((8, 1.0), (4, -6.5)), margin_ns=40_000),),
        notes=("a note",),
        seconds=12.3,
    )


def page() -> str:
    stream = io.StringIO()
    print_search(report(), stream, width=120)
    return stream.getvalue()


def test_everything_that_matters_is_on_it() -> None:
    text = " ".join(page().split())
    for part in (
        "Searched 2 layers: mixed written to widths.json",
        "7 left out, the search has seen them",
        "rank correlation with what was measured: 0.93",
        "12 measured, 1 improving moves",
        "Final test, top-1 in % on 100 samples that the search has not seen",
        "2 of 2 layers: a, b",
        "-6.5 % of the whole at w4",
        "0.04 ms are added to every prediction",
        "- a note",
        "--master 'm [4].safetensors' --target NAME --mixed widths.json",
    ):
        assert part in text


def test_rows_have_their_intervals_and_the_front_its_bars() -> None:
    lines = page().splitlines()
    (chosen,) = [
        line.split() for line in lines if line.split()[:2] == ["mixed", "*"] and "..." not in line and ".." in line
    ]
    assert chosen == ["mixed", "*", "3", "88.75", "85.0", "..", "95.0", "-1.25", "+-0.40", "+2.50", "+-0.40", "0.031"]
    (bar,) = [line for line in lines if line.rstrip().endswith("#")]
    assert bar.split()[:5] == ["mixed", "*", "3", "0.1250", "1.25"]
