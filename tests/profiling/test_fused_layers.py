"""Whose time a layer of a TensorRT engine is: by hand, and on engines that TensorRT for RTX really builds."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.engines.engine_layers import EngineLayer
from bitswitch_deploy.engines.optimized_operators import OptimizedNode, graph_nodes
from bitswitch_deploy.engines.shape_range import ShapeRange
from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import build_engine
from bitswitch_deploy.master import read_master
from bitswitch_deploy.pipeline.profiling.steps import layer_names
from bitswitch_deploy.profiling.fused_layers import fused_owners
from bitswitch_deploy.profiling.layers import LayerName, Ownership, Unsplit
from bitswitch_deploy.tensors import WidthAssignment
from tests.pipeline.conftest import export_to


def node(name: str, inputs: str, outputs: str, operator: str = "Any") -> OptimizedNode:
    return OptimizedNode(name=name, operator=operator, inputs=tuple(inputs.split()), outputs=tuple(outputs.split()))


# stem (in float) -> a -> relu -> b, and c beside b; their sum -> d
GRAPH = (
    node("a.weight/DQ", "a.weight", "a.weight.float", "DequantizeLinear"),
    node("b.weight/DQ", "b.weight", "b.weight.float", "DequantizeLinear"),
    node("stem/Conv", "x stem.weight", "s", "Conv"),
    node("a.input/Q", "s", "a.input.codes", "QuantizeLinear"),
    node("/a/Conv", "a.input.codes a.weight.float", "a1", "Conv"),
    node("/relu", "a1", "a2", "Relu"),
    node("b.input/Q", "a2", "b.input.codes", "QuantizeLinear"),
    node("c.input/Q", "a2", "c.input.codes", "QuantizeLinear"),
    node("/b/Conv", "b.input.codes b.weight.float", "b1", "Conv"),
    node("/c/Conv", "c.input.codes c.weight.float", "c1", "Conv"),
    node("/add", "b1 c1", "sum", "Add"),
    node("d.input/Q", "sum", "d.input.codes", "QuantizeLinear"),
    node("/d/MatMul", "d.input.codes d.weight.float", "d1", "MatMul"),
    node("/flatten", "d1", "y", "Flatten"),
)
LAYERS = tuple(
    LayerName(name=name, weight=f"{name}.weight", is_quantized=name != "stem") for name in ("stem", "a", "b", "c", "d")
)
ALONE = ("stem/Conv", "/a/Conv", "/b/Conv", "/c/Conv", "/d/MatMul")


def found(*names: str, inspected: tuple[EngineLayer, ...] = ()) -> Ownership:
    return fused_owners(names, inspected, GRAPH, LAYERS)


def inspected(name: str, *nodes: str, weights: bool = False) -> EngineLayer:
    return EngineLayer(
        name=name, kind="", nodes=nodes, inputs=("int8",), outputs=("int8",), weights=("int8",) if weights else ()
    )


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("/a/Conv + /relu", "a"),
        # the first node in the name is not the one that counts
        ("b.weight/DQ + a.input/Q + /a/Conv + /relu + b.input/Q", "a"),
        ("b.weight + QuantizeLinear_9_quantize_scale_node + /b/Conv + /add", "b"),
        ("/add + /b/Conv", "b"),
        ("b.input/Q_quantize_scale_node", "b"),
        ("/a/Conv output reformatter 0", "a"),
        ("Reformatting CopyNode for Output Tensor 0 to {ForeignNode[a.input/Q.../relu]}", "a"),
        ("Reformatting CopyNode for Input Tensor 0 to /a/Conv", "a"),
        ("PWN(PWN(/relu), b.input/Q)", "b"),
        ("/relu", "a"),
        ("/b/Conv_myl0_4", "b"),
        ("stem/Conv + a.input/Q", "stem"),
        ("d.input/Q", "d"),
        # of two branches that one which was computed last
        ("/add", "c"),
        # the inputs of two layers, the work of two layers, and nothing that is known
        ("b.input/Q + c.input/Q + /relu", None),
        ("/b/Conv || /c/Conv", None),
        ("/a/Conv.1", None),
        ("__myl_MulAddRelu_myl0_5", None),
    ],
)
def test_names(name: str, owner: str | None) -> None:
    assert found(name).owner_of.get(name) == owner


def test_layers_with_a_time_of_their_own() -> None:
    assert found(*ALONE).unsplit == ()
    assert found(*ALONE[1:]).unsplit == ()  # nobody asks for a time of the one in float


def test_one_kernel_of_two_layers_is_neither_of_them() -> None:
    both = "/b/Conv || /c/Conv"
    copy = "Reformatting CopyNode for Input Tensor 0 to /b/Conv"
    ownership = found("/a/Conv", copy, both, "/d/MatMul")
    assert ownership.owner_of == {"/a/Conv": "a", copy: "b", "/d/MatMul": "d"}
    assert ownership.unsplit == (Unsplit(layer="b", engine_layer=both), Unsplit(layer="c", engine_layer=both))


def test_a_copy_is_told_by_its_name_where_the_inspector_tells_nothing() -> None:
    """What is listed for it are the parts of its name."""
    name = "Reformatting CopyNode for Input Tensor 0 to /a/Conv + /relu + b.input/Q"
    listed = inspected(name, "Reformatting CopyNode for Input Tensor 0 to /a/Conv", "/relu", "b.input/Q")
    assert found(name, inspected=(listed,)).owner_of == {name: "a"}


def test_a_quantized_layer_in_one_kernel_with_one_in_float() -> None:
    ownership = found("stem/Conv + /a/Conv", "/b/Conv", "/c/Conv", "/d/MatMul")
    assert ownership.unsplit == (Unsplit(layer="a", engine_layer="stem/Conv + /a/Conv"),)


def test_a_foreign_node_holds_what_lies_between_its_ends() -> None:
    """/c/Conv has a kernel of its own, b and d have none."""
    foreign = "{ForeignNode[b.input/Q.../flatten]}"
    ownership = found("stem/Conv", "/a/Conv", foreign, "/c/Conv")
    assert ownership.owner_of == {"stem/Conv": "stem", "/a/Conv": "a", "/c/Conv": "c"}
    assert [each.layer for each in ownership.unsplit] == ["b", "d"]
    assert {each.engine_layer for each in ownership.unsplit} == {foreign}


def test_a_foreign_node_of_one_layer_is_its() -> None:
    foreign = "{ForeignNode[a.input/Q.../relu]}"
    ownership = found("stem/Conv", foreign, "/b/Conv", "/c/Conv", "/d/MatMul")
    assert (ownership.owner_of[foreign], ownership.unsplit) == ("a", ())


@pytest.mark.parametrize(
    "ends", ["a.weight.../flatten", "/b/Conv...(Unnamed Layer* 12) [Constant]", "w + /b/Conv + /add...y + /d/MatMul"]
)
def test_ends_of_a_foreign_node(ends: str) -> None:
    """Several names in one, and none of a node: then it may begin or end with the graph."""
    foreign = f"{{ForeignNode[{ends}]}}"
    unsplit = {each.layer: each.engine_layer for each in found("stem/Conv", "/a/Conv", "/c/Conv", foreign).unsplit}
    assert unsplit == {"b": foreign, "d": foreign}


def test_a_layer_that_no_layer_of_the_engine_names() -> None:
    assert found("/a/Conv", "/b/Conv", "/c/Conv", "fused_3").unsplit == (Unsplit(layer="d", engine_layer=None),)


def test_a_layer_that_no_node_of_the_graph_computes_has_no_time() -> None:
    """It would be in the table with 0 ms."""
    lost = LayerName(name="e", weight="e.weight", is_quantized=True)
    ownership = fused_owners(ALONE, (), GRAPH, (*LAYERS, lost))
    assert ownership.unsplit == (Unsplit(layer="e", engine_layer=None),)


def test_a_copy_is_not_the_time_of_its_layer() -> None:
    copy = "Reformatting CopyNode for Input Tensor 0 to /d/MatMul"
    assert found(*ALONE[:4], copy).unsplit == (Unsplit(layer="d", engine_layer=None),)


def test_the_inspector_knows_better_than_the_name() -> None:
    kernel = inspected("__myl_Conv_myl0_1", "/relu", "/a/Conv", weights=True)
    ownership = found("__myl_Conv_myl0_1", *ALONE[2:], inspected=(kernel,))
    assert (ownership.owner_of["__myl_Conv_myl0_1"], ownership.unsplit) == ("a", ())


def test_a_kernel_that_prepares_two_convolutions_computes_none_of_them() -> None:
    pad = inspected("pad", "/b/Conv", "/c/Conv")
    kernels = (pad, inspected("kb", "/b/Conv", weights=True), inspected("kc", "/c/Conv", weights=True))
    ownership = found("pad", "kb", "kc", "/a/Conv", "/d/MatMul", inspected=kernels)
    assert ownership.owner_of == {"kb": "b", "kc": "c", "/a/Conv": "a", "/d/MatMul": "d"}
    assert ownership.unsplit == ()


MIXED = WidthAssignment(default=8, overrides=(("blocks.0.conv1", 4), ("blocks.1.conv2", 2)))


@pytest.fixture(scope="module")
def rtx_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the graphs of the digits network for `rtx`, without its engines."""
    pytest.importorskip("tensorrt_rtx")
    widths = (*(WidthAssignment(default=bits) for bits in (8, 6, 4, 2)), MIXED)
    return export_to(tmp_path_factory.mktemp("rtx") / "package", "rtx", widths=widths).package


