"""What the readers of data sets share: the request, the source of samples, the check of the input shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import DataError, UsageError
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.preprocessing import Preprocessing


class SampleSource(Protocol):
    """Where network inputs come from, a slice at a time."""

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Samples start..stop-1 as network inputs, [stop - start, ...]: float32, or of its type of whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a reader found: inputs, labels int64 [n] (or [n, ...] for dense outputs), names of the classes.

    sha256: digest of the samples used and their labels, in order.
    file_sha256: digest of the file, when it is one file of which every sample is used.
    """

    source: SampleSource
    y: npt.NDArray[np.int64] | None
    n: int
    sha256: str
    file_sha256: str | None = None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRequest:
    """What a reader is asked for.

    classes: number of classes of the network; None when its output is no row of class scores.
    limit: number of samples to use; None uses all.
    """

    path: Path
    preprocessing: Preprocessing | None
    input_spec: ValueSpec
    classes: int | None
    limit: int | None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(
                where="number of samples",
                got=str(self.limit),
                allowed="1 or more",
                do="leave the limit out to use every sample",
            )

    def check_sample(self, shape: tuple[int, ...]) -> None:
        """See that one sample [...] is what the network reads after its batch dimension.

        Raises:
            DataError: another rank or another size of a dimension that is fixed.
        """
        wanted = self.input_spec.shape[1:]
        fits = len(shape) == len(wanted) and all(
            isinstance(want, str) or want == got for want, got in zip(wanted, shape, strict=True)
        )
        if not fits:
            raise DataError(
                where=str(self.path),
                got=f"one sample has shape {list(shape)}",
                allowed=f"{list(wanted)}, as input '{self.input_spec.name}' of the master",
                do="prepare the data for this network, or name the master that it belongs to",
            )

    def needed_preprocessing(self) -> Preprocessing:
        """How raw pixels become inputs.

        Raises:
            DataError: the master does not say.
        """
        if self.preprocessing is None:
            raise DataError(
                where=str(self.path),
                got="raw pixels, and the master does not say how to preprocess them",
                allowed="floating-point samples that are ready for the network",
                do="store preprocessed float32 samples in an .npz file, or train the master with a preprocessing",
            )
        return self.preprocessing

    def pick(self, n: int) -> npt.NDArray[np.int64]:
        """Which of `n` samples are used, int64 [min(limit, n)], evenly spaced.

        Data sets are often sorted by class, where the first samples would be of one class only.
        """
        if self.limit is None or self.limit >= n:
            return np.arange(n, dtype=np.int64)
        return np.arange(self.limit, dtype=np.int64) * n // self.limit
