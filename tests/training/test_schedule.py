from __future__ import annotations

import pytest

from bitswitch_deploy.training.schedule import alrs_eta, cosine_rate, scale_rate


@pytest.mark.parametrize(("distance", "eta"), [(0, 1.0), (1, 0.5), (2, 0.1), (3, 0.05), (4, 0.01), (6, 0.001)])
def test_alrs_eta(distance: int, eta: float) -> None:
    assert alrs_eta(distance) == pytest.approx(eta, rel=1e-12)


@pytest.mark.parametrize(("bits", "rate"), [(8, 5e-4), (6, 5e-5), (4, 5e-6), (2, 5e-7)])
def test_rate_of_the_scales(bits: int, rate: float) -> None:
    assert scale_rate(5e-4, bits=bits, highest=8) == pytest.approx(rate)


@pytest.mark.parametrize(("step", "rate"), [(0, 2.0), (25, 1.7071068), (50, 1.0), (100, 0.0)])
def test_cosine(step: int, rate: float) -> None:
    assert cosine_rate(2.0, step, 100) == pytest.approx(rate, abs=1e-7)
