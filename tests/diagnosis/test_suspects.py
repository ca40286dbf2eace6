"""From numbers to a sentence, case by case."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bitswitch_deploy.diagnosis.blame_result import LayerError
from bitswitch_deploy.diagnosis.distance import ChannelError, TensorError
from bitswitch_deploy.diagnosis.layer_statistics import InputStatistics, LayerStatistics, WeightStatistics
from bitswitch_deploy.diagnosis.levels import Levels
from bitswitch_deploy.diagnosis.lowering_errors import judge_channels, judge_levels
from bitswitch_deploy.diagnosis.output_error import OutputError
from bitswitch_deploy.diagnosis.suspects import likely_cause, sensitive_layer

WEIGHTS = WeightStatistics(low=-2, counts=(1, 9, 9, 9), clipped_percent=0.5, zero_channels=1, channels=16)
INPUT = InputStatistics(low=0, counts=(5, 3, 2, 1), saturated_percent=0.5, peak_ratio=1.1, dead_channels=1, channels=16)
LAYER = LayerStatistics(layer="a", bits=2, weights=WEIGHTS, input=INPUT)


@pytest.mark.parametrize(
    ("layer", "cause"),
    [
        (LAYER, "no single cause: 2 bits are too coarse"),
        (replace(LAYER, input=replace(INPUT, saturated_percent=7.0)), "saturated activations: 7.0 %"),
        (replace(LAYER, input=replace(INPUT, peak_ratio=9.0)), "range outlier: its largest input is 9.0 x"),
        (replace(LAYER, input=replace(INPUT, peak_ratio=0.3)), "idle codes: its largest input is 0.30 x"),
        (replace(LAYER, input=replace(INPUT, dead_channels=9)), "dead channels: 9 of 16 input channels"),
        (replace(LAYER, weights=replace(WEIGHTS, zero_channels=8)), "dead channels: 8 of 16 output channels"),
        (replace(LAYER, weights=replace(WEIGHTS, clipped_percent=6.5)), "clipped codes: 6.5 % of its weights"),
        (replace(LAYER, input=None, weights=replace(WEIGHTS, clipped_percent=6.5)), "clipped codes"),
    ],
)
def test_likely_cause(layer: LayerStatistics, cause: str) -> None:
    what, do = likely_cause(layer, highest=8)
    assert what.startswith(cause)
    assert "--mixed" in do


@pytest.mark.parametrize(("bits", "highest", "more"), [(2, 4, 4), (3, 4, 4), (4, 8, 6), (7, 8, 8)])
def test_more_bits_up_to_those_of_the_master(bits: int, highest: int, more: int) -> None:
    _, do = likely_cause(replace(LAYER, bits=bits), highest=highest)
    assert do == f"give it more bits, `--mixed` with 'a': {more}, or pin it to float"


@pytest.mark.parametrize("highest", [4, 8])
def test_a_layer_that_has_all_bits_of_the_master(highest: int) -> None:
    layer = replace(LAYER, bits=highest)
    clipped = replace(layer, input=replace(INPUT, saturated_percent=7.0))
    assert likely_cause(layer, highest=highest)[1] == "pin it to float"
    assert likely_cause(clipped, highest=highest)[1] == f"train its input scale at {highest} bits for longer"


def _error(name: str, alone_db: float) -> LayerError:
    output = OutputError(n=9, top1_percent=None, agreement_percent=None, sqnr_db=alone_db, cosine=1.0)
    return LayerError(layer=name, bits=2, isolated=output, cumulative=output)


def test_the_layer_that_stands_out_most() -> None:
    errors = [_error("a", 20), _error("b", 12), _error("c", 21), _error("d", 8), _error("e", 22)]
    statistics = [replace(LAYER, layer=each.layer) for each in errors]
    (suspect,) = sensitive_layer(errors, statistics, highest=8)
    assert (suspect.kind, suspect.layer, suspect.where) == ("sensitive", "d", "d at 2 bits")
    assert "16 x the noise" in suspect.what


def test_layers_without_noise_are_not_the_usual_ones() -> None:
    """Weights at the master's own width behind float inputs are those of the network in float."""
    levels = (math.inf, 20, math.inf, 8, math.inf, 22, math.inf)
    errors = [_error(str(index), level) for index, level in enumerate(levels)]
    (suspect,) = sensitive_layer(errors, [replace(LAYER, layer=each.layer) for each in errors], highest=8)
    assert suspect.layer == "3"
    assert "16 x the noise" in suspect.what


