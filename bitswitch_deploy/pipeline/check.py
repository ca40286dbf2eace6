"""`check`: evaluate what bitswitch.yaml names, and compare sample by sample with the baseline."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import onnx

from bitswitch_deploy import __version__
from bitswitch_deploy.catalogue import bundled_master, load_target
from bitswitch_deploy.engines.cpu_features import cpu_features
from bitswitch_deploy.engines.onnxruntime_engine import Optimisation, host_text
from bitswitch_deploy.engines.reference import PATIENT
from bitswitch_deploy.errors import CheckFailedError, DataError, UsageError
from bitswitch_deploy.gate.baseline import (
    Baseline,
    Case,
    Conditions,
    Record,
    read_baseline,
    require_comparable,
    write_baseline,
)
from bitswitch_deploy.gate.config import CheckConfig, width_label
from bitswitch_deploy.gate.evaluation import DataRef, Evaluation, GraphRef, remember_data
from bitswitch_deploy.gate.judgement import Evidence, judge, weigh
from bitswitch_deploy.gate.metrics import find_metric
from bitswitch_deploy.gate.metrics.metric import Metric, MetricContext, Rows
from bitswitch_deploy.gate.outcome_cache import Evaluated, Executor, evaluate_all
from bitswitch_deploy.gate.outcomes import decode, encode
from bitswitch_deploy.gate.result import CaseResult, CheckResult
from bitswitch_deploy.gate.sample_ids import check_sample_ids
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.external_data import data_chunks, runnable
from bitswitch_deploy.graph.large_tensors import LargeTensor
from bitswitch_deploy.lowering.approximation import USUAL, Approximation
from bitswitch_deploy.lowering.lower import check_passes
from bitswitch_deploy.master import Master, master_name, read_master
from bitswitch_deploy.pipeline.approximation_limit import ApproximationLimit
from bitswitch_deploy.pipeline.inputs import (
    ExportData,
    bundled_samples,
    load_export_data,
    number_of_classes,
    read_mixed,
)
from bitswitch_deploy.pipeline.lower_width import lower_width
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.validation.dataset import Dataset

_TOOLS = ("numpy", "onnx", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """What to check.

    folder: of the configuration, which its paths start from. cache: where outcomes are kept.
    update_baseline: record instead of judging. require_proof: too few samples to tell fail the run as well.
    """

    config: CheckConfig
    folder: Path
    cache: Path
    update_baseline: bool = False
    require_proof: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    """One master with its data. reference: its canonical graph at its own bits, where the metric compares outputs."""

    name: str
    master: Master
    data: ExportData
    test: Dataset
    ref: DataRef


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One case before it is evaluated. approximations: those that are there; None chooses."""

    case: Case
    conditions: Conditions
    network: _Network
    target: Target
    assignment: WidthAssignment
    approximations: frozenset[Approximation] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """One case after it. graph_sha256: of the graph that was evaluated."""

    job: _Job
    graph_sha256: str
    evaluated: Evaluated


def check(request: CheckRequest, executor: Executor, progress: Progress) -> CheckResult:
    """Evaluate every case; judge them against the baseline, or record one.

    Nothing is written but the cache unless every case could be evaluated. What cannot be compared is refused before
    anything is evaluated.

    Raises:
        CheckFailedError: an output is not finite, or outcomes that are no baseline.
        DataError: no data, data that do not fit, or that are not those of the baseline.
        InputFileError: no baseline, one that was edited, or a damaged master.
        UsageError: a target, width or metric that is not there, or a case that the baseline lacks.
    """
    started = time.monotonic()
    config = request.config
    metric = find_metric(config.metric, folder=request.folder)
    path = request.folder / config.baseline
    baseline = None if request.update_baseline else read_baseline(path)
    networks = _networks(request, metric)
    jobs = [job for network in networks for job in _jobs(request, network, metric)]
    if baseline is not None:
        _require_records(baseline, jobs)
    outcomes = [_evaluate(request, job, metric, executor, progress) for job in jobs]
    cases = _recorded(path, outcomes, metric) if baseline is None else _judged(baseline, outcomes, metric, config)
    return CheckResult(
        metric=metric.name,
        unit=metric.unit,
        limits=config.limits,
        baseline=str(path),
        updated=baseline is None,
        require_proof=request.require_proof,
        dataset=tuple(network.test.name for network in networks),
        dataset_sha256=tuple(network.test.sha256 for network in networks),
        cases=cases,
        notes=_run_notes(baseline, outcomes),
        host=host_text(),
        seconds=time.monotonic() - started,
    )


def _networks(request: CheckRequest, metric: Metric) -> list[_Network]:
    paths = [request.folder / name for name in request.config.masters] or [bundled_master()]
    return [_network(path, request, metric) for path in paths]


