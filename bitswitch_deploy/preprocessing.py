"""What a network was trained to be fed: from raw pixels to its input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import DataError

_CHANNELS = {"L": 1, "RGB": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """From raw pixels [H, W, C] to the network input [C, H, W]: (raw / divide_by - mean) / std, per channel.

    colour: Pillow mode that an image file is converted to.
    size: (height, width) that an image file is resized to.
    centre_share: how much of the largest centred part of the image in the shape of `size` is kept and resized, along
        each side; 0.875 is the usual 224 of 256. None resizes the whole image, whatever its shape.
    """

    colour: Literal["L", "RGB"]
    size: tuple[int, int]
    divide_by: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    centre_share: float | None = None

    @property
    def channels(self) -> int:
        """How many each pixel has."""
        return _CHANNELS[self.colour]

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, upper, right and lower edge of the part of an image, in its pixels, that is resized to `size`."""
        if self.centre_share is None:
            return 0.0, 0.0, float(width), float(height)
        rows, columns = self.size
        scale = self.centre_share * min(width / columns, height / rows)
        # a share of 1 comes to a hair more than the image, in some of its sizes
        left, upper = max(0.0, (width - scale * columns) / 2), max(0.0, (height - scale * rows) / 2)
        return left, upper, min(left + scale * columns, float(width)), min(upper + scale * rows, float(height))

    def apply(self, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Network inputs, float32 [n, C, H, W], of raw pixels, uint8 [n, H, W, C], that have the colour and the size.

        The order of the float32 operations is that of torchvision's ToTensor and Normalize.

        Raises:
            DataError: another type or shape.
        """
        wanted = (*self.size, self.channels)
        if not isinstance(raw, np.ndarray):
            do = "convert with numpy.asarray"
            raise DataError(where="raw pixels", got=type(raw).__name__, allowed="a NumPy array of uint8", do=do)
        if raw.dtype != np.uint8 or raw.ndim != 4 or raw.shape[1:] != wanted:
            raise DataError(
                where="raw pixels",
                got=f"{raw.dtype} {list(raw.shape)}",
                allowed=f"uint8 [n, {', '.join(map(str, wanted))}], which is {self.colour}",
                do="convert and resize the images; one image is raw[None]",
            )
        x: npt.NDArray[np.float32] = raw.transpose(0, 3, 1, 2).astype(np.float32, order="C")
        x /= np.float32(self.divide_by)
        x -= np.asarray(self.mean, dtype=np.float32)[:, None, None]
        x /= np.asarray(self.std, dtype=np.float32)[:, None, None]
        return x

    def faults(self) -> Iterator[tuple[str, str, str]]:
        """What makes no sense in it: (field or nothing, got, allowed)."""
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            got = f"{len(self.mean)} means and {len(self.std)} standard deviations"
            yield "", got, f"{self.channels} of each for colour {self.colour}"
            return
        if min(self.size) < 1:
            yield ": size", str(self.size), "height and width of at least 1"
        if self.centre_share is not None and not 0 < self.centre_share <= 1:
            yield ": centre_share", str(self.centre_share), "above 0, at most 1, or null"
        with np.errstate(all="ignore"):  # as `apply` computes
            divide_by, mean, std = (np.array(each, np.float32) for each in (self.divide_by, self.mean, self.std))
            ends = (np.array([[0], [255]], np.float32) / divide_by - mean) / std
        divisors = np.append(std, divide_by)
        if not (np.isfinite(divisors) & (divisors > 0)).all():
            yield "", f"divide_by {self.divide_by}, std {self.std}", "positive numbers in float32"
        elif not np.isfinite(ends).all():
            got = f"divide_by {self.divide_by}, mean {self.mean}, std {self.std}"
            yield "", got, "numbers that give finite inputs in float32"
