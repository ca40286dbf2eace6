"""Names of samples: an .npz file may have an array `id` beside `x` and `y`; no sample may be there twice.

The statistics take samples for independent: one that is counted ten times makes any change look certain.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.validation.arrays import BROKEN_ARCHIVE

_MAX_BYTES = 1 << 28


def check_sample_ids(path: Path, n: int) -> None:
    """See that the `id` array of an .npz file, where it has one, is [n] with `n` different names.

    Folders of images have no such array: their file names differ.

    Raises:
        DataError: an id stands there twice, or the array is damaged or not [n].
    """
    if path.is_dir():
        return
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    if "id.npy" not in sizes:
        return
    try:
        if sizes["id.npy"] > _MAX_BYTES:
            raise ValueError(f"{sizes['id.npy']} bytes")
        with np.load(path, allow_pickle=False) as stored:
            ids = np.asarray(stored["id.npy"])
    except BROKEN_ARCHIVE as exc:
        raise _error(path, f"the array 'id' cannot be read: {exc}") from exc
    if ids.shape != (n,):
        raise _error(path, f"'id' has shape {list(ids.shape)} for {n} samples")
    different, count = np.unique(ids, return_counts=True)
    twice = different[count > 1]
    if twice.size:
        places = np.flatnonzero(ids == twice[0])[:2].tolist()
        raise _error(
            path, f"{twice.size} ids more than once, first {twice[0]!s} in samples {places[0]} and {places[1]}"
        )


def _error(path: Path, got: str) -> DataError:
    allowed = "an array 'id' with one different number or text for each sample, or none"
    return DataError(where=str(path), got=got, allowed=allowed, do="remove the copies, or leave the array out")
