"""The bundle that builds engines on the board: a Jetson engine cannot be built anywhere else."""

from __future__ import annotations

import hashlib
import re
import shlex
from importlib import resources
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.engines.shape_range import ShapeRange, check_profile, shape_texts
from bitswitch_deploy.errors import GraphError, UsageError
from bitswitch_deploy.graph.external_data import data_name
from bitswitch_deploy.target import Target

SCRIPT = "build_on_device.sh"

_SETTINGS = "#@SETTINGS@"
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
# trtexec separates inputs with commas, name and shape with the last colon, and takes quotes away
_SAFE_INPUT = re.compile(r"[A-Za-z0-9_./:-]+")


def write_bundle(
    folder: Path,
    graphs: tuple[tuple[str, str, str], ...],
    target: Target,
    profile: tuple[ShapeRange, ...],
    *,
    fp32: bool = False,
) -> tuple[str, ...]:
    """Write the script that builds an engine for each (label, role, file name) of `graphs`, relative to `folder`.

    role: `reference` for the float network, which is built as FP16, `graph` for the others.
    fp32: as if each call of the script had that option.

    Returns:
        The names written in `folder`. The same arguments give the same bytes.

    Raises:
        UsageError: the target's engines are not built on the device, or `profile` does not fit a graph.
        GraphError: a graph cannot be read, or an input has a name that trtexec cannot take.
        OutputError: the folder cannot be written.
    """
    if target.engine.name != "tensorrt" or target.engine.build != "on_device":
        raise UsageError(
            where=f"target {target.name}",
            got=f"{target.engine.name} engines, built: {target.engine.build}",
            allowed="a target whose TensorRT engines are built on the device",
            do="export without a bundle",
        )
    read = [_Graph(folder, label, role, file, profile) for label, role, file in graphs]
    text = resources.files("bitswitch_deploy.engines").joinpath(SCRIPT).read_text(encoding="utf-8")
    replace_file(
        folder / SCRIPT, text.replace(_SETTINGS, _settings(target, profile, read, fp32=fp32)).encode(), executable=True
    )
    return (SCRIPT,)


def holds_half(graph: onnx.GraphProto) -> bool:
    """Whether a graph itself says float16: in a weight, or in a Cast, as around a product of two activations."""
    half = onnx.TensorProto.FLOAT16
    casts = (node for node in graph.node if node.op_type == "Cast")
    return any(tensor.data_type == half for tensor in graph.initializer) or any(
        attribute.name == "to" and attribute.i == half for node in casts for attribute in node.attribute
    )


def _settings(target: Target, profile: tuple[ShapeRange, ...], graphs: list[_Graph], *, fp32: bool) -> str:
    workspace = target.limits.max_workspace_mb
    shapes = shape_texts(profile) or ("", "", "")
    values = {
        "target": target.name,
        "made_for": f"{target.engine.name} {target.stack.engine_version}",
        "arch": target.arch,
        "boards": " ".join(target.detect.compatible),
        "workspace_mb": "" if workspace is None else str(workspace),
        "legacy_flags": " ".join(target.engine.builder_flags_legacy),
        "fp32": "yes" if fp32 else "no",
        "dla_rules": " ".join(_numeric_rule(rule) for rule in target.device.dla_tensorrt),
        "has_half": "yes" if any(graph.has_half and graph.role == "graph" for graph in graphs) else "no",
        "min_shapes": shapes[0],
        "opt_shapes": shapes[1],
        "max_shapes": shapes[2],
        "graphs": "\n".join(graph.line for graph in graphs),
    }
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in values.items())


def _numeric_rule(rule: str) -> str:
    """`<10.8` is `<100800`, which a shell can compare."""
    return ",".join(_numeric_clause(clause.strip()) for clause in rule.split(","))


def _numeric_clause(clause: str) -> str:
    sign, version = re.fullmatch(r"(>=|<|)([\d.]+)", clause).groups()  # type: ignore[union-attr] # checked by Target
    parts = [int(part) for part in (*version.split("."), "0", "0")[:3]]
    number = parts[0] * 10000 + parts[1] * 100 + parts[2]
    if sign:
        return f"{sign}{number}"
    return f">={number},<{number + 100 ** (3 - min(3, len(version.split('.'))))}"


class _Graph:
    """One graph as the script needs it: label, role, whether it holds float16, and its line in the list."""

    def __init__(self, folder: Path, label: str, role: str, file: str, profile: tuple[ShapeRange, ...]) -> None:
        for name in (label, file):
            # the names are words of a shell script
            if not _SAFE_NAME.fullmatch(name) or ".." in name:
                allowed = "letters, digits and . _ / -"
                raise UsageError(where="bundle", got=f"name {name!r}", allowed=allowed, do="rename the graph")
        try:
            data = (folder / file).read_bytes()
            graph = onnx.load_model_from_string(data).graph
        except (OSError, DecodeError) as exc:
            do, got = "write the graphs before the bundle", f"not readable: {exc}"
            raise GraphError(where=str(folder / file), got=got, allowed="an ONNX file", do=do) from exc
        shapes = _input_shapes(graph)
        for name in shapes:
            if not _SAFE_INPUT.fullmatch(name):
                allowed = "letters, digits and . _ / : -"
                raise GraphError(where=file, got=f"input name {name!r}", allowed=allowed, do="rename the network input")
        check_profile(shapes, profile, where=file)
        self.role = role
        self.has_half = holds_half(graph)
        self.line = f"{label} {role} {file} {hashlib.sha256(data).hexdigest()}"
        weights = folder / data_name(file)
        if weights.is_file():
            self.line += f" {data_name(file)} {_hash_of(weights)}"


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 16):
            digest.update(chunk)
    return digest.hexdigest()


def _input_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int | None, ...]]:
    # below IR 4 initializers are listed among the inputs
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    return {value.name: tuple(map(_size, value.type.tensor_type.shape.dim)) for value in inputs}


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    return dim.dim_value if dim.HasField("dim_value") else None
