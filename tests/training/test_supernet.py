from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bitswitch_deploy.errors import CheckpointError
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.checkpoint import load_checkpoint, save_checkpoint
from bitswitch_deploy.training.execution import Execution
from bitswitch_deploy.training.layers import SwitchableBatchNorm
from bitswitch_deploy.training.prepare import set_width
from bitswitch_deploy.training.recipe import JointSettings, SupernetSettings
from bitswitch_deploy.training.schedule import Position
from bitswitch_deploy.training.stages import JointStage
from bitswitch_deploy.training.supernet import SupernetStage
from bitswitch_deploy.training.trainer import RunPlan, restore_stage, run_stage, stage_state
from tests.training.tiny_network import seen_network, tiny_batches

RATES: dict[str, Any] = {"epochs": 12, "batch_size": 16, "learning_rate": 0.01, "weight_decay": 0.1}
SETTINGS = SupernetSettings(**RATES, warmup_epochs=0, threshold=1.0)
RFQUANT = SupernetSettings(
    **RATES,
    draw="random",
    update="accumulated",
    distillation="in_batch",
    teacher_share=0.5,
    bit_scheduler=True,
    distortion=0.01,
)
TOTAL = 48


def at(step: int) -> Position:
    return Position(step=step, total=TOTAL, per_epoch=4)


def supernet(settings: SupernetSettings = SETTINGS, seed: int = 3) -> SupernetStage:
    return SupernetStage(seen_network(), settings, sensitive=("3",), samples=64, seed=seed)


class Passes:
    """Notes the widths of both layers in each pass, and what has a gradient when it is stepped."""

    def __init__(self, stage: SupernetStage) -> None:
        self.widths: list[tuple[int, int]] = []
        self.moved: list[set[str]] = []
        names = {parameter: name for name, parameter in stage.model.named_parameters()}
        layers = dict(stage.model.named_modules())
        stage.model.register_forward_hook(lambda *_: self.widths.append((layers["3"].bits, layers["6"].bits)))

        def note(*_: object) -> None:
            self.moved.append({name for parameter, name in names.items() if parameter.grad is not None})

        stage.optimizers[0].register_step_pre_hook(note)


class TestDraws:
    def test_warming_up_is_joint_training(self) -> None:
        stage = supernet(replace(SETTINGS, warmup_epochs=10))
        joint = JointStage(seen_network(), JointSettings(**RATES), samples=64)
        for step in range(3):
            batch = tiny_batches().batch(step)
            assert torch.equal(stage.step(batch, at(step)), joint.step(batch, at(step)))
        for actual, expected in zip(stage.model.parameters(), joint.model.parameters(), strict=True):
            assert torch.equal(actual, expected)

    @pytest.mark.filterwarnings("ignore")  # those of torch's own compiler
    def test_a_fast_execution_compiles_the_quantizers_once_and_computes_the_same(self) -> None:
        torch._dynamo.reset()
        counters = torch._dynamo.utils.counters["stats"]
        counters.clear()
        fast = SupernetStage(seen_network(), SETTINGS, samples=64, seed=3, execution=Execution(fast=True))
        plain = SupernetStage(seen_network(), SETTINGS, samples=64, seed=3)
        for step in range(4):
            batch = tiny_batches().batch(step)
            torch.testing.assert_close(fast.step(batch, at(step)), plain.step(batch, at(step)), rtol=1e-3, atol=0)
        for (name, actual), expected in zip(fast.model.named_parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-3, msg=name)
        assert 0 < counters["unique_graphs"] < 4

    def test_passes_mix_widths_and_depend_on_seed_and_step_alone(self) -> None:
        seen = []
        for seed, first in ((3, 0), (3, 20), (4, 0)):
            stage = supernet(seed=seed)
            passes = Passes(stage)
            for step in range(first, 24):
                torch.rand(())  # whatever else is drawn
                stage.step(tiny_batches().batch(step), at(step))
            seen.append(passes.widths)
        whole, later, other = seen
        assert whole[-len(later) :] == later
        assert whole != other
        assert {a == b for a, b in whole} == {True, False}

    def test_uniform_draws_do_not_favour(self) -> None:
        # both spin the same ball; on a wheel in proportion to the width it falls on the same width or a higher one
        stages = supernet(), supernet(replace(SETTINGS, draw="uniform"))
        favoured, even = map(Passes, stages)
        for step in range(36, 48):
            for stage in stages:
                stage.step(tiny_batches().batch(step), at(step))
        assert all(a[0] >= b[0] and a[1] == b[1] for a, b in zip(favoured.widths, even.widths, strict=True))
        assert favoured.widths != even.widths

    def test_random_starts_at_the_highest_width_and_steps_once(self) -> None:
        stage = supernet(RFQUANT)
        passes = Passes(stage)
        for step in range(4):
            stage.step(tiny_batches().batch(step), at(step))
        assert passes.widths[::3] == [(8, 8)] * 4
        assert len(passes.moved) == 4
        assert len(set(passes.widths)) > 4


