"""From errors to a name and a sentence: which layer, why, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from bitswitch_deploy.diagnosis.blame_result import LayerError, Suspect
from bitswitch_deploy.diagnosis.layer_statistics import InputStatistics, LayerStatistics, WeightStatistics
from bitswitch_deploy.diagnosis.lowering_errors import CutError

# A layer stands out when quantizing it alone makes four times the noise of the usual layer that makes any.
_STANDS_OUT_DB = 6.0
_SATURATED_PERCENT, _CLIPPED_PERCENT = 2.0, 2.0
_IDLE_RATIO, _OUTLIER_RATIO = 0.5, 4.0
_DEAD_SHARE = 0.25

_PART_TEXTS = {
    "layer": "weights, scale or bias of {layer}",
    "input codes": "input codes of {layer}",
    "added codes": "codes that the lowering added behind {layer}",
    "between": "what follows {layer}",
}


def faults(parts: Iterable[CutError]) -> tuple[Suspect, ...]:
    """Parts of a lowered graph that compute something else, in the order of the graph."""
    return tuple(
        Suspect(
            kind="fault",
            layer=each.layer,
            where=_PART_TEXTS[each.part].format(layer=each.layer or "the input"),
            what=f"{each.what}; {' '.join(each.operators)} -> {each.tensor}",
            do="export the package again; `bitswitch-deploy verify PACKAGE` says whether the file was changed",
        )
        for each in parts
        if each.verdict == "fault"
    )


def sensitive_layer(
    layers: Sequence[LayerError], statistics: Iterable[LayerStatistics], *, highest: int
) -> tuple[Suspect, ...]:
    """The layer of the largest own error, if that is far above the usual one, with its likely cause; else none.

    highest: the master's own width.
    """
    noisy = [each.isolated.sqnr_db for each in layers if math.isfinite(each.isolated.sqnr_db)]
    usual = median(noisy) if noisy else 0.0
    found = min(layers, key=lambda each: each.isolated.sqnr_db, default=None)
    if found is None or not -math.inf < found.isolated.sqnr_db < usual - _STANDS_OUT_DB:
        return ()
    (own,) = [each for each in statistics if each.layer == found.layer]
    what, do = likely_cause(own, highest=highest)
    noise = 10 ** ((usual - found.isolated.sqnr_db) / 10)
    return (
        Suspect(
            kind="sensitive",
            layer=found.layer,
            where=f"{found.layer} at {found.bits} bits",
            what=f"alone it makes {noise:.0f} x the noise of the usual layer; {what}",
            do=do,
        ),
    )


def likely_cause(layer: LayerStatistics, *, highest: int) -> tuple[str, str]:
    """A sentence on why a layer loses much at its width, and on what to try: more bits only where the master has them.

    highest: the master's own width.
    """
    more = f"give it more bits, `--mixed` with {layer.layer!r}: {min(layer.bits + 2, highest)}"
    more_bits = (more,) if layer.bits < highest else ()
    found = _input_cause(layer.input, layer.bits) if layer.input is not None else None
    found = found or _weight_cause(layer.weights, layer.bits)
    if found is None:
        what, ways = f"no single cause: {layer.bits} bits are too coarse for it", (*more_bits, "pin it to float")
    else:
        what, ways = found[0], (found[1], *more_bits)
    return what, ", or ".join(ways)


def _input_cause(codes: InputStatistics, bits: int) -> tuple[str, str] | None:
    if codes.peak_ratio > _OUTLIER_RATIO and codes.saturated_percent < _SATURATED_PERCENT:
        what = f"range outlier: its largest input is {codes.peak_ratio:.1f} x the largest code"
        return what, "clip or normalise what comes before it in training"
    if codes.saturated_percent > _SATURATED_PERCENT:
        what = f"saturated activations: {codes.saturated_percent:.1f} % of its inputs are beyond the largest code"
        return what, f"train its input scale at {bits} bits for longer"
    if codes.peak_ratio < _IDLE_RATIO:
        what = f"idle codes: its largest input is {codes.peak_ratio:.2f} x the largest code"
        return what, f"train its input scale at {bits} bits again, it is too wide"
    if codes.dead_channels > _DEAD_SHARE * codes.channels:
        what = f"dead channels: {codes.dead_channels} of {codes.channels} input channels are zero for every sample"
        return what, "look at the BatchNormalization and the scale in front of it"
    return None


def _weight_cause(codes: WeightStatistics, bits: int) -> tuple[str, str] | None:
    if codes.zero_channels > _DEAD_SHARE * codes.channels:
        what = f"dead channels: {codes.zero_channels} of {codes.channels} output channels have only zeros as weights"
        return what, f"train at {bits} bits for longer, or with one scale for each channel"
    if codes.clipped_percent > _CLIPPED_PERCENT:
        what = f"clipped codes: {codes.clipped_percent:.1f} % of its weights are above the largest code of {bits} bits"
        return what, f"train at {bits} bits for longer"
    return None
