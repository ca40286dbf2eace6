"""Resources against counts by hand, and bytes against the files that targets really get."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import pytest

from bitswitch_deploy.catalogue import bundled_master, load_target
from bitswitch_deploy.errors import InputFileError, UsageError
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.latency_table import LatencyTable, LayerLatency
from bitswitch_deploy.lowering.approximation import EXACT, EXPORTED
from bitswitch_deploy.lowering.lower import lower
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.search.budget import parse_budget
from bitswitch_deploy.search.problem import Row
from bitswitch_deploy.search.resources import Choices, Resources, count_macs
from bitswitch_deploy.search.shapes import layer_shapes
from bitswitch_deploy.target import Target, WeightType
from bitswitch_deploy.tensors import PER_TENSOR, Granularity, WidthAssignment
from tests.graph.masters import build, layer, per_block, per_channel
from tests.search.masters import MACS, every_operator, two_blocks
from tests.search.resnet18 import CLASSIFIER, STEM_MACS, STEM_WEIGHTS, resnet18

WIDTHS = (8, 6, 4, 2)


def resources(master: Master, *, target: Target | None = None, tables: tuple[LatencyTable, ...] = ()) -> Resources:
    names = [each.name for each in master.spec.layers if not each.pinned]
    choices = Choices(groups=tuple((name,) for name in names), widths=(WIDTHS,) * len(names))
    targets = {target.name: target} if target else {}
    return Resources(master, choices, macs=dict.fromkeys(names, 1000), targets=targets, tables=tables)


def row(master: Master, text: str, **more: object) -> Row:
    return resources(master, **more).row(parse_budget(text))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 3])
def test_multiplications_of_every_operator(batch: int) -> None:
    master = every_operator()
    assert count_macs(master, layer_shapes(master, np.zeros((batch, 2, 8, 8), np.float32))) == MACS


def test_rows_of_bits() -> None:
    master = every_operator()
    average = row(master, "avg_bits<=3.5")
    assert (average.use, average.cap, average.minimum, average.per_unit) == ((WIDTHS,) * 5, 17, 10, 5)
    weighted = row(master, "avg_weight_bits<=3.5")
    sizes = (72, 32, 864, 36, 36)
    assert weighted.use == tuple(tuple(n * bits for bits in WIDTHS) for n in sizes)
    assert weighted.cap == int(3.5 * sum(sizes))
    operations = row(master, "bops<=5k").use
    assert operations[0] == (64000, 36000, 16000, 4000)
    assert operations[3] == tuple(32 * 1000 * bits for bits in WIDTHS)


@pytest.mark.parametrize("k", range(4))
def test_average_bits_of_a_uniform_width_are_that_width_by_layer_by_weight_and_by_bytes(k: int) -> None:
    master = every_operator()
    selection = (k,) * 5
    for name in ("avg_bits", "avg_weight_bits"):
        counted = row(master, f"{name}<=8")
        assert counted.total(selection) == WIDTHS[k] * counted.per_unit
    scales = sum(4 * master.tensors[each.weight_scale].size for each in master.spec.layers)
    n_weights = sum(master.tensors[each.weight].size for each in master.spec.layers)
    assert 8 * (row(master, "bytes<=1M").total(selection) - scales) == WIDTHS[k] * n_weights


def test_a_network_with_a_fixed_batch_size_is_seen_by_one_sample() -> None:
    text = 'net (float[4, 2] x, float[2, 3] "fc.weight") => (float[4, 3] logits) { logits = MatMul (x, "fc.weight") }'
    master = build(text, [layer("fc", "MatMul", activation="signed")])
    for n in (1, 4):
        assert count_macs(master, layer_shapes(master, np.zeros((n, 2), np.float32))) == {"fc": 6}


def test_published_bit_operations_and_sizes_of_resnet18() -> None:
    """In G and MB at 2, 3, 4, 6 and 8 bits, first convolution and classifier at 8 (arXiv 2401.01543's accounting)."""
    widths = (8, 6, 4, 3, 2)
    master = resnet18()
    names = [each.name for each in master.spec.layers if not each.pinned]
    assert len(names) == 19
    macs = count_macs(master, layer_shapes(master, np.zeros((1, 3, 224, 224), np.float32)))
    choices = Choices(groups=tuple((name,) for name in names), widths=(widths,) * 19)
    counted = {each.name: each for each in Resources(master, choices, macs=macs, targets={}, tables=()).counted()}
    for k, (bops, megabytes) in enumerate(((116.1, 11.14), (68.63, 8.48), (34.71, 5.82), (22.85, 4.49), (14.37, 3.16))):
        selection = (k,) * 19
        total = counted["bops"].total(selection) + 64 * (STEM_MACS + CLASSIFIER)
        assert total / 1e9 == pytest.approx(bops, abs=0.005 if bops < 100 else 0.05)
        bits = counted["avg_weight_bits"].total(selection) + 8 * (STEM_WEIGHTS + CLASSIFIER)
        assert bits / 8 / 2**20 == pytest.approx(megabytes, abs=0.005)


def test_bytes_without_a_target_are_packed_without_gaps() -> None:
    """a: 144 codes and 4 scales; b: 144 and 1; pinned: 72 and 12 floats."""
    packed = row(two_blocks(), "bytes<=1k")
    assert packed.use == ((160, 124, 88, 52), (148, 112, 76, 40))
    assert packed.base == 4 * (72 + 12)


@pytest.mark.parametrize("name", ["rtx", "x86-cpu", "arm64-cpu", "jetson-orin-nano", "jetson-agx-xavier"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_bytes_of_a_target_are_those_of_its_graphs(name: str, bits: int) -> None:
    master, target = every_operator(), load_target(name).target
    used = row(master, f"bytes<=1M@{name}", target=target).use
    for each, of_layer in zip(master.spec.layers, used):
        assert of_layer[WIDTHS.index(bits)] == sum(_stored_bytes(master, each.weight, bits, target)), each.name


@pytest.mark.parametrize(("name", "size_bytes"), [("rtx", 2), ("x86-cpu", 4), ("jetson-orin-nano", 4)])
def test_pinned_layers_are_float16_where_exports_halve_them(name: str, size_bytes: int) -> None:
    budget = row(two_blocks(), f"bytes<=1M@{name}", target=load_target(name).target)
    assert budget.base == size_bytes * (72 + 12)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(
    ("shape", "granularity", "node"),
    [
        ((160, 9), PER_TENSOR, "MatMul"),
        ((160, 9), per_channel(1), "MatMul"),
        ((9, 40), per_channel(0), "Gemm <transB = 1>"),
        ((9, 40), per_block(1, 16), "Gemm <transB = 1>"),
        ((160, 9), per_block(0, 32), "MatMul"),
        ((48, 10), per_block(0, 24), "MatMul"),
        ((40, 9), per_channel(1), "Gemm <alpha = 2.0>"),
    ],
)
def test_bytes_of_weight_only_layers(shape: tuple[int, int], granularity: Granularity, node: str, bits: int) -> None:
    """Blocks of 4-bit codes, floats to be where there is no such form, and a layer that the pass leaves alone."""
    inputs, outputs = shape[::-1] if "transB" in node else shape
    parameters = f'float[n, {inputs}] x, float[{shape[0]}, {shape[1]}] "a.weight"'
    text = f'net ({parameters}) => (float[n, {outputs}] y) {{ y = {node} (x, "a.weight") }}'
    operator = node.partition(" ")[0]
    master = build(text, [layer("a", operator, granularity, "none")])  # type: ignore[arg-type]
    target = load_target("x86-cpu").target
    used = row(master, "bytes<=1M@x86-cpu", target=target).use[0][WIDTHS.index(bits)]
    assert used == sum(_stored_bytes(master, "a.weight", bits, target))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(
    ("granularity", "activation"),
    # blocks beside an activation in codes are refused
    [*product((PER_TENSOR, per_channel(1)), ("signed", "none")), (per_block(0, 32), "none")],
    ids=lambda each: each if isinstance(each, str) else each.kind,
)
def test_bytes_of_scales_and_zero_points(granularity: Granularity, activation: str, bits: int) -> None:
    """Those of a layer with float inputs are float16, and there are more of them where its weights are packed."""
    text = 'net (float[n, 64] x, float[64, 6] "a.weight") => (float[n, 6] y) { y = MatMul (x, "a.weight") }'
    master = build(text, [layer("a", "MatMul", granularity, activation)])
    target = load_target("rtx").target
    used = row(master, "bytes<=1M@rtx", target=target).use[0][WIDTHS.index(bits)]
    codes, scales = _stored_bytes(master, "a.weight", bits, target)
    assert used == codes + scales
    if (granularity, bits) == (PER_TENSOR, 4):
        # two blocks of 32 inputs
        assert (codes, scales) == ((192, 12 * 2 + 6) if activation == "none" else (384, 4 + 1))


def test_a_layer_with_a_scale_that_float16_lacks_has_float32_ones() -> None:
    text = 'net (float[n, 64] x, float[64, 6] "a.weight") => (float[n, 6] y) { y = MatMul (x, "a.weight") }'
    scales = np.array([1e-8, *[0.01] * 5], np.float32)
    master = build(text, [layer("a", "MatMul", per_channel(1), "none")], tensors={"a.weight.scale": scales})
    target = load_target("rtx").target
    used = row(master, "bytes<=1M@rtx", target=target).use[0]
    for bits, use in zip(WIDTHS, used):
        codes, others = _stored_bytes(master, "a.weight", bits, target)
        assert (use, others) == (codes + others, 12 * 4 + 6 if bits <= 4 else 6 * 4 + 6)


@pytest.mark.parametrize(("shape", "node"), [((6, 64), "Gemm <transB = 1>"), ((64, 6), "Gemm")])
def test_bytes_of_a_packed_gemm(shape: tuple[int, int], node: str) -> None:
    """No bundled target packs a Gemm."""
    parameters = f'float[n, 64] x, float[{shape[0]}, {shape[1]}] "a.weight"'
    text = f'net ({parameters}) => (float[n, 6] y) {{ y = {node} (x, "a.weight") }}'
    master, target = build(text, [layer("a", "Gemm", activation="none")]), load_target("rtx").target
    int4: WeightType = "int4"
    containers = tuple((operator, int4) for operator, _ in target.quantization.weight_containers)
    target = replace(target, quantization=replace(target.quantization, weight_containers=containers))
    used = row(master, "bytes<=1M@rtx", target=target).use[0][WIDTHS.index(4)]
    assert used == sum(_stored_bytes(master, "a.weight", 4, target)) == 192 + 2 + 1


@pytest.mark.parametrize("name", ["rtx", "x86-cpu", "jetson-orin-nano"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_bytes_of_one_scale_and_a_batchnorm_behind_it(name: str, bits: int) -> None:
    """That becomes one scale for each of the four channels; a layer whose output is read twice keeps its one."""
    norm = "BatchNormalization ({}, 'n.gamma', 'n.beta', 'n.mean', 'n.var')".replace("'", '"')
    parameters = ", ".join(f'float[4] "n.{part}"' for part in ("gamma", "beta", "mean", "var"))
    text = f"""
net (float[n, 2, 6, 6] x, float[4, 2, 3, 3] "a.weight", float[4, 4, 3, 3] "b.weight", {parameters}) => (float[n, 4] y)
{{
    p = Conv <pads: ints = [1, 1, 1, 1]> (x, "a.weight")
    q = {norm.format("p")}
    r = Relu (q)
    s = Conv <pads: ints = [1, 1, 1, 1]> (r, "b.weight")
    t = {norm.format("s")}
    u = Add (s, t)
    v = GlobalAveragePool (u)
    y = Flatten (v)
}}
"""
    master = build(text, [layer("a", activation="signed"), layer("b")])
    target = load_target(name).target
    used = row(master, f"bytes<=1M@{name}", target=target).use
    for weight, of_layer in zip(("a.weight", "b.weight"), used):
        assert of_layer[WIDTHS.index(bits)] == sum(_stored_bytes(master, weight, bits, target)), weight


@pytest.mark.parametrize("bits", WIDTHS)
def test_an_odd_last_dimension_is_not_packed(bits: int) -> None:
    text = 'net (float[n, 6] x, float[6, 5] "odd.weight") => (float[n, 5] y) { y = MatMul (x, "odd.weight") }'
    master, target = build(text, [layer("odd", "MatMul", activation="none")]), load_target("rtx").target
    lowered = lower(canonical_graph(master, WidthAssignment(default=bits)), target, ranges={}, approximations=EXACT)
    (stored,) = [each for each in lowered.model.graph.initializer if each.name == "odd.weight"]
    assert _size_bytes(stored) == 30
    assert row(master, "bytes<=1M@rtx", target=target).use[0][WIDTHS.index(bits)] == 30 + 2 + 1


def _stored_bytes(master: Master, weight: str, bits: int, target: Target) -> tuple[int, int]:
    """Of codes, and of scales with what says where they belong, in the graph that the target gets."""
    lowered = lower(canonical_graph(master, WidthAssignment(default=bits)), target, ranges={}, approximations=EXPORTED)
    sizes = {each.name: _size_bytes(each) for each in lowered.model.graph.initializer}
    codes, scales = (
        [sizes[name] for name in (weight + form for form in forms) if name in sizes]
        for forms in (("", ".blocks"), (".scale", ".scale.half", ".block_scales", ".steps"))
    )
    assert len(codes) == len(scales) == 1
    return codes[0], scales[0] + sum(sizes.get(weight + form, 0) for form in (".zero_point", ".block_of"))


def _size_bytes(tensor: onnx.TensorProto) -> int:
    per_byte = 2 if tensor.data_type == onnx.TensorProto.INT4 else 1
    return len(tensor.raw_data) or -(-int(np.prod(tensor.dims)) // per_byte)


def table(master: Master, **changes: object) -> LatencyTable:
    names = [each.name for each in master.spec.layers if not each.pinned]
    times = ((8, 0.4), (6, 0.4), (4, 0.3), (2, 0.3))
    fields: dict[str, object] = {
        "master_sha256": master.sha256,
        "target": "jetson-orin-nano",
        "engine": "tensorrt",
        "engine_version": "10.3",
        "device": (),
        "batch_size": 1,
        "threads": None,
        "overhead_ms": 0.1,
        "end_to_end_ms": ((8, 0.9), (6, 0.88), (4, 0.71), (2, 0.7)),
        "layers": tuple(LayerLatency(name=name, latency_ms=times) for name in names),
    }
    return LatencyTable(**{**fields, **changes})  # type: ignore[arg-type]


BUDGET = "latency_p50_ms<=0.9@jetson-orin-nano"


def test_latency_adds_up_in_nanoseconds_with_the_margin_of_the_table() -> None:
    master = two_blocks()
    used = row(master, BUDGET, tables=(table(master),))
    assert used.cap == 900_000
    assert used.use == ((400_000, 400_000, 300_000, 300_000),) * 2
    # w4 took 0.71 ms, its parts 0.7
    assert used.base == pytest.approx(110_000, abs=1)
    check = resources(master, tables=(table(master),)).checks[0]
    assert dict(check.errors_percent)[4] == pytest.approx(100 * (0.7 / 0.71 - 1))
    assert (check.batch_size, check.threads) == (1, None)
    (check,) = resources(master, tables=(table(master, batch_size=16, threads=2, unstable=("hot",)),)).checks
    assert check.unstable == ("hot",)
    assert (check.batch_size, check.threads) == (16, 2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"master_sha256": "1" * 64}, UsageError, "measured on the master with sha256 111111111111"),
        ({"target": "rtx"}, UsageError, "no latency table of target 'jetson-orin-nano'"),
        ({"end_to_end_ms": ((8, 0.9), (6, 0.9), (4, 0.7), (2, 1.2))}, InputFileError, "-42 % of what w2 took"),
    ],
)
def test_latency_tables_that_do_not_fit(changes: dict[str, object], error: type[Exception], message: str) -> None:
    master = two_blocks()
    with pytest.raises(error, match=message):
        row(master, BUDGET, tables=(table(master, **changes),))


def test_a_latency_table_without_a_layer_or_a_width() -> None:
    master = two_blocks()
    whole = table(master)
    fewer = replace(whole, layers=whole.layers[:1])
    with pytest.raises(UsageError, match="without b"):
        row(master, BUDGET, tables=(fewer,))
    narrow = tuple(replace(each, latency_ms=each.latency_ms[:2]) for each in whole.layers)
    with pytest.raises(UsageError, match="without 4, 2"):
        row(master, BUDGET, tables=(replace(whole, layers=narrow, end_to_end_ms=whole.end_to_end_ms[:2]),))


def test_the_bundled_master_has_the_bytes_that_inspect_shows() -> None:
    """Its codes, and scales on top: `inspect` counts codes and pinned weights."""
    master = read_master(bundled_master())
    scales = sum(4 * master.tensors[each.weight_scale].size for each in master.spec.layers if not each.pinned)
    used = row(master, "bytes<=1M")
    assert used.base + sum(use[2] for use in used.use) == 20_544 + scales
