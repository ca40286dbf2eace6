from __future__ import annotations

import numpy as np
import pytest

from bitswitch_deploy.engines.input_signature import InputSignature
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.profiling.feeds import make_feeds


def signature(*shape: int | str | None, dtype: str = "float32") -> InputSignature:
    return InputSignature(name="x", dtype=dtype, shape=shape)


def test_the_first_open_dimension_is_the_batch() -> None:
    feeds = make_feeds([signature("n", 3, 8, 8), InputSignature(name="i", dtype="int64", shape=(None, 4))], 5)
    assert (feeds["x"].shape, feeds["i"].shape) == ((5, 3, 8, 8), (5, 4))
    assert (feeds["x"].dtype.name, feeds["i"].dtype.name) == ("float32", "int64")
    np.testing.assert_array_equal(feeds["x"], make_feeds([signature("n", 3, 8, 8)], 5)["x"])


def test_a_fixed_batch_is_taken_and_another_one_refused() -> None:
    assert make_feeds([signature(2, 3)], 2)["x"].shape == (2, 3)
    with pytest.raises(UsageError, match=r"--batch: 8 for input 'x'(.|\n)*use --batch 2"):
        make_feeds([signature(2, 3)], 8)


def test_an_input_of_fixed_size_beside_one_with_an_open_batch_is_no_batch() -> None:
    feeds = make_feeds([signature("n", 3), InputSignature(name="table", dtype="float32", shape=(10,))], 4)
    assert (feeds["x"].shape, feeds["table"].shape) == ((4, 3), (10,))


def test_other_open_dimensions_are_refused() -> None:
    with pytest.raises(UsageError, match="open dimensions besides the batch"):
        make_feeds([signature("n", "length", 3)], 1)


def test_a_scalar_input_stays_one() -> None:
    assert make_feeds([signature()], 4)["x"].shape == ()
