"""`search`: which layer gets which width, from one master, by inference only.

    costs of single layers -> candidates by the solver -> successive halving -> moves in both directions -> final test

Everything before the final test sees the samples of the search only.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.engines.deferred_signals import exit_when_terminated
from bitswitch_deploy.errors import CheckFailedError, MasterError, UsageError
from bitswitch_deploy.master import read_master, write_master
from bitswitch_deploy.pipeline.inputs import DEFAULT_KEY, MASTER_KEY
from bitswitch_deploy.pipeline.progress import Progress, Silent
from bitswitch_deploy.pipeline.searching.data import Sampling, SearchData, load_search_data
from bitswitch_deploy.pipeline.searching.final_test import TestScores, run_final_test
from bitswitch_deploy.pipeline.searching.problem import (
    Budgeted,
    budget_rows,
    layer_groups,
    make_problem,
    refuse_impossible,
    widths_to_choose,
)
from bitswitch_deploy.report.search_report import Assigned, BudgetUse, Measured, Samples, SearchReport
from bitswitch_deploy.search.batchnorm import BatchNormAdapter, is_adapted
from bitswitch_deploy.search.budget import Budget
from bitswitch_deploy.search.choose import Choice, Chooser, Measurement, Prediction
from bitswitch_deploy.search.costs import CostTable, assignment_of, measured_costs, read_costs
from bitswitch_deploy.search.evaluate import Evaluator, Workers
from bitswitch_deploy.search.problem import Problem, Row, Selection
from bitswitch_deploy.search.resources import Choices
from bitswitch_deploy.search.samples import MIN_SAMPLES, resolution_points
from bitswitch_deploy.search.score import Criterion, Scores
from bitswitch_deploy.search.statistics import cautious_drop, compare, least_reach, wilson
from bitswitch_deploy.search.store import ScoreStore
from bitswitch_deploy.tensors import WidthAssignment

DEFAULT_SAMPLES = 2048
DEFAULT_MAX_DROP = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """What to search for.

    output: the assignment, for `--mixed`. cache: what was measured; the same request goes on from there.
    data, test: samples to search on and to test on, see `load_search_data`. widths: None takes the trained ones.
    criterion: what is kept small, see `search.score`; cross entropy needs labels. ties: see `layer_groups`.
    max_drop: points that may be lost; None where budgets alone decide, and DEFAULT_MAX_DROP where there are none.
    pareto: find the whole front. reestimate: adapt BatchNorm statistics to each assignment, and write a master with
    those of the chosen one to `adapted_master`.
    """

    master: Path
    output: Path
    cache: Path
    budgets: tuple[Budget, ...] = ()
    tables: tuple[Path, ...] = ()
    data: Path | None = None
    test: Path | None = None
    criterion: Criterion = "divergence"
    costs: Path | None = None
    widths: tuple[int, ...] | None = None
    ties: tuple[str, ...] = ()
    max_drop: float | None = None
    pareto: bool = False
    reestimate: bool = False
    samples: int = DEFAULT_SAMPLES
    seed: int = 0
    workers: Workers = field(default_factory=Workers)

    @property
    def drop_limit(self) -> float | None:
        """The drop that is allowed, given or not; None where budgets alone decide."""
        return DEFAULT_MAX_DROP if self.max_drop is None and not self.budgets else self.max_drop

    @property
    def adapted_master(self) -> Path:
        """Where the master with the chosen assignment's own BatchNorm statistics is written."""
        return self.output.with_suffix(".safetensors")


def search(request: SearchRequest, progress: Progress | None = None) -> SearchReport:
    """Search, test, and write the assignment.

    Raises:
        UsageError: budgets that cannot be kept or contradict each other, unknown layers, widths or targets, a
            criterion that needs labels where there are none, an output that would overwrite a master.
        InputFileError: the master, data, costs or a latency table is bad.
        CheckFailedError: nothing loses as little as `max_drop`, or an output is not finite.
        UnavailableError: the backend is not installed, or the solver found nothing in time.
        OutputError: the cache or the output cannot be written.
    """
    # or worker processes would go on without anybody to hand their results to
    with exit_when_terminated():
        return _Search(request, progress or Silent()).run()


