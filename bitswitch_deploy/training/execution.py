"""Where and how a step is computed: device, precision, compiled or not, alone or with other replicas."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bitswitch_deploy.errors import UnavailableError, UsageError
from bitswitch_deploy.training.global_batchnorm import synchronise_batchnorm
from bitswitch_deploy.training.replicas import local_device, replica_count

# Of one network torch compiles eight forms in a process, two variants of four widths in an ablation, and computes
# further ones uncompiled.
_MAX_COMPILED = 64
_IMAGE_DIMENSIONS = 4  # [n, c, h, w], which channels-last order is defined for

Precision = Literal["float32", "bfloat16"]
Forward = Callable[[Tensor], Tensor]


def settle_torch(device: torch.device, *, seed: int, threads: int) -> None:
    """Make torch repeat itself in this process; on CUDA some operators cannot, and warn."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # only finds faults
    torch.backends.cudnn.allow_tf32 = False  # codes times scales have more bits than TF32 keeps
    torch.manual_seed(seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How steps are computed.

    device: where network and data are. precision: of convolutions and matrix products, by autocast; parameters,
        quantizers and losses stay float32. fast: compile the steps and keep weights in channels-last order, faster by a
        third and more (tools/bench/joint_step.py) after minutes of compiling; the sums of floats come in another
        order, so two runs are equal only when both are compiled. On one CUDA device steps are recorded as well
        (`step_graph`).
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "float32"
    fast: bool = False

    @property
    def records_steps(self) -> bool:
        """Whether a step becomes one CUDA graph."""
        return self.fast and self.device.type == "cuda" and replica_count() == 1

    def adam(self, parameters: Iterable[nn.Parameter], rate: float, *, weight_decay: float) -> torch.optim.Adam:
        """The optimizer of a stage; for steps that are recorded one that keeps all numbers on the device."""
        if self.records_steps:
            return torch.optim.Adam(parameters, rate, weight_decay=weight_decay, fused=True, capturable=True)
        return torch.optim.Adam(parameters, rate, weight_decay=weight_decay)

    def place(self, model: nn.Module) -> None:
        """Move a network to the device, in place, with BatchNorm statistics over all replicas."""
        model.to(self.device)
        if self.fast:
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.dim() == _IMAGE_DIMENSIONS:  # module.to(memory_format=...) fails on those of a Conv3d
                    tensor.data = tensor.data.to(memory_format=torch.channels_last)
        synchronise_batchnorm(model)

    def in_precision(self, module: nn.Module) -> Forward:
        """`module` under autocast; its output is float32."""
        if self.precision == "float32":
            return module

        def forward(inputs: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16):
                result: Tensor = module(inputs)
            return result.float()

        return forward


class ForwardPass:
    """What a network that `execution.place` moved computes, for training: gradients of all replicas reach `model`.

    plain: never compiled. fast: compiled where the execution says so.
    """

    def __init__(self, model: nn.Module, execution: Execution) -> None:
        module = model
        if replica_count() > 1:
            # a step at one width uses neither the scales nor the BatchNorm copies of the others
            ids = [execution.device] if execution.device.type == "cuda" else None
            module = DistributedDataParallel(
                model, device_ids=ids, forward_sync_buffers=False, find_unused_parameters=True
            )
        self.plain = execution.in_precision(module)
        self.fast = execution.in_precision(compiled(module)) if execution.fast else self.plain


def compiled(module: nn.Module) -> nn.Module:
    """What torch.compile makes of a module; it compiles when it is first called, once for each width."""
    torch.compiler.config.recompile_limit = _MAX_COMPILED
    return cast(nn.Module, torch.compile(module))


def choose_execution(device: str, **choices: Any) -> Execution:
    """The execution on the device of this name: `cpu`, `cuda`, `cuda:1`, ...; `auto` is CUDA where there is one.

    Raises:
        UsageError: no device has this name. UnavailableError: it is not here.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        chosen = local_device(name)
    except RuntimeError as exc:
        raise UsageError(where="--device", got=name, allowed="auto, cpu, cuda or cuda:N", do="name one") from exc
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UnavailableError(
            where="--device",
            got=f"{name}: torch sees {torch.cuda.device_count()} CUDA devices",
            allowed="a device that torch sees",
            do="use --device cpu, or install torch's CUDA build",
        )
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(where="--device", got=name, allowed="auto, cpu, cuda or cuda:N", do="name one")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return Execution(device=chosen, **choices)
