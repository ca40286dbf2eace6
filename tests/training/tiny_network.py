"""A network and data so small that a whole training run takes seconds."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.training.batches import Augmentation, Batches
from bitswitch_deploy.training.datasets import ImageSet
from bitswitch_deploy.training.prepare import PreparedNetwork, PrepareOptions, prepare, set_width

EXAMPLE = (torch.zeros(2, 1, 4, 4),)
PREPROCESSING = Preprocessing(colour="L", size=(4, 4), divide_by=16.0, mean=(0.5,), std=(0.5,))
OPTIONS = PrepareOptions(widths=(8, 4, 2))


def tiny_model(seed: int = 0) -> nn.Sequential:
    """[n, 1, 4, 4] to [n, 2]; modules 3 and 6 get quantized."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.ReLU(),
        nn.Linear(8, 2),
    )


def tiny_network(options: PrepareOptions = OPTIONS) -> PreparedNetwork:
    return prepare(tiny_model(), EXAMPLE, options, check_export=False)


def seen_network(options: PrepareOptions = OPTIONS) -> PreparedNetwork:
    """One training batch has passed at each width, so every scale is set and BatchNorm copies differ."""
    network = tiny_network(options)
    for index, bits in enumerate(options.widths):
        set_width(network.model, bits)
        network.model(torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(index)) * (index + 1))
    set_width(network.model, options.widths[0])
    return network


def halves(n: int = 64, seed: int = 0) -> ImageSet:
    """Class 0 is bright on the left, class 1 on the right."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n)
    images = generator.integers(0, 6, (n, 4, 4, 1))
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label : 2 * label + 2] += 8
    return ImageSet(images=images.astype(np.uint8), labels=labels, name="halves", sha256="ab" * 32)


def tiny_batches(device: torch.device | None = None) -> Batches:
    augmentation = Augmentation(shift=0, flip=False)
    return Batches(
        halves(), preprocessing=PREPROCESSING, augmentation=augmentation, batch_size=16, seed=0, device=device
    )
