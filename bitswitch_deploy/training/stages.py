"""The two stages of a run: float training, then joint training at all widths. A stage knows one mini-batch."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckFailedError
from bitswitch_deploy.training.prepare import PreparedNetwork, set_width
from bitswitch_deploy.training.quantizers import ActivationQuantizer
from bitswitch_deploy.training.recipe import StageSettings
from bitswitch_deploy.training.schedule import cosine_rate, scale_rate
from bitswitch_deploy.training.tracing import tensors_in

_SCALE_SUFFIX = "weight_quantizer.scale"
_SCALES_INFIX = "input_quantizer.scales."


class Stage(Protocol):
    """What `trainer.run_stage` drives. losses: what the losses that `step` returns are called."""

    name: str
    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    losses: tuple[str, ...]

    def step(self, inputs: Tensor, labels: Tensor, step: int, total_steps: int) -> tuple[float, ...]:
        """Learn from one mini-batch; returns its losses before the update."""
        ...


class FloatStage:
    """Ordinary training of the float network: Adam, cosine schedule, cross entropy."""

    name = "float"
    losses: tuple[str, ...] = ("float",)

    def __init__(self, model: nn.Module, settings: StageSettings, *, fast: bool = False) -> None:
        self.model = model
        self._forward = compiled(model) if fast else model
        self._rate = settings.learning_rate
        adam = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (adam,)

    def step(self, inputs: Tensor, labels: Tensor, step: int, total_steps: int) -> tuple[float, ...]:
        """One forward, backward, update.

        Raises:
            CheckFailedError: the loss or a gradient is not finite.
        """
        loss = _backward(self.model, self._forward, inputs, labels, "float")
        _update(self.optimizers[0], cosine_rate(self._rate, step, total_steps))
        return (loss,)


class JointStage:
    """Joint training (arXiv 2502.01199): for each width from high to low one forward, backward and update.

    Two optimizers: weights and BatchNorm with weight decay; scales without, at the ALRS rate of the width.
    Gradients are cleared to None after each width, so scales and BatchNorm copies of other widths do not move.
    """

    name = "joint"

    def __init__(self, network: PreparedNetwork, settings: StageSettings, *, fast: bool = False) -> None:
        self.model = network.model
        self._forward = compiled(network.model) if fast else network.model
        self._widths = network.options.widths
        self.losses = tuple(f"w{bits}" for bits in self._widths)
        self._rate = settings.learning_rate
        scales = [p for name, p in self.model.named_parameters() if is_scale(name)]
        others = [p for name, p in self.model.named_parameters() if not is_scale(name)]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Adam(others, lr=self._rate, weight_decay=settings.weight_decay),
            torch.optim.Adam(scales, lr=self._rate, weight_decay=0.0),
        )

    def step(self, inputs: Tensor, labels: Tensor, step: int, total_steps: int) -> tuple[float, ...]:
        """One update for each width, from high to low.

        Raises:
            CheckFailedError: at some width the loss or a gradient is not finite.
        """
        rate = cosine_rate(self._rate, step, total_steps)
        # the first batch sets the activation scales, which is no part of the graph to compile
        forward = self._forward if is_initialised(self.model) else self.model
        losses = []
        for bits in self._widths:
            set_width(self.model, bits)
            losses.append(_backward(self.model, forward, inputs, labels, f"{bits} bits"))
            _update(self.optimizers[0], rate)
            _update(self.optimizers[1], scale_rate(rate, bits=bits, highest=self._widths[0]))
        return tuple(losses)


def is_initialised(model: nn.Module) -> bool:
    """Whether every quantizer of a prepared network has its scales at every width."""
    return all(module.is_initialised for module in model.modules() if isinstance(module, ActivationQuantizer))


def is_scale(parameter_name: str) -> bool:
    """Whether a parameter of a prepared network is a quantization scale."""
    return parameter_name.endswith(_SCALE_SUFFIX) or _SCALES_INFIX in parameter_name


def compiled(model: nn.Module) -> nn.Module:
    """The same module, its steps compiled by torch.compile, its weights in channels-last order.

    Faster by a third and more (tools/bench/joint_step.py), after some minutes of compiling; the sums of floats come in
    another order than without, so two runs are equal only when both are compiled.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return cast(nn.Module, torch.compile(model))


def _backward(model: nn.Module, forward: nn.Module, inputs: Tensor, labels: Tensor, width: str) -> float:
    """Gradients of the cross entropy of `forward`, which is `model` or computes the same; returns the loss."""
    loss = F.cross_entropy(forward(inputs), labels)
    value = float(loss.detach())
    if not torch.isfinite(loss.detach()):
        raise _diverged(_first_bad_layer(model, inputs), width, f"loss {value}")
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not torch.isfinite(nn.utils.get_total_norm(gradients)):
        bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        raise _diverged(bad[-1] if bad else "all layers together", width, "a gradient that is not finite")
    return value


def _update(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _first_bad_layer(model: nn.Module, inputs: Tensor) -> str:
    """Path of the first innermost module whose output is not finite, seen in one more run."""
    if not inputs.isfinite().all():
        return "network input"
    bad: list[str] = []

    def record(path: str, output: Any) -> None:
        if any(not tensor.isfinite().all() for tensor in tensors_in(output)):
            bad.append(path)

    handles = [
        module.register_forward_hook(lambda _m, _i, output, path=path: record(path, output))
        for path, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return next((path for path in bad if path), "loss")


def _diverged(layer: str, width: str, got: str) -> CheckFailedError:
    return CheckFailedError(
        where=f"training of {layer} at {width}",
        got=got,
        allowed="finite numbers",
        do="resume from the last checkpoint with a lower learning rate",
    )
