"""What a loaded network takes, and whether given arrays fit. No vendor import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bitswitch_deploy.errors import DataError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSignature:
    """One network input: NumPy type name and shape; a string or None is an open dimension."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


def check_feeds(inputs: Iterable[InputSignature], feeds: Mapping[str, np.ndarray], *, where: str) -> None:
    """Compare arrays with what the network takes.

    Raises:
        UsageError: an input is missing or unknown.
        DataError: shape or type of an array do not fit its input.
    """
    expected = {value.name: value for value in inputs}
    if feeds.keys() != expected.keys():
        raise UsageError(
            where=where,
            got=f"values for {_listing(feeds)}",
            allowed=f"exactly {_listing(expected)}",
            do="name each input once",
        )
    for name, value in expected.items():
        _check_array(value, feeds[name])


def _check_array(value: InputSignature, array: np.ndarray) -> None:
    where = f"input {value.name!r}"
    if array.dtype != np.dtype(value.dtype):
        do = f"convert with .astype({value.dtype!r})"
        raise DataError(where=where, got=str(array.dtype), allowed=value.dtype, do=do)
    fits = len(array.shape) == len(value.shape) and all(
        not isinstance(wanted, int) or size == wanted for size, wanted in zip(array.shape, value.shape, strict=True)
    )
    if not fits:
        got, allowed = f"shape {list(array.shape)}", f"shape {list(value.shape)}"
        raise DataError(where=where, got=got, allowed=allowed, do="reshape or crop the samples")


def _listing(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(repr, names))) or "nothing"
