from __future__ import annotations

import pytest

from bitswitch_deploy.report.html.wilson import wilson_percent


@pytest.mark.parametrize(
    ("percent", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3: 81/263, 15/148, 0/20, 1/29
        (100 * 81 / 263, 263, 25.53, 36.62),
        (100 * 15 / 148, 148, 6.24, 16.05),
        (0.0, 20, 0.0, 16.11),
        (100 * 1 / 29, 29, 0.61, 17.18),
        (100.0, 20, 83.89, 100.0),
    ],
)
def test_published_intervals(percent: float, n: int, low: float, high: float) -> None:
    assert wilson_percent(percent, n) == pytest.approx((low, high), abs=0.005)


@pytest.mark.parametrize(("percent", "n"), [(50.0, 0), (-1.0, 10), (100.1, 10)])
def test_refused(percent: float, n: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson_percent(percent, n)
