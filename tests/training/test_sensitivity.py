from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bitswitch_deploy.errors import InputFileError
from bitswitch_deploy.training.hessian import hessian_traces
from bitswitch_deploy.training.prepare import set_width
from bitswitch_deploy.training.sensitivity import measured_sensitivities, read_sensitivities
from tests.training.tiny_network import seen_network, tiny_batches


def test_they_are_traces_at_the_codes_of_the_highest_width() -> None:
    model = seen_network().model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    set_width(model, 4)  # whatever it computes at
    batches = list(tiny_batches().stream(0, 4))
    found = measured_sensitivities(model, batches, seed=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    # by hand: the network in evaluation mode, written out
    state = model.state_dict()
    scale3, scale6 = (state[f"{n}.weight_quantizer.scale"] for n in (3, 6))
    weights = {
        "3": (model.get_submodule("3").weight_quantizer.codes(state["3.weight"], 8) * scale3.reshape(-1, 1, 1, 1)),  # type: ignore[union-attr,operator]
        "6": (model.get_submodule("6").weight_quantizer.codes(state["6.weight"], 8) * scale6.reshape(-1, 1)),  # type: ignore[union-attr,operator]
    }
    weights = {name: weight.requires_grad_(True) for name, weight in weights.items()}

    def norm(x: torch.Tensor, path: str) -> torch.Tensor:
        leaves = (state[f"{path}.copies.0.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
        return torch.nn.functional.batch_norm(x, *leaves)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        f = torch.nn.functional
        x = norm(f.conv2d(x, state["0.weight"], state["0.bias"], padding=1), "1").relu()
        x = norm(f.conv2d(x, weights["3"], padding=1), "4").flatten(1)
        x = f.linear(x, weights["6"], state["6.bias"]).relu()
        return f.cross_entropy(f.linear(x, state["8.weight"], state["8.bias"]), y)

    samples = [(torch.cat([b.inputs for b in batches]), torch.cat([b.labels for b in batches]))]
    expected = hessian_traces(loss, weights, samples, seed=2, max_vectors=100)
    assert found == pytest.approx({name: trace.mean for name, trace in expected.items()}, rel=1e-3)


def test_a_file_is_read_in_the_order_of_the_layers(tmp_path: Path) -> None:
    path = tmp_path / "traces.json"
    path.write_text(json.dumps({"b": 2, "a": 1.5}), encoding="utf-8")
    assert list(read_sensitivities(path, ("a", "b")).items()) == [("a", 1.5), ("b", 2.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1.0}', r"traces\.json: traces of a\n  allowed: a, b"),
        ('{"a": 1.0, "b": 1.0, "c": 1.0}', "traces of a, b, c"),
        ("{}", "traces of no layer"),
        ('{"a": 1.0, "b": "high"}', "b.*'high'"),
        ('{"a": 1.0, "b": NaN}', "NaN is not JSON"),
        ("[1.0]", "one JSON object"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "traces.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputFileError, match=message):
        read_sensitivities(path, ("a", "b"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"absent\.json: cannot be read"):
        read_sensitivities(tmp_path / "absent.json", ("a", "b"))
