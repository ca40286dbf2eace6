"""Joint training of a network and data of one's own: what the joint stage of a recipe does, without a recipe.

`prepare` comes before it and `save_master` behind; the README beside this file shows all of it.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bitswitch_deploy.atomic_file import check_writable, remove_unfinished
from bitswitch_deploy.errors import DataError, UsageError
from bitswitch_deploy.records import shown
from bitswitch_deploy.training.batches import Batch, BatchSource, Order
from bitswitch_deploy.training.checkpoint import load_checkpoint, save_checkpoint
from bitswitch_deploy.training.execution import Execution
from bitswitch_deploy.training.prepare import PreparedNetwork, set_width
from bitswitch_deploy.training.recipe import MAX_SEED, JointSettings, check_decisions
from bitswitch_deploy.training.replicas import check_joined, replica_index
from bitswitch_deploy.training.stages import JointStage
from bitswitch_deploy.training.tracing import RAISED_BY_NETWORKS, refused_inputs
from bitswitch_deploy.training.trainer import Milestone, RunPlan, divergence_limit, restore_stage, run_stage


class Samples(Protocol):
    """What a torch data set of the map style is: sample i is an input, float32 of one shape, and its class."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


class SampleBatches:
    """Mini-batches of a data set, shuffled anew in each epoch.

    What a sample draws from torch's generator, as augmentation does, depends on seed and step alone, so that a run that
    resumes sees the same.
    """

    def __init__(self, data: Samples, *, batch_size: int, seed: int, device: torch.device | None = None) -> None:
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            allowed, do = "a data set that has len() and gives sample i by [i]", "collect what it gives in a list"
            raise UsageError(where="SampleBatches", got=f"a {type(data).__name__}", allowed=allowed, do=do)
        _check_seed("SampleBatches", seed)
        self._data = data
        self.seed = seed
        self._device = device
        self._order = Order(samples=len(data), batch_size=batch_size, seed=seed)
        self.per_epoch = self._order.per_epoch
        self.samples = len(data)

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        return map(self.batch, range(start, stop))

    def batch(self, step: int) -> Batch:
        """The mini-batch of `step`, counted from 0."""
        places = self._order.indices(step)[self._order.share]
        torch.manual_seed(int(np.random.SeedSequence([self.seed, 1, step, replica_index()]).generate_state(1)[0]))
        samples = [_taken_apart(int(place), self._data[int(place)]) for place in places]
        for place, (x, label) in zip(places, samples):
            _check_sample(int(place), x, label, like=samples[0][0])
        inputs, labels = zip(*samples)
        parts = torch.stack(inputs), torch.tensor(labels), torch.from_numpy(places)
        return Batch(*(part.to(self._device) for part in parts))