class _Search:
    def __init__(self, request: SearchRequest, progress: Progress) -> None:
        self._started = time.monotonic()
        self._request, self._progress = request, progress
        self._master = read_master(request.master)
        if is_adapted(self._master):
            raise UsageError(
                where=str(request.master),
                got="a copy that an earlier search fitted to its assignment",
                allowed="a master as it was trained: uniform widths lose accuracy with the statistics of another",
                do="search the master that it was made of",
            )
        groups = layer_groups(self._master, request.ties)
        widths = widths_to_choose(self._master, request.widths)
        self._choices = Choices(groups=groups, widths=(widths,) * len(groups))
        if not groups:
            raise UsageError(
                where=str(request.master),
                got="every layer is pinned to float",
                allowed="a master with quantized layers",
                do="train one that quantizes layers",
            )
        _check_outputs(request)

    def run(self) -> SearchReport:
        request, master = self._request, self._master
        data = load_search_data(
            master,
            data=request.data,
            test=request.test,
            sampling=Sampling(count=request.samples, seed=request.seed, reestimate=request.reestimate),
            folder=request.cache,
        )
        if request.criterion == "cross_entropy" and not data.search.labelled:
            raise UsageError(
                where="--criterion cross_entropy",
                got=f"samples without labels: {data.name}",
                allowed="labelled samples, of which alone there is a cross entropy",
                do="hand in labels with --data and --test, or leave --criterion out: the divergence needs none",
            )
        budgeted = budget_rows(master, self._choices, request.budgets, request.tables, data.search.read(0, 1)[0])
        refuse_impossible(self._choices, budgeted.rows)
        store = ScoreStore(folder=request.cache)
        evaluator = Evaluator(
            request.master,
            data.search,
            store,
            workers=request.workers,
            criterion=request.criterion,
            statistics=data.statistics,
            computed=self._progress.advance,
        )
        table = self._costs(evaluator, data)
        where = f"--costs {request.costs}" if request.costs else "costs"
        problem = make_problem(self._choices, table, budgeted.rows, where=where)
        reference = self._reference(evaluator)
        choice, limit = self._choose(problem, evaluator, reference.scores)
        uniform = [_measured(problem, each, evaluator) for _, each in problem.uniform()]
        wanted = [reference.assignment, *(each.assignment for each in (choice.chosen, *choice.front, *uniform))]
        tested = run_final_test(master, data, wanted, self._progress, criterion=request.criterion, store=store)
        report = _Reporting(request, problem, data, tested, uniform, reference, limit).report(choice, table, budgeted)
        if data.statistics is not None:
            x, _ = data.statistics.read(0, data.statistics.n)
            master = BatchNormAdapter(master, x).adapted(choice.chosen.assignment)
            write_master(master, request.adapted_master)
        write_assignment(request.output, choice.chosen.assignment, master_sha256=master.sha256)
        return replace(report, seconds=time.monotonic() - self._started)

    def _costs(self, evaluator: Evaluator, data: SearchData) -> CostTable:
        request, master = self._request, self._master
        layers = [layer for group in self._choices.groups for layer in group]
        if request.costs is not None:
            return read_costs(request.costs, master_sha256=master.sha256, layers=layers)
        widths = self._choices.widths[0]
        reference = dict.fromkeys(layers, widths[0])
        return CostTable(
            master_sha256=master.sha256,
            method=request.criterion,
            samples_sha256=data.search.sha256,
            n=data.search.n,
            groups=measured_costs(
                self._choices.groups,
                widths,
                reference,
                lambda wanted: self._measure(evaluator, "costs of layers", wanted, evaluator.n),
            ),
        )

    def _reference(self, evaluator: Evaluator) -> _Reference:
        """The highest trained width, whether it is among those to choose from or not."""
        highest = self._master.spec.widths[0]
        assignment = assignment_of({layer: highest for group in self._choices.groups for layer in group})
        (scores,) = self._measure(evaluator, "highest width", [assignment], evaluator.n)
        return _Reference(assignment=assignment, scores=scores)

    def _choose(self, problem: Problem, evaluator: Evaluator, reference: Scores) -> tuple[Choice, float | None]:
        """What is chosen, and the drop that it was chosen within; a limit that nobody gave refuses no front."""
        request = self._request
        chooser = Chooser(problem, lambda wanted, n: self._measure(evaluator, "candidates", wanted, n), evaluator.n)
        if request.budgets and not request.pareto and request.max_drop is None:
            return chooser.under_budgets(), None
        limit = request.drop_limit
        if limit is None:
            return chooser.on_front(problem.rows[0], is_within=None), None

        def is_within(scores: Scores) -> bool:
            return cautious_drop(scores, reference) <= limit

        try:
            return chooser.on_front(problem.rows[0], is_within=is_within), limit
        except LookupError as exc:
            if request.max_drop is None:
                return chooser.on_front(problem.rows[0], is_within=None), None
            drops = (cautious_drop(each.scores, reference) for each in chooser.feasible())
            least = math.ceil(100 * min(drops)) / 100
            raise CheckFailedError(
                where="--max-drop",
                got=f"nothing that keeps the budgets is within {limit:g} points of the highest width: with its "
                f"standard error the least drop that was found is {least:.2f}",
                allowed="an assignment whose drop, with its standard error, is within that",
                do=f"allow {least:.2f}, raise the budgets, or name more --samples",
            ) from exc

    def _measure(
        self, evaluator: Evaluator, what: str, wanted: Sequence[WidthAssignment], n: int
    ) -> tuple[Scores, ...]:
        self._progress.start(f"{what}: {len(wanted)} on {n:,} samples", evaluator.missing(wanted, n))
        return evaluator.measure(wanted, n)