def _network(path: Path, request: CheckRequest, metric: Metric) -> _Network:
    master, config = read_master(path), request.config
    data, calibration = (request.folder / name if name else None for name in (config.data, config.calibration))
    _, bundled = bundled_samples(master)
    place = data if data is not None else (bundled.test if bundled is not None else None)
    if place is None:
        raise DataError(
            where=f"{master_name(path)}: data",
            got="no data",
            allowed="a folder of images per class, or an .npz file",
            do="name one as `data` in the configuration",
        )
    loaded = load_export_data(master, data=data, calibration=calibration)
    test = loaded.test
    assert test is not None
    ref = DataRef(
        path=place.resolve(),
        sha256=test.sha256,
        preprocessing=master.spec.preprocessing,
        input_spec=master.spec.inputs[0],
        classes=number_of_classes(master),
    )
    check_sample_ids(place, test.n)
    remember_data(ref, test)
    if test.y is None and metric.needs_labels:
        raise metric.misfit("a data set without labels", "labels for each sample ('y')")
    metric.check_labels(test.y, MetricContext(class_names=test.class_names))
    return _Network(name=master_name(path), master=master, data=loaded, test=test, ref=ref)


def _jobs(request: CheckRequest, network: _Network, metric: Metric) -> Iterator[_Job]:
    preprocessing = network.master.spec.preprocessing
    approximations = request.config.approximations
    named = None if approximations is None else frozenset(map(Approximation, approximations))
    text = json.dumps(asdict(preprocessing) if preprocessing else None, sort_keys=True)
    for name in request.config.targets:
        is_path = "/" in name or name.partition("@")[0].endswith((".yaml", ".yml"))
        target = load_target(str(request.folder / name) if is_path else name).target
        check_passes(target)
        conditions = Conditions(
            dataset=network.test.name,
            dataset_sha256=network.test.sha256,
            n=network.test.n,
            metric=metric.identity,
            preprocessing_sha256=hashlib.sha256(text.encode()).hexdigest(),
            hop="engine" if target.engine.name == "onnxruntime" else "lowered",
        )
        for width in request.config.widths:
            if isinstance(width, int):
                assignment = WidthAssignment(default=width)
            else:
                assignment = read_mixed(request.folder / width, highest=network.master.spec.bits)
            case = Case(master=network.name, target=name, width=width_label(width))
            yield _Job(
                case=case,
                conditions=conditions,
                network=network,
                target=target,
                assignment=assignment,
                approximations=named,
            )


def _require_records(baseline: Baseline, jobs: list[_Job]) -> None:
    for job in jobs:
        record = baseline.record(job.case)
        if record is None:
            known = ", ".join(each.case.label for each in baseline.records)
            raise UsageError(
                where=job.case.label,
                got="not in the baseline",
                allowed=f"what was recorded: {known}",
                do="record it too: bitswitch-deploy check --update-baseline",
            )
        require_comparable(record.conditions, job.conditions, case=job.case)


def _evaluate(request: CheckRequest, job: _Job, metric: Metric, executor: Executor, progress: Progress) -> _Outcome:
    network, label = job.network, job.case.label
    progress.start(f"{label}: lowering", 1)
    # A choice of approximations looks at the calibration samples: the data are streamed once, by the workers.
    width = lower_width(
        network.master,
        job.assignment,
        job.target,
        data=ExportData(test=None, calibration=network.data.calibration),
        wanted=USUAL if job.approximations is None else job.approximations,
        limit=ApproximationLimit(
            min_agreement=job.target.quantization.min_agreement if job.approximations is None else -math.inf
        ),
        progress=progress,
    )
    optimisation: Optimisation = "all" if job.conditions.hop == "engine" else "off"
    options = {**PATIENT, **dict(job.target.engine.session)}
    lowered = _graph(width.lowered.model, width.lowered.large, optimisation, options)
    with lowered as graph, _reference(network.master, metric) as reference:
        evaluation = Evaluation(
            label=label,
            graph=graph,
            data=network.ref,
            metric=request.config.metric,
            metric_folder=request.folder.resolve(),
            reference=reference,
        )
        progress.start(f"{label}: evaluating", network.test.n)
        evaluated = evaluate_all(
            evaluation, network.test.n, executor=executor, cache=request.cache, advance=progress.advance
        )
    return _Outcome(job=job, graph_sha256=graph.sha256, evaluated=evaluated)


@contextmanager
def _reference(master: Master, metric: Metric) -> Iterator[GraphRef | None]:
    if not metric.needs_reference:
        yield None
        return
    canonical = canonical_graph(master, WidthAssignment(default=master.spec.bits))
    with _graph(canonical.model, canonical.large, "off", PATIENT) as graph:
        yield graph


@contextmanager
def _graph(
    model: onnx.ModelProto, large: Mapping[str, LargeTensor], optimisation: Optimisation, options: Mapping[str, str]
) -> Iterator[GraphRef]:
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    for chunk in data_chunks(model, large):
        digest.update(chunk)
    with runnable(model, large) as source:
        yield GraphRef(
            source=source,
            sha256=digest.hexdigest(),
            optimisation=optimisation,
            session_options=tuple(sorted(options.items())),
        )


