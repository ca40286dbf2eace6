from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any

import onnx.helper
import pytest

from bitswitch_deploy.errors import TargetFileError, UsageError
from bitswitch_deploy.target import Target, version_matches

STACK: dict[str, Any] = {
    "name": "2.0",
    "engine_version": "10.3.0",
    "opset": 21,
    "ir_version": 10,
    "python": "3.10",
    "l4t": ">=36.4,<37",
    "typing": "weak",
    "default": True,
}
BOARD: dict[str, Any] = {
    "schema": "bitswitch-target/1",
    "name": "my-board",
    "title": "A board",
    "family": "jetson",
    "arch": "aarch64",
    "device": {"sm": "8.7", "memory_gb": 8},
    "stacks": [{**STACK, "name": "1.0", "opset": 17, "ir_version": 8, "default": False}, STACK],
    "quantization": {
        "activation": {"dtype": "int8", "zero_point": 0},
        "weight_containers": {"Conv": "int8", "ConvTranspose": "int8", "Gemm": "int8", "MatMul": "int8"},
        "residual": "skip_input",
        "min_agreement": 99.5,
        "forbid_types": ["uint8"],
    },
    "lowering": ["ClampActivations", "SetOpset"],
    "engine": {"name": "tensorrt", "build": "on_device", "builder_flags_legacy": ["INT8"]},
    "measure": {"min_warmup_s": 10, "min_seconds": 30, "trtexec": {"<11": ["--useCudaGraph"], ">=11": []}},
}
REMOVE = object()


def changed(*changes: tuple[str, object]) -> dict[str, Any]:
    """BOARD with the value at each dotted path replaced, added or, for REMOVE, taken out."""
    board = copy.deepcopy(BOARD)
    for path, value in changes:
        *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        entry: Any = board
        for key in parents:
            entry = entry[key]
        if value is REMOVE:
            del entry[last]
        else:
            entry[last] = value
    return board


def cpu(*changes: tuple[str, object]) -> dict[str, Any]:
    """The same board with onnxruntime: one stack, no TensorRT entries."""
    stack = {key: value for key, value in STACK.items() if key not in ("typing", "l4t")}
    engine = {"name": "onnxruntime", "build": "any", "session": {"session.a": "1"}}
    forbidden = ("quantization/forbid_types", ["int16"])
    return changed(("stacks", [stack]), ("engine", engine), forbidden, *changes)


def read(mapping: object) -> Target:
    return Target.from_mapping(mapping, source="t.yaml")


def test_every_entry_is_read() -> None:
    target = read(BOARD)
    assert (target.name, target.arch, target.device.sm, target.device.memory_gb) == ("my-board", "aarch64", "8.7", 8.0)
    assert target.device.dla_cores == 0
    assert target.device.gpu_int8_tops_dense is None
    assert [stack.name for stack in target.stacks] == ["1.0", "2.0"]
    assert target.stack is target.stacks[1]
    assert (target.stack.opset, target.stack.l4t, target.stack.weight_form) == (21, ">=36.4,<37", "int8")
    assert target.quantization.weight_containers[0] == ("Conv", "int8")
    assert target.lowering == ("ClampActivations", "SetOpset")
    assert target.measure.trtexec == (("<11", ("--useCudaGraph",)), (">=11", ()))
    assert isinstance(target.measure.min_seconds, float)


def test_a_target_is_frozen_and_hashable() -> None:
    target = read(BOARD)
    assert hash(target) == hash(read(BOARD))
    with pytest.raises(dataclasses.FrozenInstanceError, match="name"):
        target.name = "x"  # type: ignore[misc]


def test_onnxruntime_session_entries_are_pairs() -> None:
    assert read(cpu()).engine.session == (("session.a", "1"),)


def test_null_is_the_absence_of_an_optional_entry() -> None:
    assert read(changed(("stacks/0/l4t", None))).stacks[0].l4t is None


def test_with_stack_selects_and_keeps_the_rest() -> None:
    target = read(BOARD)
    other = target.with_stack("1.0")
    assert other.stack.opset == 17
    assert other.with_stack("2.0") == target


def test_with_stack_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"no stack '3'\n  allowed: my-board@1.0, my-board@2.0"):
        read(BOARD).with_stack("3")


