"""The draw of the samples: balanced, fixed, and refused where it would show the search too little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.search.samples import (
    at_a_time,
    check_samples,
    choose_samples,
    needed,
    resolution_points,
    sample_digests,
    store_samples,
)


@pytest.mark.parametrize("count", [7, 50, 123, 400])
def test_class_counts_differ_by_one_at_most_even_where_data_is_sorted(count: int) -> None:
    y = np.sort(np.arange(500) % 10)
    chosen = choose_samples(y, 500, count=count, seed=3)
    assert len(set(chosen.tolist())) == count
    for n in (count, count // 2):
        counts = np.bincount(y[chosen[:n]], minlength=10)
        assert counts.max() - counts.min() <= 1
    assert (choose_samples(y, 500, count=count, seed=3) == chosen).all()
    assert (choose_samples(y, 500, count=count, seed=4) != chosen).any()


def test_rare_classes_give_what_they_have() -> None:
    y = np.array([0] * 90 + [1] * 10)
    assert np.bincount(y[choose_samples(y, 100, count=60, seed=0)]).tolist() == [50, 10]


def test_unlabelled_samples_are_drawn_by_chance() -> None:
    assert sorted(choose_samples(None, 20, count=50, seed=0)) == list(range(20))


def test_too_few_samples_say_how_many_are_needed() -> None:
    y = np.arange(40) % 10
    with pytest.raises(DataError, match=r"40 samples to search on\n.*64 or more; differences of 0.5 points .* 10,757"):
        check_samples(y, np.arange(40), classes=10, where="here")
    with pytest.raises(DataError, match="2000 or more"):
        check_samples(np.arange(1000), np.arange(1000), classes=1000, where="here")
    assert check_samples(None, np.arange(64), classes=1000, where="here") == ()


def test_a_part_of_the_classes_is_refused_and_one_that_lacks_is_said() -> None:
    sorted_part = np.arange(200) // 50
    with pytest.raises(DataError, match="4 of 10 classes"):
        check_samples(sorted_part, np.arange(200), classes=10, where="here")
    y = np.arange(200) % 9
    assert check_samples(y, np.arange(200), classes=10, where="here") == (
        "no sample of 1 of 10 classes, such as class 9",
    )


def test_resolution_is_the_inverse_of_what_is_needed() -> None:
    assert resolution_points(needed(0.5)) == pytest.approx(0.5, rel=1e-3)


def test_stored_samples_are_named_by_their_content(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32), np.arange(9)
    stored = store_samples(tmp_path, x, y)
    assert store_samples(tmp_path, x, y) == stored
    assert store_samples(tmp_path, x, None).sha256 != stored.sha256
    assert store_samples(tmp_path, x, y + 1).sha256 != stored.sha256
    part, labels = stored.read(2, 5)
    assert (part == x[2:5]).all()
    assert labels is not None
    assert (labels == y[2:5]).all()
    assert sample_digests(part) == sample_digests(x)[2:5]


@pytest.mark.parametrize(("most", "n_bytes", "expected"), [(64, 10**6, 64), (64, 3200, 4), (64, 799, 1), (2, 3200, 2)])
def test_how_many_samples_go_at_a_time(most: int, n_bytes: int, expected: int) -> None:
    assert at_a_time(np.zeros((10, 2, 10, 10), np.float32), most=most, most_bytes=n_bytes) == expected
