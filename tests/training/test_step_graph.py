"""Steps that are recorded: on CUDA really so, elsewhere taken one by one with what a recording demands of them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckFailedError, UnavailableError
from bitswitch_deploy.training import step_graph
from bitswitch_deploy.training.backward import Guard, RaisingGuard
from bitswitch_deploy.training.batches import Batch
from bitswitch_deploy.training.execution import Execution
from bitswitch_deploy.training.recipe import JointSettings
from bitswitch_deploy.training.schedule import Position
from bitswitch_deploy.training.stages import FloatStage, JointStage
from bitswitch_deploy.training.step_graph import Learn, StepGraph
from bitswitch_deploy.training.trainer import RunPlan, restore_stage, run_stage, stage_state
from tests.training.tiny_network import tiny_batches, tiny_model, tiny_network

SETTINGS = JointSettings(epochs=1, batch_size=16, learning_rate=1e-3, weight_decay=0.1)
TOTAL = 12
POSITION = Position(step=0, total=TOTAL, per_epoch=4)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"alrs": "none"},
    {"alrs": "bracket"},
    {"alrs": "bracket_printed"},
    {"update": "accumulated"},
    {"distillation": "in_batch"},
    {"average_decay": 0.9},
]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class NotRecorded:
    """In place of a graph: `learn` as it is called for a recording."""

    def __init__(self, learn: Learn, guard: Guard, device: torch.device) -> None:
        self._learn, self._guard = learn, guard

    def step(self, batch: Batch, position: Position, rate: float) -> Tensor:
        return self._learn(batch, position, torch.tensor(rate), self._guard)


class Fused(Execution):
    """With the optimizer of steps that are recorded: another one rounds otherwise, and codes are soon others."""

    def adam(self, parameters: Iterable[nn.Parameter], rate: float, *, weight_decay: float) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, rate, weight_decay=weight_decay, fused=True)


class AsIfRecorded(Fused):
    """On the CPU, where nothing can be recorded."""

    @property
    def records_steps(self) -> bool:
        return True


@pytest.fixture(params=["as if", pytest.param("cuda", marks=needs_cuda)])
def recording(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Execution]:
    if request.param == "cuda":
        yield Execution(device=torch.device("cuda"), fast=True)
    else:
        monkeypatch.setattr(step_graph, "StepGraph", NotRecorded)
        yield AsIfRecorded()


def joint(execution: Execution, **changes: Any) -> JointStage:
    torch.manual_seed(0)
    return JointStage(tiny_network(), replace(SETTINGS, **changes), samples=64, execution=execution)


def plain(execution: Execution) -> Execution:
    return Fused(device=execution.device)


def plan(stop: int, start: int = 0) -> RunPlan:
    return RunPlan(start=start, stop=stop, total=TOTAL, save_every=TOTAL)


def assert_alike(actual: nn.Module, expected: nn.Module) -> None:
    for (name, value), wanted in zip(actual.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=2e-3, atol=2e-4, msg=name)


@pytest.mark.filterwarnings("ignore")  # those of torch's own compiler
class TestRecordedSteps:
    @pytest.mark.parametrize("changes", VARIANTS, ids=str)
    def test_compute_what_other_steps_do(self, recording: Execution, changes: dict[str, Any]) -> None:
        stage, reference = joint(recording, **changes), joint(plain(recording), **changes)
        batches = tiny_batches(recording.device)
        for step in range(8):
            at = Position(step=step, total=TOTAL, per_epoch=4)
            torch.testing.assert_close(
                stage.step(batches.batch(step), at), reference.step(batches.batch(step), at), rtol=2e-3, atol=1e-4
            )
        assert_alike(stage.result, reference.result)
        assert (stage.read_every, reference.read_every) == (32, 1)

    def test_the_float_stage_too(self, recording: Execution) -> None:
        torch.manual_seed(0)
        model = tiny_model()
        twin = tiny_model()
        twin.load_state_dict(model.state_dict())
        stage = FloatStage(model, SETTINGS, execution=recording)
        reference = FloatStage(twin, SETTINGS, execution=plain(recording))
        for each in (stage, reference):
            run_stage(each, tiny_batches(recording.device), plan(8))
        assert_alike(stage.model, reference.model)

    def test_a_distillation_that_depends_on_the_epoch_is_not_recorded(self, recording: Execution) -> None:
        assert joint(recording, distillation="ps_kd").read_every == 1

    def test_losses_that_are_read_later_are_those_of_their_steps(self, recording: Execution) -> None:
        means: list[dict[str, float]] = []
        for execution in (recording, plain(recording)):
            cut = replace(plan(10), save_every=5)
            run_stage(joint(execution), tiny_batches(recording.device), cut, lambda at: means.append(at.losses))
        assert len(means) == 4
        assert means[0] == pytest.approx(means[2], rel=2e-3)
        assert means[1] == pytest.approx(means[3], rel=2e-3)

    def test_a_run_goes_on_where_it_was_saved(self, recording: Execution) -> None:
        batches = tiny_batches(recording.device)
        whole, first, second, slow = joint(recording), joint(recording), joint(recording), joint(plain(recording))
        run_stage(whole, batches, plan(10))
        run_stage(first, batches, plan(6))
        state = stage_state(first, 6, TOTAL)  # of which optimizers take the tensors themselves
        for stage in (second, slow):  # an optimizer that records nothing takes the state as well
            run_stage(stage, batches, plan(10, restore_stage(stage, copy.deepcopy(state), TOTAL, "state")))
            assert_alike(stage.model, whole.model)
        restored = restore_stage(joint(recording), stage_state(slow, 10, TOTAL), TOTAL, "state")
        assert restored == 10

    def test_a_stage_that_takes_over_a_state_is_recorded_anew(
        self, recording: Execution, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recorder, made = step_graph.StepGraph, []

        def noted(*args: Any) -> StepGraph:
            made.append(recorder(*args))
            return made[-1]

        monkeypatch.setattr(step_graph, "StepGraph", noted)
        stage, batches = joint(recording), tiny_batches(recording.device)
        run_stage(stage, batches, plan(6))
        state = copy.deepcopy(stage_state(stage, 6, TOTAL))
        run_stage(stage, batches, plan(12, 6))
        expected = copy.deepcopy(stage.model)
        bad = batches.batch(0)._replace(inputs=torch.full_like(batches.batch(0).inputs, torch.nan))
        stage.step(bad, Position(step=11, total=TOTAL, per_epoch=4))  # nobody reads its losses
        run_stage(stage, batches, plan(12, restore_stage(stage, state, TOTAL, "state")))
        assert_alike(stage.model, expected)
        assert len(made) == 2

    def test_nothing_moves_from_a_loss_on_that_is_not_finite_and_the_message_names_the_layer(
        self, recording: Execution, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage, reference = joint(recording), joint(recording)
        batches = tiny_batches(recording.device)
        run_stage(stage, batches, plan(6))
        run_stage(reference, batches, plan(6))
        stream = batches.batch

        def poisoned(step: int) -> Batch:
            batch: Batch = stream(step)
            return batch if step != 6 else batch._replace(inputs=batch.inputs * float("inf"))

        monkeypatch.setattr(batches, "batch", poisoned)
        with pytest.raises(CheckFailedError, match="training of network input at 8 bits"):
            run_stage(stage, batches, plan(10, 6))
        for actual, expected in zip(stage.model.parameters(), reference.model.parameters(), strict=True):
            assert torch.equal(actual, expected)

    def test_a_loss_that_is_finite_when_the_step_is_taken_again_stops_as_well(
        self, recording: Execution, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage = joint(recording)
        batches = tiny_batches(recording.device)
        stream = batches.batch
        seen: list[int] = []

        def poisoned_once(step: int) -> Batch:
            batch: Batch = stream(step)
            seen.append(step)
            return batch if seen.count(6) != 1 or step != 6 else batch._replace(inputs=batch.inputs * float("inf"))

        monkeypatch.setattr(batches, "batch", poisoned_once)
        with pytest.raises(CheckFailedError, match=r"training at w8, mini-batch 6: .*taken again"):
            run_stage(stage, batches, plan(10))


class _Pins(threading.Thread):
    """Pins memory for as long as it runs, and keeps it, so that torch has none left over to give again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.failure: Exception | None = None
        self.is_to_stop = threading.Event()

    def run(self) -> None:
        kept = []
        try:
            while not self.is_to_stop.wait(0.002):
                kept.append(torch.empty(4096, dtype=torch.uint8, pin_memory=True))
        except RuntimeError as exc:
            self.failure = exc


