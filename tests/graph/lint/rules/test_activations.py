from __future__ import annotations

from tests.graph.lint.graphs import CONV, LAYER, OUT, WEIGHT, found, model, nodes, pair, with_zero


def test_scales_for_each_channel_of_an_activation() -> None:
    graph = model(with_zero(pair("x", "d", "sw", "iw") + WEIGHT + LAYER + OUT, "i"))
    assert found(graph, "per-channel-activation") == [("q_d", "4 scales along axis 1")]


def test_weights_may_have_them() -> None:
    assert not nodes(model(with_zero(CONV, "i")), "per-channel-activation")
    body = "k = QuantizeLinear <axis = 0> (f, sw, iw) wd = DequantizeLinear <axis = 0> (k, sw, iw) y = Conv (x, wd)"
    assert not nodes(model(body), "per-channel-activation")