def _value(metric: Metric, rows: Rows, job: _Job) -> float:
    return metric.score(rows, job.network.test.y)


def _degenerate(metric: Metric, outcome: _Outcome) -> str:
    test = outcome.job.network.test
    return metric.degenerate(outcome.evaluated.rows, test.y, MetricContext(class_names=test.class_names))


def _recorded(path: Path, outcomes: list[_Outcome], metric: Metric) -> tuple[CaseResult, ...]:
    """Write the baseline of these outcomes; refuse what no later run could fall below."""
    for outcome in outcomes:
        broken = _degenerate(metric, outcome)
        if broken:
            raise CheckFailedError(
                where=outcome.job.case.label,
                got=broken,
                allowed="a network that is worth being held to",
                do="mend the network, or leave this width out of the configuration; nothing was recorded",
            )
    records = tuple(
        Record(
            case=outcome.job.case,
            conditions=outcome.job.conditions,
            master_sha256=outcome.job.network.master.sha256,
            graph_sha256=outcome.graph_sha256,
            value=_value(metric, outcome.evaluated.rows, outcome.job),
            tools=tools(),
            outcomes=encode(outcome.evaluated.rows),
        )
        for outcome in outcomes
    )
    write_baseline(path, records)
    return tuple(_case_result(outcome, metric) for outcome in outcomes)


def _judged(
    baseline: Baseline, outcomes: list[_Outcome], metric: Metric, config: CheckConfig
) -> tuple[CaseResult, ...]:
    weighed = [_weigh(baseline, outcome, metric, config, len(outcomes)) for outcome in outcomes]
    judged = judge([evidence for evidence, _ in weighed], config.limits)
    return tuple(
        _case_result(outcome, metric, evidence=evidence, judgement=judgement, notes=notes)
        for outcome, (evidence, notes), judgement in zip(outcomes, weighed, judged)
    )


def _weigh(
    baseline: Baseline, outcome: _Outcome, metric: Metric, config: CheckConfig, cases: int
) -> tuple[Evidence, tuple[str, ...]]:
    job, rows = outcome.job, outcome.evaluated.rows
    record = baseline.record(job.case)
    assert record is not None
    try:
        before = decode(record.outcomes)
        if before.dtype != rows.dtype or before.shape != rows.shape:
            raise ValueError(f"outcomes {before.dtype} {list(before.shape)}, not {rows.dtype} {list(rows.shape)}")
    except ValueError as exc:
        raise DataError(
            where=f"{job.case.label} in the baseline",
            got=str(exc),
            allowed="outcomes as this release records them",
            do="record the baseline again: bitswitch-deploy check --update-baseline",
        ) from exc
    notes = [*_changes_since(record, outcome)]
    broken = _degenerate(metric, outcome)
    notes += [broken] if broken else []
    evidence = weigh(metric, before, rows, job.network.test.y, config.limits, cases=cases)
    return evidence, tuple(notes)


def _case_result(outcome: _Outcome, metric: Metric, **more: object) -> CaseResult:
    return CaseResult(
        case=outcome.job.case,
        hop=outcome.job.conditions.hop,
        value=_value(metric, outcome.evaluated.rows, outcome.job),
        n=outcome.job.conditions.n,
        computed=outcome.evaluated.computed,
        **more,  # type: ignore[arg-type]
    )


def _changes_since(record: Record, outcome: _Outcome) -> Iterator[str]:
    """What is another one than in the baseline: allowed, and often the reason."""
    if record.graph_sha256 == outcome.graph_sha256:
        yield from ()
    elif record.master_sha256 != outcome.job.network.master.sha256:
        yield "another master than in the baseline"
    else:
        yield "another graph of the same master"
    before = dict(record.tools)
    differing = [f"{name} {before.get(name, '-')} -> {value}" for name, value in tools() if before.get(name) != value]
    if differing:
        yield f"since the baseline: {', '.join(differing)}"


def _run_notes(baseline: Baseline | None, outcomes: list[_Outcome]) -> tuple[str, ...]:
    checked = {outcome.job.case for outcome in outcomes}
    left_out = [record.case.label for record in baseline.records if record.case not in checked] if baseline else []
    notes = [f"in the baseline and not checked: {', '.join(left_out)}"] if left_out else []
    jobs = [outcome.job for outcome in outcomes]
    by_graph = dict.fromkeys(job.case.target for job in jobs if job.conditions.hop == "lowered")
    if by_graph:
        what = "judged by the lowered graph, node by node; what an engine on the device makes of it is not seen here"
        notes.append(f"{', '.join(by_graph)}: {what}")
    return tuple(notes)


def tools() -> tuple[tuple[str, str], ...]:
    """Versions and host that outcomes may depend on."""
    versions = [(name, metadata.version(name)) for name in _TOOLS]
    host = " ".join((platform.machine(), *cpu_features()))
    return (("bitswitch-deploy", __version__), *versions, ("host", host))
