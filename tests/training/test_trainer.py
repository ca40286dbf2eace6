from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckFailedError, CheckpointError
from bitswitch_deploy.training.batches import Batch
from bitswitch_deploy.training.checkpoint import load_checkpoint, save_checkpoint
from bitswitch_deploy.training.evaluation import measure_widths
from bitswitch_deploy.training.recipe import JointSettings
from bitswitch_deploy.training.schedule import Position
from bitswitch_deploy.training.stages import FloatStage, JointStage
from bitswitch_deploy.training.trainer import (
    Milestone,
    RunPlan,
    divergence_limit,
    restore_stage,
    run_stage,
    stage_state,
)
from tests.training.tiny_network import PREPROCESSING, halves, tiny_batches, tiny_model, tiny_network

SETTINGS = JointSettings(epochs=1, batch_size=16, learning_rate=0.01, weight_decay=0.0)


def joint(**changes: Any) -> JointStage:
    return JointStage(tiny_network(), replace(SETTINGS, **changes), samples=64)


def plan(start: int, stop: int, save_every: int = 100) -> RunPlan:
    return RunPlan(start=start, stop=stop, total=12, save_every=save_every)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{prefix}/{i}").items()}
    return {prefix: value}


def assert_same_state(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    left, right = flat(actual), flat(expected)
    assert left.keys() == right.keys()
    for key, value in left.items():
        equal = torch.equal(value, right[key]) if isinstance(value, torch.Tensor) else value == right[key]
        assert equal, key


class TestResume:
    @pytest.mark.parametrize(
        ("stop", "changes"),
        [
            (1, {}),
            (5, {}),
            (12, {}),
            (5, {"alrs": "bracket", "update": "accumulated"}),
            (5, {"alrs": "bracket_printed", "distillation": "in_batch"}),
            (3, {"distillation": "ps_kd"}),
            (6, {"distillation": "ps_kd", "average_decay": 0.9, "alrs": "none"}),
        ],
    )
    def test_a_resumed_run_equals_an_uninterrupted_one(
        self, tmp_path: Path, stop: int, changes: dict[str, Any]
    ) -> None:
        path = tmp_path / "state"
        whole = joint(**changes)
        run_stage(whole, tiny_batches(), plan(0, 12))
        first = joint(**changes)
        run_stage(first, tiny_batches(), plan(0, stop), lambda reached: save_checkpoint(reached.state, path))
        torch.manual_seed(99)
        second = joint(**changes)
        start = restore_stage(second, load_checkpoint(path), 12, "state")
        assert start == stop
        run_stage(second, tiny_batches(), plan(start, 12))
        assert_same_state(stage_state(second, 12, 12), stage_state(whole, 12, 12))

    def test_an_average_that_the_state_lacks_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match="no average"):
            restore_stage(joint(average_decay=0.9), stage_state(joint(), 2, 12), 12, "run.state")

    def test_dropout_draws_by_step_so_that_it_resumes(self) -> None:
        def dropping() -> FloatStage:
            model = tiny_model()
            model[5] = nn.Sequential(nn.Flatten(), nn.Dropout())
            return FloatStage(model, SETTINGS)

        whole, first = dropping(), dropping()
        run_stage(whole, tiny_batches(), plan(0, 6))
        run_stage(first, tiny_batches(), plan(0, 4))
        torch.rand(7)
        second = dropping()
        run_stage(second, tiny_batches(), plan(restore_stage(second, stage_state(first, 4, 12), 12, "state"), 6))
        assert_same_state(stage_state(second, 6, 12), stage_state(whole, 6, 12))

    def test_states_are_saved_on_the_way_and_at_the_end(self) -> None:
        steps: list[int] = []
        stage = joint()
        counts: list[int] = []

        def reached(milestone: Milestone) -> None:
            assert milestone.state["step"] == milestone.step
            steps.append(milestone.step)
            counts.append(milestone.steps)

        run_stage(stage, tiny_batches(), plan(0, 8, save_every=3), reached)
        assert (steps, counts) == ([3, 6, 8], [3, 3, 2])

    def test_a_milestone_has_the_mean_losses_since_the_last(self) -> None:
        reached: list[Milestone] = []
        run_stage(joint(), tiny_batches(), plan(0, 4, save_every=2), reached.append)
        stage, batches = joint(), tiny_batches()
        positions = [Position(step=step, total=12, per_epoch=4) for step in range(4)]
        losses = [stage.step(batches.batch(at.step), at).tolist() for at in positions]
        for milestone, pair in zip(reached, (losses[:2], losses[2:]), strict=True):
            expected = [(first + second) / 2 for first, second in zip(*pair, strict=True)]
            assert milestone.losses == pytest.approx(dict(zip(("w8", "w4", "w2"), expected, strict=True)))

    def test_who_measures_at_a_milestone_does_not_change_the_training(self) -> None:
        measured, plain = (
            joint(),
            joint(),
        )
        run_stage(plain, tiny_batches(), plan(0, 6))
        data = halves()

        def measure(_: Milestone) -> None:
            measure_widths(measured.model, (8, 4, 2), data, PREPROCESSING)

        run_stage(measured, tiny_batches(), plan(0, 6, save_every=1), measure)
        assert_same_state(stage_state(measured, 6, 12), stage_state(plain, 6, 12))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"stage": "float"}, "stage float, step 2 of 12\n  allowed: stage joint, a schedule of 12 steps"),
            ({"total": 13}, "step 2 of 13"),
            ({"step": 13}, "step 13 of 12"),
            ({"step": None}, "step None of 12"),
            ({"model": {}}, "missing 0.weight"),
            ({"optimizers": []}, "optimizer state"),
            ({"optimizers": [{}, {}]}, "optimizer state"),
            ({"average": {}}, "an average\n  allowed: the other"),
            ({"teacher": torch.zeros(64, 2).half()}, "the memory of a distillation"),
        ],
    )
    def test_another_state_is_refused(self, change: dict[str, Any], message: str) -> None:
        stage = joint()
        state = {**stage_state(stage, 2, 12), **change}
        with pytest.raises(CheckpointError, match=message):
            restore_stage(stage, state, 12, "run.state")


