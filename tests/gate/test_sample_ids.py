from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.gate.sample_ids import check_sample_ids


def _npz(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((3, 1)), **arrays)
    return path


@pytest.mark.parametrize("ids", [[3, 1, 2], ["a", "b", "c"]])
def test_different_ids_pass(tmp_path: Path, ids: list[Any]) -> None:
    check_sample_ids(_npz(tmp_path, id=np.array(ids)), 3)


def test_no_ids_and_a_folder_pass(tmp_path: Path) -> None:
    check_sample_ids(_npz(tmp_path), 3)
    check_sample_ids(tmp_path, 3)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array(["a", "b", "a"]), "1 ids more than once, first a in samples 0 and 2"),
        (np.array([7, 7, 7]), "first 7 in samples 0 and 1"),
        (np.array([1, 2]), r"shape \[2\] for 3 samples"),
        (np.array([{}, 1, 2], dtype=object), "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, ids: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_sample_ids(_npz(tmp_path, id=ids), 3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_array_is_named(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "data.npz"
    save(path, x=np.zeros((3, 1)), id=np.random.default_rng(0).permutation(4000))
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("id.npy")
    content = bytearray(path.read_bytes())
    middle = info.header_offset + info.compress_size // 2
    content[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(DataError, match="the array 'id' cannot be read"):
        check_sample_ids(path, 4000)
