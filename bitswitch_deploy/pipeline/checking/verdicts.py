"""Outcomes beside those of the baseline, or as the baseline of later runs."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from bitswitch_deploy import __version__
from bitswitch_deploy.engines.cpu_features import cpu_features
from bitswitch_deploy.engines.onnxruntime_engine import VERSION
from bitswitch_deploy.errors import CheckFailedError, DataError, UsageError
from bitswitch_deploy.gate.baseline import Baseline, Record, require_comparable, write_baseline
from bitswitch_deploy.gate.config import CheckConfig
from bitswitch_deploy.gate.evaluation import library_versions
from bitswitch_deploy.gate.judgement import Evidence, judge, weigh
from bitswitch_deploy.gate.metrics.metric import Metric, MetricContext
from bitswitch_deploy.gate.outcomes import decode, encode
from bitswitch_deploy.gate.result import CaseResult
from bitswitch_deploy.pipeline.checking.evaluate_job import Outcome
from bitswitch_deploy.pipeline.checking.jobs import Job


def require_records(baseline: Baseline, jobs: list[Job]) -> None:
    """See that the baseline has every job, recorded under the same conditions.

    Raises:
        DataError: a case was recorded with other data, another metric or otherwise.
        UsageError: the baseline lacks a case.
    """
    for job in jobs:
        record = baseline.record(job.case)
        if record is None:
            known = ", ".join(each.case.label for each in baseline.records)
            raise UsageError(
                where=job.case.label,
                got="not in the baseline",
                allowed=f"what was recorded: {known}",
                do="record it too: the same command with --update-baseline",
            )
        require_comparable(record.conditions, job.conditions, case=job.case)


def record_baseline(path: Path, outcomes: list[Outcome], metric: Metric) -> tuple[CaseResult, ...]:
    """Write the baseline of these outcomes; refuse what no later run could fall below.

    Raises:
        CheckFailedError: outcomes that are no baseline.
        InputFileError: a file is there that is no baseline.
        OutputError: it cannot be written.
    """
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
            value=_value(metric, outcome),
            tools=_tools(),
            outcomes=encode(outcome.evaluated.rows),
        )
        for outcome in outcomes
    )
    write_baseline(path, records)
    return tuple(_case_result(outcome, metric, notes=outcome.notes) for outcome in outcomes)


def judge_outcomes(
    baseline: Baseline, outcomes: list[Outcome], metric: Metric, config: CheckConfig
) -> tuple[CaseResult, ...]:
    """Compare outcomes with those of the baseline, sample by sample.

    Raises:
        DataError: the outcomes in the baseline are not of this kind.
    """
    weighed = [_weigh(baseline, outcome, metric, config, len(outcomes)) for outcome in outcomes]
    judged = judge([evidence for evidence, _ in weighed], config.limits)
    return tuple(
        _case_result(outcome, metric, evidence=evidence, judgement=judgement, notes=notes)
        for outcome, (evidence, notes), judgement in zip(outcomes, weighed, judged)
    )


def _weigh(
    baseline: Baseline, outcome: Outcome, metric: Metric, config: CheckConfig, cases: int
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
            do="record the baseline again: the same command with --update-baseline",
        ) from exc
    notes = [*outcome.notes, *_changes_since(record, outcome)]
    broken = _degenerate(metric, outcome)
    notes += [broken] if broken else []
    evidence = weigh(metric, before, rows, job.network.test.y, config.limits, cases=cases)
    return evidence, tuple(notes)


def _case_result(outcome: Outcome, metric: Metric, **more: object) -> CaseResult:
    return CaseResult(
        case=outcome.job.case,
        hop=outcome.job.conditions.hop,
        value=_value(metric, outcome),
        n=outcome.job.conditions.n,
        computed=outcome.evaluated.computed,
        approximations=outcome.approximations,
        **more,  # type: ignore[arg-type]
    )


def _value(metric: Metric, outcome: Outcome) -> float:
    return metric.score(outcome.evaluated.rows, outcome.job.network.test.y)


def _degenerate(metric: Metric, outcome: Outcome) -> str:
    test = outcome.job.network.test
    return metric.degenerate(outcome.evaluated.rows, test.y, MetricContext(class_names=test.class_names))


def _changes_since(record: Record, outcome: Outcome) -> Iterator[str]:
    """What is another one than in the baseline: allowed, and often the reason."""
    if record.graph_sha256 == outcome.graph_sha256:
        yield from ()
    elif record.master_sha256 != outcome.job.network.master.sha256:
        yield "another master than in the baseline"
    else:
        yield "another graph of the same master"
    before = dict(record.tools)
    # of a baseline that is older than the entry nothing is known
    differing = [f"{name} {before[name]} -> {value}" for name, value in _tools() if before.get(name, value) != value]
    if differing:
        yield f"since the baseline: {', '.join(differing)}"


def _tools() -> tuple[tuple[str, str], ...]:
    """Versions and host that outcomes may depend on."""
    versions = (("onnx", metadata.version("onnx")), ("onnxruntime", VERSION), *library_versions())
    host = " ".join((platform.machine(), *cpu_features()))
    return (("bitswitch-deploy", __version__), *versions, ("host", host))
