"""Training on several devices or machines: one process (replica) for each, started by torchrun, joined here.

    torchrun --nproc-per-node 4 tools/train_master.py ...

Each replica works on its share of every mini-batch. What the mathematics takes over the whole mini-batch is taken over
all replicas: gradients (DistributedDataParallel), BatchNorm statistics (global_batchnorm.py), first activation scales
and the damping of their gradients (quantizers.py). In one process all functions here are the identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bitswitch_deploy.errors import UsageError


def replica_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_process() -> bool:
    """Whether this is the process that writes files, before, while and after the replicas are joined."""
    return _process_count() < 2 or os.environ.get("RANK", "0") == "0"


def _process_count() -> int:
    """How many torchrun started; job systems set RANK for a process that is alone, too."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_joined() -> None:
    """Refuse to train alone in each of several processes.

    Raises:
        UsageError: torchrun started several, and they are not joined.
    """
    if _process_count() > 1 and replica_count() == 1:
        raise UsageError(
            where="torchrun",
            got=f"{_process_count()} processes, each of which would train a network of its own",
            allowed="processes that are joined",
            do="make mini-batches and train inside of `with joined_replicas(device):`, of training.replicas",
        )


def replica_index() -> int:
    """Which of them this is, counted from 0; the first one writes files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def joined_replicas(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, over NCCL on CUDA and Gloo elsewhere; alone, do nothing."""
    if _process_count() < 2 or not dist.is_available() or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_device(name: str) -> torch.device:
    """The device of this replica: of several CUDA devices the one that torchrun's LOCAL_RANK counts."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def summed(tensor: Tensor) -> Tensor:
    """The sum over replicas, same shape; no gradient flows."""
    if replica_count() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def averaged(tensor: Tensor) -> Tensor:
    """The mean over replicas, same shape; no gradient flows."""
    return tensor if replica_count() == 1 else summed(tensor) / replica_count()


def smallest(tensor: Tensor) -> Tensor:
    """The minimum over replicas, same shape; no gradient flows."""
    if replica_count() == 1:
        return tensor
    least = tensor.detach().clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return least


def gathered(tensor: Tensor) -> Tensor:
    """The tensors [n, ...] of all replicas behind one another, [replicas * n, ...]; no gradient flows."""
    if replica_count() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(replica_count())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def from_first(value: Any) -> Any:
    """The value that the first replica has; it travels as a pickle, from a process that torchrun started."""
    box = [value]
    if replica_count() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]
