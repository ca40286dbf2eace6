"""Two small classifiers: one of every operator that counts multiplications, one with layers to choose widths for."""

from __future__ import annotations

from bitswitch_deploy.master import Master
from tests.graph.masters import build, layer, per_channel

# conv 4*6*6 outputs x 2*9; up 4*6*6 inputs x 2*4; two tokens by MatMul, then by one of float inputs; a row by Gemm
EVERY_OPERATOR = """
net (float[n, 2, 8, 8] x, float[4, 2, 3, 3] "conv.weight", float[4, 2, 2, 2] "up.weight", float[144, 6] "mat.weight",
     float[6, 6] "only.weight", float[12, 3] "fc.weight") => (float[n, 3] logits)
{
    a = Conv (x, "conv.weight")
    b = Relu (a)
    c = ConvTranspose <strides: ints = [2, 2]> (b, "up.weight")
    d = Relu (c)
    shape = Constant <value_ints: ints = [0, 2, 144]> ()
    e = Reshape (d, shape)
    f = MatMul (e, "mat.weight")
    g = Relu (f)
    only = MatMul (g, "only.weight")
    relu = Relu (only)
    h = Flatten (relu)
    logits = Gemm (h, "fc.weight")
}
"""
MACS = {"conv": 4 * 36 * 18, "up": 4 * 36 * 8, "mat": 2 * 6 * 144, "only": 2 * 6 * 6, "fc": 36}

TWO_BLOCKS = """
net (float[n, 2, 6, 6] x, float[4, 2, 3, 3] "stem.weight", float[4, 4, 3, 3] "a.weight", float[4] "bn.gamma",
     float[4] "bn.beta", float[4] "bn.mean", float[4] "bn.var", float[4, 4, 3, 3] "b.weight",
     float[3, 4] "fc.weight") => (float[n, 3] logits)
{
    p = Conv <pads: ints = [1, 1, 1, 1]> (x, "stem.weight")
    q = Relu (p)
    r = Conv <pads: ints = [1, 1, 1, 1]> (q, "a.weight")
    s = BatchNormalization (r, "bn.gamma", "bn.beta", "bn.mean", "bn.var")
    t = Relu (s)
    u = Conv <pads: ints = [1, 1, 1, 1]> (t, "b.weight")
    v = Relu (u)
    w = GlobalAveragePool (v)
    y = Flatten (w)
    logits = Gemm <transB: int = 1> (y, "fc.weight")
}
"""


def every_operator() -> Master:
    layers = [layer("conv"), layer("up", "ConvTranspose"), layer("mat", "MatMul")]
    layers += [layer("only", "MatMul", activation="none"), layer("fc", "Gemm")]
    return build(EVERY_OPERATOR, layers)


def two_blocks() -> Master:
    layers = [layer("stem", activation="pinned"), layer("a", granularity=per_channel(0)), layer("b")]
    layers.append(layer("fc", "Gemm", activation="pinned"))
    return build(TWO_BLOCKS, layers, switchable=("bn.gamma", "bn.beta", "bn.mean", "bn.var"))
