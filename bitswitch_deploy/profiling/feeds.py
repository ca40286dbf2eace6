"""What a network is fed with while it is timed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bitswitch_deploy.engines.input_signature import InputSignature
from bitswitch_deploy.errors import UsageError

_SEED = 0


def make_feeds(inputs: Sequence[InputSignature], batch: int) -> dict[str, NDArray[np.generic]]:
    """An array for each input, its first open dimension `batch`: normal floats, whole numbers 0 and 1.

    Where one input has an open batch, those without are none, as a table that is handed in: they stay as they are.

    Raises:
        UsageError: the network takes another batch only, or has open dimensions besides the batch.
    """
    has_open_batch = any(value.shape and not isinstance(value.shape[0], int) for value in inputs)
    rng = np.random.default_rng(_SEED)
    feeds = {}
    for value in inputs:
        shape = _shape(value, batch, may_differ=has_open_batch)
        dtype = np.dtype(value.dtype)
        is_float = np.issubdtype(dtype, np.floating)
        feeds[value.name] = (rng.normal(size=shape) if is_float else rng.integers(0, 2, shape)).astype(dtype)
    return feeds


def _shape(value: InputSignature, batch: int, *, may_differ: bool) -> tuple[int, ...]:
    first, *others = value.shape or (batch,)
    if any(not isinstance(size, int) for size in others):
        raise UsageError(
            where=f"input {value.name!r}",
            got=f"shape {list(value.shape)}: open dimensions besides the batch",
            allowed="one open dimension, the first: latency depends on all others",
            do="export the network with fixed sizes",
        )
    if not value.shape:
        return ()
    if not isinstance(first, int):
        first = batch
    if first != batch and not may_differ:
        raise UsageError(
            where="--batch",
            got=f"{batch} for input {value.name!r} of shape {list(value.shape)}",
            allowed=f"{first}: the network was exported with this batch",
            do=f"use --batch {first}, or export it with an open batch",
        )
    return (first, *(size for size in others if isinstance(size, int)))
