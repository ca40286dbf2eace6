"""Which width, scale and parameter copy the plan decides for, against numbers worked out by hand."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.errors import GraphError, UsageError
from bitswitch_deploy.graph.plan import ActivationPlan, QuantizationPlan, plan_canonical
from bitswitch_deploy.master import Master
from bitswitch_deploy.tensors import CodeRange, WidthAssignment
from tests.graph.masters import BATCH_NORM, build, layer

TWO_LAYERS = """
net (float[n, 2, 4, 4] x, float[3, 2, 1, 1] "stem.weight", float[3, 3, 1, 1] "a.weight", float[3, 3, 1, 1] "b.weight",
     float[5, 3, 1, 1] "head.weight") => (float[n, 5, 4, 4] y) {
    stem = Conv (x, "stem.weight")
    a = Conv (stem, "a.weight")
    b = Conv (a, "b.weight")
    y = Conv (b, "head.weight")
}"""
LAYERS = (
    layer("stem", activation="pinned"),
    layer("a"),
    layer("b", activation="signed"),
    layer("head", activation="pinned"),
)


def two_layers(**changes: Any) -> Master:
    return build(TWO_LAYERS, LAYERS, **changes)


def at(master: Master, default: int, **overrides: int) -> QuantizationPlan:
    return plan_canonical(master, WidthAssignment(default=default, overrides=tuple(overrides.items())))


def activation(plan: QuantizationPlan, name: str) -> ActivationPlan:
    found = next(each.activation for each in plan.layers if each.layer.name == name)
    assert found is not None
    return found


def test_uniform_width() -> None:
    plan = at(two_layers(), 4)
    assert [(each.layer.name, each.bits) for each in plan.layers] == [("a", 4), ("b", 4)]
    assert plan.pinned == ("stem", "head")
    assert plan.trained_widths == (8, 6, 4, 2)
    assert plan.untrained == ()


def test_mixed_widths() -> None:
    plan = at(two_layers(), 7, b=3)
    assert [(each.layer.name, each.bits) for each in plan.layers] == [("a", 7), ("b", 3)]
    assert plan.untrained == (7, 3)
    assert (activation(plan, "a").bits, activation(plan, "b").bits) == (7, 3)


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_learned_scale(bits: int) -> None:
    master = two_layers(tensors={"a.input.scale": [0.25, 0.5, 1.5, 3.0]})
    found = activation(at(master, bits), "a")
    assert found.scale == {8: 0.25, 6: 0.5, 4: 1.5, 2: 3.0}[bits]
    assert found.why == f"learned at {bits} bits"


# unsigned ranges 1, 4, 16 at 2, 4, 8 bits: in log2 that is 0, 2, 4, and in between the mean is taken
@pytest.mark.parametrize(("bits", "clip"), [(3, 2.0), (5, 2**2.5), (6, 8.0), (7, 2**3.5)])
def test_untrained_range_is_interpolated(bits: int, clip: float) -> None:
    master = two_layers(widths=(8, 4, 2), tensors={"a.input.scale": [16 / 255, 4 / 15, 1 / 3]})
    found = activation(at(master, bits), "a")
    assert found.scale == pytest.approx(clip / (2**bits - 1), rel=1e-6)
    assert found.scale == float(np.float32(found.scale))
    assert found.why == "range interpolated from widths [8, 4, 2]"


def test_untrained_signed_range_ends_at_the_highest_code() -> None:
    master = two_layers(widths=(8, 4), tensors={"b.input.scale": [16 / 127, 4 / 7]})
    assert activation(at(master, 6), "b").scale == pytest.approx(8 / 31, rel=1e-6)


def test_an_interpolated_scale_is_no_subnormal_number() -> None:
    smallest = 2.0**-126
    master = two_layers(widths=(2,), tensors={"a.input.scale": [smallest]})
    assert activation(at(master, 2), "a").scale == activation(at(master, 8), "a").scale == smallest


def test_untrained_range_of_an_int8_container() -> None:
    master = two_layers(widths=(8, 6), activation_container="int8", tensors={"a.input.scale": [16 / 127, 4 / 63]})
    assert activation(at(master, 7), "a").scale == pytest.approx(8 / 127, rel=1e-6)


@pytest.mark.parametrize(("bits", "clip"), [(8, 4.0), (7, 4.0), (3, 1.0), (2, 1.0)])
def test_outside_of_the_trained_widths_the_last_range_holds(bits: int, clip: float) -> None:
    master = two_layers(widths=(6, 4), tensors={"a.input.scale": [4 / 63, 1 / 15]})
    assert activation(at(master, bits), "a").scale == pytest.approx(clip / (2**bits - 1), rel=1e-6)


@pytest.mark.parametrize("container", ["uint8", "int8"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_of_an_activation(bits: int, container: str) -> None:
    plan = at(two_layers(activation_container=container), bits)
    highest = {2: 3, 3: 7, 4: 15, 5: 31, 6: 63, 7: 127, 8: 255 if container == "uint8" else 127}[bits]
    assert activation(plan, "a").codes == CodeRange(low=0, high=highest)
    assert not activation(plan, "a").signed
    half = {2: 2, 3: 4, 4: 8, 5: 16, 6: 32, 7: 64, 8: 128}[bits]
    assert activation(plan, "b").codes == CodeRange(low=-half, high=half - 1)
    assert activation(plan, "b").signed


def test_float_input_has_no_plan() -> None:
    master = build(TWO_LAYERS, (LAYERS[0], layer("a", activation="none"), *LAYERS[2:]))
    assert next(each for each in at(master, 4).layers if each.layer.name == "a").activation is None


# --- refusals ------------------------------------------------------------------------------------------------------


def test_unknown_layer() -> None:
    with pytest.raises(
        UsageError, match=r"layer 'c' in the width assignment: not in the master\n  allowed: one of: a, b"
    ):
        at(two_layers(), 4, c=8)


def test_pinned_layer() -> None:
    with pytest.raises(
        UsageError, match=r"layer 'stem' in the width assignment: pinned to float\n  allowed: one of: a, b"
    ):
        at(two_layers(), 4, stem=8)


@pytest.mark.parametrize(("default", "overrides"), [(8, {}), (4, {"a": 8})])
def test_width_above_the_master(default: int, overrides: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"width: 8 bits from a master of 6 bits\n  allowed: 2\.\.6"):
        at(two_layers(bits=6, widths=(6, 4)), default, **overrides)


@pytest.mark.parametrize("depth", [1, 2])
def test_layer_in_a_branch(depth: int) -> None:
    text = """
    net (float[n, 2] x, float[2, 2] "a.weight") => (float[n, 2] y) {
        yes = Constant <value = bool {1}> ()
        y = If (yes) <then_branch = t () => (float[n, 2] u) { u = MatMul (x, "a.weight") },
                      else_branch = e () => (float[n, 2] v) { v = Identity (x) }>
    }"""
    if depth == 2:
        inner = """u = If (yes) <then_branch = t2 () => (float[n, 2] u2) { u2 = MatMul (x, "a.weight") },
                                else_branch = e2 () => (float[n, 2] v2) { v2 = Abs (x) }>"""
        text = text.replace('u = MatMul (x, "a.weight")', inner)
    with pytest.raises(GraphError, match=r"layer 'a': it stands in a branch or loop \(MatMul \)"):
        at(build(text, (layer("a", "MatMul"),)), 4)
    assert at(build(text, (layer("a", "MatMul", activation="pinned"),)), 4).pinned == ("a",)


# --- nodes ---------------------------------------------------------------------------------------------------------


def test_names_of_nodes() -> None:
    text = TWO_LAYERS.replace("b = Conv", "[mine] b = Conv")
    assert [each.nodes for each in at(build(text, LAYERS), 4).layers] == [("Conv_1",), ("mine",)]


def test_several_nodes_with_one_weight() -> None:
    text = TWO_LAYERS.replace("b = Conv (a,", 'a2 = Conv (a, "a.weight") b = Conv (a2,')
    assert [each.nodes for each in at(build(text, LAYERS), 4).layers] == [("Conv_1", "Conv_2"), ("Conv_3",)]


def test_nodes_with_one_name() -> None:
    text = TWO_LAYERS.replace("a = Conv", "[same] a = Conv").replace("b = Conv", "[same] b = Conv")
    assert [each.nodes for each in at(build(text, LAYERS), 4).layers] == [("same",), ("Conv_2",)]


# --- switchable parameters -----------------------------------------------------------------------------------------

NORMALIZED = """
net (float[n, 2, 4, 4] x, float[3, 2, 1, 1] "stem.weight", {norms}
     float[3, 3, 1, 1] "a.weight", float[3, 3, 1, 1] "b.weight", float[5, 3, 1, 1] "head.weight")
    => (float[n, 5, 4, 4] y) {{
    stem = Conv (x, "stem.weight")
    n0 = BatchNormalization (stem, "n0.gamma", "n0.beta", "n0.mean", "n0.var")
    a = Conv (n0, "a.weight")
    r = Relu (a)
    n1 = BatchNormalization (r, "n1.gamma", "n1.beta", "n1.mean", "n1.var")
    b = Conv (n1, "b.weight")
    sum = Add (b, n1)
    n2 = BatchNormalization (sum, "n2.gamma", "n2.beta", "n2.mean", "n2.var")
    head = Conv (n2, "head.weight")
    n3 = BatchNormalization (head, "n3.gamma", "n3.beta", "n3.mean", "n3.var")
    y = Relu (n3)
}}"""
CHANNELS = {"n0": 3, "n1": 3, "n2": 3, "n3": 5}


def normalized(**changes: Any) -> Master:
    names = [f"{norm}.{part}" for norm in CHANNELS for part in BATCH_NORM]
    norms = " ".join(f'float[{CHANNELS[name[:2]]}] "{name}",' for name in names)
    return build(NORMALIZED.format(norms=norms), LAYERS, switchable=names, **changes)


def switches(plan: QuantizationPlan) -> dict[str, tuple[int, int, str]]:
    """Give row, width and reason of each gamma."""
    found = [each for each in plan.switches if each.parameter.endswith("gamma")]
    return {each.parameter[:2]: (each.index, each.width, each.why) for each in found}


def test_batch_norm_goes_with_the_layer_before_it_else_after_it_else_the_network() -> None:
    assert switches(at(normalized(), 8, a=4, b=2)) == {
        "n0": (2, 4, "a after it computes at 4 bits"),
        "n1": (2, 4, "a before it computes at 4 bits"),
        "n2": (3, 2, "b before it computes at 2 bits"),
        "n3": (0, 8, "the network computes at 8 bits"),
    }


# A and B are quantized, P and Q are pinned, N is the BatchNormalization; expected: which layer it goes with
OWNERS = {
    "the layer that it reads, though another ran since": ("a = A b = B n = N(a) y = Add (n, b)", "a before"),
    "the layer that ran last": ("a = A b = B s = Add (a, b) n = N(s) y = Relu (n)", "b before"),
    "not the one on its own branch": ("a = A r = Relu (a) b = B n = N(r) y = Add (n, b)", "b before"),
    "nothing before it": ("n = N(x) a = A b = B s = Add (a, b) y = Add (s, n)", "a after"),
    "a layer that runs twice counts where it runs first": (
        "a = A b = B a2 = A s = Add (a2, b) n = N(s) y = Add (n, a)",
        "b before",
    ),
    "and is found directly in front": ("a = A b = B a2 = A n = N(a2) y = Add (n, b)", "a before"),
    "pinned and directly in front": ("p = P n = N(p) b = B a = A s = Add (a, b) y = Add (s, n)", "b after"),
    "pinned and the last that ran": ("a = A p = P s = Add (a, p) n = N(s) b = B y = Add (b, n)", "b after"),
    "pinned and the next one, too": ("p = P n = N(p) q = Q a = A s = Add (a, q) b = B y = Add (s, b)", "a after"),
    "a layer that runs behind it, too": (
        "a = A t = Relu (a) n = N(t) a2 = A b = B s = Add (a2, b) y = Add (s, n)",
        "a before",
    ),
    "a BatchNormalization that is read twice": ("a = A n = N(a) b = B m = N(b) y = Add (n, m)", "a before"),
    "pinned with nothing behind": ("a = A b = B p = P s = Add (a, b) t = Add (s, p) n = N(t) y = Relu (n)", ""),
}
OWNER_NET = """
net (float[n, 2, 4, 4] x, float[2, 2, 1, 1] "a.weight", float[2, 2, 1, 1] "b.weight", float[2, 2, 1, 1] "p.weight",
     float[2, 2, 1, 1] "q.weight",
     float[2] "n.gamma", float[2] "n.beta", float[2] "n.mean", float[2] "n.var") => (float[n, 2, 4, 4] y) {"""


@pytest.mark.parametrize("case", OWNERS)
def test_owner(case: str) -> None:
    body, owner = OWNERS[case]
    layers = [layer("a"), layer("b")]
    text = OWNER_NET
    for name in "pq":
        if f"= {name.upper()}" in body:
            layers.append(layer(name, activation="pinned"))
        else:
            text = re.sub(rf',\s+float\[2, 2, 1, 1\] "{name}.weight"', "", text)
    for name in "abpq":
        body = body.replace(f"= {name.upper()} ", f'= Conv (x, "{name}.weight") ')
    parameters = [f"n.{part}" for part in BATCH_NORM]
    listed = ", ".join(f'"{name}"' for name in parameters)
    body = re.sub(r"= N\((\w+)\)", rf"= BatchNormalization (\1, {listed})", body)
    plan = at(build(f"{text} {body} }}", layers, switchable=parameters), 8, a=4, b=2)
    bits = {"a": 4, "b": 2, "": 8}[owner[:1]]
    expected = f"{owner} it computes at {bits} bits" if owner else "the network computes at 8 bits"
    assert {(each.why, each.width) for each in plan.switches} == {(expected, bits)}


def test_all_parts_of_a_batch_norm_switch_together() -> None:
    rows: dict[str, set[int]] = {}
    for each in at(normalized(), 8, a=4, b=2).switches:
        rows.setdefault(each.parameter[:2], set()).add(each.index)
    assert rows == {"n0": {2}, "n1": {2}, "n2": {3}, "n3": {0}}


def test_partners_that_the_master_names_come_first() -> None:
    partners = tuple((f"{norm}.{part}", "b") for norm in ("n0", "n1") for part in BATCH_NORM)
    assert switches(at(normalized(partners=partners), 8, a=4, b=2)) == {
        "n0": (3, 2, "its partner b computes at 2 bits"),
        "n1": (3, 2, "its partner b computes at 2 bits"),
        "n2": (0, 8, "the network computes at 8 bits"),
        "n3": (0, 8, "the network computes at 8 bits"),
    }


@pytest.mark.parametrize(
    ("bits", "row", "width"), [(8, 0, 8), (7, 0, 8), (6, 0, 8), (5, 1, 4), (4, 1, 4), (3, 1, 4), (2, 2, 2)]
)
def test_nearest_trained_width_the_higher_of_two(bits: int, row: int, width: int) -> None:
    found = switches(at(normalized(widths=(8, 4, 2)), bits))["n1"]
    nearest = "" if bits == width else "; nearest trained width"
    assert found == (row, width, f"a before it computes at {bits} bits{nearest}")


def test_parameter_that_no_node_reads_goes_with_the_network() -> None:
    text = TWO_LAYERS.replace(
        'float[5, 3, 1, 1] "head.weight")', 'float[5, 3, 1, 1] "head.weight", float[3] "unused.gamma")'
    )
    plan = at(build(text, LAYERS, switchable=("unused.gamma",)), 8, a=4, b=4)
    assert [(each.parameter, each.width) for each in plan.switches] == [("unused.gamma", 8)]
