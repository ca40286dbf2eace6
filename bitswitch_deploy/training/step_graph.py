"""Taking the steps of a stage: one by one, or on CUDA as a graph that is recorded once and replayed.

A step of a small network is thousands of kernels of a few microseconds; launched one by one they take longer than they
compute. A graph is launched as one, and the host prepares the next mini-batch meanwhile. What a recorded step depends
on is in tensors: mini-batch and rate are copied in, losses are copied out, and nothing is read on the way. Widths,
layers and shapes are those of the recording.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitswitch_deploy.errors import UnavailableError
from bitswitch_deploy.training.backward import Guard, RaisingGuard, SkippingGuard
from bitswitch_deploy.training.batches import Batch
from bitswitch_deploy.training.execution import Execution
from bitswitch_deploy.training.schedule import Position, cosine_rate

_WARM_UP = 3  # steps in which torch compiles and optimizers make their state, which recording does not allow
_READ_EVERY = 32

Learn = Callable[[Batch, Position, float | Tensor, Guard], Tensor]


class Steps:
    """Takes the steps of a stage.

    Args:
        learn: one step from mini-batch, position and rate, which tells the guard its losses and gives them,
            float32 [losses]. Where it is recorded, the rate is a scalar on the device, and the position that of the
            recording.
        optimizers: of `execution.adam`; what `learn` moves. learning_rate: at the start of its cosine.
        execution: where and how. is_recordable: whether `learn` is the same at every position.

    read_every: losses are to be read once in so many steps.
    """

    def __init__(
        self,
        learn: Learn,
        optimizers: tuple[torch.optim.Optimizer, ...],
        *,
        learning_rate: float,
        execution: Execution,
        is_recordable: bool = True,
    ) -> None:
        self._learn = learn
        self._initial_rate = learning_rate
        self._device = execution.device
        self._raising = RaisingGuard()
        self._skipping: SkippingGuard | None = None
        if execution.records_steps and is_recordable:
            self._skipping = SkippingGuard(optimizers, execution.device)
        self.record_anew()
        self.read_every = 1 if self._graph is None else _READ_EVERY

    def record_anew(self) -> None:
        """To be called when optimizers take over a state: a recording moves the tensors that they had before."""
        self._graph: StepGraph | None = None
        if self._skipping is not None:
            self._skipping.forget()
            self._graph = StepGraph(self._learn, self._skipping, self._device)

    def take(self, batch: Batch, position: Position, *, is_settled: bool = True) -> Tensor:
        """The losses of one step. is_settled: whether the network will do the same things in every step from now on.

        Raises:
            CheckFailedError: a loss or a gradient is not finite, in a step that is not recorded.
            UnavailableError: a step cannot be recorded.
        """
        rate = cosine_rate(self._initial_rate, position.step, position.total)
        if self._graph is not None and is_settled:
            return self._graph.step(batch, position, rate)
        return self._learn(batch, position, rate, self._raising)

    def diagnose(self, batch: Batch, position: Position) -> None:
        """Take a recorded step again, one by one, whose losses were not finite.

        Nothing has moved since the first loss that was not; the widths before it had their updates in the same step.

        Raises:
            CheckFailedError: the message names width and layer.
        """
        self.record_anew()  # the memory of the recording is free then
        self._learn(batch, position, cosine_rate(self._initial_rate, position.step, position.total), self._raising)


class StepGraph:
    """One step as a CUDA graph: the first steps are taken as they are, then it is recorded, and replayed ever after."""

    def __init__(self, learn: Learn, guard: Guard, device: torch.device) -> None:
        self._learn = learn
        self._guard = guard
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._rate = torch.zeros((), device=device)
        self._batch: Batch | None = None
        self._recording: tuple[torch.cuda.CUDAGraph, Tensor] | None = None
        self._steps = 0

    def step(self, batch: Batch, position: Position, rate: float) -> Tensor:
        """The losses of a step at a rate, on the device, which may still compute them.

        Raises:
            UnavailableError: the step reads a tensor on the host, or does other things that a graph cannot hold.
        """
        if self._batch is None:
            self._batch = Batch(*(tensor.clone() for tensor in batch))
        self._rate.fill_(rate)
        if batch.inputs.shape != self._batch.inputs.shape:
            return self._beside(batch, position)
        for held, given in zip(self._batch, batch, strict=True):
            held.copy_(given)
        self._steps += 1
        if self._steps <= _WARM_UP:
            return self._beside(self._batch, position)
        if self._recording is None:
            self._recording = self._recorded(self._batch, position)
        graph, losses = self._recording
        graph.replay()
        return losses.clone()

    def _beside(self, batch: Batch, position: Position) -> Tensor:
        """A step on the stream that will be recorded, as torch asks for."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            losses = self._learn(batch, position, self._rate, self._guard)
        current.wait_stream(self._stream)
        return losses

    def _recorded(self, batch: Batch, position: Position) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: meanwhile a data loader's thread may pin memory. The outer context restores the stream where
            # the end of a recording raises; torch's own does not.
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                losses = self._learn(batch, position, self._rate, self._guard)
        except RuntimeError as exc:
            raise UnavailableError(
                where="recording of a training step",
                got=_first_line(exc),
                allowed="a network whose forward pass reads no tensor on the host: no .item(), no branch on values",
                do="change what it names, or train without --fast",
            ) from exc
        return graph, losses


def _first_line(exc: BaseException) -> str:
    """What went wrong first: the end of a recording that failed says only that it did."""
    while exc.__context__ is not None:
        exc = exc.__context__
    return str(exc).partition("\n")[0]
