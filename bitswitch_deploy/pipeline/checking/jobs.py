"""What a check evaluates: each master with its data, and a job for each case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bitswitch_deploy.catalogue import bundled_master, is_target_file, load_target, split_stack
from bitswitch_deploy.errors import DataError, UsageError
from bitswitch_deploy.gate.baseline import Case, Conditions
from bitswitch_deploy.gate.config import CheckConfig, width_label
from bitswitch_deploy.gate.evaluation import DataRef, remember_data
from bitswitch_deploy.gate.metrics.metric import Metric, MetricContext
from bitswitch_deploy.gate.sample_ids import check_sample_ids
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.lower import MADE_BY, check_passes
from bitswitch_deploy.master import Master, master_name, read_master
from bitswitch_deploy.pipeline.inputs import (
    ExportData,
    bundled_samples,
    load_export_data,
    number_of_classes,
    read_mixed,
)
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import MIN_BITS, WidthAssignment
from bitswitch_deploy.validation.dataset import Dataset


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
class Network:
    """One master with its data. ref: of the test samples, for those who evaluate."""

    name: str
    master: Master
    data: ExportData
    test: Dataset
    ref: DataRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One case before it is evaluated. approximations: those that are there; None chooses."""

    case: Case
    conditions: Conditions
    network: Network
    target: Target
    assignment: WidthAssignment
    approximations: frozenset[Approximation] | None


def read_networks(request: CheckRequest, metric: Metric) -> list[Network]:
    """The masters of the configuration, or the bundled one, with data that the metric can use.

    Raises:
        DataError: no data, or data that fit neither the master nor the metric.
        MasterError: a master is damaged.
    """
    paths = [request.folder / name for name in request.config.masters] or [bundled_master()]
    return [_network(path, request, metric) for path in paths]


def _network(path: Path, request: CheckRequest, metric: Metric) -> Network:
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
    return Network(name=master_name(path), master=master, data=loaded, test=test, ref=ref)


def make_jobs(request: CheckRequest, network: Network, metric: Metric) -> Iterator[Job]:
    """A job for every target and width of the configuration.

    Raises:
        TargetFileError: a profile is damaged, or names a pass that does not exist.
        UnavailableError: no profile describes this machine, which a target means.
        InputFileError: a file of widths is not there, or does not hold any.
        UsageError: a target is not there, a width that the master has not, or an approximation that the target cannot
            make.
    """
    preprocessing = network.master.spec.preprocessing
    text = json.dumps(asdict(preprocessing) if preprocessing else None, sort_keys=True)
    for name in request.config.targets:
        is_path = is_target_file(split_stack(name)[0])
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
            case = Case(master=network.name, target=name, width=width_label(width))
            yield Job(
                case=case,
                conditions=conditions,
                network=network,
                target=target,
                assignment=_assignment(request, network, width),
                approximations=_approximations(request.config, case, target),
            )


def _assignment(request: CheckRequest, network: Network, width: int | str) -> WidthAssignment:
    highest = network.master.spec.bits
    if isinstance(width, str):
        return read_mixed(request.folder / width, highest=highest, master_sha256=network.master.sha256)
    if width > highest:
        raise UsageError(
            where=f"widths of {network.name}",
            got=f"{width} bits from a master of {highest} bits",
            allowed=f"{MIN_BITS}..{highest}",
            do="leave the width out, or give this master a configuration of its own",
        )
    return WidthAssignment(default=width)


def _approximations(config: CheckConfig, case: Case, target: Target) -> frozenset[Approximation] | None:
    names = dict(config.approximations).get(case.label)
    if names is None:
        return None
    useless = [name for name in names if MADE_BY[Approximation(name)] not in target.lowering]
    if useless:
        raise UsageError(
            where=f"approximations of {case.label}",
            got=", ".join(useless),
            allowed=", ".join(each.value for each in MADE_BY if MADE_BY[each] in target.lowering) or "none",
            do="name what `export --json` says that it kept",
        )
    return frozenset(map(Approximation, names))


def require_cases(config: CheckConfig, jobs: Sequence[Job]) -> None:
    """See that approximations are those of cases.

    Raises:
        UsageError: there is no such case.
    """
    cases = [job.case.label for job in jobs]
    unknown = [name for name, _ in config.approximations if name not in cases]
    if unknown:
        do = "name the master, the target and the width as `check` prints them"
        raise UsageError(where="approximations", got=unknown[0], allowed=", ".join(cases), do=do)