class TestGradients:
    def test_reach_the_scales_and_statistics_in_use_only(self) -> None:
        stage = supernet()
        passes = Passes(stage)
        for step in range(40, 48):
            stage.step(tiny_batches().batch(step), at(step))
        assert any(a != b for a, b in passes.widths)
        for (first, second), moved in zip(passes.widths, passes.moved, strict=True):
            places = {3: (8, 4, 2).index(first), 6: (8, 4, 2).index(second)}
            norms = {name for name in moved if "copies" in name}
            # both BatchNorms go with layer 3: the stem has none, so its BatchNorm goes with the next layer
            assert norms == {f"{norm}.copies.{places[3]}.{leaf}" for norm in (1, 4) for leaf in ("weight", "bias")}
        assert all(parameter.grad is None for parameter in stage.model.parameters())

    def test_a_pass_leaves_the_statistics_of_other_widths_alone(self) -> None:
        stage = supernet(RFQUANT)
        norm = stage.model.get_submodule("4")
        assert isinstance(norm, SwitchableBatchNorm)
        passes = Passes(stage)
        before = [int(copy.num_batches_tracked) for copy in norm.copies]  # type: ignore[arg-type]
        stage.step(tiny_batches().batch(0), at(0))
        visits = [int(copy.num_batches_tracked) - n for copy, n in zip(norm.copies, before)]  # type: ignore[arg-type]
        assert visits == [sum(first == bits for first, _ in passes.widths) for bits in (8, 4, 2)]

    def test_a_step_of_rfquant_is_the_sum_of_its_passes(self) -> None:
        """Cross entropy, for later passes half with the labels and half with the first pass, and the distortion."""
        stage, reference = supernet(replace(RFQUANT, distortion=0.5)), seen_network().model
        passes = Passes(stage)
        summed: dict[str, torch.Tensor] = {}

        def note(*_: object) -> None:
            summed.update({n: p.grad.clone() for n, p in stage.model.named_parameters() if p.grad is not None})

        stage.optimizers[0].register_step_pre_hook(note)
        batch = tiny_batches().batch(0)
        losses = stage.step(batch, at(3))
        outputs: list[torch.Tensor] = []
        reference.get_submodule("4").register_forward_hook(lambda _m, _i, output: outputs.append(output))
        one_hot = F.one_hot(batch.labels, 2).float()
        target: torch.Tensor = one_hot
        for index, (first, second) in enumerate(passes.widths):
            set_width(reference, WidthAssignment(default=8, overrides=(("3", first), ("6", second))))
            logits = reference(batch.inputs)
            loss = F.cross_entropy(logits, target)
            if index == 0:
                target = 0.5 * one_hot + 0.5 * logits.detach().softmax(1)
            elif first == 2:
                loss = loss + 0.5 * F.mse_loss(outputs[-1], outputs[0].detach())
            loss.backward()  # type: ignore[no-untyped-call]
            assert losses[index] == pytest.approx(loss.item(), rel=1e-5)
        assert 2 in [first for first, _ in passes.widths]
        expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
        assert summed.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(summed[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, batchnorm="transitional", distillation="ps_kd", average_decay=0.9, bit_scheduler=True),
        RFQUANT,
    ],
)
def test_a_resumed_run_is_that_which_nothing_interrupted(
    settings: SupernetSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitswitch_deploy.training.supernet.resting_share", lambda _epoch, _epochs: 0.5)
    batches = tiny_batches()
    plan = RunPlan(start=0, stop=TOTAL, total=TOTAL, save_every=4, seed=3)
    whole = supernet(settings)
    run_stage(whole, batches, plan)
    first = supernet(settings)
    run_stage(first, batches, replace(plan, stop=41))
    save_checkpoint(stage_state(first, 41, TOTAL), tmp_path / "state")
    second = SupernetStage(seen_network(), settings, samples=64, seed=3)
    start = restore_stage(second, load_checkpoint(tmp_path / "state"), TOTAL, "state")
    run_stage(second, batches, replace(plan, start=start))
    assert second.own_state()["resting"] == whole.own_state()["resting"]
    assert len(whole.own_state()["resting"]) == settings.bit_scheduler  # one of two layers
    assert second.own_state()["sensitive"] == ["3"]
    wanted = whole.result.state_dict()
    for name, tensor in second.result.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def test_layers_rest_from_the_lowest_width_after_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitswitch_deploy.training.supernet.resting_share", lambda _epoch, _epochs: 0.5)
    stage = supernet(replace(RFQUANT, distortion=0.0))
    passes = Passes(stage)
    resting = []
    for step in range(TOTAL):
        stage.step(tiny_batches().batch(step), at(step))
        resting.append(tuple(stage.own_state()["resting"]))
    assert resting[:28] == [()] * 28  # epoch 7 is the only event of twelve epochs
    (at_rest,) = resting[28]
    assert resting[28:] == [(at_rest,)] * 20
    place = ("3", "6").index(at_rest)
    early, late = ({widths[place] for widths in part} for part in (passes.widths[: 3 * 28], passes.widths[3 * 28 :]))
    assert (early, late) == ({8, 4, 2}, {8, 4})
    assert {widths[1 - place] for widths in passes.widths[3 * 28 :]} == {8, 4, 2}


@pytest.mark.parametrize("key", ["sensitive", "resting"])
def test_a_state_with_layers_of_another_network_is_refused(key: str) -> None:
    stage = supernet()
    with pytest.raises(CheckpointError, match=rf"state: {key} = \['stem'\]"):
        stage.restore_own({**stage.own_state(), key: ["stem"]}, "state")
    state = stage.own_state()
    del state[key]
    with pytest.raises(CheckpointError, match=f"{key} = None"):
        stage.restore_own(state, "state")
