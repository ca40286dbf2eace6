"""Mini-batches: seeded, augmented on raw pixels, and addressable by step, so that a resumed run sees the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bitswitch_deploy.master.spec import Preprocessing
from bitswitch_deploy.training.datasets import ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Random shift by up to `shift` pixels (zeros come in) and, if `flip`, a random left-right flip."""

    shift: int
    flip: bool


def preprocess(images: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Raw images [n, H, W, C] to network input float32 [n, C, H, W]: (raw / divide_by - mean) / std."""
    raw = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(torch.float32)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (raw / preprocessing.divide_by - mean) / std


class Batches:
    """An endless sequence of shuffled mini-batches of a training set; batch i depends on (seed, i) alone."""

    def __init__(
        self,
        data: ImageSet,
        *,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
    ) -> None:
        self._data = data
        self._preprocessing = preprocessing
        self._augmentation = augmentation
        self._size = min(batch_size, len(data.labels))
        self._seed = seed
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    @property
    def per_epoch(self) -> int:
        """Mini-batches in one pass over the data; images that do not fill the last one wait for the next shuffle."""
        return len(self._data.labels) // self._size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Input float32 [batch, C, H, W] and labels int64 [batch] of the step, counted from 0."""
        epoch, index = divmod(step, self.per_epoch)
        if self._order[0] != epoch:
            order = np.random.default_rng([self._seed, 0, epoch]).permutation(len(self._data.labels))
            self._order = (epoch, order)
        chosen = self._order[1][index * self._size : (index + 1) * self._size]
        generator = np.random.default_rng([self._seed, 1, step])
        images = augment(self._data.images[chosen], self._augmentation, generator)
        return preprocess(images, self._preprocessing), torch.from_numpy(self._data.labels[chosen])


def augment(
    images: npt.NDArray[np.uint8], augmentation: Augmentation, generator: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Shifted and flipped images, [n, H, W, C] as before; each image draws its own."""
    n, height, width, _ = images.shape
    pad = augmentation.shift
    rows = np.arange(height) + generator.integers(0, 2 * pad + 1, size=(n, 1))
    columns = np.arange(width) + generator.integers(0, 2 * pad + 1, size=(n, 1))
    if augmentation.flip:
        flipped = generator.random(n) < 0.5
        columns[flipped] = columns[flipped, ::-1]
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    moved: npt.NDArray[np.uint8] = padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved
