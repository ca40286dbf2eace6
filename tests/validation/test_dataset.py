from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.errors import DataError, UsageError
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.validation.dataset import Dataset, DatasetSummary, load_dataset

GREY = Preprocessing(colour="L", size=(1, 2), divide_by=10.0, mean=(1.0,), std=(2.0,))
GREY_INPUT = ValueSpec(name="x", dtype="float32", shape=("n", 1, 1, 2))


def _load(path: Path, *, input_spec: ValueSpec = GREY_INPUT, limit: int | None = None) -> Dataset:
    return load_dataset(path, preprocessing=GREY, input_spec=input_spec, classes=3, limit=limit)


def test_an_npz_file_is_named_by_its_stem(grey_npz: Path) -> None:
    dataset = _load(grey_npz)
    assert (dataset.name, dataset.n, dataset.fixed_batch) == ("grey", 4, None)
    assert dataset.summary == DatasetSummary(
        name="grey", sha256=dataset.sha256, n=4, labelled=True, file_sha256=dataset.file_sha256, class_names=()
    )


def test_a_folder_is_named_by_itself_and_names_its_classes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "ape", "bee"):
        (tmp_path / "photos.v2" / name).mkdir(parents=True)
        image.fromarray(np.zeros((1, 2), np.uint8)).save(tmp_path / "photos.v2" / name / "0.png")
    dataset = _load(tmp_path / "photos.v2")
    assert (dataset.name, dataset.n, dataset.class_names) == ("photos.v2", 3, ("ape", "bee", "cat"))
    assert dataset.summary.file_sha256 is None


def test_batches_hold_every_sample_once_in_order(grey_npz: Path) -> None:
    batches = list(_load(grey_npz).batches(3))
    assert [(len(x), [] if y is None else y.tolist()) for x, y in batches] == [(3, [0, 1, 2]), (1, [0])]
    assert np.concatenate([x for x, _ in batches])[:, 0, 0, 0].tolist() == [-0.5, 0.0, 0.5, 1.0]


def test_batches_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", x=np.zeros((2, 1, 2), np.uint8))
    dataset = _load(tmp_path / "bare.npz")
    assert [y for _, y in dataset.batches(1)] == [None, None]
    assert dataset.summary.labelled is False


def test_a_batch_has_a_sample(grey_npz: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        next(_load(grey_npz).batches(0))


def test_the_network_may_fix_the_batch(grey_npz: Path) -> None:
    assert _load(grey_npz, input_spec=replace(GREY_INPUT, shape=(2, 1, 1, 2))).fixed_batch == 2


def test_the_limit_is_passed_on(grey_npz: Path) -> None:
    assert _load(grey_npz, limit=3).n == 3
    with pytest.raises(UsageError, match="number of samples: 0"):
        _load(grey_npz, limit=0)


@pytest.mark.parametrize(("name", "message"), [("no.npz", "does not exist"), ("text.csv", "not an .npz file")])
def test_other_paths_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "text.csv").write_text("1,2")
    with pytest.raises(DataError, match=rf"{name}: {message}\n  allowed: an .npz file with x and y, or a folder"):
        _load(tmp_path / name)


def test_samples_are_known_by_content_and_by_file(grey_npz: Path) -> None:
    whole, part = _load(grey_npz).summary, _load(grey_npz, limit=2).summary
    assert whole.file_sha256 is not None
    assert whole.is_known_as(whole.sha256)
    assert whole.is_known_as(whole.file_sha256)
    assert not part.is_known_as(whole.sha256)
    assert not part.is_known_as(whole.file_sha256)
