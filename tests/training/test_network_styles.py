"""Networks in the styles of torchvision and timm, and odd ones: a saved master computes what they compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.layers import SwitchableBatchNorm
from bitswitch_deploy.training.master_export import save_master
from bitswitch_deploy.training.prepare import PreparedNetwork, PrepareOptions, prepare, set_width

EXAMPLE = (torch.zeros(2, 3, 8, 8),)


class ConvNormActivation(nn.Sequential):
    """torchvision's building block: a Sequential of its own class."""

    def __init__(self, channels_in: int, channels_out: int, *, groups: int = 1, stride: int = 1) -> None:
        conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(channels_out), nn.ReLU6(inplace=True))


class TorchvisionStyle(nn.Module):
    """Nested Sequentials, depthwise convolutions, in-place activations, dropout, an explicit flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNormActivation(3, 8, stride=2),
            nn.Sequential(ConvNormActivation(8, 8, groups=8), nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)),
            ConvNormActivation(6, 8),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 8), nn.Hardswish(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        result: Tensor = self.classifier(torch.flatten(x, 1))
        return result


class DropPath(nn.Module):
    """Stochastic depth per sample, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = x.new_empty((len(x), *[1] * (x.dim() - 1))).bernoulli_(0.9)
        return x * keep / 0.9


class TimmStyle(nn.Module):
    """Patches, functional residuals with drop path, nn.MultiheadAttention, LayerNorm, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.drop_path = DropPath()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        y = self.norm1(x)
        x = x + self.drop_path(self.attn(y, y, y, need_weights=False)[0])
        x = x + self.drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))))
        result: Tensor = self.head(x.mean(1))
        return result


class NormBehindNorm(nn.Module):
    """Between its two BatchNorms another layer runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.n1, self.n2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.n1(self.a(x))
        x = self.b(x) + F.relu(self.n2(y))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class CalledTwice(nn.Module):
    """One layer, one BatchNorm, two calls each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.n = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.n(self.a(self.stem(x))))
        x = self.b(x) - self.n(self.a(x))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class UnsignedThenSigned(CalledTwice):
    """One layer, called behind a ReLU and then behind a BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.n(self.a(F.relu(self.stem(x)))))
        result: Tensor = self.head(self.b(F.relu(x)).mean((2, 3)))
        return result


class ReadAsFunction(nn.Module):
    """Calls `a` as a module and uses its weight, and the statistics of `n`, as functions, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.n = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n(self.stem(x).to(self.b.weight.dtype))
        assert self.n.running_var is not None
        x = self.b(self.a(x) + F.conv2d(x, self.a.weight)) * self.n.running_var[:, None, None]
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class TwoNames(nn.Module):
    """A convolution and a BatchNorm that are registered under two names each and called by both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.n = nn.BatchNorm2d(4)
        self.other_a, self.m = self.a, self.n

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.m(self.other_a(self.stem(x))))
        x = self.b(x) - self.n(self.a(x))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class BatchNormAct(nn.BatchNorm2d):
    """timm's BatchNorm with its activation."""

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__(channels)
        self.act = activation

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.act(super().forward(input))
        return result


class ActivationInNorm(nn.Module):
    """Its last BatchNorm holds a parameter of another module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 4, 3), BatchNormAct(4, nn.ReLU())
        self.conv, self.bn2 = nn.Conv2d(4, 4, 3), BatchNormAct(4, nn.SiLU())
        self.last, self.bn3 = nn.Conv2d(4, 4, 1), BatchNormAct(4, nn.PReLU())
        self.norm, self.head = nn.SyncBatchNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv(self.bn1(self.stem(x))))
        x = self.norm(x + self.bn3(self.last(x)))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Dimensions(nn.Module):
    """Convolutions and BatchNorm over one, two and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.d1 = nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.c3, self.n3 = nn.Conv3d(4, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm3d(4)
        self.c2, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.d1(F.relu(self.n1(self.c1(x.flatten(2)))))
        x = F.relu(self.n3(self.c3(x.reshape(-1, 4, 4, 4, 4))))
        result: Tensor = self.head(self.c2(x.flatten(3)).mean((2, 3)))
        return result


def wrapped_twice() -> nn.Module:
    """DataParallel around a network of which a part is compiled, and the rest compiles itself."""
    model = TorchvisionStyle()
    model.features = torch.compile(model.features, backend="eager")  # type: ignore[assignment]
    model.compile(backend="eager")
    return nn.DataParallel(model)


def hooked(change: Callable[[nn.Module], object]) -> nn.Sequential:
    layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)]
    change(layers[1])
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))


def seen(model: nn.Module, options: PrepareOptions | None = None) -> PreparedNetwork:
    """Prepared, every scale set and all BatchNorm copies different."""
    network = prepare(model, EXAMPLE, options, check_export=False)
    for index, bits in enumerate(network.options.widths):
        set_width(network.model, bits)
        network.model(torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(index)) * (index + 1))
    for norm in network.model.modules():
        if isinstance(norm, SwitchableBatchNorm):
            for index, parameters in enumerate(zip(*(copy.parameters() for copy in norm.copies))):
                for number, parameter in enumerate(parameters):
                    parameter.data += 0.3 * number * (index + 1)
    network.model.eval()
    return network