@needs_cuda
@pytest.mark.filterwarnings("ignore")
def test_other_threads_may_pin_memory_while_a_step_is_recorded() -> None:
    execution = Execution(device=torch.device("cuda"), fast=True)
    stage = joint(execution)
    pins = _Pins()
    pins.start()
    try:
        run_stage(stage, tiny_batches(execution.device), plan(8))
    finally:
        pins.is_to_stop.set()
        pins.join()
    assert pins.failure is None


class _Reads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


@needs_cuda
@pytest.mark.filterwarnings("ignore")
def test_a_network_that_reads_its_tensors_is_refused_with_what_to_do() -> None:
    execution = Execution(device=torch.device("cuda"), fast=True)
    stage = FloatStage(nn.Sequential(_Reads(), tiny_model()), SETTINGS, execution=execution)
    with pytest.raises(UnavailableError, match=r"recording of a training step.*\n.*\n.*without --fast"):
        run_stage(stage, tiny_batches(execution.device), plan(8))
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


class StandIn:
    """In place of torch.cuda: a graph records who learns, and a replay learns again from the tensors it knew then.

    Shows what is copied, counted and refused, of CUDA itself nothing.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.learn: Callable[[], Tensor] | None = None
        stream = SimpleNamespace(device=torch.device("cpu"), wait_stream=lambda _other: None)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _device: stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self._replay))
        monkeypatch.setattr(torch.cuda, "graph", self._recording)

    @contextmanager
    def _recording(self, _graph: object, **_options: object) -> Iterator[None]:
        self.calls.append("record")
        try:
            yield
        except RuntimeError as exc:
            raise RuntimeError("the recording failed") from exc

    def _replay(self) -> None:
        self.calls.append("replay")
        assert self.learn is not None
        self.learn()


class TestStepGraph:
    """Losses here are the sum of the inputs times the rate."""

    def graph(self, cuda: StandIn, *, fails: bool = False) -> StepGraph:
        losses = torch.zeros(1)

        def learn(batch: Batch, _position: Position, rate: float | Tensor, _guard: Guard) -> Tensor:
            if fails and cuda.calls:
                raise RuntimeError("reads a tensor\nwith much more text")
            cuda.calls.append("learn")
            cuda.learn = lambda: losses.copy_(batch.inputs.sum() * rate)
            return cuda.learn() if "record" not in cuda.calls else losses

        return StepGraph(learn, RaisingGuard(), torch.device("cpu"))

    def take(self, graph: StepGraph, value: float, rate: float = 0.5, n: int = 2) -> list[float]:
        return list(graph.step(_batch(value, n), POSITION, rate).tolist())

    def test_learns_three_times_then_records_once_and_replays_what_it_is_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cuda = StandIn(monkeypatch)
        graph = self.graph(cuda)
        assert [self.take(graph, value) for value in (1, 2, 3)] == [[1], [2], [3]]
        assert cuda.calls == ["learn"] * 3
        kept = [graph.step(_batch(value), POSITION, 0.5) for value in (4.0, 5.0)]
        assert [each.tolist() for each in kept] == [[4], [5]]  # losses that are read later are not overwritten
        assert self.take(graph, 6, rate=0.25) == [3]
        assert cuda.calls[3:] == ["record", "learn", "replay", "replay", "replay"]

    def test_a_batch_of_another_size_is_not_put_into_the_recording(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda = StandIn(monkeypatch)
        graph = self.graph(cuda)
        for value in (1, 2, 3, 4):
            self.take(graph, value)
        cuda.calls.clear()
        assert self.take(graph, 5, n=1) == [2.5]
        assert cuda.calls == ["learn"]

    def test_the_first_error_of_a_recording_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda = StandIn(monkeypatch)
        graph = self.graph(cuda)
        for value in (1, 2, 3):
            self.take(graph, value)
        failing = self.graph(cuda, fails=True)
        failing._steps = 3
        with pytest.raises(UnavailableError, match=r"recording of a training step: reads a tensor\n.*\n.*--fast"):
            self.take(failing, 4)


def _batch(value: float, n: int = 2) -> Batch:
    return Batch(torch.full((n, 1), float(value)), torch.zeros(n, dtype=torch.int64), torch.arange(n))
