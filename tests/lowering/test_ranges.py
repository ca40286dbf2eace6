"""What is seen of a tensor, and the scale that loses least."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from bitswitch_deploy.lowering import ranges
from bitswitch_deploy.lowering.ranges import RangeObserver, TensorRange, best_scale, costs_little, dividing_scale

Array = np.ndarray[Any, np.dtype[Any]]


def seen(*batches: Array) -> TensorRange:
    observer = RangeObserver()
    for batch in batches:
        observer.observe(np.asarray(batch, np.float32))
    return observer.result()


def error(values: Array, scale: float, low: int, high: int) -> float:
    restored = np.clip(np.rint(values / scale), low, high) * scale
    return float(np.mean((restored - values) ** 2))


def test_extremes_of_all_batches() -> None:
    found = seen(np.array([[1, -2], [3, 0]]), np.array([5.0]), np.array([-7.0, 2.0]))
    assert (found.minimum, found.maximum) == (-7.0, 5.0)
    assert found.values.tolist() == [1, -2, 3, 0, 5, -7, 2]


def test_nothing_seen() -> None:
    with pytest.raises(ValueError, match="no batch was observed"):
        RangeObserver().result()


def test_memory_is_bounded_and_extremes_are_not_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_MAX_SAMPLES", 100)
    observer = RangeObserver()
    for index in range(50):
        batch = np.full(1000, index, np.float32)
        batch[1] = -index
        observer.observe(batch)
        assert observer._kept.size <= 100
    found = observer.result()
    assert (found.minimum, found.maximum) == (-49, 49)


@pytest.mark.parametrize("batches", [8, 9, 16, 40, 100])
def test_early_and_late_batches_count_alike(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_MAX_SAMPLES", 1000)
    found = seen(*(np.full(5000, index) for index in range(batches)))
    shares = np.bincount(found.values.astype(int), minlength=batches) / found.values.size
    np.testing.assert_allclose(shares, 1 / batches, atol=1 / 500)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.integers(1, 200_000), cuts=st.lists(st.integers(0, 200_000), max_size=12, unique=True))
def test_batches_make_no_difference(size: int, cuts: list[int]) -> None:
    values = np.arange(size, dtype=np.float32)
    parts = np.split(values, sorted(cut for cut in cuts if 0 < cut < size))
    np.testing.assert_array_equal(seen(*parts).values, seen(values).values)


@pytest.mark.parametrize("period", [2, 3, 5, 7, 8, 27, 32, 56, 64, 80, 96])
def test_thinning_does_not_fall_into_step_with_rows(period: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_MAX_SAMPLES", 1 << 14)
    for size in (20_000, 1 << 15, 100_000, 1 << 20):
        found = seen(np.arange(size) % period).values
        share = np.bincount(found.astype(int), minlength=period) / found.size
        np.testing.assert_allclose(share * period, 1, atol=0.2)


def test_all_is_kept_that_fits_and_half_of_that_at_least() -> None:
    values = np.random.default_rng(0).normal(0, 1, 1 << 16)
    np.testing.assert_array_equal(seen(values[:99], values[99:]).values, values.astype(np.float32))
    for more in (1, 1 << 16, 1 << 20):
        assert 1 << 15 <= seen(values, np.zeros(more)).values.size <= 1 << 16


def test_values_are_copied() -> None:
    for size in (100, 1 << 17):
        batch = np.zeros(size, np.float32)
        observer = RangeObserver()
        observer.observe(batch)
        batch[:] = 9
        assert observer.result().values.max() == 0


def test_uniform_values_are_not_clipped() -> None:
    values = np.linspace(0, 5.1, 5000)
    assert best_scale(seen(values), low=0, high=255) == pytest.approx(5.1 / 255, rel=1e-3)
    assert best_scale(seen(values), low=0, high=127) == pytest.approx(5.1 / 127, rel=1e-2)
    assert best_scale(seen(-values), low=-128, high=127) == pytest.approx(5.1 / 128, rel=1e-2)


def test_outliers_are_clipped() -> None:
    values = np.append(np.random.default_rng(0).normal(0, 1, 5000), 12.0)
    scale = best_scale(seen(values), low=-128, high=127)
    assert scale < 12 / 128
    assert scale >= np.float32(0.4 * 12 / 128)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), unsigned=st.booleans(), power=st.integers(-20, 20))
def test_no_clipping_fraction_is_better(seed: int, unsigned: bool, power: int) -> None:
    random = np.random.default_rng(seed)
    values = (random.standard_t(3, 500) * 2.0**power).astype(np.float32)
    values = np.abs(values) if unsigned else values
    low, high = (0, 255) if unsigned else (-128, 127)
    scale = best_scale(seen(values), low=low, high=high)
    assert scale == float(np.float32(scale))
    peak = float(np.abs(values).max()) / max(high, -low)
    best = min(error(values, float(np.float32(peak * fraction)), low, high) for fraction in np.linspace(0.4, 1, 61))
    assert error(values, scale, low, high) <= best * (1 + 1e-4)


def test_the_widest_of_equals() -> None:
    # zeros and ones are restored without error by every scale that is 1 / integer
    assert best_scale(TensorRange(minimum=0, maximum=0.0, values=np.zeros(3, np.float32)), low=0, high=255) == 1.0
    found = best_scale(TensorRange(minimum=0, maximum=255.0, values=np.zeros(3, np.float32)), low=0, high=255)
    assert found == 1.0  # all scales restore the zeros; the range says that there is more


@pytest.mark.parametrize("peak", [0.0, 1e-45, 1e-37])
def test_a_scale_is_never_below_the_smallest_normal_number(peak: float) -> None:
    found = best_scale(seen(np.array([peak, 0])), low=0, high=255)
    assert found == 1.0 if peak < 1e-37 else found >= float(np.finfo(np.float32).smallest_normal)


# --- a scale that a trained step is a multiple of ------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(2, 8), clip=st.floats(0.5, 3.0))
def test_codes_of_a_dividing_scale_are_quantized_like_the_values(seed: int, bits: int, clip: float) -> None:
    values = np.abs(np.random.default_rng(seed).normal(size=2000)).astype(np.float32)
    high = 2**bits - 1
    step = float(np.float32(clip / high))
    scale = dividing_scale(seen(values), step, low=0, high=255)
    parts = step / scale
    if round(parts) % 2 == 0 or abs(parts - round(parts)) > 1e-5:
        assert scale == best_scale(seen(values), low=0, high=255)
        return
    codes = np.clip(np.rint(values / np.float32(scale)), 0, 255)
    twice = np.clip(np.rint(codes * np.float32(scale) / np.float32(step)), 0, high)
    once = np.clip(np.rint(values / np.float32(step)), 0, high)
    # apart from values so near to a threshold that float32 cannot tell
    near = np.abs(values / np.float32(step) % 1 - 0.5) < 1e-4
    assert (twice == once)[~near].all()


def test_a_dividing_scale_is_the_best_of_the_odd_parts() -> None:
    values = np.linspace(0, 5.1, 4000, dtype=np.float32)  # 255 codes of 0.02
    assert dividing_scale(seen(values), 0.3, low=0, high=255) == pytest.approx(0.3 / 15)
    # 14 parts would fit best; 15 clip a little, 13 are a little coarse
    assert round(0.28 / dividing_scale(seen(values), 0.28, low=0, high=255)) in (13, 15)


def test_a_step_too_small_for_the_range_is_not_divided() -> None:
    values = np.linspace(0, 5.1, 4000, dtype=np.float32)
    assert dividing_scale(seen(values), 0.004, low=0, high=255) == best_scale(seen(values), low=0, high=255)


# --- codes of another tensor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "little"), [(-128, 127, True), (-136, 119, True), (-170, 85, False), (0, 255, False)]
)
def test_codes_are_judged_against_those_that_a_tensor_would_have(low: int, high: int, little: bool) -> None:
    values = np.random.default_rng(0).normal(0, 1, 5000)
    scale = best_scale(seen(values), low=low, high=high)
    assert costs_little(seen(values), scale, low=low, high=high, own=(-128, 127)) is little
