"""Every construct that the skeleton must carry, each compared with the torch module on other batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.training.capture import CapturedNetwork, capture_skeleton


class Residual(nn.Module):
    """Option-A shortcut (slice and pad), functional residuals, depthwise and grouped convolution, pooling, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, stride=2, groups=2)
        self.bn2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.stem(x)))
        x = F.relu(x + self.depthwise(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(self.bn2(self.grouped(x)) + shortcut)
        x = F.max_pool2d(x, 2)
        return cast("Tensor", self.head(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up1 = nn.ConvTranspose2d(3, 8, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.up2(F.relu(self.up1(x))))


class Attention(nn.Module):
    """Linear on three dimensions, softmax attention, LayerNorm, GELU, a plain MatMul parameter, a position table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 12)
        self.position = nn.Parameter(torch.randn(1, 64, 12))
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 36)
        self.mix = nn.Parameter(torch.randn(12, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2)) + self.position
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        x = x + F.gelu(x @ self.mix)
        return cast("Tensor", self.head(x.mean(1)))


NETWORKS: tuple[Callable[[], nn.Module], ...] = (Residual, Decoder, Attention)


def network(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model


def run(captured: CapturedNetwork, model: nn.Module, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(captured.model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    transposed = {layer.weight for layer in captured.layers if layer.transposed}
    feeds = {name: values[name].detach().numpy() for name in captured.parameters}
    feeds |= {name: np.ascontiguousarray(feeds[name].T) for name in transposed}
    (output,) = session.run(None, {captured.inputs[0].name: x.numpy(), **feeds})
    return np.asarray(output)


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("batch", [1, 5])
def test_the_skeleton_computes_what_the_module_does(make: Callable[[], nn.Module], batch: int) -> None:
    model = network(make)
    captured = capture_skeleton(model, (torch.randn(2, 3, 8, 8),))
    x = torch.randn(batch, 3, 8, 8)
    np.testing.assert_allclose(run(captured, model, x), model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", NETWORKS)
def test_every_parameter_keeps_its_name(make: Callable[[], nn.Module]) -> None:
    model = network(make)
    captured = capture_skeleton(model, (torch.randn(1, 3, 8, 8),))
    floats = [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_floating_point()]
    assert set(captured.parameters) == set(floats)


def test_batch_normalization_stays_a_node_of_its_own() -> None:
    captured = capture_skeleton(network(Residual), (torch.randn(1, 3, 8, 8),))
    operators = [node.op_type for node in captured.model.graph.node]
    assert operators.count("BatchNormalization") == 2
    assert operators.count("Conv") == 3
    assert {"Slice", "Pad", "MaxPool", "Add"} <= set(operators)


def test_layers_are_described_in_the_layout_of_their_operator() -> None:
    layers = {layer.name: layer for layer in capture_skeleton(network(Attention), (torch.randn(1, 3, 8, 8),)).layers}
    assert (layers["qkv"].operator, layers["qkv"].transposed, layers["qkv"].channel_axis) == ("MatMul", True, 1)
    assert (layers["head"].operator, layers["head"].transposed, layers["head"].channel_axis) == ("Gemm", False, 0)
    assert (layers["mix"].operator, layers["mix"].transposed, layers["mix"].channel_axis) == ("MatMul", False, 1)
    decoder = {layer.name: layer for layer in capture_skeleton(network(Decoder), (torch.randn(1, 3, 8, 8),)).layers}
    assert [(layer.operator, layer.channel_axis) for layer in decoder.values()] == [("ConvTranspose", 1)] * 2


def test_the_first_axis_is_dynamic_and_the_others_are_not() -> None:
    captured = capture_skeleton(network(Residual), (torch.randn(1, 3, 8, 8),))
    assert captured.inputs[0].shape == ("batch", 3, 8, 8)
    assert captured.outputs[0].shape == ("batch", 5)


def test_capturing_twice_gives_the_same_bytes_without_traces_of_the_machine() -> None:
    model = network(Residual)
    first, second = (
        capture_skeleton(model, (torch.zeros(1, 3, 8, 8),)).model.SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert first == second
    assert b"torch" not in first
    assert b".py" not in first
    onnx.checker.check_model(onnx.load_from_string(first), full_check=True)


def test_a_weight_with_another_reader_is_not_transposed() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.t() + self.weight.sum()

    model = network(Tied)
    captured = capture_skeleton(model, (torch.randn(2, 3, 4),))
    assert captured.layers == ()
    x = torch.randn(3, 3, 4)
    np.testing.assert_allclose(run(captured, model, x), model(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_other_types_than_float32_are_refused() -> None:
    with pytest.raises(UsageError, match=r"parameter stem\.weight: dtype torch\.float64"):
        capture_skeleton(network(Residual).double(), (torch.randn(1, 3, 8, 8, dtype=torch.float64),))


def test_a_network_with_a_fixed_batch_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, -1) if x.shape[0] == 2 else x.reshape(1, -1)

    with pytest.raises(UsageError, match="a first axis that takes any batch size"):
        capture_skeleton(Fixed(), (torch.randn(2, 3, 4),))


def test_a_network_that_cannot_be_traced_is_refused_with_its_cause_and_line() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(UsageError, match=r"data-dependent expression[\s\S]*if x\.sum\(\) > 0") as refused:
        capture_skeleton(Branch(), (torch.randn(2, 4),))
    assert "\x1b" not in str(refused.value)


def test_an_example_that_is_no_tuple_is_refused() -> None:
    with pytest.raises(UsageError, match=r"example_input: a Tensor[\s\S]*write \(x,\)"):
        capture_skeleton(nn.Linear(4, 4), torch.zeros(2, 4))  # type: ignore[arg-type]


def test_a_tied_weight_has_its_first_name_whatever_the_exporter_calls_it() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.z, self.a = nn.Linear(4, 4), nn.Linear(4, 4)
            self.a.weight = self.z.weight

        def forward(self, x: Tensor) -> Tensor:
            return cast("Tensor", self.z(F.relu(self.a(x))))

    model = network(Tied)
    captured = capture_skeleton(model, (torch.randn(2, 4),))
    assert set(captured.parameters) == {"z.weight", "z.bias", "a.bias"}
    x = torch.randn(3, 4)
    np.testing.assert_allclose(run(captured, model, x), model(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_parameter_with_a_name_of_the_graph_is_refused() -> None:
    model = nn.Linear(4, 4)
    model.register_buffer("input", torch.ones(4))
    with pytest.raises(UsageError, match=r"parameter input: the name of an input or output[\s\S]*do: rename it"):
        capture_skeleton(model, (torch.zeros(2, 4),))


def test_a_parameter_with_the_name_of_an_argument_is_refused() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.mask = nn.Linear(4, 4), nn.Parameter(torch.ones(1, 4))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return cast("Tensor", self.linear(x * self.mask * mask))

    with pytest.raises(UsageError, match=r"parameter mask: the name of an input or output[\s\S]*do: rename it"):
        capture_skeleton(Masked(), (torch.zeros(2, 4), torch.zeros(2, 4)))


def test_inputs_without_names_are_refused() -> None:
    class Starred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, *xs: Tensor) -> Tensor:
            return cast("Tensor", self.linear(xs[0]))

    with pytest.raises(UsageError, match=r"forward\(\*xs\): inputs without names"):
        capture_skeleton(Starred(), (torch.zeros(2, 4),))


@pytest.mark.parametrize("which", ["the input", "the same again"])
def test_an_output_that_is_an_input_or_another_output_has_a_name_of_its_own(which: str) -> None:
    class Handing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.linear(x)
            return y, x if which == "the input" else y

    captured = capture_skeleton(Handing(), (torch.zeros(2, 4),))
    assert [value.name for value in captured.inputs] == ["input"]
    assert [value.name for value in captured.outputs] == ["logits", "output_1"]


def test_further_outputs_are_called_by_their_place() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor, gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = self.a(x)
            return y, self.b(x) * gain, y

    captured = capture_skeleton(Heads(), (torch.zeros(2, 4), torch.zeros(2, 1)))
    assert [value.name for value in captured.inputs] == ["input", "gain"]
    assert [value.name for value in captured.outputs] == ["logits", "output_1", "output_2"]
