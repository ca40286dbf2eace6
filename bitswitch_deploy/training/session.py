"""A whole run: recipe and data in, master out. Interrupted, it goes on from its state file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckpointError, UsageError
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import MeasuredAccuracy
from bitswitch_deploy.training.batches import Batches
from bitswitch_deploy.training.checkpoint import import_checkpoint, load_checkpoint, save_checkpoint
from bitswitch_deploy.training.datasets import Dataset, load_dataset
from bitswitch_deploy.training.master_export import TrainingRecord, build_master
from bitswitch_deploy.training.metrics_log import VERSIONS, MetricsLog, host_text
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.prepare import PreparedNetwork, prepare
from bitswitch_deploy.training.recipe import Recipe, StageSettings
from bitswitch_deploy.training.stages import FloatStage, JointStage, Stage
from bitswitch_deploy.training.trainer import Milestone, RunPlan, measure_widths, restore_stage, run_stage, top1

_CHANNELS = {"L": 1, "RGB": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What to run.

    data: folder that holds the data set as a folder of its name, and `recipe.float_checkpoint`.
    state: file that the run is saved to on the way. resume: go on from there if it exists.
    checkpoint: trained float weights to start from instead of those of the recipe.
    joint_steps: length of the joint stage in mini-batches, instead of the recipe's epochs.
    threads: of torch; two runs are equal only with the same number. fast: compile the steps (`stages.compiled`).
    log: file that gets a line for each epoch (`metrics_log`), with the accuracy that it reached.
    """

    recipe: Recipe
    data: Path
    state: Path
    resume: bool = False
    checkpoint: Path | None = None
    joint_steps: int | None = None
    threads: int = 1
    fast: bool = False
    log: Path | None = None


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
    run = _Run(session=session, dataset=dataset, saved=_saved_state(session), log=MetricsLog(session.log))
    run.log.write("start", **_circumstances(session), step=run.saved.get("step", 0))
    model, float_top1 = run.float_network()
    network = prepare(model, (_example(recipe),), recipe.quantization)
    accuracy = run.train_jointly(network, float_top1)
    provenance = _provenance(session, float_top1)
    record = TrainingRecord(accuracy=accuracy, preprocessing=recipe.preprocessing, provenance=provenance)
    master = build_master(network, (_example(recipe),), record)
    run.log.write("end", float_top1=float_top1, top1=_by_width(accuracy), master_sha256=master.sha256)
    return TrainedNetwork(network=network, master=master, float_top1=float_top1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A session under way. saved: the state that it goes on from; empty when it begins."""

    session: Session
    dataset: Dataset
    saved: dict[str, Any]
    log: MetricsLog

    def float_network(self) -> tuple[nn.Module, float]:
        """The trained float network and its top-1: loaded, or trained."""
        recipe = self.session.recipe
        model = build_network(recipe.network)
        if self.saved.get("stage") == JointStage.name:
            return model, _saved_top1(self.saved, self.session)  # the weights come with the joint state
        checkpoint = self.session.checkpoint
        if checkpoint is None and recipe.float_checkpoint is not None:
            checkpoint = self.session.data / recipe.float_checkpoint

        def measure() -> dict[str, float]:
            return {"float": top1(model, self.dataset.test, recipe.preprocessing)}

        if checkpoint is not None:
            import_checkpoint(checkpoint, model)
        else:
            stage = FloatStage(model, recipe.pretrain, fast=self.session.fast)
            self._drive(stage, recipe.pretrain, {}, measure)
        return model, measure()["float"]

    def train_jointly(self, network: PreparedNetwork, float_top1: float) -> tuple[MeasuredAccuracy, ...]:
        """Train at all widths; the accuracy that each ends with."""
        recipe = self.session.recipe

        def measure() -> tuple[MeasuredAccuracy, ...]:
            return measure_widths(network.model, network.options.widths, self.dataset.test, recipe.preprocessing)

        stage = JointStage(network, recipe.joint, fast=self.session.fast)
        self._drive(stage, recipe.joint, {"float_top1": float_top1}, lambda: _by_width(measure()))
        return measure()

    def _drive(
        self, stage: Stage, settings: StageSettings, extra: dict[str, float], measure: Callable[[], dict[str, float]]
    ) -> None:
        """Run a stage to its end, from `saved` when that is a state of this stage; `extra` is saved with it."""
        session = self.session
        batches = Batches(
            self.dataset.train,
            preprocessing=session.recipe.preprocessing,
            augmentation=session.recipe.augmentation,
            batch_size=settings.batch_size,
            seed=session.recipe.seed,
        )
        total = settings.epochs * batches.per_epoch
        if stage.name == JointStage.name and session.joint_steps is not None:
            total = session.joint_steps
        resumed = self.saved.get("stage") == stage.name
        start = restore_stage(stage, self.saved, total, str(session.state)) if resumed else 0

        def reached(milestone: Milestone) -> None:
            save_checkpoint({**milestone.state, **extra}, session.state)
            self.log.write(
                "epoch",
                stage=stage.name,
                step=milestone.step,
                total=total,
                losses=milestone.losses,
                top1=measure(),
                seconds=round(milestone.seconds, 3),
                images_per_s=round(milestone.steps * settings.batch_size / milestone.seconds, 1),
            )

        run_stage(stage, batches, RunPlan(start=start, stop=total, total=total, save_every=batches.per_epoch), reached)


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


def _by_width(accuracy: tuple[MeasuredAccuracy, ...]) -> dict[str, float]:
    return {f"w{entry.bits}": entry.value for entry in accuracy}


def _circumstances(session: Session) -> dict[str, Any]:
    """What the figures of a log depend on."""
    recipe = session.recipe
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "joint_epochs": recipe.joint.epochs,
        "joint_steps": session.joint_steps,
        "threads": session.threads,
        "fast": session.fast,
        "host": host_text(),
        "versions": VERSIONS,
    }


def _provenance(session: Session, float_top1: float) -> tuple[tuple[str, str], ...]:
    steps = () if session.joint_steps is None else (("joint_steps", str(session.joint_steps)),)
    return (
        ("recipe", session.recipe.name),
        ("seed", str(session.recipe.seed)),
        *steps,
        ("float_top1", f"{float_top1:.2f}"),
        *((name, VERSIONS[name]) for name in ("python", "torch", "numpy")),
    )
