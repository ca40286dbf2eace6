"""Depthwise and grouped networks: MobileNetV2, one with squeeze-and-excite and Hardswish, grouped convolutions."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(channels_in: int, channels_out: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels_out)]


class InvertedResidual(nn.Module):
    """Expand, depthwise, project without activation (Sandler et al., 2018); its output is signed."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = channels_in * expand
        self.residual = stride == 1 and channels_in == channels_out
        self.conv = nn.Sequential(
            *conv_norm(channels_in, hidden, 1, 1, 1),
            nn.ReLU6(inplace=True),
            *conv_norm(hidden, hidden, 3, stride, hidden),
            nn.ReLU6(inplace=True),
            *conv_norm(hidden, channels_out, 1, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else cast(Tensor, self.conv(x))


class MobileNetV2(nn.Module):
    """A stack of inverted residuals between its stem and its head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_norm(3, 8, 3, 2, 1),
            nn.ReLU6(inplace=True),
            InvertedResidual(8, 8, 1, 1),
            InvertedResidual(8, 12, 2, 4),
            InvertedResidual(12, 12, 1, 4),
            InvertedResidual(12, 16, 1, 4),
            InvertedResidual(16, 16, 1, 4),
            *conv_norm(16, 48, 1, 1, 1),
            nn.ReLU6(inplace=True),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.classifier(F.adaptive_avg_pool2d(self.features(x), (1, 1)).flatten(1)))


class SqueezeExcite(nn.Module):
    """Channel weights from the mean of each channel; `gate` is the last function."""

    def __init__(self, channels: int, gate: type[nn.Module]) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        weights = F.silu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * cast(Tensor, self.gate(self.expand(weights)))


class ExciteNet(nn.Module):
    """MobileNetV3 and EfficientNet in small: Hardswish, SiLU, squeeze-and-excite with both gates, 5x5 depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 8, 3, 2, 1), nn.Hardswish())
        self.block1 = nn.Sequential(
            *conv_norm(8, 24, 1, 1, 1),
            nn.Hardswish(inplace=True),
            *conv_norm(24, 24, 5, 1, 24),
            nn.Hardswish(inplace=True),
            SqueezeExcite(24, nn.Hardsigmoid),
            *conv_norm(24, 8, 1, 1, 1),
        )
        self.block2 = nn.Sequential(
            *conv_norm(8, 24, 1, 1, 1),
            nn.SiLU(),
            *conv_norm(24, 24, 3, 2, 24),
            nn.SiLU(),
            SqueezeExcite(24, nn.Sigmoid),
            *conv_norm(24, 16, 1, 1, 1),
        )
        self.head = nn.Linear(16, 32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block1(x)
        x = self.block2(x)
        return cast(Tensor, self.fc(F.hardswish(self.head(x.mean((2, 3))))))


class GroupedNet(nn.Module):
    """Grouped 3x3 convolutions and the channel shuffle of ShuffleNet; LeakyReLU and PReLU keep activations signed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped1 = nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=4, bias=False)
        self.norm1 = nn.BatchNorm2d(24)
        self.grouped2 = nn.Conv2d(24, 24, 3, padding=1, groups=2)
        self.norm2 = nn.BatchNorm2d(24)
        self.prelu = nn.PReLU(24)
        self.pointwise = nn.Conv2d(12, 12, 1, groups=3)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm1(self.grouped1(F.relu(self.stem(x)))), 0.1)
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        x = self.prelu(self.norm2(self.grouped2(x)))
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, F.relu(self.pointwise(right))], dim=1)
        return cast(Tensor, self.fc(x.amax((2, 3))))
