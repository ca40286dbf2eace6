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


@pytest.mark.parametrize(
    ("share", "image", "box"),
    [
        (None, (500, 375), (0, 0, 500, 375)),
        (0.8, (500, 250), (150, 25, 350, 225)),
        (0.5, (80, 40), (30, 10, 50, 30)),
        (1.0, (30, 80), (0, 25, 30, 55)),
    ],
)
def test_the_part_of_an_image_that_is_resized(
    share: float | None, image: tuple[int, int], box: tuple[float, ...]
) -> None:
    how = Preprocessing(colour="L", size=(4, 4), divide_by=255.0, mean=(0.5,), std=(0.5,), centre_share=share)
    assert how.box(*image) == pytest.approx(box)


@pytest.mark.parametrize("size", [112, 224, 299, 380])
def test_the_part_never_leaves_the_image(size: int) -> None:
    """Pillow refuses an edge that is off by a rounding error."""
    how = Preprocessing(colour="L", size=(size, size), divide_by=255.0, mean=(0.5,), std=(0.5,), centre_share=1.0)
    for side in range(1, 2000):
        for width, height in ((side, side), (side, 2000), (2000, side)):
            left, upper, right, lower = how.box(width, height)
            assert 0 <= left < right <= width, (width, height)
            assert 0 <= upper < lower <= height, (width, height)


@pytest.mark.parametrize(("share", "n_faults"), [(None, 0), (0.875, 0), (1.0, 0), (0.0, 1), (1.01, 1), (-0.5, 1)])
def test_a_share_that_cannot_be_is_a_fault(share: float | None, n_faults: int) -> None:
    how = Preprocessing(colour="L", size=(4, 4), divide_by=255.0, mean=(0.5,), std=(0.5,), centre_share=share)
    assert len(list(how.faults())) == n_faults
