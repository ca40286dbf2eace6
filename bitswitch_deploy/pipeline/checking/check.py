"""`check`: evaluate what bitswitch.yaml names, and compare sample by sample with the baseline."""

from __future__ import annotations

import time
from pathlib import Path

from bitswitch_deploy.catalogue import host_architecture
from bitswitch_deploy.engines.onnxruntime_engine import host_text
from bitswitch_deploy.errors import InputFileError
from bitswitch_deploy.gate.baseline import Baseline, check_replaceable, read_baseline
from bitswitch_deploy.gate.metrics import find_metric
from bitswitch_deploy.gate.outcome_cache import Executor
from bitswitch_deploy.gate.result import CheckResult
from bitswitch_deploy.pipeline.checking.evaluate_job import Outcome, evaluate_job
from bitswitch_deploy.pipeline.checking.jobs import CheckRequest, make_jobs, read_networks, require_cases
from bitswitch_deploy.pipeline.checking.verdicts import judge_outcomes, record_baseline, require_records
from bitswitch_deploy.pipeline.progress import Progress


def check(request: CheckRequest, executor: Executor, progress: Progress) -> CheckResult:
    """Evaluate every case; judge them against the baseline, or record one.

    Nothing is written but the cache unless every case could be evaluated. What cannot be compared is refused before
    anything is evaluated.

    Raises:
        CheckFailedError: an output is not finite, or outcomes that are no baseline.
        DataError: no data, data that do not fit, or that are not those of the baseline.
        InputFileError: no baseline, one that was edited, a file in its place that is none, or a damaged master.
        OutputError: the baseline cannot be written.
        UsageError: a target, width or metric that is not there, or a case that the baseline lacks.
    """
    started = time.monotonic()
    config = request.config
    metric = find_metric(config.metric, folder=request.folder)
    path = request.folder / config.baseline
    if request.update_baseline:
        check_replaceable(path)
    baseline = None if request.update_baseline else read_baseline(path)
    replaced = _replaced(path) if request.update_baseline else None
    networks = read_networks(request, metric)
    jobs = [job for network in networks for job in make_jobs(request, network, metric)]
    require_cases(config, jobs)
    if baseline is not None:
        require_records(baseline, jobs)
    outcomes = [evaluate_job(request, job, metric, executor, progress) for job in jobs]
    if baseline is None:
        cases = record_baseline(path, outcomes, metric)
    else:
        cases = judge_outcomes(baseline, outcomes, metric, config)
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
        notes=_run_notes(baseline, replaced, outcomes),
        host=host_text(),
        seconds=time.monotonic() - started,
    )


def _replaced(path: Path) -> Baseline | None:
    """The baseline that a new one is to replace, as far as there is one that can be read."""
    try:
        return read_baseline(path)
    except InputFileError:
        return None


def _run_notes(baseline: Baseline | None, replaced: Baseline | None, outcomes: list[Outcome]) -> tuple[str, ...]:
    checked = {outcome.job.case for outcome in outcomes}
    notes = []
    for before, what in ((baseline, "in the baseline and not checked"), (replaced, "no longer in the baseline")):
        left_out = [record.case.label for record in before.records if record.case not in checked] if before else []
        notes += [f"{what}: {', '.join(left_out)}"] if left_out else []
    jobs = [outcome.job for outcome in outcomes]
    by_graph = dict.fromkeys(job.case.target for job in jobs if job.conditions.hop == "lowered")
    if by_graph:
        what = "judged by the lowered graph, node by node; what an engine on the device makes of it is not seen here"
        notes.append(f"{', '.join(by_graph)}: {what}")
    here = host_architecture()
    elsewhere = {job.case.target: job.target.arch for job in jobs if job.conditions.hop == "engine"}
    for target, arch in elsewhere.items():
        if arch != here:
            notes.append(f"{target}: run on {here}, not on {arch}: its kernels ran, not the target's")
    return tuple(notes)
