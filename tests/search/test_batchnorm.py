"""BatchNorm statistics of mixtures: the trained ones, moved by what NumPy measures of the same tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.errors import DataError
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.master import Master
from bitswitch_deploy.search import batchnorm
from bitswitch_deploy.search.batchnorm import BatchNormAdapter
from bitswitch_deploy.tensors import WidthAssignment
from tests.graph.masters import build, layer

Array = np.ndarray[Any, np.dtype[Any]]
EPSILON = 1e-5
NORMS = ("m", "n")
STATISTICS = tuple(f"{norm}.{part}" for norm in NORMS for part in ("mean", "var"))
UNIFORM = [WidthAssignment(default=bits) for bits in (8, 6, 4, 2)]
MIXED = WidthAssignment(default=8, overrides=(("a", 2), ("b", 4)))
TWO_NORMS = """
net (float[n, 2, 6, 6] x, float[4, 2, 3, 3] "a.weight", float[4] "m.gamma", float[4] "m.beta", float[4] "m.mean",
     float[4] "m.var", float[3, 4, 3, 3] "b.weight", float[3] "n.gamma", float[3] "n.beta", float[3] "n.mean",
     float[3] "n.var") => (float[n, 3] logits)
{
    p = Conv (x, "a.weight")
    q = BatchNormalization (p, "m.gamma", "m.beta", "m.mean", "m.var")
    r = Relu (q)
    s = Conv (r, "b.weight")
    t = BatchNormalization (s, "n.gamma", "n.beta", "n.mean", "n.var")
    u = GlobalAveragePool (t)
    logits = Flatten (u)
}
"""


def two_norms(**changes: Array) -> Master:
    layers = [layer("a", activation="signed"), layer("b")]
    switchable = tuple(f"{norm}.{part}" for norm in NORMS for part in ("gamma", "beta", "mean", "var"))
    return build(TWO_NORMS, layers, switchable=switchable, tensors=changes)


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(5).normal(size=(40, 2, 6, 6)).astype(np.float32)


def fed(master: Master, assignment: WidthAssignment, x: Array) -> dict[str, tuple[Array, Array]]:
    """Mean and variance of what each BatchNormalization is fed, with the first one set to those of its own input."""
    found: dict[str, tuple[Array, Array]] = {}
    model = canonical_graph(master, assignment).model
    for norm in NORMS:
        (node,) = [each for each in model.graph.node if f"{norm}.mean" in each.input]
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        probe.graph.output.add().name = node.input[0]
        values = ReferenceSession(probe.SerializeToString()).run_all({"x": x})[node.input[0]].astype(np.float64)
        found[norm] = values.mean((0, 2, 3)), values.var((0, 2, 3))
        stored = {each.name: each for each in model.graph.initializer}
        for name, value in zip((f"{norm}.mean", f"{norm}.var"), found[norm]):
            stored[name].CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    return found


def test_a_mixture_moves_the_trained_statistics_by_what_it_changes(x: Array) -> None:
    master = two_norms()
    adapted = BatchNormAdapter(master, x).adapted(MIXED)
    mixed, uniform = fed(master, MIXED, x), fed(master, UNIFORM[2], x)
    row = master.spec.widths.index(4)
    mean = master.tensors["n.mean"][row] + mixed["n"][0] - uniform["n"][0]
    var = master.tensors["n.var"][row] * (mixed["n"][1] + EPSILON) / (uniform["n"][1] + EPSILON)
    assert np.abs(mixed["n"][0] - uniform["n"][0]).min() > 1e-4
    assert adapted.tensors["n.mean"][row] == pytest.approx(mean, rel=1e-4, abs=1e-5)
    assert adapted.tensors["n.var"][row] == pytest.approx(var, rel=1e-3)


def test_nothing_before_the_first_norm_is_mixed(x: Array) -> None:
    master = two_norms()
    adapted = BatchNormAdapter(master, x).adapted(MIXED)
    assert all((adapted.tensors[name] == master.tensors[name]).all() for name in ("m.mean", "m.var"))


def test_only_the_rows_that_the_assignment_reads_change(x: Array) -> None:
    master = two_norms()
    adapted = BatchNormAdapter(master, x).adapted(MIXED)
    others = [index for index in range(4) if index != master.spec.widths.index(4)]
    for name in master.tensors:
        same = adapted.tensors[name] == master.tensors[name]
        assert same[others].all() if name in STATISTICS else same.all(), name


@pytest.mark.parametrize("uniform", UNIFORM, ids=lambda each: each.label)
def test_a_trained_width_keeps_what_it_has(uniform: WidthAssignment, x: Array) -> None:
    """Also where the samples look different from what training saw: here they are shifted and stretched."""
    master = two_norms()
    adapted = BatchNormAdapter(master, 3 * x + 1).adapted(uniform)
    assert all((adapted.tensors[name] == master.tensors[name]).all() for name in master.tensors)


def test_a_width_between_trained_ones_moves_from_its_neighbour(x: Array) -> None:
    master = two_norms()
    five = WidthAssignment(default=5)
    adapted = BatchNormAdapter(master, x).adapted(five)
    (switch,) = [each for each in canonical_graph(master, five).plan.switches if each.parameter == "n.mean"]
    moved = adapted.tensors["n.mean"][switch.index] - master.tensors["n.mean"][switch.index]
    expected = fed(master, five, x)["n"][0] - fed(master, WidthAssignment(default=switch.width), x)["n"][0]
    assert moved == pytest.approx(expected, abs=1e-5)


def test_one_set_for_all_widths_moves_from_their_mean(x: Array) -> None:
    layers = [layer("a", activation="signed"), layer("b")]
    master = build(TWO_NORMS, layers)
    adapted = BatchNormAdapter(master, x).adapted(MIXED)
    expected = fed(master, MIXED, x)["n"][0] - np.mean([fed(master, each, x)["n"][0] for each in UNIFORM], axis=0)
    assert adapted.tensors["n.mean"] - master.tensors["n.mean"] == pytest.approx(expected, abs=1e-5)


def test_nodes_that_share_their_statistics_move_them_by_what_both_are_fed(x: Array) -> None:
    """Two convolutions of the same input with different weights: nothing is normalised before either of them."""
    text = """
