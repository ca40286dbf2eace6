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
from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.graph.canonical import CanonicalGraph, canonical_graph
from bitswitch_deploy.lowering.lower import LoweredGraph, lower, residual_tensors
from bitswitch_deploy.lowering.lowering_pass import Change
from bitswitch_deploy.lowering.ranges import RangeObserver, TensorRange
from bitswitch_deploy.master import Master
from bitswitch_deploy.pipeline.inputs import ExportData
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.validation.dataset import Dataset
from bitswitch_deploy.validation.metrics import HopAccumulator

_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredWidth:
    """Both graphs of one width; `changes` are the lowering's and the choice made here."""

    assignment: WidthAssignment
    canonical: CanonicalGraph
    lowered: LoweredGraph
    changes: tuple[Change, ...]

    @property
    def exact(self) -> bool:
        """Whether the lowered graph has the integer codes of the canonical one."""
        return all(change.exact for change in self.changes)


def lower_width(
    master: Master, assignment: WidthAssignment, target: Target, *, data: ExportData, strict: bool
) -> LoweredWidth:
    """Derive, lower and choose. `strict` keeps residual branches in float without trying.

    Raises:
        UsageError: the assignment does not fit the master.
        GraphError: the network holds something that the target cannot express.
    """
    canonical = canonical_graph(master, assignment)
    tensors = residual_tensors(canonical, target)
    untrained = _untrained(canonical)
    if not tensors or strict or data.calibration is None:
        lowered = lower(canonical, target, ranges={})
        reason = "strict" if strict else "no calibration samples"
        kept = [_residual_change(f"kept in float: {reason}", exact=True)] if tensors else []
        return _result(assignment, canonical, lowered, [*untrained, *kept])
    quantized = lower(canonical, target, ranges=observe_ranges(canonical, tensors, data.calibration))
    judged_on = data.test or data.calibration
    agreement = _agreement(canonical, quantized, target, judged_on)
    least = target.quantization.residual_min_agreement
    measured = f"{agreement:.2f} % agreement on {judged_on.n:,} samples of {judged_on.name}"
    if agreement >= least:
        change = _residual_change(f"8-bit codes, {measured}", exact=False)
        return _result(assignment, canonical, quantized, [*untrained, change])
    change = _residual_change(f"kept in float: 8-bit codes had {measured}; {least:g} % is asked for", exact=True)
    return _result(assignment, canonical, lower(canonical, target, ranges={}), [*untrained, change])


def observe_ranges(canonical: CanonicalGraph, tensors: tuple[str, ...], samples: Dataset) -> dict[str, TensorRange]:
    """Ranges of float tensors of a canonical graph over the calibration samples."""
    model = onnx.ModelProto()
    model.CopyFrom(canonical.model)
    known = {output.name for output in model.graph.output}
    for name in tensors:
        if name not in known:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ReferenceSession(model.SerializeToString(), threads=usable_cores())
    observers = {name: RangeObserver() for name in tensors}
    for x, _ in samples.batches(samples.fixed_batch or _BATCH):
        results = session.run_all({session.inputs[0].name: x})
        for name, observer in observers.items():
            observer.observe(results[name])
    return {name: observer.result() for name, observer in observers.items()}


def _agreement(canonical: CanonicalGraph, lowered: LoweredGraph, target: Target, samples: Dataset) -> float:
    """Percent of samples with the same prediction; of a network without classes, of equal outputs to 1 %."""
    reference = ReferenceSession(canonical.model.SerializeToString(), threads=usable_cores())
    session = OnnxRuntimeSession(
        lowered.model.SerializeToString(),
        optimisation="off",
        threads=usable_cores(),
        session_options=dict(target.engine.session),
    )
    total = HopAccumulator("residual choice")
    for x, _ in samples.batches(samples.fixed_batch or _BATCH):
        total.update(session.run(x), reference=reference.run(x))
    metrics = total.metrics()
    if metrics.agreement_percent is not None:
        return metrics.agreement_percent
    return 100.0 - 100.0 * (metrics.relative_error or 0.0)


def _untrained(canonical: CanonicalGraph) -> list[Change]:
    widths = ", ".join(str(bits) for bits in canonical.plan.untrained)
    if not widths:
        return []
    what = "not trained: activation ranges interpolated, BatchNormalization of the nearest trained width"
    return [Change(by="plan", where=f"width {widths}", what=what, exact=True)]


def _residual_change(what: str, *, exact: bool) -> Change:
    return Change(by="residual choice", where="residual branches", what=what, exact=exact)


def _result(
    assignment: WidthAssignment, canonical: CanonicalGraph, lowered: LoweredGraph, changes: list[Change]
) -> LoweredWidth:
    return LoweredWidth(
        assignment=assignment, canonical=canonical, lowered=lowered, changes=(*changes, *lowered.changes)
    )
