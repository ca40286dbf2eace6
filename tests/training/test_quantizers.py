from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master.spec import Container
from bitswitch_deploy.quantization.affine import quantize
from bitswitch_deploy.quantization.rounding import derive_codes
from bitswitch_deploy.tensors import PER_TENSOR, CodeRange, Granularity, Rounding, code_range
from bitswitch_deploy.training.quantizers import (
    MIN_SCALE,
    ActivationQuantizer,
    WeightQuantizer,
    activation_range,
    derived_codes,
    nearest_codes,
    positive,
)

RULES = (Rounding.HALF_UP, Rounding.HALF_EVEN)
WIDTHS = (8, 6, 4, 2)
FloatArray = npt.NDArray[np.float64]


def weight_quantizer(
    weight: Tensor, granularity: Granularity, rounding: Rounding = Rounding.HALF_UP, bits: int = 8
) -> WeightQuantizer:
    return WeightQuantizer(weight, bits=bits, granularity=granularity, rounding=rounding)


def hand_gradients(
    values: FloatArray, codes: FloatArray, step: float, limits: CodeRange, incoming: FloatArray
) -> tuple[FloatArray, float]:
    """Reference, float64, one element at a time: gradient of each value and of their one step."""
    of_values, of_step = np.zeros_like(values), 0.0
    for i, value in enumerate(values):
        x = value / step
        if limits.low <= x <= limits.high:
            of_values[i] = incoming[i]
            of_step += incoming[i] * (codes[i] - x)
        else:
            of_step += incoming[i] * (limits.low if x < limits.low else limits.high)
    return of_values, of_step / math.sqrt(len(values) * limits.high)


class TestRounding:
    @pytest.mark.parametrize("rounding", RULES)
    @pytest.mark.parametrize("to_bits", range(2, 8))
    def test_every_code_is_derived_as_in_the_quantization_package(self, to_bits: int, rounding: Rounding) -> None:
        codes = np.arange(-128, 128, dtype=np.int8)
        derived = derived_codes(torch.from_numpy(codes).float(), from_bits=8, to_bits=to_bits, rounding=rounding)
        expected = derive_codes(codes, from_bits=8, to_bits=to_bits, rounding=rounding)
        np.testing.assert_array_equal(derived.numpy(), expected)

    @pytest.mark.parametrize(
        ("rounding", "expected"),
        [(Rounding.HALF_UP, [-2, -1, 0, 1, 2, 3, 7]), (Rounding.HALF_EVEN, [-2, -2, 0, 0, 2, 2, 7])],
    )
    def test_ties_follow_the_rule(self, rounding: Rounding, expected: list[int]) -> None:
        codes = torch.tensor([-32.0, -24.0, -8.0, 8.0, 24.0, 40.0, 127.0])
        assert derived_codes(codes, from_bits=8, to_bits=4, rounding=rounding).tolist() == expected

    def test_nearest_codes_round_ties_to_even_and_clip(self) -> None:
        values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 99.0, -99.0])
        codes = nearest_codes(values, torch.tensor(1.0), code_range(4, signed=True))
        assert codes.tolist() == [0, 2, 2, 0, -2, 7, -8]


