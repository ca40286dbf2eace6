"""Where `fit_bias` says exact, every reachable accumulator must lead to the code of the real bias, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from bitswitch_deploy.lowering.bias_codes import Accumulator, fit_bias, largest_shift


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer of random channels: float32 scales, as a graph holds them, and the range of its integer sums."""

    data_scale: np.float32
    weight_scale: NDArray[np.float32]
    output_scale: np.float32
    lattice: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    bias: NDArray[np.float64]
    first_code: int
    last_code: int
    relu: bool

    @property
    def accumulator(self) -> Accumulator:
        step = np.float64(self.data_scale) * (self.weight_scale / self.lattice)
        return Accumulator(step=step, lattice=self.lattice, low=self.low, high=self.high)

    @property
    def thresholds(self) -> NDArray[np.float64]:
        steps: NDArray[Any] = np.arange(self.first_code + 1, self.last_code + 1) - 0.5
        kept = steps[steps > 0] if self.relu else steps
        return np.asarray(kept * np.float64(self.output_scale))


def random_case(seed: int, bits: int, *, signed: bool, relu: bool, channels: int = 6) -> Case:
    random = np.random.default_rng(seed)
    reach = random.integers(1, 3000, channels)
    lattice = np.exp2(random.integers(0, 7, channels)).astype(np.float64)
    first = -int(2 ** (bits - 1)) if signed else 0
    last = first + int(2**bits) - 1
    data, weight = 10 ** random.uniform(-4, 2), 10 ** random.uniform(-4, 0, channels)
    # the sums reach from a part of the codes to far past them
    output = np.float32(data * weight.mean() * reach.mean() / max(-first, last) * 10 ** random.uniform(-1, 1))
    offset = random.normal(0, 0.5, channels) * 10.0 ** random.integers(-1, 3, channels)
    return Case(
        data_scale=np.float32(data),
        weight_scale=weight.astype(np.float32),
        output_scale=output,
        lattice=lattice,
        low=np.asarray(-lattice * random.integers(0, reach + 1), np.float64),
        high=np.asarray(lattice * reach, np.float64),
        bias=(offset * output * max(-first, last)).astype(np.float32).astype(np.float64),
        first_code=first,
        last_code=last,
        relu=relu,
    )


