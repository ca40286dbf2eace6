"""A data set of image files, read while training: root/train/<class>/*.jpg and root/val/<class>/*.jpg.

The class folders in sorted order are the classes 0, 1, 2 ...; both splits have the same ones, as many as the network
has outputs. Training images are random crops of random shape, flipped or not (Szegedy et al., 2015: area from
`min_area` to 1, sides 3:4 to 4:3), drawn from (seed, epoch, image) alone. Evaluation takes what `preprocessing` says of
each image: all of it, or the centre.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.preprocessing import Preprocessing

EVALUATION_BATCH = 256

_LONGEST = 4 / 3  # of two sides of a random crop
_ATTEMPTS = 10

_Box = tuple[float, float, float, float]  # left, upper, right, lower


class Crop(NamedTuple):
    """How a training image is drawn: from (seed, epoch, image), keeping `min_area` of it or more, perhaps flipped."""

    seed: int
    epoch: int
    min_area: float
    flip: bool


Keys = list[tuple[int, Crop | None]]  # place of an image and how it is cropped; None: the centre


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """One split: files [n], labels int64 [n], how they are read, and the name and sha256 of the data set.

    sha256 of `val`: over "centre" where that is taken, and class, size and bytes of each file; of `train`: without the
        bytes.
    workers: processes that decode; 0 decodes in this one.
    """

    files: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    name: str
    sha256: str
    preprocessing: Preprocessing
    workers: int

    def raw(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Centre crops uint8 [b, H, W, C] and labels int64 [b] of the images start..stop-1."""
        starts = range(start, stop, EVALUATION_BATCH)
        keys: Iterator[Keys] = ([(i, None) for i in range(i, min(i + EVALUATION_BATCH, stop))] for i in starts)
        return ((images, labels) for images, labels, _ in self.load(keys))

    def load(self, keys: Iterable[Keys]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images uint8 [b, H, W, C], labels [b] and places [b] for each list of keys.

        Raises:
            DataError: an image cannot be decoded.
        """
        loader: DataLoader[Any] = DataLoader(
            _Items(self),
            batch_sampler=keys,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="spawn" if self.workers else None,
        )
        for loaded in loader:
            if isinstance(loaded, str):
                raise _bad(loaded.partition(": ")[0], loaded.partition(": ")[2], "an image that Pillow reads")
            yield loaded


def load_image_folder(root: Path, preprocessing: Preprocessing, workers: int = 0) -> tuple[ImageFolder, ImageFolder]:
    """The splits `train` and `val` of the folder `root`.

    Raises:
        DataError: a split is missing, a class is empty, the splits have different classes, a file cannot be read.
    """
    classes = [_class_names(root / split) for split in ("train", "val")]
    if classes[0] != classes[1]:
        different = sorted(set(classes[0]) ^ set(classes[1]))
        raise _bad(str(root), f"class folders in one split only: {', '.join(different[:5])}", "the same ones in both")
    train, val = (_split(root / split, classes[0], preprocessing, workers) for split in ("train", "val"))
    return train, val


def _class_names(folder: Path) -> list[str]:
    try:
        names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as exc:
        raise _bad(str(folder), f"cannot be listed: {exc.strerror}", "a folder with one folder for each class") from exc
    if not names:
        raise _bad(str(folder), "no class folders", "a folder with one folder for each class")
    return names


def _split(folder: Path, classes: list[str], preprocessing: Preprocessing, workers: int) -> ImageFolder:
    takes_centre = folder.name == "val" and preprocessing.centre_share is not None
    digest = hashlib.sha256(b"centre\n" if takes_centre else b"")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).iterdir() if p.is_file() and not p.name.startswith("."))
        if not found:
            raise _bad(str(folder / name), "no images", "image files of one class")
        for path in found:
            digest.update(f"{label} {path.stat().st_size}\n".encode())
            if folder.name == "val":
                digest.update(path.read_bytes())
        files += found
        labels += [label] * len(found)
    return ImageFolder(
        files=tuple(files),
        labels=np.array(labels, dtype=np.int64),
        name=folder.parent.resolve().name,
        sha256=digest.hexdigest(),
        preprocessing=preprocessing,
        workers=workers,
    )


class _Items(TorchDataset[Any]):
    """(image uint8 [H, W, C], label, place) for a (place, crop) key; a text `file: reason` where that fails.

    A worker cannot hand over an exception of ours: torch would make it again from its text alone.
    """

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder

    def __getitem__(self, key: tuple[int, Crop | None]) -> tuple[npt.NDArray[np.uint8], int, int] | str:
        place, crop = key
        path, how = self._folder.files[place], self._folder.preprocessing
        try:
            with Image.open(path) as image:
                pixels = _evaluated(image, how) if crop is None else _random_crop(image, how, crop, place)
        except (OSError, ValueError, SyntaxError, RuntimeError, MemoryError, Image.DecompressionBombError) as exc:
            return f"{path}: not readable as an image ({exc})"
        return pixels, int(self._folder.labels[place]), place


def _collate(items: list[Any]) -> tuple[Tensor, Tensor, Tensor] | str:
    broken = [item for item in items if isinstance(item, str)]
    if broken:
        return str(broken[0])
    images, labels, places = zip(*items)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels), torch.tensor(places)


def _pixels(image: Image.Image, how: Preprocessing, box: _Box) -> npt.NDArray[np.uint8]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ValueError(f"mode {image.mode}, which Pillow clips to 8 bits; write it with 8 bits a channel")
    height, width = how.size
    resized = image.convert(how.colour).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).reshape(height, width, -1)


def _evaluated(image: Image.Image, how: Preprocessing) -> npt.NDArray[np.uint8]:
    return _pixels(image, how, how.box(image.width, image.height))


def _random_crop(image: Image.Image, how: Preprocessing, crop: Crop, place: int) -> npt.NDArray[np.uint8]:
    generator = np.random.default_rng([crop.seed, 1, crop.epoch, place])
    pixels = _pixels(image, how, _random_box(image.width, image.height, crop.min_area, generator))
    return pixels[:, ::-1] if crop.flip and generator.random() < 0.5 else pixels


def _random_box(width: int, height: int, min_area: float, generator: np.random.Generator) -> _Box:
    """A box of random area and shape inside the image; the whole image where none is found."""
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(min_area, 1.0)
        ratio = math.exp(generator.uniform(-math.log(_LONGEST), math.log(_LONGEST)))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, upper = generator.uniform(0, width - w), generator.uniform(0, height - h)
            return left, upper, left + w, upper + h
    return 0, 0, width, height


def _bad(where: str, got: str, allowed: str) -> DataError:
    return DataError(where=where, got=got, allowed=allowed, do="arrange the images as root/train/CLASS, root/val/CLASS")
