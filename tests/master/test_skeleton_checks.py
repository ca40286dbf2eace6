"""Skeletons that are no plain ONNX graph, or another one than the spec describes, are refused through the reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master import read_master, skeleton_checks
from tests.master.files import changed, tiny_document, write_file
from tests.master.tiny import SKELETON_TEXT, tiny_skeleton, tiny_tensors

Change = Callable[[onnx.ModelProto], object]


def refused(tmp_path: Path, message: str, **parts: Any) -> None:
    with pytest.raises(MasterError, match=message):
        read_master(write_file(tmp_path / "bad.safetensors", **parts))


def edited(old: str, new: str) -> onnx.ModelProto:
    assert old in SKELETON_TEXT
    return onnx.parser.parse_model(SKELETON_TEXT.replace(old, new))


def constant_node(output: str, tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], value=tensor)


def external(name: str = "outside") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../secrets")
    return tensor


def half_external() -> TensorProto:
    """Build a tensor that names a file but does not say that its data lies there."""
    tensor = external()
    tensor.ClearField("data_location")
    return tensor


def sparse() -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.array([0]), "indices")
    return onnx.SparseTensorProto(values=external("values"), indices=indices, dims=[3])


def sparse_inside() -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.array([0]), "indices")
    return onnx.SparseTensorProto(values=numpy_helper.from_array(np.ones(1, np.float32)), indices=indices, dims=[3])


FLOAT = helper.make_tensor_type_proto(TensorProto.FLOAT, [3])


def in_branch(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Hide a node in a branch of an If."""
    result = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    plain = helper.make_graph(
        [constant_node("inner", numpy_helper.from_array(np.ones(3, np.float32)))], "b", [], [result]
    )
    branch = helper.make_graph([node], "a", [], [result])
    condition = constant_node("condition", numpy_helper.from_array(np.array(True)))
    return [condition, helper.make_node("If", ["condition"], ["if"], then_branch=branch, else_branch=plain)]


def test_no_skeleton(tmp_path: Path) -> None:
    refused(tmp_path, r"bad\.safetensors: tensor skeleton: missing\n", skeleton=b"")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.zeros((2, 2), np.uint8), r"tensor skeleton: uint8 of shape \[2, 2\]"),
        (np.zeros(4, np.int8), r"tensor skeleton: int8 of shape \[4\]"),
        (np.full(40, 255, np.uint8), "not a serialized ONNX model"),
        (np.frombuffer(b"import os; os.system('true')", np.uint8), "not a serialized ONNX model"),
        (np.frombuffer(tiny_skeleton().SerializeToString()[:-3], np.uint8), "not a serialized ONNX model"),
    ],
)
def test_bytes_that_are_no_model(stored: np.ndarray, message: str, tmp_path: Path) -> None:
    refused(tmp_path, message, tensors={**tiny_tensors(), "skeleton": stored})


@pytest.mark.parametrize("name", [b"Relu", b"normal", b"fc.bias"])
def test_text_that_is_not_utf8(name: bytes, tmp_path: Path) -> None:
    serialized = tiny_skeleton().SerializeToString().replace(name, name[:-1] + b"\xff")
    refused(tmp_path, r"skeleton: (text that is not UTF-8|the text b'.*xff'\n)", skeleton=serialized)


def test_a_skeleton_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(tiny_skeleton().SerializeToString())
    monkeypatch.setattr(skeleton_checks, "MAX_SKELETON_BYTES", size)
    assert read_master(write_file(tmp_path / "good.safetensors"))
    monkeypatch.setattr(skeleton_checks, "MAX_SKELETON_BYTES", size - 1)
    refused(tmp_path, rf"tensor skeleton: {size} bytes\n  allowed: {size - 1} bytes; large constants")


def test_a_skeleton_of_too_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_skeleton()
    monkeypatch.setattr(skeleton_checks, "MAX_SKELETON_PARTS", 500)
    assert read_master(write_file(tmp_path / "good.safetensors", skeleton=model))
    model.graph.node.extend(onnx.NodeProto() for _ in range(500))
    refused(tmp_path, r"skeleton: more than 500 parts", skeleton=model)


