from __future__ import annotations

import pytest

from bitswitch_deploy.engines.shape_range import ShapeRange, batch_profile, check_profile
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master.spec import ValueSpec

RANGE = ShapeRange(input="x", minimum=(1, 3), optimum=(2, 3), maximum=(8, 3))


@pytest.mark.parametrize(
    "shapes",
    [((2, 3), (1, 3), (8, 3)), ((1, 3), (9, 3), (8, 3)), ((0, 3), (1, 3), (8, 3)), ((1,), (1, 3), (8, 3))],
)
def test_contradictions_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(UsageError, match="shapes of input 'x'"):
        ShapeRange(input="x", minimum=shapes[0], optimum=shapes[1], maximum=shapes[2])


def test_batch_profile_covers_open_batches_only() -> None:
    inputs = (
        ValueSpec(name="x", dtype="float32", shape=("batch", 3)),
        ValueSpec(name="mask", dtype="bool", shape=(3,)),
    )
    assert batch_profile(inputs, batch=(1, 2, 8)) == (RANGE,)


def test_another_open_dimension_is_refused() -> None:
    inputs = (ValueSpec(name="x", dtype="float32", shape=(1, 3, "height")),)
    with pytest.raises(UsageError, match=r"input 'x': shape \[1, 3, 'height'\]"):
        batch_profile(inputs, batch=(1, 2, 8))


def test_a_profile_that_fits_passes() -> None:
    check_profile({"x": (None, 3), "mask": (3,)}, (RANGE,), where="g")


@pytest.mark.parametrize(
    ("shapes", "profile", "message"),
    [
        ({"x": (None, 3)}, (), r"g: input 'x' has open dimensions \?x3"),
        ({"y": (3,)}, (RANGE,), "a shape range for 'x', which is not an input\n  allowed: inputs y"),
        ({"x": (None, 4)}, (RANGE,), r"range \(1, 3\)\.\.\(8, 3\) for 'x'\n  allowed: sizes that fit \?x4"),
        ({"x": (1, 3)}, (RANGE,), "sizes that fit 1x3"),
        ({"x": (None, 3, 1)}, (RANGE,), r"sizes that fit \?x3x1"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(
    shapes: dict[str, tuple[int | None, ...]], profile: tuple[ShapeRange, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_profile(shapes, profile, where="g")
