"""Concatenation, transposed convolutions and fully connected layers."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """BatchNorm, Relu, 3x3 convolution of everything so far (Huang et al., 2017)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class DenseNet(nn.Module):
    """Two dense blocks with a transition between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block1 = nn.Sequential(DenseLayer(8, 4), DenseLayer(12, 4))
        self.norm = nn.BatchNorm2d(16)
        self.transition = nn.Conv2d(16, 8, 1, bias=False)
        self.block2 = nn.Sequential(DenseLayer(8, 4), DenseLayer(12, 4))
        self.norm_last = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.stem(x))
        x = F.avg_pool2d(self.transition(F.relu(self.norm(x))), 2)
        x = F.relu(self.norm_last(self.block2(x)))
        return cast(Tensor, self.fc(x.mean((2, 3))))


class InceptionNet(nn.Module):
    """Four branches on one tensor, a max pooling among them, and one BatchNorm behind their concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.branch1 = nn.Conv2d(8, 6, 1)
        self.branch3 = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1))
        self.branch5 = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, (1, 5), padding=(0, 2)))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 6, 1))
        self.norm = nn.BatchNorm2d(24)
        self.merge = nn.Conv2d(24, 12, 3, stride=2, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([self.branch1(x), self.branch3(x), self.branch5(x), self.pool(x)], 1)
        x = F.relu(self.norm2(self.merge(F.relu(self.norm(x)))))
        return cast(Tensor, self.fc(F.adaptive_max_pool2d(x, 1).flatten(1)))


class Decoder(nn.Module):
    """A vector to an image [n, 3, 16, 16]: transposed convolutions, plain and in groups, and resizing."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.project = nn.Linear(12, 16 * 2 * 2)
        self.up1 = nn.ConvTranspose2d(16, 12, 4, stride=2, padding=1, groups=groups, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.up2 = nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1, output_padding=1, groups=groups)
        self.norm2 = nn.BatchNorm2d(8)
        self.smooth = nn.Conv2d(8, 8, 3, padding=1)
        self.image = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.project(z)).view(-1, 16, 2, 2)
        x = F.relu(self.norm1(self.up1(x)))
        x = F.relu(self.norm2(self.up2(x)))
        x = F.relu(self.smooth(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return torch.tanh(self.image(x))


class Mlp(nn.Module):
    """Linear layers with and without bias, BatchNorm1d behind each, one straight behind the pinned first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(20, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Linear(32, 32, bias=False),
            nn.BatchNorm1d(32),
            nn.Tanh(),
            nn.Linear(32, 24),
            nn.BatchNorm1d(24),
            nn.ELU(),
            nn.Linear(24, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layers(x))


class PinnedNormNet(nn.Module):
    """A BatchNorm straight behind the pinned stem, one behind a layer pinned by name, one on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm0 = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.pinned = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm3 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, bias=False)
        self.norm4 = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.stem(self.norm0(x))))
        x = F.relu(self.norm2(self.conv1(x)))
        x = F.relu(self.norm3(self.pinned(x)))
        x = F.relu(self.norm4(self.conv2(x)))
        return cast(Tensor, self.fc(x.mean((2, 3))))