CHANGES: list[tuple[str, Change, str]] = [
    ("function", lambda m: m.functions.add(name="f", domain="d"), "local functions or training information"),
    ("training", lambda m: m.training_info.add(), "local functions or training information"),
    ("custom opset", lambda m: m.opset_import.add(domain="com.acme", version=1), "operator sets"),
    ("two opsets", lambda m: m.opset_import.add(domain="", version=20), "operator sets"),
    ("no opset", lambda m: m.ClearField("opset_import"), r"operator sets \[\]"),
    ("only custom opset", lambda m: setattr(m.opset_import[0], "domain", "ai.onnx.ml"), "operator sets"),
    ("custom operator", lambda m: setattr(m.graph.node[2], "domain", "com.acme"), "'Relu' of domain 'com.acme'"),
    ("text operator", lambda m: setattr(m.graph.node[4], "op_type", "RegexFullMatch"), "'RegexFullMatch' of domain ''"),
    (
        "custom operator in a branch",
        lambda m: m.graph.node.extend(in_branch(helper.make_node("Shell", [], ["inner"], domain="com.acme"))),
        "'Shell' of domain 'com.acme'",
    ),
    (
        "a random operator",
        lambda m: m.graph.node.append(helper.make_node("RandomNormal", [], ["noise"], shape=[3])),
        "'RandomNormal' of domain ''",
    ),
    (
        "a sparse constant",
        lambda m: m.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse_inside())),
        "attribute 'sparse_value' of operator 'Constant'",
    ),
    (
        "a type as attribute",
        lambda m: m.graph.node.extend(in_branch(helper.make_node("Optional", [], ["inner"], type=FLOAT))),
        "attribute 'type' of operator 'Optional'",
    ),
    ("half external", lambda m: m.graph.initializer.append(half_external()), "'outside' lies in another file"),
    ("external initializer", lambda m: m.graph.initializer.append(external()), "'outside' lies in another file"),
    (
        "external sparse initializer",
        lambda m: m.graph.sparse_initializer.append(sparse()),
        "'values' lies in another file",
    ),
    (
        "external constant",
        lambda m: m.graph.node.append(constant_node("c", external())),
        "'outside' lies in another file",
    ),
    (
        "external list of tensors",
        lambda m: m.graph.node[0].attribute.append(helper.make_attribute("extra", [external()])),
        "'outside' lies in another file",
    ),
    (
        "external sparse attribute",
        lambda m: m.graph.node[0].attribute.append(helper.make_attribute("extra", sparse())),
        "'values' lies in another file",
    ),
    (
        "external sparse list",
        lambda m: m.graph.node[0].attribute.append(helper.make_attribute("extra", [sparse()])),
        "'values' lies in another file",
    ),
    (
        "external constant in a branch",
        lambda m: m.graph.node.extend(in_branch(constant_node("inner", external()))),
        "'outside' lies in another file",
    ),
    (
        "external constant in a list of graphs",
        lambda m: m.graph.node[0].attribute.append(
            helper.make_attribute("extra", [helper.make_graph([], "g", [], [], initializer=[external()])])
        ),
        "'outside' lies in another file",
    ),
    ("unknown operator", lambda m: setattr(m.graph.node[2], "op_type", "Rulu"), "the ONNX checker says"),
    (
        "future opset",
        lambda m: setattr(m.opset_import[0], "version", 10_000),
        r"operator set 10000\n  allowed: 1\.\.\d+, which",
    ),
    ("opset zero", lambda m: setattr(m.opset_import[0], "version", 0), r"operator set 0\n"),
    ("a control character", lambda m: setattr(m.graph.node[0], "doc_string", "\x1b[2J"), r"the text '\\x1b\[2J'"),
    ("a control character in a list", lambda m: m.graph.node[0].output.append("\x07"), r"the text '\\x07'"),
    ("no IR version", lambda m: m.ClearField("ir_version"), "the ONNX checker says"),
    ("input that nothing makes", lambda m: m.graph.node[2].input.__setitem__(0, "ghost"), "the ONNX checker says"),
    ("a result made twice", lambda m: m.graph.node.append(m.graph.node[0]), "the ONNX checker says"),
    ("a graph input twice", lambda m: m.graph.input.append(m.graph.input[1]), "the ONNX checker says"),
    ("no graph", lambda m: m.ClearField("graph"), "the ONNX checker says"),
    (
        "an impossible axis",
        lambda m: m.graph.node[6].attribute.append(helper.make_attribute("axis", 9)),
        "checker says",
    ),
    ("attribute of a wrong type", lambda m: m.graph.node[0].attribute[0].ClearField("ints"), "checker says|ONNX"),
    (
        "an unknown element type",
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 999),
        "checker says: Invalid",
    ),
    (
        "a sequence as input",
        lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent(),
        "checker says",
    ),
    ("an input without a shape", lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "skeleton: "),
    (
        "data for a parameter",
        lambda m: m.graph.initializer.append(data("fc.bias", (10,))),
        r"data for the graph inputs \['fc\.bias'\]",
    ),
    (
        "data for the input",
        lambda m: m.graph.initializer.append(data("x", (1, 3, 8, 8))),
        r"data for the graph inputs \['x'\]",
    ),
    (
        "a further input",
        lambda m: m.graph.input.append(helper.make_tensor_value_info("y", 1, ["n"])),
        "graph inputs that are no parameters",
    ),
    (
        "a further output",
        lambda m: m.graph.output.append(helper.make_tensor_value_info("flat", 1, ["n", 6])),
        "graph outputs",
    ),
    ("no output", lambda m: m.graph.ClearField("output"), "graph outputs|checker says"),
]


