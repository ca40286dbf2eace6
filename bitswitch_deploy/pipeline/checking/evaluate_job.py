"""From a job to the outcome of every sample: lower, then run what the target runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import onnx

from bitswitch_deploy.engines.onnxruntime_engine import Optimisation
from bitswitch_deploy.engines.reference import PATIENT
from bitswitch_deploy.gate.evaluation import Evaluation, GraphRef
from bitswitch_deploy.gate.metrics.metric import Metric
from bitswitch_deploy.gate.outcome_cache import Evaluated, Executor, evaluate_all
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.external_data import data_chunks, runnable
from bitswitch_deploy.graph.large_tensors import LargeTensor
from bitswitch_deploy.lowering.approximation import EXPORTED
from bitswitch_deploy.master import Master
from bitswitch_deploy.pipeline.approximation_limit import ApproximationLimit
from bitswitch_deploy.pipeline.checking.jobs import CheckRequest, Job
from bitswitch_deploy.pipeline.inputs import ExportData
from bitswitch_deploy.pipeline.lower_width import lower_width
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.tensors import WidthAssignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A job that was evaluated.

    graph_sha256: of the graph that was evaluated. approximations: those that it makes. notes: on their choice.
    """

    job: Job
    graph_sha256: str
    approximations: tuple[str, ...]
    notes: tuple[str, ...]
    evaluated: Evaluated


def evaluate_job(request: CheckRequest, job: Job, metric: Metric, executor: Executor, progress: Progress) -> Outcome:
    """Lower the network of a job, and give every sample to the graph that its target runs.

    Raises:
        GraphError: the network holds something that the target cannot express.
        OutputError: the cache cannot be written.
        UsageError: the widths do not fit the master.
        BitswitchError: as `evaluate`.
    """
    network, label = job.network, job.case.label
    progress.start(f"{label}: lowering", 1)
    # A choice of approximations looks at the calibration samples: the data are streamed once, by the workers.
    width = lower_width(
        network.master,
        job.assignment,
        job.target,
        data=ExportData(test=None, calibration=network.data.calibration),
        wanted=EXPORTED if job.approximations is None else job.approximations,
        limit=ApproximationLimit(min_agreement=job.target.quantization.min_agreement, set_by="of the target")
        if job.approximations is None
        else None,
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
    return Outcome(
        job=job,
        graph_sha256=graph.sha256,
        approximations=tuple(sorted(each.value for each in width.lowered.approximations)),
        notes=(*width.left_out, *filter(None, (width.unused(job.approximations or frozenset()),))),
        evaluated=evaluated,
    )


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
