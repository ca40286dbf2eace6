"""Networks with shortcuts: ResNet-18, one with functional layers and option-A shortcuts, a pre-activation one."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DownBlock(nn.Module):
    """The BasicBlock of ResNet-18 (He et al., 2015) with its 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return cast(Tensor, self.relu(out))


class ResNet18(nn.Module):
    """Structure and names of the usual ResNet-18, `width` channels in the first stage."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for stage in range(1, 5):
            stride = 1 if stage == 1 else 2
            blocks = [
                DownBlock(widths[stage - 1], widths[stage], stride),
                DownBlock(widths[stage], widths[stage], 1),
            ]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return cast(Tensor, self.fc(torch.flatten(self.avgpool(x), 1)))


class OptionANet(nn.Module):
    """Everything but the weights is functional, in place and by operators; shortcuts by strided slice and zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.norm_a = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, 3, padding=1, bias=True)
        self.norm_b = nn.BatchNorm2d(16)
        self.c = nn.Conv2d(16, 16, (1, 3), padding="same", dilation=(1, 2))
        self.fc = nn.Linear(16 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0.0)
        y = torch.relu(self.norm_a(self.a(x)))
        y = self.norm_b(self.b(y))
        y = torch.relu(shortcut + y)
        y = F.relu(torch.add(y, self.c(y)))
        y = F.avg_pool2d(y, y.shape[-1] // 2)
        return cast(Tensor, self.fc(y.reshape(y.size(0), -1)))


class PreActivationNet(nn.Module):
    """BatchNorm and Relu before the convolution (He et al., 2016): norms behind an Add, two of them on one tensor.

    The first norm stands behind the pinned stem and the last one before the global pooling.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(8)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2, bias=False)
        self.conv3 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.norm4 = nn.BatchNorm2d(16)
        self.conv4 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm5 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        y = F.relu(self.norm3(x))
        z = self.conv4(F.relu(self.norm4(self.conv3(y))))
        x = z + self.shortcut(y)
        return cast(Tensor, self.fc(F.relu(self.norm5(x)).mean((2, 3))))