def data(name: str, shape: tuple[int, ...]) -> TensorProto:
    return numpy_helper.from_array(np.zeros(shape, np.float32), name)


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_bad_models_are_refused(change: Change, message: str, tmp_path: Path) -> None:
    model = tiny_skeleton()
    change(model)
    refused(tmp_path, message, skeleton=model)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'float[10] "fc.bias"',
            'float[1, 10] "fc.bias"',
            r"tensor fc\.bias: float32 of shape \[10\]\n  allowed: .* \[1, 10\]",
        ),
        (
            'float[10] "fc.bias"',
            'float[m] "fc.bias"',
            r"parameter 'fc\.bias': float of shape \['m'\]\n  allowed: float of a fixed",
        ),
        ('float[10] "fc.bias"', 'float[] "fc.bias"', r"checker says: Field 'shape'"),
        ('float[4] "bn.bias"', 'float[4, 4] "bn.bias"', r"tensor bn\.bias|checker says"),
        ('float[6] "conv.bias"', 'float16[6] "conv.bias"', r"checker says|parameter 'conv\.bias'"),
        ("float[n, 3, 8, 8] x", "float[m, 3, 8, 8] x", r"graph inputs that are no parameters: .*'m'"),
        ("float[n, 3, 8, 8] x", "float[n, 3, 8, 9] x", r"graph inputs that are no parameters"),
        ("float[n, 3, 8, 8] x", "float[n, 3, 8, 8] z", r"the ONNX checker says"),
        ("(float[n, 10] logits)", "(float[m, 10] logits)", r"graph outputs: .*'m'|checker says"),
        ("(float[n, 10] logits)", "(float[n, 11] logits)", r"the ONNX checker says"),
        ("(float[n, 10] logits)", "(double[n, 10] logits)", r"the ONNX checker says"),
        ("(float[n, 10] logits)", "(float[n, 6] flat)", r"graph outputs"),
        (', float[10] "fc.bias")', ")", r"the ONNX checker says"),
        ('(active, "conv.weight", "conv.bias")', '(active, "stem.weight")', r"layer stem|checker says"),
        ('(active, "conv.weight", "conv.bias")', '(active, "conv.weight")', ""),
        ("active = Relu (normal)", 'extra = Add (normal, "conv.bias")\n active = Relu (normal)', "checker says"),
    ],
)
def test_signatures_that_disagree_are_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    if message:
        refused(tmp_path, message, skeleton=edited(old, new))
    else:  # a parameter that nothing reads is harmless
        assert read_master(write_file(tmp_path / "good.safetensors", skeleton=edited(old, new)))


def test_a_parameter_of_the_spec_that_the_skeleton_lacks(tmp_path: Path) -> None:
    document = changed(tiny_document(), "parameters", ["conv.bias", "fc.bias", "ghost"])
    refused(tmp_path, r"skeleton: no graph input 'ghost'", document=document)


def test_a_parameter_of_the_skeleton_that_the_spec_lacks(tmp_path: Path) -> None:
    document = changed(tiny_document(), "parameters", ["conv.bias"])
    refused(tmp_path, r"graph inputs that are no parameters: .*'fc\.bias'", document=document)