def quantized(network: PreparedNetwork) -> list[str]:
    return [entry.name for entry in network.report if entry.decision == "quantized"]


def reason(network: PreparedNetwork, name: str) -> str:
    return next(f"{entry.decision}: {entry.reason}" for entry in network.report if entry.name == name)


STYLES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "torchvision": (TorchvisionStyle, ["features.1.0.0", "features.1.1", "features.2.0", "classifier.1"]),
    "timm": (TimmStyle, ["fc1", "fc2"]),
    "norm-behind-norm": (NormBehindNorm, ["a", "b"]),
    "called-twice": (CalledTwice, ["a", "b"]),
    "norm-with-activation": (ActivationInNorm, ["conv", "last"]),
    "dimensions": (Dimensions, ["d1", "c3", "c2"]),
    "two-names": (TwoNames, ["a", "b"]),
    "wrapped": (wrapped_twice, ["features.1.0.0", "features.1.1", "features.2.0", "classifier.1"]),
    "read-as-function": (ReadAsFunction, ["b"]),
    "parametrized": (lambda: hooked(parametrizations.weight_norm), ["3"]),
}


@pytest.fixture(scope="module", params=STYLES)
def style(request: pytest.FixtureRequest) -> tuple[PreparedNetwork, list[str]]:
    torch.manual_seed(0)
    build, expected = STYLES[request.param]
    return seen(build()), expected


@pytest.fixture(scope="module")
def saved(style: tuple[PreparedNetwork, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Master:
    path = tmp_path_factory.mktemp("masters") / "m.safetensors"
    returned = save_master(style[0], EXAMPLE, path, provenance=(("seed", "0"),))
    master = read_master(path)
    assert (master.spec, master.sha256) == (returned.spec, returned.sha256)
    return master


def test_what_is_quantized(style: tuple[PreparedNetwork, list[str]]) -> None:
    network, expected = style
    assert quantized(network) == expected


@pytest.mark.parametrize("bits", [8, 6, 4, 2, "mixed", "mixed the other way round"])
def test_the_saved_master_computes_what_the_network_does(
    style: tuple[PreparedNetwork, list[str]], saved: Master, bits: int | str
) -> None:
    network, names = style
    widths = WidthAssignment(default=bits if isinstance(bits, int) else 6)
    if isinstance(bits, str):
        pair = (8, 2) if bits == "mixed" else (2, 8)
        widths = WidthAssignment(default=6, overrides=tuple((n, pair[i % 2]) for i, n in enumerate(names)))
    x = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    set_width(network.model, widths)
    with torch.no_grad():
        expected = network.model(x).numpy()
    actual = ReferenceSession(canonical_graph(saved, widths).model.SerializeToString()).run(x.numpy())
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "layer", "words"),
    [
        ("read-as-function", "a", "float: its parameters are also read outside of it"),
        ("read-as-function", "n", "float: its parameters are also read outside of it"),
        ("timm", "attn.out_proj", "float: NonDynamicallyQuantizableLinear is not quantized"),
        ("norm-with-activation", "bn2", "switchable: one copy per width"),
        ("norm-with-activation", "norm", "switchable: one copy per width"),
        ("norm-with-activation", "bn3", "float: parts of it hold parameters or buffers of their own"),
        ("dimensions", "n3", "switchable: one copy per width"),
        ("parametrized", "1", "float: ParametrizedConv2d is not quantized"),
    ],
)
def test_the_report_says_what_became_of_a_layer(name: str, layer: str, words: str) -> None:
    assert reason(prepare(STYLES[name][0](), EXAMPLE, check_export=False), layer).startswith(words)


def test_a_batchnorm_behind_a_batchnorm_goes_with_the_layer_in_front_of_both() -> None:
    network = seen(NormBehindNorm())
    set_width(network.model, WidthAssignment(default=6, overrides=(("a", 4), ("b", 2))))
    assert [network.model.get_submodule(name).bits for name in ("n1", "n2")] == [4, 4]


@pytest.mark.parametrize("widths", [(8, 6, 4, 2), (8,)])
def test_a_layer_whose_calls_have_different_signs_asks_for_the_sign(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    with pytest.raises(UsageError, match=r"input of layer a: negative numbers[\s\S]*signed=\(\('a', True\),\)"):
        seen(UnsignedThenSigned(), PrepareOptions(widths=widths))
    network = seen(UnsignedThenSigned(), PrepareOptions(widths=widths, signed=(("a", True),)))
    set_width(network.model, 8)
    outputs: list[Tensor] = []
    network.model.get_submodule("a.input_quantizer").register_forward_hook(
        lambda _m, _i, output: outputs.append(output)
    )
    network.model(torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert [bool(output.min() < 0) for output in outputs] == [False, True]


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("change", [spectral_norm, pruned])
def test_a_weight_that_a_hook_computes_is_refused(change: Callable[[nn.Module], object]) -> None:
    with pytest.raises(UsageError, match=r"^1: its weight is computed by a hook"):
        prepare(hooked(change), EXAMPLE)
