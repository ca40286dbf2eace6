"""One width from master to lowered graph, with the choice of what may be approximated for speed.

Some lowerings can change what the network says by more than a rounding tie: 8-bit codes on residual branches and
between layers, rounded int32 biases, and what the user asks for beyond that. How much depends on the network and the
width. So the choice is measured: sets of approximations are tried, fastest first, and the first one stays whose graph
predicts what the canonical graph predicts, or as well by the labels, on the validation samples, which no network was
trained on (what it predicts on the calibration samples where there are no others). The last set is empty: that graph is
exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.graph.canonical import CanonicalGraph, canonical_graph
from bitswitch_deploy.graph.external_data import runnable
from bitswitch_deploy.lowering.approximation import EXACT, EXPORTED, Approximation
from bitswitch_deploy.lowering.halve_float_layers import is_halved
from bitswitch_deploy.lowering.lower import (
    CALIBRATED,
    MADE_BY,
    LoweredGraph,
    calibrated_tensors,
    has_elementwise,
    lower,
)
from bitswitch_deploy.lowering.lowering_pass import Change
from bitswitch_deploy.lowering.ranges import RangeObserver, TensorRange
from bitswitch_deploy.master import Master
from bitswitch_deploy.pipeline.approximation_limit import CHOICE, ApproximationLimit, approximation_names, choice
from bitswitch_deploy.pipeline.inputs import ExportData
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.pipeline.validate_width import WidthValidator
from bitswitch_deploy.search.batchnorm import is_adapted
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.validation.dataset import Dataset
from bitswitch_deploy.validation.hops import WidthResult

_BATCH = 32
# Of what the user asks for, a rung each; what costs least speed goes first.
_GIVEN_UP = (
    {Approximation.FULL_RESOLUTION_SIGNED},
    {Approximation.FULL_RESOLUTION_SIGNED, Approximation.FULL_RESOLUTION},
    {Approximation.PINNED_LAYERS},
    {Approximation.INT8_INPUTS},
    {Approximation.ELEMENTWISE_CODES},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredWidth:
    """One width, lowered. `changes` are the lowering's and the choice made here; result: None without test data."""

    canonical: CanonicalGraph
    lowered: LoweredGraph
    changes: tuple[Change, ...]
    result: WidthResult | None

    @property
    def left_out(self) -> tuple[str, ...]:
        """What was wanted and is not in the graph, and why; a sentence each."""
        return tuple(change.what for change in self.changes if change.by == CHOICE and change.exact)

    @property
    def exact(self) -> bool:
        """Whether the lowered graph has the integer codes of the canonical one."""
        return all(change.exact for change in self.changes)

    def unused(self, named: frozenset[Approximation]) -> str | None:
        """Say what was named, is not in the graph, and was not said to be left out; None where there is no such."""
        said = set(re.findall(r"[\w-]+", " ".join(self.left_out)))
        names = sorted({each.value for each in named - self.lowered.approximations} - said)
        return f"{', '.join(names)}: named, and of no use to this graph" if names else None


def lower_width(
    master: Master,
    assignment: WidthAssignment,
    target: Target,
    *,
    data: ExportData,
    wanted: frozenset[Approximation],
    limit: ApproximationLimit | None,
    progress: Progress,
) -> LoweredWidth:
    """Derive, lower, choose and validate.

    wanted: approximations to begin with; none of them makes the graph exact where the target can be.
    limit: what an approximation must leave as it is; labels count on validation samples only. None keeps what is
        wanted, whatever it costs.

    Raises:
        UsageError: the assignment does not fit the master.
        GraphError: the network holds something that the target cannot express.
        CheckFailedError: an output is not finite.
    """
    canonical = canonical_graph(master, assignment)
    judged_on = data.test or (data.calibration if limit is not None else None)
    validator = WidthValidator(master, canonical, target, judged_on, progress) if judged_on is not None else None
    changes, rungs = _rungs(canonical, target, wanted, data)
    tensors = tuple(dict.fromkeys(name for rung in rungs for name in calibrated_tensors(canonical, target, rung)))
    ranges = observe_ranges(canonical, tensors, data.calibration) if tensors and data.calibration else {}
    # the network may have been trained with the labels of calibration samples
    guess = _commonest_label(data.test) if data.test is not None else None
    judge = partial(limit.judge, looks=len(rungs) - 1, guess=guess) if limit is not None else None
    lowered, result, verdicts = _first_rung_kept(canonical, target, rungs, ranges, validator, judge)
    return LoweredWidth(
        canonical=canonical,
        lowered=lowered,
        changes=(
            *_untrained(canonical),
            *_fitted(master),
            *changes,
            *_calibration(lowered, data),
            *verdicts,
            *lowered.changes,
        ),
        result=result if data.test else None,
    )


