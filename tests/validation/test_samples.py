from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitswitch_deploy.errors import DataError, UsageError
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.validation.samples import DataRequest

Make = Callable[..., DataRequest]


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_a_usage_error(request_for: Make, limit: int) -> None:
    with pytest.raises(UsageError, match=rf"number of samples: {limit}\n  allowed: 1 or more"):
        request_for(Path("x.npz"), limit=limit)


@pytest.mark.parametrize(
    ("n", "limit", "chosen"),
    [
        (3, None, [0, 1, 2]),
        (3, 3, [0, 1, 2]),
        (3, 9, [0, 1, 2]),
        (10, 4, [0, 2, 5, 7]),
        (10, 1, [0]),
        (5, 4, [0, 1, 2, 3]),
    ],
)
def test_limited_samples_are_spread_evenly(request_for: Make, n: int, limit: int | None, chosen: list[int]) -> None:
    assert request_for(Path("x.npz"), limit=limit).pick(n).tolist() == chosen


@pytest.mark.parametrize("shape", [(1, 1, 2), (7, 1, 2)])
def test_an_open_dimension_takes_any_size(request_for: Make, shape: tuple[int, ...]) -> None:
    spec = ValueSpec(name="x", dtype="float32", shape=(1, "channels", 1, 2))
    request_for(Path("x.npz"), input_spec=spec).check_sample(shape)


@pytest.mark.parametrize("shape", [(1, 2), (1, 1, 3), (1, 1, 1, 2), ()])
def test_another_shape_is_refused(request_for: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"one sample has shape .*\n  allowed: \[1, 1, 2\], as input 'x' of the master"):
        request_for(Path("x.npz")).check_sample(shape)


def test_raw_pixels_need_a_preprocessing(request_for: Make) -> None:
    with pytest.raises(DataError, match="the master does not say how to preprocess"):
        request_for(Path("x.npz"), preprocessing=None).needed_preprocessing()
