from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.training.datasets import check_labels, load_cifar10, load_npz_dataset, load_splits

CALIBRATION = Path(__file__).resolve().parents[2] / "calibration"


def write_npz_dataset(folder: Path, *, n: int = 2, **arrays: np.ndarray) -> Path:
    x = arrays.get("x", np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))
    y = arrays.get("y", np.array([1, 0]))
    listing: dict[str, object] = {"name": "tiny", "splits": {}}
    for split in ("train", "test"):
        path = folder / f"{split}.npz"
        np.savez(path, x=x, y=y)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        listing["splits"][split] = {"file": path.name, "n": n, "sha256": digest}  # type: ignore[index]
    (folder / "dataset.yaml").write_text(yaml.safe_dump(listing), encoding="utf-8")
    return folder


class TestNpz:
    def test_reads_what_was_written(self, tmp_path: Path) -> None:
        data = load_npz_dataset(write_npz_dataset(tmp_path))
        assert data.train.images.shape == (2, 3, 3, 1)
        assert data.train.images[1, 2, 2, 0] == 17
        assert data.test.labels.tolist() == [1, 0]
        assert data.test.name == "tiny"
        assert data.test.sha256 == hashlib.sha256((tmp_path / "test.npz").read_bytes()).hexdigest()

    def test_a_changed_file_is_refused(self, tmp_path: Path) -> None:
        write_npz_dataset(tmp_path)
        path = tmp_path / "test.npz"
        path.write_bytes(path.read_bytes() + b"x")
        with pytest.raises(DataError, match=r"test\.npz: sha256 .*\n  allowed: sha256 "):
            load_npz_dataset(tmp_path)

    @pytest.mark.parametrize(
        "arrays",
        [
            {"x": np.zeros((2, 3, 3), dtype=np.float32)},
            {"x": np.zeros((2, 9), dtype=np.uint8)},
            {"y": np.zeros(3, dtype=np.int64)},
            {"y": np.zeros(2)},
            {"y": np.array(["0", "1"])},
            {"y": np.array([True, False])},
        ],
    )
    def test_other_arrays_are_refused(self, tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
        write_npz_dataset(tmp_path, n=2, **arrays)
        with pytest.raises(DataError, match=r"allowed: x uint8 \[n, H, W\] and integers y \[n\] with n = 2"):
            load_npz_dataset(tmp_path)

    def test_a_split_without_images_is_refused(self, tmp_path: Path) -> None:
        write_npz_dataset(tmp_path, x=np.zeros((0, 3, 3), dtype=np.uint8), y=np.zeros(0, dtype=np.int64), n=0)
        with pytest.raises(DataError, match=r"with n = 0, 1 or more"):
            load_npz_dataset(tmp_path)

    def test_pickled_arrays_are_refused(self, tmp_path: Path) -> None:
        write_npz_dataset(tmp_path, y=np.array([{"a": 1}, None], dtype=object))
        with pytest.raises(DataError, match=r"not an \.npz file with x and y"):
            load_npz_dataset(tmp_path)

    @pytest.mark.parametrize("text", ["name: x\n", "[1, 2]\n", "name: x\nsplits: {train: 3}\n"])
    def test_a_bad_listing_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "dataset.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"dataset\.yaml: not a list of splits"):
            load_npz_dataset(tmp_path)

    def test_a_listing_that_is_missing_or_no_yaml_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere/dataset\.yaml: there is no such file"):
            load_npz_dataset(tmp_path / "nowhere")
        (tmp_path / "dataset.yaml").write_text("a: [\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"dataset\.yaml:2: not YAML"):
            load_npz_dataset(tmp_path)


class TestDigits:
    def test_bundled_split(self) -> None:
        data = load_npz_dataset(CALIBRATION / "digits")
        assert data.train.images.shape == (1197, 8, 8, 1)
        assert data.test.images.shape == (600, 8, 8, 1)
        assert int(max(data.train.images.max(), data.test.images.max())) == 16
        assert min(np.bincount(data.test.labels, minlength=10)) >= 58
        both = np.concatenate([data.train.images, data.test.images]).reshape(1797, -1)
        assert len(np.unique(both, axis=0)) == 1797


class TestLoad:
    digits = Preprocessing(colour="L", size=(8, 8), divide_by=16.0, mean=(0.3,), std=(0.4,))

    @pytest.mark.parametrize("root", [CALIBRATION, CALIBRATION / "digits"])
    def test_finds_the_folder_of_the_name_or_takes_the_folder_itself(self, root: Path) -> None:
        assert len(load_splits("digits", root, self.digits).test.labels) == 600

    def test_images_that_do_not_fit_the_recipe(self) -> None:
        colour = Preprocessing(colour="RGB", size=(8, 8), divide_by=255.0, mean=(0.0,) * 3, std=(1.0,) * 3)
        with pytest.raises(DataError, match=r"digits: images: \(8, 8, 1\).*\n  allowed: \(8, 8, 3\)"):
            load_splits("digits", CALIBRATION, colour)

    def test_labels_that_the_network_has_no_output_for(self) -> None:
        data = load_npz_dataset(CALIBRATION / "digits")
        check_labels(data, 10)
        with pytest.raises(DataError, match=r"digits: labels: 0\.\.9\n  allowed: 0\.\.8, as the network has 9 outputs"):
            check_labels(data, 9)

    def test_any_other_name_is_an_image_folder(self) -> None:
        with pytest.raises(DataError, match=r"calibration/train: cannot be listed"):
            load_splits("mnist", CALIBRATION, self.digits)


class TestCifar10:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """One small image stands for all mosaics of a split: tile (r, c) has red r, green c."""
        rows, columns = np.indices((25, 40))
        tiles = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
        mosaic = Image.fromarray(tiles.repeat(32, axis=0).repeat(32, axis=1))
        for split, count in (("train", 50), ("test", 10)):
            mosaic.save(tmp_path / f"{split}_00.webp", lossless=True)
            for index in range(1, count):
                (tmp_path / f"{split}_{index:02d}.webp").hardlink_to(tmp_path / f"{split}_00.webp")
            np.save(tmp_path / f"{split}_labels.npy", np.zeros(count * 1000, dtype=np.uint8))
        return tmp_path

    def test_tiles_are_read_row_by_row(self, folder: Path) -> None:
        data = load_cifar10(folder)
        assert data.train.images.shape == (50000, 32, 32, 3)
        assert data.test.images.shape == (10000, 32, 32, 3)
        assert data.test.images[41, 5, 7].tolist() == [1, 1, 0]
        assert data.test.images[1039, 31, 31].tolist() == [0, 39, 0]
        assert data.test.name == "cifar10"

    def test_labels_of_another_length_are_refused(self, folder: Path) -> None:
        np.save(folder / "test_labels.npy", np.zeros(5, dtype=np.uint8))
        with pytest.raises(DataError, match=r"test_labels.npy: labels uint8 \(5,\)"):
            load_cifar10(folder)

    def test_another_image_is_refused(self, folder: Path) -> None:
        (folder / "train_00.webp").unlink()
        Image.new("RGB", (64, 64)).save(folder / "train_00.webp")
        with pytest.raises(DataError, match=r"an image of shape \(64, 64, 3\)"):
            load_cifar10(folder)

    def test_no_image_is_refused(self, folder: Path) -> None:
        (folder / "train_00.webp").unlink()
        (folder / "train_00.webp").write_bytes(b"nothing")
        with pytest.raises(DataError, match=r"train_00\.webp: not an image"):
            load_cifar10(folder)

    def test_the_binary_version_of_its_authors(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bitswitch_deploy.training.datasets._CIFAR_RECORDS", 4)
        records = np.random.default_rng(0).integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
        data = load_cifar10(tmp_path)
        assert data.train.images.shape == (20, 32, 32, 3)
        assert data.test.labels.tolist() == records[:, 0].tolist()
        # red, green and blue plane, each row by row
        places = [1 + plane * 1024 + 5 * 32 + 7 for plane in range(3)]
        assert data.test.images[2, 5, 7].tolist() == records[2, places].tolist()
        for name, content in (("test_batch", b"short"), ("data_batch_2", b""), ("data_batch_1", bytes(3 * 3073))):
            (tmp_path / f"{name}.bin").write_bytes(content)
            with pytest.raises(
                DataError, match=rf"{name}\.bin: {len(content)} bytes\n  allowed: 4 records of 3073 bytes"
            ):
                load_cifar10(tmp_path)
