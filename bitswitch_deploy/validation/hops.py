"""Each hop from the trained network to the engine, measured on the same samples and compared with the canonical graph.

    trained    the network as the trainer ran it, or what the trainer recorded in the master
    canonical  the graph that defines the meaning of a width: the reference of every comparison
    lowered    the graph for one target
    engine     what the target's runtime built from it

Nothing is left out: a hop that did not run has a result with n = 0 that says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import CheckFailedError, UsageError
from bitswitch_deploy.master.spec import MeasuredAccuracy
from bitswitch_deploy.validation.dataset import Dataset, DatasetSummary
from bitswitch_deploy.validation.metrics import HopAccumulator

Hop = Literal["trained", "canonical", "lowered", "engine"]
HOPS: tuple[Hop, ...] = get_args(Hop)

# Of the trainer's value, what a network must keep on other data: below half of it labels, the order of the classes or
# the preprocessing are more likely to be others than the images to be harder.
_KEPT_SHARE = 0.5
# Standard errors between two samples of one network that chance does not explain: one case in 700.
_FAR = 3.0

# Percentages are quotients of integers; their difference may be off by a rounding error, never by a sample.
ROUNDING_POINTS = 1e-6


class Runner(Protocol):
    """Something that computes the output of the network; the engines implement it."""

    def run(self, x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Logits [n, classes] (or dense outputs [n, ...]) of the inputs `x` [n, ...]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HopResult:
    """What one hop achieved at one width; None where there is nothing to measure, `note` says why.

    label: the width as in file names, `w4` or `mixed`.
    agreement_percent, sqnr_db (infinite when equal), max_abs_error, relative_error: against the canonical graph.
    lost, gained: samples that it has right and this hop has wrong, and the other way round.
    n: samples; 0 when the hop did not run.
    same_data: False when the trainer recorded the value on other samples than the other hops ran on.
    """

    label: str
    hop: Hop
    top1_percent: float | None = None
    agreement_percent: float | None = None
    sqnr_db: float | None = None
    max_abs_error: float | None = None
    relative_error: float | None = None
    lost: int | None = None
    gained: int | None = None
    n: int = 0
    same_data: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthResult:
    """All hops of one width, in the order of HOPS. bits: None for a mixed assignment."""

    label: str
    bits: int | None
    hops: tuple[HopResult, ...]

    def hop(self, name: Hop) -> HopResult:
        """Return the result of one hop."""
        return self.hops[HOPS.index(name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationResult:
    """All widths on one data set."""

    dataset: DatasetSummary
    widths: tuple[WidthResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthUnderTest:
    """One width to validate. recorded: what the trainer measured at this width, None when it did not."""

    label: str
    bits: int | None
    recorded: MeasuredAccuracy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether one hop of one width kept its accuracy; drop_points is positive when it is lower than the baseline."""

    label: str
    hop: Hop
    verdict: Literal["ok", "failed", "not judged"]
    drop_points: float | None
    reason: str