class _Gain(nn.Module):
    """Two pixels as logits, times a scalar of another type than Adam's count of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] * self.gain


def test_adam_counts_the_steps_of_a_scalar_where_it_did_before() -> None:
    first, second = (FloatStage(_Gain(), SETTINGS) for _ in range(2))
    run_stage(first, tiny_batches(), plan(0, 2))
    restore_stage(second, stage_state(first, 2, 12), 12, "state")
    counts = [next(iter(stage.optimizers[0].state.values()))["step"] for stage in (first, second)]
    assert [(count.dtype, count.item()) for count in counts] == 2 * [(torch.float32, 2.0)]


class Scripted(JointStage):
    """Its losses at 8 bits are given; at the other widths they are 1."""

    def __init__(self, given: Sequence[float]) -> None:
        super().__init__(tiny_network(), SETTINGS, samples=64)
        self._given = list(given)

    def step(self, batch: Batch, position: Position) -> Tensor:
        return torch.tensor([self._given[position.step], 1.0, 1.0])


class TestDivergence:
    def run(self, given: Sequence[float], limit: float | None = divergence_limit(10)) -> list[int]:
        reached: list[int] = []
        plan = RunPlan(start=0, stop=len(given), total=len(given), save_every=1, loss_limit=limit)
        run_stage(Scripted(given), tiny_batches(), plan, lambda milestone: reached.append(milestone.step))
        return reached

    @pytest.mark.parametrize("given", [(60, 30, 2.5, 2.3), (22, 23, 22, 23), (1e9, 1e8, 1e7, 1)])
    def test_a_run_that_recovers_goes_on(self, given: Sequence[float]) -> None:
        assert self.run(given) == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("given", "step"), [((1, 1, 24, 1), 3), ((60, 60, 1), 2), ((1e9, 1e8, 1e7), 3), ((24,), 1)]
    )
    def test_a_loss_far_above_guessing_that_does_not_fall_or_is_the_last_stops(
        self, given: Sequence[float], step: int
    ) -> None:
        words = rf"training at 8 bits: a mean loss of [\de+.]+, behind mini-batch {step}\n  allowed: 23\.03, ten times"
        with pytest.raises(CheckFailedError, match=words):
            self.run(given)

    def test_nothing_is_reached_where_it_stops_and_nothing_stops_without_a_limit(self) -> None:
        with pytest.raises(CheckFailedError, match="mini-batch 3"):
            self.run((1, 2, math.inf, 1))
        assert self.run((1, 2, math.inf, 1), None) == [1, 2, 3, 4]

    @pytest.mark.parametrize(("classes", "limit"), [(1000, 69.08), (10, 23.03), (2, 23.03), (1, 23.03)])
    def test_limit(self, classes: int, limit: float) -> None:
        assert divergence_limit(classes) == pytest.approx(limit, abs=0.01)


def test_the_loss_that_was_read_last_is_shown_until_the_next_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Noting(Progress):
        def advance(self, task_id: TaskID, advance: float = 1) -> None:
            shown.append(self.tasks[task_id].fields["loss"])
            super().advance(task_id, advance)

    class Late(Scripted):
        read_every = 2

    monkeypatch.setattr("bitswitch_deploy.training.trainer._progress", Noting)
    plan = RunPlan(start=0, stop=6, total=6, save_every=3)
    run_stage(Late([4.0, 1.0, 7.0, 1.0, 10.0, 1.0]), tiny_batches(), plan, lambda _: None)
    assert shown == ["--", "--", "1.000", "3.000", "3.000", "4.000"]


def test_a_stage_without_a_step_left_says_so_and_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    stage = joint()
    run_stage(stage, tiny_batches(), plan(0, 12))
    capsys.readouterr()
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    run_stage(stage, tiny_batches(), plan(12, 12), lambda _: pytest.fail("nothing was reached"))
    assert capsys.readouterr().err == "joint: done before, 12 of 12 mini-batches\n"
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.model.state_dict().items())
