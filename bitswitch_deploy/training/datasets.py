"""Image data sets that the recipes train on, read into memory and checked: uint8 [n, H, W, C] and int64 labels [n]."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image, UnidentifiedImageError

from bitswitch_deploy.errors import DataError, UsageError

_CIFAR_MOSAIC = (25, 40)  # rows, columns of tiles in one file
_CIFAR_SIDE = 32
_CIFAR_FILES = {"train": 50, "test": 10}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Raw images uint8 [n, H, W, C], labels int64 [n], and the name and sha256 of where they came from."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The two splits of a data set."""

    train: ImageSet
    test: ImageSet


def load_dataset(name: str, folder: Path) -> Dataset:
    """Read `digits` (the folder with dataset.yaml) or `cifar10` (a folder with webp mosaics).

    Raises:
        UsageError: no data set has this name.
        DataError: a file is missing, damaged or not the one that its checksum names.
    """
    loaders = {"digits": load_npz_dataset, "cifar10": load_cifar10}
    if name not in loaders:
        raise UsageError(where="dataset", got=name, allowed=", ".join(loaders), do="use one of these names")
    return loaders[name](folder)


def load_npz_dataset(folder: Path) -> Dataset:
    """Grey images in .npz files with `x` uint8 [n, H, W] and `y` int64 [n], as `dataset.yaml` beside them lists them.

    Raises:
        DataError: a file is missing, damaged or not the one that its checksum names.
    """
    path = folder / "dataset.yaml"
    try:
        listing = yaml.safe_load(_read(path))
        name = str(listing["name"])
        splits = {split: dict(listing["splits"][split]) for split in ("train", "test")}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as exc:
        raise _bad(path, f"not a list of splits: {exc}", "name, and splits train and test of file, n, sha256") from exc
    return Dataset(train=_npz_split(folder, name, splits["train"]), test=_npz_split(folder, name, splits["test"]))


def _npz_split(folder: Path, name: str, entry: dict[str, Any]) -> ImageSet:
    path = folder / str(entry.get("file"))
    digest = hashlib.sha256(_read(path)).hexdigest()
    if digest != entry.get("sha256"):
        raise _bad(path, f"sha256 {digest}", f"sha256 {entry.get('sha256')}, as dataset.yaml says")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["x"], arrays["y"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as exc:
        raise _bad(path, f"not an .npz file with x and y: {exc}", "arrays x and y") from exc
    if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != (entry.get("n"),) or len(images) != len(labels):
        got = f"x {images.dtype} {images.shape}, y {labels.dtype} {labels.shape}"
        raise _bad(path, got, f"x uint8 [n, H, W] and y [n] with n = {entry.get('n')}")
    return ImageSet(images=images[..., None], labels=labels.astype(np.int64), name=name, sha256=digest)


def load_cifar10(folder: Path) -> Dataset:
    """CIFAR-10 from webp mosaics of 25 x 40 tiles, `train_00..49`, `test_00..09`, with `<split>_labels.npy`.

    The sha256 of a split is taken over its files in order, labels last.

    Raises:
        DataError: a file is missing or damaged.
    """
    return Dataset(train=_cifar_split(folder, "train"), test=_cifar_split(folder, "test"))


def _cifar_split(folder: Path, split: str) -> ImageSet:
    digest = hashlib.sha256()
    tiles = []
    for index in range(_CIFAR_FILES[split]):
        path = folder / f"{split}_{index:02d}.webp"
        digest.update(_read(path))
        tiles.append(_read_mosaic(path))
    path = folder / f"{split}_labels.npy"
    digest.update(_read(path))
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise _bad(path, f"not an .npy file: {exc}", "uint8 labels") from exc
    images = np.concatenate(tiles)
    if labels.shape != (len(images),) or labels.dtype != np.uint8:
        raise _bad(path, f"labels {labels.dtype} {labels.shape}", f"uint8 [{len(images)}]")
    return ImageSet(images=images, labels=labels.astype(np.int64), name="cifar10", sha256=digest.hexdigest())


def _read_mosaic(path: Path) -> npt.NDArray[np.uint8]:
    rows, columns = _CIFAR_MOSAIC
    side = _CIFAR_SIDE
    try:
        with Image.open(path) as image:
            mosaic = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as exc:
        raise _bad(path, f"not an image: {exc}", "a webp mosaic") from exc
    if mosaic.shape != (rows * side, columns * side, 3):
        raise _bad(path, f"an image of shape {mosaic.shape}", f"({rows * side}, {columns * side}, 3)")
    tiles: npt.NDArray[np.uint8] = mosaic.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(-1, side, side, 3)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise _bad(path, f"cannot be read: {exc.strerror}", "a readable file") from exc


def _bad(path: Path, got: str, allowed: str) -> DataError:
    return DataError(where=str(path), got=got, allowed=allowed, do="restore the file from where the data set came from")