# of each kernel, a convolution or what runs between two; None: shapes, and the quantizers behind the fork
OWNERS = [
    *(None, "conv1", "conv1"),
    *("blocks.0.conv1", "blocks.0.conv1", "blocks.0.conv2", "blocks.0.conv2", None),
    *("blocks.1.conv1", "blocks.1.conv2", "blocks.1.conv2", "blocks.1.shortcut.conv"),
    *("blocks.2.conv1", "blocks.2.conv1", "blocks.2.conv2", "blocks.2.conv2", "blocks.2.conv2", "linear"),
]
BATCHES = ShapeRange(input="input", minimum=(1, 1, 8, 8), optimum=(1, 1, 8, 8), maximum=(32, 1, 8, 8))


@pytest.mark.parametrize("label", ["w8", "w6", "w4", "w2", "mixed"])
def test_every_layer_of_a_real_engine_has_kernels_of_its_own(rtx_graphs: Path, label: str) -> None:
    """As TensorRT for RTX names kernels: the convolutions are named, the kernels between them are not."""
    path = rtx_graphs / f"digits-{label}.onnx"
    settings = BuildSettings(compute_capabilities=("SM86",), profile=(BATCHES,))
    engine = build_engine(path, module="tensorrt_rtx", settings=settings).layers
    layers, nodes = layer_names(read_master(bundled_master())), graph_nodes(onnx.load(str(path)).graph)
    ownership = fused_owners([layer.name for layer in engine], engine, nodes, layers)
    assert ownership.unsplit == ()
    assert [ownership.owner_of.get(layer.name) for layer in engine] == OWNERS
    # without the inspector what is named is still its, and nothing is another one's
    alone = fused_owners([layer.name for layer in engine], (), nodes, layers)
    assert alone.unsplit == ()
    assert set(alone.owner_of.items()) <= set(ownership.owner_of.items())
