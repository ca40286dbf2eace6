from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bitswitch_deploy.errors import CheckpointError
from bitswitch_deploy.training.batches import preprocess
from bitswitch_deploy.training.checkpoint import load_checkpoint, save_checkpoint
from bitswitch_deploy.training.prepare import set_width
from bitswitch_deploy.training.recipe import StageSettings
from bitswitch_deploy.training.stages import JointStage
from bitswitch_deploy.training.trainer import (
    Milestone,
    RunPlan,
    measure_widths,
    restore_stage,
    run_stage,
    stage_state,
    top1,
)
from tests.training.tiny_network import PREPROCESSING, halves, tiny_batches, tiny_network

SETTINGS = StageSettings(epochs=1, batch_size=16, learning_rate=0.01, weight_decay=0.0)


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
    @pytest.mark.parametrize("stop", [1, 5, 12])
    def test_a_resumed_run_equals_an_uninterrupted_one(self, tmp_path: Path, stop: int) -> None:
        path = tmp_path / "state"
        whole = JointStage(tiny_network(), SETTINGS)
        run_stage(whole, tiny_batches(), plan(0, 12))
        first = JointStage(tiny_network(), SETTINGS)
        run_stage(first, tiny_batches(), plan(0, stop), lambda reached: save_checkpoint(reached.state, path))
        torch.manual_seed(99)
        second = JointStage(tiny_network(), SETTINGS)
        start = restore_stage(second, load_checkpoint(path), 12, "state")
        assert start == stop
        run_stage(second, tiny_batches(), plan(start, 12))
        assert_same_state(stage_state(second, 12, 12), stage_state(whole, 12, 12))

    def test_states_are_saved_on_the_way_and_at_the_end(self) -> None:
        steps: list[int] = []
        stage = JointStage(tiny_network(), SETTINGS)
        counts: list[int] = []

        def reached(milestone: Milestone) -> None:
            assert milestone.state["step"] == milestone.step
            steps.append(milestone.step)
            counts.append(milestone.steps)

        run_stage(stage, tiny_batches(), plan(0, 8, save_every=3), reached)
        assert (steps, counts) == ([3, 6, 8], [3, 3, 2])

    def test_a_milestone_has_the_mean_losses_since_the_last(self) -> None:
        reached: list[Milestone] = []
        run_stage(JointStage(tiny_network(), SETTINGS), tiny_batches(), plan(0, 4, save_every=2), reached.append)
        stage, batches = JointStage(tiny_network(), SETTINGS), tiny_batches()
        losses = [stage.step(*batches.batch(step), step, 12) for step in range(4)]
        for milestone, pair in zip(reached, (losses[:2], losses[2:]), strict=True):
            expected = [(first + second) / 2 for first, second in zip(*pair, strict=True)]
            assert milestone.losses == pytest.approx(dict(zip(("w8", "w4", "w2"), expected, strict=True)))

    def test_who_measures_at_a_milestone_does_not_change_the_training(self) -> None:
        measured, plain = JointStage(tiny_network(), SETTINGS), JointStage(tiny_network(), SETTINGS)
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
        ],
    )
    def test_another_state_is_refused(self, change: dict[str, Any], message: str) -> None:
        stage = JointStage(tiny_network(), SETTINGS)
        state = {**stage_state(stage, 2, 12), **change}
        with pytest.raises(CheckpointError, match=message):
            restore_stage(stage, state, 12, "run.state")


class TestAccuracy:
    def test_top1_counts_the_largest_logit(self) -> None:
        class Constant(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.tensor([[0.0, 1.0]]).expand(len(x), 2)

        data = halves(n=300)
        assert top1(Constant(), data, PREPROCESSING) == pytest.approx(100 * float(np.mean(data.labels == 1)))

    def test_each_width_is_measured_at_its_own(self) -> None:
        network = tiny_network()
        run_stage(JointStage(network, SETTINGS), tiny_batches(), plan(0, 12))
        data = halves(n=50, seed=1)
        measured = measure_widths(network.model, (8, 4, 2), data, PREPROCESSING)
        inputs, labels = preprocess(data.images, PREPROCESSING), torch.from_numpy(data.labels)
        for entry, bits in zip(measured, (8, 4, 2), strict=True):
            set_width(network.model, bits)
            expected = 100 * float((network.model(inputs).argmax(1) == labels).float().mean())
            assert (entry.bits, entry.metric, entry.n) == (bits, "top1", 50)
            assert (entry.dataset, entry.dataset_sha256) == ("halves", "ab" * 32)
            assert entry.value == pytest.approx(expected)

    def test_measuring_changes_nothing(self) -> None:
        network = tiny_network()
        run_stage(JointStage(network, SETTINGS), tiny_batches(), plan(0, 3))
        before = {key: value.clone() for key, value in network.model.state_dict().items()}
        measure_widths(network.model, (8, 4, 2), halves(), PREPROCESSING)
        assert_same_state(dict(network.model.state_dict()), before)
