"""Drives a stage over its mini-batches: randomness, progress, checkpoints, resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import mean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from bitswitch_deploy.errors import CheckFailedError, CheckpointError, DataError
from bitswitch_deploy.training.backward import LOWER_RATE
from bitswitch_deploy.training.batches import BatchSource
from bitswitch_deploy.training.checkpoint import load_state
from bitswitch_deploy.training.global_batchnorm import check_buffers
from bitswitch_deploy.training.replicas import replica_index
from bitswitch_deploy.training.schedule import Position
from bitswitch_deploy.training.stages import FloatStage, Stage

# Guessing costs ln(classes), and a trained network that is quantized for the first time a few times as much at worst.
_DIVERGED = 10.0
_MIN_CLASSES = 10  # of two classes ten times the loss is soon reached by one that is sure and wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """How far a stage goes: steps start..stop-1 of a schedule of `total` steps, saved every `save_every` steps.

    seed: of what is random inside of the network, such as dropout; each step draws anew from (seed, step, replica).
    loss_limit: what no mean loss may stay above, see `divergence_limit`; None: no limit.
    """

    start: int
    stop: int
    total: int
    save_every: int
    seed: int = 0
    loss_limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestone:
    """Where a stage stands when it is saved.

    step: mini-batches done. state: what `restore_stage` takes.
    steps: mini-batches since the last milestone. losses: their means, by the stage's names. seconds: that they took.
    """

    step: int
    steps: int
    state: dict[str, Any]
    losses: dict[str, float]
    seconds: float


def run_stage(
    stage: Stage,
    batches: BatchSource,
    plan: RunPlan,
    reached: Callable[[Milestone], dict[str, float] | None] | None = None,
) -> None:
    """Train from `plan.start` to `plan.stop`; where no step is left, say so and leave the stage as it is.

    reached: called every `save_every` steps and at the end; gives accuracies to show, if it measured.

    Raises:
        CheckFailedError: the loss or a gradient is not finite; the message names width and layer. Or a mean loss is
            above the limit and does not fall; `reached` is not called then, so that an earlier state is kept.
        DataError: the source ends before the stage does.
        UsageError: the network keeps numbers in which replicas differ.
    """
    if plan.start >= plan.stop:
        if replica_index() == 0:
            Console(stderr=True).print(f"{stage.name}: done before, {plan.start} of {plan.total} mini-batches")
        return
    recent: list[list[float]] = []
    unread: list[Tensor] = []
    before: dict[str, float] = {}
    with _progress() as progress:
        task = progress.add_task(stage.name, total=plan.total, completed=plan.start, loss="--")
        started = time.monotonic()
        stage.model.train()
        done = plan.start
        for step, batch in enumerate(islice(batches.stream(plan.start, plan.stop), plan.stop - plan.start), plan.start):
            _seed_step(plan.seed, step)
            position = Position(step=step, total=plan.total, per_epoch=batches.per_epoch)
            unread.append(stage.step(batch, position))
            if step == plan.start:
                check_buffers(stage.model)
            done = step + 1
            is_milestone = done % plan.save_every == 0 or done == plan.stop
            progress.advance(task)
            if is_milestone or len(unread) >= stage.read_every:
                recent += _read(unread, done, stage, batches, plan)
                unread.clear()
                progress.update(task, loss=f"{mean(recent[-1]):.3f}")
            if reached is not None and is_milestone:
                milestone = Milestone(
                    step=done,
                    steps=len(recent),
                    state=stage_state(stage, done, plan.total),
                    losses=dict(zip(stage.losses, map(mean, zip(*recent)), strict=True)),
                    seconds=time.monotonic() - started,
                )
                _check_losses(milestone, before, plan)
                before = milestone.losses
                accuracies = reached(milestone) or {}
                _print_accuracies(progress, f"{stage.name} {done}/{plan.total}", accuracies)
                recent.clear()
                stage.model.train()  # who measured a milestone did so in evaluation mode
                started = time.monotonic()
    if done < plan.stop:
        raise DataError(
            where=f"training at {stage.name}",
            got=f"a source that ended after {done - plan.start} mini-batches",
            allowed=f"one for each step of stream({plan.start}, {plan.stop}), {plan.stop - plan.start} in all",
            do="let the source begin a new epoch where one ends; what was saved on the way stays",
        )


def _read(unread: list[Tensor], done: int, stage: Stage, batches: BatchSource, plan: RunPlan) -> list[list[float]]:
    """The losses of the last steps before `done`.

    Raises:
        CheckFailedError: one that no step has looked at is not finite.
    """
    losses: list[list[float]] = torch.stack(unread).tolist()
    if stage.read_every == 1:
        return losses  # the step has looked at them itself
    for step, values in enumerate(losses, done - len(losses)):
        bad = [name for name, value in zip(stage.losses, values, strict=True) if not math.isfinite(value)]
        if bad:
            _seed_step(plan.seed, step)
            (batch,) = batches.stream(step, step + 1)
            stage.diagnose(batch, Position(step=step, total=plan.total, per_epoch=batches.per_epoch))
            raise CheckFailedError(
                where=f"training at {bad[0]}, mini-batch {step}",
                got="a loss or a gradient that is not finite, but is when the step is taken again",
                allowed="finite numbers",
                do=f"{LOWER_RATE}; or leave out --fast",
            )
    return losses


def divergence_limit(classes: int) -> float:
    """Mean loss above which a run that does not recover has diverged: ten times the cross entropy of guessing.

    classes: outputs of the network; less than ten are taken as ten.
    """
    return _DIVERGED * math.log(max(classes, _MIN_CLASSES))


def _check_losses(milestone: Milestone, before: Mapping[str, float], plan: RunPlan) -> None:
    """See that no mean loss is above the limit without falling; `before` are those of the milestone before, if any."""
    for name, loss in milestone.losses.items():
        # At a rate that is much too high the first epochs of Adam cost 25 times guessing, and fall to it: measured on
        # digits. As long as a mean falls the run may recover, and before the first one there is none to compare with.
        falls = loss < before.get(name, math.inf) and milestone.step < plan.total
        if plan.loss_limit is not None and loss > plan.loss_limit and not falls:
            network = "of the float network" if name == FloatStage.name else f"at {name.removeprefix('w')} bits"
            raise CheckFailedError(
                where=f"training {network}",
                got=f"a mean loss of {loss:.4g}, behind mini-batch {milestone.step}",
                allowed=f"{plan.loss_limit:.4g}, ten times what guessing costs, or less than in the epoch before",
                do=LOWER_RATE,
            )


def _seed_step(seed: int, step: int) -> None:
    """What a step draws depends on its number alone, so a run that resumes needs no state of a generator."""
    torch.manual_seed(int(np.random.SeedSequence([seed, 2, step, replica_index()]).generate_state(1)[0]))


def stage_state(stage: Stage, step: int, total: int) -> dict[str, Any]:
    """Everything that the next step depends on, as tensors and plain values."""
    return {
        "stage": stage.name,
        "step": step,
        "total": total,
        "model": stage.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in stage.optimizers],
        **stage.own_state(),
    }


def restore_stage(stage: Stage, state: dict[str, Any], total: int, source: str) -> int:
    """Put a stage where `stage_state` left it; returns the step to go on with.

    Raises:
        CheckpointError: the state is of another stage, schedule or network.
    """
    got = (state.get("stage"), state.get("total"))
    step, optimizers = state.get("step"), state.get("optimizers")
    if got != (stage.name, total) or not isinstance(step, int) or not 0 <= step <= total:
        raise CheckpointError(
            where=source,
            got=f"stage {got[0]}, step {step} of {got[1]}",
            allowed=f"stage {stage.name}, a schedule of {total} steps",
            do="resume with the recipe and the number of steps that the run was started with",
        )
    load_state(state.get("model", {}), stage.model, source)
    try:
        for optimizer, saved in zip(stage.optimizers, optimizers or (), strict=True):
            _load_optimizer(saved, optimizer)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(
            where=source, got=f"optimizer state: {exc}", allowed="the state of this run", do="start the run again"
        ) from exc
    stage.restore_own(state, source)
    return step


def _load_optimizer(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Take over the state of an optimizer that may have been on another device, or with other execution."""
    groups = [
        # all but the rate is the recipe's
        {**own, "params": group["params"], "lr": float(group["lr"])}
        for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if name != "step" and value.shape != parameter.shape:
                raise ValueError(f"{name} {list(value.shape)} of a parameter {list(parameter.shape)}")
            # torch's fused optimizers want the order in memory to be the same; the count of steps has its own device
            if name != "step" and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)


def _print_accuracies(progress: Progress, where: str, accuracies: dict[str, float]) -> None:
    if accuracies and replica_index() == 0:
        progress.console.print(f"{where}: " + ", ".join(f"{name} {value:.2f} %" for name, value in accuracies.items()))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} mini-batches, loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=replica_index() > 0,
    )