def test_weight_container_by_operator_and_width() -> None:
    board = changed(("quantization/weight_containers/MatMul", {8: "int8", 4: "int4"}), ("stacks/0/opset", 21))
    board["stacks"][0]["ir_version"] = 10
    quantization = read(board).quantization
    assert [quantization.weight_container("MatMul", bits) for bits in (2, 3, 4, 5, 8)] == [
        "int4",
        "int4",
        "int4",
        "int8",
        "int8",
    ]
    assert quantization.weight_container("Conv", 2) == "int8"
    with pytest.raises(ValueError, match="no container of Conv holds 9 bits"):
        quantization.weight_container("Conv", 9)
    with pytest.raises(KeyError, match="Add"):
        quantization.weight_container("Add", 8)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("colour", "red", "t.yaml: unknown key: 'colour'"),
        ("stacks/1/opsett", 17, r"t.yaml: stacks\[1\]: unknown key: 'opsett' \(did you mean opset\?\)"),
        ("stack", {}, "t.yaml: unknown key: 'stack'"),
        ("name", REMOVE, "t.yaml: no key name"),
        ("stacks/1/opset", REMOVE, r"t.yaml: stacks\[1\]: no key opset"),
        ("schema", "bitswitch-target/2", r"t.yaml: schema: 'bitswitch-target/2'\n  allowed: bitswitch-target/1"),
        ("arch", "mips", r"t.yaml: arch: 'mips'\n  allowed: aarch64, x86_64"),
        ("quantization/activation/zero_point", False, "activation.zero_point: False\n  allowed: 0, -128"),
        ("stacks/1/python", 3.10, r"stacks\[1\].python: 3.1\n  allowed: text .*\(a number needs quotes here\)"),
        ("title", "", "t.yaml: title: ''"),
        ("stacks/1/opset", "17", r"stacks\[1\].opset: '17'\n  allowed: a whole number"),
        ("stacks/1/opset", True, r"stacks\[1\].opset: True"),
        ("stacks/1/opset", 17.0, r"stacks\[1\].opset: 17.0"),
        ("stacks/1/editable_timing_cache", 1, r"stacks\[1\].editable_timing_cache: 1\n  allowed: true or false"),
        ("device/memory_gb", -1, r"device.memory_gb: -1.0\n  allowed: 0 or more"),
        ("device/memory_gb", float("nan"), "device.memory_gb: nan"),
        ("device/memory_gb", float("inf"), "device.memory_gb: inf"),
        ("device/memory_gb", 10**400, r"device.memory_gb: 1000+\.\.\.0+"),
        ("device/memory_gb", True, "device.memory_gb: True"),
        ("device", ["8.7"], r"device: \['8.7'\]\n  allowed: an object with the keys"),
        ("lowering", "SetOpset", r"lowering: 'SetOpset'\n  allowed: a list"),
        ("lowering", [1], r"lowering\[0\]: 1\n  allowed: text"),
        ("measure/trtexec", ["--x"], r"measure.trtexec\[0\]: '--x'\n  allowed: a list"),
        ("quantization/weight_containers/Add", "int8", r"weight_containers\[Add\]: 'Add'"),
        ("quantization/weight_containers/Conv", "int3", r"weight_containers\[Conv\]: 'int3'"),
        (
            "quantization/weight_containers/Conv",
            {"8": "int8"},
            r"weight_containers\[Conv\]\[8\]: '8'\n  allowed: a whole",
        ),
    ],
)
def test_wrong_keys_and_types_are_refused(path: str, value: object, message: str) -> None:
    with pytest.raises(TargetFileError, match=message):
        read(changed((path, value)))


