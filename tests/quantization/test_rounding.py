"""Derived codes against an independent slow implementation: every code, every pair of widths, both tie rules.

All of it twice: with the compiled library of a wheel built here, and with NumPy alone.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from bitswitch_deploy.quantization import derive_codes, derive_scale, rounding, rounding_shift
from bitswitch_deploy.tensors import Rounding

WIDTH_PAIRS = [(high, low) for high in range(2, 9) for low in range(2, high + 1)]
RULES = list(Rounding)

widths = st.sampled_from(WIDTH_PAIRS)
rules = st.sampled_from(RULES)


@pytest.fixture(scope="module", params=["compiled", "numpy"], autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """How `derive_codes` computes in this run of the file."""
    compiled = request.param == "compiled"
    library = request.getfixturevalue("compiled_library") if compiled else Path("there is none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding_shift, "LIBRARY", library)
        formula = rounding_shift.Formula.of(from_bits=8, to_bits=4, rounding=Rounding.HALF_UP)
        assert (rounding_shift.compiled_shift(formula) is not None) == compiled
        yield request.param


def slow_code(code: int, from_bits: int, to_bits: int, rule: Rounding) -> int:
    exact = Fraction(code, 2 ** (from_bits - to_bits))
    nearest: int = math.floor(exact + Fraction(1, 2)) if rule is Rounding.HALF_UP else round(exact)
    low, high = -int(2 ** (to_bits - 1)), int(2 ** (to_bits - 1)) - 1
    return max(low, min(high, nearest))


def slow_codes(codes: np.ndarray, from_bits: int, to_bits: int, rule: Rounding) -> np.ndarray:
    table = {code: slow_code(code, from_bits, to_bits, rule) for code in range(-128, 128)}
    flat = [table[int(code)] for code in codes.reshape(-1)]
    return np.array(flat, dtype=np.int8).reshape(codes.shape)


def all_codes(bits: int) -> np.ndarray:
    return np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).astype(np.int8)


def within(codes: np.ndarray, bits: int) -> np.ndarray:
    """Any int8 codes, brought into the range of `bits` by dropping high bits."""
    return np.asarray(codes.astype(np.int16) % 2**bits - 2 ** (bits - 1), dtype=np.int8)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("from_bits", "to_bits"), WIDTH_PAIRS)
def test_every_code_equals_exact_fractions(from_bits: int, to_bits: int, rule: Rounding) -> None:
    codes = all_codes(from_bits)
    derived = derive_codes(codes, from_bits=from_bits, to_bits=to_bits, rounding=rule)
    assert derived.dtype == np.int8
    assert derived.tolist() == [slow_code(int(code), from_bits, to_bits, rule) for code in codes]


@pytest.mark.parametrize(("from_bits", "to_bits"), WIDTH_PAIRS)
def test_every_code_equals_the_float_formulas(from_bits: int, to_bits: int) -> None:
    codes = all_codes(from_bits)
    exact = codes.astype(np.float64) / 2.0 ** (from_bits - to_bits)
    ends = (-(2 ** (to_bits - 1)), 2 ** (to_bits - 1) - 1)
    half_up = derive_codes(codes, from_bits=from_bits, to_bits=to_bits, rounding=Rounding.HALF_UP)
    half_even = derive_codes(codes, from_bits=from_bits, to_bits=to_bits, rounding=Rounding.HALF_EVEN)
    np.testing.assert_array_equal(half_up, np.clip(np.floor(exact + 0.5), *ends))
    np.testing.assert_array_equal(half_even, np.clip(np.rint(exact), *ends))


@pytest.mark.parametrize(("from_bits", "to_bits"), [pair for pair in WIDTH_PAIRS if pair[0] > pair[1]])
def test_half_up_equals_the_rounding_shift_of_hardware(from_bits: int, to_bits: int) -> None:
    codes = all_codes(from_bits)
    distance = from_bits - to_bits
    top = 2 ** (to_bits - 1) - 1
    shifted = [min((int(w) >> distance) + ((int(w) >> (distance - 1)) & 1), top) for w in codes]
    derived = derive_codes(codes, from_bits=from_bits, to_bits=to_bits, rounding=Rounding.HALF_UP)
    assert derived.tolist() == shifted


def test_hand_computed_table_at_two_bits() -> None:
    codes = np.array([-128, -97, -96, -95, -33, -32, -31, 31, 32, 33, 95, 96, 97, 127], dtype=np.int8)
    half_up = derive_codes(codes, from_bits=8, to_bits=2, rounding=Rounding.HALF_UP)
    half_even = derive_codes(codes, from_bits=8, to_bits=2, rounding=Rounding.HALF_EVEN)
    assert half_up.tolist() == [-2, -2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert half_even.tolist() == [-2, -2, -2, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_the_tie_rules_differ_somewhere_at_every_lower_width() -> None:
    for from_bits, to_bits in WIDTH_PAIRS:
        up, even = (
            derive_codes(all_codes(from_bits), from_bits=from_bits, to_bits=to_bits, rounding=rule) for rule in RULES
        )
        assert (up != even).any() == (from_bits > to_bits)


@given(data=st.data(), pair=widths, rule=rules, block=st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_any_layout_any_block_size(data: st.DataObject, pair: tuple[int, int], rule: Rounding, block: int) -> None:
    from_bits, to_bits = pair
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    codes = within(data.draw(hnp.arrays(np.int8, shape)), from_bits)
    expected = slow_codes(codes, from_bits, to_bits, rule)
    order = data.draw(st.permutations(range(codes.ndim)))
    steps = tuple(slice(None, None, data.draw(st.sampled_from([1, 2, -1, -2]))) for _ in shape)
    view, expected = codes.transpose(order)[steps], expected.transpose(order)[steps]
    view.setflags(write=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "BLOCK", block)
        derived = derive_codes(view, from_bits=from_bits, to_bits=to_bits, rounding=rule)
    assert derived.shape == view.shape
    np.testing.assert_array_equal(derived, expected)


@given(data=st.data(), pair=widths, rule=rules, block=st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_in_place_even_when_not_contiguous(
    data: st.DataObject, pair: tuple[int, int], rule: Rounding, block: int
) -> None:
    from_bits, to_bits = pair
    codes = within(data.draw(hnp.arrays(np.int8, hnp.array_shapes(max_dims=3, max_side=6))), from_bits)
    view = codes[..., :: data.draw(st.sampled_from([1, 2, -1]))]
    untouched = codes.copy()
    expected = slow_codes(view, from_bits, to_bits, rule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "BLOCK", block)
        derived = derive_codes(view, from_bits=from_bits, to_bits=to_bits, rounding=rule, out=view)
    assert derived is view
    np.testing.assert_array_equal(view, expected)
    if view.size < codes.size:
        np.testing.assert_array_equal(codes[..., 1::2], untouched[..., 1::2])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shift", [1, -1, 50])
def test_out_may_overlap_the_codes(rule: Rounding, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "BLOCK", 16)
    memory = np.random.default_rng(3).integers(-128, 128, 400, dtype=np.int8)
    codes, out = (memory[60:260], memory[60 + shift : 260 + shift])
    expected = slow_codes(codes, 8, 3, rule)
    derive_codes(codes, from_bits=8, to_bits=3, rounding=rule, out=out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("rule", RULES)
def test_more_than_one_block_of_the_real_size(rule: Rounding) -> None:
    codes = np.resize(all_codes(8), 3 * rounding.BLOCK + 5)
    out = np.full_like(codes, 99)
    assert derive_codes(codes, from_bits=8, to_bits=5, rounding=rule, out=out) is out
    np.testing.assert_array_equal(out, np.resize(slow_codes(all_codes(8), 8, 5, rule), codes.size))


def test_equal_widths_copy() -> None:
    codes = all_codes(8)
    derived = derive_codes(codes, from_bits=8, to_bits=8, rounding=Rounding.HALF_UP)
    np.testing.assert_array_equal(derived, codes)
    assert not np.shares_memory(derived, codes)
    assert derive_codes(codes, from_bits=8, to_bits=8, rounding=Rounding.HALF_UP, out=codes) is codes


@pytest.mark.parametrize("rule", RULES)
def test_memory_is_the_output_and_a_few_blocks(rule: Rounding) -> None:
    codes = np.zeros((64, 1 << 18), dtype=np.int8)
    wrong = codes.copy()
    wrong[-1, -1] = 8
    tracemalloc.start()
    try:
        derive_codes(codes, from_bits=8, to_bits=4, rounding=rule)
        fresh = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        derive_codes(codes, from_bits=4, to_bits=2, rounding=rule, out=codes)
        in_place = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with pytest.raises(ValueError, match=r"codes of 4 bits are -8\.\.7, got 0\.\.8"):
            derive_codes(wrong, from_bits=4, to_bits=2, rounding=rule, out=wrong)
        refused = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fresh <= 1.1 * codes.nbytes
    assert in_place <= 0.1 * codes.nbytes
    assert refused <= 0.1 * codes.nbytes


@pytest.mark.parametrize(("from_bits", "to_bits"), [(9, 8), (8, 1), (1, 1), (4, 5), (8, 0), (8, -2)])
def test_impossible_widths_are_refused(from_bits: int, to_bits: int) -> None:
    with pytest.raises(ValueError, match=r"bits must be in 2\.\.8|only lower widths can"):
        derive_codes(np.zeros(3, np.int8), from_bits=from_bits, to_bits=to_bits, rounding=Rounding.HALF_UP)


@pytest.mark.parametrize("bits", range(2, 8))
def test_codes_outside_the_range_are_refused_and_nothing_is_written(bits: int) -> None:
    for beyond in (2 ** (bits - 1), -(2 ** (bits - 1)) - 1):
        codes = np.array([1, -1, beyond], dtype=np.int8)
        before = codes.copy()
        with pytest.raises(ValueError, match=rf"codes of {bits} bits are .*, got "):
            derive_codes(codes, from_bits=bits, to_bits=2, rounding=Rounding.HALF_UP, out=codes)
        np.testing.assert_array_equal(codes, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_other_dtypes_are_refused(dtype: type) -> None:
    with pytest.raises(ValueError, match="codes must be int8, got"):
        derive_codes(np.zeros(3, dtype), from_bits=8, to_bits=4, rounding=Rounding.HALF_UP)


@pytest.mark.parametrize("out", [np.zeros(3, np.int16), np.zeros(4, np.int8), np.zeros((3, 1), np.int8)])
def test_an_unfit_out_is_refused(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"out must be int8 of shape \(3,\), got"):
        derive_codes(np.zeros(3, np.int8), from_bits=8, to_bits=4, rounding=Rounding.HALF_UP, out=out)


@given(
    scale=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
        elements=st.floats(2.0**-126, 2.0**100, width=32, allow_subnormal=False),
    ),
    pair=widths,
)
@settings(deadline=None)
def test_scale_is_multiplied_exactly(scale: np.ndarray, pair: tuple[int, int]) -> None:
    derived = derive_scale(scale, from_bits=pair[0], to_bits=pair[1])
    assert derived.dtype == np.float32
    assert derived.shape == scale.shape
    np.testing.assert_array_equal(derived.astype(np.float64), scale.astype(np.float64) * 2.0 ** (pair[0] - pair[1]))


@pytest.mark.parametrize("value", [3.0e38, math.inf, math.nan])
def test_scale_that_becomes_infinite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite at 2 bits"):
        derive_scale(np.array([1.0, value], np.float32), from_bits=8, to_bits=2)


def test_scale_of_another_dtype_or_width_is_refused() -> None:
    with pytest.raises(ValueError, match="must be float32, got float64"):
        derive_scale(np.ones(2), from_bits=8, to_bits=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only lower widths can"):
        derive_scale(np.ones(2, np.float32), from_bits=4, to_bits=8)


@pytest.mark.parametrize(("from_bits", "to_bits"), WIDTH_PAIRS)
def test_derived_weights_stay_within_half_a_step(from_bits: int, to_bits: int) -> None:
    """Wq_l = W_l * s_h * 2^D is the nearest level, but for codes above the highest one."""
    codes = all_codes(from_bits)
    scale = np.float32(0.375)
    step = derive_scale(np.array(scale), from_bits=from_bits, to_bits=to_bits)
    derived = derive_codes(codes, from_bits=from_bits, to_bits=to_bits, rounding=Rounding.HALF_UP)
    is_inside = codes <= (2 ** (to_bits - 1) - 1) * 2 ** (from_bits - to_bits)
    error = np.abs(derived * step - codes * scale)[is_inside]
    assert (error <= step / 2).all()