def codes_of_the_real_bias(
    case: Case, channel: int, sums: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Give codes, and which of them hang on a tie that float64 cannot decide."""
    values = sums * case.accumulator.step[channel] + case.bias[channel]
    passed: NDArray[np.int64] = (values[:, None] >= case.thresholds).sum(axis=1)
    distance = np.abs(values[:, None] - case.thresholds) / np.abs(case.thresholds)
    return passed + case.last_code - case.thresholds.size, distance.min(axis=1) < 1e-12


def codes_of_the_runtime(
    case: Case, channel: int, sums: NDArray[np.float64], code: float, stretch: float, *, shift: int = 0
) -> NDArray[Any]:
    """Compute as onnxruntime does: integer sum, one float32 product, a tie to the even neighbour, clip."""
    stretched = np.float32(np.float64(case.weight_scale[channel]) / case.lattice[channel] * stretch)
    data_scale = np.float32(case.data_scale / 2**shift)
    multiplier = np.float32(np.float32(data_scale * stretched) / case.output_scale)
    rounded = np.rint((sums * 2**shift + code).astype(np.float32) * multiplier)
    lowest = max(case.first_code, 0) if case.relu else case.first_code
    return np.asarray(np.clip(rounded, lowest, case.last_code), np.int64)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.integers(2, 8),
    signed=st.booleans(),
    relu=st.booleans(),
    shift=st.sampled_from([0, 0, 1, 3, 6]),
)
def test_exact_means_exact(seed: int, bits: int, signed: bool, relu: bool, shift: int) -> None:
    case = random_case(seed, bits, signed=signed, relu=relu)
    fit = fit_bias(case.bias, case.accumulator.finer(2**shift), case.thresholds)
    for channel in np.flatnonzero(fit.exact).tolist():
        sums = np.arange(case.low[channel], case.high[channel] + 1, case.lattice[channel])
        expected, undecided = codes_of_the_real_bias(case, channel, sums)
        found = codes_of_the_runtime(case, channel, sums, fit.codes[channel], fit.stretch[channel], shift=shift)
        np.testing.assert_array_equal(found[~undecided], expected[~undecided])
    assert (np.abs(fit.stretch - 1) <= 0.011).all()
    assert (np.rint(fit.codes) == fit.codes).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(5, 8))
def test_not_exact_means_nearest(seed: int, bits: int) -> None:
    case = random_case(seed, bits, signed=False, relu=True)
    fit = fit_bias(case.bias, case.accumulator, case.thresholds)
    nearest = np.rint(case.bias / case.accumulator.step)
    np.testing.assert_array_equal(fit.codes[~fit.exact], nearest[~fit.exact])
    assert (fit.stretch[~fit.exact] == 1).all()


def channels(bits: int, count: int = 64) -> Case:
    """Give a 3x3 convolution over 16 channels, numbers as a trained network has them."""
    random = np.random.default_rng(bits)
    last, half = int(2**bits) - 1, int(2 ** (bits - 1))
    weight = np.clip(np.rint(random.normal(0, half / 3, (count, 144))), -half, half - 1).astype(np.int32)
    lattice = (1 << largest_shift(weight, 0)).astype(np.float64)
    return Case(
        data_scale=np.float32(2 / last),
        weight_scale=(random.uniform(0.2, 0.4, count) / half).astype(np.float32),
        output_scale=np.float32(3 / last),
        lattice=lattice,
        low=np.minimum(weight, 0).sum(axis=1) * last * lattice,
        high=np.maximum(weight, 0).sum(axis=1) * last * lattice,
        bias=random.normal(0, 1, count).astype(np.float32).astype(np.float64),
        first_code=0,
        last_code=last,
        relu=True,
    )


@pytest.mark.parametrize(("bits", "least", "most"), [(2, 64, 64), (3, 64, 64), (4, 62, 64), (8, 0, 8)])
def test_how_often_it_succeeds(bits: int, least: int, most: int) -> None:
    """As the docstring of the module claims."""
    case = channels(bits)
    assert least <= fit_bias(case.bias, case.accumulator, case.thresholds).exact.sum() <= most


@pytest.mark.parametrize(("bits", "least"), [(5, 62), (6, 56), (7, 3)])
def test_how_often_it_succeeds_with_shifted_inputs(bits: int, least: int) -> None:
    case = channels(bits)
    plain = fit_bias(case.bias, case.accumulator, case.thresholds).exact.sum()
    shifted = fit_bias(case.bias, case.accumulator.finer(2 ** (8 - bits)), case.thresholds).exact.sum()
    assert plain < shifted
    assert shifted >= least


def test_finer_units() -> None:
    reach = Accumulator(step=np.array([0.5]), lattice=np.array([2.0]), low=np.array([-6.0]), high=np.array([8.0]))
    finer = reach.finer(4)
    assert [each.item() for each in (finer.step, finer.lattice, finer.low, finer.high)] == [0.125, 8, -24, 32]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_plain_rounded_bias_moves_codes(bits: int) -> None:
    case = channels(bits)
    plain = Case(
        **{**vars(case), "lattice": np.ones(64), "low": case.low / case.lattice, "high": case.high / case.lattice}
    )
    wrong = 0
    for channel in range(64):
        sums = np.arange(plain.low[channel], plain.high[channel] + 1)
        expected, _ = codes_of_the_real_bias(plain, channel, sums)
        nearest = np.rint(plain.bias[channel] / plain.accumulator.step[channel])
        wrong += int((codes_of_the_runtime(plain, channel, sums, nearest, 1.0) != expected).any())
    assert wrong > 30


# --- by hand: step 1, thresholds 0.5, 1.5, 2.5 --------------------------------------------------------------------


def fit_one(
    bias: float, thresholds: list[float], *, lattice: float = 1, low: float = -100, high: float = 100
) -> tuple[float, float, bool]:
    reach = Accumulator(step=np.ones(1), lattice=np.array([lattice]), low=np.array([low]), high=np.array([high]))
    fit = fit_bias(np.array([bias]), reach, np.array(thresholds))
    return fit.codes.item(), fit.stretch.item(), bool(fit.exact.item())


def test_a_bias_that_is_an_integer_stays() -> None:
    assert fit_one(7.0, [0.5, 1.5, 2.5]) == (7.0, 1.0, True)


def test_rounding_is_free_between_two_sums() -> None:
    # 0.5, 1.5, 2.5 lie behind the sums -3, -2, -1 with bias 3.4 as with 3
    assert fit_one(3.4, [0.5, 1.5, 2.5]) == (3.0, 1.0, True)


def test_a_coarse_lattice_leaves_room() -> None:
    # reachable sums are ..., -8, 0, 8: both thresholds lie between 0 and 8 with bias -2.7
    code, stretch, exact = fit_one(-2.7, [0.5, 4.5], lattice=8)
    assert (code, stretch, exact) == (-3.0, 1.0, True)


def test_negative_thresholds() -> None:
    assert fit_one(3.4, [-2.5, -1.5, -0.5, 0.5]) == (3.0, 1.0, True)
    code, _, exact = fit_one(-2.7, [-60.5, -4.5, 4.5], lattice=8)
    assert exact
    expected = [[total - 2.7 >= threshold for total in range(-96, 97, 8)] for threshold in (-60.5, -4.5, 4.5)]
    assert [[total + code >= threshold for total in range(-96, 97, 8)] for threshold in (-60.5, -4.5, 4.5)] == expected


def test_the_least_stretch_wins() -> None:
    # sums 0, 4, 8, ...: code 0 has room above 99.9 up to a stretch of 1.001 only, code 1 on both sides
    assert fit_one(0.0, [2.0, 99.9], lattice=4) == (1.0, 1.0, True)


def test_thresholds_that_leave_no_room() -> None:
    # steps of 0.6 and 0.6: sums cross at 0.1, 0.7, 1.3, ... in a pattern that no integer bias has with this stretch
    code, stretch, exact = fit_one(0.4, [0.5 + 0.93 * k for k in range(60)])
    assert (code, stretch, exact) == (0.0, 1.0, False)


@pytest.mark.parametrize("bias", [1e6, -1e6, 1e30, -1e30])
def test_thresholds_out_of_reach(bias: float) -> None:
    code, stretch, exact = fit_one(bias, [0.5, 1.5], low=-100, high=100)
    assert (stretch, exact) == (1.0, True)
    assert code == np.clip(bias, -(2**30), 2**30)


def test_one_threshold_in_reach_and_one_not() -> None:
    code, stretch, exact = fit_one(-98.4, [0.5, 50.5], low=0, high=100)
    assert exact
    passed = [[(total + code) * stretch >= threshold for total in range(101)] for threshold in (0.5, 50.5)]
    assert passed == [[total - 98.4 >= threshold for total in range(101)] for threshold in (0.5, 50.5)]


def test_a_bias_too_large_for_int32_that_matters() -> None:
    reach = Accumulator(step=np.array([1e-12]), lattice=np.ones(1), low=np.array([-1e3]), high=np.array([1e3]))
    fit = fit_bias(np.array([1.0]), reach, np.array([1.5]))
    assert (fit.codes.item(), fit.exact.item()) == (2.0**30, True)  # 1.5 is out of reach in any case
    fit = fit_bias(np.array([1.0]), reach, np.array([0.5]))
    assert (fit.codes.item(), fit.exact.item()) == (2.0**30, False)  # 2^30 steps are 0.001 only, below 0.5


def test_no_thresholds() -> None:
    assert fit_one(3.3, []) == (3.0, 1.0, True)


def test_no_channels() -> None:
    none = np.zeros(0)
    fit = fit_bias(none, Accumulator(step=none, lattice=none, low=none, high=none), np.array([0.5]))
    assert (fit.codes.shape, fit.stretch.shape, fit.exact.shape) == ((0,), (0,), (0,))


# --- largest_shift -------------------------------------------------------------------------------------------------


SHIFTS = {
    6: ([1], [-1], [0], [-2, 1]),
    5: ([-2, 2], [3], [-4, 3], [-3]),
    4: ([4], [-8, 7], [-5]),
    3: ([-8, 8], [15], [-9]),
    2: ([-32, 31], [-17]),
    1: ([63], [-64, 63], [-64], [-33]),
    0: ([64], [127], [-128], [128]),
}


@pytest.mark.parametrize(("codes", "shift"), [(codes, shift) for shift, listed in SHIFTS.items() for codes in listed])
def test_largest_shift(codes: list[int], shift: int) -> None:
    assert largest_shift(np.array([codes], np.int32), 0).tolist() == [shift]
    ends = np.array(codes) * 2**shift
    if max(map(abs, codes)) <= 127:
        assert -128 <= ends.min() <= ends.max() <= 127


def test_largest_shift_along_an_axis() -> None:
    weight = np.array([[[1, 100], [3, -2]], [[-2, 5], [0, 0]]], np.int32)
    assert largest_shift(weight, 0).tolist() == [0, 4]
    assert largest_shift(weight, 1).tolist() == [0, 5]
    assert largest_shift(weight, 2).tolist() == [5, 0]
