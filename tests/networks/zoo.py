"""The networks of this folder by name, prepared with random weights and calibrated, never trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitswitch_deploy.master import Master
from bitswitch_deploy.training.layers import SwitchableBatchNorm
from bitswitch_deploy.training.master_export import TrainingRecord, build_master
from bitswitch_deploy.training.networks import CifarResNet20
from bitswitch_deploy.training.prepare import PreparedNetwork, PrepareOptions, prepare, set_width
from tests.networks.branched_networks import Decoder, DenseNet, InceptionNet, Mlp, PinnedNormNet
from tests.networks.mobile_networks import ExciteNet, GroupedNet, MobileNetV2
from tests.networks.residual_networks import OptionANet, PreActivationNet, ResNet18
from tests.networks.transformers import VisionTransformer

_CALIBRATION = 64
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How a network is made. shape: of one input, without batch. dense: its output is an image, not logits."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dense: bool = False
    options: PrepareOptions = field(default_factory=PrepareOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A calibrated network and its master."""

    entry: Entry
    network: PreparedNetwork
    master: Master


ZOO: dict[str, Entry] = {
    "resnet18": Entry(build=ResNet18, shape=(3, 64, 64)),
    "resnet20": Entry(build=CifarResNet20, shape=(3, 32, 32)),
    "option-a": Entry(build=OptionANet, shape=(3, 16, 16)),
    "pre-activation": Entry(build=PreActivationNet, shape=(3, 16, 16)),
    "mobilenet-v2": Entry(build=MobileNetV2, shape=(3, 32, 32)),
    "excite": Entry(build=ExciteNet, shape=(3, 32, 32)),
    "grouped": Entry(build=GroupedNet, shape=(3, 16, 16)),
    "densenet": Entry(build=DenseNet, shape=(3, 16, 16)),
    "inception": Entry(build=InceptionNet, shape=(3, 16, 16)),
    "pinned-norm": Entry(build=PinnedNormNet, shape=(3, 12, 12), options=PrepareOptions(pin=("pinned",))),
    "mlp": Entry(build=Mlp, shape=(20,)),
    "decoder": Entry(build=lambda: Decoder(1), shape=(12,), dense=True),
    "decoder-groups": Entry(build=lambda: Decoder(2), shape=(12,), dense=True),
    "vit": Entry(build=lambda: VisionTransformer(explicit=False), shape=(3, 16, 16)),
    "vit-weight-only": Entry(
        build=lambda: VisionTransformer(explicit=False),
        shape=(3, 16, 16),
        options=PrepareOptions(
            weight_only=tuple(f"blocks.1.{name}" for name in ("attn.qkv", "attn.proj", "fc1", "fc2"))
        ),
    ),
    "vit-explicit": Entry(build=lambda: VisionTransformer(explicit=True), shape=(3, 16, 16)),
}


def inputs(entry: Entry, n: int, *, seed: int) -> Tensor:
    """Random inputs [n, ...]: vectors, or images of coarse patches under noise, so that samples differ in content."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *entry.shape, generator=generator)
    if len(entry.shape) != 3:
        return x
    coarse = torch.randn(n, entry.shape[0], 4, 4, generator=generator)
    level = torch.randn(n, entry.shape[0], 1, 1, generator=generator)
    return F.interpolate(coarse, entry.shape[1:], mode="bilinear") + 0.5 * level + 0.3 * x


def make(entry: Entry) -> Sample:
    """The network with random weights, every scale and running statistic set by one batch per width, and its master."""
    torch.manual_seed(0)
    model = entry.build()
    _randomise(model)
    calibration = inputs(entry, _CALIBRATION, seed=1)
    network = prepare(model, (calibration[:1],), entry.options, check_export=False)
    _calibrate(network, calibration)
    if not entry.dense:
        _spread_logits(network, calibration)
    master = build_master(network, (calibration[:1],), TrainingRecord())
    return Sample(entry=entry, network=network, master=master)


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fan_in = module.weight[0].numel()
            if isinstance(module, nn.ConvTranspose2d):
                fan_in = module.weight.numel() // (module.weight.shape[1] * module.stride[0] * module.stride[1])
            module.weight.normal_(0, (1.6 / fan_in) ** 0.5)
            if module.bias is not None:
                module.bias.normal_(0, 0.1)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d):
            if module.weight is not None and module.bias is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
            if isinstance(module, _NORMS):
                module.momentum = 1.0  # one batch sets the running statistics
                if module.weight is not None:
                    module.weight[torch.rand(module.weight.shape) < 0.25] *= -1
    for name, parameter in model.named_parameters():
        if name.endswith(("token", "embed")):
            parameter.normal_(0, 0.5)


@torch.no_grad()
def _calibrate(network: PreparedNetwork, x: Tensor) -> None:
    network.model.train()
    for bits in network.options.widths:
        set_width(network.model, bits)
        network.model(x)
    for norm in (module for module in network.model.modules() if isinstance(module, SwitchableBatchNorm)):
        _vary([copy for copy in norm.copies if isinstance(copy, _NORMS)])
    network.model.eval()


@torch.no_grad()
def _vary(copies: list[nn.BatchNorm1d | nn.BatchNorm2d]) -> None:
    """Move running statistics away from those of the calibration batch, and let the copies differ everywhere."""
    channels = copies[0].num_features
    shift, factor = 0.1 * torch.randn(channels), 0.7 + 0.7 * torch.rand(channels)
    for copy in copies:
        if copy.running_mean is not None and copy.running_var is not None:
            copy.running_mean += shift * copy.running_var.sqrt()
            copy.running_var *= factor
        for parameter in copy.parameters():
            parameter.mul_(torch.empty_like(parameter).uniform_(0.98, 1.02))


@torch.no_grad()
def _spread_logits(network: PreparedNetwork, x: Tensor) -> None:
    """Centre the logits, so that every class is predicted for some sample."""
    set_width(network.model, network.options.widths[0])
    last = [module for module in network.model.modules() if type(module) is nn.Linear][-1]
    logits = network.model(x)
    spread = logits.std(0)
    last.weight /= spread[:, None]
    last.bias.copy_((last.bias - logits.mean(0)) / spread)
