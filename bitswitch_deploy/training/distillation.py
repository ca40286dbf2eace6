"""What each width learns: the labels, or labels softened by a teacher that is the network itself.

    target = (1 - a) * one-hot + a * p

    none       a = 0
    ps_kd      p: this sample's softmax at the highest width in the previous epoch (one-hot in the first), the same
               target for every width; a = share * (e + 1) / epochs in epoch e (Kim et al., ICCV 2021)
    in_batch   p: softmax of the highest width on the same mini-batch, without gradient, for the lower widths;
               a = share; the highest width learns the labels

Targets are labels int64 [n] or probabilities float32 [n, classes]; `cross_entropy` takes both.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from bitswitch_deploy.errors import CheckpointError
from bitswitch_deploy.training.batches import Batch
from bitswitch_deploy.training.replicas import gathered
from bitswitch_deploy.training.schedule import Position

Distillation = Literal["none", "ps_kd", "in_batch"]


class Teacher(Protocol):
    """Gives the targets of one mini-batch: first that of the highest width, then that of all lower ones."""

    def first_target(self, batch: Batch, position: Position) -> Tensor:
        """What the highest width learns."""
        ...

    def next_target(self, batch: Batch, logits: Tensor, target: Tensor) -> Tensor:
        """What the lower widths learn, after the highest gave `logits` [n, classes] (detached) for `target`."""
        ...

    def state(self) -> Tensor | None:
        """What a checkpoint must hold for the run to go on as it would have."""
        ...

    def restore(self, state: object, source: str) -> None:
        """Take over what `state` gave; `source` names the checkpoint.

        Raises:
            CheckpointError: it is of another kind of distillation or data set.
        """
        ...


def make_teacher(kind: Distillation, *, share: float, samples: int) -> Teacher:
    """The teacher of a recipe. share: how much of the target it makes up at most. samples: in the training set."""
    if kind == "ps_kd":
        return PreviousEpoch(share, samples)
    return SameBatch(share) if kind == "in_batch" else LabelsOnly()


class LabelsOnly:
    """No teacher; it remembers nothing."""

    def first_target(self, batch: Batch, position: Position) -> Tensor:
        return batch.labels

    def next_target(self, batch: Batch, logits: Tensor, target: Tensor) -> Tensor:
        return target

    def state(self) -> Tensor | None:
        return None

    def restore(self, state: object, source: str) -> None:
        if state is not None:
            raise _foreign(source, "the memory of a distillation", "a state without one")


class SameBatch(LabelsOnly):
    """The highest width teaches the lower ones what it just said."""

    def __init__(self, share: float) -> None:
        self._share = share

    def next_target(self, batch: Batch, logits: Tensor, target: Tensor) -> Tensor:
        return _mixed(batch.labels, logits.float().softmax(1), self._share)


class PreviousEpoch(LabelsOnly):
    """The highest width teaches all of them what it said of a sample when it saw it last, one epoch ago.

    The memory is float16 [samples, classes], on the device of the logits and equal on all replicas. A row of zeros is a
    sample that was not seen yet.
    """

    def __init__(self, share: float, samples: int) -> None:
        self._share = share
        self._samples = samples
        self._memory: Tensor | None = None

    def first_target(self, batch: Batch, position: Position) -> Tensor:
        if self._memory is None:
            return batch.labels
        self._memory = self._memory.to(batch.labels.device)  # a checkpoint is read to the CPU
        said = self._memory[batch.indices].float()
        share = self._share * (position.epoch + 1) / position.epochs
        return _mixed(batch.labels, said, said.sum(1, keepdim=True).sign() * share)

    def next_target(self, batch: Batch, logits: Tensor, target: Tensor) -> Tensor:
        if self._memory is None:
            self._memory = torch.zeros(self._samples, logits.shape[1], dtype=torch.float16, device=logits.device)
        self._memory[gathered(batch.indices)] = gathered(logits.float().softmax(1)).to(torch.float16)
        return target

    def state(self) -> Tensor | None:
        return self._memory

    def restore(self, state: object, source: str) -> None:
        if state is None:
            return
        if not isinstance(state, Tensor) or state.dtype != torch.float16 or state.shape[:1] != (self._samples,):
            raise _foreign(source, "no fitting distillation memory", f"float16 [{self._samples}, classes]")
        self._memory = state


def _mixed(labels: Tensor, said: Tensor, share: float | Tensor) -> Tensor:
    """(1 - share) * one-hot + share * said, float32 [n, classes]; `share` may be one for each sample, [n, 1]."""
    return F.one_hot(labels, said.shape[1]).to(said.dtype) * (1 - share) + said * share


def _foreign(source: str, got: str, allowed: str) -> CheckpointError:
    return CheckpointError(where=source, got=got, allowed=allowed, do="resume with the recipe that the run began with")
