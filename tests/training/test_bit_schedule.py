"""RFQuant's scheduler against the figures of the authors' scripts and closed forms."""

from __future__ import annotations

import pytest
import torch

from bitswitch_deploy.training.bit_schedule import (
    is_event,
    near_boundaries,
    resting_layers,
    resting_share,
    restlessness,
)
from bitswitch_deploy.training.sensitivity import quantized_layers
from tests.training.tiny_network import seen_network

WIDTHS = (8, 4, 2)


def test_events_of_150_epochs() -> None:
    events = [epoch for epoch in range(150) if is_event(epoch, 150)]
    assert events == [*range(7, 108, 2), 119, 134, 149]
    assert len(events) == 54


def test_how_many_rest() -> None:
    epochs = (7, 27, 57, 107, 119, 134, 149)
    shares = [resting_share(epoch, 150) for epoch in epochs]
    assert shares == pytest.approx([0.4999, 0.4844, 0.4195, 0.2696, 0.2407, 0.2156, 0.2012], abs=5e-5)
    assert [int(19 * share) for share in shares] == [9, 9, 7, 5, 4, 4, 3]
    assert [int(51 * share) for share in shares] == [25, 24, 21, 13, 12, 10, 10]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_evenly_spread_weights(bits: int) -> None:
    """A quarter around each of 2^b - 1 boundaries, of a range of 2^b steps."""
    low, high, n = -(2 ** (bits - 1)) - 0.5, 2 ** (bits - 1) - 0.5, 2**bits * 64
    x = torch.linspace(low, high, 2 * n + 1, dtype=torch.float64)[1::2]  # the middles of n equal parts
    assert near_boundaries(x, bits) == pytest.approx(0.25 - 0.25 / 2**bits)


def test_restlessness_of_evenly_spread_weights() -> None:
    """Mean over the widths 2 to 6 of the share near a boundary, divided by the width."""
    shares = {}
    for bits in (2, 3, 4, 5, 6):
        low, high, n = -(2 ** (bits - 1)) - 0.5, 2 ** (bits - 1) - 0.5, 2**bits * 64
        shares[bits] = near_boundaries(torch.linspace(low, high, 2 * n + 1, dtype=torch.float64)[1::2], bits)
    assert list(shares.values()) == [0.1875, 0.21875, 0.234375, 0.2421875, 0.24609375]
    assert sum(share / bits for bits, share in shares.items()) / 5 == pytest.approx(0.0629427, abs=5e-8)


def test_the_outer_sides_have_no_boundary() -> None:
    assert near_boundaries(torch.tensor([-2.5, 1.5, 1.49, -2.49]), 2) == 0.0
    assert near_boundaries(torch.tensor([-1.5, -0.5, 0.5]), 2) == 1.0
    assert near_boundaries(torch.tensor([0.0, -2.0, 1.0]), 2) == 0.0


def test_restlessness_counts_low_widths_more() -> None:
    layer = quantized_layers(seen_network().model)["3"]
    scale = layer.weight_quantizer.exported_scale().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        layer.weight.copy_(scale * 64)  # on a code at 8, 4 and 2 bits
        assert restlessness(layer, WIDTHS) == 0.0
        layer.weight.copy_(scale * 32)  # between two codes at 2 bits
        assert restlessness(layer, WIDTHS) == pytest.approx(1 / 2 / 3)
        assert restlessness(layer, (8, 4)) == 0.0
        layer.weight.copy_(scale * 24)  # at 4 bits 1.5, at 2 bits 0.375, just beyond reach
        assert restlessness(layer, WIDTHS) == pytest.approx(1 / 4 / 3)


def test_the_most_restless_rest_and_ties_go_to_the_first() -> None:
    layers = quantized_layers(seen_network().model)
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.zero_()
    candidates = dict.fromkeys(layers, WIDTHS)
    assert resting_layers(layers, candidates, share=0.5) == ("3",)
    assert resting_layers(layers, candidates, share=0.49) == ()
    with torch.no_grad():
        layers["6"].weight.copy_(32 * layers["6"].weight_quantizer.exported_scale().reshape(-1, 1))
    assert resting_layers(layers, candidates, share=0.5) == ("6",)
    assert resting_layers(layers, {**candidates, "6": (8, 4)}, share=0.5) == ("3",)  # it is at rest already
