from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.gate.outcomes import EncodedRows, decode, encode


@pytest.mark.parametrize("dtype", [np.bool_, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1000, 1), (9, 5)])
def test_rows_come_back_as_they_were(dtype: Any, shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).normal(scale=100, size=shape).astype(dtype)
    back = decode(encode(rows))
    assert back.dtype == dtype
    assert np.array_equal(back, rows)


def test_fifty_thousand_outcomes_fit_into_git() -> None:
    rows = np.random.default_rng(0).random((50_000, 1)) < 0.76
    assert len(encode(rows).data) < 9000


def test_the_first_sample_is_the_highest_bit() -> None:
    packed = np.zeros((8, 1), bool)
    packed[0] = True
    assert decode(replace(encode(packed), shape=(1, 1))).tolist() == [[True]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "!"}, "cannot be unpacked"),
        ({"data": "AAAA"}, "cannot be unpacked"),
        ({"shape": (999, 1)}, "of 400 bytes or more, where the shape says 3996"),
        ({"shape": (9, 1)}, "of 37 bytes or more, where the shape says 36"),
        ({"shape": (0, 1)}, "shape"),
        ({"shape": (1 << 40, 1)}, "shape"),
    ],
)
def test_damaged_text_is_refused(change: dict[str, Any], message: str) -> None:
    encoded = encode(np.arange(100, dtype=np.int32)[:, None])
    with pytest.raises(ValueError, match=message):
        decode(replace(encoded, **change))


def test_a_bomb_is_not_unpacked() -> None:
    bomb = encode(np.zeros((1_000_000, 1), np.float32)).data
    with pytest.raises(ValueError, match="of 5 bytes or more"):
        decode(EncodedRows(type="float32", shape=(1, 1), data=bomb))
