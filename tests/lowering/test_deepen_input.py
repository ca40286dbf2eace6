"""DeepenInput: the same sums from an image of twelve or four channels, and every other convolution as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from bitswitch_deploy.engines.optimized_operators import optimized_operators
from bitswitch_deploy.graph.lint.lint import lint
from bitswitch_deploy.graph.lint.reading import read_graph
from tests.graph.masters import HEADER
from tests.graph.running import initializer, look, operators
from tests.lowering.lowered import Applied, applied, is_untouched, profile

Array = np.ndarray[Any, np.dtype[Any]]

X86 = profile("x86-cpu")


def network(
    *,
    window: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (2, 2),
    pads: tuple[int, ...] = (1, 1, 1, 1),
    size: str = "12, 8",
    channels: int = 3,
    group: int = 1,
    source: str = "",
    behind: str = "i = Identity (r)",
    attributes: str = "",
    factors: bool = False,
    weight: str = "stem.codes",
    clip: bool = False,
    container: str = "uint8",
    more: str = "",
) -> onnx.ModelProto:
    """Give an image in codes, a convolution of 8 channels, and codes. Scales are powers of two: sums are exact."""
    shape, zero = (8, channels // group, *window), 128 if container == "uint8" else 0
    codes = np.random.default_rng(5).integers(-63, 64, shape).astype(np.int8)
    multiplied = (
        """wide = Cast <to = 6> (W)
        product = Mul (wide, factors)
        ready = Cast <to = 3> (product)"""
        if factors
        else "ready = Identity (W)"
    )
    text = f"""
    net (float[n, {channels}, {size}] x) => (float[a, b, c, d] y)
        <float s = {{0.5}}, {container} z = {{{zero}}}, float t = {{8.0}}, float u = {{0.0625}}, int8 v = {{0}},
         {container} top = {{100}}, {container} low = {{7}},
         int8[{", ".join(map(str, shape))}] W = {{{", ".join(map(str, codes.ravel()))}}},
         int32[8, 1, 1, 1] factors = {{1, -1, 2, -2, 1, 1, -1, 1}}> {{
        {multiplied}
        w = DequantizeLinear (ready, u, v)
        {source}
        q = QuantizeLinear ({"p" if source else "x"}, s, z)
        {"k = Clip (q, low, top)" if clip else ""}
        e = DequantizeLinear ({"k" if clip else "q"}, s, z)
        r = Conv <strides = [{", ".join(map(str, strides))}], pads = [{", ".join(map(str, pads))}], group = {group}
                  {attributes}> (e, w)
        {behind}
        o = QuantizeLinear (i, t, z)
        y = DequantizeLinear (o, t, z)
        {more}
    }}"""
    model = onnx.parser.parse_model(HEADER + text)
    kept = [node for node in model.graph.node if node.output[0] != "ready" or node.op_type != "Identity"]
    for index, node in enumerate(kept):
        node.name = f"{node.output[0]}/{node.op_type}" if node.op_type == "QuantizeLinear" else f"node{index}"
        node.input[:] = [{"W": weight, "ready": "ready" if factors else weight}.get(each, each) for each in node.input]
    model.graph.initializer[[each.name for each in model.graph.initializer].index("W")].name = weight
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def deepen(model: onnx.ModelProto) -> Applied:
    return applied("DeepenInput", model, X86)


def images(rows: int = 12, columns: int = 8) -> Array:
    """Give images whose codes are all of 0..255 and beyond both ends, on ties as well."""
    steps = np.random.default_rng(3).integers(-400, 400, (40, 3, rows, columns))
    return np.asarray(steps * np.float32(0.25), np.float32)


def window_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    (conv,) = [node for node in model.graph.node if node.op_type == "Conv"]
    return {each.name: list(each.ints) for each in conv.attribute if each.ints}


LARGE: dict[str, Any] = {"window": (7, 7), "pads": (3, 3, 3, 3)}
IN_BLOCKS: dict[str, tuple[dict[str, Any], list[int], list[int]]] = {
    "ResNet": (LARGE, [4, 4], [2, 2, 1, 1]),
    "five": ({"window": (5, 5), "pads": (2, 2, 2, 2)}, [3, 3], [1, 1, 1, 1]),
    "six": ({"window": (6, 6), "pads": (2, 2, 2, 2)}, [3, 3], [1, 1, 1, 1]),
    "two": ({"window": (2, 2), "pads": (0, 0, 0, 0)}, [1, 1], [0, 0, 0, 0]),
    "not padded": ({"window": (5, 5), "pads": (0, 0, 0, 0)}, [3, 3], [0, 0, 0, 0]),
    "padded at the end, as TensorFlow does": ({"window": (5, 5), "pads": (1, 1, 2, 2)}, [3, 3], [1, 1, 1, 1]),
    "another padding for each side": ({"window": (5, 7), "pads": (1, 4, 2, 2)}, [3, 4], [1, 2, 1, 1]),
    "more padding than window": ({"window": (7, 7), "pads": (8, 8, 8, 8)}, [4, 4], [4, 4, 4, 4]),
    "negative gains": (LARGE | {"factors": True}, [4, 4], [2, 2, 1, 1]),
    "a Clip": (LARGE | {"clip": True}, [4, 4], [2, 2, 1, 1]),
    "MobileNet": ({}, [2, 2], [1, 1, 0, 0]),
    "Relu and MaxPool behind it": (
        LARGE | {"behind": "a = Relu (r)  i = MaxPool <kernel_shape = [2, 2]> (a)"},
        [4, 4],
        [2, 2, 1, 1],
    ),
    "an image of four pixels": (LARGE | {"size": "2, 2"}, [4, 4], [2, 2, 1, 1]),
}


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_in_blocks(name: str) -> None:
    options, window, pads = IN_BLOCKS[name]
    before = network(**options)
    result = deepen(before)
    assert (result.modified, result.changes) == (True, [])
    assert operators(result.model).count("Reshape") == operators(result.model).count("Transpose") == 3
    assert window_of(result.model) == {"kernel_shape": window, "strides": [1, 1], "pads": pads}
    assert initializer(result.model, "stem.codes.deep").shape == (8, 12, *window)
    rows, columns = map(int, options.get("size", "12, 8").split(", "))
    same_sums(before, result.model, rows=rows, columns=columns)


FOURTH_CHANNEL: dict[str, dict[str, Any]] = {
    "a Clip": {"strides": (1, 1), "clip": True},
    "stride 1": {"strides": (1, 1)},
    "stride 2 along rows": {"strides": (2, 1)},
    "stride 3": {"strides": (3, 3)},
    "an odd height": LARGE | {"size": "11, 8"},
    "an odd width": LARGE | {"size": "12, 7"},
    "a size that nobody knows": LARGE | {"size": "h, w"},
    "one pixel of four": {"window": (1, 1), "pads": (0, 0, 0, 0)},
    "negative gains": {"strides": (1, 1), "factors": True},
}


@pytest.mark.parametrize("name", FOURTH_CHANNEL)
def test_with_a_fourth_channel(name: str) -> None:
    before = network(**FOURTH_CHANNEL[name])
    result = deepen(before)
    assert (result.modified, result.changes) == (True, [])
    assert operators(result.model).count("Pad") == 1
    assert "Reshape" not in operators(result.model)
    assert initializer(result.model, "stem.codes.deep").shape[1] == 4
    rows, columns = FOURTH_CHANNEL[name].get("size", "12, 8").split(", ")
    same_sums(
        before, result.model, rows=int(rows) if rows.isdigit() else 9, columns=int(columns) if columns.isdigit() else 10
    )


def same_sums(before: onnx.ModelProto, after: onnx.ModelProto, *, rows: int = 12, columns: int = 8) -> None:
    x = images(rows, columns)
    expected = look(before, x, "o", optimisation="off")
    assert len(np.unique(expected)) > 60
    for optimisation in ("off", "all"):
        np.testing.assert_array_equal(look(after, x, "o", optimisation=optimisation), expected)


LEFT_ALONE: dict[str, dict[str, Any]] = {
    "codes of the master": {"weight": "stem.weight"},
    "behind another layer": {"source": "p = Relu (x)"},
    "in float": {"behind": "g = Sigmoid (r)  i = Mul (r, g)"},
    "codes and floats": {"behind": "i = Identity (r)", "more": "z2 = Relu (r)"},
    "grey": {"channels": 1},
    "four channels": {"channels": 4},
    "dilated": {"attributes": ", dilations = [2, 2]"},
    "signed codes": LARGE | {"container": "int8"},
    "padding by name": {"pads": (0, 0, 0, 0), "attributes": ', auto_pad = "VALID"'},
    "whole words already": {"window": (4, 4), "strides": (1, 1)},
    "read as floats too": {"more": "z2 = Relu (e)"},
    "codes read too": {"more": "z2 = DequantizeLinear (q, s, z)"},
    "weights read too": {"more": "z2 = Relu (w)"},
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name: str) -> None:
    model = network(**LEFT_ALONE[name])
    if "more" in LEFT_ALONE[name]:
        model.graph.output.append(onnx.helper.make_tensor_value_info("z2", onnx.TensorProto.FLOAT, list("abcd")))
    assert is_untouched(deepen(model), model)


def test_groups_are_left_alone() -> None:
    """Three channels in each of two groups."""
    model = network(channels=6, group=2)
    assert is_untouched(deepen(model), model)


@pytest.mark.parametrize(
    ("options", "moving"),
    [
        # rows, the last axis, and the result: the third one of ours meets onnxruntime's before the convolution
        (LARGE, {"Transpose": 3, "Reshape": 3}),
        ({}, {"Transpose": 3, "Reshape": 3}),
        ({"strides": (1, 1)}, {"Transpose": 2, "Pad": 1}),
    ],
)
def test_the_kernel_is_the_integer_one(options: dict[str, Any], moving: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "deep.onnx"
    onnx.save(deepen(network(**options)).model, str(path))
    found = dict(optimized_operators(path, session_options={}))
    assert found == {"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1, **moving}
    assert not lint(read_graph(path), engines=("onnxruntime",)).findings


@pytest.mark.parametrize("seed", range(30))
def test_any_window(seed: int) -> None:
    """Windows, strides, paddings and sizes by chance: the same sums, in blocks, with a fourth channel, or as it was."""
    random = np.random.default_rng(seed)
    window = int(random.integers(1, 8)), int(random.integers(1, 8))
    strides = (2, 2) if seed % 3 else (int(random.integers(1, 4)), int(random.integers(1, 4)))
    pads = tuple(map(int, random.integers(0, 4, 4)))
    rows, columns = map(int, random.integers(8, 17, 2))
    before = network(window=window, strides=strides, pads=pads, size=f"{rows}, {columns}")
    same_sums(before, deepen(before).model, rows=rows, columns=columns)
