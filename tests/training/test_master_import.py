"""From a master back to a network to train on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitswitch_deploy.training
from bitswitch_deploy.errors import CheckpointError, MasterError
from bitswitch_deploy.master import assemble_master, write_master
from bitswitch_deploy.master.spec import LayerSpec
from bitswitch_deploy.tensors import Granularity, Rounding
from bitswitch_deploy.training.layers import QUANTIZED_LAYERS, SwitchableBatchNorm
from bitswitch_deploy.training.master_export import TrainingRecord, build_master, save_master
from bitswitch_deploy.training.master_import import import_master, is_master
from bitswitch_deploy.training.prepare import PreparedNetwork, PrepareOptions, prepare, set_width

from .tiny_network import EXAMPLE, seen_network, tiny_model, tiny_network

X = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(7))


def seen(model: nn.Module, example: tuple[Tensor, ...], options: PrepareOptions) -> PreparedNetwork:
    """One training batch has passed at each width."""
    network = prepare(model, example, options, check_export=False)
    for index, bits in enumerate(options.widths):
        set_width(network.model, bits)
        generator = torch.Generator().manual_seed(index)
        network.model(*((index + 1) * torch.randn(8, *x.shape[1:], generator=generator) for x in example))
    return network


def scrambled(network: PreparedNetwork) -> PreparedNetwork:
    """Nothing of its values may be left."""
    for parameter in network.model.parameters():
        nn.init.normal_(parameter)
    return network


def saved(network: PreparedNetwork, folder: Path, example: tuple[Tensor, ...] = EXAMPLE) -> Path:
    save_master(network, example, folder / "master.safetensors")
    return folder / "master.safetensors"


def layers(network: PreparedNetwork) -> list[Any]:
    found = [module for module in network.model.modules() if isinstance(module, QUANTIZED_LAYERS)]
    assert len(found) == 2
    return found


def outputs(network: PreparedNetwork, bits: int, *inputs: Tensor) -> Tensor:
    set_width(network.model, bits)
    with torch.no_grad():
        result: Tensor = network.model.eval()(*(inputs or (X,)))
    return result


@pytest.mark.parametrize(
    ("widths", "container", "granularity", "rounding"),
    [
        ((8, 6, 4, 2), "int8", "per_channel", Rounding.HALF_UP),
        ((8, 6, 4, 2), "uint8", "per_tensor", Rounding.HALF_EVEN),
        ((4, 3, 2), "int8", "per_tensor", Rounding.HALF_UP),
        ((7,), "uint8", "per_channel", Rounding.HALF_EVEN),
    ],
)
def test_it_computes_what_the_master_was_written_from(
    tmp_path: Path, widths: tuple[int, ...], container: Any, granularity: Any, rounding: Rounding
) -> None:
    options = PrepareOptions(widths=widths, rounding=rounding, granularity=granularity, activation_container=container)
    before, after = seen_network(options), scrambled(tiny_network(options))
    import_master(saved(before, tmp_path), after, EXAMPLE)
    for bits in widths:
        assert torch.equal(outputs(after, bits), outputs(before, bits))
    first, second = (build_master(network, EXAMPLE, TrainingRecord()) for network in (before, after))
    assert second.sha256 == first.sha256


class Mixed(nn.Module):
    """[n, 4, 5, 5] and [n, 6] to [n, 3]: weights that ONNX wants otherwise than torch, and one that two layers have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        self.grouped = nn.Conv2d(4, 8, 3, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.tokens = nn.Linear(6, 6, bias=False)
        self.alias = self.tokens
        self.square = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.rand(6))
        self.unused = nn.Linear(3, 3)
        self.last = nn.Linear(6, 3)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        maps = torch.relu(self.up(torch.relu(self.norm(self.grouped(self.first(image))))))
        tokens = maps.flatten(2).transpose(1, 2)
        mean = torch.relu(self.tokens(tokens)).mean(1) * self.scale + self.square(row)
        result: Tensor = self.last(mean)
        return result


MIXED_EXAMPLE = (torch.zeros(2, 4, 5, 5), torch.zeros(2, 6))