def _check_seed(where: str, seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(where=where, got=f"seed {seed}", allowed=f"0 to {MAX_SEED}", do="choose another seed")


def _taken_apart(place: int, sample: object) -> tuple[Any, int]:
    """Input and class of a sample; the class may be a whole number of any kind, as a tensor of one."""
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        got = f"{len(sample)} entries" if isinstance(sample, (tuple, list)) else f"a {type(sample).__name__}"
        allowed, do = "(input, class)", "give nothing else from the data set"
        raise DataError(where=f"sample {place}", got=got, allowed=allowed, do=do)
    x, label = sample
    try:
        return x, operator.index(label)
    except TypeError as exc:
        allowed, do = "classes counted from 0, as whole numbers", "give the number of the class"
        raise DataError(where=f"sample {place}", got=f"label {shown(label)}", allowed=allowed, do=do) from exc


def _check_sample(place: int, x: object, label: int, *, like: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.shape != like.shape:
        got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        shape = f" {list(like.shape)}" if isinstance(like, Tensor) else ""
        allowed, do = f"float32 tensors of one shape{shape}", "preprocess and resize the samples in the data set"
        raise DataError(where=f"sample {place}", got=got, allowed=allowed, do=do)
    if label < 0:
        allowed, do = "classes counted from 0", "leave samples without a class out"
        raise DataError(where=f"sample {place}", got=f"label {label}", allowed=allowed, do=do)


@dataclass(frozen=True, slots=True, kw_only=True)
class JointRun:
    """How a run is kept and stopped.

    state: file that it is saved to after each epoch; None: none. resume: go on from there where it exists.
    seed: of what is random inside of the network, such as dropout.
    classes: outputs of the network: a mean loss that stays at ten times what guessing costs stops the run; None: only
        one that is not finite does.
    execution: device, precision, compiled or not; the device is that of the mini-batches.
    """

    state: Path | None = None
    resume: bool = False
    seed: int = 0
    classes: int | None = None
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        _check_seed("JointRun", self.seed)
        if self.classes is not None and self.classes < 1:
            allowed, do = "1 or more, or None", "say how many outputs the network has"
            raise UsageError(where="JointRun", got=f"classes {self.classes}", allowed=allowed, do=do)
        if self.state is not None:
            object.__setattr__(self, "state", Path(self.state))


def train_jointly(
    network: PreparedNetwork,
    batches: BatchSource,
    settings: JointSettings,
    run: JointRun | None = None,
    measure: Callable[[nn.Module], dict[str, float]] | None = None,
) -> PreparedNetwork:
    """Train a classifier at all its widths, by the cross entropy of its logits [n, classes] for one input.

    Args:
        network: as `prepare` gave it from a trained float network; trained in place.
        batches: a `SampleBatches`, or one's own. settings: rates, length, ALRS, distillation and average.
        run: None keeps no state. measure: called after each epoch with the network to export; gives figures to show.

    Returns:
        The network to export, on the CPU: the average of the weights where the settings keep one.

    Raises:
        UsageError: the state of an earlier run is there, and this one is not to resume; several processes that are not
            joined; a network that does not take the samples, or whose output is no row of logits.
        DataError: a sample that is no input with a class, or not as the others, or a label beyond the logits.
        OutputError: no state can be written where it is to be.
        CheckpointError: that is of another network, or of other settings, samples or schedule.
        CheckFailedError: training diverged; the message names width and layer, and the state of the last epoch stays.
    """
    check_joined()
    run = run or JointRun()
    stage = JointStage(network, settings, samples=batches.samples, execution=run.execution)
    total = settings.epochs * batches.per_epoch
    decided = _decisions(network, batches, settings, run)
    start = _resumed(stage, run, total, decided)

    def reached(milestone: Milestone) -> dict[str, float]:
        if run.state is not None and replica_index() == 0:
            save_checkpoint({**milestone.state, "decisions": decided}, run.state)
        figures = {} if measure is None else measure(stage.result) or {}
        if not isinstance(figures, Mapping):
            allowed, do = "figures by their names", "return {'top1': 91.7}, or nothing"
            raise UsageError(where="measure", got=f"a {type(figures).__name__}", allowed=allowed, do=do)
        return dict(figures)

    plan = RunPlan(
        start=start,
        stop=total,
        total=total,
        save_every=batches.per_epoch,
        seed=run.seed,
        loss_limit=None if run.classes is None else divergence_limit(run.classes),
    )
    with _said_in_words(stage.model):
        run_stage(stage, batches, plan, reached)
    set_width(stage.result, network.options.widths[0])
    return replace(network, model=stage.result.cpu())


@contextmanager
def _said_in_words(model: nn.Module) -> Iterator[None]:
    """Errors of torch about inputs that do not fit, outputs that are no logits, and labels that these do not have."""
    n_classes: list[int] = []
    unanswered: list[tuple[Any, ...]] = []

    def begin(_: nn.Module, args: tuple[Any, ...]) -> None:
        handles.pop().remove()
        unanswered.append(args)

    def check(_: nn.Module, args: tuple[Any, ...], output: object) -> None:
        handles.pop().remove()
        unanswered.clear()
        if not isinstance(output, Tensor) or output.ndim != 2:
            got = f"a tensor {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            allowed, do = "logits [n, classes]", "hand in a network that gives them alone"
            raise UsageError(where=f"output of {type(model).__name__}", got=got, allowed=allowed, do=do)
        n_classes.append(output.shape[1])

    handles = [model.register_forward_hook(check), model.register_forward_pre_hook(begin)]
    try:
        yield
    except RAISED_BY_NETWORKS as exc:
        if unanswered:
            raise refused_inputs(f"first mini-batch of {type(model).__name__}", unanswered[0], exc) from exc
        if not isinstance(exc, IndexError) or not re.fullmatch(r"Target \d+ is out of bounds\.", str(exc)):
            raise
        raise DataError(
            where="labels",
            got=str(exc).replace("Target", "class").rstrip("."),
            allowed=f"0 to {n_classes[0] - 1}, as the network has outputs",
            do="count classes from 0, or give the network as many outputs",
        ) from exc
    finally:
        for handle in handles:
            handle.remove()


def _decisions(
    network: PreparedNetwork, batches: BatchSource, settings: JointSettings, run: JointRun
) -> dict[str, str]:
    """What the steps depend on, as `recipe.stage_decisions` tells it of a recipe."""
    told: dict[str, Any] = {f"quantization.{name}": value for name, value in asdict(network.options).items()}
    told |= {name: value for name, value in asdict(settings).items() if name not in ("epochs", "learning_rate")}
    told |= {"seed": run.seed, "samples": batches.samples, "seed of the mini-batches": getattr(batches, "seed", None)}
    return {name: json.dumps(value) for name, value in told.items()}


def _resumed(stage: JointStage, run: JointRun, total: int, decided: dict[str, str]) -> int:
    """Put the stage where the state of an earlier run left it; the step to go on with."""
    if run.state is None:
        return 0
    check_writable(run.state)
    if replica_index() == 0:
        remove_unfinished(run.state)
    if not run.state.exists():
        return 0
    if not run.resume:
        raise UsageError(
            where=str(run.state),
            got="an earlier run left its state here",
            allowed="no state file, or a run that resumes",
            do="say resume=True to go on, or delete the file to start again",
        )
    saved = load_checkpoint(run.state)
    check_decisions(saved.get("decisions"), decided, str(run.state))
    return restore_stage(stage, saved, total, str(run.state))
