"""Data sets that the recipes train on: in memory, uint8 [n, H, W, C] and int64 labels [n], or image folders."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.training.image_folder import EVALUATION_BATCH, ImageFolder, load_image_folder
from bitswitch_deploy.yaml_file import read_yaml

_CIFAR_MOSAIC = (25, 40)  # rows, columns of tiles in one file
_CIFAR_SIDE = 32
_CIFAR_RECORDS = 10_000  # in each file of the binary version
_CIFAR_FILES = {"train": 50, "test": 10}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Raw images uint8 [n, H, W, C], labels int64 [n], and the name and sha256 of where they came from."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    name: str
    sha256: str

    def raw(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Raw images uint8 [b, H, W, C] and labels int64 [b] of the images start..stop-1."""
        for first in range(start, stop, EVALUATION_BATCH):
            rows = slice(first, min(first + EVALUATION_BATCH, stop))
            yield torch.tensor(self.images[rows]), torch.tensor(self.labels[rows])


Split = TypeVar("Split", ImageSet, ImageFolder)


@dataclass(frozen=True, kw_only=True)
class Dataset(Generic[Split]):
    """The two splits of a data set."""

    train: Split
    test: Split


AnyDataset = Dataset[ImageSet] | Dataset[ImageFolder]


def load_splits(name: str, root: Path, preprocessing: Preprocessing, *, workers: int = 0) -> AnyDataset:
    """Read a data set below `root`, in the folder of its name or in `root` itself, and check that it fits.

    Args:
        name: `digits` (a folder with dataset.yaml), `cifar10` (webp mosaics, or the binary version); any other name
            is that of an image folder (image_folder.py).
        preprocessing: what the network takes. workers: processes that decode an image folder.

    Raises:
        DataError: a file is missing, damaged, not the one that its checksum names, or of other images than
            `preprocessing` says.
    """
    folder = root / name if (root / name).is_dir() else root
    loaders = {"digits": load_npz_dataset, "cifar10": load_cifar10}
    if name not in loaders:
        train, test = load_image_folder(folder, preprocessing, workers)
        return Dataset(train=train, test=test)
    dataset = loaders[name](folder)
    shape = (*preprocessing.size, len(preprocessing.mean))
    for split in (dataset.train, dataset.test):
        if split.images.shape[1:] != shape:
            raise DataError(
                where=f"{name}: images",
                got=f"{split.images.shape[1:]}, as height, width, channels",
                allowed=f"{shape}, as preprocessing in the recipe says",
                do="correct the recipe, or give the data set that it is for",
            )
    return dataset


def check_labels(dataset: AnyDataset, classes: int) -> None:
    """See that every label names an output of the network, and in an image folder every output a label.

    The folders of some of the classes would count from 0 anew, and train outputs that stand for other classes.

    Raises:
        DataError: one does not.
    """
    for split in (dataset.train, dataset.test):
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= classes:
            raise DataError(
                where=f"{split.name}: labels",
                got=f"{low}..{high}",
                allowed=f"0..{classes - 1}, as the network has {classes} outputs",
                do="choose the network for these classes, or correct the labels",
            )
        if isinstance(split, ImageFolder) and high != classes - 1:
            raise DataError(
                where=f"{split.name}: class folders",
                got=f"{high + 1}",
                allowed=f"{classes}, as the network has {classes} outputs, which are the folders in sorted order",
                do="give the folders of all classes, or choose the network for these",
            )


def load_npz_dataset(folder: Path) -> Dataset[ImageSet]:
    """Grey images in .npz files with `x` uint8 [n, H, W] and `y` int64 [n], as `dataset.yaml` beside them lists them.

    Raises:
        DataError: a file is missing, damaged or not the one that its checksum names.
    """
    path = folder / "dataset.yaml"
    try:
        listing = cast("dict[str, Any]", read_yaml(path, source=str(path), refuse=_bad))
        name = str(listing["name"])
        splits = {split: dict(listing["splits"][split]) for split in ("train", "test")}
    except (KeyError, TypeError, ValueError) as exc:
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
    fits = images.dtype == np.uint8 and images.ndim == 3 and labels.dtype.kind in "iu"
    if not fits or not len(labels) or labels.shape != (entry.get("n"),) or len(images) != len(labels):
        got = f"x {images.dtype} {images.shape}, y {labels.dtype} {labels.shape}"
        raise _bad(path, got, f"x uint8 [n, H, W] and integers y [n] with n = {entry.get('n')}, 1 or more")
    return ImageSet(images=images[..., None], labels=labels.astype(np.int64), name=name, sha256=digest)


def load_cifar10(folder: Path) -> Dataset[ImageSet]:
    """CIFAR-10 as its authors publish it, binary version (data_batch_1..5.bin, test_batch.bin), or from webp mosaics.

    A mosaic has 25 x 40 tiles: `train_00..49`, `test_00..09`, with `<split>_labels.npy`. The sha256 of a split is taken
    over its files in order, labels last.

    Raises:
        DataError: a file is missing or damaged.
    """
    if (folder / "test_batch.bin").is_file():
        train = _cifar_binary([folder / f"data_batch_{index}.bin" for index in range(1, 6)])
        return Dataset(train=train, test=_cifar_binary([folder / "test_batch.bin"]))
    return Dataset(train=_cifar_split(folder, "train"), test=_cifar_split(folder, "test"))


def _cifar_binary(paths: list[Path]) -> ImageSet:
    """Records of one byte for the label and the red, green and blue plane of the image."""
    contents = [_read(path) for path in paths]
    record = 1 + 3 * _CIFAR_SIDE**2
    for path, each in zip(paths, contents):
        if len(each) != _CIFAR_RECORDS * record:
            raise _bad(path, f"{len(each)} bytes", f"{_CIFAR_RECORDS} records of {record} bytes")
    content = b"".join(contents)
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    planes = rows[:, 1:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    return ImageSet(
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=rows[:, 0].astype(np.int64),
        name="cifar10",
        sha256=hashlib.sha256(content).hexdigest(),
    )


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


def _bad(path: Path | str, got: str, allowed: str) -> DataError:
    return DataError(where=str(path), got=got, allowed=allowed, do="restore the file from where the data set came from")