@pytest.mark.parametrize("options", [PrepareOptions(), PrepareOptions(pin=("up", "tokens"), weight_only=("square",))])
def test_every_kind_of_layer_comes_back(tmp_path: Path, options: PrepareOptions) -> None:
    torch.manual_seed(0)
    before = seen(Mixed(), MIXED_EXAMPLE, options)
    after = scrambled(prepare(Mixed(), MIXED_EXAMPLE, options, check_export=False))
    unused = after.model.state_dict()["unused.weight"].clone()
    import_master(saved(before, tmp_path, MIXED_EXAMPLE), after, MIXED_EXAMPLE)
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(8, 4, 5, 5, generator=generator), torch.randn(8, 6, generator=generator)
    for bits in options.widths:
        assert torch.equal(outputs(after, bits, *inputs), outputs(before, bits, *inputs))
    assert torch.equal(after.model.state_dict()["unused.weight"], unused)  # a master has nothing of it


def test_other_widths_begin_as_from_a_state(tmp_path: Path) -> None:
    before, after = seen_network(PrepareOptions(widths=(8, 4, 2))), scrambled(tiny_network(PrepareOptions()))
    import_master(saved(before, tmp_path), after, EXAMPLE)
    for bits in (8, 4, 2):
        assert torch.equal(outputs(after, bits), outputs(before, bits))
    assert [layer.input_quantizer.seen for layer in layers(after)] == [(True, False, True, True)] * 2
    old, new = (
        next(module for module in network.model.modules() if isinstance(module, SwitchableBatchNorm))
        for network in (before, after)
    )
    assert torch.equal(
        new.copies[1].state_dict()["running_mean"], old.copies[0].state_dict()["running_mean"]
    )  # 6 bits from 8
    after.model.train()
    set_width(after.model, 6)
    after.model(X)
    build_master(after, EXAMPLE, TrainingRecord())  # nothing is missing any more


def test_a_lower_highest_width_keeps_the_steps(tmp_path: Path) -> None:
    before, after = seen_network(PrepareOptions(widths=(8, 4, 2))), tiny_network(PrepareOptions(widths=(4, 2)))
    import_master(saved(before, tmp_path), after, EXAMPLE)
    for old, new in zip(layers(before), layers(after), strict=True):
        assert torch.equal(new.weight_quantizer.exported_scale(), 16 * old.weight_quantizer.exported_scale())
        codes = [layer.weight_quantizer.codes(layer.weight, 4).int() for layer in (old, new)]
        assert int((codes[0] - codes[1]).abs().max()) <= 1


def test_training_goes_on(tmp_path: Path) -> None:
    network = tiny_network(PrepareOptions(widths=(8, 4, 2)))
    import_master(saved(seen_network(PrepareOptions(widths=(8, 4, 2))), tmp_path), network, EXAMPLE)
    network.model.train()
    set_width(network.model, 2)
    network.model(X - 100).square().sum().backward()  # inputs whose sign another run has decided
    used = [each for layer in layers(network) for each in (layer.weight, layer.input_quantizer.scales[2])]
    assert all(bool(each.grad.isfinite().all()) for each in used)


def without_norm(options: PrepareOptions) -> PreparedNetwork:
    model = tiny_model()
    model[1], model[4] = nn.Identity(), nn.Identity()
    return prepare(model, EXAMPLE, options, check_export=False)


