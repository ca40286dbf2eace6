"""Accuracy of a network in training; several replicas share the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bitswitch_deploy.master.spec import MeasuredAccuracy
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.batches import Batch, preprocess
from bitswitch_deploy.training.datasets import ImageSet
from bitswitch_deploy.training.image_folder import ImageFolder
from bitswitch_deploy.training.layers import SwitchableBatchNorm, copied
from bitswitch_deploy.training.prepare import set_width
from bitswitch_deploy.training.replicas import replica_count, replica_index, summed


def top1(model: nn.Module, data: ImageSet | ImageFolder, preprocessing: Preprocessing) -> float:
    """Percent of images whose largest logit is their label, in evaluation mode (left on)."""
    (value,) = _top1_at(model, (None,), data, preprocessing)
    return value


def own_share(data: ImageSet | ImageFolder) -> Iterator[tuple[Tensor, Tensor]]:
    """Raw images uint8 [b, H, W, C] and labels int64 [b] of those that this replica measures.

    Raises:
        DataError: an image cannot be decoded.
    """
    first, last = (len(data.labels) * part // replica_count() for part in (replica_index(), replica_index() + 1))
    return data.raw(first, last)


def measure_widths(
    model: nn.Module, widths: tuple[int, ...], data: ImageSet | ImageFolder, preprocessing: Preprocessing
) -> tuple[MeasuredAccuracy, ...]:
    """Top-1 of a prepared network at each width, which it leaves at the highest one."""
    values = _top1_at(model, widths, data, preprocessing)
    set_width(model, widths[0])
    return tuple(
        MeasuredAccuracy(
            bits=bits,
            metric="top1",
            value=value,
            n=len(data.labels),
            dataset=data.name,
            dataset_sha256=data.sha256,
        )
        for bits, value in zip(widths, values, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedAccuracy:
    """Mean top-1 in percent of `n_subnets` networks whose layers have widths drawn evenly.

    as_trained: with the statistics of training. reestimated: with those of training samples, taken for each network;
    BatchNorm goes by a layer's own width, as in a master.
    """

    n_subnets: int
    as_trained: float
    reestimated: float


def draw_subnets(layers: Sequence[str], widths: Sequence[int], *, count: int, seed: int) -> tuple[WidthAssignment, ...]:
    """Networks whose layers have widths drawn evenly."""
    drawn = np.random.default_rng([seed, 4]).choice(widths, size=(count, len(layers))).tolist()
    return tuple(WidthAssignment(default=widths[0], overrides=tuple(zip(layers, row))) for row in drawn)


def measure_subnets(
    model: nn.Module,
    subnets: Sequence[WidthAssignment],
    data: ImageSet | ImageFolder,
    preprocessing: Preprocessing,
    *,
    batches: Sequence[Batch],
) -> MixedAccuracy:
    """Top-1 of a prepared network as these subnets; `batches` re-estimate BatchNorm in copies of `model`."""
    trained = _top1_at(model, subnets, data, preprocessing)
    again = [_top1_at(reestimated(model, each, batches), (each,), data, preprocessing)[0] for each in subnets]
    n = len(subnets)
    return MixedAccuracy(n_subnets=n, as_trained=sum(trained) / n, reestimated=sum(again) / n)


@torch.no_grad()
def reestimated(model: nn.Module, subnet: WidthAssignment, batches: Sequence[Batch]) -> nn.Module:
    """A copy whose BatchNorms in use have the mean statistics of `batches`, which it sees as `subnet`."""
    twin = copied(model).eval()
    for module in twin.modules():
        if isinstance(module, SwitchableBatchNorm):
            module.previous = None  # own widths only
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the plain mean
            module.train()
    set_width(twin, subnet)
    for batch in batches:
        twin(batch.inputs)
    return twin.eval()


@torch.no_grad()
def _top1_at(
    model: nn.Module,
    widths: Sequence[int | WidthAssignment | None],
    data: ImageSet | ImageFolder,
    preprocessing: Preprocessing,
) -> list[float]:
    """Top-1 in percent at each width, None for a network without; every image is read once for all of them."""
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    correct = torch.zeros(len(widths), dtype=torch.int64, device=device)
    for images, labels in own_share(data):
        inputs, wanted = preprocess(images.to(device), preprocessing), labels.to(device)
        for place, bits in enumerate(widths):
            if bits is not None:
                set_width(model, bits)
            correct[place] += (model(inputs).argmax(1) == wanted).sum()
    return [100.0 * count / len(data.labels) for count in summed(correct).tolist()]
