from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckFailedError
from bitswitch_deploy.training.recipe import StageSettings
from bitswitch_deploy.training.stages import FloatStage, JointStage, is_scale
from tests.training.tiny_network import tiny_batches, tiny_model, tiny_network

SETTINGS = StageSettings(epochs=1, batch_size=16, learning_rate=0.01, weight_decay=0.1)


def joint_stage() -> JointStage:
    torch.manual_seed(0)
    return JointStage(tiny_network(), SETTINGS)


class Recorder:
    """Notes what each optimizer sees when it steps: its rate, and which parameters have gradients."""

    def __init__(self, stage: JointStage) -> None:
        self.rates: list[list[float]] = [[], []]
        self.moved: list[list[set[str]]] = [[], []]
        names = {parameter: name for name, parameter in stage.model.named_parameters()}
        for index, optimizer in enumerate(stage.optimizers):

            def note(optimizer: torch.optim.Optimizer, _a: object, _k: object, index: int = index) -> None:
                group = optimizer.param_groups[0]
                self.rates[index].append(group["lr"])
                self.moved[index].append({names[p] for p in group["params"] if p.grad is not None})

            optimizer.register_step_pre_hook(note)


class TestJointStage:
    def test_scales_have_their_own_optimizer_without_weight_decay(self) -> None:
        stage = joint_stage()
        others, scales = (optimizer.param_groups[0] for optimizer in stage.optimizers)
        assert others["weight_decay"] == 0.1
        assert scales["weight_decay"] == 0.0
        assert len(scales["params"]) == 2 * (1 + 3)  # two layers: one weight scale, one input scale per width
        assert len(others["params"]) + len(scales["params"]) == len(list(stage.model.parameters()))

    def test_each_width_steps_both_optimizers_with_its_alrs_rate(self) -> None:
        stage = joint_stage()
        recorder = Recorder(stage)
        stage.step(*tiny_batches().batch(0), 50, 100)
        assert recorder.rates[0] == pytest.approx([0.005] * 3)  # half of the cosine
        assert recorder.rates[1] == pytest.approx([0.005, 0.005 * 0.01, 0.005 * 0.001])  # 8, 4, 2 bits

    def test_only_the_scales_and_batchnorm_of_the_width_in_use_move(self) -> None:
        stage = joint_stage()
        recorder = Recorder(stage)
        stage.step(*tiny_batches().batch(0), 0, 100)
        for index in range(3):
            moved = recorder.moved[1][index]
            assert "3.weight_quantizer.scale" in moved
            assert {name for name in moved if "input" in name} == {
                f"3.input_quantizer.scales.{index}",
                f"6.input_quantizer.scales.{index}",
            }
            norms = {name for name in recorder.moved[0][index] if "copies" in name}
            assert norms == {f"{n}.copies.{index}.{p}" for n in (1, 4) for p in ("weight", "bias")}

    def test_gradients_are_cleared(self) -> None:
        stage = joint_stage()
        stage.step(*tiny_batches().batch(0), 0, 100)
        assert all(parameter.grad is None for parameter in stage.model.parameters())

    def test_learns(self) -> None:
        stage = JointStage(tiny_network(), replace(SETTINGS, learning_rate=2e-3, weight_decay=0.0))
        batches = tiny_batches()
        losses = [sum(stage.step(*batches.batch(step), step, 40)) for step in range(40)]
        assert sum(losses[-4:]) < 0.5 * sum(losses[:4])

    # torch's own tracer of autograd functions does what it warns of
    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
    def test_is_traced_without_a_break_and_computes_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def traced(model: nn.Module) -> nn.Module:
            return cast(nn.Module, torch.compile(model, backend="aot_eager", fullgraph=True))

        monkeypatch.setattr("bitswitch_deploy.training.stages.compiled", traced)
        fast = JointStage(tiny_network(), SETTINGS, fast=True)
        plain = JointStage(tiny_network(), SETTINGS)
        for step in range(3):
            inputs, labels = tiny_batches().batch(step)
            assert fast.step(inputs, labels, step, 3) == plain.step(inputs, labels, step, 3)
        for actual, expected in zip(fast.model.parameters(), plain.model.parameters(), strict=True):
            assert torch.equal(actual, expected)

    def test_nan_names_width_and_layer(self) -> None:
        stage = joint_stage()
        stage.step(*tiny_batches().batch(0), 0, 100)
        stage.model[4].copies[1].bias.data.fill_(float("nan"))  # type: ignore[index]
        with pytest.raises(CheckFailedError, match=r"training of 4\.copies\.1 at 4 bits: loss nan"):
            stage.step(*tiny_batches().batch(1), 1, 100)

    def test_nan_in_the_data_is_said_to_be_there(self) -> None:
        inputs, labels = tiny_batches().batch(0)
        inputs[3] = float("inf")
        stage = joint_stage()
        stage.step(*tiny_batches().batch(0), 0, 100)
        with pytest.raises(CheckFailedError, match="training of network input at 8 bits"):
            stage.step(inputs, labels, 0, 100)


class _BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0] * float("nan")


class _Poisoned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _BadBackward.apply(x)  # type: ignore[no-untyped-call]
        return result


class TestFloatStage:
    def test_one_step_is_adam_on_cross_entropy(self) -> None:
        stage, reference = FloatStage(tiny_model(), SETTINGS), tiny_model()
        adam = torch.optim.Adam(reference.parameters(), lr=0.01, weight_decay=0.1)
        inputs, labels = tiny_batches().batch(0)
        loss = F.cross_entropy(reference(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        assert stage.step(inputs, labels, 0, 10) == pytest.approx((loss.item(),))
        for actual, expected in zip(stage.model.parameters(), reference.parameters(), strict=True):
            assert torch.equal(actual, expected)

    def test_a_gradient_that_is_not_finite_names_the_parameter(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), _Poisoned(), nn.Linear(4, 2))
        with pytest.raises(CheckFailedError, match=r"training of 1\.bias at float: a gradient that is not finite"):
            FloatStage(model, SETTINGS).step(*tiny_batches().batch(0), 0, 10)


def test_is_scale() -> None:
    names = [name for name, _ in tiny_network().model.named_parameters() if is_scale(name)]
    assert names == [
        f"{layer}.{scale}"
        for layer in (3, 6)
        for scale in ("weight_quantizer.scale", *(f"input_quantizer.scales.{i}" for i in range(3)))
    ]
