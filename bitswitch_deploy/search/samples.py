"""The samples of a search: a random part of the data with the same number from each class, fixed by a hash.

Labelled data is drawn class by class, because data that is sorted by class would otherwise show the search a few
classes only. What the search sees is never in the final test.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.atomic_file import atomic_writer
from bitswitch_deploy.errors import DataError
from bitswitch_deploy.search.store import make_folder

MIN_SAMPLES = 64
MIN_PER_CLASS = 2
# Share of samples on which two good candidates disagree; measured at 5 to 10 % on small networks.
_DISAGREEMENT = 0.07
_Z95 = 1.96

Inputs = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSamples:
    """Samples in a folder that every worker can open: x.npy float32 [n, ...], and y.npy int64 [n] when labelled."""

    folder: Path
    n: int
    labelled: bool
    sha256: str

    def read(self, start: int, stop: int) -> tuple[Inputs, Labels | None]:
        """Inputs and labels start..stop-1; the file is mapped, not read."""
        x = np.load(self.folder / "x.npy", mmap_mode="r", allow_pickle=False)[start:stop]
        y = np.load(self.folder / "y.npy", mmap_mode="r", allow_pickle=False)[start:stop] if self.labelled else None
        return np.ascontiguousarray(x), None if y is None else np.array(y)


def choose_samples(y: Labels | None, n_all: int, *, count: int, seed: int) -> npt.NDArray[np.intp]:
    """Indices [count] of samples for the search in random order; class counts differ by one at most, where they can.

    Args:
        y: labels [n_all], None without. count: how many; all when there are fewer. seed: of the draw.
    """
    random = np.random.default_rng(seed)
    if y is None:
        return random.permutation(n_all)[:count]
    # the i-th sample of each class before the (i+1)-th of any: every prefix of this order is balanced
    place = np.empty(n_all, np.int64)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        place[random.permutation(members)] = np.arange(len(members))
    order = np.lexsort((random.random(n_all), place))
    return order[:count]


def check_samples(y: Labels | None, chosen: npt.NDArray[np.intp], *, classes: int, where: str) -> tuple[str, ...]:
    """Warnings about samples that can be searched on.

    Raises:
        DataError: too few samples, or fewer than half of the classes.
    """
    least = max(MIN_SAMPLES, MIN_PER_CLASS * classes if y is not None else 0)
    if len(chosen) < least:
        raise DataError(
            where=where,
            got=f"{len(chosen)} samples to search on",
            allowed=f"{least} or more; differences of 0.5 points show from about {needed(0.5):,} on",
            do="hand in more samples, or name others for the final test with --test",
        )
    if y is None:
        return ()
    present = np.unique(y[chosen])
    if 2 * len(present) < classes:
        raise DataError(
            where=where,
            got=f"{len(present)} of {classes} classes among the samples to search on",
            allowed="samples of every class, at least half of them",
            do="hand in the whole data set: the first samples of data sorted by class are no sample of it",
        )
    absent = sorted(set(range(classes)) - set(present.tolist()))
    return (f"no sample of {len(absent)} of {classes} classes, such as class {absent[0]}",) if absent else ()


def needed(points: float) -> int:
    """Paired samples from which on a difference of so many points of top-1 stands out at 95 %."""
    return int(np.ceil(_Z95**2 * _DISAGREEMENT / (points / 100) ** 2))


def resolution_points(n: int) -> float:
    """Difference in points of top-1 that n paired samples tell from none at 95 %, for usual candidates."""
    return float(100 * _Z95 * np.sqrt(_DISAGREEMENT / n))


def at_a_time(x: Inputs, *, most: int, most_bytes: int) -> int:
    """How many of the samples [n, ...] fit into `most_bytes`, one at least and `most` at most."""
    return min(most, max(1, most_bytes * len(x) // max(x.nbytes, 1)))


def sample_digests(x: npt.NDArray[Any]) -> list[bytes]:
    """SHA-256 of each sample as the network gets it."""
    return [hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in x]


def store_samples(folder: Path, x: Inputs, y: Labels | None) -> SearchSamples:
    """Put samples into a folder of their own below `folder`, named by their hash; one that is there stays.

    Raises:
        OutputError: the folder cannot be written.
    """
    digest = hashlib.sha256(f"{x.shape} {x.dtype} {y is not None}".encode())
    for array in (x, y):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    sha256 = digest.hexdigest()
    place = folder / f"samples-{sha256[:16]}"
    make_folder(place)
    for name, values in (("y.npy", y), ("x.npy", x)):
        if values is not None and not (place / name).is_file():
            with atomic_writer(place / name) as file:
                np.save(file, values, allow_pickle=False)
    return SearchSamples(folder=place, n=len(x), labelled=y is not None, sha256=sha256)
