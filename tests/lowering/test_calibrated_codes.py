"""Codes from what calibration saw: the form, the scale, and what the trained readers make of it."""

from __future__ import annotations

import numpy as np
import pytest

from bitswitch_deploy.lowering.calibrated_codes import affine_form, fit_codes, halves_unsigned, symmetric_form
from bitswitch_deploy.lowering.lowering_pass import LoweringContext
from bitswitch_deploy.lowering.ranges import TensorRange, best_scale
from tests.lowering.lowered import INT8_CPU, profile

X86 = profile("x86-cpu")


def seen(*values: float) -> TensorRange:
    return TensorRange(minimum=min(values), maximum=max(values), values=np.asarray(values, np.float32))


@pytest.mark.parametrize(
    ("ends", "container", "zero_point"),
    [
        ((0.0, 5.0), np.uint8, 0),
        ((2.0, 5.0), np.uint8, 0),
        ((0.0, 0.0), np.uint8, 0),
        ((-0.26, 4.84), np.int8, 13 - 128),
        ((-1.0, 1.0), np.int8, 0),
        ((-5.0, -2.0), np.int8, 127),
        ((-1e-30, 1.0), np.int8, -128),
    ],
)
def test_all_codes_between_the_extremes(ends: tuple[float, float], container: type, zero_point: int) -> None:
    form = affine_form(seen(*ends))
    assert (form.container, form.zero_point) == (container, zero_point)
    limits = np.iinfo(container)
    assert (form.low, form.high) == (limits.min, limits.max)


@pytest.mark.parametrize("ends", [(-0.25, 4.85), (-1.0, 1.0), (-5.0, -2.0), (0.0, 5.0), (-3.0, 0.1)])
def test_few_values_are_hit_to_half_a_step(ends: tuple[float, float]) -> None:
    context = LoweringContext(target=X86, weight_bits={}, ranges={})
    values = np.linspace(*ends, 1000)
    found = seen(*values)
    codes, reason = fit_codes(affine_form(found), found, None, context)
    assert reason is None
    scaled = np.clip(np.rint(values / codes.scale) + codes.zero_point, codes.low, codes.high) - codes.zero_point
    step = (max(ends[1], 0.0) - min(ends[0], 0.0)) / 255
    assert codes.scale == pytest.approx(step, rel=0.05)
    assert np.abs(scaled * codes.scale - values).max() < 1.5 * step
    low, high = codes.low - codes.zero_point, codes.high - codes.zero_point
    assert float(codes.scale) == best_scale(found, low=low, high=high)


def test_half_a_container_for_what_is_never_negative() -> None:
    """Only TensorRT's int8 has its zero-point at 0."""
    assert symmetric_form(X86, unsigned=True).high == 255
    assert symmetric_form(profile("rtx"), unsigned=True).high == 127
    assert [halves_unsigned(each) for each in (X86, profile("rtx"), profile("x86-cpu", INT8_CPU))] == [
        False,
        True,
        False,
    ]
    for target in (X86, profile("rtx")):
        form = symmetric_form(target, unsigned=False)
        assert (form.low, form.high, form.container) == (-128, 127, np.int8)
