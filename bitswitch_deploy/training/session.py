"""A whole run: recipe and data in, master out. Interrupted, it goes on from its state file."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckpointError, UsageError
from bitswitch_deploy.master import Master
from bitswitch_deploy.training.batches import Batches
from bitswitch_deploy.training.checkpoint import import_checkpoint, load_checkpoint, save_checkpoint
from bitswitch_deploy.training.datasets import Dataset, load_dataset
from bitswitch_deploy.training.master_export import TrainingRecord, build_master
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.prepare import PreparedNetwork, prepare
from bitswitch_deploy.training.recipe import Recipe, StageSettings
from bitswitch_deploy.training.stages import FloatStage, JointStage, Stage
from bitswitch_deploy.training.trainer import RunPlan, measure_widths, restore_stage, run_stage, top1

_CHANNELS = {"L": 1, "RGB": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What to run.

    data: folder that holds the data set as a folder of its name, and `recipe.float_checkpoint`.
    state: file that the run is saved to on the way. resume: go on from there if it exists.
    checkpoint: trained float weights to start from instead of those of the recipe.
    joint_steps: length of the joint stage in mini-batches, instead of the recipe's epochs.
    threads: of torch; two runs are equal only with the same number.
    """

    recipe: Recipe
    data: Path
    state: Path
    resume: bool = False
    checkpoint: Path | None = None
    joint_steps: int | None = None
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedNetwork:
    """The outcome: the network, its master, and the top-1 of the float network in percent of the test split."""

    network: PreparedNetwork
    master: Master
    float_top1: float


def run_session(session: Session) -> TrainedNetwork:
    """Train the float network unless one is given, then all widths jointly; measure, and build the master.

    The same session gives the same master on the same machine.

    Raises:
        UsageError, DataError, CheckpointError: an input that does not fit.
        CheckFailedError: training diverged.
    """
    recipe = session.recipe
    torch.set_num_threads(session.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(recipe.seed)
    dataset = load_dataset(recipe.dataset, session.data / recipe.dataset)
    saved = _saved_state(session)
    model = build_network(recipe.network)
    if saved.get("stage") == JointStage.name:
        float_top1 = _saved_top1(saved, session)  # the weights come with the joint state
    else:
        _obtain_float(session, dataset, model, saved)
        float_top1 = top1(model, dataset.test, recipe.preprocessing)
    network = prepare(model, (_example(recipe),), recipe.quantization)
    joint = JointStage(network, recipe.joint)
    _drive(session, joint, dataset, saved, {"float_top1": float_top1})
    accuracy = measure_widths(network.model, recipe.quantization.widths, dataset.test, recipe.preprocessing)
    provenance = _provenance(session, float_top1)
    record = TrainingRecord(accuracy=accuracy, preprocessing=recipe.preprocessing, provenance=provenance)
    master = build_master(network, (_example(recipe),), record)
    return TrainedNetwork(network=network, master=master, float_top1=float_top1)


def _saved_state(session: Session) -> dict[str, Any]:
    if not session.state.exists():
        return {}
    if not session.resume:
        raise UsageError(
            where=str(session.state),
            got="an interrupted run left its state here",
            allowed="no state file, or a run that resumes",
            do="go on with --resume, or delete the file to start again",
        )
    return load_checkpoint(session.state)


def _obtain_float(session: Session, dataset: Dataset, model: nn.Module, saved: dict[str, Any]) -> None:
    """Load the trained float network, or train it."""
    recipe = session.recipe
    checkpoint = session.checkpoint
    if checkpoint is None and recipe.float_checkpoint is not None:
        checkpoint = session.data / recipe.float_checkpoint
    if checkpoint is not None:
        import_checkpoint(checkpoint, model)
    else:
        _drive(session, FloatStage(model, recipe.pretrain), dataset, saved, {})


def _drive(session: Session, stage: Stage, dataset: Dataset, saved: dict[str, Any], extra: dict[str, float]) -> None:
    """Run a stage to its end, from `saved` when that is a state of this stage; `extra` is saved with it."""
    settings = _settings(session.recipe, stage)
    batches = Batches(
        dataset.train,
        preprocessing=session.recipe.preprocessing,
        augmentation=session.recipe.augmentation,
        batch_size=settings.batch_size,
        seed=session.recipe.seed,
    )
    total = settings.epochs * batches.per_epoch
    if stage.name == JointStage.name and session.joint_steps is not None:
        total = session.joint_steps
    start = restore_stage(stage, saved, total, str(session.state)) if saved.get("stage") == stage.name else 0
    plan = RunPlan(start=start, stop=total, total=total, save_every=batches.per_epoch)
    run_stage(stage, batches, plan, save=lambda state: save_checkpoint({**state, **extra}, session.state))


def _settings(recipe: Recipe, stage: Stage) -> StageSettings:
    return recipe.joint if stage.name == JointStage.name else recipe.pretrain


def _saved_top1(saved: dict[str, Any], session: Session) -> float:
    value = saved.get("float_top1")
    if not isinstance(value, float):
        raise CheckpointError(
            where=str(session.state),
            got=f"float_top1 = {value!r}",
            allowed="a state file of this tool",
            do="start the run again without --resume",
        )
    return value


def _example(recipe: Recipe) -> Tensor:
    return torch.zeros(2, _CHANNELS[recipe.preprocessing.colour], *recipe.preprocessing.size)


def _provenance(session: Session, float_top1: float) -> tuple[tuple[str, str], ...]:
    steps = () if session.joint_steps is None else (("joint_steps", str(session.joint_steps)),)
    return (
        ("recipe", session.recipe.name),
        ("seed", str(session.recipe.seed)),
        *steps,
        ("float_top1", f"{float_top1:.2f}"),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("numpy", np.__version__),
    )