def validate_hops(
    runners: Mapping[Hop, Runner],
    dataset: Dataset,
    *,
    width: WidthUnderTest,
    not_run: Mapping[Hop, str] | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> WidthResult:
    """Run every hop on every sample and compare each with the canonical one.

    All hops see a batch before the next one is read: a data set is decoded once and never held whole.

    Args:
        runners: one for each hop that can run. Without one, `trained` is what the trainer recorded.
        dataset: samples that fit the network.
        width: the width that the runners compute.
        not_run: why a hop has no runner.
        batch_size: samples in one call of a runner, unless the network has a batch size of its own.
        progress: called after each batch with its number of samples.

    Raises:
        CheckFailedError: an output is not finite, or has another shape than the canonical one.
        DataError: an image cannot be decoded, or a label is no class of the output.
    """
    sums = {hop: HopAccumulator(f"{width.label} {hop}") for hop in HOPS if hop in runners}
    for x, y in dataset.batches(dataset.fixed_batch or batch_size):
        outputs = {hop: run_batch(runners[hop], x, dataset.fixed_batch, f"{width.label} {hop}") for hop in sums}
        for hop, total in sums.items():
            reference = None if hop == "canonical" else outputs.get("canonical")
            total.update(outputs[hop], reference=reference, labels=y)
        if progress is not None:
            progress(len(x))
    reasons = not_run or {}
    hops = tuple(
        _measured(width.label, hop, sums[hop], compared="canonical" in sums)
        if hop in sums
        else _unmeasured(width, hop, reasons.get(hop, "not run"), dataset)
        for hop in HOPS
    )
    return WidthResult(label=width.label, bits=width.bits, hops=hops)


def judge(result: ValidationResult, recorded: Sequence[MeasuredAccuracy], *, max_drop: float) -> tuple[Verdict, ...]:
    """Say for the canonical, lowered and engine hop of each width whether its top-1 fell too far.

    The baseline is what the trainer recorded at this width if that was on the same samples; otherwise it is the
    canonical graph on these samples, and the reason says so. Where that graph is below the trainer's value by more than
    chance its own reason says that, too, and below half of the value it fails.

    Args:
        result: what was measured.
        recorded: the accuracies in the master.
        max_drop: how many points of top-1 a hop may lose; 0 or more.

    Raises:
        UsageError: `max_drop` is negative or not a number.
    """
    if not 0 <= max_drop < math.inf:
        raise UsageError(
            where="largest accepted drop of accuracy",
            got=str(max_drop),
            allowed="0 or more points",
            do="give the drop in points of top-1: 0.5 accepts 91.7 % for 92.2 %",
        )
    verdicts = []
    for width in result.widths:
        baseline = _baseline(result, width, recorded)
        verdicts += [_verdict(hop, baseline, max_drop) for hop in width.hops if hop.hop != "trained"]
    return tuple(verdicts)


def run_batch(
    runner: Runner, x: npt.NDArray[np.float32], fixed_batch: int | None, where: str
) -> npt.NDArray[np.floating[Any]]:
    """Outputs [b, ...] of `x` [b, ...], whatever batch size the network has.

    Raises:
        CheckFailedError: not one row of outputs for each sample; `where` names whose they are.
    """
    return _outputs(runner, _filled(x, fixed_batch or len(x)), where)[: len(x)]


def _filled(x: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Repeat the last sample until there are `size`: the last batch of a network with a fixed batch size."""
    return x if len(x) == size else np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)])


def _outputs(runner: Runner, x: npt.NDArray[np.float32], where: str) -> npt.NDArray[np.floating[Any]]:
    outputs = np.asarray(runner.run(x))
    if outputs.ndim == 0 or len(outputs) != len(x):
        raise CheckFailedError(
            where=f"{where} output",
            got=f"shape {list(outputs.shape)} for {len(x)} samples",
            allowed=f"[{len(x)}, ...], one row for each sample",
            do="export the network with the batch as the first dimension of its input and output",
        )
    return outputs


def _measured(label: str, hop: Hop, total: HopAccumulator, *, compared: bool) -> HopResult:
    metrics = total.metrics()
    notes = [metrics.note]
    if hop != "canonical" and not compared:
        notes.append("compared with nothing: the canonical graph did not run")
    return HopResult(
        label=label,
        hop=hop,
        top1_percent=metrics.top1_percent,
        agreement_percent=metrics.agreement_percent,
        sqnr_db=metrics.sqnr_db,
        max_abs_error=metrics.max_abs_error,
        relative_error=metrics.relative_error,
        lost=metrics.lost,
        gained=metrics.gained,
        n=metrics.n,
        note="; ".join(note for note in notes if note),
    )


def _unmeasured(width: WidthUnderTest, hop: Hop, reason: str, dataset: Dataset) -> HopResult:
    recorded = width.recorded
    if hop != "trained" or recorded is None:
        return HopResult(label=width.label, hop=hop, note=reason)
    same_data = dataset.summary.is_known_as(recorded.dataset_sha256)
    where = "this data set" if same_data else f"other data: {recorded.n:,} samples of {recorded.dataset}"
    return HopResult(
        label=width.label,
        hop=hop,
        top1_percent=recorded.value,
        n=recorded.n,
        same_data=same_data,
        note=f"recorded by the trainer on {where}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Baseline:
    """What the hops of a width are held against.

    percent: None when there is nothing. why_canonical: why it is the canonical graph, empty when it is the trainer.
    elsewhere: what the trainer recorded at this width on other data.
    """

    percent: float | None
    why_canonical: str = ""
    elsewhere: MeasuredAccuracy | None = None

    @property
    def name(self) -> str:
        return f"of the canonical graph ({self.why_canonical})" if self.why_canonical else "that the trainer recorded"


def recorded_accuracy(
    recorded: Sequence[MeasuredAccuracy], bits: int | None, data: DatasetSummary
) -> MeasuredAccuracy | None:
    """What the trainer recorded at a width: on these data if it did, else the first on others; None without any."""
    at_width = [accuracy for accuracy in recorded if accuracy.bits == bits]
    here = [accuracy for accuracy in at_width if data.is_known_as(accuracy.dataset_sha256)]
    return next(iter((*here, *at_width)), None)


def _baseline(result: ValidationResult, width: WidthResult, recorded: Sequence[MeasuredAccuracy]) -> _Baseline:
    found = recorded_accuracy(recorded, width.bits, result.dataset)
    if found is not None and result.dataset.is_known_as(found.dataset_sha256):
        return _Baseline(percent=found.value)
    why = "the trainer's value is from other data" if found else "the trainer recorded nothing at this width"
    return _Baseline(percent=width.hop("canonical").top1_percent, why_canonical=why, elsewhere=found)


def _verdict(hop: HopResult, baseline: _Baseline, max_drop: float) -> Verdict:
    top1, base = hop.top1_percent, baseline.percent
    if top1 is None:
        return _not_judged(hop, hop.note)
    if base is None:
        return _not_judged(hop, f"no baseline: {baseline.why_canonical}, and the canonical graph has no top-1")
    if baseline.why_canonical and hop.hop == "canonical":
        return _baseline_verdict(hop, baseline, max_drop)
    drop = base - top1
    reason = (
        f"{top1:.2f} %, {abs(drop):.2f} points {'below' if drop >= 0 else 'above'} the {base:.2f} % {baseline.name}"
    )
    failed = drop > max_drop + ROUNDING_POINTS
    if failed:
        reason += f"; {max_drop:g} allowed"
    if failed and 100 / hop.n > max_drop > 0:
        reason += f", while one sample of {hop.n} is already {100 / hop.n:.2g} points"
    return Verdict(label=hop.label, hop=hop.hop, verdict="failed" if failed else "ok", drop_points=drop, reason=reason)


def _baseline_verdict(hop: HopResult, baseline: _Baseline, max_drop: float) -> Verdict:
    """Of the canonical graph where it is the baseline: is it the network that the trainer measured, on such data?"""
    reason, elsewhere = f"it is the baseline: {baseline.why_canonical}", baseline.elsewhere
    top1 = hop.top1_percent or 0.0
    if elsewhere is None or not _is_far_below(top1, hop.n, elsewhere):
        return _not_judged(hop, reason)
    drop = elsewhere.value - top1
    measured = f"{elsewhere.value:.2f} % on {elsewhere.n:,} samples of {elsewhere.dataset}"
    found = (
        f"{top1:.2f} %, and {measured}, which is no chance: are labels, order of classes (folders sort as text, 10 "
        "before 2) and preprocessing those of the training?"
    )
    if top1 < _KEPT_SHARE * elsewhere.value and drop > max_drop + ROUNDING_POINTS:
        return Verdict(label=hop.label, hop=hop.hop, verdict="failed", drop_points=drop, reason=found)
    return _not_judged(hop, f"{reason}; {found}")


def _is_far_below(percent: float, n: int, other: MeasuredAccuracy) -> bool:
    """Whether `percent` of `n` is below another sample's value by more than chance: test of two proportions, pooled."""
    pooled = (percent * n + other.value * other.n) / (n + other.n) / 100.0
    error = 100.0 * math.sqrt(pooled * (1.0 - pooled) * (1.0 / n + 1.0 / other.n))
    return other.value - percent > _FAR * error


def _not_judged(hop: HopResult, reason: str) -> Verdict:
    return Verdict(label=hop.label, hop=hop.hop, verdict="not judged", drop_points=None, reason=reason)


def percent_rounded_down(percent: float) -> str:
    """Two decimals, and 100.00 only for all: 99.998 must not look like it."""
    return f"{math.floor(percent * 100 + 1e-6) / 100:.2f}" if math.isfinite(percent) else str(percent)
