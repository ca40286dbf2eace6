"""Drives a stage over its mini-batches: progress, checkpoints, resuming; and measures accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from bitswitch_deploy.errors import CheckpointError
from bitswitch_deploy.master.spec import MeasuredAccuracy, Preprocessing
from bitswitch_deploy.training.batches import Batches, preprocess
from bitswitch_deploy.training.checkpoint import load_state
from bitswitch_deploy.training.datasets import ImageSet
from bitswitch_deploy.training.prepare import set_width
from bitswitch_deploy.training.stages import Stage

_EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """How far a stage goes: steps start..stop-1 of a schedule of `total` steps, saved every `save_every` steps."""

    start: int
    stop: int
    total: int
    save_every: int


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
    stage: Stage, batches: Batches, plan: RunPlan, reached: Callable[[Milestone], None] | None = None
) -> None:
    """Train from `plan.start` to `plan.stop`.

    reached: called every `save_every` steps and at the end.

    Raises:
        CheckFailedError: the loss or a gradient is not finite; the message names width and layer.
    """
    recent: list[tuple[float, ...]] = []
    with _progress() as progress:
        task = progress.add_task(stage.name, total=plan.total, completed=plan.start, loss=float("nan"))
        started = time.monotonic()
        stage.model.train()
        for step in range(plan.start, plan.stop):
            recent.append(stage.step(*batches.batch(step), step, plan.total))
            progress.update(task, advance=1, loss=mean(recent[-1]))
            done = step + 1
            if reached is not None and (done % plan.save_every == 0 or done == plan.stop):
                reached(
                    Milestone(
                        step=done,
                        steps=len(recent),
                        state=stage_state(stage, done, plan.total),
                        losses=dict(zip(stage.losses, map(mean, zip(*recent)), strict=True)),
                        seconds=time.monotonic() - started,
                    )
                )
                recent.clear()
                stage.model.train()  # who measured a milestone did so in evaluation mode
                started = time.monotonic()


def stage_state(stage: Stage, step: int, total: int) -> dict[str, Any]:
    """Everything that the next step depends on, as tensors and plain values."""
    return {
        "stage": stage.name,
        "step": step,
        "total": total,
        "model": stage.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in stage.optimizers],
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
            optimizer.load_state_dict(saved)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(
            where=source, got=f"optimizer state: {exc}", allowed="the state of this run", do="start the run again"
        ) from exc
    return step


@torch.no_grad()
def top1(model: nn.Module, data: ImageSet, preprocessing: Preprocessing) -> float:
    """Percent of images whose largest logit is their label, in evaluation mode (left on)."""
    model.eval()
    correct = 0
    for start in range(0, len(data.labels), _EVALUATION_BATCH):
        inputs = preprocess(data.images[start : start + _EVALUATION_BATCH], preprocessing)
        predicted = model(inputs).argmax(1).numpy()
        correct += int(np.count_nonzero(predicted == data.labels[start : start + _EVALUATION_BATCH]))
    return 100.0 * correct / len(data.labels)


def measure_widths(
    model: nn.Module, widths: tuple[int, ...], data: ImageSet, preprocessing: Preprocessing
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


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} mini-batches, loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
