from __future__ import annotations

import numpy as np
import pytest

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.preprocessing import Preprocessing


def test_it_scales_each_channel_and_puts_channels_first() -> None:
    how = Preprocessing(colour="RGB", size=(1, 2), divide_by=10.0, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    raw = np.array([[[[10, 20, 30], [20, 60, 70]]]], dtype=np.uint8)
    result = how.apply(raw)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert result.tolist() == [[[[0.0, 1.0]], [[0.0, 2.0]], [[0.0, 1.0]]]]


def test_it_rounds_as_the_trainer_does_in_float32() -> None:
    how = Preprocessing(colour="L", size=(1, 256), divide_by=255.0, mean=(0.4914,), std=(0.2023,))
    raw = np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1)
    steps = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.4914)) / np.float32(0.2023)
    assert np.array_equal(how.apply(raw).ravel(), steps)


@pytest.mark.parametrize(
    "raw",
    [np.zeros((2, 3, 4), np.uint8), np.zeros((1, 4, 3, 1), np.uint8), np.zeros((1, 3, 4, 1), np.float32)],
    ids=["one dimension less", "turned", "floats"],
)
def test_other_pixels_are_refused(raw: np.ndarray) -> None:
    how = Preprocessing(colour="L", size=(3, 4), divide_by=255.0, mean=(0.5,), std=(0.5,))
    with pytest.raises(DataError, match=r"raw pixels: \w+ \[.*\]\n  allowed: uint8 \[n, 3, 4, 1\], which is L"):
        how.apply(raw)
