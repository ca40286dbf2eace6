from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def make_digits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_digits", ROOT / "tools" / "make_digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_split_is_stratified_complete_and_fixed(make_digits: ModuleType) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 1797)
    train, test = make_digits.stratified_split(labels)
    assert len(test) == 600
    assert sorted([*train, *test]) == list(range(1797))
    shares = np.bincount(labels[test], minlength=10) - np.bincount(labels, minlength=10) * 600 / 1797
    assert np.abs(shares).max() < 1
    again_train, again_test = make_digits.stratified_split(labels)
    np.testing.assert_array_equal(train, again_train)
    np.testing.assert_array_equal(test, again_test)


def test_files_do_not_depend_on_the_clock(make_digits: ModuleType, tmp_path: Path) -> None:
    arrays = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "y": np.array([1, 2])}
    digest = make_digits.write_npz(tmp_path / "a.npz", arrays)
    # fixed bytes: an archive with no date, no compression, no trace of the machine
    assert digest == "e1381e689b8998cdc60a635c43cca8005f1ad86083d9c169b463d184ac3e0f0a"
    with np.load(tmp_path / "a.npz") as read:
        np.testing.assert_array_equal(read["x"], arrays["x"])
        np.testing.assert_array_equal(read["y"], arrays["y"])


def test_bundled_files_are_written_as_the_tool_writes_them(make_digits: ModuleType, tmp_path: Path) -> None:
    source = ROOT / "calibration" / "digits" / "test.npz"
    with np.load(source) as arrays:
        make_digits.write_npz(tmp_path / "test.npz", {"x": arrays["x"], "y": arrays["y"]})
    assert (tmp_path / "test.npz").read_bytes() == source.read_bytes()
