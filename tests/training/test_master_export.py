from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import GraphError, MasterError, UsageError
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.master import Master, read_master, write_master
from bitswitch_deploy.master.spec import MeasuredAccuracy
from bitswitch_deploy.quantization.affine import quantize
from bitswitch_deploy.tensors import PER_TENSOR, Granularity, Rounding, WidthAssignment
from bitswitch_deploy.training.capture import CapturedNetwork, capture_skeleton
from bitswitch_deploy.training.layers import QuantConv2d
from bitswitch_deploy.training.master_export import TrainingRecord, build_master
from bitswitch_deploy.training.prepare import PreparedNetwork, PrepareOptions, prepare, set_width
from tests.training.tiny_network import EXAMPLE, OPTIONS, PREPROCESSING, seen_network, tiny_model

ort = pytest.importorskip("onnxruntime")


def exported(network: PreparedNetwork) -> Master:
    return build_master(network, EXAMPLE, TrainingRecord())


def seen(model: nn.Module, example: tuple[Tensor, ...], options: PrepareOptions) -> PreparedNetwork:
    network = prepare(model, example, options, check_export=False)
    generator = torch.Generator().manual_seed(0)
    for bits in options.widths:
        set_width(network.model, bits)
        network.model(*(torch.randn(x.shape, generator=generator) for x in example))
    return network


def reference_logits(master: Master, assignment: WidthAssignment, x: Tensor) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    model = canonical_graph(master, assignment).model.SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(None, {"input": x.numpy()})[0]
    return logits


class Elsewhere(Tensor):
    """Stands for a tensor on another device."""

    def cpu(self, *_: object, **__: object) -> Tensor:
        return self.as_subclass(Tensor)


def test_the_example_may_be_where_the_network_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[type] = []

    def capture(model: nn.Module, example: tuple[Tensor, ...]) -> CapturedNetwork:
        captured.extend(type(each) for each in example)
        return capture_skeleton(model, example)

    monkeypatch.setattr("bitswitch_deploy.training.master_export.capture_skeleton", capture)
    network = seen_network()
    master = build_master(network, tuple(x.as_subclass(Elsewhere) for x in EXAMPLE), TrainingRecord())
    assert captured == [Tensor]
    assert master.sha256 == exported(network).sha256


class TestSpec:
    def test_what_the_spec_says(self) -> None:
        accuracy = MeasuredAccuracy(bits=8, metric="top1", value=97.5, n=10, dataset="halves", dataset_sha256="ab" * 32)
        record = TrainingRecord(
            accuracy=(accuracy,), preprocessing=PREPROCESSING, provenance=(("recipe", "tiny"), ("seed", "0"))
        )
        spec = build_master(seen_network(), EXAMPLE, record).spec
        assert (spec.bits, spec.widths) == (8, (8, 4, 2))
        assert (spec.rounding, spec.activation_container) == (Rounding.HALF_UP, "int8")
        assert [(layer.name, layer.operator, layer.pinned, layer.activation) for layer in spec.layers] == [
            ("0", "Conv", True, "none"),
            ("3", "Conv", False, "unsigned"),
            ("6", "Gemm", False, "signed"),
            ("8", "Gemm", True, "none"),
        ]
        norm = ("weight", "bias", "running_mean", "running_var")
        assert set(spec.switchable) == {f"{layer}.{name}" for layer in (1, 4) for name in norm}
        assert set(spec.parameters) == {"0.bias", "6.bias", "8.bias"}
        assert [(value.name, value.dtype, value.shape) for value in spec.inputs] == [
            ("input", "float", ("batch", 1, 4, 4))
        ]
        assert [(value.name, value.dtype, value.shape) for value in spec.outputs] == [("logits", "float", ("batch", 2))]
        assert spec.accuracy == (accuracy,)
        assert spec.preprocessing == PREPROCESSING
        assert spec.provenance == (("recipe", "tiny"), ("seed", "0"))

    def test_options_reach_the_spec(self) -> None:
        options = replace(OPTIONS, widths=(4, 2), rounding=Rounding.HALF_EVEN, activation_container="uint8")
        spec = exported(seen_network(options)).spec
        assert (spec.bits, spec.widths) == (4, (4, 2))
        assert (spec.rounding, spec.activation_container) == (Rounding.HALF_EVEN, "uint8")

    def test_a_weight_only_layer_has_no_scale_of_inputs(self) -> None:
        master = exported(seen_network(replace(OPTIONS, weight_only=("3",))))
        kinds = {layer.name: layer.activation for layer in master.spec.layers}
        assert kinds["3"] == "none"
        assert "3.input.scale" not in master.tensors
        assert set(kinds.values()) > {"none"}