def _first_rung_kept(
    canonical: CanonicalGraph,
    target: Target,
    rungs: Sequence[frozenset[Approximation]],
    ranges: Mapping[str, TensorRange],
    validator: WidthValidator | None,
    judge: Callable[[frozenset[Approximation], WidthResult], Change] | None,
) -> tuple[LoweredGraph, WidthResult | None, list[Change]]:
    """The graph of the first rung whose approximations may stay, its result, and what was judged on the way there.

    The last rung and one whose graph approximates nothing are taken unjudged; so is the first one where nobody judges
    or there is nothing to judge by.
    """
    tried: list[tuple[frozenset[Approximation], frozenset[Approximation]]] = []
    verdicts: list[Change] = []
    for rung in rungs:
        if any(used <= rung <= allowed for allowed, used in tried):
            continue  # what is left out made no difference: the same graph again
        lowered = lower(canonical, target, ranges=ranges, approximations=rung)
        tried.append((rung, lowered.approximations))
        measured = _measure(validator, lowered) if validator is not None else None
        if rung == rungs[-1] or not lowered.approximations or judge is None:
            break
        if measured is None:
            names = approximation_names(lowered.approximations)
            verdicts.append(choice(f"{names}: no samples to judge by", exact=False))
            break
        verdicts.append(judge(lowered.approximations, measured))
        if not verdicts[-1].exact:
            break
    return lowered, measured, verdicts


def _measure(validator: WidthValidator, lowered: LoweredGraph) -> WidthResult:
    with runnable(lowered.model, lowered.large) as model:
        return validator.validate(model)


def _commonest_label(samples: Dataset) -> float | None:
    """Percent of the samples that a network has right which always says the same; None without a label for each."""
    if samples.y is None or samples.y.ndim != 1:
        return None
    return 100.0 * int(np.unique(samples.y, return_counts=True)[1].max()) / samples.n


def _rungs(
    canonical: CanonicalGraph, target: Target, wanted: frozenset[Approximation], data: ExportData
) -> tuple[list[Change], list[frozenset[Approximation]]]:
    """Sets of approximations to try, fastest first; and what is not tried, with the reason."""
    able = frozenset(each for each in wanted if MADE_BY[each] in target.lowering)
    elementwise = frozenset({Approximation.ELEMENTWISE_CODES})
    if not is_halved(target):
        able -= {Approximation.HALF_LAYERS}  # the builder has a flag for it
    if not has_elementwise(canonical, target, able):
        able -= elementwise
    if data.calibration is None:
        needing = {each for each in able & CALIBRATED if calibrated_tensors(canonical, target, frozenset({each}))}
        needing |= able & elementwise
        text = f"{approximation_names(needing)} left out: no calibration samples"
        changes = [choice(text, exact=True)] if needing else []
        able -= CALIBRATED
    else:
        changes = []
    fewer = [able - each for each in _GIVEN_UP]
    usual = able & EXPORTED
    less = [usual - elementwise, usual - {Approximation.HALF_LAYERS}]
    rungs = [able, *fewer, usual, *less, able & {Approximation.ROUNDED_BIAS}, EXACT]
    return changes, list(dict.fromkeys(rungs))


def observe_ranges(canonical: CanonicalGraph, tensors: tuple[str, ...], samples: Dataset) -> dict[str, TensorRange]:
    """Ranges of float tensors of a canonical graph over the calibration samples."""
    model = onnx.ModelProto()
    model.CopyFrom(canonical.model)
    known = {output.name for output in model.graph.output}
    inputs = {value.name for value in model.graph.input}
    for name in tensors:
        if name not in known | inputs:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    with runnable(model, canonical.large) as source:
        session = ReferenceSession(source, threads=usable_cores())
    observers = {name: RangeObserver() for name in tensors}
    for x, _ in samples.batches(samples.fixed_batch or _BATCH):
        results = {session.inputs[0].name: x, **session.run_all({session.inputs[0].name: x})}
        for name, observer in observers.items():
            observer.observe(results[name])
    return {name: observer.result() for name, observer in observers.items()}


def _calibration(lowered: LoweredGraph, data: ExportData) -> list[Change]:
    if not data.calibrates_on_test or not lowered.approximations & CALIBRATED:
        return []
    what = "calibrated on the validation data, name other samples with --calibration"
    return [Change(by="calibration", where="ranges that were not trained", what=what, exact=True)]


def _fitted(master: Master) -> list[Change]:
    if not is_adapted(master):
        return []
    what = "statistics fitted by a search to its assignment; others lose accuracy with them"
    return [Change(by="plan", where="BatchNormalization", what=what, exact=True)]


def _untrained(canonical: CanonicalGraph) -> list[Change]:
    widths = ", ".join(str(bits) for bits in canonical.plan.untrained)
    if not widths:
        return []
    what = "not trained: activation ranges interpolated, BatchNormalization of the nearest trained width"
    return [Change(by="plan", where=f"width {widths}", what=what, exact=True)]
