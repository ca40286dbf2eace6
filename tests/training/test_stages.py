from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckFailedError
from bitswitch_deploy.training.execution import Execution, Precision
from bitswitch_deploy.training.layers import QUANTIZED_LAYERS, QuantLinear, is_scale
from bitswitch_deploy.training.prepare import PrepareOptions, prepare, set_width
from bitswitch_deploy.training.recipe import JointSettings
from bitswitch_deploy.training.schedule import Position
from bitswitch_deploy.training.stages import FloatStage, JointStage, mean_scale_gradient
from tests.training.tiny_network import EXAMPLE, OPTIONS, tiny_batches, tiny_model, tiny_network

SETTINGS = JointSettings(epochs=1, batch_size=16, learning_rate=0.01, weight_decay=0.1)


def at(step: int, total: int) -> Position:
    return Position(step=step, total=total, per_epoch=4)


def joint_stage(**changes: Any) -> JointStage:
    torch.manual_seed(0)
    return JointStage(tiny_network(), replace(SETTINGS, **changes), samples=64)


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
        stage.step(tiny_batches().batch(0), at(50, 100))
        assert recorder.rates[0] == pytest.approx([0.005] * 3)  # half of the cosine
        assert recorder.rates[1] == pytest.approx([0.005, 0.005 * 0.01, 0.005 * 0.001])  # 8, 4, 2 bits

    def test_only_the_scales_and_batchnorm_of_the_width_in_use_move(self) -> None:
        stage = joint_stage()
        recorder = Recorder(stage)
        stage.step(tiny_batches().batch(0), at(0, 100))
        for index in range(3):
            moved = recorder.moved[1][index]
            assert "3.weight_quantizer.scale" in moved
            assert {name for name in moved if "input" in name} == {
                f"3.input_quantizer.scales.{index}",
                f"6.input_quantizer.scales.{index}",
            }
            norms = {name for name in recorder.moved[0][index] if "copies" in name}
            assert norms == {f"{n}.copies.{index}.{p}" for n in (1, 4) for p in ("weight", "bias")}

    @pytest.mark.parametrize(
        ("alrs", "bracket"),
        [
            ("none", lambda rate, _: [rate] * 3),
            ("bracket", lambda rate, m: [e * rate * (1 - m_b) for e, m_b in zip((1, 0.01, 0.001), m)]),
            ("bracket_printed", lambda rate, m: [e * max(rate - m_b, 0) for e, m_b in zip((1, 0.01, 0.001), m)]),
        ],
    )
    def test_brackets_take_the_gradients_of_the_width_in_use(
        self, alrs: str, bracket: Callable[[float, list[float]], list[float]]
    ) -> None:
        stage = joint_stage(alrs=alrs)
        peaks: list[float] = []

        def note(optimizer: torch.optim.Optimizer, _a: object, _k: object) -> None:
            """Largest gradient of each layer's scales, clipped at 1, averaged: by hand, from the names."""
            layers: dict[str, float] = {"3": 0.0, "6": 0.0}
            for name, parameter in stage.model.named_parameters():
                if is_scale(name) and parameter.grad is not None:
                    layers[name[0]] = max(layers[name[0]], float(parameter.grad.abs().max()))
            peaks.append(sum(min(peak, 1.0) for peak in layers.values()) / 2)

        stage.optimizers[1].register_step_pre_hook(note)
        recorder = Recorder(stage)
        stage.step(tiny_batches().batch(0), at(50, 100))
        assert len(set(peaks)) == 3
        assert recorder.rates[1] == pytest.approx(bracket(0.005, peaks), rel=1e-5)

    def test_the_mean_scale_gradient_is_clipped_at_one(self) -> None:
        model = tiny_network().model
        first, second = (m for m in model.modules() if isinstance(m, QUANTIZED_LAYERS))
        first.weight_quantizer.scale.grad = torch.tensor([0.1, -7.0, 0.0, 0.2])
        second.weight_quantizer.scale.grad = torch.full((8,), 0.25)
        second.input_quantizer.scales[1].grad = torch.tensor(-0.5)
        assert mean_scale_gradient(model).item() == pytest.approx((1.0 + 0.5) / 2)

    def test_a_layer_that_had_no_part_in_the_step_counts_as_zero(self) -> None:
        model = tiny_network(PrepareOptions(widths=(8, 4, 2), weight_only=("3",))).model
        second = model.get_submodule("6")
        assert isinstance(second, QuantLinear)
        second.weight_quantizer.scale.grad = torch.full((8,), 0.25)
        assert mean_scale_gradient(model).item() == pytest.approx(0.25 / 2)

    def test_accumulated_gradients_step_once_at_the_rate_of_the_highest_width(self) -> None:
        stage = joint_stage(update="accumulated")
        reference = joint_stage()
        recorder = Recorder(stage)
        batch = tiny_batches().batch(0)
        losses = stage.step(batch, at(50, 100)).tolist()
        assert recorder.rates == [[pytest.approx(0.005)], [pytest.approx(0.005)]]
        assert len(recorder.moved[1][0]) == 2 * (1 + 3)
        for bits, loss in zip((8, 4, 2), losses, strict=True):
            set_width(reference.model, bits)
            expected = F.cross_entropy(reference.model(batch.inputs), batch.labels)
            expected.backward()  # type: ignore[no-untyped-call]
            assert loss == pytest.approx(expected.item())
        for optimizer in reference.optimizers:
            optimizer.param_groups[0]["lr"] = 0.005
            optimizer.step()
        for actual, wanted in zip(stage.model.parameters(), reference.model.parameters(), strict=True):
            torch.testing.assert_close(actual, wanted)

    def test_distillation_targets_reach_the_loss(self) -> None:
        stage, reference = joint_stage(distillation="in_batch", teacher_share=1.0), joint_stage()
        batch = tiny_batches().batch(0)
        losses = stage.step(batch, at(50, 100)).tolist()
        expected = reference.step(batch, at(50, 100)).tolist()
        assert losses[0] == expected[0]
        assert losses[1] != expected[1]

    def test_an_average_is_the_result_and_does_not_touch_the_training(self) -> None:
        stage, plain = joint_stage(average_decay=0.9), joint_stage()
        for step in range(3):
            batch = tiny_batches().batch(step)
            assert torch.equal(stage.step(batch, at(step, 9)), plain.step(batch, at(step, 9)))
        assert plain.result is plain.model
        averaged = dict(stage.result.named_parameters())
        apart = [name for name, p in stage.model.named_parameters() if not torch.equal(p, averaged[name])]
        assert len(apart) > 10
        assert all(torch.equal(a, b) for a, b in zip(stage.model.parameters(), plain.model.parameters(), strict=True))

    def test_bfloat16_computes_nearly_the_same_with_quantizers_in_float32(self) -> None:
        torch.manual_seed(0)
        execution = Execution(precision="bfloat16")
        stage, plain = JointStage(tiny_network(), SETTINGS, samples=64, execution=execution), joint_stage()
        seen: set[torch.dtype] = set()
        for module in stage.model.modules():
            if isinstance(module, QUANTIZED_LAYERS):
                module.input_quantizer.register_forward_hook(lambda _m, _i, output: seen.add(output.dtype))
        batch = tiny_batches().batch(0)
        losses, exact = stage.step(batch, at(0, 100)), plain.step(batch, at(0, 100))
        assert seen == {torch.float32}
        torch.testing.assert_close(losses, exact, rtol=0.05, atol=0)
        assert not torch.equal(losses, exact)
        assert {p.dtype for p in stage.model.parameters()} == {torch.float32}

    def test_gradients_are_cleared(self) -> None:
        stage = joint_stage()
        stage.step(tiny_batches().batch(0), at(0, 100))
        assert all(parameter.grad is None for parameter in stage.model.parameters())

    def test_learns(self) -> None:
        stage = JointStage(tiny_network(), replace(SETTINGS, learning_rate=2e-3, weight_decay=0.0), samples=64)
        batches = tiny_batches()
        losses = [float(stage.step(batches.batch(step), at(step, 40)).sum()) for step in range(40)]
        assert sum(losses[-4:]) < 0.5 * sum(losses[:4])

    # torch's own tracer of autograd functions does what it warns of
    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
    @pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # torch 2.13 says so on Python 3.13.0
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_is_traced_without_a_break_and_computes_the_same(
        self, precision: Precision, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def traced(model: nn.Module) -> nn.Module:
            return cast(nn.Module, torch.compile(model, backend="aot_eager", fullgraph=True))

        monkeypatch.setattr("bitswitch_deploy.training.execution.compiled", traced)
        fast = JointStage(tiny_network(), SETTINGS, samples=64, execution=Execution(precision=precision, fast=True))
        plain = JointStage(tiny_network(), SETTINGS, samples=64, execution=Execution(precision=precision))
        for step in range(3):
            batch = tiny_batches().batch(step)
            assert torch.equal(fast.step(batch, at(step, 3)), plain.step(batch, at(step, 3)))
        for actual, expected in zip(fast.model.parameters(), plain.model.parameters(), strict=True):
            assert torch.equal(actual, expected)

    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
    @pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")
    def test_the_variants_of_an_ablation_are_all_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        graphs: list[torch.fx.GraphModule] = []

        def counting(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
            graphs.append(graph)
            return graph.forward

        compiles = torch.compile
        monkeypatch.setattr(torch, "compile", lambda module: compiles(module, backend=counting))
        monkeypatch.setattr("torch.compiler.config.recompile_limit", 8)
        torch.compiler.reset()
        for options in (OPTIONS, replace(OPTIONS, granularity="per_tensor"), replace(OPTIONS, pin=("6",))):
            stage = JointStage(tiny_network(options), SETTINGS, samples=64, execution=Execution(fast=True))
            for step in range(2):  # the first one sets the scales
                stage.step(tiny_batches().batch(step), at(step, 3))
        assert len(graphs) == 9

    def test_nan_names_width_and_layer(self) -> None:
        stage = joint_stage()
        stage.step(tiny_batches().batch(0), at(0, 100))
        stage.model[4].copies[1].bias.data.fill_(float("nan"))  # type: ignore[index]
        with pytest.raises(CheckFailedError, match=r"training of 4\.copies\.1 at 4 bits: loss nan"):
            stage.step(tiny_batches().batch(1), at(1, 100))

    def test_nan_in_the_data_is_said_to_be_there(self) -> None:
        batch = tiny_batches().batch(0)
        batch.inputs[3] = float("inf")
        stage = joint_stage()
        stage.step(tiny_batches().batch(0), at(0, 100))
        with pytest.raises(
            CheckFailedError, match=r"training of network input at 8 bits.*\n.*\n  do: correct the images"
        ):
            stage.step(batch, at(0, 100))

    def test_nan_of_a_draw_names_the_layer_that_drew(self) -> None:
        class Lost(nn.Dropout):
            """0 / 0 in one draw of ten."""

            def forward(self, x: Tensor) -> Tensor:
                kept = super().forward(torch.ones((), device=x.device))
                return x * (kept / kept)

        network = tiny_network()
        network.model[5] = nn.Sequential(nn.Flatten(), Lost(0.1))  # type: ignore[operator]
        stage = JointStage(network, SETTINGS, samples=64)
        torch.manual_seed(0)
        with pytest.raises(CheckFailedError, match=r"training of 5\.1 at \d bits: loss nan"):
            deque(stage.step(tiny_batches().batch(step), at(step, 100)) for step in range(40))

    def test_a_gradient_is_blamed_where_it_arises_in_whatever_order_layers_are_registered(self) -> None:
        class Backwards(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head, self.late, self.mid, self.stem = (nn.Linear(16, 16) for _ in range(4))

            def forward(self, x: Tensor) -> Tensor:
                y = self.mid(self.stem(x.flatten(1)).relu())
                result: Tensor = self.head(self.late((y - y.amin()).sqrt()).relu())
                return result

        network = prepare(Backwards(), EXAMPLE, OPTIONS, check_export=False)
        stage = JointStage(network, SETTINGS, samples=64)
        with pytest.raises(CheckFailedError, match=r"training of mid\.\S+ at 8 bits: a gradient that is not finite"):
            stage.step(tiny_batches().batch(0), at(0, 100))


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
        batch = tiny_batches().batch(0)
        loss = F.cross_entropy(reference(batch.inputs), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        assert stage.step(batch, at(0, 10)).tolist() == pytest.approx([loss.item()])
        for actual, expected in zip(stage.model.parameters(), reference.parameters(), strict=True):
            assert torch.equal(actual, expected)

    def test_a_gradient_that_is_not_finite_names_the_parameter(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), _Poisoned(), nn.Linear(4, 2))
        with pytest.raises(CheckFailedError, match=r"training of 1\.bias at float: a gradient that is not finite"):
            FloatStage(model, SETTINGS).step(tiny_batches().batch(0), at(0, 10))


def test_is_scale() -> None:
    names = [name for name, _ in tiny_network().model.named_parameters() if is_scale(name)]
    assert names == [
        f"{layer}.{scale}"
        for layer in (3, 6)
        for scale in ("weight_quantizer.scale", *(f"input_quantizer.scales.{i}" for i in range(3)))
    ]
