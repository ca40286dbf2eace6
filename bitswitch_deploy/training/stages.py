"""The first two stages of a run: float training, then joint training at all widths; `supernet` is the third.

A stage knows one mini-batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckpointError
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.backward import Guard, Suspect, backward
from bitswitch_deploy.training.batches import Batch
from bitswitch_deploy.training.checkpoint import load_state
from bitswitch_deploy.training.distillation import make_teacher
from bitswitch_deploy.training.execution import Execution, Forward, ForwardPass
from bitswitch_deploy.training.layers import QUANTIZED_LAYERS, is_scale
from bitswitch_deploy.training.prepare import PreparedNetwork, set_width
from bitswitch_deploy.training.quantizers import ActivationQuantizer
from bitswitch_deploy.training.recipe import JointSettings, StageSettings
from bitswitch_deploy.training.schedule import Position, scale_rate
from bitswitch_deploy.training.step_graph import Steps
from bitswitch_deploy.training.weight_average import WeightAverage

_MIN_STEPS = 2  # a BatchNorm that begins at 0 gives zeros in the first one


class Stage(Protocol):
    """What `trainer.run_stage` drives.

    losses: what the losses that `step` returns are called. read_every: how many steps may pass before they are read.
    """

    name: str
    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    losses: tuple[str, ...]

    @property
    def read_every(self) -> int: ...

    @property
    def result(self) -> nn.Module:
        """The network to measure and export: `model`, or an average of it."""
        ...

    def step(self, batch: Batch, position: Position) -> Tensor:
        """Learn from one mini-batch; its losses before the update, means over replicas, float32 [len(losses)]."""
        ...

    def diagnose(self, batch: Batch, position: Position) -> None:
        """Take a step again whose losses, read later, were not finite.

        Raises:
            CheckFailedError: the message names the layer.
        """
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
        rate = settings.learning_rate
        adam = self._execution.adam(model.parameters(), rate, weight_decay=settings.weight_decay)
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (adam,)
        self._steps = Steps(self._learn, self.optimizers, learning_rate=rate, execution=self._execution)

    @property
    def result(self) -> nn.Module:
        return self.model

    @property
    def read_every(self) -> int:
        return self._steps.read_every

    def step(self, batch: Batch, position: Position) -> Tensor:
        """One forward, backward, update.

        Raises:
            CheckFailedError: the loss or a gradient is not finite.
        """
        return self._steps.take(batch, position)

    def diagnose(self, batch: Batch, position: Position) -> None:
        self._steps.diagnose(batch, position)

    def _learn(self, batch: Batch, _: Position, rate: float | Tensor, guard: Guard) -> Tensor:
        suspect = Suspect(self.model, self._execution, batch.inputs, "float")
        logits = self._forward.fast(batch.inputs)
        loss = backward(logits, batch.labels, suspect, guard)
        _update(self.optimizers[0], rate)
        return loss.reshape(1)

    def own_state(self) -> dict[str, Any]:
        return {}

    def restore_own(self, state: dict[str, Any], source: str) -> None:
        self._steps.record_anew()


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
        self._n_taken = 0
        scales = [p for name, p in self.model.named_parameters() if is_scale(name)]
        others = [p for name, p in self.model.named_parameters() if not is_scale(name)]
        rate = settings.learning_rate
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            self._execution.adam(others, rate, weight_decay=settings.weight_decay),
            self._execution.adam(scales, rate, weight_decay=0.0),
        )
        self._steps = Steps(
            self._learn,
            self.optimizers,
            learning_rate=rate,
            execution=self._execution,
            is_recordable=self._is_the_same_in_every_step(),
        )

    @property
    def result(self) -> nn.Module:
        return self.model if self._average is None else self._average.model

    @property
    def read_every(self) -> int:
        return self._steps.read_every

    def step(self, batch: Batch, position: Position) -> Tensor:
        """One update for each width, from high to low, or one for all.

        Raises:
            CheckFailedError: at some width the loss or a gradient is not finite.
            UsageError: a whole epoch has brought a layer nothing but zeros, with which no master can be written.
        """
        is_settled = is_initialised(self.model)
        if not is_settled and self._n_taken >= max(position.per_epoch, _MIN_STEPS):
            for quantizer in _activation_quantizers(self.model):
                quantizer.exported_scales()
        self._n_taken += 1
        return self._steps.take(batch, position, is_settled=is_settled)

    def diagnose(self, batch: Batch, position: Position) -> None:
        self._steps.diagnose(batch, position)

    def own_state(self) -> dict[str, Any]:
        average = None if self._average is None else self._average.model.state_dict()
        return {"teacher": self._teacher.state(), "average": average}

    def restore_own(self, state: dict[str, Any], source: str) -> None:
        self._steps.record_anew()
        self._teacher.restore(state.get("teacher"), source)
        average = state.get("average")
        if (average is None) != (self._settings.average_decay is None):
            got = "no average" if average is None else "an average"
            raise CheckpointError(where=source, got=got, allowed="the other", do="resume with the recipe of the run")
        if average is not None:
            self._update_average()
            load_state(average, self.result, source)

    def _learn(self, batch: Batch, position: Position, rate: float | Tensor, guard: Guard) -> Tensor:
        forward = self._forward_of_step()
        target = self._teacher.first_target(batch, position)
        losses = []
        for bits in self._widths:
            set_width(self.model, self._width(bits, position))
            suspect = Suspect(self.model, self._execution, batch.inputs, f"{bits} bits")
            logits = forward(batch.inputs)
            losses.append(backward(logits, target, suspect, guard, penalty=self._penalty(bits)))
            if bits == self._widths[0]:
                target = self._teacher.next_target(batch, logits.detach(), target)
            if self._settings.update == "per_width":
                self._update_all(rate, distance=self._widths[0] - bits)
        if self._settings.update == "accumulated":
            self._update_all(rate, distance=0)
        self._update_average()
        return torch.stack(losses)

    def _is_the_same_in_every_step(self) -> bool:
        """Whether a step does the same at every position, apart from its rate."""
        return self._settings.distillation != "ps_kd"  # how much its teacher says depends on the epoch

    def _forward_of_step(self) -> Forward:
        # the first batch sets the activation scales, which is no part of the graph to compile
        return self._forward.fast if is_initialised(self.model) else self._forward.plain

    def _width(self, bits: int, position: Position) -> int | WidthAssignment:
        """The widths of the layers in the pass of `bits`."""
        return bits

    def _penalty(self, bits: int) -> Tensor | None:
        """What the pass of `bits`, which has just computed its logits, adds to their cross entropy."""
        return None

    def _update_all(self, rate: float | Tensor, *, distance: int) -> None:
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


def mean_scale_gradient(model: nn.Module) -> Tensor:
    """m_b of ALRS, a scalar: mean over layers of the largest gradient of a layer's scales, clipped at 1."""
    layers = []
    for layer in model.modules():
        if isinstance(layer, QUANTIZED_LAYERS):
            scales = (layer.weight_quantizer.scale, *layer.input_quantizer.scales)
            gradients = [scale.grad for scale in scales if scale.grad is not None]
            layers.append(gradients or [scales[0].new_zeros(())])  # it had no part in the step
    most = max(map(len, layers))
    rows = [gradient for each in layers for gradient in (*each, *each[:1] * (most - len(each)))]
    peaks = torch.stack(torch._foreach_norm(rows, math.inf)).view(-1, most)  # few kernels, however deep the network is
    return peaks.amax(1).clamp_max(1.0).mean()


def is_initialised(model: nn.Module) -> bool:
    """Whether every quantizer of a prepared network has its scales at every width."""
    return all(quantizer.is_initialised for quantizer in _activation_quantizers(model))


def _activation_quantizers(model: nn.Module) -> Iterator[ActivationQuantizer]:
    return (module for module in model.modules() if isinstance(module, ActivationQuantizer))


def _update(optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