@pytest.mark.parametrize("mapping", [None, [], "text", 3])
def test_a_file_that_holds_no_mapping_is_refused(mapping: object) -> None:
    with pytest.raises(TargetFileError, match=r"^t\.yaml: .*\n  allowed: an object with the keys"):
        read(mapping)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stacks/0/default", True, r"t.yaml: stacks: 2 stacks have default: true\n  allowed: exactly one"),
        ("stacks/1/default", False, "t.yaml: stacks: 0 stacks have default: true"),
        ("stacks/0/name", "2.0", r"stacks\[0\].name: '2.0'"),
        ("stacks/0/name", "a@b", r"stacks\[0\].name: 'a@b'"),
        ("stacks/0/opset", 12, r"stacks\[0\].opset: 12\n  allowed: 13..28"),
        ("stacks/0/opset", 29, r"stacks\[0\].opset: 29"),
        ("stacks/0/ir_version", 7, r"stacks\[0\].ir_version: 7 with opset 17\n  allowed: 8..14"),
        ("stacks/0/ir_version", 15, r"stacks\[0\].ir_version: 15 with opset 17"),
        ("stacks/0/l4t", "36.x", r"stacks\[0\].l4t: '36.x'"),
        ("stacks/0/engine_version", "~=10", r"stacks\[0\].engine_version: '~=10'"),
        ("measure/trtexec", {"=<11": []}, r"measure.trtexec\[=<11\]: '=<11'"),
        ("stacks/0/typing", None, r"stacks\[0\].typing: None with tensorrt"),
        ("device/dla_cores", 2, r"device.dla_tensorrt: \[\] with dla_cores: 2\n  allowed: version rules where"),
        ("device/dla_tensorrt", ["<10.8"], r"device.dla_tensorrt: \['<10.8'\] with dla_cores: 0"),
        ("device", {"dla_cores": 1, "dla_tensorrt": ["10.x"]}, "device.dla_tensorrt: '10.x'"),
        (
            "device",
            {"dla_cores": 1, "dla_tensorrt": [">=8.5,<10.3.0.30"]},
            "device.dla_tensorrt: '>=8.5,<10.3.0.30'\n  allowed: versions of at most three numbers",
        ),
        ("name", "My Board", "name: 'My Board'"),
        (
            "quantization/activation/dtype",
            "uint8",
            r"quantization.activation: uint8, zero point 0\n  allowed: int8 with",
        ),
        ("quantization/activation/zero_point", -128, "quantization.activation: int8, zero point -128"),
        ("quantization/forbid_types", ["int8"], "forbid_types: holds the activation type int8"),
        ("quantization/negative_scales", True, "negative_scales: true with tensorrt"),
        ("quantization/min_agreement", 100.5, "min_agreement: 100.5"),
        ("quantization/min_agreement", -5, r"min_agreement: -5.0\n  allowed: 0..100 percent"),
        ("limits", {"max_workspace_mb": 0}, r"limits.max_workspace_mb: 0\n  allowed: 1..1048576"),
        ("limits", {"max_workspace_mb": 2**20 + 1}, "limits.max_workspace_mb: 1048577"),
        ("measure/min_warmup_s", -1, r"measure.min_warmup_s: -1.0\n  allowed: 0 or more"),
        ("measure/min_seconds", -0.5, "measure.min_seconds: -0.5"),
        ("engine/build", "any", r"engine.build: any with tensorrt\n  allowed: on_device or host"),
        ("engine/builder_flags_legacy", ["FP61"], r"engine.builder_flags_legacy\[0\]: 'FP61'"),
        ("quantization/weight_containers/Gemm", REMOVE, "weight_containers: no entry for Gemm"),
        ("quantization/weight_containers/Gemm", {4: "int8"}, r"weight_containers\[Gemm\]: widths \[4\]"),
        ("quantization/weight_containers/Gemm", {}, r"weight_containers\[Gemm\]: widths \[\]"),
        ("quantization/weight_containers/Gemm", {8: "int8", 9: "int8"}, r"widths \[8, 9\]"),
        ("quantization/weight_containers/Gemm", {8: "int8", 1: "int8"}, r"\[Gemm\]: int8 for 1 bits"),
        ("quantization/weight_containers/Gemm", "int4", r"\[Gemm\]: int4 for 8 bits\n  allowed: 2..4 bits in int4"),
        ("quantization/weight_containers/Gemm", {8: "int8", 5: "int4"}, r"\[Gemm\]: int4 for 5 bits"),
        (
            "quantization/weight_containers/Gemm",
            {8: "int8", 4: "int4"},
            r"\[Gemm\]: int4 with stack 1.0, opset 17\n  allowed: opset 21",
        ),
        (
            "quantization/weight_containers/Gemm",
            {8: "int8", 2: "int2"},
            r"\[Gemm\]: int2 with stack 1.0, opset 17\n  allowed: opset 25",
        ),
        ("lowering", ["SetOpset", "SetOpset"], "lowering: 'SetOpset'"),
        ("lowering", ["Set-Opset"], "lowering: 'Set-Opset'"),
        ("engine/compute_capabilities", ["SM87"], r"engine.compute_capabilities: \['SM87'\] with tensorrt"),
        ("engine/session", {"a": "1"}, "engine.session: options with tensorrt"),
        ("engine/builder_flags_legacy", [], r"engine.builder_flags_legacy: \[\]"),
    ],
)
def test_contradictions_are_refused(path: str, value: object, message: str) -> None:
    with pytest.raises(TargetFileError, match=message):
        read(changed((path, value)))


