"""Mean average precision by the rules of COCO, of images that have weights: a copy of an image is a weight of 2.

Of one class, with its detections best first, w the weight of each one's image, h whether it found an object, and N the
weights of the images summed over the objects:

    recall_j = (sum of w h up to j) / N          precision_j = (sum of w h up to j) / (sum of w up to j)

Average precision is the mean over the recalls 0, 0.01 ... 1 of the best precision at this one or a higher one, 0 where
it is not reached, and over the overlaps that decide about h. Both are at their best where an object is found, so that
no other detection is looked at. Of weights that are 1, recall and precision are rounded as pycocotools rounds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]

_RECALLS = np.linspace(0.0, 1.0, 101)
# Sums of the same weights in another order differ by less: all objects were found.
_ALL = 1 - 1e-9
# Detections times data sets that are worked on at a time.
_BLOCK_CELLS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """Detections of one class in all images, best first.

    images: whose each is, [m]. hits: overlaps at which it found an object, [m, overlaps].
    """

    images: npt.NDArray[np.int64]
    hits: Bits

    def is_same(self, other: Ranked) -> bool:
        """Whether no weights tell the two apart."""
        return np.array_equal(self.images, other.images) and np.array_equal(self.hits, other.hits)

    def precision(self, weights: Floats, objects: Floats) -> Floats:
        """Average precision, [b]. weights: of the images in each data set, [n, b]; objects: N of each, [b]."""
        total = np.zeros(weights.shape[1])
        mine = weights[self.images]
        seen = np.cumsum(mine, axis=0) + np.spacing(1)
        for hits in self.hits.T:
            found = np.cumsum(mine[hits], axis=0)
            best = np.maximum.accumulate((found / seen[hits])[::-1], axis=0)[::-1]
            recall = found / np.where(objects > 0, objects, 1.0)
            recall[recall > _ALL] = 1.0
            reached = np.searchsorted(_RECALLS, recall, side="right")
            total += (best * np.diff(reached, axis=0, prepend=0)).sum(axis=0)
        return np.asarray(total / (self.hits.shape[1] * len(_RECALLS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanPrecision:
    """The mean over classes. ranked: detections of each class; objects: in each image, [n, classes]."""

    ranked: tuple[Ranked, ...]
    objects: Floats

    def differing(self, other: MeanPrecision) -> list[int]:
        """The classes of which some weights may tell the two apart."""
        pairs = zip(self.ranked, other.ranked)
        return [place for place, (mine, theirs) in enumerate(pairs) if not mine.is_same(theirs)]

    def of(self, weights: Floats, classes: Sequence[int] | None = None) -> Floats:
        """In percent, of images that count weights[b, n], [b]; classes without an object are left out of the mean.

        classes: whose part in the mean is wanted; that of all where they are left out.
        """
        wanted = range(len(self.ranked)) if classes is None else classes
        longest = max((len(self.ranked[place].images) for place in wanted), default=0)
        size = max(1, _BLOCK_CELLS // max(1, longest))
        values = np.zeros(len(weights))
        for start in range(0, len(weights), size):
            values[start : start + size] = self._of(weights[start : start + size], wanted)
        return values

    def _of(self, weights: Floats, classes: Sequence[int]) -> Floats:
        objects, by_image = weights @ self.objects, np.ascontiguousarray(weights.T)
        total = np.zeros(len(weights))
        for place in classes:
            total += self.ranked[place].precision(by_image, objects[:, place])
        return np.asarray(100.0 * total / np.maximum((objects > 0).sum(axis=1), 1))


def rank(images: npt.NDArray[np.int64], scores: Floats, hits: Bits) -> Ranked:
    """Detections of one class, [m], [m] and [m, overlaps], in order of their scores, up to the last that found one."""
    order = np.argsort(-scores, kind="mergesort")
    order = order[: int(np.flatnonzero(hits[order].any(axis=1)).max(initial=-1)) + 1]
    return Ranked(images=images[order], hits=hits[order])
