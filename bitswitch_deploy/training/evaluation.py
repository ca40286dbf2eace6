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


@torch.no_grad()
def top1(model: nn.Module, data: ImageSet | ImageFolder, preprocessing: Preprocessing) -> float:
    """Percent of images whose largest logit is their label, in evaluation mode (left on)."""
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    ends = [len(data.labels) * part // replica_count() for part in range(replica_count() + 1)]
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for images, labels in data.raw(ends[replica_index()], ends[replica_index() + 1]):
        inputs = preprocess(images.to(device), preprocessing)
        correct += (model(inputs).argmax(1) == labels.to(device)).sum()
    return 100.0 * int(summed(correct)) / len(data.labels)


def measure_widths(
    model: nn.Module, widths: tuple[int, ...], data: ImageSet | ImageFolder, preprocessing: Preprocessing
) -> tuple[MeasuredAccuracy, ...]:
    """Top-1 of a prepared network at each width, which it leaves at the highest one."""
    measured = []
    for bits in widths:
        set_width(model, bits)
        measured.append(
            MeasuredAccuracy(
                bits=bits,
                metric="top1",
                value=top1(model, data, preprocessing),
                n=len(data.labels),
                dataset=data.name,
                dataset_sha256=data.sha256,
            )
        )
    set_width(model, widths[0])
    return tuple(measured)