def larger(options: PrepareOptions) -> PreparedNetwork:
    model = tiny_model()
    model[6], model[8] = nn.Linear(64, 9), nn.Linear(9, 2)
    return prepare(model, EXAMPLE, options, check_export=False)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (tiny_network, {"rounding": Rounding.HALF_EVEN}, "rounding: half_up.*half_even"),
        (tiny_network, {"activation_container": "uint8"}, "activation_container: int8.*uint8"),
        (tiny_network, {"granularity": "per_tensor"}, "layer 3, granularity: .*per_channel"),
        (tiny_network, {"pin": ("3",)}, "layer 3, .*"),
        (tiny_network, {"weight_only": ("6",)}, "layer 6, activation: (un)?signed.*none"),
        (tiny_network, {"signed": (("6", False),)}, "layer 6, activation: signed.*unsigned"),
        (without_norm, {}, "parameters: missing nothing; unknown 1.bias"),
        (larger, {}, r"shape of 6.weight: \[8, 64\].*\[9, 64\]"),
    ],
)
def test_a_master_of_another_network_changes_nothing(
    tmp_path: Path, make: Callable[[PrepareOptions], PreparedNetwork], change: dict[str, Any], message: str
) -> None:
    options = PrepareOptions(widths=(8, 4, 2))
    path = saved(seen_network(options), tmp_path)
    network = make(replace(options, **change))
    values = {name: value.clone() for name, value in network.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        import_master(path, network, EXAMPLE)
    assert all(torch.equal(value, values[name]) for name, value in network.model.state_dict().items())


class Block(nn.Module):
    """[n, 1, 4, 4] to [n, 2], with the same parameters however it is built."""

    def __init__(
        self,
        act: Callable[[Tensor], Tensor] = torch.relu,
        stride: int = 1,
        momentum: float = 0.1,
        *,
        skips: bool = False,
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=stride)
        self.norm = nn.BatchNorm2d(4, momentum=momentum)
        self.c, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.act, self.skips = act, skips
        self.factor = torch.tensor([factor])

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        y = self.act(self.norm(self.b(x)))
        y = (x + y if self.skips else y).mean((2, 3)) * self.factor
        result: Tensor = self.last(self.act(self.c(y)))
        return result


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Block(torch.sigmoid), r"it computes \S+ = Relu.*allowed: \S+ = Sigmoid.*, as this network does"),
        (Block(stride=2), r"it computes \S+ = Conv\[.*strides = \[1, 1\].*allowed: .*strides = \[2, 2\]"),
        (Block(skips=True), r"it computes \S+ = ReduceMean.*allowed: \S+ = Add"),
        (Block(factor=3.0), r"it computes \S+ = Mul.*allowed: \S+ = Mul"),
    ],
)
def test_a_master_of_another_structure_is_refused(tmp_path: Path, other: nn.Module, message: str) -> None:
    options = PrepareOptions(widths=(8, 2))
    path = saved(seen(Block(), EXAMPLE, options), tmp_path)
    network = prepare(other, EXAMPLE, options, check_export=False)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        import_master(path, network, EXAMPLE)
    assert not any(layer.input_quantizer.is_initialised for layer in layers(network))


def test_size_of_images_and_settings_of_training_may_differ(tmp_path: Path) -> None:
    options = PrepareOptions(widths=(8, 2))
    path = saved(seen(Block(), EXAMPLE, options), tmp_path)
    example = (torch.zeros(3, 1, 6, 5),)
    import_master(path, prepare(Block(momentum=0.5), example, options, check_export=False), example)


def test_a_master_of_blocks_is_refused(tmp_path: Path) -> None:
    options = PrepareOptions(widths=(8, 4, 2), weight_only=("6",))
    master = build_master(seen_network(options), EXAMPLE, TrainingRecord())
    described = tuple(in_blocks(layer) if layer.name == "6" else layer for layer in master.spec.layers)
    tensors = {**master.tensors, "6.weight.scale": np.full((8, 4), 0.01, dtype=np.float32)}
    blocks = assemble_master(spec=replace(master.spec, layers=described), tensors=tensors, skeleton=master.skeleton)
    write_master(blocks, tmp_path / "blocks.safetensors")
    with pytest.raises(CheckpointError, match=r"layer 6, granularity: .*per_block"):
        import_master(tmp_path / "blocks.safetensors", tiny_network(options), EXAMPLE)


def in_blocks(layer: LayerSpec) -> LayerSpec:
    return replace(layer, granularity=Granularity(kind="per_block", axis=1, block_size=16))


def test_a_damaged_master(tmp_path: Path) -> None:
    path = saved(seen_network(), tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(MasterError):
        import_master(path, tiny_network(), EXAMPLE)


def test_a_master_in_several_files(tmp_path: Path) -> None:
    before, after = seen_network(), scrambled(tiny_network())
    path = tmp_path / "net.safetensors.index.json"
    write_master(build_master(before, EXAMPLE, TrainingRecord()), path)
    assert is_master(path)
    import_master(path, after, EXAMPLE)
    assert torch.equal(outputs(after, 2), outputs(before, 2))


def test_the_example_of_the_readme_fills_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Path(bitswitch_deploy.training.__file__).with_name("README.md").read_text(encoding="utf-8")
    shown = readme.partition("<!-- master example -->")[2].partition("<!-- end -->")[0]
    lines = [line[4:] for line in shown.splitlines() if line.startswith("    ")]
    options = PrepareOptions(widths=(8, 6, 4, 2))
    before = seen_network(options)
    saved(before, tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"prepare": prepare, "PrepareOptions": PrepareOptions}
    names |= {"model": tiny_model(seed=5), "example": EXAMPLE}
    exec("\n".join(lines), names)
    for bits in options.widths:
        assert torch.equal(outputs(names["network"], bits), outputs(before, bits))


def test_a_state_is_no_master() -> None:
    assert not is_master(Path("net.safetensors.state"))
    assert is_master(Path("net.safetensors"))
