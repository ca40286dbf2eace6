from __future__ import annotations

import math

import numpy as np
import pytest

from bitswitch_deploy.diagnosis.distance import ChannelDistance, Distance
from bitswitch_deploy.validation.metrics import decibel

RNG = np.random.default_rng(3)


def test_by_hand() -> None:
    distance = Distance()
    distance.add(np.array([3, 0], np.float32), np.array([3, 1], np.float32))
    distance.add(np.array([[0, 1]], np.float32), np.array([[0, 1]], np.float32))
    # sum r^2 = 10, sum o^2 = 11, sum r o = 10, sum d^2 = 1
    assert distance.result().sqnr_db == pytest.approx(10.0)
    assert distance.result().cosine == pytest.approx(10 / math.sqrt(110))


def test_equal_and_empty() -> None:
    distance = Distance()
    distance.add(np.zeros(4, np.float32), np.zeros(4, np.float32))
    assert (distance.result().sqnr_db, distance.result().cosine) == (math.inf, 1.0)
    distance.add(np.zeros(4, np.float32), np.ones(4, np.float32))
    assert (distance.result().sqnr_db, distance.result().cosine) == (-math.inf, 0.0)
    assert decibel(1.0, 0.0) == math.inf


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize(("gain", "offset"), [(2.0, 0.0), (-1.0, 0.0), (1.0, 0.5), (0.5, -2.0)])
def test_a_channel_is_named_with_its_gain(axis: int, gain: float, offset: float) -> None:
    distance = ChannelDistance(axis)
    for _ in range(3):
        reference = RNG.normal(5.0, 2.0, (40, 6, 6)).astype(np.float32)
        other = reference.copy()
        place = (slice(None), 4) if axis == 1 else (..., 4)
        other[place] = gain * (reference[place] - 5) + 5 + 2 * offset
        distance.add(reference, other)
    worst = distance.worst()
    assert worst.channel == 4
    assert worst.gain == pytest.approx(gain, rel=0.02)
    assert worst.offset == pytest.approx(offset, abs=0.1)
    expected = decibel(1.0, (gain - 1) ** 2)
    assert worst.noise_db == pytest.approx(expected, abs=0.5) or (expected == math.inf and worst.noise_db > 80)


def test_a_constant_shift_is_no_noise() -> None:
    distance = ChannelDistance(1)
    reference = RNG.normal(0.0, 1.0, (200, 3)).astype(np.float32)
    distance.add(reference, reference + np.array([0, 0.25, 0], np.float32))
    assert distance.worst().channel == 1
    assert distance.worst().noise_db > 80
    assert distance.worst().offset == pytest.approx(0.25, rel=0.15)


def test_float_rounding_of_a_silent_channel_is_no_fault() -> None:
    distance = ChannelDistance(1)
    reference = RNG.normal(0.0, 1.0, (200, 3)).astype(np.float32)
    reference[:, 2] = 1e-7 * RNG.normal(size=200)
    other = reference.copy()
    other[:, 2] = 0
    distance.add(reference, other)
    assert distance.worst().noise_db > 80


@pytest.mark.parametrize("n", [1, 40])
def test_samples_that_are_all_alike_are_held_against_their_size(n: int) -> None:
    reference = np.repeat(RNG.normal(0.0, 1.0, (1, 10)), n, axis=0).astype(np.float32)
    distance = ChannelDistance(-1)
    distance.add(reference, reference * np.float32(1 + 1e-6))
    assert distance.worst().noise_db > 80
    assert abs(distance.worst().offset) < 1e-4
    lost = reference.copy()
    lost[:, 4] = -reference[:, 4]
    distance.add(reference, lost)
    assert distance.worst().channel == 4
    assert abs(distance.worst().offset) == pytest.approx(
        abs(reference[0, 4]) / np.sqrt(np.mean(reference[0] ** 2)), rel=1e-3
    )


def test_a_large_constant_channel_hides_no_fault_of_another() -> None:
    reference = RNG.normal(0.0, 1.0, (200, 8)).astype(np.float32)
    reference[:, 7] = 3000
    for fault, noise_db in ((reference[:, 3] + 1, 80), (-reference[:, 3], -6.0)):
        other = reference.copy()
        other[:, 3] = fault
        distance = ChannelDistance(1)
        distance.add(reference, other)
        worst = distance.worst()
        assert worst.channel == 3
        assert worst.noise_db == pytest.approx(noise_db, abs=0.5) or (noise_db == 80 and worst.noise_db > 80)
        assert worst.offset == pytest.approx(1.0, rel=0.2) or noise_db < 0


def test_nothing_added() -> None:
    with pytest.raises(ValueError, match="no batch"):
        ChannelDistance(1).worst()


def test_a_bias_that_is_off_by_little_is_little_for_a_channel_that_does_not_vary() -> None:
    distance = ChannelDistance(1)
    reference = RNG.normal(0.0, 1.0, (64, 3)).astype(np.float32)
    reference[:, 1] = 0.25
    distance.add(reference, reference + np.array([0, 0.004, 0], np.float32))
    worst = distance.worst()
    assert (worst.channel, worst.values) == (1, 64)
    assert worst.offset == pytest.approx(0.004, rel=0.5)


@pytest.mark.parametrize(
    "shapes",
    [[(8,), (3,)], [(4, 8), (4, 3)], [(4, 8), (4, 3), (4, 8)], [(1, 2), (1, 1)], [(), ()]],
    ids=str,
)
def test_tensors_without_channels_are_one(shapes: list[tuple[int, ...]]) -> None:
    """As those whose last axis is that of the samples."""
    distance, whole = ChannelDistance(-1), ChannelDistance(0)
    pairs = [(RNG.normal(size=shape).astype(np.float32), RNG.normal(size=shape).astype(np.float32)) for shape in shapes]
    for reference, other in pairs:
        distance.add(reference, other)
    whole.add(*(np.concatenate([np.ravel(each) for each in side])[None] for side in zip(*pairs)))
    assert distance.worst() == whole.worst() or distance.worst().noise_db == pytest.approx(whole.worst().noise_db)
    assert distance.worst().values == sum(int(np.prod(shape)) for shape in shapes)


def test_truth_values_are_numbers() -> None:
    distance, channels = Distance(), ChannelDistance(-1)
    for each in (distance, channels):
        each.add(np.array([[True, False]]), np.array([[True, True]]))
    assert distance.result().sqnr_db == 0.0
    assert channels.worst().channel == 1


def test_a_shift_of_a_channel_that_does_not_vary_is_no_noise() -> None:
    """Sums of float32 would leave some of it where squares of means are taken from them."""
    distance = ChannelDistance(1)
    reference = RNG.normal(0.0, 1.0, (64, 3, 40)).astype(np.float32)
    reference[:, 0] = 0.1
    for _ in range(8):
        distance.add(reference, reference + np.array([0.0137, 0, 0], np.float32)[:, None])
    worst = distance.worst()
    assert worst.channel == 0
    assert worst.noise_db > 80