def test_a_parameter_that_is_no_float(tmp_path: Path) -> None:
    document = changed(tiny_document(), "parameters", ["conv.bias", "fc.bias", "extra"])
    model = tiny_skeleton()
    model.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.DOUBLE, [3]))
    tensors = {**tiny_tensors(), "extra": np.zeros(3, np.float32)}
    message = r"parameter 'extra': double of shape \[3\]\n  allowed: float of a fixed shape"
    refused(tmp_path, message, document=document, skeleton=model, tensors=tensors)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "layers.1.operator",
            "ConvTranspose",
            r"layer conv: the weight conv\.weight is read as input 1 of Conv\n  allowed: input 1 of ConvTranspose",
        ),
        ("layers.2.operator", "MatMul", r"layer fc: the weight fc\.weight is read as input 1 of Gemm"),
    ],
)
def test_a_layer_of_another_operator(path: str, value: str, message: str, tmp_path: Path) -> None:
    refused(tmp_path, message, document=changed(tiny_document(), path, value))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "flat = Flatten (pooled)",
            'scaled = Mul ("fc.weight", "fc.weight")\n flat = Flatten (pooled)',
            r"read as input 1 of Gemm, input 0 of Mul, input 1 of Mul",
        ),
        (
            'Gemm <transB: int = 1> (flat, "fc.weight", "fc.bias")',
            'Gemm <transB: int = 1> (flat, renamed, "fc.bias")',
            r"read as input 0 of Identity",
        ),
        (
            'logits = Gemm <transB: int = 1> (flat, "fc.weight", "fc.bias")',
            'other = Gemm <transA: int = 1, transB: int = 1> ("fc.weight", flat)\n logits = Transpose (other)',
            "layer fc: |checker says",
        ),
    ],
)
def test_a_weight_that_is_read_otherwise(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = SKELETON_TEXT.replace(old, new)
    if "renamed" in text:
        text = text.replace("logits =", 'renamed = Identity ("fc.weight")\n logits =')
    refused(tmp_path, message, skeleton=onnx.parser.parse_model(text))


def test_a_weight_that_nothing_reads(tmp_path: Path) -> None:
    model = edited('(active, "conv.weight", "conv.bias")', '(active, other, "conv.bias")')
    other = helper.make_node("ConstantOfShape", ["shape"], ["other"])
    model.graph.initializer.append(numpy_helper.from_array(np.array([6, 4, 3, 3]), "shape"))
    model.graph.node.insert(0, other)
    refused(
        tmp_path, r"layer conv: the weight conv\.weight is read as nothing\n  allowed: input 1 of Conv", skeleton=model
    )


def test_a_weight_that_a_branch_reads_otherwise(tmp_path: Path) -> None:
    model = tiny_skeleton()
    model.graph.node.extend(in_branch(helper.make_node("Neg", ["fc.weight"], ["inner"])))
    refused(tmp_path, r"layer fc: .* read as input 1 of Gemm, input 0 of Neg", skeleton=model)


def test_small_constants_and_branches_are_allowed(tmp_path: Path) -> None:
    model = edited("flat = Flatten (pooled)", "flat = Reshape (pooled, target)")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 6]), "target"))
    model.graph.node.extend(in_branch(constant_node("inner", data("", (3,)))))
    model.opset_import[0].domain = "ai.onnx"
    assert read_master(write_file(tmp_path / "good.safetensors", skeleton=model))


def test_inputs_keep_their_order(tmp_path: Path) -> None:
    second = {"name": "mask", "dtype": "float", "shape": ["n"]}
    first = tiny_document()["inputs"][0]
    model = tiny_skeleton()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n"]))
    document = changed(tiny_document(), "inputs", [first, second])
    assert read_master(write_file(tmp_path / "good.safetensors", skeleton=model, document=document))
    document = changed(tiny_document(), "inputs", [second, first])
    refused(tmp_path, "graph inputs that are no parameters", skeleton=model, document=document)


@pytest.mark.parametrize("name", ["fc.bias", "conv.weight"])
def test_a_parameter_is_no_output(name: str, tmp_path: Path) -> None:
    model = tiny_skeleton()
    value = next(value for value in model.graph.input if value.name == name)
    model.graph.output.append(value)
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    outputs = [*tiny_document()["outputs"], {"name": name, "dtype": "float", "shape": shape}]
    document = changed(tiny_document(), "outputs", outputs)
    refused(tmp_path, rf"skeleton: graph outputs: the parameter '{name}'\n", skeleton=model, document=document)
