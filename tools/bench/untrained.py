"""Networks as the benchmarks need them: the usual architectures, with random weights, as masters of several widths.

BatchNormalizations are as training leaves them: some gains negative, some next to nothing. Seed 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bitswitch_deploy.master import Master
from bitswitch_deploy.training.master_export import TrainingRecord, build_master
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.prepare import PrepareOptions, prepare, set_width
from tools.bench.architectures import MobileNetV3Small, VitTiny, YoloNano

# name -> how to build it, height and width of its images
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (partial(build_network, "cifar10-resnet20"), 32),
    "resnet18": (partial(build_network, "imagenet-resnet18"), 224),
    "mobilenetv2": (partial(build_network, "imagenet-mobilenetv2"), 224),
    "vit-tiny": (VitTiny, 224),
    "mobilenetv3": (MobileNetV3Small, 224),
    "yolov8n": (YoloNano, 320),
}
IMAGES = 8


def untrained_network(name: str) -> tuple[nn.Module, Tensor]:
    """One of NETWORKS in evaluation mode, and the images [8, 3, height, width] that its running statistics fit."""
    build, side = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
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
                module.weight[3::16] *= 1e-12  # dead, and no denormals, which would slow float32 down
    with torch.no_grad():
        model.train()(images)
    model.eval()
