"""Copies for pairs of widths, which pair is in use, and what of it reaches a master."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.layers import SwitchableBatchNorm
from bitswitch_deploy.training.master_export import TrainingRecord, build_master
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.prepare import PreparedNetwork, PrepareOptions, prepare, set_width
from bitswitch_deploy.training.transitional import TransitionalBatchNorm, with_transitions

EXAMPLE = (torch.zeros(2, 1, 8, 8),)
X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def digits_network() -> PreparedNetwork:
    torch.manual_seed(1)
    network = prepare(build_network("digits-resnet"), EXAMPLE, PrepareOptions(widths=(8, 4, 2)), check_export=False)
    for bits in (8, 4, 2):
        set_width(network.model, bits)
        network.model(torch.randn(16, 1, 8, 8) * bits)
    return network


def pairs(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    return {
        path: (module.previous_bits, module.bits)
        for path, module in model.named_modules()
        if isinstance(module, TransitionalBatchNorm)
    }


def test_the_layer_before_is_that_of_the_graph() -> None:
    norms = {p: m for p, m in digits_network().model.named_modules() if isinstance(m, SwitchableBatchNorm)}
    assert {path: (norm.partner, norm.previous) for path, norm in norms.items()} == {
        "bn1": ("blocks.0.conv1", None),
        "blocks.0.bn1": ("blocks.0.conv1", None),
        "blocks.0.bn2": ("blocks.0.conv2", "blocks.0.conv1"),
        "blocks.1.bn1": ("blocks.1.conv1", "blocks.0.conv2"),
        "blocks.1.bn2": ("blocks.1.conv2", "blocks.1.conv1"),
        # not conv2, which is executed before it
        "blocks.1.shortcut.bn": ("blocks.1.shortcut.conv", "blocks.0.conv2"),
        "blocks.2.bn1": ("blocks.2.conv1", "blocks.1.conv2"),
        "blocks.2.bn2": ("blocks.2.conv2", "blocks.2.conv1"),
    }
    assert [path for path, norm in norms.items() if not norm.reads_partner] == ["bn1"]


def test_the_pair_in_use() -> None:
    model = with_transitions(digits_network().model)
    assert len(pairs(model)) == 6  # the first two have no layer before them
    chain = (("blocks.0.conv2", 8), ("blocks.1.conv1", 2), ("blocks.1.conv2", 4))
    set_width(model, WidthAssignment(default=8, overrides=chain))
    assert pairs(model) == {
        "blocks.0.bn2": (8, 8),
        "blocks.1.bn1": (8, 2),
        "blocks.1.bn2": (2, 4),
        "blocks.1.shortcut.bn": (8, 8),
        "blocks.2.bn1": (4, 8),
        "blocks.2.bn2": (8, 8),
    }


def test_at_first_every_network_is_that_with_own_widths() -> None:
    plain = digits_network().model.eval()
    model = with_transitions(copy.deepcopy(plain))
    assert not model.get_submodule("blocks.1.bn1").training
    for assignment in (8, 4, 2, WidthAssignment(default=4, overrides=(("blocks.1.conv1", 2), ("blocks.2.conv1", 8)))):
        set_width(plain, assignment)
        set_width(model, assignment)
        assert torch.equal(model(X), plain(X))


def test_only_the_copy_of_the_pair_learns() -> None:
    model = with_transitions(digits_network().model).train()
    set_width(model, WidthAssignment(default=8, overrides=(("blocks.1.conv1", 2),)))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(X).sum().backward()
    prefix = "blocks.1.bn1."
    graded = {name for name, p in model.named_parameters() if p.grad is not None and name.startswith(prefix)}
    assert graded == {f"{prefix}transitions.8-2.{leaf}" for leaf in ("weight", "bias")}
    moved = {n for n, b in model.named_buffers() if not torch.equal(b, before[n]) and n.startswith(prefix)}
    leaves = ("running_mean", "running_var", "num_batches_tracked")
    assert moved == {f"{prefix}transitions.8-2.{leaf}" for leaf in leaves}


def test_a_master_has_the_copies_of_equal_pairs() -> None:
    network = digits_network()
    expected = build_master(network, EXAMPLE, TrainingRecord())
    with_transitions(network.model)
    for module in network.model.modules():
        if isinstance(module, TransitionalBatchNorm):
            for other in module.transitions.values():
                other.weight.data.fill_(7.0)  # type: ignore[operator]
    master = build_master(network, EXAMPLE, TrainingRecord())
    assert master.spec == expected.spec
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(master.tensors[name], tensor, err_msg=name)


def test_the_state_of_a_plain_network_does_not_fit() -> None:
    model = with_transitions(digits_network().model)
    assert "blocks.1.bn1.transitions.8-2.running_mean" in model.state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(digits_network().model.state_dict())
