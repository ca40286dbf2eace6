"""The first two stages of a run: float training, then joint training at all widths; `supernet` is the third.

A stage knows one mini-batch.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckpointError
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.backward import Suspect, backward
from bitswitch_deploy.training.batches import Batch
from bitswitch_deploy.training.checkpoint import load_state
from bitswitch_deploy.training.distillation import make_teacher
from bitswitch_deploy.training.execution import Execution, Forward, ForwardPass
from bitswitch_deploy.training.layers import QUANTIZED_LAYERS, is_scale
from bitswitch_deploy.training.prepare import PreparedNetwork, set_width
from bitswitch_deploy.training.quantizers import ActivationQuantizer
from bitswitch_deploy.training.recipe import JointSettings, StageSettings
from bitswitch_deploy.training.schedule import Position, cosine_rate, scale_rate
from bitswitch_deploy.training.weight_average import WeightAverage


class Stage(Protocol):
    """What `trainer.run_stage` drives. losses: what the losses that `step` returns are called."""

    name: str
    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    losses: tuple[str, ...]

    @property
    def result(self) -> nn.Module:
        """The network to measure and export: `model`, or an average of it."""
        ...

    def step(self, batch: Batch, position: Position) -> tuple[float, ...]:
        """Learn from one mini-batch; returns its losses before the update, means over replicas."""
        ...

    def own_state(self) -> dict[str, Any]:
        """What the next step depends on beside `model` and `optimizers`, for a checkpoint."""
        ...

    def restore_own(self, state: dict[str, Any], source: str) -> None:
        """Take over what `own_state` gave.

        Raises:
            CheckpointError: it is of another stage.
        """
        ...


class FloatStage:
    """Ordinary training of the float network: Adam, cosine schedule, cross entropy."""

    name = "float"
    losses: tuple[str, ...] = ("float",)

    def __init__(self, model: nn.Module, settings: StageSettings, *, execution: Execution | None = None) -> None:
        self._execution = execution or Execution()
        self._execution.place(model)
        self.model = model
        self._forward = ForwardPass(model, self._execution)
        self._rate = settings.learning_rate
        adam = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (adam,)

    @property
    def result(self) -> nn.Module:
        return self.model

    def step(self, batch: Batch, position: Position) -> tuple[float, ...]:
        """One forward, backward, update.

        Raises:
            CheckFailedError: the loss or a gradient is not finite.
        """
        logits = self._forward.fast(batch.inputs)
        loss = backward(logits, batch.labels, Suspect(self.model, self._execution, batch.inputs, "float"))
        _update(self.optimizers[0], cosine_rate(self._rate, position.step, position.total))
        return (loss,)

    def own_state(self) -> dict[str, Any]:
        return {}

    def restore_own(self, state: dict[str, Any], source: str) -> None:
        """There is nothing."""


class JointStage:
    """Joint training (arXiv 2502.01199): for each width from high to low one forward, backward and update.

    Two optimizers: weights and BatchNorm with weight decay; scales without, at the ALRS rate of the width.
    Gradients are cleared to None after each update, so scales and BatchNorm copies of other widths do not move.

    Args:
        network: a prepared network. settings: of the stage.
        samples: in the training set; distillation remembers each.
        execution: where and how; None: on the CPU.
    """

    name = "joint"

    def __init__(
        self, network: PreparedNetwork, settings: JointSettings, *, samples: int, execution: Execution | None = None
    ) -> None:
        self._execution = execution or Execution()
        self._execution.place(network.model)
        self.model = network.model
        self._forward = ForwardPass(network.model, self._execution)
        self._settings = settings
        self._widths = network.options.widths
        self.losses = tuple(f"w{bits}" for bits in self._widths)
        self._teacher = make_teacher(settings.distillation, share=settings.teacher_share, samples=samples)
        self._average: WeightAverage | None = None
        scales = [p for name, p in self.model.named_parameters() if is_scale(name)]
        others = [p for name, p in self.model.named_parameters() if not is_scale(name)]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Adam(others, lr=settings.learning_rate, weight_decay=settings.weight_decay),
            torch.optim.Adam(scales, lr=settings.learning_rate, weight_decay=0.0),
        )

    @property
    def result(self) -> nn.Module:
        return self.model if self._average is None else self._average.model

    def step(self, batch: Batch, position: Position) -> tuple[float, ...]:
        """One update for each width, from high to low, or one for all.

        Raises:
            CheckFailedError: at some width the loss or a gradient is not finite.
        """
        rate = cosine_rate(self._settings.learning_rate, position.step, position.total)
        forward = self._forward_of_step()
        target = self._teacher.first_target(batch, position)
        losses = []
        for bits in self._widths:
            set_width(self.model, self._width(bits, position))
            logits = forward(batch.inputs)
            suspect = Suspect(self.model, self._execution, batch.inputs, f"{bits} bits")
            losses.append(backward(logits, target, suspect, self._penalty(bits)))
            if bits == self._widths[0]:
                target = self._teacher.next_target(batch, logits.detach(), target)
            if self._settings.update == "per_width":
                self._update_all(rate, distance=self._widths[0] - bits)
        if self._settings.update == "accumulated":
            self._update_all(rate, distance=0)
        self._update_average()
        return tuple(losses)

    def own_state(self) -> dict[str, Any]:
        average = None if self._average is None else self._average.model.state_dict()
        return {"teacher": self._teacher.state(), "average": average}

    def restore_own(self, state: dict[str, Any], source: str) -> None:
        self._teacher.restore(state.get("teacher"), source)
        average = state.get("average")
        if (average is None) != (self._settings.average_decay is None):
            got = "no average" if average is None else "an average"
            raise CheckpointError(where=source, got=got, allowed="the other", do="resume with the recipe of the run")
        if average is not None:
            self._update_average()
            load_state(average, self.result, source)

    def _forward_of_step(self) -> Forward:
        # the first batch sets the activation scales, which is no part of the graph to compile
        return self._forward.fast if is_initialised(self.model) else self._forward.plain

    def _width(self, bits: int, position: Position) -> int | WidthAssignment:
        """The widths of the layers in the pass of `bits`."""
        return bits

    def _penalty(self, bits: int) -> Tensor | None:
        """What the pass of `bits`, which has just computed its logits, adds to their cross entropy."""
        return None

    def _update_all(self, rate: float, *, distance: int) -> None:
        form = self._settings.alrs
        gradient = mean_scale_gradient(self.model) if form in ("bracket", "bracket_printed") else 0.0
        _update(self.optimizers[0], rate)
        _update(self.optimizers[1], scale_rate(form, rate, distance=distance, mean_gradient=gradient))

    def _update_average(self) -> None:
        if self._settings.average_decay is None:
            return
        if self._average is None:
            self._average = WeightAverage(self.model, self._settings.average_decay)
        self._average.update(self.model)


def mean_scale_gradient(model: nn.Module) -> float:
    """m_b of ALRS: mean over layers of the largest gradient among a layer's scales, weight and input, clipped at 1."""
    peaks = []
    for layer in model.modules():
        if isinstance(layer, QUANTIZED_LAYERS):
            scales = (layer.weight_quantizer.scale, *layer.input_quantizer.scales)
            gradients = [scale.grad.abs().max() for scale in scales if scale.grad is not None]
            peak = torch.stack(gradients).max() if gradients else scales[0].new_zeros(())  # it had no part in the step
            peaks.append(peak.detach().clamp_max(1.0))
    return float(torch.stack(peaks).mean())


def is_initialised(model: nn.Module) -> bool:
    """Whether every quantizer of a prepared network has its scales at every width."""
    return all(module.is_initialised for module in model.modules() if isinstance(module, ActivationQuantizer))


def _update(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
