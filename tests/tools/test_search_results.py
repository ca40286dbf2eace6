"""The files that the README's commands on CIFAR-10 name come out of a command, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tools import search_results
from tools.search_results import _random_assignments, main

pytest.importorskip("torch")


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Four images of the binary version of CIFAR-10 in each of its files, instead of 10,000, in `tmp_path`/cifar10."""
    monkeypatch.setattr("bitswitch_deploy.training.datasets._CIFAR_RECORDS", 4)
    records = np.random.default_rng(0).integers(0, 256, (4, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    (tmp_path / "cifar10").mkdir()
    for name in (*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"):
        (tmp_path / "cifar10" / f"{name}.bin").write_bytes(records.tobytes())
    return records


def cifar10_files(folder: Path, output: Path) -> Result:
    return CliRunner().invoke(main, ["cifar10-files", str(folder), "-o", str(output)])


def test_cifar10_becomes_two_files(tmp_path: Path, records: np.ndarray) -> None:
    output = tmp_path / "new" / "folder"
    done = cifar10_files(tmp_path / "cifar10", output)
    assert done.exit_code == 0, done.output
    train, test = output / "cifar10-train.npz", output / "cifar10-test-all.npz"
    assert done.stdout.splitlines() == [str(train), str(test)]
    assert sorted(output.iterdir()) == [test, train]
    images = records[:, 1:].reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
    for path, times in ((train, 5), (test, 1)):
        with np.load(path) as arrays:
            assert sorted(arrays) == ["x", "y"]
            np.testing.assert_array_equal(arrays["x"], np.concatenate([images] * times))
            np.testing.assert_array_equal(arrays["y"], np.tile(records[:, 0], times))
    test.write_bytes(b"mine")
    assert cifar10_files(tmp_path / "cifar10", output).exit_code == 0
    assert test.read_bytes() == b"mine"


def test_a_master_that_cannot_be_read_is_said_to_be_so_by_every_command(tmp_path: Path) -> None:
    words = ["exhaustive", "--master", str(tmp_path / "none"), "-o", str(tmp_path / "out.json")]
    done = CliRunner().invoke(main, [*words, "--cache", str(tmp_path)])
    assert done.exit_code == 3
    assert done.stderr.startswith(f"error: {tmp_path / 'none'}: ")


def test_what_is_no_cifar10_is_refused(tmp_path: Path) -> None:
    done = cifar10_files(tmp_path, tmp_path / "out")
    assert done.exit_code == 3
    assert done.stderr.startswith(f"error: {tmp_path / 'train_00.webp'}: cannot be read")
    assert not list((tmp_path / "out").iterdir())


def test_fewer_random_assignments_where_few_use_up_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even widths of seven equal layers never have an average of 3, and once one of 2."""
    monkeypatch.setattr(search_results, "MOST_DRAWS", 200_000)
    sizes = dict.fromkeys("abcdefg", 1)
    options = {"seed": 0, "randoms": 30}
    assert _random_assignments(sizes, (8, 6, 4, 2), 3, options) == []
    assert len(_random_assignments(sizes, (8, 6, 4, 2), 2, options)) == 1
    assert len(_random_assignments(sizes, (8, 6, 4, 2), 4, options)) == 30
