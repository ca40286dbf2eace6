from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.batches import preprocess
from bitswitch_deploy.training.evaluation import measure_widths, reestimated, top1
from bitswitch_deploy.training.prepare import set_width
from tests.training.tiny_network import PREPROCESSING, halves, seen_network, tiny_batches


def test_top1_counts_the_largest_logit() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 1.0]]).expand(len(x), 2)

    data = halves(n=300)
    assert top1(Constant(), data, PREPROCESSING) == pytest.approx(100 * float(np.mean(data.labels == 1)))


def test_each_width_is_measured_at_its_own() -> None:
    network = seen_network()
    data = halves(n=50, seed=1)
    measured = measure_widths(network.model, (8, 4, 2), data, PREPROCESSING)
    inputs, labels = preprocess(data.images, PREPROCESSING), torch.from_numpy(data.labels)
    for entry, bits in zip(measured, (8, 4, 2), strict=True):
        set_width(network.model, bits)
        expected = 100 * float((network.model(inputs).argmax(1) == labels).float().mean())
        assert (entry.bits, entry.metric, entry.n) == (bits, "top1", 50)
        assert (entry.dataset, entry.dataset_sha256) == ("halves", "ab" * 32)
        assert entry.value == pytest.approx(expected)


def test_measuring_changes_nothing() -> None:
    network = seen_network()
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    measure_widths(network.model, (8, 4, 2), halves(), PREPROCESSING)
    after = network.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_statistics_that_are_taken_again_are_the_mean_of_the_batches() -> None:
    model = seen_network().model
    batches = [tiny_batches().batch(step) for step in range(3)]
    twin = reestimated(model, WidthAssignment(default=8), batches)
    first = model[0]  # type: ignore[index]
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():
        expected = torch.stack([first(batch.inputs).mean((0, 2, 3)) for batch in batches]).mean(0)
    found = twin.state_dict()
    torch.testing.assert_close(found["1.copies.0.running_mean"], expected)
