"""A residual network in pieces: two blocks, the second with a choice of shortcut."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from bitswitch_deploy.lowering.ranges import RangeObserver, TensorRange
from bitswitch_deploy.master import Master
from tests.graph.masters import build, layer, per_channel
from tests.graph.running import look

Array = np.ndarray[Any, np.dtype[Any]]

# what the second Add reads beside its main branch: the first block's output, moved, or through a convolution
SHORTCUTS = {
    "identity": "side = Identity (first)",
    "moved": "cut = Slice (first, from, to, axis) side = Pad (cut, pads)",
    "convolution": 'side = Conv (first, "d.weight")',
    "pooled": "side = AveragePool <kernel_shape = [1, 1]> (first)",
}


def residual_master(shortcut: str = "identity", *, norm: bool = False, pinned: str = "", **changes: Any) -> Master:
    """Give stem (pinned), block a b, block c e with the shortcut, head z; every Add has a Relu behind it."""
    norms = ", ".join(f'float[4] "n.{part}"' for part in ("gamma", "beta", "mean", "var"))
    end = 'main = Conv <pads = [1, 1, 1, 1]> (rc, "e.weight")'
    if norm:
        end = end.replace("main", "raw") + ' main = BatchNormalization (raw, "n.gamma", "n.beta", "n.mean", "n.var")'
    weights = ", ".join(f'float[4, 4, 3, 3] "{name}.weight"' for name in "abce")
    text = f"""
    net (float[n, 4, 6, 6] x, float[4, 4, 1, 1] "stem.weight", {weights}, float[4, 4, 1, 1] "d.weight",
         float[5, 4, 1, 1] "z.weight"{", " + norms if norm else ""}) => (float[n, 5, 6, 6] y)
        <int64[1] from = {{0}}, int64[1] to = {{3}}, int64[1] axis = {{1}},
         int64[8] pads = {{0, 1, 0, 0, 0, 0, 0, 0}}> {{
        stem = Conv (x, "stem.weight")
        start = Relu (stem)
        a = Conv <pads = [1, 1, 1, 1]> (start, "a.weight")
        ra = Relu (a)
        b = Conv <pads = [1, 1, 1, 1]> (ra, "b.weight")
        [add1] sum1 = Add (b, start)
        first = Relu (sum1)
        c = Conv <pads = [1, 1, 1, 1]> (first, "c.weight")
        rc = Relu (c)
        {end}
        {SHORTCUTS[shortcut]}
        [add2] sum2 = Add (side, main)
        second = Relu (sum2)
        y = Conv (second, "z.weight")
    }}"""
    if shortcut != "convolution":
        text = text.replace(' float[4, 4, 1, 1] "d.weight",', "")
    names = "abce" + ("d" if shortcut == "convolution" else "")
    quantized = [
        layer(name, "Conv", per_channel(0), "pinned" if name in pinned else "unsigned") for name in [*names, "z"]
    ]
    return build(text, (layer("stem", activation="pinned"), *quantized), **changes)


def images(count: int = 20) -> Array:
    return np.random.default_rng(9).normal(0.3, 1, (count, 4, 6, 6)).astype(np.float32)


def observed(model: onnx.ModelProto, names: tuple[str, ...]) -> dict[str, TensorRange]:
    """Give the ranges of float tensors of a canonical graph."""
    ranges = {}
    for name in names:
        observer = RangeObserver()
        observer.observe(look(model, images(), name))
        ranges[name] = observer.result()
    return ranges