def test_int4_that_is_used_and_forbidden_is_refused() -> None:
    containers = ("quantization/weight_containers/MatMul", {8: "int8", 4: "int4"})
    assert read(cpu(containers)).quantization.weight_container("MatMul", 4) == "int4"
    with pytest.raises(TargetFileError, match=r"weight_containers\[MatMul\]: int4, which forbid_types names"):
        read(cpu(containers, ("quantization/forbid_types", ["int4"])))


def test_zero_point_minus_128_needs_int8() -> None:
    zero_point = ("quantization/activation/zero_point", -128)
    assert read(cpu(zero_point)).quantization.activation.zero_point == -128
    with pytest.raises(TargetFileError, match=r"activation.zero_point: -128 with uint8\n  allowed: 0"):
        read(cpu(zero_point, ("quantization/activation/dtype", "uint8")))


def test_typing_belongs_to_tensorrt() -> None:
    with pytest.raises(TargetFileError, match=r"stacks\[0\].typing: strong with onnxruntime"):
        read(cpu(("stacks/0/typing", "strong")))


@pytest.mark.parametrize("build", ["on_device", "host"])
def test_graphs_of_onnxruntime_need_no_place_to_build(build: str) -> None:
    with pytest.raises(TargetFileError, match=rf"engine.build: {build} with onnxruntime\n  allowed: any"):
        read(cpu(("engine/build", build)))


def test_tensorrt_rtx_names_its_gpus() -> None:
    rtx: dict[str, Any] = {"name": "tensorrt_rtx", "build": "host", "builder_flags_legacy": ["INT8"]}
    assert read(changed(("engine", {**rtx, "compute_capabilities": ["SM89"]}))).engine.build == "host"
    with pytest.raises(TargetFileError, match=r"compute_capabilities: \[\] with tensorrt_rtx"):
        read(changed(("engine", rtx)))
    with pytest.raises(TargetFileError, match=r"engine.build: on_device with tensorrt_rtx\n  allowed: host"):
        read(changed(("engine", {**rtx, "build": "on_device"})))
    with pytest.raises(TargetFileError, match=r"compute_capabilities: '8.9'\n  allowed: names such as SM89"):
        read(changed(("engine", {**rtx, "compute_capabilities": ["8.9"]})))


def test_ir_versions_agree_with_onnx() -> None:
    oldest = {row[2]: row[1] for row in onnx.helper.VERSION_TABLE if 13 <= row[2] <= 28}
    assert len(oldest) == 16
    for opset, ir_version in oldest.items():
        stack = {"stacks/1/opset": opset, "stacks/1/ir_version": ir_version}
        assert read(changed(*stack.items())).stack.ir_version == ir_version
        with pytest.raises(TargetFileError, match=rf"ir_version: {ir_version - 1} with opset {opset}\n"):
            read(changed(*{**stack, "stacks/1/ir_version": ir_version - 1}.items()))


def test_a_newer_ir_version_than_the_opset_needs_is_fine() -> None:
    assert read(changed(("stacks/1/ir_version", 13))).stack.ir_version == 13


def test_messages_stay_short_for_values_that_are_huge() -> None:
    value: Any = ["x" * 1000]
    for _ in range(40):
        value = [value] * 10
    with pytest.raises(TargetFileError, match=r"t\.yaml: title: ") as caught:
        read(changed(("title", value)))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("rule", "version", "expected"),
    [
        (">=36.4,<37", "36.4.3", True),
        (">=36.4,<37", "36.5.0", True),
        (">=36.4,<37", "36.3.0", False),
        (">=36.4,<37", "37.0", False),
        (">=36.4,<37", "36.10", True),
        (">=36.4, <37", "36.4", True),
        ("36.3", "36.3.0", True),
        ("36.3", "36.30.0", False),
        ("10.3.0", "10.3.0.30", True),
        ("10.3.0", "10.3", False),
        ("<11", "11.0", False),
        ("<11", "10.16", True),
        ("<11", "11", False),
    ],
)
def test_version_rules(rule: str, version: str, expected: bool) -> None:
    assert version_matches(rule, version) is expected


@pytest.mark.parametrize(
    ("rule", "version"), [(">36", "36"), ("", "36"), (">=36", "36.x"), (">=36", ""), (">=36,", "36")]
)
def test_what_is_no_version_raises(rule: str, version: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        version_matches(rule, version)


def test_every_refusal_says_how_to_mend() -> None:
    with pytest.raises(TargetFileError, match=re.escape("do: correct this entry; targets/README.md")):
        read({})
