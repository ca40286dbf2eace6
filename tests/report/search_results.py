"""A search over two layers, made up."""

from __future__ import annotations

from bitswitch_deploy.report.search_report import Assigned, BudgetUse, Measured, Samples, SearchReport
from bitswitch_deploy.search.dominance import Dominated
from bitswitch_deploy.search.latency import TableCheck
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
        data_path="my test.npz",
        samples=Samples(name="set", labelled=True, n_search=64, search_sha256="b" * 64, n_test=100, left_out=7),
        budgets=(BudgetUse(name="avg_bits<=4", used=3, limit=4, minimum=2),),
        max_drop=None,
        drop=Interval(value=1.25, low=0.85, high=1.65),
        drop_exceeded=False,
        reestimated=False,
        method="cross_entropy",
        n_costs=64,
        chosen=chosen,
        reference="w8",
        best_uniform="w2",
        uniform=(assigned("w8", 8, 0), assigned("w2", 2, 3.75)),
        front=(assigned("w8", 8, 0), chosen),
        swept="avg_bits<=4",
        n_candidates=12,
        refine_moves=1,
        rank_correlation=0.93,
        n_refits=0,
        n_refit_candidates=0,
        n_refit_taken=0,
        dominated=(Dominated(group="a", width=6, by=8), Dominated(group="b", width=6, by=8)),
        table_checks=(
            TableCheck(
                target="rtx",
                batch_size=16,
                threads=None,
                errors_percent=((8, 1.0), (4, -6.5)),
                margin_ns=40_000,
                noise_percent=5.0,
                n_alike=3,
                n_times=4,
            ),
        ),
        notes=("a note",),
        seconds=12.3,
    )
