"""BatchNorm over the mini-batch of all replicas: the same numbers as one process with the whole mini-batch.

Other statistics that a network keeps would be those of one replica's share: `check_buffers` refuses them.

On CUDA it is torch's SyncBatchNorm. torch has none for other devices; there the statistics are summed by differentiable
all-reduces: first the mean, then the mean square around it (the one-pass form cancels).

    y = (x - mean) / sqrt(var + eps) * weight + bias        mean and var over replicas, samples and positions
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.training.layers import SWITCHABLE_CLASS, is_batchnorm, replace_modules
from bitswitch_deploy.training.replicas import replica_count, smallest, summed


def synchronise_batchnorm(model: nn.Module) -> None:
    """Let every BatchNorm of `model`, in place, take its training statistics over all replicas; alone, do nothing.

    Raises:
        UsageError: a subclass of BatchNorm, whose own code knows of one replica.
    """
    if replica_count() > 1:
        replace_modules(model, _synchronised)


def check_buffers(model: nn.Module) -> None:
    """See, behind a step, that all replicas have the same buffers; those of BatchNorm are known to be.

    Raises:
        UsageError: some differ, as each replica made them of its own share; all raise together.
    """
    if replica_count() == 1:
        return
    different = []
    for path, module in model.named_modules():
        if not is_batchnorm(module):
            for name, buffer in module.named_buffers(path, recurse=False):
                values = buffer.double().nan_to_num()
                if not torch.equal(smallest(values), -smallest(-values)):
                    different.append(name)
    if different:
        raise UsageError(
            where=f"buffers {', '.join(different)}",
            got=f"other numbers on each of {replica_count()} replicas, made of its share of the mini-batch",
            allowed="buffers that do not depend on the mini-batch, and statistics of BatchNorm",
            do="take them over all replicas (training.replicas.averaged), or train in one process",
        )


def _synchronised(path: str, norm: nn.Module) -> nn.Module | None:
    if not is_batchnorm(norm) or isinstance(norm, GlobalBatchNorm):
        return None
    if type(norm) not in SWITCHABLE_CLASS:
        raise UsageError(
            where=path,
            got=f"{type(norm).__name__} on {replica_count()} replicas",
            allowed="BatchNorm as torch has it, whose statistics can be taken over all replicas",
            do="write it as BatchNorm with what it adds behind it, or train in one process",
        )
    if any(tensor.is_cuda for tensor in norm.buffers()):
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(norm))  # type: ignore[no-untyped-call]
    norm.__class__ = GlobalBatchNorm
    return norm


class GlobalBatchNorm(nn.BatchNorm2d):
    """BatchNorm on [n, c] or [n, c, ...] whose statistics in training are those of all replicas; all have equal n."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalised `input`, same shape."""
        if not self.training or replica_count() == 1:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        x = input.float()
        mean = _mean_over_replicas(x.mean(axes))
        centred = x - mean.reshape(shape)
        variance = _mean_over_replicas(centred.square().mean(axes))
        self._track(mean.detach(), variance.detach(), replica_count() * input.numel() // input.shape[1])
        y = centred * torch.rsqrt(variance + self.eps).reshape(shape)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.reshape(shape) + self.bias.reshape(shape)
        return y.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Take [n, c] as well."""

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), momentum)


class _Sum(torch.autograd.Function):
    """Sum over replicas; its gradient is the sum of what each replica's loss says."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return summed(tensor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        return summed(grad_outputs[0])


def _mean_over_replicas(tensor: Tensor) -> Tensor:
    return cast(Tensor, _Sum.apply(tensor)) / replica_count()  # type: ignore[no-untyped-call]
