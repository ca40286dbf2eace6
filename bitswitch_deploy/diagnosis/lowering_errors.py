"""Each part of a lowered graph against the canonical one, given the same inputs, and what is wrong with it.

Three verdicts: *exact* (but for float rounding), *approximate* (what a lowering may do: rounded biases, added 8-bit
codes, finer or fewer steps in the trained range), *fault* (nothing that a lowering does).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.diagnosis.cuts import AddedCodes, Cut, CutGraph
from bitswitch_deploy.diagnosis.distance import ChannelDistance, ChannelError, Distance, TensorError
from bitswitch_deploy.diagnosis.levels import Levels, LevelSet
from bitswitch_deploy.graph.plan import ActivationPlan
from bitswitch_deploy.lowering.ranges import RangeObserver, best_scale

Array = npt.NDArray[Any]
CutVerdict = Literal["exact", "approximate", "fault"]

# Sums of a thousand float32 products differ by 1e-6 (120 dB) with their order; what else is 80 dB is rounding, too.
_EXACT_DB = 80.0
# A doubled scale or a lost sign is as large as the signal, 0 dB. The 8-bit weights that a lowering gives to float
# layers come to 35 dB in the worst channels that were seen.
_FAULT_DB, _CODED_FAULT_DB = 30.0, 20.0
# Rounding a bias moves a channel by up to half a step of its accumulator, far below its deviation.
_EXACT_OFFSET, _FAULT_OFFSET = 1e-3, 0.3
# Calibrated 8-bit codes come to 35 dB. Their scale against the best one for these samples is 1.2 for samples like those
# of the calibration; that it is another one for other samples is no fault of the graph.
_ADDED_FAULT_DB, _SCALE_OFF = 15.0, 1.6
_SAME = 0.01
# Of fewer values of a channel its deviation is hardly known: a bias may be off by as many times more.
_SURE_VALUES = 32
# Of scales that are the same number, one of them read off the values that it makes.
_SAME_SCALE = 1e-4
_INT8_MAX = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class CutError:
    """One part of a lowered graph.

    error: against the canonical graph (added codes: against what goes into them), with the same inputs.
    what: what is wrong or approximate, empty where it is exact.
    """

    tensor: str
    part: str
    layer: str
    operators: tuple[str, ...]
    verdict: CutVerdict
    error: TensorError
    what: str


class LoweringErrors:
    """Collects the error of every cut.

    Args:
        cut: the cuts of the lowered graph.
        plans: of each layer's input in the canonical graph, by the name of the dequantized tensor.
        scales: of the same in the lowered graph, where a DequantizeLinear says it.
    """

    def __init__(self, cut: CutGraph, plans: Mapping[str, ActivationPlan], scales: Mapping[str, float]) -> None:
        self._plans, self._scales = plans, scales
        self._misshapen: dict[str, str] = {}
        self._added = {each.result: each for each in cut.added}
        self._cuts = cut.cuts
        self._distances = {each.tensor: Distance() for each in cut.cuts}
        self._channels = {
            each.tensor: ChannelDistance(each.channel_axis) for each in cut.cuts if each.part in ("layer", "between")
        }
        inputs = [each.tensor for each in cut.cuts if each.part == "input codes"]
        self._levels = {name: (LevelSet(), LevelSet()) for name in inputs}
        self._ranges = {name: RangeObserver() for name in self._added}

    def add(self, own: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
        """Add one batch: what each cut computes, and what it should."""
        for cut in self._cuts:
            a, b = wanted[cut.tensor], own[cut.tensor]
            if a.shape != b.shape:
                self._misshapen[cut.tensor] = f"its shape is {list(b.shape)} instead of {list(a.shape)}"
                continue
            self._distances[cut.tensor].add(a, b)
            if cut.tensor in self._channels:
                self._channels[cut.tensor].add(a, b)
            elif cut.tensor in self._levels:
                for levels, values in zip(self._levels[cut.tensor], (a, b)):
                    levels.add(values)
            else:
                self._ranges[cut.tensor].observe(a)

    def result(self) -> tuple[CutError, ...]:
        """Every cut in the order of the graph."""
        trained = {self._own_levels(name).step for name in self._levels if name not in self._misshapen}
        added = [codes.scale for codes in self._added.values()]
        errors = []
        for cut in self._cuts:
            error = self._distances[cut.tensor].result()
            verdict: CutVerdict
            if cut.tensor in self._misshapen:
                error = TensorError(sqnr_db=0.0, cosine=0.0)
                verdict, what = "fault", self._misshapen[cut.tensor]
            elif cut.tensor in self._channels:
                worst = self._channels[cut.tensor].worst()
                verdict, what = judge_channels(worst, is_coded=cut.is_approximate, is_half=cut.is_half)
            elif cut.tensor in self._levels:
                plan = self._plans[cut.tensor]
                reference = replace(self._levels[cut.tensor][0].result(), step=plan.scale)
                own = self._own_levels(cut.tensor)
                verdict, what = judge_levels(reference, own, error, highest=plan.codes.high, added=added)
            else:
                verdict, what = self._judge_added(self._added[cut.tensor], error, trained)
            errors.append(_cut_error(cut, verdict, error, what))
        return tuple(errors)

    def _own_levels(self, name: str) -> Levels:
        """As seen; of few samples the smallest gap may be several steps, so the step is the one that is written."""
        seen = self._levels[name][1].result()
        return replace(seen, step=self._scales.get(name, seen.step))

    def _judge_added(self, codes: AddedCodes, error: TensorError, trained: set[float]) -> tuple[CutVerdict, str]:
        bits = f"{(codes.high - codes.low).bit_length()}-bit codes that were not trained"
        if error.sqnr_db >= _EXACT_DB:
            return "exact", ""
        # in front of a MaxPool the codes are those of the layer behind it
        if any(abs(codes.scale / step - 1) < _SAME_SCALE for step in trained if step == step):
            return "approximate", "codes of the layer behind a MaxPool"
        seen = self._ranges[codes.result].result()
        low = codes.low if seen.minimum < 0 else 0
        ratio = codes.scale / best_scale(seen, low=low, high=codes.high)
        if error.sqnr_db < _ADDED_FAULT_DB:
            what = "most of its codes are never used" if ratio > 1 else "what is larger than its range is cut off"
            return "fault", f"its scale is {ratio:.2f} x the best one for these samples: {what}"
        if 1 / _SCALE_OFF < ratio < _SCALE_OFF:
            return "approximate", bits
        return "approximate", f"{bits}, calibrated on larger or smaller values than these"


def judge_levels(
    reference: Levels, own: Levels, error: TensorError, *, highest: int, added: Collection[float] = ()
) -> tuple[CutVerdict, str]:
    """The quantizer of an input: same values, the trained range in other steps, or something else.

    added: scales of the codes that the lowering added, which a quantizer behind them may keep within its range.
    """
    if error.sqnr_db >= _EXACT_DB:
        return "exact", ""
    step, top = _ratio(own.step, reference.step), _ratio(own.high, reference.high)
    # the largest input was rounded to a step of each
    same_top = abs(own.high - reference.high) <= 0.5 * (reference.step + own.step) * (1 + _SAME)
    if highest > _INT8_MAX and same_top and abs(step * _INT8_MAX / highest - 1) < _SAME:
        return "approximate", f"codes 0..{highest} re-scaled to 0..{_INT8_MAX}"
    if step < 1 - _SAME and same_top:
        return "approximate", f"finer steps than trained in the trained range, {1 / step:.1f} for one"
    is_within = own.high <= reference.high + 0.5 * (reference.step + own.step) * (1 + _SAME)
    if step < 1 - _SAME and is_within and any(abs(own.step / scale - 1) < _SAME_SCALE for scale in added):
        return "approximate", f"finer steps than trained, those of the branch in front, {1 / step:.1f} for one"
    if abs(step - 1) > _SAME:
        return "fault", f"its step is {step:.2f} x the trained one: the scale of its codes is wrong"
    if top < 1 - _SAME:
        return (
            "fault",
            f"its codes end at {top:.2f} x the trained range: half of it is lost where uint8 is read as int8",
        )
    if top > 1 + _SAME:
        return "fault", f"its codes go up to {top:.2f} x the trained range: they are not clipped"
    if error.sqnr_db >= _FAULT_DB:
        return "approximate", "some codes fall on the other side of a tie"
    return "fault", "its codes mean other values than trained: look at zero-point and type"


def judge_channels(worst: ChannelError, *, is_coded: bool, is_half: bool = False) -> tuple[CutVerdict, str]:
    """What a layer computes, by its worst channel. is_coded: in codes that were not trained; is_half: in float16."""
    where = f"in output channel {worst.channel}"
    if worst.noise_db >= _EXACT_DB and abs(worst.offset) <= _EXACT_OFFSET:
        return "exact", ""
    if worst.noise_db < (_CODED_FAULT_DB if is_coded else _FAULT_DB):
        return "fault", f"{_gain_text(worst)} {where}"
    if abs(worst.offset) > _FAULT_OFFSET * max(1.0, _SURE_VALUES / worst.values):
        return "fault", f"the bias is off by {abs(worst.offset):.1f} standard deviations {where}"
    if is_coded:
        return "approximate", "float weights in 8-bit codes that were not trained"
    if is_half:
        return "approximate", "computed in float16"
    return "approximate", "bias and scales rounded to what integers hold"


def _gain_text(worst: ChannelError) -> str:
    if worst.gain < -0.5:
        return f"the sign is lost ({worst.gain:.2f} x what it should be)"
    if abs(worst.gain - 1) > 0.2:
        return f"{worst.gain:.2f} x what it should be: its scale is wrong, or signs of its weights are lost,"
    return "it computes something else: weights or signs are wrong"


def _ratio(a: float, b: float) -> float:
    return a / b if b not in (0.0, np.nan) and a == a and b == b else 1.0


def _cut_error(cut: Cut, verdict: CutVerdict, error: TensorError, what: str) -> CutError:
    return CutError(
        tensor=cut.tensor,
        part=cut.part,
        layer=cut.layer,
        operators=cut.operators,
        verdict=verdict,
        error=error,
        what=what,
    )
