"""Which tensors around which Adds get codes, whose scale they share, and which Adds are not looked at."""

from __future__ import annotations

from typing import Any

import pytest

from bitswitch_deploy.graph.model_io import import_model
from bitswitch_deploy.lowering.residuals import CodedTensor, Mode, plan_residuals
from bitswitch_deploy.master import Master
from tests.graph.masters import build, layer
from tests.lowering import blocks
from tests.lowering.blocks import residual_master
from tests.lowering.lowered import canonical


def plan(master: Master, mode: Mode) -> tuple[CodedTensor, ...]:
    return plan_residuals(import_model(canonical(master, 4).model), mode)


def point(
    tensor: str, *, like: str = "", reader: str | None = None, unsigned: bool = False, kept: tuple[str, ...] = ()
) -> CodedTensor:
    return CodedTensor(tensor=tensor, like=like or tensor, reader=reader, unsigned=unsigned, kept=kept)


FIRST_BLOCK = (point("b"), point("start", unsigned=True), point("first", unsigned=True))


def test_no_mode() -> None:
    assert plan(residual_master(), "none") == ()


@pytest.mark.parametrize("norm", [False, True])
def test_both_inputs_and_the_output(norm: bool) -> None:
    """The output of the first block is the shortcut of the second one: it is listed once."""
    assert plan(residual_master(norm=norm), "both_inputs") == (
        *FIRST_BLOCK,
        point("side", like="first", unsigned=True),
        point("main"),
        point("second", unsigned=True),
    )


def test_behind_data_movement_the_scale_is_shared() -> None:
    points = plan(residual_master("moved"), "both_inputs")
    assert points[3] == point("side", like="first", unsigned=True)


@pytest.mark.parametrize(
    "movement",
    [
        "side = MaxPool <kernel_shape = [1, 1]> (first)",
        "side = Transpose <perm = [0, 1, 2, 3]> (first)",
        "side = Reshape (first, shape)",
        "u = Unsqueeze (first, axis) side = Squeeze (u, axis)",
        "flat = Flatten (first) side = Reshape (flat, shape)",
    ],
)
def test_every_kind_of_data_movement(movement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks.SHORTCUTS, "moved", f"shape = Shape (first) {movement}")
    points = plan(residual_master("moved"), "both_inputs")
    assert points[3] == point("side", like="first", unsigned=True)


def test_arithmetic_ends_the_sharing() -> None:
    assert plan(residual_master("pooled"), "both_inputs")[3] == point("side")


def test_origin_that_gets_no_codes_shares_no_scale() -> None:
    text = """
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "a.weight") => (float[n, 4, 6, 6] y) {
        r = Relu (x)
        side = Identity (r)
        a = Conv (r, "a.weight")
        y = Add (a, side)
    }"""
    assert plan(build(text, (layer("a"),)), "both_inputs") == (point("a"), point("side", unsigned=True), point("y"))


def test_shortcut_through_a_convolution() -> None:
    assert plan(residual_master("convolution"), "both_inputs")[3:5] == (point("side"), point("main"))


def test_only_the_shortcut() -> None:
    assert plan(residual_master(), "skip_input") == (
        point("start", reader="add1", unsigned=True),
        point("side", reader="add2", unsigned=True),
    )


def test_of_two_convolutions_the_second_is_the_main_branch() -> None:
    assert plan(residual_master("convolution"), "skip_input")[1] == point("side", reader="add2")


def test_shortcut_in_the_second_place() -> None:
    assert plan(residual_master(norm=True), "skip_input")[0] == point("start", reader="add1", unsigned=True)


NETWORK = 'net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "a.weight") => (float[n, 4, 6, 6] y) {{ {} }}'


