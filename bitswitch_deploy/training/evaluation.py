"""Accuracy of a network in training; several replicas share the work."""

from __future__ import annotations

import torch
from torch import nn

from bitswitch_deploy.master.spec import MeasuredAccuracy, Preprocessing
from bitswitch_deploy.training.batches import preprocess
from bitswitch_deploy.training.datasets import ImageSet
from bitswitch_deploy.training.image_folder import ImageFolder
from bitswitch_deploy.training.prepare import set_width
from bitswitch_deploy.training.replicas import replica_count, replica_index, summed


def top1(model: nn.Module, data: ImageSet | ImageFolder, preprocessing: Preprocessing) -> float:
    """Percent of images whose largest logit is their label, in evaluation mode (left on)."""
    (value,) = _top1_at(model, (None,), data, preprocessing)
    return value


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


@torch.no_grad()
def _top1_at(
    model: nn.Module,
    widths: tuple[int | None, ...],
    data: ImageSet | ImageFolder,
    preprocessing: Preprocessing,
) -> list[float]:
    """Top-1 in percent at each width, None for a network without; every image is read once for all of them."""
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    ends = [len(data.labels) * part // replica_count() for part in range(replica_count() + 1)]
    correct = torch.zeros(len(widths), dtype=torch.int64, device=device)
    for images, labels in data.raw(ends[replica_index()], ends[replica_index() + 1]):
        inputs, wanted = preprocess(images.to(device), preprocessing), labels.to(device)
        for place, bits in enumerate(widths):
            if bits is not None:
                set_width(model, bits)
            correct[place] += (model(inputs).argmax(1) == wanted).sum()
    return [100.0 * count / len(data.labels) for count in summed(correct).tolist()]