def write_assignment(path: Path, assignment: WidthAssignment, *, master_sha256: str) -> None:
    """Write an assignment as `export --mixed` reads it, which takes it for this master only.

    Raises:
        OutputError: the file cannot be written.
    """
    widths = {**dict(assignment.overrides), DEFAULT_KEY: assignment.default}
    document: Mapping[str, int | str] = {MASTER_KEY: master_sha256, **widths}
    replace_file(path, (json.dumps(document, indent=2) + "\n").encode())


def _check_outputs(request: SearchRequest) -> None:
    """Refuse to overwrite the master that is searched, or one that no search wrote; what a search wrote is replaced."""
    adapted = request.adapted_master
    written = {request.output, adapted} if request.reestimate else {request.output}
    if request.master.resolve() in {path.resolve() for path in written}:
        got = "the master would be overwritten"
    elif request.reestimate and adapted == request.output:
        got = "the name of the master that --reestimate writes beside it"
    elif request.reestimate and adapted.exists() and not _is_of_a_search(adapted):
        got = f"{adapted} is there, which --reestimate would overwrite, and it does not say that a search wrote it"
    else:
        return
    raise UsageError(
        where=f"--output {request.output}",
        got=got,
        allowed="a file of another name, such as assignment.json",
        do="choose another --output, or move that file away",
    )


def _is_of_a_search(path: Path) -> bool:
    try:
        return is_adapted(read_master(path))
    except MasterError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Reference:
    """What drops are counted from, with its scores on the samples of the search."""

    assignment: WidthAssignment
    scores: Scores


def _measured(problem: Problem, selection: Selection, evaluator: Evaluator) -> Measurement:
    assignment = assignment_of(problem.widths(selection))
    (scores,) = evaluator.measure([assignment])
    return Measurement(selection=selection, assignment=assignment, scores=scores)