@pytest.mark.parametrize("mode", ["skip_input", "both_inputs"])
@pytest.mark.parametrize(
    ("body", "activation"),
    [
        ('a = Conv (x, "a.weight") y = Add (a, x)', "pinned"),
        ('a = Conv (x, "a.weight") y = Sigmoid (a)', "pinned"),
        ('y = Conv (x, "a.weight")', "unsigned"),
        ('a = Conv (x, "a.weight") y = Relu (a)', "unsigned"),
        ('a = Conv (x, "a.weight") t = Transpose <perm = [0, 1, 3, 2]> (a) y = Concat <axis = 0> (t, t)', "unsigned"),
    ],
)
def test_nothing_to_gain(body: str, activation: str, mode: Mode) -> None:
    assert plan(build(NETWORK.format(body), (layer("a", activation=activation),)), mode) == ()


@pytest.mark.parametrize(
    ("body", "coded"),
    [
        ('a = Conv (x, "a.weight") e = Relu (a) y = Add (e, x)', point("e", unsigned=True)),
        ('a = Conv (x, "a.weight") y = Mul (a, x)', point("a")),
        ('a = Conv (x, "a.weight") y = Add (a, one)', point("a")),
        ('a = Conv (x, "a.weight") s = Sigmoid (a) y = Mul (a, s)', point("a")),
        (
            'a = Conv (x, "a.weight") r = Relu (a) c = Concat <axis = 0> (r, x) y = Sigmoid (c)',
            point("r", unsigned=True),
        ),
    ],
)
def test_what_a_convolution_hands_on_in_float(body: str, coded: CodedTensor) -> None:
    text = NETWORK.format(body).replace("=> (float[n, 4, 6, 6] y)", "=> (float[n, 4, 6, 6] y) <float one = {1}>")
    master = build(text, (layer("a"),))
    assert plan(master, "both_inputs") == (coded,)
    assert plan(master, "skip_input") == ()


def test_two_layers_behind_one_convolution() -> None:
    """With one quantizer behind it a convolution has codes; with one for each of two readers onnxruntime gives none."""
    text = """
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "a.weight", float[4, 4, 1, 1] "b.weight", float[4, 4, 1, 1] "c.weight")
        => (float[n, 4, 6, 6] y, float[n, 4, 6, 6] z) {
        a = Conv (x, "a.weight")
        r = Relu (a)
        y = Conv (r, "b.weight")
        SECOND
    }"""
    layers = tuple(map(layer, "abc"))
    two = build(text.replace("SECOND", 'z = Conv (r, "c.weight")'), layers)
    assert plan(two, "both_inputs") == (point("r", unsigned=True),)
    # y leaves the network in float
    chain = build(text.replace("SECOND", 'm = MaxPool <kernel_shape = [1, 1]> (y) z = Conv (m, "c.weight")'), layers)
    assert plan(chain, "both_inputs") == ()


@pytest.mark.parametrize("mode", ["skip_input", "both_inputs"])
def test_behind_a_matrix_product_there_is_nothing_to_gain(mode: Mode) -> None:
    text = """
    net (float[n, 4] x, float[4, 4] "a.weight") => (float[n, 4] y) {
        a = MatMul (x, "a.weight")
        y = Add (a, x)
    }"""
    assert plan(build(text, (layer("a", "MatMul"),)), mode) == ()


def test_transposed_convolution_counts() -> None:
    text = NETWORK.format('a = ConvTranspose (x, "a.weight") y = Add (a, x)')
    assert plan(build(text, (layer("a", "ConvTranspose"),)), "both_inputs") == (point("a"), point("x"), point("y"))


@pytest.mark.parametrize(
    ("tail", "output"),
    [("y = Relu (s)", "y"), ("y = Neg (s)", "s"), ("r = Relu (s) y = Sub (r, s)", "s")],
)
def test_the_output_is_taken_behind_a_relu_of_its_own(tail: str, output: str) -> None:
    text = NETWORK.format(f'a = Conv (x, "a.weight") s = Add (a, x) {tail}')
    expected = point(output, unsigned=output == "y")
    assert plan(build(text, (layer("a"),)), "both_inputs")[-1] == expected


