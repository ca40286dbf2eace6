"""A run that begins with what another one learned at other widths."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckpointError
from bitswitch_deploy.training.carry_over import carry_over
from bitswitch_deploy.training.layers import QUANTIZED_LAYERS, SwitchableBatchNorm
from bitswitch_deploy.training.prepare import PreparedNetwork, PrepareOptions, set_width
from bitswitch_deploy.training.recipe import Recipe, load_recipe, stage_decisions

from .tiny_network import seen_network, tiny_network

SOURCE = "other.state"
X = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(7))


def recipe(widths: tuple[int, ...], **quantization: Any) -> Recipe:
    digits = load_recipe("digits")
    return replace(digits, quantization=replace(digits.quantization, widths=widths, **quantization))


def state_of(network: PreparedNetwork, **quantization: Any) -> dict[str, Any]:
    """What a run of `recipe` at the widths of a network would have saved of it."""
    of_run = recipe(network.options.widths, **quantization)
    model = {name: value.clone() for name, value in network.model.state_dict().items()}
    return {"stage": "joint", "step": 9, "model": model, "decisions": stage_decisions(of_run, of_run.joint)}


def trained(widths: tuple[int, ...], **options: Any) -> PreparedNetwork:
    return seen_network(PrepareOptions(widths=widths, **options))


def fresh(widths: tuple[int, ...], **options: Any) -> PreparedNetwork:
    network = tiny_network(PrepareOptions(widths=widths, **options))
    for parameter in network.model.parameters():
        nn.init.normal_(parameter)  # nothing of it may be left
    return network


def layers(network: PreparedNetwork) -> list[Any]:
    found = [module for module in network.model.modules() if isinstance(module, QUANTIZED_LAYERS)]
    assert len(found) == 2
    return found


def outputs(network: PreparedNetwork, bits: int) -> Tensor:
    set_width(network.model, bits)
    with torch.no_grad():
        result: Tensor = network.model.eval()(X)
    return result


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize(("before", "now"), [((8, 6, 4, 2), (8, 4)), ((8, 4, 2), (8, 4, 2)), ((6, 3), (6, 5, 3, 2))])
def test_with_the_highest_width_the_others_compute_as_before(
    before: tuple[int, ...], now: tuple[int, ...], granularity: str
) -> None:
    earlier, later = trained(before, granularity=granularity), fresh(now, granularity=granularity)
    carry_over(state_of(earlier, granularity=granularity), later, recipe(now, granularity=granularity), SOURCE)
    for bits in set(before) & set(now):
        assert torch.equal(outputs(later, bits), outputs(earlier, bits))


@pytest.mark.parametrize(("before", "now"), [((4, 3, 2), (8, 6, 4, 2)), ((8, 6, 4, 2), (4, 3, 2)), ((2,), (7, 2))])
def test_another_highest_width_keeps_the_steps_of_all(before: tuple[int, ...], now: tuple[int, ...]) -> None:
    earlier, later = trained(before), fresh(now)
    carry_over(state_of(earlier), later, recipe(now), SOURCE)
    for old, new in zip(layers(earlier), layers(later), strict=True):
        assert torch.equal(new.weight, old.weight)
        steps = [
            layer.weight_quantizer.exported_scale() * 2.0 ** (layer.weight_quantizer.bits - bits)
            for layer, bits in ((old, before[-1]), (new, before[-1]))
        ]
        assert torch.equal(*steps)
        if before[0] <= now[0]:  # a highest width rounds W / s_h itself, others round twice: they differ by a code
            codes = [layer.weight_quantizer.codes(layer.weight, before[-1]).int() for layer in (old, new)]
            assert int((codes[0] - codes[1]).abs().max()) <= 1


def test_a_new_width_takes_the_batchnorm_of_the_nearest_above_and_a_scale_of_its_first_batch() -> None:
    earlier, later = trained((6, 4, 2)), fresh((8, 5, 4, 3))
    carry_over(state_of(earlier), later, recipe((8, 5, 4, 3)), SOURCE)
    old, new = (
        next(module for module in network.model.modules() if isinstance(module, SwitchableBatchNorm))
        for network in (earlier, later)
    )
    for place, source in enumerate((0, 0, 1, 1)):  # 6, 6, 4 and 4 bits
        for name, value in old.copies[source].state_dict().items():
            assert torch.equal(new.copies[place].state_dict()[name], value), name
    quantizers = [layer.input_quantizer for layer in layers(later)]
    assert [quantizer.seen for quantizer in quantizers] == [(False, False, True, False)] * 2
    later.model.train()
    for bits in (8, 5, 4, 3):
        set_width(later.model, bits)
        later.model(X)
    assert all(quantizer.is_initialised for quantizer in quantizers)


def test_a_module_under_two_paths_is_translated_under_both() -> None:
    earlier, later = trained((8, 4, 2)), fresh((4, 3, 2))
    for network in (earlier, later):
        network.model.alias = network.model.get_submodule("3")
    carry_over(state_of(earlier), later, recipe((4, 3, 2)), SOURCE)
    scales = [layers(network)[0].weight_quantizer.exported_scale() for network in (earlier, later)]
    assert torch.equal(scales[1], 16 * scales[0])


def test_an_average_goes_on_where_there_is_one() -> None:
    earlier, later = trained((8, 4, 2)), fresh((8, 4))
    state = state_of(earlier)
    averaged = {name: value + 1 if name == "3.weight" else value for name, value in state["model"].items()}
    carry_over({**state, "average": averaged}, later, recipe((8, 4)), SOURCE)
    assert torch.equal(layers(later)[0].weight, layers(earlier)[0].weight + 1)


def test_a_sign_that_another_run_decided_stops_no_first_batch() -> None:
    earlier, later = trained((8, 4, 2)), fresh((8, 3, 2))
    state = state_of(earlier)
    for name in state["model"]:
        if name.endswith(".signed"):
            state["model"][name] = torch.tensor(0, dtype=torch.int8)
    carry_over(state, later, recipe((8, 3, 2)), SOURCE)
    later.model.train()
    set_width(later.model, 3)
    later.model(X - 100)  # some inputs are negative, and clipped as in any later batch


def test_a_state_from_before_a_setting_came_fits_where_it_is_not_used() -> None:
    state, later = state_of(trained((8, 4, 2))), fresh((8, 4))
    del state["decisions"]["preprocessing.centre_share"]
    carry_over(state, later, recipe((8, 4)), SOURCE)
    of_run = recipe((8, 4))
    used = replace(of_run, preprocessing=replace(of_run.preprocessing, centre_share=0.875))
    with pytest.raises(CheckpointError, match=r"preprocessing\.centre_share not told"):
        carry_over(state, fresh((8, 4)), used, SOURCE)


def edit_stage(state: dict[str, Any]) -> None:
    state["stage"] = "float"


def edit_widths(state: dict[str, Any]) -> None:
    del state["decisions"]["quantization.widths"]


def edit_widths_away(state: dict[str, Any]) -> None:
    state["decisions"]["quantization.widths"] = json.dumps([4, "8"])


def edit_seen(state: dict[str, Any]) -> None:
    state["model"]["3.input_quantizer.initialised"] = torch.tensor([True])


def edit_decisions(state: dict[str, Any]) -> None:
    del state["decisions"]


def edit_rounding(state: dict[str, Any]) -> None:
    state["decisions"]["quantization.rounding"] = json.dumps("half_even")


def edit_network(state: dict[str, Any]) -> None:
    state["decisions"]["network"] = json.dumps("imagenet-resnet18")


def edit_model(state: dict[str, Any]) -> None:
    state["model"] = None


def edit_layer(state: dict[str, Any]) -> None:
    del state["model"]["3.weight_quantizer.scale"]


def edit_copies(state: dict[str, Any]) -> None:
    state["model"] = {name: value for name, value in state["model"].items() if ".copies.1." not in name}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (edit_stage, "stage 'float'"),
        (edit_widths, "widths None"),
        (edit_decisions, "widths None"),
        (edit_rounding, 'quantization.rounding "half_even"'),
        (edit_network, 'network "imagenet-resnet18"'),
        (edit_model, "missing 0.weight"),
        (edit_layer, "missing 3.weight_quantizer.scale"),
        (edit_copies, "missing 1.copies.1.weight"),
        (edit_widths_away, 'widths [4, "8"]'),
        (edit_seen, "3.input_quantizer.initialised: torch.bool (1,)"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_taken(edit: Callable[[dict[str, Any]], None], words: str) -> None:
    state, later = state_of(trained((8, 4, 2))), fresh((8, 4))
    before = {name: value.clone() for name, value in later.model.state_dict().items()}
    edit(state)
    with pytest.raises(CheckpointError) as caught:
        carry_over(state, later, recipe((8, 4)), SOURCE)
    assert caught.value.where == SOURCE
    assert words in caught.value.got
    after = later.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_layer_whose_input_stays_float() -> None:
    earlier, later = trained((8, 2), weight_only=("6",)), fresh((8, 5, 2), weight_only=("6",))
    carry_over(state_of(earlier, weight_only=("6",)), later, recipe((8, 5, 2), weight_only=("6",)), SOURCE)
    for bits in (8, 2):
        assert torch.equal(outputs(later, bits), outputs(earlier, bits))
