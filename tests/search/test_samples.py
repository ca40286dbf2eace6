"""The draw of the samples: balanced, fixed, and refused where it would show the search too little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.search.samples import (
    Drawn,
    at_a_time,
    check_samples,
    check_test_samples,
    draw_samples,
    needed,
    repeated_samples,
    resolution_points,
    sample_digests,
    store_samples,
)


@pytest.mark.parametrize("count", [7, 50, 123, 400])
def test_class_counts_differ_by_one_at_most_even_where_data_is_sorted(count: int) -> None:
    y = np.sort(np.arange(500) % 10)
    chosen = draw_samples(y, 500, n_search=count, seed=3).search
    assert len(set(chosen.tolist())) == count
    for n in (count, count // 2):
        counts = np.bincount(y[chosen[:n]], minlength=10)
        assert counts.max() - counts.min() <= 1
    assert (draw_samples(y, 500, n_search=count, seed=3).search == chosen).all()
    assert (draw_samples(y, 500, n_search=count, seed=4).search != chosen).any()


def test_rare_classes_give_what_they_have() -> None:
    y = np.array([0] * 90 + [1] * 10)
    assert np.bincount(y[draw_samples(y, 100, n_search=60, seed=0).search]).tolist() == [50, 10]


def test_stored_samples_that_were_damaged_are_written_again(tmp_path: Path) -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(4)
    stored = store_samples(tmp_path, x, y)
    whole = (stored.folder / "x.npy").read_bytes()
    for damaged in (whole[:-5], b"", whole[:-1] + b"\1"):
        (stored.folder / "x.npy").write_bytes(damaged)
        assert store_samples(tmp_path, x, y).sha256 == stored.sha256
        assert (stored.folder / "x.npy").read_bytes() == whole


UNBALANCED = np.repeat([0, 1, 2], [900, 900, 100])


def counts(drawn: Drawn) -> list[list[int]]:
    """Of each class of UNBALANCED: for the search, for statistics, and what is left."""
    rest = np.delete(UNBALANCED, [*drawn.search, *drawn.statistics])
    return [
        np.bincount(y, minlength=3).tolist() for y in (UNBALANCED[drawn.search], UNBALANCED[drawn.statistics], rest)
    ]


def test_half_of_each_class_is_left_to_the_final_test() -> None:
    drawn = draw_samples(UNBALANCED, 1900, n_search=900, rest_is_tested=True, seed=0)
    assert counts(drawn) == [[425, 425, 50], [0, 0, 0], [475, 475, 50]]
    three_of_each = draw_samples(np.arange(300) // 3, 300, n_search=150, rest_is_tested=True, seed=0)
    assert len(three_of_each.search) == 100


@pytest.mark.parametrize(("n_search", "rest_is_tested"), [(650, True), (1644, False)])
def test_classes_of_samples_for_statistics_are_as_frequent_as_in_the_data(n_search: int, rest_is_tested: bool) -> None:
    drawn = draw_samples(UNBALANCED, 1900, n_search=n_search, n_statistics=256, rest_is_tested=rest_is_tested, seed=0)
    assert len(set(drawn.search) | set(drawn.statistics)) == n_search + 256
    searched, statistics, rest = counts(drawn)
    assert statistics == pytest.approx([121.3, 121.3, 13.5], abs=2)
    assert min(rest) >= (100 // 3 if rest_is_tested else 0)
    assert searched[2] == (50 if rest_is_tested else 100 - 13)


def test_a_class_that_is_rarer_than_one_in_the_statistics_is_in_them_by_chance() -> None:
    """Two samples of each of 100 classes among 1,000 of one class: a sixth of the data and of the statistics."""
    y = np.concatenate([np.zeros(1000, np.int64), np.arange(1, 101).repeat(2)])
    drawn = [draw_samples(y, 1200, n_search=300, n_statistics=120, rest_is_tested=True, seed=s) for s in range(9)]
    rare = [int((y[each.statistics] > 0).sum()) for each in drawn]
    assert 15 < np.mean(rare) < 25


@pytest.mark.parametrize("rest_is_tested", [False, True])
@pytest.mark.parametrize("seed", [0, 3])
def test_balanced_data_is_drawn_as_it_always_was(seed: int, rest_is_tested: bool) -> None:
    """Results in calibration/ were measured on these samples: 2,048 and 256 more of CIFAR-10's test images."""
    y = np.random.default_rng(1).permutation(np.arange(10_000) % 10)
    random = np.random.default_rng(seed)
    place = np.empty(10_000, np.int64)
    for label in range(10):
        place[random.permutation(np.flatnonzero(y == label))] = np.arange(1000)
    order = np.lexsort((random.random(10_000), place))
    drawn = draw_samples(y, 10_000, n_search=2048, n_statistics=256, rest_is_tested=rest_is_tested, seed=seed)
    assert (drawn.search == order[:2048]).all()
    assert (drawn.statistics == order[2048:2304]).all()


def test_the_draw_of_a_seed_is_fixed() -> None:
    drawn = draw_samples(np.arange(1000) % 10, 1000, n_search=100, n_statistics=3, rest_is_tested=True, seed=0)
    assert drawn.search[:5].tolist() == [820, 95, 892, 543, 619]
    assert drawn.statistics.tolist() == [857, 514, 559]


def test_unlabelled_samples_are_drawn_by_chance() -> None:
    assert sorted(draw_samples(None, 20, n_search=50, seed=0).search) == list(range(20))
    drawn = draw_samples(None, 20, n_search=5, n_statistics=4, rest_is_tested=True, seed=0)
    assert [*drawn.search, *drawn.statistics] == np.random.default_rng(0).permutation(20)[:9].tolist()


def test_no_sample_for_the_search_is_no_mistake_here() -> None:
    """The message about too few samples comes from `check_samples`."""
    assert draw_samples(np.array([0]), 1, n_search=0, rest_is_tested=True, seed=0).search.tolist() == []


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
    assert check_samples(y, np.arange(200), classes=10, where="here") == ("no sample of 1 of 10 classes: 9",)
    assert check_test_samples(y, classes=10) == ("in the final test no sample of 1 of 10 classes: 9",)
    assert check_test_samples(None, classes=10) == check_test_samples(y, classes=9) == ()


def test_classes_with_one_sample_are_said_and_refused_where_they_are_most() -> None:
    y = np.concatenate([np.arange(200) % 5, [5, 6, 7]])
    notes = check_samples(y, np.arange(203), classes=8, where="here")
    assert notes == ("only one sample of 3 of 8 classes: 5, 6, 7",)
    with pytest.raises(DataError, match=r"5 of 11 classes among the samples to search on, with 2 or more of each"):
        check_samples(np.concatenate([y, [8, 9, 10]]), np.arange(206), classes=11, where="here")


def test_copies_are_said_and_refused_where_they_leave_too_few() -> None:
    digests = [bytes([index]) for index in range(100)]
    assert repeated_samples([*digests, digests[0]], where="here") == ()
    assert repeated_samples([*digests, *digests[:9]], where="here") == (
        "9 of 109 samples to search on repeat others: intervals should be wider than they are",
    )
    with pytest.raises(DataError, match=r"here: 63 different samples to search on"):
        repeated_samples(digests[:63] * 20, where="here")


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
