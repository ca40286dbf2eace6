"""What one target can run, as frozen values that check themselves (schema in targets/README.md). No I/O.

A profile is data: code asks it questions and never compares its name. The YAML files cite the facts behind the values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from bitswitch_deploy.errors import TargetFileError, UsageError
from bitswitch_deploy.records import Reader
from bitswitch_deploy.tensors import MAX_BITS

ActivationType = Literal["uint8", "int8"]
WeightType = Literal["int8", "int4", "int2"]
WidthMap = tuple[tuple[int, WeightType], ...]
AnyType = Literal["uint8", "int8", "uint4", "int4", "uint2", "int2", "uint16", "int16"]
# Every TensorRT with weakly typed networks has these.
LegacyFlag = Literal["INT8", "FP16"]
Operator = Literal["Conv", "ConvTranspose", "Gemm", "MatMul"]

# First opset and the IR version that came with it: onnx.helper.VERSION_TABLE. Below 13 DequantizeLinear has no axis.
_OPSET_IR = ((13, 7), (15, 8), (19, 9), (21, 10), (23, 11), (24, 12), (25, 13), (28, 14))
_MAX_OPSET = 28
# First opset whose DequantizeLinear reads the type, and the width it holds.
_WEIGHT_TYPES: dict[str, tuple[int, int]] = {"int8": (13, 8), "int4": (21, 4), "int2": (25, 2)}
# A terabyte: TensorRT takes bytes in 64 bits.
MAX_WORKSPACE_MB = 2**20
# Where the engines of each kind can be built.
_BUILDS = {"onnxruntime": ("any",), "tensorrt": ("on_device", "host"), "tensorrt_rtx": ("host",)}
_READER = Reader(error=TargetFileError, do="correct this entry; targets/README.md explains each field")
_VERSION_CLAUSE = re.compile(r"(>=|<)?(\d+(?:\.\d+)*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Facts about the board, for reports and limits. None is unknown or different from board to board.

    dla_tensorrt: rules for the TensorRT versions that drive its DLA cores; one of them must match.
    """

    sm: str | None = None
    gpu_int8_tops_dense: float | None = None
    memory_gb: float | None = None
    memory_bandwidth_gbs: float | None = None
    dla_cores: int = 0
    dla_tensorrt: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Detect:
    """How a board names itself in /proc/device-tree/compatible: its chip, and its module or developer kit."""

    compatible: tuple[str, ...] = ()
    part_numbers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One installed generation of software, and what a graph for it looks like.

    name: JetPack or runtime version, the part after `@` in `jetson-agx-orin@5.1`.
    engine_version, l4t: version rules, see `version_matches`. l4t selects the stack on the board.
    typing: of a TensorRT network; None for other engines.
    weight_form: `int8` initializers in front of DequantizeLinear, or `float_q_dq`: float ones, Q, DQ.
    """

    name: str
    engine_version: str
    opset: int
    ir_version: int
    python: str
    l4t: str | None = None
    cuda: str | None = None
    typing: Literal["weak", "strong"] | None = None
    weight_form: Literal["int8", "float_q_dq"] = "int8"
    editable_timing_cache: bool = False
    default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationFormat:
    """Container of activation codes; `zero_point` is the one of unsigned codes (signed codes have 0)."""

    dtype: ActivationType
    zero_point: Literal[0, -128]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How codes are carried.

    weight_containers: per operator one type, or pairs (widest code in bits, type).
    residual: which inputs of a residual Add are quantized.
    min_agreement: percent of samples predicted as before that an approximation must leave, unless labels exclude that
        top-1 falls by the rest to 100 points.
    negative_scales: whether the runtime takes them for weights.
    """

    activation: ActivationFormat
    weight_containers: tuple[tuple[Operator, WeightType | WidthMap], ...]
    residual: Literal["none", "skip_input", "both_inputs"]
    min_agreement: float
    forbid_types: tuple[AnyType, ...] = ()
    negative_scales: bool = False

    def weight_container(self, operator: str, bits: int) -> WeightType:
        """Type that stores a `bits`-wide weight of `operator`.

        Raises:
            KeyError: `operator` is not one of the quantized operators.
            ValueError: `bits` is wider than every container.
        """
        containers: dict[str, WeightType | WidthMap] = dict(self.weight_containers)
        for max_bits, dtype in sorted(_widths(containers[operator])):
            if bits <= max_bits:
                return dtype
        raise ValueError(f"no container of {operator} holds {bits} bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What runs the graph and where an engine file can be built.

    compute_capabilities: GPUs that a tensorrt_rtx engine is built for. session: onnxruntime session entries.
    builder_flags_legacy: TensorRT flags of weakly typed stacks.
    """

    name: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
    build: Literal["any", "on_device", "host"]
    compute_capabilities: tuple[str, ...] = ()
    session: tuple[tuple[str, str], ...] = ()
    builder_flags_legacy: tuple[LegacyFlag, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How latency and power are measured on the device.

    power_modes: names in order of preference (ids differ between modules). total_rails: what to add up for the board.
    trtexec: flags for each TensorRT version rule.
    """

    min_warmup_s: float
    min_seconds: float
    power_modes: tuple[str, ...] = ()
    rails: tuple[str, ...] = ()
    total_rails: tuple[str, ...] = ()
    trtexec: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that keep a small board alive while it builds."""

    max_workspace_mb: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One profile with one of its stacks selected.

    lowering: names of the passes that turn the canonical graph into this target's graph, in order.
    unverified: what nobody has seen on a board yet.
    """

    schema: Literal["bitswitch-target/1"]
    name: str
    title: str
    family: str
    arch: Literal["aarch64", "x86_64"]
    stacks: tuple[Stack, ...]
    quantization: Quantization
    lowering: tuple[str, ...]
    engine: Engine
    measure: Measure
    stack: Stack
    device: Device = Device()
    detect: Detect = Detect()
    limits: Limits = Limits()
    unverified: tuple[str, ...] = ()

    @classmethod
    def from_mapping(cls, mapping: object, *, source: str) -> Target:
        """A profile out of parsed YAML, its default stack selected; `source` names the file in messages.

        Raises:
            TargetFileError: a key is unknown, missing, of another type, or contradicts another one.
        """
        # `stack` is chosen, not written
        values = _READER.arguments(cls, mapping, where=source, omit=("stack",))
        defaults = [stack for stack in values["stacks"] if stack.default]
        if len(defaults) != 1:
            got = f"{len(defaults)} stacks have default: true"
            raise _READER.refusal(f"{source}: stacks", got, "exactly one", is_text=True)
        target = cls(**values, stack=defaults[0])
        for key, got, allowed in _contradictions(target):
            raise _READER.refusal(f"{source}: {key}", got, allowed, is_text=True)
        return target

    def with_stack(self, name: str) -> Target:
        """The same target with another of its stacks.

        Raises:
            UsageError: there is no stack of this name.
        """
        for stack in self.stacks:
            if stack.name == name:
                return replace(self, stack=stack)
        known = ", ".join(f"{self.name}@{stack.name}" for stack in self.stacks)
        got = f"{self.name} has no stack {name!r}"
        raise UsageError(where="target", got=got, allowed=known, do="name one of these")


def version_matches(rule: str, version: str) -> bool:
    """Whether a dotted version keeps every clause of `rule`: `>=36.4,<37`, or `10.3.0` for 10.3.0 and all 10.3.0.x.

    Raises:
        ValueError: one of the two cannot be read.
    """
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        raise ValueError(f"not a dotted version: {version!r}")
    parts = _parts(version)
    for sign, bound in _clauses(rule):
        if not {">=": parts >= bound, "<": parts < bound, "": parts[: len(bound)] == bound}[sign]:
            return False
    return True


def _clauses(rule: str) -> list[tuple[str, tuple[int, ...]]]:
    matches = [_VERSION_CLAUSE.fullmatch(clause.strip()) for clause in rule.split(",")]
    if not all(matches):
        raise ValueError(f"not a version rule: {rule!r}")
    return [(match[1] or "", _parts(match[2])) for match in matches if match]


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _widths(container: WeightType | WidthMap) -> WidthMap:
    return ((MAX_BITS, container),) if isinstance(container, str) else container


# --- contradictions: (key, got, allowed) of everything that cannot be true at once -------------------------------

_Problems = Iterable[tuple[str, str, str]]


def _contradictions(target: Target) -> _Problems:
    if not target.title:
        yield "title", "''", "a name for people"
    for field in ("gpu_int8_tops_dense", "memory_gb", "memory_bandwidth_gbs", "dla_cores"):
        if (getattr(target.device, field) or 0) < 0:
            yield f"device.{field}", str(getattr(target.device, field)), "0 or more"
    if bool(target.device.dla_tensorrt) != bool(target.device.dla_cores):
        got = f"{list(target.device.dla_tensorrt)} with dla_cores: {target.device.dla_cores}"
        yield "device.dla_tensorrt", got, "version rules where there are DLA cores, and only there"
    for rule in target.device.dla_tensorrt:
        problems = tuple(_rule_problems("device.dla_tensorrt", rule))
        yield from problems
        if not problems and any(len(bound) > 3 for _, bound in _clauses(rule)):
            # trtexec names three numbers only
            yield "device.dla_tensorrt", repr(rule), "versions of at most three numbers"
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", target.name):
        yield "name", repr(target.name), "lower-case letters, digits and hyphens"
    yield from _stack_problems(target)
    yield from _activation_problems(target)
    for operator, container in target.quantization.weight_containers:
        yield from _container_problems(target, operator, _widths(container))
    missing = set(get_args(Operator)) - {operator for operator, _ in target.quantization.weight_containers}
    if missing:
        yield "quantization.weight_containers", f"no entry for {', '.join(sorted(missing))}", "all four operators"
    for name in target.lowering:
        if not name.isidentifier() or target.lowering.count(name) > 1:
            yield "lowering", repr(name), "names of passes, each once"
    yield from _engine_problems(target)
    for field in ("min_warmup_s", "min_seconds"):
        if getattr(target.measure, field) < 0:
            yield f"measure.{field}", str(getattr(target.measure, field)), "0 or more"
    workspace_mb = target.limits.max_workspace_mb
    if workspace_mb is not None and not 1 <= workspace_mb <= MAX_WORKSPACE_MB:
        yield "limits.max_workspace_mb", str(workspace_mb), f"1..{MAX_WORKSPACE_MB}"


def _stack_problems(target: Target) -> _Problems:
    names = [stack.name for stack in target.stacks]
    for i, stack in enumerate(target.stacks):
        key = f"stacks[{i}]"
        if names.count(stack.name) > 1 or not re.fullmatch(r"[\w.-]+", stack.name):
            yield f"{key}.name", repr(stack.name), "a name of its own, of letters, digits, dots and hyphens"
        if not _OPSET_IR[0][0] <= stack.opset <= _MAX_OPSET:
            yield f"{key}.opset", str(stack.opset), f"{_OPSET_IR[0][0]}..{_MAX_OPSET}"
        needed = max(ir for opset, ir in _OPSET_IR if opset <= max(stack.opset, _OPSET_IR[0][0]))
        if not needed <= stack.ir_version <= _OPSET_IR[-1][1]:
            yield f"{key}.ir_version", f"{stack.ir_version} with opset {stack.opset}", f"{needed}..{_OPSET_IR[-1][1]}"
        for field, rule in (("l4t", stack.l4t), ("engine_version", stack.engine_version)):
            if rule is not None:
                yield from _rule_problems(f"{key}.{field}", rule)
        if (stack.typing is None) != (target.engine.name == "onnxruntime"):
            yield f"{key}.typing", f"{stack.typing} with {target.engine.name}", "weak or strong, for TensorRT only"


def _rule_problems(key: str, rule: str) -> _Problems:
    try:
        _clauses(rule)
    except ValueError:
        yield key, repr(rule), "clauses such as '>=36.4,<37', or a leading part of the version such as '10.3.0'"


def _activation_problems(target: Target) -> _Problems:
    activation, forbidden = target.quantization.activation, target.quantization.forbid_types
    if activation.dtype == "uint8" and activation.zero_point != 0:
        yield "quantization.activation.zero_point", f"{activation.zero_point} with uint8", "0"
    # TensorRT reads UINT8 as INT8 with a warning only, and no zero point but 0.
    if target.engine.name != "onnxruntime" and (activation.dtype, activation.zero_point) != ("int8", 0):
        got = f"{activation.dtype}, zero point {activation.zero_point}"
        yield "quantization.activation", got, "int8 with zero point 0"
    if target.quantization.negative_scales and target.engine.name != "onnxruntime":
        yield "quantization.negative_scales", f"true with {target.engine.name}", "false: it refuses such a graph"
    if activation.dtype in forbidden:
        yield "quantization.forbid_types", f"holds the activation type {activation.dtype}", "other types"
    if not 0 <= target.quantization.min_agreement <= 100:
        yield "quantization.min_agreement", str(target.quantization.min_agreement), "0..100 percent"


def _container_problems(target: Target, operator: str, widths: WidthMap) -> _Problems:
    key = f"quantization.weight_containers[{operator}]"
    if max((bits for bits, _ in widths), default=0) != MAX_BITS:
        yield key, f"widths {[bits for bits, _ in widths]}", f"a map whose widest entry is {MAX_BITS}"
    for bits, dtype in widths:
        opset, holds = _WEIGHT_TYPES[dtype]
        if not 2 <= bits <= holds:
            yield key, f"{dtype} for {bits} bits", f"2..{holds} bits in {dtype}"
        if dtype in target.quantization.forbid_types:
            yield key, f"{dtype}, which forbid_types names", "a type that is not forbidden"
        for stack in target.stacks:
            if stack.opset < opset:
                yield key, f"{dtype} with stack {stack.name}, opset {stack.opset}", f"opset {opset} or newer"


def _engine_problems(target: Target) -> _Problems:
    engine, name = target.engine, target.engine.name
    if engine.build not in _BUILDS[name]:
        yield "engine.build", f"{engine.build} with {name}", " or ".join(_BUILDS[name])
    if bool(engine.compute_capabilities) != (name == "tensorrt_rtx"):
        got = f"{list(engine.compute_capabilities)} with {name}"
        yield "engine.compute_capabilities", got, "a list with tensorrt_rtx only"
    for capability in engine.compute_capabilities:
        if not re.fullmatch(r"SM\d+", capability):
            yield "engine.compute_capabilities", repr(capability), "names such as SM89"
    if engine.session and name != "onnxruntime":
        yield "engine.session", f"options with {name}", "none: they belong to onnxruntime"
    if bool(engine.builder_flags_legacy) != any(stack.typing == "weak" for stack in target.stacks):
        got = str(list(engine.builder_flags_legacy))
        yield "engine.builder_flags_legacy", got, "a list where a stack has typing: weak"
    for rule, _ in target.measure.trtexec:
        yield from _rule_problems(f"measure.trtexec[{rule}]", rule)
