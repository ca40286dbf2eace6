from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.diagnosis.compared_graphs import TappedReference
from bitswitch_deploy.diagnosis.layer_statistics import InputObserver, weight_statistics
from bitswitch_deploy.diagnosis.lowered_parts import LoweredParts
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.plan import ActivationPlan, plan_canonical
from bitswitch_deploy.master import read_master
from bitswitch_deploy.master.spec import Operator
from bitswitch_deploy.tensors import PER_TENSOR, CodeRange, Granularity, WidthAssignment
from tests.graph.masters import build, layer, per_block, per_channel


def test_an_input_by_hand() -> None:
    plan = ActivationPlan(bits=2, signed=False, codes=CodeRange(low=0, high=3), scale=0.5, why="")
    observer = InputObserver(plan, channel_axis=-1)
    source = np.array([[0.0, 0.6, 9.0], [0.1, 1.0, 1.6]], np.float32)
    observer.add(source, np.array([[0.0, 0.5, 1.5], [0.0, 1.0, 1.5]], np.float32))
    result = observer.result()
    assert result.counts == (2, 1, 1, 2)
    assert result.saturated_percent == pytest.approx(100 / 6)  # 9.0; 1.6 still rounds to code 3
    assert result.peak_ratio == pytest.approx(6.0)
    assert (result.dead_channels, result.channels) == (1, 3)


def test_nothing_seen() -> None:
    plan = ActivationPlan(bits=2, signed=True, codes=CodeRange(low=-2, high=1), scale=0.5, why="")
    with pytest.raises(ValueError, match="no batch"):
        InputObserver(plan, channel_axis=1).result()


@pytest.mark.parametrize(
    ("operator", "shape", "weight"),
    [
        ("Conv", (4, 20), "3, 4, 3"),
        ("Conv", (4, 6, 6), "3, 4, 3, 3"),
        ("MatMul", (6, 6, 4), "4, 3"),
        ("Gemm", (4,), "4, 3"),
    ],
)
def test_dead_channels_are_counted_along_the_axis_of_the_operator(
    operator: Operator, shape: tuple[int, ...], weight: str
) -> None:
    sizes = ", ".join(map(str, shape))
    result = ", ".join(["n", *"abc"[: len(shape)]])
    text = f'g (float[n, {sizes}] x, float[{weight}] "a.weight") => (float[{result}] y)'
    master = build(f'{text} {{ y = {operator} (x, "a.weight") }}', [layer("a", operator, activation="signed")])
    axis = 1 if operator == "Conv" else -1
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    np.moveaxis(x, axis, 0)[:2] = 0
    canonical = canonical_graph(master, WidthAssignment(default=8))
    parts = LoweredParts(master, canonical, canonical.model)
    parts.add(x, TappedReference(canonical.model, parts.reference_tensors).run(x))
    (found,) = parts.statistics()
    assert found.input is not None
    assert (found.input.dead_channels, found.input.channels) == (2, 4)


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_weights(bits: int) -> None:
    master = read_master(bundled_master())
    plan = plan_canonical(master, WidthAssignment(default=bits)).layers[0]
    result = weight_statistics(master, plan)
    stored = np.asarray(master.tensors[plan.layer.weight]).astype(np.float64)
    unclipped = np.floor(stored / 2 ** (8 - bits) + 0.5)  # this master rounds half up
    top = 2 ** (bits - 1) - 1
    codes = np.minimum(unclipped, top)
    assert result.low == -top - 1
    assert result.counts == tuple(int((codes == code).sum()) for code in range(-top - 1, top + 1))
    assert result.clipped_percent == pytest.approx(100 * (unclipped > top).mean())
    assert result.zero_channels == int((codes.reshape(len(codes), -1) == 0).all(1).sum())


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_block(0, 2)], ids=lambda each: each.kind)
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_channels_of_a_product_whatever_its_scales(operator: Operator, granularity: Granularity) -> None:
    text = f'g (float[n, 4] x, float[4, 3] "a.weight") => (float[n, 3] y) {{ y = {operator} (x, "a.weight") }}'
    weight = [[0, 1, 0], [0, 2, 3], [0, 1, 1], [0, 0, 1]]
    master = build(text, [layer("a", operator, granularity)], tensors={"a.weight": weight})
    result = weight_statistics(master, plan_canonical(master, WidthAssignment(default=8)).layers[0])
    assert (result.zero_channels, result.channels) == (1, 3)


@pytest.mark.parametrize(
    ("weight", "channels"),
    [([0, 1, 2, 0], (0, 1)), ([0, 0, 0, 0], (1, 1)), ([[[0, 1, 0]] * 4, [[0, 1, 1]] * 4], (1, 3))],
    ids=["vector", "vector of zeros", "rank 3"],
)
def test_channels_of_other_ranks(weight: list[Any], channels: tuple[int, int]) -> None:
    shape = ", ".join(map(str, np.shape(weight)))
    result_shape = "2, n, 3" if np.ndim(weight) == 3 else "n"
    text = f'g (float[n, 4] x, float[{shape}] "a.weight") => (float[{result_shape}] y) {{ y = MatMul (x, "a.weight") }}'
    master = build(text, [layer("a", "MatMul")], tensors={"a.weight": weight})
    result = weight_statistics(master, plan_canonical(master, WidthAssignment(default=8)).layers[0])
    assert (result.zero_channels, result.channels) == channels
