"""The result of `search` as frozen values: the pipeline fills them, search_page.py and json.py render them."""

from __future__ import annotations

from dataclasses import dataclass

from bitswitch_deploy.search.costs import Method
from bitswitch_deploy.search.dominance import Dominated
from bitswitch_deploy.search.latency import TableCheck
from bitswitch_deploy.search.statistics import Comparison, Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of one assignment on one set of n samples. right_percent: top-1 with labels, else agreement with the reference.

    against_reference: compared with the highest trained width. against_uniform: compared with the best uniform width
    that keeps the same budgets, None where there is none or this is it.
    """

    n: int
    loss: float
    right_percent: Interval
    against_reference: Comparison
    against_uniform: Comparison | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """One assignment.

    label: `w4`, or `mixed`. widths: (layer, bits) of every quantized layer. uses: (resource, amount in its unit).
    predicted_cost: by the table of costs. search, test: what was measured; test is None where it was not run.
    """

    label: str
    widths: tuple[tuple[str, int], ...]
    uses: tuple[tuple[str, float], ...]
    predicted_cost: float
    search: Measured
    test: Measured | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetUse:
    """A budget as it came out. used, limit, minimum: in the unit of its name."""

    name: str
    used: float
    limit: float
    minimum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What was measured on. left_out: samples of the final test that the search had seen."""

    name: str
    labelled: bool
    n_search: int
    search_sha256: str
    n_test: int
    left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReport:
    """Everything `search` has to say.

    master_path: to export from; with `reestimated` BatchNorm statistics a copy of the master that was written.
    data_path: samples to validate an export on, with those of the final test; empty where these are bundled.
    method, n_costs: how layers were judged and on how many samples. chosen: what was written to `output`.
    reference: label of the highest trained width, which drops are counted from.
    max_drop: points that may be lost against the reference, None where nothing limits them.
    drop: points that the chosen assignment lost against it in the final test. drop_exceeded: whether they are more.
    best_uniform: label of the best uniform width that keeps the budgets, empty where none does.
    front: assignments from dear to cheap, each better than all that are cheaper; empty without --pareto or --max-drop.
    swept: the resource of the front. rank_correlation: of predicted costs and measured losses, None below 5 candidates.
        Of a front within each of its levels.
    n_refits: times that costs which predicted poorly were fitted to what was measured; n_refit_candidates: what these
    proposed; n_refit_taken: those of them that became the best so far, or part of the front.
    dominated: choices left out because another one is as good in everything.
    """

    master_path: str
    master_sha256: str
    output: str
    data_path: str
    samples: Samples
    budgets: tuple[BudgetUse, ...]
    max_drop: float | None
    drop: Interval
    drop_exceeded: bool
    reestimated: bool
    method: Method
    n_costs: int
    chosen: Assigned
    reference: str
    best_uniform: str
    uniform: tuple[Assigned, ...]
    front: tuple[Assigned, ...]
    swept: str
    n_candidates: int
    refine_moves: int
    rank_correlation: float | None
    n_refits: int
    n_refit_candidates: int
    n_refit_taken: int
    dominated: tuple[Dominated, ...]
    table_checks: tuple[TableCheck, ...]
    notes: tuple[str, ...]
    seconds: float