@pytest.mark.parametrize(
    "levels",
    [
        (20, 19, 21, 18),
        (math.inf, math.inf),
        (math.inf, 20, 19, math.inf, math.inf),
        (math.inf, math.inf, 12),
        (12,),
        (),
    ],
)
def test_none_stands_out(levels: tuple[float, ...]) -> None:
    errors = [_error(str(index), level) for index, level in enumerate(levels)]
    assert sensitive_layer(errors, [replace(LAYER, layer=each.layer) for each in errors], highest=8) == ()


TRAINED = Levels(step=0.5, low=0.0, high=7.5)
OFF = TensorError(sqnr_db=12.0, cosine=0.9)


@pytest.mark.parametrize(
    ("own", "error", "highest", "verdict", "text"),
    [
        (TRAINED, TensorError(sqnr_db=math.inf, cosine=1.0), 15, "exact", ""),
        (Levels(step=1.0, low=0.0, high=15.0), OFF, 15, "fault", "its step is 2.00 x the trained one"),
        (Levels(step=0.25, low=0.0, high=7.5), OFF, 15, "approximate", "finer steps"),
        (Levels(step=0.5, low=0.0, high=3.5), OFF, 15, "fault", "its codes end at 0.47 x the trained range"),
        (Levels(step=0.5, low=0.0, high=9.5), OFF, 15, "fault", "they are not clipped"),
        (Levels(step=0.5 * 255 / 127, low=0.0, high=7.5), OFF, 255, "approximate", "codes 0..255 re-scaled to 0..127"),
        (Levels(step=0.5 * 255 / 127, low=0.0, high=7.5), OFF, 127, "fault", "its step is 2.01 x"),
        (TRAINED, TensorError(sqnr_db=45.0, cosine=1.0), 15, "approximate", "other side of a tie"),
        (TRAINED, OFF, 15, "fault", "look at zero-point and type"),
        (Levels(step=math.nan, low=0.0, high=0.0), OFF, 15, "fault", "its codes end at 0.00 x"),
    ],
)
def test_quantizers(own: Levels, error: TensorError, highest: int, verdict: str, text: str) -> None:
    found, what = judge_levels(TRAINED, own, error, highest=highest)
    assert found == verdict
    assert text in what


@pytest.mark.parametrize(
    ("step", "high", "verdict", "text"),
    [
        (0.1, 6.0, "approximate", "those of the branch in front, 5.0 for one"),
        (0.1, 7.5, "approximate", "finer steps than trained in the trained range"),
        (0.1, 9.0, "fault", "its step is 0.20 x"),
        (0.1001, 6.0, "fault", "its step is 0.20 x"),
        (1.0, 6.0, "fault", "its step is 2.00 x"),
    ],
)
def test_a_quantizer_behind_a_branch_may_keep_its_codes(step: float, high: float, verdict: str, text: str) -> None:
    own = Levels(step=step, low=0.0, high=high)
    found, what = judge_levels(TRAINED, own, OFF, highest=15, added=(0.3, 0.1, 1.0))
    assert found == verdict
    assert text in what


GOOD = ChannelError(channel=3, gain=1.0, offset=0.0, noise_db=math.inf, values=32)


@pytest.mark.parametrize(
    ("worst", "is_coded", "verdict", "text"),
    [
        (GOOD, False, "exact", ""),
        (replace(GOOD, noise_db=0.0, gain=2.0), False, "fault", "2.00 x what it should be: its scale is wrong"),
        (replace(GOOD, noise_db=-6.0, gain=-1.0), False, "fault", "the sign is lost (-1.00 x"),
        (replace(GOOD, noise_db=3.0, gain=1.1), False, "fault", "weights or signs are wrong in output channel 3"),
        (replace(GOOD, offset=0.9), False, "fault", "the bias is off by 0.9 standard deviations"),
        (replace(GOOD, offset=0.01), False, "approximate", "rounded"),
        (replace(GOOD, offset=0.9, values=8), False, "approximate", "rounded"),
        (replace(GOOD, offset=-2.0, values=16), False, "fault", "the bias is off by 2.0 standard deviations"),
        (replace(GOOD, offset=90.0, values=1), False, "fault", "the bias is off by 90.0 standard deviations"),
        (replace(GOOD, noise_db=26.0), True, "approximate", "8-bit codes"),
        (replace(GOOD, noise_db=26.0), False, "fault", "weights or signs"),
    ],
)
def test_layers(worst: ChannelError, is_coded: bool, verdict: str, text: str) -> None:
    found, what = judge_channels(worst, is_coded=is_coded)
    assert found == verdict
    assert text in what


def test_layers_in_half_precision() -> None:
    worst = replace(GOOD, noise_db=60.0, offset=0.001)
    assert judge_channels(worst, is_coded=False, is_half=True) == ("approximate", "computed in float16")
    assert judge_channels(GOOD, is_coded=False, is_half=True) == ("exact", "")
