"""A whole run: recipe and data in, master out. Interrupted, it goes on from its state file.

Started by torchrun, the processes share the work; the first one reads and writes the files of the run.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckpointError, UsageError
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import MeasuredAccuracy
from bitswitch_deploy.training.batches import Batch, BatchSource, make_batches
from bitswitch_deploy.training.checkpoint import import_checkpoint, load_checkpoint, save_checkpoint
from bitswitch_deploy.training.datasets import AnyDataset, check_labels, load_splits
from bitswitch_deploy.training.evaluation import MixedAccuracy, draw_subnets, measure_subnets, measure_widths, top1
from bitswitch_deploy.training.execution import Execution, settle_torch
from bitswitch_deploy.training.master_export import TrainingRecord, build_master
from bitswitch_deploy.training.metrics_log import VERSIONS, MetricsLog, host_text
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.prepare import PreparedNetwork, prepare, set_width
from bitswitch_deploy.training.recipe import (
    Recipe,
    StageSettings,
    SupernetSettings,
    check_decisions,
    stage_decisions,
)
from bitswitch_deploy.training.replicas import from_first, joined_replicas, replica_count, replica_index
from bitswitch_deploy.training.roulette import sensitive_layers
from bitswitch_deploy.training.sensitivity import (
    MIN_SAMPLES,
    measured_sensitivities,
    quantized_layers,
    read_sensitivities,
)
from bitswitch_deploy.training.stages import FloatStage, JointStage, Stage
from bitswitch_deploy.training.supernet import SupernetStage
from bitswitch_deploy.training.trainer import Milestone, RunPlan, divergence_limit, restore_stage, run_stage

_MEASURED_SUBNETS = 16
_TRAINED = (JointStage.name, SupernetStage.name)  # a state of these has the float network's weights in it
# what a state file keeps of each run that it comes from; `decisions` beside it tells what its steps depended on
_OF_A_RUN = (
    *("recipe", "seed", "float_checkpoint", "float_checkpoint_sha256", "joint_steps", "threads", "fast"),
    *("precision", "replicas", "device", "host", "versions"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What to run.

    data: folder that holds the data set, as a folder of its name or itself, and `recipe.float_checkpoint`.
    state: file that the run is saved to on the way. resume: go on from there if it exists.
    checkpoint: trained float weights to start from instead of those of the recipe.
    joint_steps: length of the joint stage in mini-batches, instead of the recipe's epochs.
    threads: of torch; two runs are equal only with the same number.
    save_every: epochs between two lines of the log, before each of which the run is saved and measured.
    execution: device, precision, compiled or not. workers: processes that decode an image folder.
    log: file of what the run reached (`metrics_log`).
    """

    recipe: Recipe
    data: Path
    state: Path
    resume: bool = False
    checkpoint: Path | None = None
    joint_steps: int | None = None
    save_every: int = 1
    threads: int = 1
    execution: Execution = field(default_factory=Execution)
    workers: int = 0
    log: Path | None = None

    @property
    def float_checkpoint(self) -> Path | None:
        """The trained float weights that are there to start from; None: they are to be trained."""
        if self.checkpoint is not None or self.recipe.float_checkpoint is None:
            return self.checkpoint
        path = self.data / self.recipe.float_checkpoint
        return path if path.is_file() else None


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
    classes = _outputs(model, recipe)
    check_labels(dataset, classes)
    is_first = replica_index() == 0
    saved = from_first(_saved_state(session) if is_first else None)
    started = _circumstances(session, saved)
    log = MetricsLog(session.log if is_first else None)
    run = _Run(session=session, dataset=dataset, classes=classes, saved=saved, runs=_runs(saved, started), log=log)
    log.write("start", **started, step=saved.get("step", 0), **_parent(saved))
    model, float_top1 = run.float_network(model)
    prepared = prepare(model, (_example(recipe),), recipe.quantization)
    run.log.write("prepared", layers={each.name: f"{each.decision}: {each.reason}" for each in prepared.report})
    network, accuracy = run.train_jointly(prepared, float_top1)
    mixed = None
    if recipe.supernet is not None:
        network, accuracy, mixed = run.train_supernet(network, recipe.supernet, float_top1)
    provenance = _provenance(session, run.runs, float_top1)
    record = TrainingRecord(accuracy=accuracy, preprocessing=recipe.preprocessing, provenance=provenance)
    master = build_master(network, (_example(recipe),), record)
    top1_of = _by_width(accuracy) | _of_mixtures(mixed)
    run.log.write("end", float_top1=float_top1, top1=top1_of, master_sha256=master.sha256)
    return TrainedNetwork(network=network, master=master, float_top1=float_top1, mixed=mixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A session under way.

    classes: outputs of the network.
    saved: the state that it goes on from; empty when it begins. runs: what states of this session say of their origin.
    """

    session: Session
    dataset: AnyDataset
    classes: int
    saved: dict[str, Any]
    runs: list[dict[str, Any]]
    log: MetricsLog

    def float_network(self, model: nn.Module) -> tuple[nn.Module, float]:
        """The trained float network, on the CPU, and its top-1: `model` with weights loaded or trained."""
        session, recipe = self.session, self.session.recipe
        if self.saved.get("stage") in _TRAINED:
            return model, _saved_top1(self.saved, session)  # the weights come with the joint state

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
        """Train mixtures of widths, from a network that is trained jointly; as there, and what mixtures reach.

        Raises:
            InputFileError: a file of sensitivities that does not fit.
        """
        session, recipe = self.session, self.session.recipe
        batches = self._batches(settings)
        chosen = list(batches.stream(0, min(batches.per_epoch, -(-MIN_SAMPLES // settings.batch_size))))
        resumed = self.saved.get("stage") == SupernetStage.name
        network.model.to(session.execution.device)
        stage = SupernetStage(
            network,
            settings,
            sensitive=() if resumed or settings.draw != "hasb" else self._sensitive(network.model, settings, chosen),
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

    def _sensitive(self, model: nn.Module, settings: SupernetSettings, batches: list[Batch]) -> tuple[str, ...]:
        """The layers that the roulette favours, by the file of the recipe or by traces that are measured now."""
        recipe = self.session.recipe
        if settings.sensitivities is not None:
            path = self.session.data / settings.sensitivities
            found = read_sensitivities(path, tuple(quantized_layers(model)))
        else:
            found = measured_sensitivities(model, batches, seed=recipe.seed)
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
        total = settings.epochs * batches.per_epoch
        if stage.name == JointStage.name and session.joint_steps is not None:
            total = session.joint_steps
        resumed = self.saved.get("stage") == stage.name
        start = restore_stage(stage, self.saved, total, str(session.state)) if resumed else 0
        decided = stage_decisions(recipe, settings)
        if resumed:
            check_decisions(self.saved.get("decisions", {}), decided, str(session.state))

        def reached(milestone: Milestone) -> dict[str, float]:
            if replica_index() == 0:
                kept = {**milestone.state, **extra, "decisions": decided, "runs": self.runs}
                save_checkpoint(kept, session.state)
            accuracies = measure()
            self.log.write_epoch(
                stage.name,
                milestone.step,
                milestone.losses,
                accuracies,
                total=total,
                seconds=round(milestone.seconds, 3),
                images_per_s=round(milestone.steps * settings.batch_size / milestone.seconds, 1),
            )
            return accuracies

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


def _saved_state(session: Session) -> dict[str, Any]:
    """The state to go on from, of a stage that the recipe has; empty where there is none.

    Raises:
        UsageError: there is one, and the run is not to resume.
        CheckpointError: it is no state of a run, or of one that this session cannot go on from.
    """
    if not session.state.exists():
        return {}
    if not session.resume:
        raise UsageError(
            where=str(session.state),
            got="an earlier run left its state here",
            allowed="no state file, or a run that resumes",
            do="go on with --resume, or delete the file to start again",
        )
    saved = load_checkpoint(session.state)
    _check_state(saved, session)
    return saved


def _check_state(saved: dict[str, Any], session: Session) -> None:
    """See that a session can go on from a state, so that no other file is taken for one and overwritten."""
    recipe = session.recipe
    stages = (FloatStage.name, *(_TRAINED if recipe.supernet is not None else (JointStage.name,)))
    stage, step, total = (saved.get(name) for name in ("stage", "step", "total"))
    if stage == SupernetStage.name and stage not in stages:
        raise CheckpointError(
            where=str(session.state),
            got=f"the state of stage {stage}",
            allowed=f"{', '.join(stages)}: recipe {recipe.name} has no section `supernet`",
            do="resume with the recipe that the run was started with",
        )
    if stage not in stages or not isinstance(step, int) or not isinstance(total, int):
        raise CheckpointError(
            where=str(session.state),
            got=f"no state of a run: stage {stage!r}, step {step!r} of {total!r}",
            allowed=f"a state file of this tool, of stage {', '.join(stages)}",
            do="name another output, or move the file away to start from the beginning",
        )
    if stage == FloatStage.name and session.float_checkpoint is not None:
        raise CheckpointError(
            where=str(session.state),
            got=f"a float network in training, beside the trained one in {session.float_checkpoint}",
            allowed="one of them to go on from",
            do="move the checkpoint away, or leave out --checkpoint, to train on; delete the state to start from it",
        )


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
    return torch.zeros(2, recipe.preprocessing.channels, *recipe.preprocessing.size)


@torch.no_grad()
def _outputs(model: nn.Module, recipe: Recipe) -> int:
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


def _circumstances(session: Session, saved: dict[str, Any]) -> dict[str, Any]:
    """What the figures of a log depend on, besides the state that the session goes on from."""
    recipe = session.recipe
    execution = session.execution
    checkpoint = None if saved.get("stage") in _TRAINED else session.float_checkpoint
    return {
        "recipe": recipe.name,
        "dataset": recipe.dataset,
        "seed": recipe.seed,
        "float_checkpoint": None if checkpoint is None else checkpoint.name,
        "float_checkpoint_sha256": None if checkpoint is None else _sha256(checkpoint),
        "joint_epochs": recipe.joint.epochs,
        "joint": asdict(recipe.joint),
        "joint_steps": session.joint_steps,
        **({} if recipe.supernet is None else {"supernet": asdict(recipe.supernet)}),
        "quantization": asdict(recipe.quantization),
        "threads": session.threads,
        "fast": execution.fast,
        "precision": execution.precision,
        "replicas": replica_count(),
        "device": _device_text(execution.device),
        "host": host_text(),
        "versions": VERSIONS,
    }


def _runs(saved: dict[str, Any], started: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that states of this one come from, the earliest first and this one last; {} is one that is not known."""
    own = {name: started[name] for name in _OF_A_RUN if started[name] is not None}
    before: list[dict[str, Any]] = _parent(saved)["parent"]["runs"] if saved else []
    is_the_last = bool(before) and {**before[-1], **own} == before[-1]  # which was interrupted
    return before if is_the_last else [*before, own]


def _parent(saved: dict[str, Any]) -> dict[str, Any]:
    """For the log: the stage of the state that is gone on from, and the runs that it comes from."""
    return {"parent": {"stage": saved.get("stage"), "runs": saved.get("runs", [{}])}} if saved else {}


def _sha256(path: Path) -> str | None:
    """Of a file; None where it cannot be read, as whoever imports it says why."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _device_text(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _provenance(session: Session, runs: list[dict[str, Any]], float_top1: float) -> tuple[tuple[str, str], ...]:
    """What a master says of its training; where `runs` differ in an entry, that of each in their order."""
    steps = [("joint_steps", str(run["joint_steps"])) for run in runs if "joint_steps" in run]
    settings = session.recipe.supernet
    supernet = () if settings is None else (("supernet", f"{settings.draw}, {settings.batchnorm}"),)
    # only what differs from one process with one thread on a CPU
    usual = {"device": "cpu", "precision": "float32", "replicas": "1"}
    told = {key: _in_order(run.get(key) for run in runs) for key in ("recipe", *usual)}
    versions = [run.get("versions", {}) for run in runs]
    return (
        ("recipe", told["recipe"]),
        ("seed", str(session.recipe.seed)),
        *steps[:1],
        *supernet,
        *((key, told[key]) for key in usual if told[key] != usual[key]),
        ("float_top1", f"{float_top1:.2f}"),
        *((name, _in_order(each.get(name) for each in versions)) for name in ("python", "torch", "numpy")),
    )


def _in_order(values: Iterable[Any]) -> str:
    """Values of runs, each once where it stays the same; None is one that is not known."""
    texts = ["unknown" if value is None else str(value) for value in values]
    return ", then ".join(text for text, _ in groupby(texts))
