"""The samples of a search: a random part of the data with the same number from each class, fixed by a hash.

Labelled data is drawn class by class, because data that is sorted by class would otherwise show the search a few
classes only. Where a class has too few samples it gives what it may, and the others give more. What the search sees is
never in the final test: when that takes the rest of the data, the search leaves it half of every class. Samples for
BatchNorm statistics are others again, with each class as frequent as in the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
# Share of samples that repeat others which needs no word: data sets have some.
MAX_COPIES = 0.01
# Share of samples on which two good candidates disagree; measured at 5 to 10 % on small networks.
_DISAGREEMENT = 0.07
_NAMED = 8  # classes in one message
_Z95 = 1.96

Inputs = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSamples:
    """Samples in a folder that every worker can open: x.npy float32 [n, ...], and y.npy int64 [n] when labelled.

    folder: absolute, since workers of a cluster may have been started in another one.
    """

    folder: Path
    n: int
    labelled: bool
    sha256: str

    def read(self, start: int, stop: int) -> tuple[Inputs, Labels | None]:
        """Inputs and labels start..stop-1; the file is mapped, not read."""
        x = np.load(self.folder / "x.npy", mmap_mode="r", allow_pickle=False)[start:stop]
        y = np.load(self.folder / "y.npy", mmap_mode="r", allow_pickle=False)[start:stop] if self.labelled else None
        return np.ascontiguousarray(x), None if y is None else np.array(y)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """Indices of samples in random order, none of them twice. search: to search on. statistics: for BatchNorm."""

    search: Indices
    statistics: Indices


def draw_samples(
    y: Labels | None, n_all: int, *, n_search: int, n_statistics: int = 0, rest_is_tested: bool = False, seed: int
) -> Drawn:
    """Samples for the search, whose class counts differ by one at most where they can, and others for statistics.

    Args:
        y: labels [n_all], None without. n_search: how many; fewer where the classes have no more. n_statistics: others.
        rest_is_tested: whether the search leaves half of each class. seed: of the draw.
    """
    random = np.random.default_rng(seed)
    if y is None:
        order = random.permutation(n_all)
        return Drawn(search=order[:n_search], statistics=order[n_search : n_search + n_statistics])
    place, size = np.empty(n_all, np.int64), np.empty(n_all, np.int64)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        place[random.permutation(members)] = np.arange(len(members))
        size[members] = len(members)
    chance = random.random(n_all)
    most = size // 2 if rest_is_tested else size - size * n_statistics // n_all
    # the i-th sample of each class before the (i+1)-th of any: every prefix of this order is balanced
    order = np.lexsort((chance, place))
    search = order[(place < most)[order]][:n_search]
    # Counted from where the search stopped, the i-th sample of a class comes at i / size: a prefix has the classes as
    # frequent as the data has them. Where all are of one size this goes on in the order of the search.
    left = np.setdiff1d(order, search)
    begun = np.minimum(place[search].max(initial=0), most)
    share = (place - begun + chance) / size
    return Drawn(search=search, statistics=left[np.argsort(share[left])][:n_statistics])


def check_samples(y: Labels | None, chosen: Indices, *, classes: int, where: str) -> tuple[str, ...]:
    """Warnings about samples that can be searched on.

    Raises:
        DataError: too few samples, or too few of more than half of the classes.
    """
    least = max(MIN_SAMPLES, MIN_PER_CLASS * classes if y is not None else 0)
    if len(chosen) < least:
        raise DataError(
            where=where,
            got=f"{len(chosen)} samples to search on",
            allowed=f"{least} or more; differences of 0.5 points show from about {needed(0.5):,} on",
            do="raise --samples, hand in more with --data, or name others for the final test with --test",
        )
    if y is None:
        return ()
    counts = np.bincount(y[chosen], minlength=classes)
    n_enough = int((counts >= MIN_PER_CLASS).sum())
    if 2 * n_enough < classes:
        raise DataError(
            where=where,
            got=f"{n_enough} of {classes} classes among the samples to search on, with {MIN_PER_CLASS} or more of each",
            allowed="samples of every class, at least half of them",
            do="hand in more of each class; the first samples of data that is sorted by class are no sample of it",
        )
    rare = np.flatnonzero((counts > 0) & (counts < MIN_PER_CLASS)).tolist()
    few = (f"only one sample of {len(rare)} of {classes} classes: {_named(rare)}",) if rare else ()
    return (*_absent_classes(y[chosen], classes, ""), *few)


def repeated_samples(digests: Sequence[bytes], *, where: str) -> tuple[str, ...]:
    """A warning where samples are there several times, by their digests: intervals take each for one of its own.

    Raises:
        DataError: too few different ones.
    """
    n_different = len(set(digests))
    if n_different < MIN_SAMPLES:
        raise DataError(
            where=where,
            got=f"{n_different} different samples to search on, the others repeat them",
            allowed=f"{MIN_SAMPLES} or more that differ",
            do="hand in more with --data: a copy says nothing new",
        )
    n_copies = len(digests) - n_different
    if n_copies <= MAX_COPIES * len(digests):
        return ()
    return (
        f"{n_copies:,} of {len(digests):,} samples to search on repeat others: intervals should be wider than they are",
    )


def check_test_samples(y: Labels | None, *, classes: int) -> tuple[str, ...]:
    """Warnings about the labels [n] of the final test, None without."""
    return () if y is None else _absent_classes(y, classes, "in the final test ")


def _absent_classes(y: Labels, classes: int, place: str) -> tuple[str, ...]:
    absent = sorted(set(range(classes)) - set(np.unique(y).tolist()))
    return (f"{place}no sample of {len(absent)} of {classes} classes: {_named(absent)}",) if absent else ()


def _named(classes: Sequence[int]) -> str:
    return ", ".join(map(str, classes[:_NAMED])) + (" and others" if len(classes) > _NAMED else "")


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


def _holds(path: Path, values: npt.NDArray[Any]) -> bool:
    """Whether these values are in a file, as nobody has damaged it."""
    try:
        return np.array_equal(np.load(path, mmap_mode="r", allow_pickle=False), values)
    except (OSError, EOFError, ValueError):
        return False


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
    place = folder.absolute() / f"samples-{sha256[:16]}"
    make_folder(place)
    for name, values in (("y.npy", y), ("x.npy", x)):
        if values is not None and not _holds(place / name, values):
            with atomic_writer(place / name) as file:
                np.save(file, values, allow_pickle=False)
    return SearchSamples(folder=place, n=len(x), labelled=y is not None, sha256=sha256)
