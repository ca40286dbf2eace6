"""Architectures that the benchmarks need beside those of the recipes: a transformer, and networks whose activations are
no ReLU and whose paths meet in a Concat.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn


class Stage(NamedTuple):
    """One block of MobileNetV3; `hard_swish`: its activation, else ReLU."""

    kernel: int
    hidden: int
    channels: int
    excite: bool
    hard_swish: bool
    stride: int


_MOBILENET_V3_SMALL = (
    Stage(3, 16, 16, True, False, 2),
    Stage(3, 72, 24, False, False, 2),
    Stage(3, 88, 24, False, False, 1),
    Stage(5, 96, 40, True, True, 2),
    Stage(5, 240, 40, True, True, 1),
    Stage(5, 240, 40, True, True, 1),
    Stage(5, 120, 48, True, True, 1),
    Stage(5, 144, 48, True, True, 1),
    Stage(5, 288, 96, True, True, 2),
    Stage(5, 576, 96, True, True, 1),
    Stage(5, 576, 96, True, True, 1),
)


class Block(nn.Module):
    """Attention and a perceptron of a ViT."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[n, tokens, dim] to the same."""
        n, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, dim)
        x = x + self.proj(mixed)
        return cast(Tensor, x + self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class VitTiny(nn.Module):
    """ViT-Tiny/16 (Touvron et al., 2020): 12 blocks of 192 channels, 3 heads, 1000 classes."""

    def __init__(self, dim: int = 192, depth: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 16, stride=16)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 197, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, 224, 224] to logits [n, 1000]."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return cast(Tensor, self.head(self.norm(self.blocks(x))[:, 0]))


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm and an activation of its own."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, activation: nn.Module, *, stride: int = 1, groups: int = 1
    ) -> None:
        conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(channels), activation)


class SqueezeExcitation(nn.Module):
    """x times a gate in 0..1 for each channel, by its mean (Hu et al., 2018), through a quarter of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] to the same."""
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class MobileBlock(nn.Module):
    """Expand by 1x1, filter each channel, weigh the channels, project by 1x1; a shortcut where the shapes agree."""

    def __init__(self, channels_in: int, stage: Stage) -> None:
        super().__init__()
        activation = nn.Hardswish if stage.hard_swish else nn.ReLU
        hidden, channels, stride = stage.hidden, stage.channels, stage.stride
        self.body = nn.Sequential()
        if hidden != channels_in:
            self.body.append(ConvNorm(channels_in, hidden, 1, activation()))
        self.body.append(ConvNorm(hidden, hidden, stage.kernel, activation(), stride=stride, groups=hidden))
        if stage.excite:
            self.body.append(SqueezeExcitation(hidden))
        self.body.append(ConvNorm(hidden, channels, 1, nn.Identity()))
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, h, w] to [n, channels, h', w']."""
        y = self.body(x)
        return cast(Tensor, x + y if self.residual else y)


class MobileNetV3Small(nn.Module):
    """MobileNetV3-Small (Howard et al., 2019), 1000 classes: hard swish, squeeze and excitation, 5x5 depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(ConvNorm(3, 16, 3, nn.Hardswish(), stride=2))
        channels = 16
        for stage in _MOBILENET_V3_SMALL:
            self.features.append(MobileBlock(channels, stage))
            channels = stage.channels
        self.features.append(ConvNorm(channels, 576, 1, nn.Hardswish()))
        self.classifier = nn.Sequential(nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, 1000))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] to logits [n, 1000]."""
        return cast(Tensor, self.classifier(self.features(x).mean((2, 3))))


def silu_conv(channels_in: int, channels: int, kernel: int = 1, stride: int = 1) -> ConvNorm:
    """Convolution, BatchNorm and SiLU."""
    return ConvNorm(channels_in, channels, kernel, nn.SiLU(), stride=stride)


class CrossStage(nn.Module):
    """Half of the channels through a chain of bottlenecks; all that it passes by is concatenated (C2f of YOLOv8)."""

    def __init__(self, channels_in: int, channels: int, count: int, *, residual: bool) -> None:
        super().__init__()
        half = channels // 2
        self.split, self.join = silu_conv(channels_in, channels), silu_conv((2 + count) * half, channels)
        self.bottlenecks = nn.ModuleList(
            nn.Sequential(silu_conv(half, half, 3), silu_conv(half, half, 3)) for _ in range(count)
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, h, w] to [n, channels, h, w]."""
        parts = list(self.split(x).chunk(2, 1))
        for bottleneck in self.bottlenecks:
            y = bottleneck(parts[-1])
            parts.append(parts[-1] + y if self.residual else y)
        return cast(Tensor, self.join(torch.cat(parts, 1)))


class PooledPyramid(nn.Module):
    """Three max-poolings of 5x5 in a row, all concatenated (SPPF of YOLOv5 and YOLOv8)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.join = silu_conv(channels, channels // 2), silu_conv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] to the same."""
        parts = [self.reduce(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return cast(Tensor, self.join(torch.cat(parts, 1)))


class YoloNano(nn.Module):
    """The detector YOLOv8n (Jocher et al., 2023) up to its raw boxes and classes: SiLU, Concat, nearest upsampling."""

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.stem = nn.Sequential(silu_conv(3, 16, 3, 2), silu_conv(16, 32, 3, 2), CrossStage(32, 32, 1, residual=True))
        self.p3 = nn.Sequential(silu_conv(32, 64, 3, 2), CrossStage(64, 64, 2, residual=True))
        self.p4 = nn.Sequential(silu_conv(64, 128, 3, 2), CrossStage(128, 128, 2, residual=True))
        self.p5 = nn.Sequential(silu_conv(128, 256, 3, 2), CrossStage(256, 256, 1, residual=True), PooledPyramid(256))
        self.up4, self.up3 = CrossStage(384, 128, 1, residual=False), CrossStage(192, 64, 1, residual=False)
        self.down4, self.down5 = silu_conv(64, 64, 3, 2), silu_conv(128, 128, 3, 2)
        self.out4, self.out5 = CrossStage(192, 128, 1, residual=False), CrossStage(384, 256, 1, residual=False)
        self.boxes = nn.ModuleList(self._head(channels, 64, 64) for channels in (64, 128, 256))
        self.classes = nn.ModuleList(self._head(channels, 80, classes) for channels in (64, 128, 256))

    @staticmethod
    def _head(channels: int, hidden: int, outputs: int) -> nn.Sequential:
        first, second = silu_conv(channels, hidden, 3), silu_conv(hidden, hidden, 3)
        return nn.Sequential(first, second, nn.Conv2d(hidden, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, h, w], h and w multiples of 32, to [n, 64 + classes, h * w * 21 / 1024]."""
        c3 = self.p3(self.stem(x))
        c4 = self.p4(c3)
        c5 = self.p5(c4)
        n4 = self.up4(torch.cat([F.interpolate(c5, scale_factor=2.0), c4], 1))
        n3 = self.up3(torch.cat([F.interpolate(n4, scale_factor=2.0), c3], 1))
        n4 = self.out4(torch.cat([self.down4(n3), n4], 1))
        n5 = self.out5(torch.cat([self.down5(n4), c5], 1))
        found = [
            torch.cat([boxes(level), classes(level)], 1).flatten(2)
            for boxes, classes, level in zip(self.boxes, self.classes, (n3, n4, n5), strict=True)
        ]
        return torch.cat(found, 2)
