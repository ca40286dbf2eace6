"""Confidence interval of a share, after Wilson (1927): holds for shares near 0 and 1 and for few samples."""

from __future__ import annotations

import math

# quantile of the normal distribution for 95 %, both sides
_Z = 1.959963984540054


def wilson_percent(percent: float, n: int) -> tuple[float, float]:
    """The 95 % interval in percent around a share of `n` samples.

        centre = (p + z^2 / 2n) / (1 + z^2 / n)
        half   = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4 n^2)

    Raises:
        ValueError: no samples, or a share outside of 0..100.
    """
    if n < 1 or not 0.0 <= percent <= 100.0:
        raise ValueError(f"{percent} % of {n} samples is no share")
    share, zz = percent / 100.0, _Z * _Z
    centre = (share + zz / (2 * n)) / (1 + zz / n)
    half = _Z / (1 + zz / n) * math.sqrt(share * (1 - share) / n + zz / (4 * n * n))
    return 100.0 * max(centre - half, 0.0), 100.0 * min(centre + half, 1.0)
