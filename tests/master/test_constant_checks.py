"""Constants of a skeleton that make it compute no numbers, or other ones each time, are refused through the reader."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master import read_master
from tests.master.files import write_file
from tests.master.tiny import tiny_skeleton

Nodes = list[onnx.NodeProto]


def in_branch(nodes: Nodes) -> Nodes:
    """Put nodes that make `r` into a branch of an If."""
    result = [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    other = helper.make_graph([helper.make_node("Abs", ["x"], ["r"])], "other", [], result)
    branch = helper.make_graph(nodes, "branch", [], result)
    condition = helper.make_node("Constant", [], ["condition"], value=numpy_helper.from_array(np.array(True)))
    return [condition, helper.make_node("If", ["condition"], ["beside"], then_branch=branch, else_branch=other)]


def read(tmp_path: Path, nodes: Nodes, place: str, **constants: object) -> None:
    """Read the tiny master with `nodes`, which make `r`, beside its network or in a branch."""
    model = tiny_skeleton()
    model.graph.node.extend(in_branch(nodes) if place == "branch" else nodes)
    for name, value in constants.items():
        tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        model.graph.initializer.append(tensor)
    read_master(write_file(tmp_path / "net.safetensors", skeleton=model))


def refused(message: str, tmp_path: Path, nodes: Nodes, place: str, **constants: object) -> None:
    with pytest.raises(MasterError, match=message):
        read(tmp_path, nodes, place, **constants)


in_both_places = pytest.mark.parametrize("place", ["network", "branch"])


@in_both_places
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_nan_in_a_constant(dtype: type, place: str, tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["k"], ["c"], to=1), helper.make_node("Add", ["c", "x"], ["r"])]
    read(tmp_path, nodes, place, k=dtype(-math.inf))
    refused(r"skeleton: constant 'k': a value that is NaN\n", tmp_path, nodes, place, k=dtype(math.nan))


@in_both_places
def test_nan_in_a_constant_node(place: str, tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.array([1, math.nan, 1, 1, 1, 1, 1, 1], np.float32))
    nodes = [helper.make_node("Constant", [], ["k"], value=value), helper.make_node("Add", ["k", "x"], ["r"])]
    refused(r"skeleton: constant 'k': a value that is NaN\n", tmp_path, nodes, place)


def test_more_data_than_the_shape_has_room_for(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["k", "x"], ["r"])]
    surplus = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[1], float_data=[1, 2])
    refused(
        r"skeleton: constant 'k': .*\n  allowed: as many values as its shape has", tmp_path, nodes, "network", k=surplus
    )


@in_both_places
@pytest.mark.parametrize("name", ["k", "bn.var"])
def test_a_variance_without_a_root(name: str, place: str, tmp_path: Path) -> None:
    names = ["stem", "bn.weight", "bn.bias", "bn.mean", name]
    if name == "k":
        nodes = [helper.make_node("BatchNormalization", names, ["r"])]
        read(tmp_path, nodes, place, k=np.array([0, 0, 0, 0], np.float32))
        refused(r"tensor k: a running variance of -1\n", tmp_path, nodes, place, k=np.array([0, 0, -1, 0], np.float32))
    else:  # another epsilon, under which the tensor of the master is too small
        nodes = [helper.make_node("BatchNormalization", names, ["r"], epsilon=-2.0)]
        refused(r"tensor bn\.var: a running variance of .*\n  allowed: above 2\n", tmp_path, nodes, place)


@in_both_places
@pytest.mark.parametrize(
    ("inputs", "accepted"),
    [(["x"], True), (["x", "", "off"], True), (["x", "", "on"], False), (["x", "", "computed"], False)],
)
def test_a_dropout_that_may_drop(inputs: list[str], accepted: bool, place: str, tmp_path: Path) -> None:
    nodes = [helper.make_node("Not", ["off"], ["computed"]), helper.make_node("Dropout", inputs, ["r"], name="d")]
    if accepted:
        read(tmp_path, nodes, place, on=True, off=False)
    else:
        refused(r"skeleton: Dropout 'd' in training mode", tmp_path, nodes, place, on=True, off=False)
