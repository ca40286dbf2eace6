"""ResNet-18, ResNet-50 and MobileNetV2 for 224x224 RGB images, 1000 classes; parameter names as in torchvision's
checkpoints.

Sources: He et al. (2015), with the stride in the 3x3 convolution as torchvision has it; Sandler et al. (2018).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

_RESNET_WIDTHS = (64, 128, 256, 512)
# expansion, channels, blocks, stride of the first block
_MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)


class _Residual(nn.Module, ABC):
    """relu(body(x) + shortcut(x)); convolutions conv1, conv2, ... with bn1, bn2, ... behind them."""

    expansion = 1
    downsample: nn.Module | None

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.downsample = None
        out = channels * self.expansion
        if stride != 1 or channels_in != out:
            self.downsample = nn.Sequential(_conv(channels_in, out, 1, stride=stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, h, w] to [n, out, h', w'], not negative."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.body(x) + shortcut)

    @abstractmethod
    def body(self, x: Tensor) -> Tensor:
        """[n, in, h, w] to [n, out, h', w']."""


class BasicBlock(_Residual):
    """Two 3x3 convolutions."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__(channels_in, channels, stride)
        self.conv1, self.bn1 = _conv(channels_in, channels, 3, stride=stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3), nn.BatchNorm2d(channels)

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.bn2(self.conv2(x)))


class Bottleneck(_Residual):
    """1x1, 3x3 and 1x1 convolution, the last to four times the channels."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__(channels_in, channels, stride)
        self.conv1, self.bn1 = _conv(channels_in, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3, stride=stride), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = _conv(channels, channels * 4, 1), nn.BatchNorm2d(channels * 4)

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return cast(Tensor, self.bn3(self.conv3(x)))


class ResNet(nn.Module):
    """Four stages of residual blocks."""

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for index, (width, count) in enumerate(zip(_RESNET_WIDTHS, blocks, strict=True)):
            stage = nn.Sequential()
            for number in range(count):
                stage.append(block(channels, width, stride=2 if number == 0 and index > 0 else 1))
                channels = width * block.expansion
            self.add_module(f"layer{index + 1}", stage)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] to logits [n, 1000]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
        return cast(Tensor, self.fc(x.mean((2, 3))))


class _ConvNormActivation(nn.Sequential):
    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        conv = _conv(channels_in, channels_out, kernel, stride=stride, groups=groups)
        super().__init__(conv, nn.BatchNorm2d(channels_out), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1; a shortcut where the shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.conv = nn.Sequential() if expansion == 1 else nn.Sequential(_ConvNormActivation(channels_in, hidden, 1))
        self.conv.append(_ConvNormActivation(hidden, hidden, 3, stride=stride, groups=hidden))
        self.conv.append(_conv(hidden, channels_out, 1))
        self.conv.append(nn.BatchNorm2d(channels_out))
        self.has_shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, h, w] to [n, out, h', w']."""
        y = cast(Tensor, self.conv(x))
        return x + y if self.has_shortcut else y


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_ConvNormActivation(3, 32, 3, stride=2))
        channels = 32
        for expansion, out, blocks, first_stride in _MOBILENET_STAGES:
            for number in range(blocks):
                stride = first_stride if number == 0 else 1
                self.features.append(InvertedResidual(channels, out, stride=stride, expansion=expansion))
                channels = out
        self.features.append(_ConvNormActivation(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] to logits [n, 1000]."""
        return cast(Tensor, self.classifier(self.features(x).mean((2, 3))))


def resnet18() -> ResNet:
    """ResNet-18."""
    return ResNet(BasicBlock, (2, 2, 2, 2))


def resnet50() -> ResNet:
    """ResNet-50."""
    return ResNet(Bottleneck, (3, 4, 6, 3))
