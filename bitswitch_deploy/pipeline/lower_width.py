"""One width from master to lowered graph, with the choice of what happens to its residual branches.

Residual branches in 8-bit codes are the one lowering that can change what the network says by more than a rounding
tie, and how much depends on the network and the width. So the choice is measured: ranges come from the calibration
samples, and the fast form stays only where it agrees with the canonical graph on the validation samples, which no
network was trained on (on the calibration samples where there are no others). Labels play no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.graph.canonical import CanonicalGraph, canonical_graph
from bitswitch_deploy.graph.external_data import runnable
from bitswitch_deploy.lowering.lower import LoweredGraph, lower, residual_tensors
from bitswitch_deploy.lowering.lowering_pass import Change
from bitswitch_deploy.lowering.ranges import RangeObserver, TensorRange
from bitswitch_deploy.master import Master
from bitswitch_deploy.pipeline.inputs import ExportData
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.pipeline.validate_width import WidthValidator
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.validation.dataset import Dataset
from bitswitch_deploy.validation.hops import HOPS, HopResult, WidthResult

_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredWidth:
    """One width, lowered. `changes` are the lowering's and the choice made here; result: None without test data."""

    canonical: CanonicalGraph
    lowered: LoweredGraph
    changes: tuple[Change, ...]
    result: WidthResult | None

    @property
    def exact(self) -> bool:
        """Whether the lowered graph has the integer codes of the canonical one."""
        return all(change.exact for change in self.changes)


def lower_width(
    master: Master, assignment: WidthAssignment, target: Target, *, data: ExportData, strict: bool, progress: Progress
) -> LoweredWidth:
    """Derive, lower, choose and validate. `strict` keeps residual branches in float without trying.

    Raises:
        UsageError: the assignment does not fit the master.
        GraphError: the network holds something that the target cannot express.
        CheckFailedError: an output is not finite.
    """
    canonical = canonical_graph(master, assignment)
    changes = _untrained(canonical)
    judged_on = data.test or data.calibration
    validator = WidthValidator(master, canonical, target, judged_on, progress) if judged_on is not None else None
    tensors = residual_tensors(canonical, target)
    if tensors and (strict or data.calibration is None or validator is None):
        reason = "strict" if strict else "no calibration samples"
        changes.append(_residual_change(f"kept in float: {reason}", exact=True))
    elif tensors and data.calibration is not None and validator is not None:
        lowered = lower(canonical, target, ranges=observe_ranges(canonical, tensors, data.calibration))
        measured = _measure(validator, lowered)
        change = _choose(measured, target)
        changes.append(change)
        if not change.exact:
            return _lowered_width(canonical, lowered, changes, measured if data.test else None)
    lowered = lower(canonical, target, ranges={})
    result = _measure(validator, lowered) if validator and data.test else None
    return _lowered_width(canonical, lowered, changes, result)


def _measure(validator: WidthValidator, lowered: LoweredGraph) -> WidthResult:
    with runnable(lowered.model, lowered.large) as model:
        return validator.validate(model)


def _choose(measured: WidthResult, target: Target) -> Change:
    """Whether 8-bit codes on the residual branches stay: the change is inexact if they do."""
    hops = [hop for hop in measured.hops[HOPS.index("lowered") :] if hop.n]
    agreement, least = min(map(_agreement, hops)), target.quantization.residual_min_agreement
    text = f"{agreement:.2f} % agreement on {hops[0].n:,} samples"
    if agreement >= least:
        return _residual_change(f"8-bit codes, {text}", exact=False)
    return _residual_change(f"kept in float: 8-bit codes had {text}; {least:g} % is asked for", exact=True)


def _agreement(hop: HopResult) -> float:
    """Percent of samples with the same prediction; of dense outputs, 100 less the relative error in percent."""
    if hop.agreement_percent is not None:
        return hop.agreement_percent
    return 100.0 - 100.0 * (hop.relative_error or 0.0)


def _lowered_width(
    canonical: CanonicalGraph, lowered: LoweredGraph, changes: list[Change], result: WidthResult | None
) -> LoweredWidth:
    return LoweredWidth(canonical=canonical, lowered=lowered, changes=(*changes, *lowered.changes), result=result)


def observe_ranges(canonical: CanonicalGraph, tensors: tuple[str, ...], samples: Dataset) -> dict[str, TensorRange]:
    """Ranges of float tensors of a canonical graph over the calibration samples."""
    model = onnx.ModelProto()
    model.CopyFrom(canonical.model)
    known = {output.name for output in model.graph.output}
    for name in tensors:
        if name not in known:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    with runnable(model, canonical.large) as source:
        session = ReferenceSession(source, threads=usable_cores())
    observers = {name: RangeObserver() for name in tensors}
    for x, _ in samples.batches(samples.fixed_batch or _BATCH):
        results = session.run_all({session.inputs[0].name: x})
        for name, observer in observers.items():
            observer.observe(results[name])
    return {name: observer.result() for name, observer in observers.items()}


def _untrained(canonical: CanonicalGraph) -> list[Change]:
    widths = ", ".join(str(bits) for bits in canonical.plan.untrained)
    if not widths:
        return []
    what = "not trained: activation ranges interpolated, BatchNormalization of the nearest trained width"
    return [Change(by="plan", where=f"width {widths}", what=what, exact=True)]


def _residual_change(what: str, *, exact: bool) -> Change:
    return Change(by="residual choice", where="residual branches", what=what, exact=exact)