def test_two_adds_of_one_shortcut() -> None:
    text: Any = """
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "a.weight", float[4, 4, 1, 1] "b.weight") => (float[n, 4, 6, 6] y) {
        a = Conv (x, "a.weight")
        [one] s = Add (a, x)
        b = Conv (s, "b.weight")
        [two] y = Add (b, x)
    }"""
    master = build(text, (layer("a"), layer("b")))
    assert plan(master, "skip_input") == (point("x", reader="one"), point("x", reader="two"))
    assert plan(master, "both_inputs") == (point("a"), point("x"), point("s"), point("b"), point("y"))


# --- layers with a float weight --------------------------------------------------------------------------------------

BEHIND_START = """
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "s.weight", float[4, 4, 1, 1] "a.weight", float[4] "a.bias",
         float[4, 4, 1, 1] "b.weight", float[4, 4, 1, 1] "z.weight") => (float[n, 4, p, q] y)
        <float low = {{0}}, float high = {{4}}, float[1] two = {{2}}> {{
        s = Conv (x, "s.weight")
        start = Relu (s)
        {}
        b = Conv (start, "b.weight")
        sum = Add (b, start)
        t = Add (end, sum)
        y = Conv (t, "z.weight")
    }}"""
PINNED = '[pinned] a = Conv ({}, "a.weight", "a.bias") '
CODES_BEHIND = {
    "relu": PINNED.format("start") + 'r = Relu (a) end = Conv (r, "b.weight")',
    "clip and pooling": PINNED.format("start")
    + 'r = Clip (a, low, high) p = MaxPool <kernel_shape = [1, 1]> (r) end = Conv (p, "b.weight")',
    "factor": PINNED.format("start") + 'r = Mul (a, two) end = Conv (r, "b.weight")',
    "branch": PINNED.format("start") + 'k = Conv (start, "b.weight") joined = Add (a, k) end = Relu (joined)',
}
NO_CODES_BEHIND = {
    "sigmoid": PINNED.format("start") + 'r = Sigmoid (a) end = Conv (r, "b.weight")',
    "two readers": PINNED.format("start") + 'r = Sigmoid (a) k = Conv (a, "b.weight") end = Mul (r, k)',
    "factor that is computed": PINNED.format("start") + 'r = Mul (a, start) end = Conv (r, "b.weight")',
}


def kept_of_start(middle: str) -> tuple[str, ...]:
    layers = (layer("s"), layer("a", activation="pinned"), layer("b"), layer("z"))
    points = plan(build(BEHIND_START.format(middle), layers), "both_inputs")
    return next(each.kept for each in points if each.tensor == "start")


@pytest.mark.parametrize("case", CODES_BEHIND)
def test_a_float_layer_between_codes_goes_on_reading_the_float_tensor(case: str) -> None:
    assert kept_of_start(CODES_BEHIND[case]) == ("pinned",)


def test_data_movement_in_front_of_such_a_layer_stays_in_float_as_well() -> None:
    middle = CODES_BEHIND["relu"].replace("(start,", "(m,")
    assert kept_of_start("[move] m = Transpose <perm = [0, 1, 2, 3]> (start) " + middle) == ("move",)


@pytest.mark.parametrize("case", NO_CODES_BEHIND)
def test_a_float_layer_without_codes_behind_reads_the_codes(case: str) -> None:
    assert kept_of_start(NO_CODES_BEHIND[case]) == ()


def test_a_branch_that_only_such_layers_read_gets_no_codes() -> None:
    text = """
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "s.weight", float[4, 4, 1, 1] "a.weight", float[4, 4, 1, 1] "b.weight")
        => (float[n, 4, p, q] y) {
        s = Conv (x, "s.weight")
        start = Relu (x)
        sum = Add (s, start)
        a = Conv (sum, "a.weight")
        r = Relu (a)
        y = Conv (r, "b.weight")
    }"""
    layers = (layer("s"), layer("a", activation="pinned"), layer("b"))
    assert plan(build(text, layers), "both_inputs") == (point("s"), point("start", unsigned=True))