class _Reporting:
    """Turns measurements into the report."""

    def __init__(
        self,
        request: SearchRequest,
        problem: Problem,
        data: SearchData,
        tested: TestScores,
        uniform: Sequence[Measurement],
        reference: _Reference,
        limit: float | None,
    ) -> None:
        self._request, self._problem, self._limit = request, problem, limit
        self._data, self._tested, self._uniform, self._reference = data, tested, uniform, reference
        feasible = [each for each in uniform if problem.is_feasible(each.selection)]
        self._best = min(feasible, key=lambda each: each.scores.mean_loss, default=None)

    def report(self, choice: Choice, table: CostTable, budgeted: Budgeted) -> SearchReport:
        request, data, chosen = self._request, self._data, choice.chosen
        tested = self._tested.scores
        drop = compare(tested[self._reference.assignment], tested[chosen.assignment]).points
        return SearchReport(
            master_path=str(request.adapted_master if request.reestimate else request.master),
            master_sha256=table.master_sha256,
            output=str(request.output),
            data_path=str(request.test or request.data or ""),
            samples=Samples(
                name=data.name,
                labelled=data.search.labelled,
                n_search=data.search.n,
                search_sha256=data.search.sha256,
                n_test=self._tested.n,
                left_out=self._tested.left_out,
            ),
            budgets=tuple(_budget_use(row, chosen.selection) for row in self._problem.caps),
            max_drop=self._limit,
            drop=drop,
            drop_exceeded=self._limit is not None and drop.value > self._limit,
            reestimated=request.reestimate,
            method=table.method,
            n_costs=table.n,
            chosen=self._assigned(chosen),
            reference=_label(self._reference.assignment),
            best_uniform=_label(self._best.assignment) if self._best else "",
            uniform=tuple(self._assigned(each) for each in self._uniform),
            front=tuple(self._assigned(each) for each in choice.front),
            swept=self._problem.rows[0].name if choice.front else "",
            n_candidates=choice.n_candidates,
            refine_moves=choice.moves,
            rank_correlation=choice.prediction.correlation,
            n_refits=choice.prediction.refits,
            n_refit_candidates=choice.prediction.n_proposed,
            n_refit_taken=choice.prediction.n_taken,
            dominated=choice.dominated,
            table_checks=budgeted.checks,
            notes=(*data.notes, *_cost_notes(table), *self._limit_notes(chosen), *self._notes(choice)),
            seconds=0.0,
        )

    def _assigned(self, each: Measurement) -> Assigned:
        tested, reference = self._tested.scores, self._reference
        best = self._best if self._best and self._best.assignment != each.assignment else None
        return Assigned(
            label=_label(each.assignment),
            widths=each.assignment.overrides,
            uses=tuple((_bare(row.name), row.total(each.selection) / row.per_unit) for row in self._problem.rows),
            predicted_cost=self._problem.cost(each.selection),
            search=_measurement(each.scores, reference.scores, best.scores if best else None),
            test=_measurement(
                tested[each.assignment], tested[reference.assignment], tested[best.assignment] if best else None
            ),
        )

    def _limit_notes(self, chosen: Measurement) -> list[str]:
        """Whether the samples of the search are too few for the limit of the drop."""
        n, limit = self._data.search.n, self._limit
        points = compare(chosen.scores, self._reference.scores).points
        reach = max((points.high - points.low) / 2, least_reach(n))
        if limit is None or reach <= limit:
            return []
        enough = f"about {math.ceil((reach / limit) ** 2 * n):,} would tell" if limit else "no number of them tells 0"
        return [
            f"{n:,} samples know a drop to +-{reach:.2f} points, which is coarser than the {limit:g} that may be lost: "
            f"what is within that may lose more elsewhere, and what is cheaper may have been passed over; {enough}"
        ]

    def _notes(self, choice: Choice) -> list[str]:
        n = self._data.search.n
        notes = [
            f"{n:,} samples tell differences of {resolution_points(n):.1f} points from none; use more for finer ones"
        ]
        by_labels = self._request.criterion == "cross_entropy" or self._limit is not None
        if self._data.search.labelled and by_labels and self._reference.scores.right.all():
            notes.append(
                "the highest width is right on every sample of the search, as on samples that it was trained on: "
                "what is lost there says little about others. Name samples with --data that training has not seen"
            )
        if self._tested.n < MIN_SAMPLES:
            notes.append(
                f"the final test had {self._tested.n} samples that the search has not seen: its numbers mean nothing "
                f"below {MIN_SAMPLES}. Name more with --test, or hand in more with --data"
            )
        if self._limit is None and self._request.drop_limit is not None:
            notes.append(
                f"nothing is within {self._request.drop_limit:g} points of the highest width, which is the limit where "
                "none is given: what loses least by the criterion was written"
            )
        if choice.n_unproven:
            notes.append(
                f"for {choice.n_unproven} of the proposed assignments time was up before the solver had proved them "
                "the best by predicted cost: others may cost less"
            )
        return [*notes, *_prediction_notes(choice.prediction)]


def _cost_notes(table: CostTable) -> list[str]:
    n_doubtful, n_measured = table.doubtful
    if n_doubtful == 0:
        return []
    return [f"{n_doubtful} of {n_measured} costs of layers are within two standard errors of 0: more samples say more"]


def _prediction_notes(prediction: Prediction) -> list[str]:
    if not prediction.is_poor:
        return []
    if prediction.n_proposed == 0:
        outcome = "the same candidates came of it"
    else:
        kept = f"{prediction.n_taken or 'none'} of them good enough to be kept"
        outcome = f"{prediction.n_proposed} more candidates came of it, {kept}"
    return [
        f"costs of single layers rank the candidates poorly (correlation {prediction.correlation:.2f}): they were "
        f"fitted to what was measured, and {outcome}. Others that nobody has measured may be better still"
    ]


def _measurement(scores: Scores, reference: Scores, best: Scores | None) -> Measured:
    return Measured(
        n=len(scores.loss),
        loss=scores.mean_loss,
        right_percent=wilson(int(scores.right.sum()), len(scores.right)),
        against_reference=compare(scores, reference),
        against_uniform=None if best is None else compare(scores, best),
    )


def _budget_use(row: Row, selection: Selection) -> BudgetUse:
    used, limit, minimum = row.total(selection), row.cap or 0, row.minimum
    return BudgetUse(
        name=row.name, used=used / row.per_unit, limit=limit / row.per_unit, minimum=minimum / row.per_unit
    )


def _bare(name: str) -> str:
    """`bytes<=200k@rtx` without its limit: `bytes@rtx`."""
    resource, _, rest = name.partition("<=")
    return resource + ("@" + rest.partition("@")[2] if "@" in rest else "")


def _label(assignment: WidthAssignment) -> str:
    widths = {bits for _, bits in assignment.overrides}
    return f"w{assignment.default}" if len(widths) == 1 else "mixed"
