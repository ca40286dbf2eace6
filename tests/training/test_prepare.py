from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitswitch_deploy.errors import GraphError, UsageError
from bitswitch_deploy.tensors import Rounding, WidthAssignment
from bitswitch_deploy.training.layers import (
    QUANTIZED_LAYERS,
    QuantConv2d,
    QuantConvTranspose2d,
    QuantLinear,
    SwitchableBatchNorm,
    SwitchableBatchNorm1d,
    SwitchableBatchNorm2d,
    float_skeleton,
)
from bitswitch_deploy.training.prepare import PreparedNetwork, PrepareOptions, set_width
from bitswitch_deploy.training.prepare import prepare as prepare_and_check
from tests.training.tiny_network import tiny_network

# capturing takes seconds, and most of this is not about it
prepare = partial(prepare_and_check, check_export=False)


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.Flatten(),
        nn.Linear(128, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 3),
    )


IMAGES = (torch.zeros(2, 1, 8, 8),)


def decisions(network: PreparedNetwork) -> dict[str, tuple[str, str]]:
    return {entry.name: (entry.decision, entry.reason) for entry in network.report}


def quantized(network: PreparedNetwork) -> list[str]:
    return [entry.name for entry in network.report if entry.decision == "quantized"]


class Backwards(nn.Module):
    """Registers its layers in another order than it calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.middle = nn.Linear(4, 4)
        self.first = nn.Linear(3, 4)
        self.idle = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.middle(self.first(x)))
        return result


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.block(self.embed(x)))
        return result


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(4, 4)
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.c = nn.Linear(4, 4)
        self.end = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.end(self.c(self.b(self.a(self.start(x)))))
        return result


class FunctionalWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(4, 4)
        self.middle = nn.Linear(4, 4)
        self.hidden = nn.Linear(4, 4)
        self.end = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.start(x))
        result: Tensor = self.end(F.linear(x, self.hidden.weight))
        return result


class TestPrepare:
    def test_replaces_every_kind_and_pins_both_ends(self) -> None:
        model = conv_net()
        network = prepare(model, IMAGES)
        kinds = [type(module) for module in network.model]  # type: ignore[attr-defined]
        assert kinds == [
            nn.Conv2d,
            SwitchableBatchNorm2d,
            nn.ReLU,
            QuantConv2d,
            SwitchableBatchNorm2d,
            QuantConvTranspose2d,
            nn.Flatten,
            QuantLinear,
            SwitchableBatchNorm1d,
            nn.Linear,
        ]
        assert decisions(network)["0"] == ("pinned", "first layer")
        assert decisions(network)["9"] == ("pinned", "last layer")
        assert quantized(network) == ["3", "5", "7"]

    def test_the_float_network_is_left_alone(self) -> None:
        model = conv_net().train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        prepare(model, IMAGES)
        assert model.training
        assert type(model[3]) is nn.Conv2d
        assert not model[3]._forward_hooks
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_scale_shapes_follow_the_granularity(self) -> None:
        def shapes(options: PrepareOptions) -> list[tuple[int, ...]]:
            model = prepare(conv_net(), IMAGES, options).model
            return [tuple(m.weight_quantizer.scale.shape) for m in model.modules() if isinstance(m, QUANTIZED_LAYERS)]

        assert shapes(PrepareOptions()) == [(4,), (2,), (8,)]
        assert shapes(PrepareOptions(granularity="per_tensor")) == [(), (), ()]

    def test_ends_are_those_of_the_execution_order(self) -> None:
        network = prepare(Backwards(), (torch.zeros(2, 3),))
        assert decisions(network) == {
            "last": ("pinned", "last layer"),
            "middle": ("quantized", ""),
            "first": ("pinned", "first layer"),
            "idle": ("float", "the example input does not call it as a module"),
        }

    def test_pins_by_name_and_ends_on_request(self) -> None:
        network = prepare(conv_net(), IMAGES, PrepareOptions(pin=("5",), pin_ends=False))
        assert quantized(network) == ["0", "3", "7", "9"]
        assert decisions(network)["5"] == ("pinned", "named in pin")

    def test_pins_by_pattern(self) -> None:
        network = prepare(Attention(), (torch.zeros(2, 3, 6),), PrepareOptions(pin=("block.*1",), weight_only=("*2",)))
        made = decisions(network)
        assert made["block.linear1"] == ("pinned", "named in pin")
        assert made["block.linear2"] == ("quantized", "weights only")
        assert (network.options.pin, network.options.weight_only) == (("block.linear1",), ("block.linear2",))
        with pytest.raises(UsageError, match=r"weight_only: no layer is called 'head\.\*'"):
            prepare(Attention(), (torch.zeros(2, 3, 6),), PrepareOptions(weight_only=("head.*",)))

    def test_explicit_sign_of_an_input(self) -> None:
        model = prepare(conv_net(), IMAGES, PrepareOptions(signed=(("3", False),))).model
        states = model.state_dict()
        assert int(states["3.input_quantizer.signed"]) == 0
        assert int(states["5.input_quantizer.signed"]) == -1

    def test_input_of_a_weight_only_layer_stays_float(self) -> None:
        network = prepare(conv_net(), IMAGES, PrepareOptions(weight_only=("3",)))
        assert decisions(network)["3"] == ("quantized", "weights only")
        layer = network.model[3]  # type: ignore[index]
        assert isinstance(layer, QuantConv2d)
        x = torch.randn(2, layer.in_channels, 5, 5, generator=torch.Generator().manual_seed(0))
        for bits in (8, 6, 4, 2):
            set_width(network.model, bits)
            weight = layer.weight_quantizer(layer.weight, bits)
            torch.testing.assert_close(layer(x), layer._conv_forward(x, weight, layer.bias), rtol=0, atol=0)
        assert not [name for name in network.model.state_dict() if name.startswith("3.input_quantizer")]

    def test_attention_stays_float_and_is_reported(self) -> None:
        network = prepare(Attention(), (torch.zeros(2, 3, 6),))
        made = decisions(network)
        assert made["block.self_attn"] == ("float", "MultiheadAttention is not quantized")
        assert made["block.self_attn.out_proj"][0] == "float"
        assert quantized(network) == ["block.linear1", "block.linear2"]

    def test_a_transformer_layer_computes_quantized_in_evaluation_too(self) -> None:
        model = prepare(Attention(), (torch.zeros(2, 3, 6),)).model
        x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
        for bits in (8, 2):
            set_width(model, bits)
            model(x)
        with torch.no_grad():
            trained = model(x)
            evaluated = model.eval()(x)
        torch.testing.assert_close(evaluated, trained)

    def test_shared_weights_stay_float(self) -> None:
        made = decisions(prepare(Tied(), (torch.zeros(2, 4),)))
        assert made["a"] == ("float", "shares its parameters with b")
        assert made["b"] == ("float", "shares its parameters with a")
        assert made["c"][0] == "quantized"

    def test_a_weight_that_is_used_as_an_argument_stays_float(self) -> None:
        network = prepare(FunctionalWeight(), (torch.zeros(2, 4),))
        assert quantized(network) == ["middle"]

    @pytest.mark.parametrize(
        ("hold", "call", "name"),
        [
            (lambda layer: [layer], lambda held, x: held[0](x), r"held\[0\]\.weight, held\[0\]\.bias"),
            (lambda layer: {"a": (layer,)}, lambda held, x: held["a"][0](x), r"held\['a'\]\[0\]\.weight"),
            (lambda layer: lambda x: layer(x), lambda held, x: held(x), r"one of shape \[4, 4\], one of shape \[4\]"),
            (lambda layer: [layer.weight], lambda held, x: F.linear(x, held[0]), r"held\[0\]\n"),
        ],
    )
    def test_parameters_that_no_module_lists_are_refused(
        self, hold: Callable[[nn.Linear], Any], call: Callable[[Any, Tensor], Tensor], name: str
    ) -> None:
        class Hiding(nn.Sequential):
            held: Any = None

            def forward(self, x: Tensor) -> Tensor:
                result: Tensor = super().forward(call(self.held, x))  # type: ignore[no-untyped-call]
                return result

        model = Hiding(*(nn.Linear(4, 4) for _ in range(4)))
        model.held = hold(nn.Linear(4, 4))
        message = rf"Hiding: parameters that model\.parameters\(\) does not list: {name}"
        with pytest.raises(UsageError, match=rf"(?s){message}.*nn\.ModuleList"):
            prepare(model, (torch.zeros(2, 4),))

    def test_a_parameter_may_be_in_a_list_too(self) -> None:
        class Tying(nn.Sequential):
            tied: Any = None

            def forward(self, x: Tensor) -> Tensor:
                result: Tensor = F.linear(super().forward(x), self.tied[0])  # type: ignore[no-untyped-call]
                return result

        model = Tying(*(nn.Linear(4, 4) for _ in range(4)))
        model.tied = [model[1].weight]
        assert quantized(prepare(model, (torch.zeros(2, 4),))) == ["2"]

    def test_a_subclass_stays_float(self) -> None:
        class Special(nn.Linear):
            pass

        model = nn.Sequential(nn.Linear(4, 4), Special(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        made = decisions(prepare(model, (torch.zeros(2, 4),)))
        assert made["1"] == ("float", "Special is not quantized")
        assert made["2"][0] == "quantized"

    def test_an_end_that_is_float_anyway_is_an_end(self) -> None:
        class Special(nn.Linear):
            pass

        inner = nn.Linear(4, 4), nn.Linear(4, 4)
        network = prepare(nn.Sequential(Special(4, 4), *inner, Special(4, 4)), (torch.zeros(2, 4),))
        assert quantized(network) == ["1", "2"]
        network = prepare(nn.Sequential(Special(4, 4), *inner), (torch.zeros(2, 4),))
        assert decisions(network) == {
            "0": ("float", "Special is not quantized"),
            "1": ("quantized", ""),
            "2": ("pinned", "last layer"),
        }

    def test_prepared_twice_is_refused(self) -> None:
        network = prepare(conv_net(), IMAGES)
        with pytest.raises(UsageError, match="prepare the float network, once"):
            prepare(network.model, IMAGES)

    def test_nothing_left_to_quantize_is_refused(self) -> None:
        with pytest.raises(UsageError, match="no layer is left to quantize: 0: first layer; 1: last layer"):
            prepare(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), (torch.zeros(1, 2),))

    def test_an_unknown_pin_lists_the_layers(self) -> None:
        with pytest.raises(UsageError, match="no layer is called '1'\n  allowed: 0, 3, 5, 7, 9"):
            prepare(conv_net(), IMAGES, PrepareOptions(pin=("1",)))

    def test_an_example_that_does_not_fit_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"example input of Sequential: shapes \(2, 3\)"):
            prepare(conv_net(), (torch.zeros(2, 3),))

    def test_what_a_network_asserts_of_its_input_is_passed_on(self) -> None:
        class Picky(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                assert x.shape[-1] == 4, "image size"
                result: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
                return result

        with pytest.raises(UsageError, match=r"example input of Picky: shapes \(2, 3\): image size"):
            prepare(Picky(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)), (torch.zeros(2, 3),))

    def test_a_lazy_layer_must_have_run(self) -> None:
        model = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(4), nn.LazyLinear(2))
        with pytest.raises(UsageError, match=r"parameter 0\.weight: no shape yet"):
            prepare(model, (torch.zeros(2, 3),))
        model(torch.zeros(2, 3))
        assert quantized(prepare(model, (torch.zeros(2, 3),))) == ["1"]

    def test_a_lazy_batchnorm_without_parameters_must_have_run(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.LazyBatchNorm1d(affine=False), nn.Linear(4, 4), nn.Linear(4, 2))
        with pytest.raises(UsageError, match=r"parameter 1\.running_mean: no shape yet"):
            prepare(model, (torch.zeros(2, 3),))

    def test_a_scripted_part_is_refused(self) -> None:
        with pytest.deprecated_call():  # from torch 2.13 on
            scripted = torch.jit.script(nn.Linear(4, 4))
        model = nn.Sequential(nn.Linear(3, 4), scripted, nn.Linear(4, 2))
        with pytest.raises(UsageError, match=r"1: a scripted or traced module"):
            prepare(model, (torch.zeros(2, 3),))

    def test_a_network_may_read_what_a_batchnorm_tells_of_itself(self) -> None:
        class Reading(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.norm, self.b, self.c = (
                    nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2),
                )  # fmt: skip

            def forward(self, x: Tensor) -> Tensor:
                y = self.norm(self.a(x)).reshape(-1, self.norm.num_features)
                return cast("Tensor", self.c(self.b(y) * self.norm.eps))

        network = prepare(Reading(), (torch.zeros(2, 3),))
        assert network.model.train()(torch.ones(2, 3)).shape == (2, 2)
        with pytest.raises(AttributeError, match="'BatchNorm1d' object has no attribute 'nothing'"):
            getattr(network.model.norm, "nothing")  # noqa: B009

    def test_what_a_network_keeps_of_a_call_is_copied_with_it(self) -> None:
        class Keeping(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
                self.kept: dict[str, list[Tensor]] = {}

            def forward(self, x: Tensor) -> Tensor:
                self.kept = {"features": [self.layers[0](x)]}
                result: Tensor = self.layers[2](self.layers[1](self.kept["features"][0]))
                return result

        model = Keeping()
        model(torch.ones(2, 4))
        network = prepare(model, (torch.ones(2, 4),))
        network.model.train()(torch.ones(2, 4)).sum().backward()
        skeleton = float_skeleton(network.model)
        kept = network.model.kept["features"][0]  # type: ignore[index]
        assert isinstance(kept, Tensor)
        assert kept.grad_fn is not None
        copy = skeleton.kept["features"][0]  # type: ignore[index]
        assert isinstance(copy, Tensor)
        torch.testing.assert_close(copy, kept.detach())
        assert not copy.requires_grad

    @pytest.mark.parametrize("shapes", [[()], [(2, 4), ()], [(1, 4), (5, 4)], [(0, 4)], []])
    def test_an_example_without_a_batch_is_refused(self, shapes: list[tuple[int, ...]]) -> None:
        with pytest.raises(UsageError, match=r"example_input: shapes .*\n  allowed: \[batch, \.\.\.\] each"):
            prepare(conv_net(), tuple(torch.zeros(shape) for shape in shapes))

    def test_half_precision_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"parameter 0\.weight: dtype torch\.float64"):
            prepare(conv_net().double(), IMAGES)

    @pytest.mark.parametrize("widths", [(), (2, 4), (8, 8), (9, 4), (4, 1)])
    def test_widths_must_descend_within_2_to_8(self, widths: tuple[int, ...]) -> None:
        with pytest.raises(UsageError, match="highest first"):
            PrepareOptions(widths=widths)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rounding": "half-up"}, "rounding: 'half-up'\n  allowed: half_up, half_even"),
            ({"granularity": "per-channel"}, "granularity: 'per-channel'\n  allowed: per_channel, per_tensor"),
            ({"activation_container": "int-8"}, "activation_container: 'int-8'\n  allowed: uint8, int8"),
            ({"widths": (8.0, 4)}, r"widths: \(8\.0, 4\)\n  allowed: a tuple like \(8, 6, 4, 2\), of whole numbers"),
            ({"widths": 8}, "widths: 8\n  allowed: a tuple"),
            ({"pin": "7"}, "pin: '7'\n  allowed: a tuple"),
            ({"weight_only": (7,)}, r"weight_only: \(7,\)\n  allowed: a tuple"),
            ({"signed": {"3": True}}, r"signed: \{'3': True\}\n  allowed: a tuple"),
            ({"signed": (("3", 1),)}, r"signed: \(\('3', 1\),\)\n  allowed: a tuple"),
        ],
    )
    def test_an_option_that_is_none_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            PrepareOptions(**options)

    def test_a_rounding_rule_by_its_text_is_the_rule(self) -> None:
        options = PrepareOptions(rounding="half_up", widths=[8, 4])  # type: ignore[arg-type]
        assert options.rounding is Rounding.HALF_UP
        assert options == PrepareOptions(widths=(8, 4))
        layer = prepare(conv_net(), IMAGES, options).model[3]  # type: ignore[index]
        assert isinstance(layer, QuantConv2d)
        assert layer.weight_quantizer.rounding is Rounding.HALF_UP


class CalledTwice(nn.Module):
    """A layer on [n, 4] and on [n, 3, 4], which are two operators."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        result: Tensor = self.c(self.b(x[:, None].expand(-1, 3, -1)).sum(1))
        return result


