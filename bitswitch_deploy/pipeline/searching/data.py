"""The two sets of samples of a search: what it may look at, and what the final numbers come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.master import Master
from bitswitch_deploy.pipeline.inputs import bundled_samples, load_samples, number_of_classes
from bitswitch_deploy.search.evaluate import open_session, run_batches
from bitswitch_deploy.search.samples import (
    Drawn,
    Indices,
    Inputs,
    Labels,
    SearchSamples,
    check_samples,
    check_test_samples,
    draw_samples,
    repeated_samples,
    sample_digests,
    store_samples,
)
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.validation.dataset import Dataset

# As many as the search toy and ResNet-20 needed; few, because what they have by chance cancels (`search.batchnorm`).
STATISTICS = 256
_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How samples are drawn. count: to search on. reestimate: others, to adapt BatchNorm statistics on, as well."""

    count: int
    seed: int = 0
    reestimate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchData:
    """Samples to search on, in a folder; the data set of the final test, and which of it the search has seen.

    statistics: samples, others again, to adapt BatchNorm statistics on; None where that was not asked for.
    """

    name: str
    search: SearchSamples
    statistics: SearchSamples | None
    test: Dataset
    seen: frozenset[bytes]
    notes: tuple[str, ...]

    def test_blocks(self) -> Iterator[tuple[Inputs, Labels | None, int]]:
        """Inputs, labels and the number left out, a block at a time; samples that the search has seen are left out.

        Raises:
            DataError: an image cannot be decoded.
        """
        for x, y in self.test.batches(_BLOCK):
            fresh = np.array([digest not in self.seen for digest in sample_digests(x)])
            yield x[fresh], None if y is None else y[fresh], int((~fresh).sum())


def load_search_data(
    master: Master, *, data: Path | None, test: Path | None, sampling: Sampling, folder: Path
) -> SearchData:
    """Choose samples to search on, and what is left for the final test.

    Without `test` the rest of `data` is tested on, and the search gets half of each class at most. Without `data` the
    bundled set of the master is taken.

    Raises:
        DataError: no data, too few samples or classes, none for the final test that the search does not see, or data
            that does not fit the master.
        OutputError: the folder cannot be written.
    """
    if data is None:
        _, bundled = bundled_samples(master)
        data, test = (bundled.train, test or bundled.test) if bundled else (None, test)
    pool = load_samples(master, data, limit=None)
    if pool is None or data is None:
        raise DataError(where="--data", got="no data", allowed="a folder or an .npz file", do="name one with --data")
    held_out = load_samples(master, test, limit=None) if test else pool
    _check_labels(data, pool, held_out, test)
    drawn = _draw(pool, sampling, rest_is_tested=test is None)
    classes = number_of_classes(master) or _computed_classes(master, pool)
    _check_classes(data, pool, classes)
    if test is not None and held_out is not None:
        _check_classes(test, held_out, classes)
    notes = check_samples(pool.y, drawn.search, classes=classes, where=str(data))
    tested = held_out.y if held_out else None
    if tested is not None and test is None:
        tested = np.delete(tested, [*drawn.search, *drawn.statistics])
    x, x_statistics = _inputs(pool, drawn.search), _inputs(pool, drawn.statistics)
    digests = sample_digests(x)
    notes += repeated_samples(digests, where=str(data))
    found = SearchData(
        name=pool.name,
        search=store_samples(folder, x, None if pool.y is None else pool.y[drawn.search]),
        statistics=store_samples(folder, x_statistics, None) if sampling.reestimate else None,
        test=held_out or pool,
        seen=frozenset(digests) | frozenset(sample_digests(x_statistics)),
        notes=(*notes, *check_test_samples(tested, classes=classes)),
    )
    if not any(len(fresh) for fresh, _, _ in found.test_blocks()):
        raise DataError(
            where="final test" if test is None else f"--test {test}",
            got="nothing but samples that the search sees",
            allowed="samples of its own",
            do="hand in other samples with --test, or more with --data, or search on fewer with --samples",
        )
    return found


def _computed_classes(master: Master, pool: Dataset) -> int:
    """Of a network that does not say how many it has."""
    session = open_session(master, WidthAssignment(default=master.spec.widths[0]), threads=1)
    return int(run_batches(session, pool.source.read(0, pool.fixed_batch or 1)).shape[1])


def _check_classes(where: Path, samples: Dataset, classes: int) -> None:
    if samples.y is not None and int(samples.y.max()) >= classes:
        raise DataError(
            where=str(where),
            got=f"classes up to {int(samples.y.max())}",
            allowed=f"0 to {classes - 1}, as the network computes",
            do="count classes from 0 in the order of the network's outputs, or name the master of these classes",
        )


def _draw(pool: Dataset, sampling: Sampling, *, rest_is_tested: bool) -> Drawn:
    n_most = pool.n // 2 if rest_is_tested else pool.n
    n_statistics = min(STATISTICS, n_most // 3) if sampling.reestimate else 0
    return draw_samples(
        pool.y,
        pool.n,
        n_search=min(sampling.count, n_most - n_statistics),
        n_statistics=n_statistics,
        rest_is_tested=rest_is_tested,
        seed=sampling.seed,
    )


def _inputs(pool: Dataset, indices: Indices) -> Inputs:
    rows = [pool.source.read(int(index), int(index) + 1) for index in indices]
    return np.concatenate(rows) if rows else pool.source.read(0, 0)


def _check_labels(data: Path, pool: Dataset, held_out: Dataset | None, test: Path | None) -> None:
    if pool.y is not None and pool.y.ndim != 1:
        raise DataError(
            where=str(data),
            got=f"labels of shape {list(pool.y.shape)}",
            allowed="one class for each sample",
            do="leave the labels out: the search then stays near the outputs of the highest width",
        )
    if held_out is not None and (held_out.y is None) != (pool.y is None):
        raise DataError(
            where=f"--test {test}",
            got="labels in one of --data and --test only",
            allowed="both or none",
            do="hand in samples of the same kind",
        )
