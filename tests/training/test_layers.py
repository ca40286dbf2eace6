from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bitswitch_deploy.tensors import Granularity, Rounding
from bitswitch_deploy.training.layers import (
    QUANTIZED_CLASS,
    LayerQuantization,
    QuantConv2d,
    QuantConvTranspose2d,
    QuantizedLayer,
    QuantLinear,
    SwitchableBatchNorm2d,
    float_skeleton,
    quantized_from,
    replace_modules,
)

WIDTHS = (8, 4, 2)


def settings(axis: int) -> LayerQuantization:
    return LayerQuantization(
        name="layer",
        widths=WIDTHS,
        rounding=Rounding.HALF_UP,
        container="int8",
        granularity=Granularity(kind="per_channel", axis=axis),
        signed=True,
    )


def quantize(plain: nn.Module) -> QuantizedLayer:
    return quantized_from(plain, settings(QUANTIZED_CLASS[type(plain)][1]))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class TestQuantizedLayers:
    def test_conv2d_is_the_convolution_of_quantized_operands(self) -> None:
        layer = quantize(nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, padding_mode="reflect"))
        assert isinstance(layer, QuantConv2d)
        x = random(2, 4, 9, 9)
        for bits in WIDTHS:
            layer.bits = bits
            actual = layer(x)
            padded = F.pad(layer.input_quantizer(x, bits), (1, 1, 1, 1), mode="reflect")
            weight = layer.weight_quantizer(layer.weight, bits)
            expected = F.conv2d(padded, weight, layer.bias, stride=2, dilation=2, groups=2)
            assert torch.equal(actual, expected)

    def test_conv_transpose2d_is_the_transposed_convolution_of_quantized_operands(self) -> None:
        layer = quantize(nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False))
        assert isinstance(layer, QuantConvTranspose2d)
        assert layer.weight_quantizer.scale.shape == (3,)
        layer.bits = 4
        x = random(2, 4, 5, 5)
        weight = layer.weight_quantizer(layer.weight, 4)
        expected = F.conv_transpose2d(layer.input_quantizer(x, 4), weight, None, 2, 1, 1, 2)
        assert torch.equal(layer(x), expected)
        assert layer(x, output_size=[9, 9]).shape == (2, 6, 9, 9)

    def test_linear_accepts_any_number_of_batch_axes(self) -> None:
        layer = quantize(nn.Linear(5, 3))
        assert isinstance(layer, QuantLinear)
        layer.bits = 2
        x = random(2, 4, 5)
        expected = F.linear(layer.input_quantizer(x, 2), layer.weight_quantizer(layer.weight, 2), layer.bias)
        assert torch.equal(layer(x), expected)

    def test_parameters_keep_their_names_and_are_shared_with_the_float_layer(self) -> None:
        plain = nn.Conv2d(2, 2, 1)
        layer = quantize(plain)
        assert layer.weight is plain.weight
        assert set(layer.state_dict()) == {
            "weight",
            "bias",
            "weight_quantizer.scale",
            *(f"input_quantizer.scales.{i}" for i in range(3)),
            "input_quantizer.initialised",
            "input_quantizer.signed",
            "trained_as.decisions",
        }
        assert type(plain) is nn.Conv2d
        assert set(plain.state_dict()) == {"weight", "bias"}

    def test_starts_at_the_highest_width_in_the_mode_of_the_float_layer(self) -> None:
        layer = quantize(nn.Linear(2, 2).eval())
        assert layer.bits == 8
        assert not layer.training
        assert not layer.input_quantizer.training


class TestSwitchableBatchNorm:
    def test_each_width_has_its_own_statistics_and_parameters(self) -> None:
        norm = SwitchableBatchNorm2d(nn.BatchNorm2d(3), WIDTHS, None)
        norm.bits = 4
        norm(random(4, 3, 2, 2) + 5).sum().backward()
        moved = [bool((copy.running_mean != 0).any()) for copy in norm.copies]  # type: ignore[union-attr]
        assert moved == [False, True, False]
        assert [copy.weight.grad is not None for copy in norm.copies] == [False, True, False]

    def test_copies_start_from_the_float_one(self) -> None:
        plain = nn.BatchNorm2d(2)
        plain.running_mean = torch.tensor([1.0, 2.0])
        norm = SwitchableBatchNorm2d(plain, WIDTHS, None).eval()
        x = random(2, 2, 3, 3)
        for bits in WIDTHS:
            norm.bits = bits
            assert torch.equal(norm(x), plain.eval()(x))


class TestReplaceModules:
    def test_a_module_under_two_paths_is_replaced_once_under_both(self) -> None:
        shared = nn.ReLU()
        model = nn.Sequential(shared, nn.Sequential(shared, nn.Tanh()))
        asked: list[str] = []

        def replacement(path: str, module: nn.Module) -> nn.Module | None:
            asked.append(path)
            return nn.Sigmoid() if isinstance(module, nn.ReLU) else None

        replaced = replace_modules(model, replacement)
        assert replaced is model
        assert asked == ["", "0", "1", "1.1"]
        assert isinstance(model[0], nn.Sigmoid)
        assert model[1][0] is model[0]  # type: ignore[index]

    def test_the_root_itself(self) -> None:
        assert isinstance(replace_modules(nn.ReLU(), lambda _p, _m: nn.Tanh()), nn.Tanh)


class TestFloatSkeleton:
    def test_plain_layers_at_the_same_paths_with_the_values_of_the_highest_width(self) -> None:
        norm = SwitchableBatchNorm2d(nn.BatchNorm2d(2), WIDTHS, None)
        norm.copies[0].running_mean.fill_(7.0)  # type: ignore[operator]
        model = nn.Sequential(quantize(nn.Conv2d(2, 2, 1)), norm, nn.Flatten(), quantize(nn.Linear(8, 3)))
        plain = float_skeleton(model)
        assert [type(module) for module in plain.children()] == [nn.Conv2d, nn.BatchNorm2d, nn.Flatten, nn.Linear]
        reference = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
        assert set(plain.state_dict()) == set(reference.state_dict())
        assert plain.state_dict()["1.running_mean"].tolist() == [7.0, 7.0]
        reference.load_state_dict(plain.state_dict())
        x = random(2, 2, 2, 2)
        assert torch.equal(plain.eval()(x), reference.eval()(x))

    def test_the_prepared_network_is_left_alone(self) -> None:
        model = nn.Sequential(quantize(nn.Linear(2, 2)))
        plain = float_skeleton(model)
        plain[0].weight.data.zero_()  # type: ignore[index]
        assert isinstance(model[0], QuantLinear)
        assert bool(model[0].weight.any())
