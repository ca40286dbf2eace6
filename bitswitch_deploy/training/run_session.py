"""A whole run: recipe and data in, master out. Interrupted, it goes on from its state file.

Started by torchrun, the processes share the work; the first one reads and writes the files of the run.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import MeasuredAccuracy
from bitswitch_deploy.training.batches import Batch, BatchSource, make_batches
from bitswitch_deploy.training.carry_over import carry_over
from bitswitch_deploy.training.checkpoint import import_checkpoint, save_checkpoint
from bitswitch_deploy.training.datasets import AnyDataset, check_labels, load_splits
from bitswitch_deploy.training.evaluation import (
    MixedAccuracy,
    draw_subnets,
    measure_subnets,
    measure_widths,
    own_share,
    top1,
)
from bitswitch_deploy.training.execution import settle_torch
from bitswitch_deploy.training.master_export import TrainingRecord, build_master
from bitswitch_deploy.training.master_import import import_master
from bitswitch_deploy.training.metrics_log import MetricsLog, lacks_epoch
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.prepare import PreparedNetwork, prepare, set_width
from bitswitch_deploy.training.recipe import (
    Recipe,
    StageSettings,
    SupernetSettings,
    check_decisions,
    stage_decisions,
)
from bitswitch_deploy.training.replicas import from_first, joined_replicas, replica_index
from bitswitch_deploy.training.roulette import sensitive_layers
from bitswitch_deploy.training.run_record import circumstances, origin_entry, parent_entry, provenance_of, runs_behind
from bitswitch_deploy.training.run_state import MASTER, TRAINED_STAGES, origin_state, saved_state, saved_top1
from bitswitch_deploy.training.sensitivity import (
    MIN_SAMPLES,
    measured_sensitivities,
    quantized_layers,
    read_sensitivities,
)
from bitswitch_deploy.training.session import Session
from bitswitch_deploy.training.stages import FloatStage, JointStage, Stage
from bitswitch_deploy.training.supernet import SupernetStage
from bitswitch_deploy.training.trainer import Milestone, RunPlan, divergence_limit, restore_stage, run_stage

_MEASURED_SUBNETS = 16
_TOLD = ("steps", "losses", "seconds")  # what a state keeps of its milestone, for the log


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedNetwork:
    """The outcome: the network, its master, and the top-1 of the float network in percent of the test split.

    mixed: what mixtures of widths reach, after a supernet stage.
    """

    network: PreparedNetwork
    master: Master
    float_top1: float
    mixed: MixedAccuracy | None = None


def run_session(session: Session) -> TrainedNetwork:
    """Train the float network unless one is given, then all widths jointly, then mixtures if the recipe says so.

    What comes out is measured and becomes the master. The same session gives the same one on the same machine.

    Raises:
        UsageError, DataError, CheckpointError: an input that does not fit.
        CheckFailedError: training diverged.
    """
    settle_torch(session.execution.device, seed=session.recipe.seed, threads=session.threads)
    with joined_replicas(session.execution.device):
        return _run(session)


def _run(session: Session) -> TrainedNetwork:
    recipe = session.recipe
    model = build_network(recipe.network)
    dataset = load_splits(recipe.dataset, session.data, recipe.preprocessing, workers=session.workers)
    classes = _class_count(model, recipe)
    check_labels(dataset, classes)
    is_first = replica_index() == 0
    saved = from_first(saved_state(session) if is_first else None)
    origin = from_first(origin_state(session, saved) if is_first else None)
    if origin and origin["stage"] != MASTER:
        check_decisions(origin.get("decisions"), _data_decisions(dataset), str(session.start_from))
    started = circumstances(session, saved)
    is_untold = from_first(is_first and _is_untold(session, saved))
    log = MetricsLog(session.log if is_first else None)
    runs = runs_behind(saved, origin, started)
    log.write("start", **started, step=saved.get("step", 0), **parent_entry(saved), **origin_entry(origin))
    # what these refuse is said before the float network is trained
    prepared = prepare(model, (_example(recipe),), recipe.quantization, check_export=False)
    run = _Run(
        session=session,
        dataset=dataset,
        classes=classes,
        saved=saved,
        origin=origin,
        runs=runs,
        log=log,
        is_untold=is_untold,
        sensitivities=_told_sensitivities(session, saved, prepared),
    )
    if not saved:
        for _ in own_share(dataset.test):
            pass
    model, float_top1 = run.float_network(model)
    prepared = prepare(model, (_example(recipe),), recipe.quantization, check_export=False)
    if session.start_from is not None and origin.get("stage") == MASTER:
        import_master(session.start_from, prepared, (_example(recipe),))
    elif origin:
        carry_over(origin, prepared, recipe, str(session.start_from))
    run.log.write("prepared", layers={each.name: f"{each.decision}: {each.reason}" for each in prepared.report})
    network, accuracy = run.train_jointly(prepared, float_top1)
    mixed = None
    if recipe.supernet is not None:
        network, accuracy, mixed = run.train_supernet(network, recipe.supernet, float_top1)
    provenance = provenance_of(session, run.runs, float_top1)
    record = TrainingRecord(accuracy=accuracy, preprocessing=recipe.preprocessing, provenance=provenance)
    master = build_master(network, (_example(recipe),), record)
    top1_of = _by_width(accuracy) | _of_mixtures(mixed)
    run.log.write("end", float_top1=float_top1, top1=top1_of, master_sha256=master.sha256)
    return TrainedNetwork(network=network, master=master, float_top1=float_top1, mixed=mixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A session under way.

    classes: outputs of the network.
    saved: the state that it goes on from; empty when it begins. origin: that of another run, of which it takes the
    weights; empty when it takes none, or goes on. runs: what states of this session say of where they come from.
    is_untold: whether what measuring `saved` gave is still to be written to the log.
    sensitivities: of the layers, as the recipe's file has them; None: to be measured, where they are needed.
    """

    session: Session
    dataset: AnyDataset
    classes: int
    saved: dict[str, Any]
    origin: dict[str, Any]
    runs: list[dict[str, Any]]
    log: MetricsLog
    is_untold: bool
    sensitivities: dict[str, float] | None

    def float_network(self, model: nn.Module) -> tuple[nn.Module, float]:
        """The trained float network, on the CPU, and its top-1: `model` with weights loaded or trained."""
        session, recipe = self.session, self.session.recipe
        if self.saved.get("stage") in TRAINED_STAGES:
            return model, saved_top1(self.saved, session.state)  # the weights come with the joint state
        if session.start_from is not None:
            return model, saved_top1(self.origin, session.start_from)  # and these with another's

        def measure() -> dict[str, float]:
            return {"float": top1(model, self.dataset.test, recipe.preprocessing)}

        if session.float_checkpoint is not None:
            import_checkpoint(session.float_checkpoint, model)
            model.to(session.execution.device)
        else:
            if recipe.float_checkpoint is not None and replica_index() == 0:
                missing = f"no {recipe.float_checkpoint} in {session.data}"
                Console(stderr=True).print(f"{missing}: training the float network first", soft_wrap=True)
            self._drive(FloatStage(model, recipe.pretrain, execution=session.execution), recipe.pretrain, {}, measure)
        float_top1 = measure()["float"]
        fresh = build_network(recipe.network)  # of several replicas `model` has other BatchNorm classes
        fresh.load_state_dict(model.state_dict())
        return fresh, float_top1

    def train_jointly(
        self, network: PreparedNetwork, float_top1: float
    ) -> tuple[PreparedNetwork, tuple[MeasuredAccuracy, ...]]:
        """Train at all widths; the network to export, on the CPU, and the accuracy that each width ends with."""
        session, recipe = self.session, self.session.recipe
        if self.saved.get("stage") == SupernetStage.name:
            return network, ()  # its weights come with the state of the supernet
        samples = len(self.dataset.train.labels)
        stage = JointStage(network, recipe.joint, samples=samples, execution=session.execution)
        return self._drive_widths(stage, network, recipe.joint, float_top1)

    def train_supernet(
        self, network: PreparedNetwork, settings: SupernetSettings, float_top1: float
    ) -> tuple[PreparedNetwork, tuple[MeasuredAccuracy, ...], MixedAccuracy]:
        """Train mixtures of widths, from a network that is trained jointly; as there, and what mixtures reach."""
        session, recipe = self.session, self.session.recipe
        batches = self._batches(settings)
        chosen = list(batches.stream(0, min(batches.per_epoch, -(-MIN_SAMPLES // settings.batch_size))))
        resumed = self.saved.get("stage") == SupernetStage.name
        network.model.to(session.execution.device)
        stage = SupernetStage(
            network,
            settings,
            sensitive=() if resumed or settings.draw != "hasb" else self._sensitive(network.model, chosen),
            samples=len(self.dataset.train.labels),
            seed=recipe.seed,
            execution=session.execution,
        )
        layers = tuple(quantized_layers(network.model))
        trained, accuracy = self._drive_widths(stage, network, settings, float_top1)
        subnets = draw_subnets(layers, network.options.widths, count=_MEASURED_SUBNETS, seed=recipe.seed)
        device_model = trained.model.to(session.execution.device)
        mixed = measure_subnets(device_model, subnets, self.dataset.test, recipe.preprocessing, batches=chosen)
        set_width(device_model, network.options.widths[0])
        return replace(trained, model=device_model.cpu()), accuracy, mixed

    def _sensitive(self, model: nn.Module, batches: list[Batch]) -> tuple[str, ...]:
        """The layers that the roulette favours, by the file of the recipe or by traces that are measured now."""
        found = self.sensitivities
        if found is None:
            found = measured_sensitivities(model, batches, seed=self.session.recipe.seed)
        self.log.write("sensitivities", traces_per_weight=found)
        return sensitive_layers(found)

    def _drive_widths(
        self, stage: JointStage, network: PreparedNetwork, settings: StageSettings, float_top1: float
    ) -> tuple[PreparedNetwork, tuple[MeasuredAccuracy, ...]]:
        """Run a stage of a prepared network; its result, on the CPU, and the accuracy at each width."""

        def measure() -> tuple[MeasuredAccuracy, ...]:
            test, preprocessing = self.dataset.test, self.session.recipe.preprocessing
            return measure_widths(stage.result, network.options.widths, test, preprocessing)

        self._drive(stage, settings, {"float_top1": float_top1}, lambda: _by_width(measure()))
        accuracy = measure()
        return replace(network, model=stage.result.cpu()), accuracy

    def _batches(self, settings: StageSettings) -> BatchSource:
        """The mini-batches of a stage."""
        recipe = self.session.recipe
        return make_batches(
            self.dataset.train,
            recipe.preprocessing,
            recipe.augmentation,
            batch_size=settings.batch_size,
            seed=recipe.seed,
            device=self.session.execution.device,
        )

    def _drive(
        self, stage: Stage, settings: StageSettings, extra: dict[str, float], measure: Callable[[], dict[str, float]]
    ) -> None:
        """Run a stage to its end, from `saved` when that is a state of this stage; `extra` is saved with it.

        Raises:
            CheckpointError: the state is of another stage, schedule, network or recipe.
            CheckFailedError: training diverged.
        """
        gc.collect()  # an earlier stage refers to itself, and with it stays what a device holds for its steps
        session, recipe = self.session, self.session.recipe
        batches = self._batches(settings)
        batch_size = min(settings.batch_size, batches.samples)
        total = settings.epochs * batches.per_epoch
        if stage.name == JointStage.name and session.joint_steps is not None:
            total = session.joint_steps
        resumed = self.saved.get("stage") == stage.name
        decided = stage_decisions(recipe, settings) | _data_decisions(self.dataset)
        if resumed:
            check_decisions(self.saved.get("decisions", {}), decided, str(session.state))
        start = restore_stage(stage, self.saved, total, str(session.state)) if resumed else 0

        def tell(milestone: Milestone) -> dict[str, float]:
            accuracies = measure()
            self.log.write_epoch(
                stage.name,
                milestone.step,
                milestone.losses,
                accuracies,
                total=total,
                seconds=round(milestone.seconds, 3),
                images_per_s=round(milestone.steps * batch_size / milestone.seconds, 1),
            )
            return accuracies

        def reached(milestone: Milestone) -> dict[str, float]:
            if replica_index() == 0:
                told = {name: getattr(milestone, name) for name in _TOLD}
                kept = {**milestone.state, **extra, "decisions": decided, "runs": self.runs, "milestone": told}
                save_checkpoint(kept, session.state)
            return tell(milestone)

        if resumed and self.is_untold and "milestone" in self.saved:
            tell(Milestone(step=start, state={}, **self.saved["milestone"]))
        # what a loss of distortion adds has no limit
        is_distorted = isinstance(settings, SupernetSettings) and settings.distortion > 0
        plan = RunPlan(
            start=start,
            stop=total,
            total=total,
            save_every=session.save_every * batches.per_epoch,
            seed=recipe.seed,
            loss_limit=None if is_distorted else divergence_limit(self.classes),
        )
        run_stage(stage, batches, plan, reached)


def _is_untold(session: Session, saved: dict[str, Any]) -> bool:
    """Whether the run was killed between saving a state and writing the line of the log, while it measured."""
    return bool(saved) and session.log is not None and lacks_epoch(session.log, saved["stage"], saved["step"])


def _told_sensitivities(session: Session, saved: dict[str, Any], network: PreparedNetwork) -> dict[str, float] | None:
    """The sensitivities in the file that the recipe names; None: it names none, or they are in the state already.

    Raises:
        InputFileError: the file does not fit.
    """
    settings = session.recipe.supernet
    if settings is None or settings.sensitivities is None or saved.get("stage") == SupernetStage.name:
        return None
    return read_sensitivities(session.data / settings.sensitivities, tuple(quantized_layers(network.model)))


def _data_decisions(dataset: AnyDataset) -> dict[str, str]:
    """Which data a stage learns from, like `stage_decisions`: its name is that of any data in such a folder."""
    return {
        f"dataset_sha256.{split}": json.dumps(data.sha256)
        for split, data in (("train", dataset.train), ("test", dataset.test))
    }


def _example(recipe: Recipe) -> Tensor:
    return torch.zeros(2, recipe.preprocessing.channels, *recipe.preprocessing.size)


@torch.no_grad()
def _class_count(model: nn.Module, recipe: Recipe) -> int:
    """How many classes a network has.

    Raises:
        UsageError: it does not take the images of the recipe, or does not give one row of logits for each.
    """
    example = _example(recipe)
    try:
        logits = model.eval()(example)
    except RuntimeError as exc:
        raise _unfit(recipe, f"inputs {list(example.shape)}: {exc}") from exc
    if logits.dim() != 2 or len(logits) != len(example):
        raise _unfit(recipe, f"outputs {list(logits.shape)} for {len(example)} images")
    return int(logits.shape[1])


def _unfit(recipe: Recipe, got: str) -> UsageError:
    return UsageError(
        where=f"network {recipe.network}",
        got=got,
        allowed="a network that takes the images of the recipe and gives logits [n, classes]",
        do="correct network or preprocessing in the recipe",
    )


def _by_width(accuracy: tuple[MeasuredAccuracy, ...]) -> dict[str, float]:
    return {f"w{entry.bits}": entry.value for entry in accuracy}


def _of_mixtures(mixed: MixedAccuracy | None) -> dict[str, float]:
    return {} if mixed is None else {"mixed": mixed.as_trained, "mixed, re-estimated": mixed.reestimated}