class TestWeightQuantizer:
    @pytest.mark.parametrize("rounding", RULES)
    @pytest.mark.parametrize(
        ("shape", "granularity"),
        [
            ((6, 4, 3, 3), Granularity(kind="per_channel", axis=0)),
            ((6, 4, 3, 3), Granularity(kind="per_channel", axis=1)),
            ((5, 7), PER_TENSOR),
        ],
    )
    def test_codes_and_forward_equal_the_quantization_package(
        self, shape: tuple[int, ...], granularity: Granularity, rounding: Rounding
    ) -> None:
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        quantizer = weight_quantizer(weight, granularity, rounding)
        scale = quantizer.exported_scale().numpy()
        highest = quantize(weight.numpy(), scale, bits=8, signed=True, granularity=granularity).astype(np.int8)
        spread = [1] * len(shape)
        if granularity.axis is not None:
            spread[granularity.axis] = -1
        for bits in range(2, 9):
            expected = derive_codes(highest, from_bits=8, to_bits=bits, rounding=rounding)
            np.testing.assert_array_equal(quantizer.codes(weight, bits).numpy(), expected)
            dequantized = expected.astype(np.float32) * (scale.reshape(spread) * np.float32(2 ** (8 - bits)))
            np.testing.assert_array_equal(quantizer(weight, bits).detach().numpy(), dequantized)

    def test_codes_come_from_the_highest_code_and_not_from_the_float_weight(self) -> None:
        # 7.6 rounds to 8 and 8/16 is a tie; 7.6/16 alone is below one half
        weight = torch.tensor([7.6, -120.0, 127.0])
        quantizer = weight_quantizer(weight, PER_TENSOR)
        quantizer.scale.data.fill_(1.0)
        assert quantizer.codes(weight, 4).tolist() == [1, -7, 7]

    def test_highest_width_may_be_below_eight(self) -> None:
        weight = torch.tensor([7.4, -9.0, 3.0, 2.0])
        quantizer = weight_quantizer(weight, PER_TENSOR, bits=4)
        quantizer.scale.data.fill_(1.0)
        assert quantizer.codes(weight, 4).tolist() == [7, -8, 3, 2]
        assert quantizer.codes(weight, 2).tolist() == [1, -2, 1, 1]

    @pytest.mark.parametrize("rounding", RULES)
    @pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
    def test_gradients_at_the_edges_of_the_range(self, bits: int, rounding: Rounding) -> None:
        limits = code_range(bits, signed=True)
        edges = [limits.low - 0.75, limits.low - 0.25, limits.low, limits.low + 0.5, -0.5, 0.0, 0.25]
        edges += [limits.high - 0.5, limits.high, limits.high + 0.25, limits.high + 0.75, 200.0, -300.0]
        s_h = 0.0625
        step = s_h * 2 ** (8 - bits)
        rows = np.array([edges, np.array(edges) * 0.5]) * step
        weight = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
        quantizer = weight_quantizer(weight, Granularity(kind="per_channel", axis=0), rounding)
        quantizer.scale.data.fill_(s_h)
        incoming = np.random.default_rng(0).normal(size=rows.shape)
        (quantizer(weight, bits) * torch.tensor(incoming, dtype=torch.float32)).sum().backward()
        assert weight.grad is not None
        assert quantizer.scale.grad is not None
        codes = quantizer.codes(weight, bits).double().numpy()
        for row in range(2):
            of_weight, of_step = hand_gradients(rows[row], codes[row], step, limits, incoming[row])
            np.testing.assert_allclose(weight.grad[row].numpy(), of_weight, rtol=1e-6, atol=0)
            of_scale = of_step * 2 ** (8 - bits)
            np.testing.assert_allclose(float(quantizer.scale.grad[row]), of_scale, rtol=1e-4, atol=1e-6)

    def test_one_gradient_for_the_scale_of_a_whole_tensor(self) -> None:
        weight = torch.tensor([[0.3, -9.0], [1.7, 0.2]])
        quantizer = weight_quantizer(weight, PER_TENSOR, bits=4)
        quantizer.scale.data.fill_(1.0)
        quantizer(weight, 4).sum().backward()
        # round(x) - x inside, n outside, over sqrt(4 elements * 7)
        expected = (-0.3 - 8.0 + 0.3 - 0.2) / math.sqrt(28)
        assert quantizer.scale.grad is not None
        assert float(quantizer.scale.grad) == pytest.approx(expected, rel=1e-6)

    def test_initial_scale_covers_three_deviations(self) -> None:
        weight = torch.tensor([[1.0, 3.0], [0.0, 0.0], [-1.0, -1.0]])
        quantizer = weight_quantizer(weight, Granularity(kind="per_channel", axis=0))
        expected = [5.0 / 128, MIN_SCALE, 1.0 / 128]  # mean 2, deviation 1; all zero; mean -1, deviation 0
        np.testing.assert_allclose(quantizer.scale.detach().numpy(), expected, rtol=1e-6)

    def test_a_scale_that_an_optimizer_made_negative_acts_by_its_size(self) -> None:
        weight = torch.tensor([0.3, -0.8])
        quantizer = weight_quantizer(weight, PER_TENSOR)
        quantizer.scale.data.fill_(0.01)
        expected, codes = quantizer(weight, 6), quantizer.codes(weight, 6)
        expected.sum().backward()
        gradient = quantizer.scale.grad
        quantizer.scale.grad = None
        quantizer.scale.data.neg_()
        actual = quantizer(weight, 6)
        actual.sum().backward()
        assert torch.equal(actual, expected)
        assert torch.equal(quantizer.codes(weight, 6), codes)
        assert float(quantizer.exported_scale()) == pytest.approx(0.01)
        assert gradient is not None
        assert quantizer.scale.grad is not None
        assert torch.equal(quantizer.scale.grad, -gradient)

    def test_positive_never_reaches_zero(self) -> None:
        raw = torch.tensor([0.0, -1e-12, 2.0, -2.0])
        assert positive(raw).tolist() == pytest.approx([MIN_SCALE, MIN_SCALE, 2.0, 2.0])