class TestTensors:
    def test_codes_and_scales_are_those_of_the_forward_pass(self) -> None:
        network = seen_network()
        layer = network.model[3]  # type: ignore[index]
        assert isinstance(layer, QuantConv2d)
        layer.weight_quantizer.scale.data[1].neg_()
        layer.input_quantizer.scales[2].data.neg_()
        tensors = exported(network).tensors
        scale = tensors["3.weight.scale"]
        assert scale.min() > 0
        axis = Granularity(kind="per_channel", axis=0)
        expected = quantize(layer.weight.detach().numpy(), scale, bits=8, signed=True, granularity=axis)
        np.testing.assert_array_equal(tensors["3.weight"], expected)
        np.testing.assert_array_equal(tensors["3.weight"], layer.weight_quantizer.codes(layer.weight, 8).numpy())
        inputs = [abs(s.item()) for s in layer.input_quantizer.scales]
        np.testing.assert_array_equal(tensors["3.input.scale"], np.array(inputs, dtype=np.float32))

    def test_switchable_parameters_are_stacked_highest_width_first(self) -> None:
        network = seen_network()
        tensors = exported(network).tensors
        norm = network.model[4]  # type: ignore[index]
        for index, copy in enumerate(norm.copies):
            np.testing.assert_array_equal(tensors["4.running_mean"][index], copy.running_mean.numpy())
        assert len(np.unique(tensors["4.running_var"], axis=0)) == 3

    def test_float_parameters_and_pinned_weights(self) -> None:
        network = seen_network()
        tensors = exported(network).tensors
        for name in ("0.weight", "0.bias", "6.bias", "8.weight"):
            np.testing.assert_array_equal(tensors[name], network.model.state_dict()[name].numpy())

    def test_one_scale_for_a_tensor(self) -> None:
        network = seen_network(replace(OPTIONS, granularity="per_tensor"))
        master = exported(network)
        assert master.spec.layers[1].granularity == PER_TENSOR
        assert master.tensors["3.weight.scale"].shape == ()

    def test_a_matmul_weight_is_stored_transposed_with_its_scale(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2))
        network = seen(model, (torch.zeros(2, 6, 3),), OPTIONS)
        master = build_master(network, (torch.zeros(2, 6, 3),), TrainingRecord())
        layer = next(layer for layer in master.spec.layers if layer.name == "1")
        assert (layer.operator, layer.granularity.axis) == ("MatMul", 1)
        quantized = network.model[1]  # type: ignore[index]
        expected = quantized.weight_quantizer.codes(quantized.weight, 8).numpy().T
        np.testing.assert_array_equal(master.tensors["1.weight"], expected)
        assert master.tensors["1.weight.scale"].shape == (5,)
        pinned = network.model.state_dict()["0.weight"].numpy().T
        np.testing.assert_array_equal(master.tensors["0.weight"], pinned)

    def test_the_same_network_gives_the_same_file(self, tmp_path: Path) -> None:
        first = write_master(exported(seen_network()), tmp_path / "a.safetensors")
        second = write_master(exported(seen_network()), tmp_path / "b.safetensors")
        assert first == second
        assert read_master(tmp_path / "a.safetensors").spec == exported(seen_network()).spec


class TestMeaning:
    """The canonical graph of the master computes what the trained network computes."""

    @pytest.mark.parametrize("rounding", [Rounding.HALF_UP, Rounding.HALF_EVEN])
    @pytest.mark.parametrize("bits", [8, 4, 2])
    def test_each_width(self, bits: int, rounding: Rounding) -> None:
        network = seen_network(replace(OPTIONS, rounding=rounding))
        x = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(5))
        actual = reference_logits(exported(network), WidthAssignment(default=bits), x)
        set_width(network.model, bits)
        with torch.no_grad():
            expected = network.model.eval()(x).numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)

    def test_mixed_widths(self) -> None:
        network = seen_network()
        assignment = WidthAssignment(default=8, overrides=(("3", 2),))
        x = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(5))
        actual = reference_logits(exported(network), assignment, x)
        set_width(network.model, assignment)
        with torch.no_grad():
            expected = network.model.eval()(x).numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)

    def test_transposed_convolution_and_signed_inputs(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 4, 1, padding_mode="reflect", padding=0),
            nn.Flatten(),
            nn.Linear(64, 2),
        )
        network = seen(model, EXAMPLE, OPTIONS)
        master = exported(network)
        x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(5))
        for bits in OPTIONS.widths:
            set_width(network.model, bits)
            with torch.no_grad():
                expected = network.model.eval()(x).numpy()
            actual = reference_logits(master, WidthAssignment(default=bits), x)
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


class TestRefusals:
    def test_a_width_that_never_trained(self) -> None:
        network = prepare(tiny_model(), EXAMPLE, OPTIONS, check_export=False)
        network.model(torch.randn(4, 1, 4, 4))
        with pytest.raises(UsageError, match="input scales of layer 3: 4 bits have seen no training batch"):
            exported(network)

    def test_a_layer_whose_weight_is_not_in_the_graph(self) -> None:
        class Bypass(nn.Module):
            """Can leave its middle layer out."""

            def __init__(self) -> None:
                super().__init__()
                self.first, self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
                self.bypass = False

            def forward(self, x: Tensor) -> Tensor:
                x = self.first(x)
                result: Tensor = self.last(x if self.bypass else self.middle(x))
                return result

        network = seen(Bypass(), (torch.zeros(2, 4),), OPTIONS)
        network.model.bypass = True  # type: ignore[assignment]
        with pytest.raises(GraphError, match="layers middle: no Conv, ConvTranspose, Gemm or MatMul"):
            build_master(network, (torch.zeros(2, 4),), TrainingRecord())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(value: float) -> None:
    """Rounded to codes, it would look like any other."""
    network = seen_network()
    name, layer = next((n, m) for n, m in network.model.named_modules() if isinstance(m, QuantConv2d))
    layer.weight.data.view(-1)[3] = value
    with pytest.raises(MasterError, match=f"weight {name}.weight: NaN or infinity"):
        exported(network)