net (float[n, 2, 6, 6] x, float[4, 2, 3, 3] "a.weight", float[4, 2, 3, 3] "b.weight", float[4] "m.gamma",
     float[4] "m.beta", float[4] "m.mean", float[4] "m.var") => (float[n, 4] logits)
{
    p = Conv (x, "a.weight")
    q = BatchNormalization (p, "m.gamma", "m.beta", "m.mean", "m.var")
    r = Conv (x, "b.weight")
    s = BatchNormalization (r, "m.gamma", "m.beta", "m.mean", "m.var")
    t = Add (q, s)
    u = GlobalAveragePool (t)
    logits = Flatten (u)
}
"""
    master = build(text, [layer("a", activation="signed"), layer("b", activation="signed")])
    adapted = BatchNormAdapter(master, x).adapted(MIXED).tensors

    def whole(assignment: WidthAssignment) -> tuple[Array, Array]:
        probe = onnx.ModelProto()
        probe.CopyFrom(canonical_graph(master, assignment).model)
        taps = [each.input[0] for each in probe.graph.node if each.op_type == "BatchNormalization"]
        for tap in taps:
            probe.graph.output.add().name = tap
        values = ReferenceSession(probe.SerializeToString()).run_all({"x": x})
        fed_together = np.concatenate([values[tap] for tap in taps]).astype(np.float64)
        return fed_together.mean((0, 2, 3)), fed_together.var((0, 2, 3))

    uniform = [whole(each) for each in UNIFORM]
    mean, var = whole(MIXED)
    shift = mean - np.mean([each for each, _ in uniform], axis=0)
    factor = (var + EPSILON) / (np.mean([each for _, each in uniform], axis=0) + EPSILON)
    assert np.abs(shift).min() > 1e-5
    assert adapted["m.mean"] == pytest.approx(master.tensors["m.mean"] + shift, abs=1e-5)
    assert adapted["m.var"] == pytest.approx(master.tensors["m.var"] * factor, rel=1e-3)


def _together(master: Master, assignment: WidthAssignment, parts: list[Array], norm: str) -> tuple[Array, Array]:
    means, variances = zip(*(fed(master, assignment, part)[norm] for part in parts))
    return np.mean(means, axis=0), np.mean(variances, axis=0) + np.var(means, axis=0)


def test_large_samples_pass_in_parts(x: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part normalised by itself; nothing is normalised before the first norm, which sees the whole."""
    monkeypatch.setattr(batchnorm, "_PART_BYTES", x[:10].nbytes)
    x *= np.arange(1, 41, dtype=np.float32)[:, None, None, None]  # parts that differ
    master, row = two_norms(), two_norms().spec.widths.index(4)
    adapted = BatchNormAdapter(master, x).adapted(MIXED).tensors
    mixed, uniform = (_together(master, each, np.split(x, 4), "n") for each in (MIXED, UNIFORM[2]))
    assert adapted["n.mean"][row] == pytest.approx(master.tensors["n.mean"][row] + mixed[0] - uniform[0], abs=1e-5)
    factor = (mixed[1] + EPSILON) / (uniform[1] + EPSILON)
    assert adapted["n.var"][row] == pytest.approx(master.tensors["n.var"][row] * factor, rel=1e-3)

    shared = build(TWO_NORMS, [layer("a", activation="signed"), layer("b")])
    adapted = BatchNormAdapter(shared, x).adapted(MIXED).tensors
    uniform_var = np.mean([fed(shared, each, x)["m"][1] for each in UNIFORM], axis=0)
    factor = (fed(shared, MIXED, x)["m"][1] + EPSILON) / (uniform_var + EPSILON)
    assert np.abs(factor - 1).min() > 1e-3
    assert adapted["m.var"] == pytest.approx(shared.tensors["m.var"] * factor, rel=1e-5)


def test_a_fixed_batch_size_is_kept_and_must_be_large_enough(x: Array) -> None:
    layers = [layer("a", activation="signed"), layer("b")]
    eight, four = (build(TWO_NORMS.replace("float[n,", f"float[{n},"), layers) for n in (8, 4))
    free = build(TWO_NORMS, layers)
    by_eight = BatchNormAdapter(eight, x[:23]).adapted(MIXED).tensors
    whole = BatchNormAdapter(free, x[:16]).adapted(MIXED).tensors
    assert by_eight["m.mean"] == pytest.approx(whole["m.mean"], rel=1e-5)
    for master, n in ((four, 40), (eight, 7)):
        with pytest.raises(DataError, match="batches of 8 samples or more"):
            BatchNormAdapter(master, x[:n])


def test_a_dead_channel_stays_finite(x: Array) -> None:
    weight = np.random.default_rng(1).integers(-128, 128, (4, 2, 3, 3)).astype(np.int8)
    weight[2] = 0
    master = two_norms(**{"a.weight": weight})
    adapted = BatchNormAdapter(master, x).adapted(MIXED)
    assert all(
        np.isfinite(adapted.tensors[name]).all() and (adapted.tensors["n.var"] >= 0).all() for name in STATISTICS
    )
