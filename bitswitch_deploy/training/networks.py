"""Networks that the recipes train."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.training.imagenet_networks import MobileNetV2, resnet18, resnet50


def _conv3x3(channels_in: int, channels_out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)


class PadShortcut(nn.Module):
    """Option A of He et al. (2015): every second pixel, zeros for the new channels; no parameters."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.pad = (channels_out - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, h, w] to [n, out, ceil(h/2), ceil(w/2)]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class ConvShortcut(nn.Module):
    """Option B of He et al. (2015): a 1x1 convolution and BatchNorm."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, h, w] to [n, out, ceil(h/2), ceil(w/2)]."""
        return cast(Tensor, self.bn(self.conv(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; halves the image where the channels change."""

    def __init__(self, channels_in: int, channels_out: int, shortcut: type[PadShortcut] | type[ConvShortcut]) -> None:
        super().__init__()
        changes = channels_in != channels_out
        self.conv1 = _conv3x3(channels_in, channels_out, stride=2 if changes else 1)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = _conv3x3(channels_out, channels_out, stride=1)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = shortcut(channels_in, channels_out) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, h, w] to [n, out, h', w'], not negative."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """Three residual blocks on 8x8 grey images; 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv3x3(1, 16, stride=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(
            BasicBlock(16, 16, ConvShortcut), BasicBlock(16, 32, ConvShortcut), BasicBlock(32, 32, ConvShortcut)
        )
        self.linear = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 8, 8] to logits [n, 10]."""
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return cast(Tensor, self.linear(x.mean((2, 3))))


class CifarResNet20(nn.Module):
    """ResNet-20 for 32x32 RGB images (He et al., 2015), option-A shortcuts; names as in Y. Idelbayev's checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, 16, stride=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16)
        self.layer2 = self._stage(16, 32)
        self.layer3 = self._stage(32, 64)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels_out, PadShortcut)
        return nn.Sequential(first, *(BasicBlock(channels_out, channels_out, PadShortcut) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, 32, 32] to logits [n, 10]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast(Tensor, self.linear(x.mean((2, 3))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits-resnet": DigitsResNet,
    "cifar10-resnet20": CifarResNet20,
    "imagenet-resnet18": resnet18,
    "imagenet-resnet50": resnet50,
    "imagenet-mobilenetv2": MobileNetV2,
}


def build_network(name: str) -> nn.Module:
    """A float network with fresh weights, drawn from torch's global generator.

    Raises:
        UsageError: no network has this name.
    """
    if name not in NETWORKS:
        raise UsageError(where="network", got=name, allowed=", ".join(NETWORKS), do="use one of these names")
    return NETWORKS[name]()
