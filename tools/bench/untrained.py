"""Networks as the benchmarks need them: the usual architectures, with random weights, as masters of several widths.

BatchNormalizations are as training leaves them: some gains negative, some next to nothing. Seed 0.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from bitswitch_deploy.master import Master
from bitswitch_deploy.training.master_export import TrainingRecord, build_master
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.prepare import PrepareOptions, prepare, set_width

# name -> network of a recipe, none for the one below; height and width of its images
NETWORKS = {
    "resnet20": ("cifar10-resnet20", 32),
    "resnet18": ("imagenet-resnet18", 224),
    "mobilenetv2": ("imagenet-mobilenetv2", 224),
    "vit-tiny": ("", 224),
}
IMAGES = 8


def untrained_network(name: str) -> tuple[nn.Module, Tensor]:
    """One of NETWORKS in evaluation mode, and the images [8, 3, height, width] that its running statistics fit."""
    recipe, side = NETWORKS[name]
    torch.manual_seed(0)
    model = build_network(recipe) if recipe else VitTiny()
    images = torch.randn(IMAGES, 3, side, side)
    _settle(model, images)
    return model, images


def untrained_master(model: nn.Module, images: Tensor, widths: tuple[int, ...]) -> Master:
    """The network as `prepare` makes it, with ranges and statistics from one mini-batch at each width."""
    prepared = prepare(model, (images[:1],), PrepareOptions(widths=widths))
    prepared.model.train()
    with torch.no_grad():
        for bits in widths:
            set_width(prepared.model, bits)
            prepared.model(images)
    return build_master(prepared, (images[:1],), TrainingRecord())


def _settle(model: nn.Module, images: Tensor) -> None:
    """Let running statistics fit the weights, so that activations keep their size through the network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
            with torch.no_grad():
                module.weight[::8] *= -1.0
                module.weight[3::16] *= 1e-36
    with torch.no_grad():
        model.train()(images)
    model.eval()


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
