"""Mini-batches: seeded, augmented on raw pixels, and addressable by step, so that a resumed run sees the same ones.

Of several replicas (replicas.py) each works on its rows of the mini-batch that one process alone would see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.training.datasets import ImageSet
from bitswitch_deploy.training.image_folder import Crop, ImageFolder, Keys
from bitswitch_deploy.training.replicas import replica_count, replica_index


class Batch(NamedTuple):
    """Input float32 [n, C, H, W], labels int64 [n] and places in the training set int64 [n], on one device."""

    inputs: Tensor
    labels: Tensor
    indices: Tensor


class BatchSource(Protocol):
    """An endless sequence of mini-batches. per_epoch: in one pass over the data. samples: in the training set."""

    per_epoch: int
    samples: int

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """Mini-batches of the steps start..stop-1, counted from 0; each depends on (seed, step) alone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What is drawn for each training image.

    shift: by up to so many pixels in each direction (zeros come in); images in memory only.
    flip: left and right change places, or not.
    min_area: random crops keep at least this share of the image, resized to the input; image folders only.
    """

    shift: int = 0
    flip: bool = False
    min_area: float = 1.0

    def __post_init__(self) -> None:
        if self.shift < 0 or not 0 < self.min_area <= 1:
            raise ValueError(f"shift {self.shift} and min_area {self.min_area}: at least 0, and above 0 up to 1")


def preprocess(images: Tensor | npt.NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Raw images uint8 [n, H, W, C] to network input float32 [n, C, H, W]: (raw / divide_by - mean) / std."""
    raw = torch.as_tensor(images).permute(0, 3, 1, 2).contiguous().to(torch.float32)
    mean, std = (_channels(values, raw.device) for values in (preprocessing.mean, preprocessing.std))
    return (raw / preprocessing.divide_by - mean) / std


@cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A number for each channel, float32 [1, C, 1, 1]; made once, as sending it waits for all that a GPU has to do."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def _sent(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The array on a device, without waiting for what the device has to do before."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Order:
    """Which images make up which mini-batch: every epoch a new shuffle; images left over wait for the next one.

    Raises:
        UsageError: no samples, or replicas that cannot have equal shares.
    """

    def __init__(self, *, samples: int, batch_size: int, seed: int) -> None:
        if samples < 1 or not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(
                where="mini-batches",
                got=f"{samples} samples in batches of {batch_size}",
                allowed="1 or more of both, whole numbers",
                do="hand in a data set with samples, and a size of 1 or more",
            )
        self._samples = samples
        self._size = min(batch_size, samples)
        self._seed = seed
        self._epoch: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))
        self.per_epoch = samples // self._size
        if self._size % replica_count():
            raise UsageError(
                where="batch_size",
                got=f"{self._size} on {replica_count()} replicas",
                allowed="a multiple of the number of replicas",
                do="start another number of processes, or change the recipe",
            )

    @property
    def share(self) -> slice:
        """The rows of a mini-batch that this replica works on."""
        rows = self._size // replica_count()
        return slice(replica_index() * rows, (replica_index() + 1) * rows)

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """Images of the whole mini-batch of `step`, int64 [batch]."""
        epoch, index = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([self._seed, 0, epoch]).permutation(self._samples))
        return self._epoch[1][index * self._size : (index + 1) * self._size]


class Batches:
    """Mini-batches of images in memory, which lie on the device that trains."""

    def __init__(
        self,
        data: ImageSet,
        *,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        self._images = torch.tensor(data.images, device=device)
        self._labels = torch.tensor(data.labels, device=device)
        self._preprocessing = preprocessing
        self._augmentation = augmentation
        self._seed = seed
        self._order = Order(samples=len(data.labels), batch_size=batch_size, seed=seed)
        self.per_epoch = self._order.per_epoch
        self.samples = len(data.labels)

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        return map(self.batch, range(start, stop))

    def batch(self, step: int) -> Batch:
        """The mini-batch of `step`, counted from 0."""
        chosen = self._order.indices(step)
        moves = draw_moves(len(chosen), self._images.shape[1:3], self._augmentation, [self._seed, 1, step])
        rows = self._order.share
        indices = _sent(chosen[rows], self._images.device)
        images = move(self._images[indices], self._augmentation.shift, tuple(m[rows] for m in moves))
        return Batch(preprocess(images, self._preprocessing), self._labels[indices], indices)


class FolderBatches:
    """Mini-batches of an image folder: random crops, decoded while the step before computes where it has workers."""

    def __init__(
        self,
        data: ImageFolder,
        *,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        self._data = data
        self._augmentation = augmentation
        self._seed = seed
        self._device = device
        self._order = Order(samples=len(data.labels), batch_size=batch_size, seed=seed)
        self.per_epoch = self._order.per_epoch
        self.samples = len(data.labels)

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        for images, labels, places in self._data.load(map(self._keys, range(start, stop))):
            raw, on_device, indices = (t.to(self._device, non_blocking=True) for t in (images, labels, places))
            yield Batch(preprocess(raw, self._data.preprocessing), on_device, indices)

    def _keys(self, step: int) -> Keys:
        how = self._augmentation
        crop = Crop(seed=self._seed, epoch=step // self.per_epoch, min_area=how.min_area, flip=how.flip)
        return [(int(index), crop) for index in self._order.indices(step)[self._order.share]]


def make_batches(
    data: ImageSet | ImageFolder,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> BatchSource:
    """The mini-batches of a training split.

    Raises:
        UsageError: an augmentation that this kind of data set does not have, or replicas that cannot share a batch.
    """
    in_memory = isinstance(data, ImageSet)
    if (in_memory and augmentation.min_area != 1) or (not in_memory and augmentation.shift != 0):
        raise UsageError(
            where=f"augmentation of {data.name}",
            got="min_area on images in memory" if in_memory else "shift on an image folder",
            allowed="shift and flip for images in memory, min_area and flip for image folders",
            do="correct the recipe",
        )
    if isinstance(data, ImageFolder):
        return FolderBatches(data, augmentation=augmentation, batch_size=batch_size, seed=seed, device=device)
    return Batches(
        data,
        preprocessing=preprocessing,
        augmentation=augmentation,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )


def draw_moves(
    n: int, size: tuple[int, ...], augmentation: Augmentation, seed: list[int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each image takes its pixels from: rows [n, H] and columns [n, W] of itself padded by `shift`."""
    generator = np.random.default_rng(seed)
    height, width = size
    rows = np.arange(height) + generator.integers(0, 2 * augmentation.shift + 1, size=(n, 1))
    columns = np.arange(width) + generator.integers(0, 2 * augmentation.shift + 1, size=(n, 1))
    if augmentation.flip:
        flipped = generator.random(n) < 0.5
        columns[flipped] = columns[flipped, ::-1]
    return rows, columns


def move(images: Tensor, pad: int, moves: tuple[npt.NDArray[np.int64], ...]) -> Tensor:
    """Images uint8 [n, H, W, C], padded by zeros and read at the rows and columns of `draw_moves`; same shape."""
    rows, columns = (_sent(m, images.device) for m in moves)
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    samples = torch.arange(len(images), device=images.device)
    return padded[samples[:, None, None], rows[:, :, None], columns[:, None, :]]
