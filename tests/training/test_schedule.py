from __future__ import annotations

import pytest

from bitswitch_deploy.training.schedule import Alrs, Position, alrs_eta, cosine_rate, scale_rate


@pytest.mark.parametrize(("distance", "eta"), [(0, 1.0), (1, 0.5), (2, 0.1), (3, 0.05), (4, 0.01), (6, 0.001)])
def test_alrs_eta(distance: int, eta: float) -> None:
    assert alrs_eta(distance) == pytest.approx(eta, rel=1e-12)


# lambda = 0.2, m_b = 0.05
@pytest.mark.parametrize(
    ("form", "rates"),
    [
        ("none", [0.2, 0.2, 0.2, 0.2, 0.2]),
        ("eta", [0.2, 0.1, 0.02, 0.002, 0.0002]),
        ("bracket", [0.19, 0.095, 0.019, 0.0019, 0.00019]),
        ("bracket_printed", [0.15, 0.075, 0.015, 0.0015, 0.00015]),
    ],
)
def test_rate_of_the_scales_by_hand(form: Alrs, rates: list[float]) -> None:
    actual = [scale_rate(form, 0.2, distance=distance, mean_gradient=0.05) for distance in (0, 1, 2, 4, 6)]
    assert actual == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize("gradient", [0.0, 5e-4, 0.3, 1.0])
def test_brackets_are_never_negative(gradient: float) -> None:
    printed = scale_rate("bracket_printed", 5e-4, distance=2, mean_gradient=gradient)
    assert printed == pytest.approx(0.1 * max(5e-4 - gradient, 0.0), abs=1e-12)
    assert scale_rate("bracket", 5e-4, distance=2, mean_gradient=gradient) == pytest.approx(5e-5 * (1 - gradient))


@pytest.mark.parametrize(("step", "rate"), [(0, 2.0), (25, 1.7071068), (50, 1.0), (100, 0.0)])
def test_cosine(step: int, rate: float) -> None:
    assert cosine_rate(2.0, step, 100) == pytest.approx(rate, abs=1e-7)


@pytest.mark.parametrize(("step", "epoch"), [(0, 0), (3, 0), (4, 1), (9, 2)])
def test_epochs(step: int, epoch: int) -> None:
    position = Position(step=step, total=10, per_epoch=4)
    assert (position.epoch, position.epochs) == (epoch, 3)