class TestExport:
    def test_a_layer_that_the_graph_lacks_is_refused_before_the_training(self) -> None:
        with pytest.raises(GraphError, match="layers b: no Conv, ConvTranspose, Gemm or MatMul"):
            prepare_and_check(CalledTwice(), (torch.zeros(2, 4),))
        prepare_and_check(CalledTwice(), (torch.zeros(2, 4),), PrepareOptions(pin=("b",), pin_ends=False))

    def test_a_network_that_cannot_be_traced_is_refused_before_the_training(self) -> None:
        class Branch(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                result: Tensor = super().forward(x if x.sum() > 0 else -x)  # type: ignore[no-untyped-call]
                return result

        with pytest.raises(UsageError, match=r"torch\.onnx\.export failed"):
            prepare_and_check(Branch(*(nn.Linear(4, 4) for _ in range(3))), (torch.zeros(2, 4),))

    def test_a_single_layer_is_refused(self) -> None:
        with pytest.raises(UsageError, match="Linear: a single layer"):
            prepare(nn.Linear(4, 4), (torch.zeros(2, 4),), PrepareOptions(pin_ends=False))

    def test_a_buffer_of_double_precision_is_refused(self) -> None:
        model = conv_net()
        model.register_buffer("k", torch.zeros(1, dtype=torch.float64))
        with pytest.raises(UsageError, match=r"parameter k: dtype torch\.float64"):
            prepare(model, IMAGES)
        model.k = torch.zeros(1, dtype=torch.int64)
        prepare(model, IMAGES)


class TestSetWidth:
    def prepared(self) -> nn.Module:
        return prepare(conv_net(), IMAGES).model

    def widths(self, model: nn.Module) -> dict[str, int]:
        kinds = (*QUANTIZED_LAYERS, SwitchableBatchNorm)
        return {path: module.bits for path, module in model.named_modules() if isinstance(module, kinds)}

    def test_one_width_for_all(self) -> None:
        model = self.prepared()
        assert set(self.widths(model).values()) == {8}
        set_width(model, 4)
        assert set(self.widths(model).values()) == {4}

    def test_overrides_take_the_batchnorm_along(self) -> None:
        model = self.prepared()
        set_width(model, WidthAssignment(default=4, overrides=(("3", 2), ("7", 8))))
        # BatchNorm 1 follows the pinned layer 0: it goes with the first quantized layer after it
        assert self.widths(model) == {"1": 2, "3": 2, "4": 2, "5": 4, "7": 8, "8": 8}

    def test_a_batchnorm_goes_with_the_layer_that_it_reads_whatever_was_called_between(self) -> None:
        class Pooled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.a, self.b = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
                self.of_a, self.of_b, self.of_sum = (nn.BatchNorm2d(4) for _ in range(3))
                self.head = nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                x = self.stem(x).relu()
                a, b = self.a(x), self.b(x)
                a, b = self.of_a(F.max_pool2d(a, 2)), self.of_b(F.avg_pool2d(b, 2))
                result: Tensor = self.head(self.of_sum(a + b).mean((2, 3)))
                return result

        model = prepare(Pooled(), IMAGES).model
        set_width(model, WidthAssignment(default=8, overrides=(("a", 4), ("b", 2))))
        assert self.widths(model) == {"a": 4, "b": 2, "of_a": 4, "of_b": 2, "of_sum": 2}

    def test_the_output_changes_with_the_width(self) -> None:
        model = self.prepared()
        x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        outputs = []
        for bits in (8, 6, 4, 2):
            set_width(model, bits)
            outputs.append(model(x))
        assert all(not torch.equal(a, b) for a, b in itertools.pairwise(outputs))

    def test_an_untrained_width_is_refused(self) -> None:
        with pytest.raises(UsageError, match="default width: 5 bits\n  allowed: 8, 6, 4, 2"):
            set_width(self.prepared(), 5)
        with pytest.raises(UsageError, match="3: 7 bits"):
            set_width(self.prepared(), WidthAssignment(default=8, overrides=(("3", 7),)))

    def test_an_override_of_a_pinned_layer_is_refused(self) -> None:
        with pytest.raises(UsageError, match="no layer is called '0'\n  allowed: 3, 5, 7"):
            set_width(self.prepared(), WidthAssignment(default=8, overrides=(("0", 4),)))

    @pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
    def test_names_are_those_inside_of_wrappers(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        model = self.prepared()
        set_width(wrap(model), WidthAssignment(default=4, overrides=(("3", 2),)))
        assert self.widths(model) == {"1": 2, "3": 2, "4": 2, "5": 4, "7": 4, "8": 4}
        model[3] = wrap(model[3])  # type: ignore[operator, index]
        set_width(model, WidthAssignment(default=4, overrides=(("3", 8),)))
        assert set(self.widths(model).values()) == {8, 4}
        assert (model[1].bits, model[4].bits) == (8, 8)  # type: ignore[index]

    def test_layers_of_a_part_have_no_widths_of_their_own(self) -> None:
        whole = nn.Sequential(nn.Identity(), self.prepared())
        set_width(whole, 4)
        with pytest.raises(UsageError, match="a BatchNorm that goes with layer 3, which has another name here"):
            set_width(whole, WidthAssignment(default=8, overrides=(("1.3", 2),)))

    def test_a_float_network_is_refused(self) -> None:
        with pytest.raises(UsageError, match="the network is not prepared"):
            set_width(conv_net(), 8)


@pytest.mark.parametrize("width", [0, -1, 9, True, "8", None, 8.0])
def test_what_is_no_width_is_refused(width: Any) -> None:
    with pytest.raises(UsageError, match=r"default width: .*\n  allowed: a whole number of 2..8"):
        set_width(tiny_network().model, width)
