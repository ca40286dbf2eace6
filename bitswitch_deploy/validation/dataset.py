"""Data sets: load samples and labels that fit a master, and hand them out a batch at a time.

An `.npz` file (see arrays.py) or a folder of images per class (see images.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.validation.arrays import read_npz
from bitswitch_deploy.validation.images import read_image_folder
from bitswitch_deploy.validation.samples import DataRequest, SampleSource


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """What a report says about a data set.

    sha256: digest of the samples used and their labels, in order.
    file_sha256: digest of the file, when it is one file of which every sample is used.
    class_names: in the order of the classes; empty when the data set has none.
    """

    name: str
    sha256: str
    n: int
    labelled: bool
    file_sha256: str | None = None
    class_names: tuple[str, ...] = ()

    def is_known_as(self, sha256: str) -> bool:
        """Whether `sha256` names these samples, by their content or by the file that holds them."""
        return sha256 in (self.sha256, self.file_sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Samples of one network input with their labels.

    y: class of each sample, int64 [n]; [n, ...] for dense outputs; None without labels.
    sha256, file_sha256: see DatasetSummary.
    source: inputs [n, ...], read and preprocessed when asked for.
    fixed_batch: the only batch size that the network takes; None takes any.
    """

    name: str
    sha256: str
    n: int
    y: npt.NDArray[np.int64] | None
    source: SampleSource
    fixed_batch: int | None = None
    file_sha256: str | None = None
    class_names: tuple[str, ...] = ()

    @property
    def summary(self) -> DatasetSummary:
        """This data set without its samples."""
        return DatasetSummary(
            name=self.name,
            sha256=self.sha256,
            n=self.n,
            labelled=self.y is not None,
            file_sha256=self.file_sha256,
            class_names=self.class_names,
        )

    def batches(self, size: int) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64] | None]]:
        """Inputs float32 [b, ...] and labels [b] in order, b = `size` but for a shorter last batch.

        Raises:
            DataError: an image cannot be decoded.
            ValueError: `size` is below 1.
        """
        if size < 1:
            raise ValueError(f"a batch has at least 1 sample, got {size}")
        for start in range(0, self.n, size):
            stop = start + size
            yield self.source.read(start, stop), None if self.y is None else self.y[start:stop]


def load_dataset(
    path: str | Path,
    *,
    preprocessing: Preprocessing | None,
    input_spec: ValueSpec,
    classes: int | None,
    limit: int | None = None,
) -> Dataset:
    """Load an `.npz` file or a folder of images per class.

    Args:
        path: the file or folder.
        preprocessing: what the master says about raw pixels.
        input_spec: the input of the network, batch dimension first.
        classes: number of classes of the network; None when its output is no row of class scores.
        limit: use this many samples, evenly spaced over the data set; None uses all.

    Raises:
        DataError: missing, damaged, or not fitting the network.
        UnavailableError: images without Pillow.
        UsageError: `limit` below 1.
    """
    path = Path(path)
    request = DataRequest(path=path, preprocessing=preprocessing, input_spec=input_spec, classes=classes, limit=limit)
    if path.is_dir():
        samples = read_image_folder(request)
    elif path.is_file() and path.suffix.lower() == ".npz":
        samples = read_npz(request)
    else:
        raise DataError(
            where=str(path),
            got="not an .npz file" if path.exists() else "does not exist",
            allowed="an .npz file with x and y, or a folder of images per class",
            do="check the path" if not path.exists() else "write it as numpy.savez(path, x=samples, y=labels)",
        )
    batch = input_spec.shape[0] if input_spec.shape else None
    return Dataset(
        name=path.resolve().name if path.is_dir() else path.stem,
        sha256=samples.sha256,
        n=samples.n,
        y=samples.y,
        source=samples.source,
        fixed_batch=batch if isinstance(batch, int) else None,
        file_sha256=samples.file_sha256,
        class_names=samples.class_names,
    )