class TestActivationQuantizer:
    def make(self, signed: bool | None = None, container: str = "int8", calls: int = 1) -> ActivationQuantizer:
        kind: Container = "uint8" if container == "uint8" else "int8"
        return ActivationQuantizer(name="layer", widths=WIDTHS, container=kind, signed=signed, calls=calls)

    @pytest.mark.parametrize(
        ("bits", "signed", "container", "high"),
        [(8, False, "int8", 127), (8, False, "uint8", 255), (6, False, "int8", 63), (8, True, "int8", 127)],
    )
    def test_range(self, bits: int, signed: bool, container: str, high: int) -> None:
        codes = activation_range(bits, signed=signed, container="uint8" if container == "uint8" else "int8")
        assert codes == CodeRange(low=-high - 1 if signed else 0, high=high)

    @pytest.mark.parametrize("bits", WIDTHS)
    @pytest.mark.parametrize("signed", [True, False])
    def test_forward_equals_the_quantization_package(self, bits: int, signed: bool) -> None:
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(bits))
        quantizer = self.make(signed=signed, container="uint8")
        actual = quantizer(x, bits).detach().numpy()
        scale = quantizer.scales[WIDTHS.index(bits)].detach().numpy()
        codes = quantize(x.numpy(), scale, bits=bits, signed=signed)
        np.testing.assert_array_equal(actual, codes.astype(np.float32) * scale)

    def test_int8_container_ends_at_127(self) -> None:
        quantizer = self.make(signed=False, container="int8")
        x = torch.tensor([1.0, 2.0, 1000.0])
        quantizer(x, 8)
        quantizer.scales[0].data.fill_(1.0)
        assert quantizer(x, 8).tolist() == [1.0, 2.0, 127.0]

    @pytest.mark.parametrize("bits", WIDTHS)
    def test_each_width_initialises_its_own_scale_at_its_first_batch(self, bits: int) -> None:
        quantizer = self.make(signed=False)
        first = torch.tensor([0.0, 1.0, 2.0, 5.0])
        quantizer(first, bits)
        quantizer(first * 100, bits)
        high = activation_range(bits, signed=False, container="int8").high
        index = WIDTHS.index(bits)
        assert quantizer.scales[index].item() == pytest.approx(2 * 2.0 / math.sqrt(high))
        assert quantizer.initialised.tolist() == [i == index for i in range(4)]

    @pytest.mark.parametrize(("low", "signed"), [(-0.1, True), (0.0, False)])
    def test_the_first_batch_decides_the_sign_for_good(self, low: float, signed: bool) -> None:
        quantizer = self.make()
        for bits in WIDTHS:
            quantizer(torch.tensor([low, 1.0]), bits)
        later = quantizer(torch.tensor([-5.0, 1.0]), 4)
        quantizer(torch.tensor([5.0, 1.0]), 2)
        assert quantizer.is_signed is signed
        assert bool(later[0] < 0) is signed  # what was trained to be clipped is clipped

    @pytest.mark.parametrize("calls_before", [1, 2, 7])
    def test_a_negative_number_in_a_further_call_of_the_first_batch_is_refused(self, calls_before: int) -> None:
        quantizer = self.make(calls=2)
        for call in range(calls_before):
            quantizer(torch.tensor([0.0, 1.0]), WIDTHS[call // 2])
        words = r"input of layer layer: negative numbers[\s\S]*signed=\(\('layer', True\),\)"
        with pytest.raises(UsageError, match=words):
            quantizer(torch.tensor([-0.1, 1.0]), WIDTHS[calls_before // 2])

    def test_evaluation_during_the_first_batch_is_no_call_of_it(self) -> None:
        quantizer = self.make(calls=2)
        quantizer(torch.tensor([0.0, 1.0]), 8)
        quantizer.eval()
        for _ in range(8):
            assert quantizer(torch.tensor([-1.0, 1.0]), 8)[0] == 0
        quantizer.train()
        with pytest.raises(UsageError, match="negative numbers"):
            quantizer(torch.tensor([-1.0, 1.0]), 8)

    def test_after_the_first_batch_or_a_sign_that_was_given_nothing_is_watched(self) -> None:
        negative = torch.tensor([-1.0, 1.0])
        trained = self.make(calls=2)
        for call in range(8):
            trained(negative.abs(), WIDTHS[call // 2])
        loaded = self.make(calls=2)
        loaded.load_state_dict(trained.state_dict())
        given = self.make(signed=False, calls=2)
        for quantizer in (trained, loaded, given):
            assert quantizer(negative, 8)[0] == 0

    @pytest.mark.parametrize("first", [torch.zeros(4), torch.tensor([1.0, math.nan]), torch.tensor([math.inf, 1.0])])
    def test_a_batch_of_zeros_or_with_nan_decides_nothing(self, first: Tensor) -> None:
        quantizer, fresh = (ActivationQuantizer(name="layer", widths=WIDTHS, container="int8") for _ in range(2))
        torch.testing.assert_close(quantizer(first, 8), first, rtol=0, atol=0, equal_nan=True)
        assert quantizer.seen == (False,) * 4
        x = torch.tensor([-1.0, 0.5])
        assert torch.equal(quantizer(x, 8), fresh(x, 8))
        assert quantizer.is_signed
        assert torch.equal(quantizer.scales[0], fresh.scales[0])

    def test_zeros_at_one_width_take_the_size_of_the_nearest_above(self) -> None:
        quantizer = ActivationQuantizer(name="layer", widths=WIDTHS, container="int8")
        quantizer(torch.tensor([0.0, 2.0]), 8)
        quantizer(torch.tensor([0.0, 4.0]), 6)
        quantizer(torch.zeros(2), 2)
        assert quantizer.seen == (True, True, False, True)
        assert quantizer.scales[3].item() == pytest.approx(2 * 2.0 / math.sqrt(3))  # mean 2, codes 0..3

    def test_sign_and_first_batches_are_part_of_the_state(self) -> None:
        quantizer = self.make()
        quantizer(torch.tensor([-1.0, 1.0]), 4)
        other = self.make()
        other.load_state_dict(quantizer.state_dict())
        x = torch.tensor([-0.4, 0.7])
        assert other.is_signed
        assert torch.equal(other.eval()(x, 4), quantizer.eval()(x, 4))

    def test_a_state_that_others_copy_into_the_buffers_is_followed(self) -> None:
        trained = self.make(calls=2)
        for call in range(8):
            trained(torch.tensor([0.5, 1.0]), WIDTHS[call // 2])

        def copied() -> ActivationQuantizer:
            other = self.make(calls=2)
            for target, source in zip(other.state_dict().values(), trained.state_dict().values()):
                target.copy_(source)
            return other

        x = torch.tensor([-0.4, 0.7])
        assert copied().is_initialised
        assert copied().codes_kind == "unsigned"
        assert torch.equal(copied().exported_scales(), trained.exported_scales())
        assert torch.equal(copied().eval()(x, 4), trained.eval()(x, 4))
        in_training = copied()  # its first batch was the other's: no scale is set anew and no sign watched
        assert torch.equal(in_training(x, 4), trained(x, 4))
        assert torch.equal(in_training.exported_scales(), trained.exported_scales())

    def test_evaluation_before_training_is_refused(self) -> None:
        quantizer = self.make(signed=False)
        quantizer(torch.ones(3), 8)
        with pytest.raises(UsageError, match="layer: 4 bits have seen no training batch"):
            quantizer.eval()(torch.ones(3), 4)
        with pytest.raises(UsageError, match="6 bits have seen no training batch"):
            quantizer.exported_scales()
        with pytest.raises(UsageError, match="no width has seen"):
            _ = self.make().is_signed

    @pytest.mark.parametrize(("bits", "signed"), [(8, False), (4, False), (2, False), (4, True), (2, True)])
    def test_gradients_at_the_edges_of_the_range(self, bits: int, signed: bool) -> None:
        limits = activation_range(bits, signed=signed, container="int8")
        edges = [limits.low - 0.75, limits.low - 0.25, limits.low, 0.25, 0.5]
        edges += [limits.high - 0.5, limits.high, limits.high + 0.25, limits.high + 3.0]
        step = 0.125
        values = np.array(edges) * step
        x = torch.tensor(values, dtype=torch.float32, requires_grad=True)
        quantizer = self.make(signed=signed)
        quantizer(x, bits)
        index = WIDTHS.index(bits)
        quantizer.scales[index].data.fill_(step)
        incoming = np.random.default_rng(1).normal(size=values.shape)
        output = quantizer(x, bits)
        (output * torch.tensor(incoming, dtype=torch.float32)).sum().backward()
        of_x, of_step = hand_gradients(values, output.detach().double().numpy() / step, step, limits, incoming)
        assert x.grad is not None
        assert quantizer.scales[index].grad is not None
        np.testing.assert_allclose(x.grad.numpy(), of_x, rtol=1e-6, atol=0)
        np.testing.assert_allclose(float(quantizer.scales[index].grad), of_step, rtol=1e-4, atol=1e-6)
        assert all(scale.grad is None for i, scale in enumerate(quantizer.scales) if i != index)
