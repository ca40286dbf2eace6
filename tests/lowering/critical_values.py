"""Inputs of a QuantizeLinear at which a code can go wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def around(values: Array) -> Array:
    """Give each number with its float32 neighbours."""
    x = values.astype(np.float32)
    return np.concatenate([np.nextafter(x, np.float32(-np.inf)), x, np.nextafter(x, np.float32(np.inf))])


def critical(scale: np.float32, low: int, high: int) -> Array:
    """Give the numbers where a code can go wrong: codes, ties and the clip itself, and some far away."""
    steps = np.arange(low - 3, high + 4, 0.5)
    exact = around((steps * np.float64(scale)).astype(np.float32))
    clips = around(np.array([low, high], np.float32) * scale)
    far = np.array([0.0, -0.0, 200 * scale, -200 * scale, np.inf, -np.inf], np.float32)
    return np.concatenate([exact, clips, far])[:, None]
